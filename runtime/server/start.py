"""Starting a server: model, KV pool, identity, port, and the lines a person sees meanwhile."""

import asyncio
import logging
import os
import platform
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from runtime.config import ConfigError, ServerConfig, is_loopback, parse_address
from runtime.console import Terminal, loading_bar, waiting
from runtime.logs import Seldom, fields
from runtime.model import open as models
from runtime.model.engine import Engine
from runtime.model.locate import HubAway
from runtime.model.parallel import LeaderTells, RankLost, Ranks
from runtime.model.tokenizer import Tokenizer
from runtime.model.weights import ModelError
from runtime.server import together
from runtime.server.descriptors import check_descriptors, edges_that_fit, tell_accept_failures
from runtime.server.door import Door, Identity
from runtime.server.guide import Guides
from runtime.server.looks import watching
from runtime.server.loop import Server, credits_of
from runtime.server.metrics import Metrics
from runtime.server.policy.credits import Credits
from runtime.server.renewal import Renewal, Renewed, RenewKeys, renewing
from runtime.server.request import Request
from runtime.server.router import Router
from runtime.server.schedule.step import Step
from runtime.server.spilling import PageFolder, folder_of, spilling_of
from runtime.server.trace_file import tracing
from runtime.server.users import add_user, users_of
from runtime.server.verdicts import DeviceError
from runtime.server.verify.warm_up import warm_up
from runtime.system import on_stop
from runtime.terminal import called, inert
from runtime.wire import messages as wire
from runtime.wire import stacks
from runtime.wire.auth import NO_CERTIFICATE
from runtime.wire.places import AddressAway, Listener, listen, open_port
from runtime.wire.tcp import FramedProtocol
from runtime.wire.tls import Certificate, TLSError, load_certificate

log = logging.getLogger(__name__)

SHORTEST = 2  # tokens of a context: one of a prompt, one of an answer


class StartError(Exception):
    """The server cannot start; the message says what to mend, or nothing where another rank does.

    `passes` says that it may start in a while with nothing mended.
    """

    def __init__(self, sentence: str, passes: bool = False) -> None:
        super().__init__(sentence)
        self.passes = passes


def open_target(config: ServerConfig, console: Terminal, ranks: Ranks | None = None) -> Engine:
    """The target with its KV pool; the console has a bar meanwhile. Raises ModelError.

    ranks: those that share it.
    """
    with loading_bar(console, config.model) as progress:
        return models.open_engine(
            config.model,
            config.weights,
            config.device,
            lambda model: config.kv_tokens,
            config.page_size,
            progress,
            kv_dtype=config.kv_dtype,
            activations=config.activations,
            backend=config.backend,
            max_context=config.max_context,
            batch_invariant=config.batch_invariant,
            adapters=config.adapters,
            ranks=ranks,
        )


OpenTarget = Callable[[ServerConfig, Terminal], Engine]


def start(config: ServerConfig, open_engine: OpenTarget = open_target) -> None:
    """Load, listen and serve until a signal. Raises StartError."""
    console = Terminal()
    try:
        if (ranks := together.join(config, os.environ)) is not None:
            open_engine = partial(open_target, ranks=ranks)
            if ranks.rank:
                together.follow(config, ranks, open_engine)
                return
        if config.add_user:
            token = add_user(Path(config.users), config.add_user)
            # not to standard output, which has the token and nothing else
            heading = f"added {config.add_user} to {config.users}; the token, shown only now:"
            Terminal(stderr=True).print(heading, soft_wrap=True)
            console.print(token, soft_wrap=True)
            return
        check_descriptors(config)
        if config.replicas:
            asyncio.run(redirect(config, console, Router(config.replicas)))
        else:
            with _trace(config) as on_step:
                asyncio.run(serve(config, console, on_step, open_engine=open_engine))
    except BrokenPipeError:
        raise  # of standard output, where nobody reads on
    except (
        *(ConfigError, ModelError, ConnectionError, TLSError, DeviceError),
        *(RankLost, LeaderTells),
    ) as error:
        passes = isinstance(error, AddressAway | HubAway | DeviceError | RankLost)
        raise StartError(
            str(error) if together.speaks(error, os.environ) else "", passes
        ) from error


