"""What an edge hears before its model is there, while it is loaded, and between two answers."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from safetensors.torch import save_file

from runtime import AsyncEdge, Edge, EdgeConfig, ModelError, Server, ServerConfig, ServerError
from runtime.edge import greeting
from runtime.model.tokenizer import Tokenizer
from runtime.server.users import add_user
from runtime.wire import messages as wire
from runtime.wire.connection import Role
from runtime.wire.places import listen
from runtime.wire.tcp import FramedProtocol
from tests.ports import reserved_port


@pytest.fixture(scope="module")
def unloadable(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A draft whose vocabulary can be read, and whose weights cannot."""
    import torch

    folder = tmp_path_factory.mktemp("unloadable") / "draft"
    shutil.copytree(tiny_pair[1], folder)
    save_file({"model.norm.weight": torch.zeros(3)}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def guarded(
    tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Path]]:
    """A server that knows alice and bob, and the folder of their token files."""
    folder = tmp_path_factory.mktemp("users")
    for name in ("alice", "bob"):
        path = folder / name
        path.write_text(add_user(folder / "users.toml", name), encoding="utf-8")
        path.chmod(0o600)
    users = str(folder / "users.toml")
    config = ServerConfig(model=str(tiny_pair[0]), users=users, port=0, http="", kv_tokens=4096)
    with Server(config) as server:
        yield server, folder


def test_that_nobody_listens_is_told_first(tmp_path: Path) -> None:
    with reserved_port() as port:
        edge = Edge(EdgeConfig(server=f"127.0.0.1:{port}", draft=str(tmp_path / "nowhere")))
        with pytest.raises(ServerError, match=f"127.0.0.1:{port}: nothing listens there"), edge:
            pass


def test_an_address_of_ipv6_is_written_as_it_is_given(tmp_path: Path) -> None:
    try:
        taken = socket.socket(socket.AF_INET6)
        taken.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    with taken:
        where = f"[::1]:{taken.getsockname()[1]}"
        # at once, and not after the time that a lost server is looked for
        edge = Edge(EdgeConfig(server=where, draft=str(tmp_path), reconnect_s=1e6))
        with pytest.raises(ServerError) as told, edge:
            pass
    assert str(told.value) == f"cannot connect to {where}: nothing listens there"


REFUSED = """
import sys, threading
from runtime import Edge, EdgeConfig, ServerError
from runtime.edge.loading import make_drafter

begun = threading.Event()

def make(config):
    begun.set()
    threading.main_thread().join()
    try:
        make_drafter(config)
    except Exception as error:
        print(f"not loaded: {error}", flush=True)
    raise SystemExit

server, draft, token = sys.argv[1:]
config = EdgeConfig(server=server, draft=draft, user="mallory", token_file=token)
try:
    with Edge(config, make_drafter=make):
        pass
except ServerError as error:
    begun.wait()
    print(error, flush=True)
"""


