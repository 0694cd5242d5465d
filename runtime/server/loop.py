"""The server, its loop and its end: admit, choose, verify, answer.

Two activities and no others: the event loop reads and writes sockets and owns all requests; one
thread runs the model (model_thread.py). They meet in `steps.py`. What edges send is applied in
edges.py, what they are told of a step is said in verdicts.py.
"""

import asyncio
import contextlib
import gc
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from runtime.config import ServerConfig
from runtime.logs import fields
from runtime.model.engine import Engine
from runtime.named import made, unlike
from runtime.server.door import Door
from runtime.server.edges import Edges
from runtime.server.guide import Guides
from runtime.server.metrics import Metrics
from runtime.server.policy.credits import POLICIES, Credits
from runtime.server.policy.pipeline import Pipeline
from runtime.server.request import Request
from runtime.server.schedule.scheduler import Limits, Scheduler
from runtime.server.schedule.step import Step
from runtime.server.spilling import Spilling
from runtime.server.steps import Steps
from runtime.server.verdicts import Totals, Verdicts
from runtime.server.watch import Watch
from runtime.system import on_stop
from runtime.wire import messages as wire
from runtime.wire.places import Listener, open_port
from runtime.wire.tcp import CLOSE_TIMEOUT_S, FramedProtocol

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 3600.0  # of an idle server; inf is not a time-out
# Two threads share the interpreter: the model's may have to wait so long for the loop's.
SWITCH_S = 0.0005
# What a step is made of is freed without the collector of cycles, which looks for them when so many
# objects more are there than at its last look: by the default of 700 that is with every other step,
# and in the end it looks through all that is known of thousands of edges, with everything else
# standing still for a fifth of a second.
COLLECT_OBJECTS = 20_000


def credits_of(config: ServerConfig) -> Credits:
    """The policy of --credits. Raises ConfigError where what is named makes none."""
    if (policy := POLICIES.get(config.credits)) is not None:
        return policy()
    name, option = config.credits, "--credits"
    credits = made(name, option, "what makes a policy without being told anything")
    if not isinstance(credits, Credits):
        raise unlike(name, option, credits, "a policy, of a subclass of Credits")
    return credits


@contextlib.contextmanager
def _interpreter_of_a_server() -> Iterator[None]:
    """How Python divides its time while a server runs; afterwards as it was."""
    switch_s, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(SWITCH_S)
    gc.set_threshold(COLLECT_OBJECTS, *thresholds[1:])
    try:
        yield
    finally:
        sys.setswitchinterval(switch_s)
        gc.set_threshold(*thresholds)


