"""The goals of credits on real connections: sockets, a server process, edges that take their time.

The scenarios and their figures are those of bench/scheduler.py, which simulates them. Here they run
on the real server around a stub model whose steps sleep; every edge has a connection, a user with a
token, and an emulated round trip: a relay in the edges' process delays its bytes. An edge drafts by
the rules of a simulated one and sleeps as long; how much of a draft is right is drawn as well.
Times are those of the server's trace. Every token is checked and every tree must be answered, or
nothing is printed. Needs a quiet machine: server and edges share it.

    python -m bench.credits [--edges 200] [--seconds 6] [--policy drr] [--json]
"""

import argparse
import asyncio
import json
import math
import random
import tempfile
import time
from asyncio import FIRST_EXCEPTION
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import median
from typing import Any

from bench.harness import option_parser, report
from bench.scheduler import Figure, Setting, connections, crowd, newcomer, reunion
from bench.stub_edges import HELLO, StubServer, draft_after, stub_server, text_after
from bench.stub_server import VOCABULARY
from runtime.bench.link import Conditions, open_link
from runtime.bench.simulation import Accelerator, Device, Record, Trip
from runtime.edge.net.link import Credentials, Link, Request
from runtime.sampling import Sampling
from runtime.server.policy.credits import POLICIES
from runtime.server.policy.pipeline import Grant
from runtime.tree import Tree
from runtime.wire.messages import NO_LIMIT_MS, Hello, Turn, Verdict

SCENARIOS = (crowd, reunion, newcomer, connections)
JOINING_S = 1.0  # in which the crowd comes, so that its order does not hang on the round trips
LEAST_OF_OPEN = 0.98
LEAST_EDGES = 20
TOKEN = "the token of every user of this bench"
LONGEST_RTT_S = 0.1
CONNECTING = 32  # at a time: the server lets 64 strangers stand at its door
MAX_TOKENS = 3500  # more than come in any run
LAST_ANSWER_S = 20.0  # at most, when the time is up
HALF_MS = 0.5e-3  # a verdict tells the time in the queue in whole milliseconds

Result = tuple[str, Figure, Figure | None]  # a policy, a figure as measured and as simulated


@dataclass(frozen=True)
class Verified:
    """One verdict; times are of time.monotonic()."""

    edge: int
    accepted: int
    sent_s: float | None  # when its tree left the edge; None without a tree
    came_s: float  # to the server, at the latest
    start_s: float  # of its step
    end_s: float


@dataclass
class Edge:
    """One edge with its one request, and what it alone can tell of its rounds."""

    number: int
    trip: Trip
    rounds: list[tuple[float | None, float]] = field(default_factory=list)  # sent_s, queued for s

    async def live(self, link: Link, start_s: float, until_s: float) -> None:
        """Ask when it is time to, then draft and check until the time is up. Raises ServerError."""
        trip, rng, token = self.trip, random.Random(self.number), self.number % VOCABULARY
        await _sleep_until(start_s + trip.device.joins_s - trip.device.rtt_s / 2)
        request = link.request([token], Sampling(MAX_TOKENS), trip.device.max_nodes)
        base, tree, sent_s = 1, Tree(), None
        while True:
            verdict = await request.verdict()
            self.rounds.append((sent_s, verdict.queue_ms * 1e-3))
            text = [*tree.tokens[: verdict.node], verdict.bonus]
            assert text == text_after(token, len(text)), f"edge {self.number} got another text"
            token, base, tree, sent_s = text[-1], base + len(text), Tree(), None
            trip.answered(verdict.node, verdict.verify_ms * 1e-3, request.arrived_s)
            if time.monotonic() > until_s:
                break
            if verdict.turn is not Turn.SERVER:
                await self._draft(request, verdict)
                right = len(trip.luck(trip.device.quality, rng))
                tree = draft_after(token, trip.nodes, right)
                sent_s = time.monotonic()
                request.send(base, tree)
        request.close()

    async def _draft(self, request: Request, verdict: Verdict) -> None:
        """Take the time that the draft takes, and wait for a credit meanwhile if it needs one."""
        self.trip.received_s = request.arrived_s
        granted = await request.credit() if verdict.turn is Turn.WAIT else verdict
        late_s = math.inf if granted.late_ms == NO_LIMIT_MS else granted.late_ms * 1e-3
        grant = Grant(Turn.EDGE, granted.max_nodes, granted.free_ms * 1e-3, late_s)
        self.trip.draft(grant, request.arrived_s)
        await _sleep_until(self.trip.sent_s)


@dataclass(frozen=True)
class Foreseen(Setting):
    """Simulates scenarios with steps that begin as long after each other as the real ones did."""

    step_s: float = 0.0

    def run(
        self, accelerator: Accelerator, devices: Sequence[Device], seconds: float, seed: int = 0
    ) -> Record:
        return super().run(replace(accelerator, points=((1, self.step_s),)), devices, seconds, seed)


