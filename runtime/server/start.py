"""Starting a server: model, KV pool, identity, port, and the lines a person sees meanwhile."""

import asyncio
import logging
import platform
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from ipaddress import ip_address
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from runtime.config import ConfigError, ServerConfig, is_loopback
from runtime.console import Terminal
from runtime.logs import Seldom, fields
from runtime.model import open as models
from runtime.model.engine import Engine
from runtime.model.locate import HubAway
from runtime.model.tokenizer import Tokenizer
from runtime.model.weights import ModelError
from runtime.server.descriptors import check_descriptors, edges_that_fit, tell_accept_failures
from runtime.server.door import Door, Identity
from runtime.server.loop import DeviceError, Server
from runtime.server.metrics import Metrics
from runtime.server.request import Request
from runtime.server.schedule.step import Step
from runtime.server.trace_file import tracing
from runtime.server.users import add_user, load_users
from runtime.server.verify.warm_up import warm_up
from runtime.system import on_stop
from runtime.terminal import called, inert
from runtime.wire import messages as wire
from runtime.wire.auth import NO_CERTIFICATE
from runtime.wire.places import AddressAway, listen
from runtime.wire.tcp import FramedProtocol
from runtime.wire.tls import Certificate, TLSError, load_certificate

log = logging.getLogger(__name__)


class StartError(Exception):
    """The server cannot start; the message says what to mend.

    `passes` says that it may start in a while with nothing mended.
    """

    def __init__(self, sentence: str, passes: bool = False) -> None:
        super().__init__(sentence)
        self.passes = passes