def test_a_program_that_was_refused_ends_when_its_draft_is_no_longer_loaded(
    tiny_pair: tuple[Path, Path], guarded: tuple[Server, Path]
) -> None:
    """Torch would abort it, were it at work while the interpreter is taken down."""
    server, folder = guarded
    command = [sys.executable, "-c", REFUSED, server.address, str(tiny_pair[1])]
    done = subprocess.run(
        [*command, str(folder / "alice")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    told, loaded = done.stdout.splitlines()
    assert told.startswith("this server does not know user 'mallory'")
    assert loaded == "not loaded: the program has ended"


def test_who_one_is_is_told_before_the_weights(
    unloadable: Path, guarded: tuple[Server, Path]
) -> None:
    server, folder = guarded
    for secret, error, sentence in (
        ("bob", ServerError, "does not know user 'alice' with this token"),
        ("alice", ModelError, "tensor"),
    ):
        config = EdgeConfig(
            server=server.address,
            draft=str(unloadable),
            user="alice",
            token_file=str(folder / secret),
        )
        with pytest.raises(error, match=sentence), Edge(config):
            pass


def test_another_vocabulary_is_told_before_the_weights(
    unloadable: Path, tiny_server: str, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(unloadable, other)
    for file in other.glob("*.json"):
        file.write_text(file.read_text().replace("<|start|>", "<|begin|>"))
    with (
        pytest.raises(ServerError, match="different vocabularies"),
        Edge(EdgeConfig(server=tiny_server, draft=str(other))),
    ):
        pass


def test_what_was_loaded_is_kept_for_the_next_try(
    tiny_pair: tuple[Path, Path], tiny_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[object] = []
    load = Tokenizer.load
    monkeypatch.setattr(Tokenizer, "load", lambda name: loads.append(name) or load(name))
    edge = Edge(EdgeConfig(server=tiny_server, draft=str(tiny_pair[1]), max_tokens=5))
    real = greeting.hello
    hellos = iter([wire.Hello(99, 260, bytes(16), "from another time")])
    monkeypatch.setattr(greeting, "hello", lambda *known: next(hellos, None) or real(*known))
    with pytest.raises(ServerError, match="version"):
        edge.connect()
    edge._worker.uplink = None  # it goes on greeting with the words that it was made with
    edge.connect()
    assert edge.generate("x").text
    assert len(loads) == 1
    edge.close()


def test_who_gives_up_connecting_may_try_again(
    tiny_pair: tuple[Path, Path], tiny_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was cancelled while the vocabulary was being read."""
    reading, go_on = threading.Event(), threading.Event()
    load = Tokenizer.load

    def slowly(name: str) -> Tokenizer:
        reading.set()
        assert go_on.wait(60)
        return load(name)

    monkeypatch.setattr(Tokenizer, "load", slowly)

    async def scenario() -> None:
        edge = AsyncEdge(EdgeConfig(server=tiny_server, draft=str(tiny_pair[1]), max_tokens=5))
        connecting = asyncio.ensure_future(edge.connect())
        await asyncio.to_thread(reading.wait, 60)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        go_on.set()
        await edge.connect()
        assert await edge.generate("x").text
        await edge.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.long)],
)
def test_a_signal_ends_an_edge_that_is_loading(
    tiny_pair: tuple[Path, Path],
    tiny_server: str,
    tmp_path: Path,
    number: signal.Signals,
    status: int,
) -> None:
    """Its draft is a file that has a beginning and no end."""
    endless = tmp_path / "draft"
    shutil.copytree(tiny_pair[1], endless)
    (endless / "config.json").unlink()
    os.mkfifo(endless / "config.json")
    options = ["--server", tiny_server, "--draft", str(endless), "--prompt", "x"]
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime.edge", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with open(endless / "config.json", "wb"):  # as soon as it reads
        process.send_signal(number)
        assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == status


def test_an_edge_answers_pings_between_two_answers(tiny_pair: tuple[Path, Path]) -> None:
    """The server asks when nothing is going on, and the program is in a call of its own."""
    tokenizer = Tokenizer.load(tiny_pair[1])

    async def scenario() -> None:
        answered: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def on_message(peer: FramedProtocol, message: wire.Message) -> None:
            match message:
                case wire.Hello():
                    digest = tokenizer.vocabulary_hash(message.vocabulary_size)
                    peer.send(wire.Welcome(1, 260, digest, 8, 1000, 30, "idle"))
                case wire.Pong():
                    answered.set_result(message.nonce)

        async with listening(on_message) as (address, peers):
            edge = AsyncEdge(EdgeConfig(server=address, draft=str(tiny_pair[1])))
            await edge.connect()
            peers[-1].send(wire.Ping(7))
            assert await asyncio.wait_for(answered, 60) == 7
            await edge.close()

    asyncio.run(scenario())


@asynccontextmanager
async def listening(on_message):
    """host:port, and the protocols of those who have come there."""
    peers: list[FramedProtocol] = []

    def new_peer() -> FramedProtocol:
        peers.append(FramedProtocol(Role.SERVER, on_message, lambda peer, reason: None))
        return peers[-1]

    listener = await listen("127.0.0.1", 0, new_peer)
    try:
        yield "{}:{}".format(*listener.sockets[0].getsockname()[:2]), peers
    finally:
        listener.close()
        for peer in peers:
            peer.close()