async def redirect(
    config: ServerConfig,
    console: Terminal,
    router: Router,
    opened: Callable[[str, int], None] = lambda host, port: None,
) -> None:
    """Send everyone on to the router's replicas until a signal, or until it is cancelled.

    Those that it has now are looked at meanwhile; `opened` is told the address. Raises ConfigError,
    TLSError or ConnectionError.
    """
    renewal, certificate = Renewal(config), _certificate(config)
    door = _door(config, users_of(config), certificate, identity=None, router=router)
    front = _Front(door, Metrics())
    front.metrics.watch(door)
    front.metrics.certified(certificate)
    listener = await _listen(config, front.new_peer, certificate)
    stop = asyncio.Event()
    on_stop(asyncio.get_running_loop(), stop.set)
    with closing(listener):
        async with (
            _pages(config, console, lambda: router.unready, front.metrics),
            watching(router),
            renewing(renewal, (stacks.as_served(listener, certificate),), front.renewed),
        ):
            await open_port(listener)
            host, port = listener.sockets[0].getsockname()[:2]
            _announce(config, console, certificate, host, port, opened)
            await stop.wait()


@dataclass
class _Front:
    """A door that all are sent on from."""

    door: Door
    metrics: Metrics

    def new_peer(self) -> FramedProtocol:
        return self.door.new_peer(self._on_message, self._on_closed)

    def renewed(self, users: Mapping[str, bytes] | None, certificate: Certificate | None) -> None:
        """Users and the certificate are new."""
        self.door.renew(users, _hash(certificate))
        self.metrics.certified(certificate)

    def _on_message(self, peer: FramedProtocol, message: wire.Message) -> None:
        if isinstance(message, wire.Hello | wire.Proof):
            self.door.answer(peer, message, time.monotonic())

    def _on_closed(self, peer: FramedProtocol, reason: str | None) -> None:
        log.info("edge left", extra=fields(peer=peer.peer_name, reason=reason))
        self.metrics.edge_left(peer)
        self.door.left(peer)


async def serve(
    config: ServerConfig,
    console: Terminal,
    on_step: Callable[[Step], None] = lambda step: None,
    opened: Callable[[str, int], None] = lambda host, port: None,
    api_opened: Callable[[str], None] = lambda url: None,
    made: Callable[[Server], None] = lambda server: None,
    open_engine: OpenTarget = open_target,
) -> None:
    """Load, listen and serve until a signal, or until it is cancelled.

    `opened` is told the address, and before that `api_opened` the API's URL if there is one, and
    `made` the server, which may be told to stop.
    Raises ConfigError, ModelError, TLSError or ConnectionError.
    """
    credits = credits_of(config)  # first: it needs nothing else
    renewal, there = Renewal(config), _There(config)
    async with AsyncExitStack() as held:
        folder = held.enter_context(folder_of(config))
        certificate, api_certificate = _certificate(config), _api_certificate(config)
        # The port is reserved at once, so that a busy one is reported before the model is loaded,
        # and opened last, so that nobody reaches a server that cannot answer.
        listener = await _listen(config, there.new_peer, certificate)
        held.enter_context(closing(listener))
        users, metrics = users_of(config), Metrics()
        metrics.certified(certificate)
        step_ended = await held.enter_async_context(
            _pages(config, console, there.unready, metrics, there.requests, on_step)
        )
        join = await held.enter_async_context(
            _clients(config, console, there.unready, users, api_certificate, metrics, api_opened)
        )
        # in a thread, so that the pages answer meanwhile
        loaded = await asyncio.to_thread(_load, config, console, open_engine)
        await held.enter_async_context(together.watching(loaded.engine.ranks))
        door = _door(config, users, certificate, loaded.identity)
        server = there.server = _server(config, loaded, door, step_ended, metrics, folder, credits)
        made(server)
        renewed = _renewed(server, join(server, loaded.tokenizer))
        _tell_ready(config, console, loaded.engine)
        del loaded
        announce = partial(_announce, config, console, certificate, opened=opened)
        certificates = stacks.as_served(listener, certificate), api_certificate
        async with renewing(renewal, certificates, renewed):
            await server.run(listener, announce)
    _tell_totals(console, server)


async def _listen(
    config: ServerConfig,
    new_peer: Callable[[], FramedProtocol],
    certificate: Certificate | None,
) -> Listener:
    """The port for edges, here or of the host's network stack; reserved and not open yet."""
    tell_accept_failures(asyncio.get_running_loop())
    if config.stack:
        return await stacks.listen(config.stack, config.host, config.port, new_peer, certificate)
    tls = certificate.context if certificate else None
    return await listen(config.host, config.port, new_peer, start=False, tls=tls)


