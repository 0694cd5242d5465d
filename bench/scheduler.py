"""Simulated: the server's pipeline and credits with up to 10,000 edges, against their goals.

The policy objects are the server's; everything around them is drawn (runtime/bench/simulation.py).
The verification step takes 94.2 ms and a draft pass 11 ms, the paper's figures for its 32B/1.7B
pair, or follows the step times of SmolLM2 on one core (results/verify_cost-2026-11-22-cpu.txt).

    python -m bench.scheduler [--edges 10000] [--policy drr] [--no-pipeline] [--quick] [--json]
"""

import argparse
import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from bench.harness import option_parser, report
from runtime.bench.simulation import (
    Accelerator,
    Device,
    Record,
    Simulation,
    Trip,
    expected_accepted,
)
from runtime.server.policy.credits import POLICIES

PAPER_STEP_S, PAPER_RTT_S, PASS_S = 0.0942, 0.01407, 0.011
CPU_POINTS = ((1, 0.031), (4, 0.0312), (8, 0.0414), (16, 0.0536), (32, 0.0787), (64, 0.1365))
CPU_PASS_S = 0.004
CROWD_BATCH, CROWD_STEP_S = 16, 0.09
SLOTS_EDGES, SLOTS_RTTS_S, SLOTS_DRAWS = ((2, 1), (8, 4), (32, 16)), (0.005, 0.1), 4
WINDOW_TOKENS = 64
QUALITIES, RTTS_S = (0.0, 0.2, 0.4, 0.6, 0.8), (0.005, 0.014, 0.03, 0.05, 0.1)


@dataclass(frozen=True)
class Figure:
    """One number, and what it should be."""

    scenario: str
    name: str
    value: float
    goal: str = ""
    met: bool | None = None

    def row(self) -> tuple[str, ...]:
        verdict = {None: "", True: "yes", False: "NO"}[self.met]
        return (self.scenario, self.name, f"{self.value:.4g}", self.goal, verdict)


@dataclass(frozen=True)
class Setting:
    """What the options choose."""

    policy: str
    edges: int
    seconds: float
    seeds: int
    pipelined: bool = True
    joining_s: float = 0.0  # in which the crowd comes

    def run(
        self, accelerator: Accelerator, devices: Sequence[Device], seconds: float, seed: int = 0
    ) -> Record:
        """One simulation, of which the first half is not counted; bench/credits.py has another."""
        credits = POLICIES[self.policy]()
        simulation = Simulation(accelerator, devices, credits, self.pipelined, seed)
        return simulation.run(seconds, seconds / 2)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share of the values lie; 0 of none."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)] if values else 0.0


def worst_window(trip: Trip, plain_s: float) -> float:
    """Largest time of WINDOW_TOKENS or more tokens in a row, over that of plain decoding."""
    worst, end, tokens = 0.0, 0, 0
    verdicts = trip.verdicts
    for start in range(len(verdicts)):
        while tokens < WINDOW_TOKENS:
            end += 1
            if end == len(verdicts):
                return worst
            tokens += verdicts[end][1]
        worst = max(worst, (verdicts[end][0] - verdicts[start][0]) / (tokens * plain_s))
        tokens -= verdicts[start + 1][1]
    return worst


def two_edges(setting: Setting) -> Iterator[Figure]:
    """The paper's headline setting, against a server that always verifies the deepest trees."""
    device = Device(PAPER_RTT_S, PASS_S)
    accelerator = Accelerator(((1, PAPER_STEP_S),), max_batch=1)
    record = setting.run(accelerator, [device] * 2, setting.seconds * 6)
    passes = int((PAPER_STEP_S - PAPER_RTT_S) / PASS_S)
    accepted = expected_accepted(device.max_nodes, passes, device.quality)
    bound = (1 + accepted) / PAPER_STEP_S
    busy, rate = record.busy_s / record.elapsed_s, record.tokens / record.elapsed_s
    name = "two edges, batch 1"
    yield Figure(name, "busy", busy, ">= 0.97", busy >= 0.97)
    yield Figure(name, "tokens/s", rate)
    yield Figure(name, "share of bound", rate / bound, ">= 0.97", rate >= 0.97 * bound)


def crowd(setting: Setting) -> Iterator[Figure]:
    """Many users with one edge each, far more than the server can take."""
    gap_s = setting.joining_s / setting.edges
    name = f"{setting.edges} edges, batch {CROWD_BATCH}"
    return crowded(setting, name, lambda number, rtt_s: number * gap_s)


