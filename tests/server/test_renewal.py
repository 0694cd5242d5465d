"""Users and certificates are read again while the server runs, and no answer is dropped."""

import asyncio
import contextlib
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.api.backend import UnknownKey
from runtime.api.of_server import LocalEdges
from runtime.config import ConfigError, ServerConfig, parse_address
from runtime.demo import server_process
from runtime.edge.net.link import Credentials, Link, Request, ServerError
from runtime.model.tokenizer import Tokenizer
from runtime.sampling import Sampling
from runtime.server.renewal import Renewal, renewing
from runtime.server.users import add_user, load_users
from runtime.wire import messages as wire
from runtime.wire.auth import certificate_hash
from runtime.wire.tls import Certificate, TLSError, load_certificate, trust
from tests.certificates import self_signed
from tests.server.in_loop import USERS, Serving, run, serving

NAMES = ("server", "other")


def users_file(folder: Path, *names: str) -> tuple[Path, dict[str, bytes]]:
    path = folder / "users.toml"
    path.unlink(missing_ok=True)
    return path, {name: add_user(path, name).encode() for name in names}


class Looking:
    """A renewal of a file of users and of certificates, and what it has told."""

    def __init__(self, users: Path | None, *certificates: Certificate):
        self.told: list[object] = []
        self._certificates = certificates
        files = {"tls_certificate": "", "tls_key": ""}
        for one in certificates:
            files = {"tls_certificate": str(one.file), "tls_key": str(one.key)}
        self._config = ServerConfig(users=str(users or ""), **files)
        self.renewal = asyncio.run(self._made())

    async def _made(self) -> Renewal:
        return Renewal(self._config)

    def look(self) -> None:
        self.renewal.look(self._certificates, self._renewed)

    def _renewed(self, users: Mapping[str, bytes] | None, certificate: Certificate | None) -> None:
        self.told.append((users, certificate.hash if certificate else b""))


def test_only_what_has_changed_is_read(tmp_path: Path) -> None:
    path, tokens = users_file(tmp_path, "alice")
    renewal = Looking(path)
    renewal.look()
    assert renewal.told == []
    tokens["bob"] = add_user(path, "bob").encode()
    renewal.look()
    renewal.look()
    assert renewal.told == [(tokens, b"")]


