"""Who gets in: real server processes with users and TLS, real edges, and thieves."""

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from runtime.config import EdgeConfig, ServerConfig, parse_address
from runtime.edge.client import Edge
from runtime.edge.net.link import Credentials, Link, ServerError
from runtime.model.tokenizer import Tokenizer
from runtime.sampling import Sampling
from runtime.server.users import add_user
from runtime.wire import messages as wire
from runtime.wire.auth import prove
from runtime.wire.connection import Role
from runtime.wire.places import connect, listen
from runtime.wire.tcp import FramedProtocol
from runtime.wire.tls import TLSError, load_certificate, trust
from tests.certificates import self_signed
from tests.processes import running_server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users alice and bob, their token files, and two self-signed certificates."""
    folder = tmp_path_factory.mktemp("door")
    for name in ("alice", "bob"):
        path = folder / f"{name}.token"
        path.write_text(add_user(folder / "users.toml", name) + "\n", encoding="utf-8")
        path.chmod(0o600)
    for name in ("server", "other"):
        self_signed(folder, name)
    return folder


@pytest.fixture(scope="module")
def server(tiny_pair: tuple[Path, Path], folder: Path) -> Iterator[str]:
    with guarded_server(tiny_pair[0], folder) as address:
        yield address


def guarded_server(target: Path, folder: Path) -> AbstractContextManager[str]:
    options = ["--model", str(target), "--port", "0", "--threads", "1"]
    options += ["--users", str(folder / "users.toml"), "--max-user-requests", "2"]
    options += ["--tls-certificate", str(folder / "server.pem")]
    options += ["--tls-key", str(folder / "server.key")]
    return running_server(*options)


@pytest.fixture(scope="module")
def pin(folder: Path) -> str:
    return load_certificate(folder / "server.pem", folder / "server.key").pin


def greeting(tiny_pair: tuple[Path, Path], user: str) -> wire.Hello:
    tokenizer = Tokenizer.load(str(tiny_pair[0]))
    size, digest = tokenizer.vocabulary_size, tokenizer.vocabulary_hash()
    return wire.Hello(1, size, digest, "tiny", user)


def token(folder: Path, user: str) -> bytes:
    return (folder / f"{user}.token").read_text(encoding="utf-8").strip().encode()


def test_an_edge_with_its_token_and_the_pin_talks(
    tiny_pair: tuple[Path, Path], folder: Path, server: str, pin: str
) -> None:
    config = EdgeConfig(
        server=server,
        draft=str(tiny_pair[1]),
        user="alice",
        token_file=str(folder / "alice.token"),
        tls=pin,
        max_tokens=20,
        raw=True,
    )
    with Edge(config) as edge:
        assert edge.generate("who goes there?").text


def test_an_authority_and_the_name_of_the_host_do_as_well(
    tiny_pair: tuple[Path, Path], folder: Path, server: str
) -> None:
    credentials = Credentials(token(folder, "bob"), trust(str(folder / "server.pem")))
    port = parse_address(server)[1]

    async def attempt() -> None:
        link = await Link.open("localhost", port, greeting(tiny_pair, "bob"), credentials)
        await link.close()
        with pytest.raises(ServerError, match=r"certificate is not trusted: .*IP address mismatch"):
            await Link.open("127.0.0.1", port, greeting(tiny_pair, "bob"), credentials)

    asyncio.run(attempt())


@pytest.mark.parametrize(
    ("user", "secret", "sentence"),
    [
        ("alice", "bob", "does not know user 'alice' with this token"),
        ("mallory", "alice", "does not know user 'mallory' with this token"),
        ("", "", "wants to know who you are: give --user and --token-file"),
    ],
)
def test_wrong_credentials(
    tiny_pair: tuple[Path, Path],
    folder: Path,
    server: str,
    pin: str,
    user: str,
    secret: str,
    sentence: str,
) -> None:
    credentials = Credentials(token(folder, secret) if secret else b"", trust(pin))
    with pytest.raises(ServerError, match=sentence):
        asyncio.run(Link.open(*parse_address(server), greeting(tiny_pair, user), credentials))


def test_another_certificate_is_not_spoken_to(
    tiny_pair: tuple[Path, Path], folder: Path, server: str
) -> None:
    other = load_certificate(folder / "other.pem", folder / "other.key").pin
    credentials = Credentials(token(folder, "alice"), trust(other))
    with pytest.raises(ServerError, match="is not the one that --tls names"):
        asyncio.run(Link.open(*parse_address(server), greeting(tiny_pair, "alice"), credentials))


class Raw:
    """An edge that says whatever it is told to, and remembers what it hears."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[wire.Message | None] = asyncio.Queue()

    async def connect(self, address: str, pin: str) -> FramedProtocol:
        return await connect(
            *parse_address(address),
            lambda peer, message: self.heard.put_nowait(message),
            lambda peer, reason: self.heard.put_nowait(None),
            tls=trust(pin).context,
        )