@dataclass(frozen=True)
class Real(Setting):
    """Runs scenarios on real connections, and remembers of each how many trees were sent.

    `periods_s` has the median time from step to step.
    """

    trees: list[int] = field(default_factory=list)
    periods_s: list[float] = field(default_factory=list)

    def run(
        self, accelerator: Accelerator, devices: Sequence[Device], seconds: float, seed: int = 0
    ) -> Record:
        """As a simulation's; the noise of the steps is the machine's own."""
        edges = [Edge(number, Trip(device)) for number, device in enumerate(devices)]
        with tempfile.TemporaryDirectory() as folder:
            options = self._server_options(accelerator, devices, Path(folder))
            with stub_server(accelerator.step_s(1), *options) as server:
                start_s, window = asyncio.run(_live(server, edges, seconds, self.connect))
            trace = (Path(folder) / "trace").read_text(encoding="utf-8")
        verdicts = list(verified(edges, list(map(json.loads, trace.splitlines()))))
        self.trees.append(sum(verdict.sent_s is not None for verdict in verdicts))
        sent = sum(sent_s is not None for edge in edges for sent_s, _ in edge.rounds)
        assert self.trees[-1] == sent, f"{sent} trees were answered, {self.trees[-1]} verified"
        starts_s = sorted({verdict.start_s for verdict in verdicts})
        self.periods_s.append(median(later - sooner for sooner, later in pairwise(starts_s)))
        record = recorded(devices, verdicts, start_s, seconds, seconds / 2)
        record.largest_window, record.longest_queue = window, longest_queue(verdicts)
        return record

    async def connect(self, server: StubServer, edge: Edge) -> Link:
        """A link as far away as the edge's device is."""
        device = edge.trip.device
        conditions = Conditions(device.rtt_s, jitter_s=device.jitter * device.rtt_s / 2)
        with closing(await open_link(server.address, conditions)) as relay:
            host, port = relay.sockets[0].getsockname()
            return await Link.open(host, port, *greeting(device.user))

    def _server_options(
        self, accelerator: Accelerator, devices: Sequence[Device], folder: Path
    ) -> list[str]:
        users = folder / "users"
        users.touch(mode=0o600)
        names = {device.user for device in devices}
        users.write_text("".join(f'"{name}" = "{TOKEN}"\n' for name in names), encoding="utf-8")
        options = {
            "--credits": self.policy,
            "--max-batch": accelerator.max_batch,
            "--max-step-nodes": accelerator.max_step_nodes,
            "--max-requests": len(devices),
            "--max-user-requests": len(devices),
            "--max-user-running": len(devices),
            "--kv-tokens": 2**20,
            "--users": users,
            "--trace": folder / "trace",
        }
        return [str(word) for option in options.items() for word in option]


async def _sleep_until(time_s: float) -> None:
    await asyncio.sleep(max(time_s - time.monotonic(), 0.0))


def greeting(user: str) -> tuple[Hello, Credentials]:
    """What an edge of this user says first, and proves."""
    return replace(HELLO, user=user), Credentials(TOKEN.encode())


async def _live(
    server: StubServer,
    edges: Sequence[Edge],
    seconds: float,
    connect: Callable[[StubServer, Edge], Awaitable[Link]],
) -> tuple[float, float]:
    """All edges at once: when their time began, and how many credits could be out at most."""
    async with AsyncExitStack() as stack:
        door = asyncio.Semaphore(CONNECTING)

        async def link_of(edge: Edge) -> Link:
            """Over it the edge's request has the edge's number, plus 1, in the trace."""
            async with door:
                link = await connect(server, edge)
            stack.push_async_callback(link.close)
            link._last_number = edge.number
            return link

        links = await asyncio.gather(*map(link_of, edges))
        start_s = time.monotonic() + LONGEST_RTT_S
        lives = [
            asyncio.ensure_future(edge.live(link, start_s, start_s + seconds))
            for edge, link in zip(edges, links, strict=True)
        ]
        patience_s = seconds + LAST_ANSWER_S
        done, waiting = await asyncio.wait(lives, timeout=patience_s, return_when=FIRST_EXCEPTION)
        for life in done:
            life.result()
        assert not waiting, f"{len(waiting)} edges still wait for an answer"
    while (samples := await server.samples())["edges_connected"]:
        await asyncio.sleep(0.05)
    return start_s, samples["stub_largest_window"]


def verified(edges: Sequence[Edge], trace: Sequence[Mapping[str, Any]]) -> Iterator[Verified]:
    """What the steps of the trace verified, put together with what the edges know of it."""
    rounds = [iter(edge.rounds) for edge in edges]
    for step in trace:
        start_s, end_s = step["start_s"], step["end_s"]
        for _, request, nodes, accepted in step["requests"]:
            # One that decodes plainly may be verified once more before it is known to have left.
            if (known := next(rounds[request - 1], None)) is not None:
                sent_s, queued_s = known
                assert (sent_s is None) == (nodes == 0), f"who drafted for edge {request - 1}?"
                came_s = start_s - max(queued_s - HALF_MS, 0.0)
                yield Verified(request - 1, accepted, sent_s, came_s, start_s, end_s)