@dataclass
class _There:
    """A server, once its model is loaded."""

    config: ServerConfig
    server: Server | None = None

    def new_peer(self) -> FramedProtocol:
        assert self.server is not None, "the port is not open yet"
        return self.server.new_peer()

    def unready(self) -> str:
        """Why no requests are taken; empty if they are."""
        if self.server is None:
            return f"{Path(self.config.model).name} is being loaded"
        return self.server.unready

    def requests(self) -> Collection[Request]:
        return self.server.requests.values() if self.server is not None else ()


class _Loaded(NamedTuple):
    """A model, ready to run, what it is, and what its steps cost: (rows, seconds).

    A server needs no tokenizer, which takes memory, but for clients without an edge and for
    constraints.
    """

    engine: Engine
    identity: Identity
    costs: list[tuple[int, float]]
    tokenizer: Tokenizer | None


def _load(config: ServerConfig, console: Terminal, open_engine: OpenTarget) -> _Loaded:
    engine = open_engine(config, console)
    if engine.ranks is not None:
        engine.ranks.begin(engine.model.device, config.rank_silence_s)
    tokenizer = Tokenizer.load(config.model)
    identity = _identity(config, engine, tokenizer)
    with waiting(console, lambda: "measuring what steps cost"):
        costs = [*warm_up(engine, config.max_step_nodes, config.max_batch)]
    return _Loaded(engine, identity, costs, tokenizer if config.openai else None)


def _server(
    config: ServerConfig,
    loaded: _Loaded,
    door: Door,
    on_step: Callable[[Step], None],
    metrics: Metrics,
    folder: PageFolder | None,
    credits: Credits,
) -> Server:
    guides, spilling = _guides(config, loaded), spilling_of(config, loaded.engine.kv, folder)
    server = Server(
        *(config, loaded.engine, door, on_step, metrics, guides, spilling), credits=credits
    )
    server.pipeline.load.cost.learn(loaded.costs)
    return server


def _renewed(server: Server, renew_keys: RenewKeys) -> Renewed:
    """What is done when users and the certificate are new."""

    def renewed(users: Mapping[str, bytes] | None, certificate: Certificate | None) -> None:
        renew_keys(users)  # first: it may raise
        server.renew(users, _hash(certificate))
        server.metrics.certified(certificate)

    return renewed


def _guides(config: ServerConfig, loaded: _Loaded) -> Guides:
    known = loaded.tokenizer
    rows = loaded.identity.vocabulary_size
    return Guides(lambda: known or Tokenizer.load(config.model), rows)


def _tell_ready(config: ServerConfig, console: Terminal, engine: Engine) -> None:
    kv = engine.kv
    console.print(
        f"{config.model} ready on {engine.model.device}: {len(engine.model.kv_shapes)} "
        f"layers, {config.weights} weights, KV for {kv.n_pages * kv.page_size} tokens "
        f"({kv.n_pages * kv.bytes_per_page / 2**20:.0f} MiB)",
        soft_wrap=True,
    )