async def answer_to(theft: str, address: str, pin: str, hello: wire.Hello, secret: bytes):
    """What the server says to a proof that is not its own edge's."""
    raw = Raw()
    peer = await raw.connect(address, pin)
    peer.send(hello)
    challenge = await raw.heard.get()
    if isinstance(challenge, wire.Error):
        return challenge
    proof = {
        "a guess": bytes(32),
        "another connection": prove(secret, Role.EDGE, hello, bytes(32), peer.certificate),
        "the server's own": challenge.proof,
        "no TLS": prove(secret, Role.EDGE, hello, challenge.nonce, b""),
        "right": prove(secret, Role.EDGE, hello, challenge.nonce, peer.certificate),
    }[theft]
    peer.send(wire.Proof(proof))
    answer = await raw.heard.get()
    peer.close()
    return answer


def test_stolen_proofs_are_refused_and_then_the_address_has_to_wait(
    tiny_pair: tuple[Path, Path], folder: Path, pin: str
) -> None:
    """Replayed, reflected, relayed without the certificate, or guessed; a right one forgives."""
    hello, secret = greeting(tiny_pair, "bob"), token(folder, "bob")
    thefts = ["a guess", "another connection", "the server's own", "right", "no TLS"]
    with guarded_server(tiny_pair[0], folder) as address:

        def ask(theft: str) -> wire.Message:
            return asyncio.run(answer_to(theft, address, pin, hello, secret))

        answers = [ask(theft) for theft in [*thefts, "a guess", "a guess", "a guess", "right"]]
    refused = wire.ErrorCode.AUTHENTICATION
    assert [getattr(answer, "code", None) for answer in answers] == [
        *(refused,) * 3, None, *(refused,) * 4, wire.ErrorCode.BUSY,
    ]  # fmt: skip
    assert isinstance(answers[3], wire.Welcome)
    assert "try again in 1 s" in answers[-1].sentence


def test_a_stranger_can_do_nothing_but_prove(
    tiny_pair: tuple[Path, Path], server: str, pin: str
) -> None:
    async def attempt() -> list[wire.Message | None]:
        raw = Raw()
        peer = await raw.connect(server, pin)
        peer.send(greeting(tiny_pair, "alice"))
        challenge = await raw.heard.get()
        # our own end would not send it either, so it goes past it
        peer._transport.write(bytes.fromhex("08 00 07 00 01 00 01 00"))
        return [challenge, await raw.heard.get()]

    challenge, answer = asyncio.run(attempt())
    assert isinstance(challenge, wire.Challenge)
    assert isinstance(answer, wire.Error)
    assert "while the edge's Proof is due" in answer.sentence


def test_connections_that_fail_in_tls_do_not_fill_the_door(
    tiny_pair: tuple[Path, Path], folder: Path, server: str, pin: str
) -> None:
    """One more than strangers are let in at a time, none of which speaks TLS."""

    async def attempt() -> None:
        for _ in range(ServerConfig().max_strangers + 1):
            reader, writer = await asyncio.open_connection(*parse_address(server))
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                await reader.read()
            writer.close()
        credentials = Credentials(token(folder, "alice"), trust(pin))
        hello = greeting(tiny_pair, "alice")
        link = await Link.open(*parse_address(server), hello, credentials)
        await link.close()

    asyncio.run(asyncio.wait_for(attempt(), 120))


def test_a_user_has_so_many_requests_at_once(
    tiny_pair: tuple[Path, Path], folder: Path, server: str, pin: str
) -> None:
    """Counted over all connections of the user."""

    async def attempt() -> None:
        credentials = Credentials(token(folder, "bob"), trust(pin))
        where, hello = parse_address(server), greeting(tiny_pair, "bob")
        links = [await Link.open(*where, hello, credentials) for _ in range(3)]
        running = [link.request([1, 2, 3], Sampling(max_tokens=50)) for link in links[:2]]
        for request in running:
            await request.verdict()  # both hold their turn: neither can end meanwhile
        third = links[2].request([1, 2, 3], Sampling(max_tokens=5))
        with pytest.raises(ServerError, match="2 of your requests are running"):
            await third.verdict()
        running[0].close()
        for link in links:
            await link.close()

    asyncio.run(attempt())


