"""Mutual proof of a shared token, bound to the connection it is given on.

Either end proves that it has the user's token without showing it: an HMAC-SHA256 over its role,
the greeting, both nonces and the hash of the server's certificate. A proof is of no use on another
connection, in the other direction, or behind another certificate. Knows no files and no sockets.
Source: the challenge and response of RFC 2104 (HMAC); TLS 1.3 gives secrecy, this gives names.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from runtime.wire.messages import NONCE_BYTES, PROOF_BYTES, Challenge, Hello
from runtime.wire.states import Role

NO_CERTIFICATE = b""


def new_nonce() -> bytes:
    """32 bytes that nobody can guess."""
    return secrets.token_bytes(NONCE_BYTES)


def certificate_hash(certificate: bytes | None) -> bytes:
    """SHA-256 of a certificate in DER form; empty on a connection without TLS."""
    return hashlib.sha256(certificate).digest() if certificate else NO_CERTIFICATE


def prove(token: bytes, role: Role, hello: Hello, nonce: bytes, certificate: bytes) -> bytes:
    """The proof [32 bytes] that this end, in this role, has the token.

    nonce is the server's, certificate the hash as `certificate_hash` gives it. Every part has a
    fixed length or is preceded by it, so that no two transcripts have the same bytes.
    """
    parts = (b"STF1 proof", role.value.encode(), hello.encode(0), nonce, certificate)
    transcript = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    return hmac.digest(token, transcript, "sha256")


def is_proven(
    proof: bytes, token: bytes, role: Role, hello: Hello, nonce: bytes, certificate: bytes
) -> bool:
    """Whether the peer, in its role, gave the right proof; takes the same time either way."""
    return hmac.compare_digest(proof, prove(token, role, hello, nonce, certificate))


def challenge(token: bytes | None, hello: Hello, certificate: bytes) -> Challenge:
    """The server's challenge; to a user it does not know it looks the same, and proves nothing."""
    nonce = new_nonce()
    if token is None:
        return Challenge(nonce, secrets.token_bytes(PROOF_BYTES))
    return Challenge(nonce, prove(token, Role.SERVER, hello, nonce, certificate))
