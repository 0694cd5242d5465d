"""Proofs of a shared token, against hmac by hand and against every kind of theft."""

import hashlib
import hmac
from dataclasses import replace

import pytest

from runtime.wire.auth import certificate_hash, challenge, is_proven, new_nonce, prove
from runtime.wire.messages import Hello
from runtime.wire.states import Role
from tests.wire.cases import HELLO

TOKEN = b"a token of forty characters or so, random"
NONCE = bytes(range(100, 132))
CERTIFICATE = certificate_hash(b"a certificate")


def test_a_proof_is_the_hmac_of_the_whole_transcript() -> None:
    parts = (
        b"STF1 proof",
        b"edge",
        HELLO.encode(0),
        NONCE,
        hashlib.sha256(b"a certificate").digest(),
    )
    message = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    expected = hmac.new(TOKEN, message, hashlib.sha256).digest()
    assert prove(TOKEN, Role.EDGE, HELLO, NONCE, CERTIFICATE) == expected
    assert is_proven(expected, TOKEN, Role.EDGE, HELLO, NONCE, CERTIFICATE)


@pytest.mark.parametrize(
    "change",
    [
        {"token": TOKEN[:-1]},
        {"token": TOKEN.upper()},
        {"role": Role.SERVER},
        {"hello": replace(HELLO, user="bob")},
        {"hello": replace(HELLO, nonce=bytes(32))},
        {"hello": replace(HELLO, vocabulary_size=7)},
        {"hello": replace(HELLO, user="alic", model="e" + HELLO.model)},
        {"nonce": bytes(32)},
        {"certificate": certificate_hash(b"another certificate")},
        {"certificate": certificate_hash(None)},
    ],
    ids=str,
)
def test_a_proof_is_of_no_use_elsewhere(change: dict[str, object]) -> None:
    """With another token, in the other direction, on another connection, behind another server."""
    here = {"token": TOKEN, "role": Role.EDGE, "hello": HELLO, "nonce": NONCE}
    here["certificate"] = CERTIFICATE
    proof = prove(**here)
    assert is_proven(proof, **here)
    assert not is_proven(proof, **(here | change))


def test_nonces_do_not_come_again() -> None:
    assert len({new_nonce() for _ in range(1000)}) == 1000


def test_the_servers_own_proof_is_in_its_challenge() -> None:
    first, second = (challenge(TOKEN, HELLO, CERTIFICATE) for _ in range(2))
    assert first.nonce != second.nonce
    assert is_proven(first.proof, TOKEN, Role.SERVER, HELLO, first.nonce, CERTIFICATE)
    assert not is_proven(first.proof, TOKEN, Role.EDGE, HELLO, first.nonce, CERTIFICATE)


def test_an_unknown_user_is_challenged_all_the_same() -> None:
    stranger: Hello = replace(HELLO, user="mallory")
    got = challenge(None, stranger, CERTIFICATE)
    assert len(got.nonce) == len(got.proof) == 32
    assert not is_proven(got.proof, TOKEN, Role.SERVER, stranger, got.nonce, CERTIFICATE)