def test_an_edge_with_a_token_does_not_trust_a_server_that_proves_nothing(
    tiny_pair: tuple[Path, Path], folder: Path, tiny_server: str
) -> None:
    credentials = Credentials(token(folder, "alice"))
    with pytest.raises(ServerError, match="did not prove that it knows your token"):
        asyncio.run(
            Link.open(*parse_address(tiny_server), greeting(tiny_pair, "alice"), credentials)
        )


def test_a_redirecting_server_needs_no_model_and_sends_edges_on(
    tiny_pair: tuple[Path, Path], tiny_server: str
) -> None:
    async def attempt(address: str) -> list[int]:
        link = await Link.open(*parse_address(address), greeting(tiny_pair, ""))
        request = link.request([1, 2, 3], Sampling(max_tokens=1))
        first = (await request.verdict()).bonus
        await link.close()
        return [first]

    with running_server("--redirect", tiny_server, "--port", "0") as front:
        assert asyncio.run(attempt(front)) == asyncio.run(attempt(tiny_server))


def test_an_edge_is_sent_on_three_times_and_no_more(tiny_pair: tuple[Path, Path]) -> None:
    hellos: list[wire.Message] = []

    async def scenario() -> None:
        def send_on(peer: FramedProtocol, message: wire.Message) -> None:
            hellos.append(message)
            peer.send(wire.Redirect(port, "127.0.0.1"))

        def server() -> FramedProtocol:
            return FramedProtocol(Role.SERVER, send_on, lambda peer, reason: None)

        listener = await listen("127.0.0.1", 0, server)
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(ServerError, match=r"sent on 3 times.*a circle"):
            await Link.open("127.0.0.1", port, greeting(tiny_pair, ""))
        listener.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))
    assert len(hellos) == 1 + 3


def test_a_front_with_no_living_replica_says_so(tiny_pair: tuple[Path, Path]) -> None:
    async def attempt(address: str) -> None:
        await Link.open(*parse_address(address), greeting(tiny_pair, ""))

    with (
        running_server("--redirect", "127.0.0.1:1", "--port", "0") as front,
        pytest.raises(ServerError, match="no replica takes edges now"),
    ):
        asyncio.run(attempt(front))


@pytest.mark.parametrize("option", ["sha256:12", "nowhere.pem", "yes"])
def test_a_wrong_tls_option_says_what_is_expected(option: str) -> None:
    with pytest.raises(TLSError, match="expected system, sha256:"):
        trust(option)


def test_a_certificate_needs_its_own_key(folder: Path) -> None:
    with pytest.raises(TLSError, match="the key is not this certificate's"):
        load_certificate(folder / "server.pem", folder / "other.key")


@pytest.mark.parametrize(
    ("certificate", "key", "sentence"),
    [
        ("nowhere.pem", "server.key", "cannot read .*nowhere.pem: No such file"),
        ("server.pem", "nowhere.key", "cannot read .*nowhere.key: No such file"),
        ("server.key", "server.pem", "the certificate's file has no -----BEGIN CERTIFICATE-----"),
        ("server.pem", "server.pem", "the key's file has no -----BEGIN PRIVATE KEY-----"),
    ],
)
def test_files_that_are_no_pair_are_named(
    folder: Path, certificate: str, key: str, sentence: str
) -> None:
    with pytest.raises(TLSError, match=f"cannot use the certificate .*: {sentence}"):
        load_certificate(folder / certificate, folder / key)


def test_remarks_around_a_certificate_may_be_in_any_encoding(folder: Path, tmp_path: Path) -> None:
    """As openssl x509 -text writes them for names that are not English."""
    plain, remarked = folder / "server.pem", tmp_path / "remarked.pem"
    remarked.write_bytes("Subject: CN = Zürich\n".encode() + plain.read_bytes())
    key = folder / "server.key"
    assert load_certificate(remarked, key).hash == load_certificate(plain, key).hash


def test_plain_and_encrypted_ends_tell_each_other_apart(
    tiny_pair: tuple[Path, Path], server: str, tiny_server: str, pin: str
) -> None:
    hello = greeting(tiny_pair, "")
    with pytest.raises(ServerError, match="hung up without a word; if it has a certificate, give"):
        asyncio.run(Link.open(*parse_address(server), hello))
    with pytest.raises(ServerError, match="the server speaks no TLS: leave --tls out"):
        asyncio.run(Link.open(*parse_address(tiny_server), hello, Credentials(trust=trust(pin))))