@dataclass
class Server:
    """Requests of all edges around one engine."""

    config: ServerConfig
    engine: Engine
    door: Door
    on_step: Callable[[Step], None] = lambda step: None  # is told of each that has ended
    metrics: Metrics = field(default_factory=Metrics)
    guides: Guides | None = None  # None enforces no constraints
    spilling: Spilling | None = None  # None keeps no pages that the KV pool gives up
    totals: Totals = field(default_factory=Totals)
    credits: Credits | None = None  # None is the policy of the config

    def __post_init__(self) -> None:
        config, kv = self.config, self.engine.kv
        limits = Limits(
            max_requests=config.max_requests,
            max_user_running=self._most_of_a_user(),
            max_waiting=config.max_waiting,
            max_batch=config.max_batch,
            max_step_nodes=config.max_step_nodes,
            max_nodes=config.max_nodes,
            chunk_tokens=config.chunk_tokens,
            page_size=kv.page_size,
            n_pages=kv.n_free,
        )
        spill = self.spilling.spill if self.spilling is not None else None
        self.scheduler = Scheduler(limits, kv.allocate, kv.free, spill)
        credits = self.credits if self.credits is not None else credits_of(config)
        objective_s = config.objective_ms * 1e-3 or math.inf
        limits_of_steps = (config.max_batch, config.max_step_nodes)
        self.pipeline = Pipeline(*limits_of_steps, credits, config.pipeline, objective_s)
        self.metrics.watch(self.door, self.scheduler, self.pipeline)
        self._work = asyncio.Event()
        self._stopping = asyncio.Event()
        self.edges = Edges(
            *(config, self.door, self.metrics, self.scheduler, self.pipeline),
            *(self.guides, self.spilling, self._work),
            news=lambda: self.steps.news(),
            recall=lambda: self.steps.recall(),
        )
        self.verdicts = Verdicts(
            *(self.edges, self.metrics, self.scheduler, self.pipeline, self.on_step, self.totals)
        )
        self.steps = Steps(
            *(self.engine, self.scheduler, self.pipeline, self.verdicts.answer, self._work)
        )
        self.watch = Watch(self.edges, config.silence_s)

    @property
    def requests(self) -> Mapping[tuple[FramedProtocol, int], Request]:
        """Those that are open, by their connection and their number there."""
        return self.edges.requests

    @property
    def unready(self) -> str:
        """Why no requests are taken; empty if they are."""
        return self.edges.unready

    def new_peer(self) -> FramedProtocol:
        """A protocol for one more connection."""
        return self.door.new_peer(self.edges.on_message, self.edges.on_closed)

    def _most_of_a_user(self) -> int:
        """Requests of one user that may be admitted at once."""
        all_of_them, users = self.config.max_requests, self.door.users
        fair = all_of_them if users is None or len(users) < 2 else max(all_of_them // 2, 1)
        return self.config.max_user_running or fair

    async def run(self, listener: Listener, announce: Callable[[str, int], None]) -> None:
        """Serve until SIGTERM, SIGINT or `stop`; `announce` is told the address once it is open.

        `listener` makes its protocols with `new_peer`. Raises DeviceError.
        """
        with _interpreter_of_a_server(), self._parts():
            await self._run(listener, announce)

    @contextlib.contextmanager
    def _parts(self) -> Iterator[None]:
        """What has threads; afterwards they have ended."""
        try:
            yield
        finally:
            self.steps.stop()
            if self.guides is not None:
                self.guides.close()
            if self.spilling is not None:
                self.spilling.close()

    async def _run(self, listener: Listener, announce: Callable[[str, int], None]) -> None:
        on_stop(asyncio.get_running_loop(), self.stop)
        await open_port(listener)
        stop, left_s = asyncio.ensure_future(self._stopping.wait()), CLOSE_TIMEOUT_S
        self.edges.unready = ""
        announce(*listener.sockets[0].getsockname()[:2])
        verifying = asyncio.ensure_future(self._verify_forever())
        looking = asyncio.ensure_future(self.watch.forever())
        try:
            await asyncio.wait({verifying, stop}, return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                left_s = await self._drain()
        finally:
            listener.close()
            verifying.cancel()
            looking.cancel()
            stop.cancel()
            # an edge may be slow to take the last of its answer
            await asyncio.gather(*(peer.hang_up(left_s) for peer in self.door.peers()))
        if verifying.done() and not verifying.cancelled():
            verifying.result()

    def renew(self, users: Mapping[str, bytes] | None, certificate: bytes) -> None:
        """Users and their tokens, and the certificate's hash, as they are from now on.

        Answers that have begun go on to their ends, whoever's they are.
        """
        for peer in self.door.renew(users, certificate):
            self.edges.send_off(peer)

    async def _verify_forever(self) -> None:
        loop = asyncio.get_running_loop()
        self.steps.start()
        while True:
            # Credits of edges that have fallen silent come free at a known time.
            patience_s = min(self.pipeline.wake_s, self.steps.wake_s) - time.monotonic()
            # not wait_for: before Python 3.12 it may swallow a cancellation
            timer = loop.call_later(min(max(patience_s, 0.0), LONGEST_WAIT_S), self._work.set)
            await self._work.wait()
            timer.cancel()
            self._work.clear()
            self.steps.turn()
            self.verdicts.give_credits()

    def stop(self) -> None:
        """What SIGTERM does: the first time running requests may end, the second time they may not.

        To be called in the event loop.
        """
        if self._stopping.is_set():
            self._stop_now()
        self._stopping.set()

    def _stop_now(self) -> None:
        for request in [*self.requests.values()]:
            self.edges.cancel(request)
        for peer in self.door.peers():
            peer.abort()

    async def _drain(self) -> float:
        """Let running requests end, at most `drain_s` seconds; admit no new ones.

        Returns the seconds that are left for edges to take what was sent.
        """
        until_s = time.monotonic() + self.config.drain_s
        self.edges.unready = "the server is stopping"
        log.info("draining", extra=fields(requests=len(self.requests), drain_s=self.config.drain_s))
        notice = wire.Error(0, wire.ErrorCode.DRAINING, fatal=False, sentence=self.unready)
        for peer in self.door.admitted:
            peer.send(notice)
        if self.requests:
            self.edges.idle.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.edges.idle.wait(), self.config.drain_s)
        return max(until_s - time.monotonic(), CLOSE_TIMEOUT_S)