def open_target(config: ServerConfig, console: Terminal) -> Engine:
    """The target with its KV pool; the console has a bar meanwhile. Raises ModelError."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(inert(f"loading {config.model}"), total=None)
        return models.open_engine(
            config.model,
            config.weights,
            config.device,
            lambda model: config.kv_tokens,
            config.page_size,
            lambda done, total: bar.update(task, completed=done, total=total),
            kv_dtype=config.kv_dtype,
            activations=config.activations,
        )


OpenTarget = Callable[[ServerConfig, Terminal], Engine]


def start(config: ServerConfig, open_engine: OpenTarget = open_target) -> None:
    """Load, listen and serve until a signal. Raises StartError."""
    console = Terminal()
    try:
        if config.add_user:
            token = add_user(Path(config.users), config.add_user)
            # not to standard output, which has the token and nothing else
            heading = f"added {config.add_user} to {config.users}; the token, shown only now:"
            Terminal(stderr=True).print(heading, soft_wrap=True)
            console.print(token, soft_wrap=True)
            return
        check_descriptors(config)
        if config.replicas:
            asyncio.run(_redirect(config, console))
        else:
            with _trace(config) as on_step:
                asyncio.run(serve(config, console, on_step, open_engine=open_engine))
    except BrokenPipeError:
        raise  # of standard output, where nobody reads on
    except (ConfigError, ModelError, ConnectionError, TLSError, DeviceError) as error:
        passes = isinstance(error, AddressAway | HubAway | DeviceError)
        raise StartError(str(error), passes) from error


async def _redirect(config: ServerConfig, console: Terminal) -> None:
    """Send everyone on to the replicas until a signal."""
    tell_accept_failures(asyncio.get_running_loop())
    certificate = _certificate(config)
    users = load_users(Path(config.users)) if config.users else None
    door = _door(config, users, certificate, identity=None)
    metrics = Metrics()
    metrics.watch(door)

    def on_message(peer: FramedProtocol, message: wire.Message) -> None:
        if isinstance(message, wire.Hello | wire.Proof):
            door.answer(peer, message, time.monotonic())

    def on_closed(peer: FramedProtocol, reason: str | None) -> None:
        log.info("edge left", extra=fields(peer=peer.peer_name, reason=reason))
        metrics.edge_left(peer)
        door.left(peer)

    listener = await listen(
        config.host,
        config.port,
        lambda: door.new_peer(on_message, on_closed),
        tls=certificate.context if certificate else None,
    )
    stop = asyncio.Event()
    on_stop(asyncio.get_running_loop(), stop.set)
    async with _pages(config, console, lambda: "", metrics):
        _announce(config, console, certificate, *listener.sockets[0].getsockname()[:2])
        await stop.wait()
    listener.close()


async def serve(
    config: ServerConfig,
    console: Terminal,
    on_step: Callable[[Step], None] = lambda step: None,
    opened: Callable[[str, int], None] = lambda host, port: None,
    open_engine: OpenTarget = open_target,
) -> None:
    """Load, listen and serve until a signal, or until it is cancelled.

    `opened` is told the address. Raises ConfigError, ModelError, TLSError or ConnectionError.
    """
    # The port is reserved at once, so that a busy one is reported before the model is loaded, and
    # opened last, so that nobody reaches a server that cannot answer.
    tell_accept_failures(asyncio.get_running_loop())
    certificate = _certificate(config)
    server: Server | None = None

    def new_peer() -> FramedProtocol:
        assert server is not None, "the port is not open yet"
        return server.new_peer()

    def unready() -> str:
        return server.unready if server else f"{Path(config.model).name} is being loaded"

    def requests() -> Collection[Request]:
        return server.requests.values() if server else ()

    def announce(host: str, port: int) -> None:
        _announce(config, console, certificate, host, port)
        opened(host, port)

    tls = certificate.context if certificate else None
    listener = await listen(config.host, config.port, new_peer, start=False, tls=tls)
    users = load_users(Path(config.users)) if config.users else None
    metrics = Metrics()
    async with _pages(config, console, unready, metrics, requests, on_step) as step_ended:
        # in a thread, so that the pages answer meanwhile
        engine, identity, costs = await asyncio.to_thread(_load, config, console, open_engine)
        door = _door(config, users, certificate, identity)
        server = Server(config, engine, door, step_ended, metrics)
        server.pipeline.load.cost.learn(costs)
        _tell_ready(config, console, engine)
        await server.run(listener, announce)
    _tell_totals(console, server)


def _load(
    config: ServerConfig, console: Terminal, open_engine: OpenTarget
) -> tuple[Engine, Identity, list[tuple[int, float]]]:
    """The model, ready to run, what it is, and what its steps cost: (rows, seconds)."""
    engine = open_engine(config, console)
    identity = _identity(config, engine)
    return engine, identity, [*warm_up(engine, config.max_step_nodes, config.max_batch)]


def _tell_ready(config: ServerConfig, console: Terminal, engine: Engine) -> None:
    kv = engine.kv
    console.print(
        f"{config.model} ready on {engine.model.device}: {engine.model.config.n_layers} "
        f"layers, {config.weights} weights, KV for {kv.n_pages * kv.page_size} tokens "
        f"({kv.n_pages * kv.bytes_per_page / 2**20:.0f} MiB)"
    )


def _tell_totals(console: Terminal, server: Server) -> None:
    totals = server.totals
    console.print(
        f"stopped after {totals.steps} steps: {totals.tokens} tokens in {totals.verdicts} "
        f"verdicts, {totals.busy_s:.1f} s of verification"
    )


@asynccontextmanager
async def _pages(
    config: ServerConfig,
    console: Terminal,
    unready: Callable[[], str],
    metrics: Metrics,
    requests: Callable[[], Collection[Request]] | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
) -> AsyncIterator[Callable[[Step], None]]:
    """Serve the pages while the context lasts, if they are wanted.

    Gives what is to be told of steps, and tells `on_step` itself. Where `requests` can be looked
    at, /health, /ready and /metrics are joined by the page at "/".
    """
    if not config.http:
        yield on_step
        return
    # Without the pages, neither starlette nor uvicorn is needed.
    from runtime.pages.server import ServerPage
    from runtime.server.http import application, serving

    page = ServerPage(requests, on_step) if requests else None
    app = application(unready, metrics.registry, page.routes() if page else ())
    async with serving(config.http, app) as url:
        watch = f"; {url} to watch it" if page else ""
        console.print(f"{url}/health, /ready and /metrics{watch}", soft_wrap=True)
        yield page.step if page else on_step


def _announce(
    config: ServerConfig, console: Terminal, certificate: Certificate | None, host: str, port: int
) -> None:
    """The last line of the start: the command that an edge needs."""
    if certificate is None and not is_loopback(host):
        console.print(
            f"WARNING: {host} is not this machine alone, and without --tls-certificate others on "
            "the way can read prompts and answers",
            style="bold yellow",
            soft_wrap=True,
        )
    if ip_address(host).is_unspecified:
        host = platform.node()
    if not config.replicas and config.model != ServerConfig.model:
        sentence = f"DRAFT below: a small model with the vocabulary of {config.model}"
        console.print(sentence, soft_wrap=True)
    command = [called("runtime.edge"), "--server"]
    command += [f"[{host}]:{port}" if ":" in host else f"{host}:{port}"]
    command += [f"--tls {certificate.pin}"] if certificate else []
    command += ["--user NAME --token-file FILE"] if config.users else []
    if not config.replicas and config.model != ServerConfig.model:
        command.append("--draft DRAFT")
    console.print(" ".join([*command, "--chat"]), soft_wrap=True)


@contextmanager
def _trace(config: ServerConfig) -> Iterator[Callable[[Step], None]]:
    with ExitStack() as stack:
        try:
            on_step = stack.enter_context(tracing(config.trace))
        except OSError as error:
            raise StartError(f"cannot write --trace {config.trace}: {error.strerror}") from error
        yield on_step


def _certificate(config: ServerConfig) -> Certificate | None:
    if not config.tls_certificate:
        return None
    return load_certificate(
        Path(config.tls_certificate),
        Path(config.tls_key),
        Seldom(log, "no TLS with an edge"),
    )


def _door(
    config: ServerConfig,
    users: Mapping[str, bytes] | None,
    certificate: Certificate | None,
    identity: Identity | None,
) -> Door:
    known = certificate.hash if certificate else NO_CERTIFICATE
    return Door(config, identity, users, known, edges_that_fit(config))


def _identity(config: ServerConfig, engine: Engine) -> Identity:
    tokenizer = Tokenizer.load(config.model)
    pool_tokens = engine.kv.n_pages * engine.kv.page_size
    longest, rows = engine.model.config.max_context, engine.model.config.vocab_size
    return Identity(
        model=inert(Path(config.model).name),
        vocabulary_size=rows,
        # all that a server needs of a vocabulary, which takes more memory than its hashes
        vocabulary_hash=tokenizer.hashes.below,
        max_context=min(config.max_context or longest, longest, pool_tokens),
        stop_ids=frozenset(index for index in tokenizer.stop_ids if 0 <= index < rows),
        template=tokenizer.portable_template,
    )