def _tell_totals(console: Terminal, server: Server) -> None:
    totals = server.totals
    console.print(
        f"stopped after {totals.steps} steps: {totals.tokens} tokens in {totals.verdicts} "
        f"verdicts, {totals.busy_s:.1f} s of verification",
        soft_wrap=True,
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
    from runtime.api.names import OfThisMachine
    from runtime.api.serving import serving
    from runtime.pages.server import ServerPage
    from runtime.server.http import MAX_CONNECTIONS, application

    page = ServerPage(requests, on_step) if requests else None
    app = application(unready, metrics.registry, page.routes() if page else ())
    host, _ = parse_address(config.http, "--http", 0)
    guarded = OfThisMachine(app) if is_loopback(host) else app
    async with serving(config.http, guarded, MAX_CONNECTIONS) as url:
        watch = f"; {url} to watch it" if page else ""
        console.print(f"{url}/health, /ready and /metrics{watch}", soft_wrap=True)
        yield page.step if page else on_step


@asynccontextmanager
async def _clients(
    config: ServerConfig,
    console: Terminal,
    unready: Callable[[], str],
    users: Mapping[str, bytes] | None,
    certificate: Certificate | None,
    metrics: Metrics,
    opened: Callable[[str], None],
) -> AsyncIterator[Callable[[Server, Tokenizer | None], RenewKeys]]:
    """Serve clients without an edge while the context lasts, if it is wanted.

    Gives a function that joins them to a server; until then, they are told why they have to wait.
    """
    if not config.openai:
        yield lambda server, tokenizer: lambda users: None
        return
    # Without it, neither the API nor an edge is needed.
    from runtime.server.local import serving_clients

    async with serving_clients(config, unready, users, certificate, metrics) as (url, join):
        console.print(f"{url}/v1 for clients without an edge", soft_wrap=True)
        opened(f"{url}/v1")
        yield join


def _announce(
    config: ServerConfig,
    console: Terminal,
    certificate: Certificate | None,
    host: str,
    port: int,
    opened: Callable[[str, int], None] = lambda host, port: None,
) -> None:
    """The last line of the start, the command that an edge needs; then `opened` is told."""
    if certificate is not None and certificate.doubt:
        console.print(
            f"WARNING: {certificate.file}: {certificate.doubt}; whoever does not pin it refuses it",
            style="bold yellow",
            soft_wrap=True,
        )
    if certificate is None and not is_loopback(host):
        console.print(
            f"WARNING: {host} is not this machine alone, and without --tls-certificate others on "
            "the way can read prompts and answers",
            style="bold yellow",
            soft_wrap=True,
        )
    name = platform.node() if ip_address(host).is_unspecified else host
    if not config.replicas and config.model != ServerConfig.model:
        sentence = f"DRAFT below: a small model with the vocabulary of {config.model}"
        console.print(sentence, soft_wrap=True)
    command = [called("runtime.edge"), "--server"]
    command += [f"[{name}]:{port}" if ":" in name else f"{name}:{port}"]
    command += [f"--tls {certificate.pin}"] if certificate else []
    command += ["--user NAME --token-file FILE"] if config.users else []
    if not config.replicas and config.model != ServerConfig.model:
        command.append("--draft DRAFT")
    console.print(" ".join([*command, "--chat"]), soft_wrap=True)
    opened(host, port)


@contextmanager
def _trace(config: ServerConfig) -> Iterator[Callable[[Step], None]]:
    with ExitStack() as stack:
        try:
            on_step = stack.enter_context(tracing(config.trace))
        except OSError as error:
            raise StartError(f"cannot write --trace {config.trace}: {error.strerror}") from error
        yield on_step


def _certificate(config: ServerConfig, whom: str = "an edge") -> Certificate | None:
    if not config.tls_certificate:
        return None
    files = Path(config.tls_certificate), Path(config.tls_key)
    return load_certificate(*files, Seldom(log, f"no TLS with {whom}"))


def _api_certificate(config: ServerConfig) -> Certificate | None:
    has_https = config.openai and config.openai_tls
    return _certificate(config, "a client of the API") if has_https else None


def _door(
    config: ServerConfig,
    users: Mapping[str, bytes] | None,
    certificate: Certificate | None,
    identity: Identity | None,
    router: Router | None = None,
) -> Door:
    return Door(config, identity, users, _hash(certificate), edges_that_fit(config), router)


def _hash(certificate: Certificate | None) -> bytes:
    return certificate.hash if certificate else NO_CERTIFICATE


def _identity(config: ServerConfig, engine: Engine, tokenizer: Tokenizer) -> Identity:
    rows = engine.model.vocab_size
    return Identity(
        model=inert(Path(config.model).name),
        vocabulary_size=rows,
        # all that a server needs of a vocabulary, which takes more memory than its hashes
        vocabulary_hash=tokenizer.hashes.below,
        max_context=_max_context(config, engine),
        stop_ids=frozenset(index for index in tokenizer.stop_ids if 0 <= index < rows),
        template=tokenizer.portable_template,
        adapters=engine.model.adapters,
    )


def _max_context(config: ServerConfig, engine: Engine) -> int:
    """Tokens of prompt and answer, so that each text fits that an edge is told may be asked for.

    Raises ConfigError where the pool holds a tree and no text beside it.
    """
    longest, pool_tokens = engine.model.max_context, engine.kv.n_pages * engine.kv.page_size
    room = pool_tokens - config.max_nodes
    if room < SHORTEST:
        raise ConfigError(
            f"KV for {pool_tokens} tokens leaves no room for a text beside a tree of --max-nodes "
            f"{config.max_nodes}; --kv-tokens {config.max_nodes + SHORTEST} is the least"
        )
    return min(config.max_context or longest, longest, room)