def reunion(setting: Setting) -> Iterator[Figure]:
    """The same users, who all ask at one moment, as after a restart: who is near comes first."""
    return crowded(setting, f"{setting.edges} edges at once", lambda number, rtt_s: rtt_s / 2)


def crowded(
    setting: Setting, name: str, joins_s: Callable[[int, float], float]
) -> Iterator[Figure]:
    """The figures of a crowd; `joins_s` is of an edge with this number and round trip."""
    rng = random.Random(1)
    rtts_s = [rng.uniform(0.005, 0.1) for _ in range(setting.edges)]
    devices = [
        Device(rtt_s, user=str(number), jitter=0.1, joins_s=joins_s(number, rtt_s))
        for number, rtt_s in enumerate(rtts_s)
    ]
    accelerator = Accelerator(((1, CROWD_STEP_S),), CROWD_BATCH, noise=0.02)
    seconds = max(setting.seconds, 4 * setting.edges / CROWD_BATCH * CROWD_STEP_S)
    record = setting.run(accelerator, devices, seconds)
    step_s = statistics.mean(record.steps_s)
    capacity = CROWD_BATCH / step_s
    share = len(record.ages_s) / record.elapsed_s / capacity
    age_s, limit_s = quantile(record.ages_s, 0.99), 0.11 / 2 + 2 * step_s
    yield Figure(name, "trees/s", share * capacity)
    yield Figure(name, "share of capacity", share, ">= 0.98", share >= 0.98)
    yield Figure(name, "tokens/s", record.tokens / record.elapsed_s)
    yield Figure(name, "longest queue", record.longest_queue)
    window = record.largest_window
    bounded = record.longest_queue <= window < math.inf
    yield Figure(name, "largest window", window, "the longest queue", bounded)
    yield Figure(name, "p50 age, ms", quantile(record.ages_s, 0.5) * 1e3)
    yield Figure(name, "p99 age, ms", age_s * 1e3, f"<= {limit_s * 1e3:.0f}", age_s <= limit_s)
    far = rounds_per_s(record, lambda device: device.rtt_s > 0.075)
    near = rounds_per_s(record, lambda device: device.rtt_s < 0.03)
    ratio = far / near
    yield Figure(name, "long / short RTT", ratio, "0.9-1.1", 0.9 <= ratio <= 1.1)


def rounds_per_s(record: Record, which: Callable[[Device], bool]) -> float:
    """Mean rate of the verdicts of the edges chosen, each from its first one on."""
    end_s = max(trip.verdicts[-1][0] for trip in record.trips if trip.verdicts)
    chosen = [trip.verdicts for trip in record.trips if which(trip.device)]
    return statistics.mean(
        (len(verdicts) - 1) / (end_s - verdicts[0][0]) if len(verdicts) > 1 else 0.0
        for verdicts in chosen
    )


def newcomer(setting: Setting) -> Iterator[Figure]:
    """A second user joins while the first one fills the server."""
    joins_s = setting.seconds / 3
    first = [Device(0.03, user="first", jitter=0.1)] * 64
    second = [Device(0.03, user="second", jitter=0.1, joins_s=joins_s)] * 64
    accelerator = Accelerator(((1, CROWD_STEP_S),), CROWD_BATCH, noise=0.02)
    record = setting.run(accelerator, first + second, joins_s + 4)
    times = record.trees_by_user
    after_s = min(trip.verdicts[0][0] for trip in record.trips[64:]) - joins_s
    counts = [sum(joins_s + 2 < time < joins_s + 3 for time in times[user]) for user in times]
    share = counts[1] / sum(counts)
    name = "a newcomer"
    yield Figure(name, "first token after, ms", after_s * 1e3, "<= 500", after_s <= 0.5)
    yield Figure(name, "share after 2 s", share, "0.4-0.6", 0.4 <= share <= 0.6)


def connections(setting: Setting) -> Iterator[Figure]:
    """Two users, one of whom has more edges."""
    yield share_of_first(setting, "48 and 16 edges", (48, 16), 0.5)