def test_a_file_that_is_put_in_the_place_of_another_is_new(tmp_path: Path) -> None:
    """As Kubernetes hands out a secret: a link that points elsewhere, with times of its own."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first, _ = users_file(tmp_path / "one", "alice")
    second, tokens = users_file(tmp_path / "two", "carol")
    at = first.stat().st_mtime_ns
    os.utime(second, ns=(at, at))
    link = tmp_path / "users.toml"
    link.symlink_to(first)
    renewal = Looking(link)
    link.unlink()
    link.symlink_to(second)
    renewal.look()
    assert renewal.told == [(tokens, b"")]


@pytest.mark.parametrize("text", ["", 'alice = "short"\n', "alice = \n", None])
def test_what_cannot_be_used_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str | None
) -> None:
    path, _ = users_file(tmp_path, "alice")
    renewal = Looking(path)
    path.unlink()
    if text is not None:
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
    renewal.look()
    assert renewal.told == []
    assert "stay as they were" in caplog.text
    _, tokens = users_file(tmp_path, "alice")
    renewal.look()
    assert renewal.told == [(tokens, b"")]


def test_rights_that_are_mended_are_new(tmp_path: Path) -> None:
    path, tokens = users_file(tmp_path, "alice")
    renewal = Looking(path)
    path.chmod(0o644)
    renewal.look()
    assert renewal.told == []
    path.chmod(0o600)
    renewal.look()
    assert renewal.told == [(tokens, b"")]


def test_what_is_no_file_is_not_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, _ = users_file(tmp_path, "alice")
    renewal = Looking(path)
    path.unlink()
    os.mkfifo(path)
    renewal.look()
    assert renewal.told == []
    assert "stay as they were" in caplog.text


def test_tables_without_end_are_no_table(tmp_path: Path) -> None:
    path = tmp_path / "users.toml"
    path.write_text(f"a = {'[' * 5000}", encoding="utf-8")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load_users(path)


def test_users_whom_the_server_refuses_leave_the_certificate_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, _ = users_file(tmp_path, "alice")

    def refuse(users: object, known: bytes) -> None:
        raise ConfigError("two users have the same token")

    renewal = Looking(path).renewal
    renewal.ask()
    renewal.look((), refuse)
    (record,) = caplog.records
    assert record.fields == {"reason": "two users have the same token"}


def test_half_of_a_pair_leaves_the_certificate_as_it_was(tmp_path: Path) -> None:
    """The new certificate is there, and its key not yet."""
    for name in NAMES:
        self_signed(tmp_path, name)
    served = load_certificate(tmp_path / "server.pem", tmp_path / "server.key")
    renewal = Looking(None, served)
    (tmp_path / "other.pem").replace(tmp_path / "server.pem")
    renewal.look()
    assert renewal.told == []
    assert shown_by(served.context) == served.hash
    (tmp_path / "other.key").replace(tmp_path / "server.key")
    renewal.look()
    (known,) = renewal.told
    assert known == (None, served.on_file().hash)
    assert shown_by(served.context) == served.on_file().hash != served.hash


def test_a_renewed_certificate_that_has_expired_is_served_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Edges that pin it do not mind."""
    self_signed(tmp_path, "server")
    served = load_certificate(tmp_path / "server.pem", tmp_path / "server.key")
    renewal = Looking(None, served)
    self_signed(tmp_path, "server", days=-1)
    renewal.look()
    assert shown_by(served.context) == served.on_file().hash != served.hash
    (told,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert told.fields == {"file": served.file, "reason": "certificate has expired"}
    self_signed(tmp_path, "server")
    caplog.clear()
    renewal.look()
    assert "refuses it" not in caplog.text


def test_a_key_with_a_passphrase_asks_nobody(tmp_path: Path) -> None:
    """On the terminal, say, while all answers wait."""
    self_signed(tmp_path, "server")
    key = str(tmp_path / "server.key")
    command = ["openssl", "pkcs8", "-topk8", "-passout", "pass:a passphrase", "-in", key]
    subprocess.run([*command, "-out", key + ".hidden"], check=True, capture_output=True)
    os.replace(key + ".hidden", key)
    with pytest.raises(TLSError, match="the key has a passphrase"):
        load_certificate(tmp_path / "server.pem", tmp_path / "server.key")


def test_a_certificate_under_another_heading_is_a_sentence(tmp_path: Path) -> None:
    self_signed(tmp_path, "server")
    path = tmp_path / "server.pem"
    path.write_text(path.read_text().replace("CERTIFICATE", "X509 CERTIFICATE"))
    with pytest.raises(TLSError, match="the certificate's file has no -----BEGIN CERTIFICATE-----"):
        load_certificate(path, tmp_path / "server.key")


def shown_by(context: ssl.SSLContext) -> bytes:
    """The hash of the certificate that a server with this context shows."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server)
    far = context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for end in (near, far):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    shown = near.getpeercert(binary_form=True)
    assert shown is not None, "no handshake"
    return certificate_hash(shown)


SAMPLING = Sampling(max_tokens=40, temperature=0.0, seed=1, stop_ids=())
PROMPT = [5, 6, 7, 8]
HOLDS_NO_MORE = "holds no more"


@asynccontextmanager
async def edge_of(it: Serving, user: str, token: bytes) -> AsyncIterator[Link]:
    link = await Link.open(*it.address, replace(it.hello, user=user), Credentials(token))
    try:
        yield link
    finally:
        await link.close()


async def rest(request: Request) -> list[int]:
    """An answer to its end, drafting nothing."""
    ids: list[int] = []
    while not request.finished:
        ids.append((await request.verdict()).bonus)
    return ids


async def answered(link: Link) -> list[int]:
    return await rest(link.request(PROMPT, SAMPLING, 0))


def test_an_answer_goes_on_when_its_user_goes_and_then_the_edge_is_sent_off(
    tiny_pair: tuple[Path, Path],
) -> None:
    async def scenario() -> None:
        async with (
            serving(tiny_pair[0], dict(USERS)) as it,
            edge_of(it, "alice", USERS["alice"]) as alice,
            edge_of(it, "bob", USERS["bob"]) as bob,
        ):
            expected = await answered(bob)
            request = alice.request(PROMPT, SAMPLING, 0)
            first = (await request.verdict()).bonus
            it.server.renew({"bob": USERS["bob"]}, b"")
            with pytest.raises(ServerError, match=HOLDS_NO_MORE):
                await answered(alice)
            assert [first, *await rest(request)] == expected
            await it.until(lambda: alice not in it.door.peers() and len(it.door.admitted) == 1)
            assert await answered(bob) == expected, "whose token is as it was"
            assert not it.door.revoked
            with pytest.raises(ServerError, match=r"does not know user .alice."):
                async with edge_of(it, "alice", USERS["alice"]):
                    pass

    run(scenario)


def test_an_idle_edge_with_an_old_token_is_sent_off_and_the_new_token_is_let_in(
    tiny_pair: tuple[Path, Path],
) -> None:
    async def scenario() -> None:
        async with (
            serving(tiny_pair[0], dict(USERS)) as it,
            edge_of(it, "alice", USERS["alice"]) as old,
        ):
            new = b"c" * 40
            it.server.renew({**USERS, "alice": new}, b"")
            with pytest.raises(ServerError, match=HOLDS_NO_MORE):
                await answered(old)
            async with edge_of(it, "alice", new) as edge:
                assert len(await answered(edge)) == SAMPLING.max_tokens

    run(scenario)


def test_keys_of_the_api_are_those_of_now(tiny_pair: tuple[Path, Path]) -> None:
    """A local edge is of one token, and one that writes goes on."""

    async def scenario() -> None:
        async with serving(tiny_pair[0], dict(USERS)) as it:
            edges = LocalEdges(lambda: "", dict(USERS))
            edges.join(it.local)
            options = {"raw": True, "max_tokens": 40, "temperature": 0.0}
            alice = await edges.backend_of("a" * 32)
            answer = alice.generate(PROMPT, **options)
            await it.until(lambda: len(it.server.requests) == 1)
            now = {"alice": b"c" * 40, "bob": USERS["bob"]}
            edges.renew(now)
            it.server.renew(now, b"another certificate's hash")
            with pytest.raises(UnknownKey):
                await edges.backend_of("a" * 32)
            async for _ in answer:
                pass
            again = (await edges.backend_of("c" * 40)).generate(PROMPT, **options)
            async for _ in again:
                pass
            assert again.tokens == answer.tokens
            with pytest.raises(ConfigError, match="same token"):
                edges.renew({"alice": b"d" * 32, "bob": b"d" * 32})
            assert await edges.backend_of("c" * 40)

    run(scenario)


def test_what_changes_while_a_model_loads_is_read_when_it_has(tmp_path: Path) -> None:
    """The files were read before, and a signal that comes meanwhile ends nothing."""
    path, tokens = users_file(tmp_path, "alice")
    told: list[object] = []

    async def scenario() -> None:
        renewal = Renewal(ServerConfig(users=str(path)))
        load_users(path)
        tokens["bob"] = add_user(path, "bob").encode()
        if hasattr(signal, "SIGHUP"):
            for _ in range(20):
                os.kill(os.getpid(), signal.SIGHUP)
        async with renewing(renewal, (), lambda *what: told.append(what)):
            while not told:
                await asyncio.sleep(0)

    run(scenario)
    assert told[0] == (tokens, None)
    assert len(told) <= 2, "once for the change, once for all the signals"


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no such signal here")
def test_a_signal_while_a_server_is_imported_ends_nothing() -> None:
    """A reload right after the start, as by a program that has just renewed a certificate."""
    body = (
        "import os, signal, sys\n"
        "class Signalled:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'torch':\n"
        "            os.kill(os.getpid(), signal.SIGHUP)\n"
        "sys.meta_path.insert(0, Signalled())\n"
        "sys.argv[1:] = ['--model', '/no/such/model', '--port', '0', '--http', '']\n"
        "from runtime.server.__main__ import main\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True)
    assert (done.returncode, "/no/such/model" in done.stderr) == (2, True), done


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no such signal here")
def test_a_server_reads_them_again_at_sighup_and_answers_all_the_while(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    read_again_at_sighup(tiny_pair, tmp_path)


def read_again_at_sighup(tiny_pair: tuple[Path, Path], tmp_path: Path, *more: str) -> None:
    """Users, and a certificate that edges then see, while an answer goes on over the old one."""
    path, tokens = users_file(tmp_path, "alice")
    for name in NAMES:
        self_signed(tmp_path, name)
    pins = [load_certificate(tmp_path / f"{n}.pem", tmp_path / f"{n}.key").pin for n in NAMES]
    options = ["--model", str(tiny_pair[0]), "--port", "0", "--threads", "1"]
    options += ["--users", str(path), "--tls-certificate", str(tmp_path / "server.pem")]
    options += ["--tls-key", str(tmp_path / "server.key"), "--log-level", "info", *more]

    async def scenario(address: str, process: subprocess.Popen[str]) -> None:
        host, port = parse_address(address)
        hello = replace(greeting(tiny_pair[0]), user="alice")
        old = await Link.open(host, port, hello, Credentials(tokens["alice"], trust(pins[0])))
        request = old.request(PROMPT, SAMPLING, 0)
        ids = [(await request.verdict()).bonus]
        tokens["bob"] = add_user(path, "bob").encode()
        for suffix in ("pem", "key"):
            (tmp_path / f"other.{suffix}").replace(tmp_path / f"server.{suffix}")
        process.send_signal(signal.SIGHUP)
        ids += await rest(request)
        while True:  # until the server has come to the signal
            try:
                bob = replace(hello, user="bob")
                new = await Link.open(host, port, bob, Credentials(tokens["bob"], trust(pins[1])))
                break
            except ServerError:
                await answered(old)
        assert await answered(new) == await answered(old) == ids
        await new.close()
        await old.close()

    with server_process(*options) as (address, process):
        run(lambda: scenario(address, process))


def greeting(target: Path) -> wire.Hello:
    tokenizer = Tokenizer.load(str(target))
    size, digest = tokenizer.vocabulary_size, tokenizer.vocabulary_hash()
    return wire.Hello(wire.VERSION, size, digest, "tiny")