def recorded(
    devices: Sequence[Device],
    verdicts: Sequence[Verified],
    start_s: float,
    until_s: float,
    warm_up_s: float,
) -> Record:
    """The verdicts as a simulation has them: seconds from `start_s`, counted after the warm-up."""
    record = Record([Trip(device) for device in devices], until_s - warm_up_s)
    steps = {verdict.end_s - start_s: verdict.end_s - verdict.start_s for verdict in verdicts}
    record.steps_s = [took_s for now_s, took_s in steps.items() if warm_up_s < now_s <= until_s]
    record.busy_s = sum(record.steps_s)
    for verdict in verdicts:
        trip, now_s = record.trips[verdict.edge], verdict.end_s - start_s
        if now_s > until_s:
            break
        trip.answered(verdict.accepted, verdict.end_s - verdict.start_s, now_s)
        if now_s > warm_up_s:
            record.tokens += verdict.accepted + 1
            if verdict.sent_s is not None:
                record.ages_s.append(verdict.end_s - verdict.sent_s)
                record.trees_by_user.setdefault(trip.device.user, []).append(now_s)
    return record


def longest_queue(verdicts: Sequence[Verified]) -> int:
    """Most trees that had come and waited for their step to begin."""
    trees = [verdict for verdict in verdicts if verdict.sent_s is not None]
    comes = [(tree.came_s, 0, 1) for tree in trees]
    goes = [(tree.start_s, 1, -1) for tree in trees]
    return max(accumulate(change for _, _, change in sorted(comes + goes)), default=0)


def main() -> None:
    """Print the report."""
    options = parse_options()
    policies = [options.policy] if options.policy else list(POLICIES)
    results = [
        (policy, *figures)
        for policy in policies
        for figures in both(policy, options.edges, options.seconds)
    ]
    results += against_open(results)
    rows = [row(*result) for result in results]
    numbers = {
        f"{policy}: {figure.scenario}: {figure.name}": round(figure.value, 5)
        for policy, figure, _ in results
    }
    title = "credits on real connections; every token is right, and every tree was answered"
    columns = ("credits", "scenario", "figure", "measured", "simulated", "goal", "met")
    report(title, columns, rows, numbers, options.json)


def both(policy: str, edges: int, seconds: float) -> Iterator[tuple[Figure, Figure | None]]:
    """Each figure as measured and as simulated, then what was measured alone."""
    real = Real(policy, edges, seconds, 1, joining_s=JOINING_S)
    for scenario in SCENARIOS:
        measured = list(scenario(real))
        period_s = real.periods_s[-1]
        simulation = Foreseen(policy, edges, seconds, 1, joining_s=JOINING_S, step_s=period_s)
        yield from zip(measured, scenario(simulation), strict=True)
    yield Figure("all of these", "from step to step, ms", 1e3 * median(real.periods_s)), None
    yield Figure("all of these", "trees sent", sum(real.trees), "all answered", True), None


def against_open(results: Sequence[Result]) -> Iterator[Result]:
    """How many trees each policy lets a crowd verify, of those verified without any."""
    rates = {
        (policy, figure.scenario): (figure.value, simulated.value)
        for policy, figure, simulated in results
        if simulated is not None and figure.name == "trees/s"
    }
    for (policy, scenario), rate in rates.items():
        without = rates.get(("open", scenario))
        if without is not None and policy != "open":
            measured, simulated = (
                Figure(
                    scenario,
                    "trees/s, of open's",
                    share,
                    f">= {LEAST_OF_OPEN}",
                    share >= LEAST_OF_OPEN,
                )
                for share in (mine / theirs for mine, theirs in zip(rate, without, strict=True))
            )
            yield policy, measured, simulated


def row(policy: str, measured: Figure, simulated: Figure | None) -> tuple[str, ...]:
    scenario, name, value, goal, met = measured.row()
    return policy, scenario, name, value, simulated.row()[2] if simulated else "", goal, met


def parse_options() -> argparse.Namespace:
    parser = option_parser("bench.credits", __doc__)
    parser.add_argument("--edges", type=int, default=200, help="of the crowd")
    parser.add_argument("--seconds", type=float, default=6.0, help="of a scenario")
    parser.add_argument("--policy", choices=tuple(POLICIES), help="one policy of credits, not all")
    options = parser.parse_args()
    if options.edges < LEAST_EDGES:
        parser.error(f"--edges is {options.edges}; a crowd has {LEAST_EDGES} at least")
    return options


if __name__ == "__main__":
    main()