def share_of_first(
    setting: Setting,
    name: str,
    edges: tuple[int, int],
    goal: float,
) -> Figure:
    """What the first of two users gets of a full server."""
    devices = [
        Device(0.03, user=user, jitter=0.1)
        for user, count in zip("ab", edges, strict=True)
        for _ in range(count)
    ]
    accelerator = Accelerator(((1, CROWD_STEP_S),), CROWD_BATCH, noise=0.02)
    times = setting.run(accelerator, devices, setting.seconds).trees_by_user
    share = len(times["a"]) / sum(map(len, times.values()))
    return Figure(name, "share of the first", share, f"{goal} +- 0.05", abs(share - goal) <= 0.05)


def slots_pay(setting: Setting) -> Iterator[Figure]:
    """Tokens with the pipeline over those without, where half of the edges or more can draft."""
    for edges, batch in SLOTS_EDGES:
        accelerator = Accelerator(((1, PAPER_STEP_S),), batch, noise=0.02)
        tokens = dict.fromkeys((True, False), 0)
        for seed in range(SLOTS_DRAWS):
            rng = random.Random(seed)
            rtts_s = [rng.uniform(*SLOTS_RTTS_S) for _ in range(edges)]
            devices = [Device(rtt_s, user=str(n), jitter=0.1) for n, rtt_s in enumerate(rtts_s)]
            for pipelined in tokens:
                which = replace(setting, pipelined=pipelined)
                record = which.run(accelerator, devices, setting.seconds * 32 / edges, seed)
                tokens[pipelined] += record.tokens
        ratio = tokens[True] / tokens[False]
        name = f"{edges} edges, batch {batch}"
        yield Figure(name, "tokens/s, slots / none", ratio, ">= 0.98", ratio >= 0.98)


def never_slower(setting: Setting) -> Iterator[Figure]:
    """One edge alone, over link delays and qualities of the draft model."""
    for name, accelerator, pass_s in (
        ("GPU-like step", Accelerator(((1, PAPER_STEP_S),), 32), PASS_S),
        ("CPU-like step", Accelerator(CPU_POINTS, 32), CPU_PASS_S),
    ):
        plain_s = accelerator.step_s(1)
        cells = [(rtt_s, quality) for rtt_s in RTTS_S for quality in QUALITIES]
        windows, speedups = [], []
        for seed in range(setting.seeds):
            for rtt_s, quality in cells:
                device = Device(rtt_s, pass_s, quality)
                record = setting.run(accelerator, [device], 1000 * plain_s, seed)
                windows.append(worst_window(record.trips[0], plain_s))
                speedups.append(record.tokens / record.elapsed_s * plain_s)
        slower = sum(window > 1.05 for window in windows) / len(windows)
        worst = max(windows)
        yield Figure(name, "worst 64 tokens / plain", worst, "<= 1.05", worst <= 1.05)
        yield Figure(name, "share of runs above 1.05", slower)
        yield Figure(name, "mean speedup", statistics.mean(speedups))
        yield Figure(name, "least speedup", min(speedups), ">= 0.95", min(speedups) >= 0.95)


SCENARIOS = (two_edges, crowd, newcomer, connections, slots_pay, never_slower)


def main() -> None:
    options = parse_options()
    rows: list[tuple[str, ...]] = []
    numbers: dict[str, float] = {}
    policies = [options.policy] if options.policy else list(POLICIES)
    for policy in policies:
        setting = Setting(
            policy,
            options.edges,
            seconds=10 if options.quick else 30,
            seeds=1 if options.quick else 4,
            pipelined=options.pipeline,
        )
        for scenario in SCENARIOS:
            # One edge alone never waits for a credit: the policy does not matter.
            if scenario is never_slower and policy != policies[-1]:
                continue
            for figure in scenario(setting):
                rows.append((policy, *figure.row()))
                numbers[f"{policy}: {figure.scenario}: {figure.name}"] = round(figure.value, 5)
    report(
        "simulated scheduling" + ("" if options.pipeline else ", pipeline off"),
        ("credits", "simulated scenario", "figure", "value", "goal", "met"),
        rows,
        numbers,
        options.json,
    )


def parse_options() -> argparse.Namespace:
    parser = option_parser("bench.scheduler", __doc__)
    parser.add_argument("--edges", type=int, default=1000, help="of the crowd, at most 10,000")
    parser.add_argument("--policy", choices=tuple(POLICIES), help="one policy of credits, not all")
    parser.add_argument("--pipeline", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--quick", action="store_true", help="shorter, and fewer seeds")
    options = parser.parse_args()
    if not 100 <= options.edges <= 10_000:
        parser.error(f"--edges is {options.edges}; the crowd has 100 to 10,000")
    return options


if __name__ == "__main__":
    main()
