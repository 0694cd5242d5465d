"""Completion times of flows of realistic sizes on a fat-tree."""

from collections.abc import Mapping, Sequence

from bench.expresspass.engine import PS_PER_US, Flow, Result, Run, simulate
from bench.expresspass.network import NAMES, TRANSPORTS, FatTree, Network
from bench.expresspass.table import Claim, Table, nothing_lost
from bench.expresspass.workloads import Workload, on_fat_tree

LOAD = 0.6
# Of ExpressPass, its start rate and weight too: the authors' for the fat-tree, and the highest.
SERIES = (
    ("ExpressPass", "expresspass", 1 / 16),
    ("ExpressPass, 1/2", "expresspass", 1 / 2),
    *((NAMES[name], name, 1 / 16) for name in TRANSPORTS[1:]),
)
SIZES = (("S", 10_000), ("M", 100_000), ("L", 1_000_000), ("XL", 10**18))  # below so many bytes
LEAST_EVENTS_PER_S, MOST_S, ALL_FLOWS = 2e6, 600, 100_000

WHY = {
    "S": "credits come 16, or 2, frames apart at first, TCP's first ten packets at once",
    "M": "long flows that share a link with one get as much of it; DX's give way, and take longer",
}

Times = Mapping[str, Sequence[float]]  # by size, in microseconds, sorted


def completion(workload: Workload, count: int) -> Table:
    """`count` flows of one workload under each transport: the same flows on the same paths."""
    rows: list[tuple[object, ...]] = []
    p99s, lost, speed = {}, 0, None
    for name, transport, start in SERIES:
        tree = FatTree(Network(transport))
        flows = on_fat_tree(tree, workload, count, LOAD, seed=1)
        result = simulate(Run(tree.network, flows, start_rate=start, start_weight=start))
        times = by_size(flows, result)
        for size, values in times.items():
            p99s[name, size] = quantile(values, 0.99)
            rows.append((name, size, len(values), *cells(values), ""))
        rows.append((name, "all", sum(map(len, times.values())), "", "", "", result.counts.dropped))
        if transport == "expresspass":
            unfinished = sum(flow.finished_ps < 0 for flow in result.flows)
            lost += result.counts.dropped + unfinished
            speed = speed or fast_enough(result, count)
    return Table(
        f"completion: {workload.name}",
        f"Completion times in us, {workload.name} (mean {workload.mean_bytes / 1e3:.0f} kB),"
        f" {count} flows on a fat-tree of 192 hosts, {LOAD} of the racks' links up",
        ("transport", "size", "flows", "mean", "p50", "p99", "lost"),
        rows,
        [nothing_lost(lost), *ahead(p99s), *([speed] if speed else [])],
        lost=lost,
    )


def by_size(flows: Sequence[Flow], result: Result) -> Times:
    """From a flow's start until all of its bytes are there, of those that ended."""
    times: dict[str, list[float]] = {name: [] for name, _ in SIZES}
    for flow, ended in zip(flows, result.flows, strict=True):
        name = next(name for name, limit in SIZES if flow.n_bytes < limit)
        if ended.finished_ps >= 0:
            times[name].append((ended.finished_ps - flow.start_ps) / PS_PER_US)
    return {name: sorted(values) for name, values in times.items() if values}


def quantile(values: Sequence[float], share: float) -> float:
    """Of sorted values."""
    return values[min(int(share * len(values)), len(values) - 1)]


def cells(values: Sequence[float]) -> tuple[str, str, str]:
    mean = sum(values) / len(values)
    return f"{mean:.1f}", f"{quantile(values, 0.5):.1f}", f"{quantile(values, 0.99):.1f}"


def ahead(p99s: Mapping[tuple[str, str], float]) -> list[Claim]:
    """Small and medium flows end sooner than under any of the others, at the 99th percentile."""
    claims = []
    ours, others = [name for name, *_ in SERIES[:2]], [name for name, *_ in SERIES[2:]]
    for name, size in ((name, size) for size in ("S", "M") for name in ours):
        if (name, size) not in p99s:
            continue
        times = {other: p99s[other, size] / p99s[name, size] for other in others}
        found = ", ".join(f"{other} {value:.2f} x" for other, value in times.items())
        said = f"{size} flows end sooner under {name} (p99s over its)"
        claims.append(Claim(said, found, min(times.values()) > 1, WHY[size]))
    return claims


def fast_enough(result: Result, count: int) -> Claim:
    """Our own goals: 2 million packet events a second, 100,000 flows in ten minutes."""
    arrivals = result.counts.arrivals
    events_per_s = arrivals / result.cpu_s
    met = events_per_s >= LEAST_EVENTS_PER_S and result.cpu_s <= MOST_S
    found = (
        f"{result.cpu_s:.0f} s of one core for {count} flows, {arrivals / 1e6:.0f} M packet events,"
        f" {events_per_s / 1e6:.1f} M a second"
    )
    why = "" if count >= ALL_FLOWS else f"{count} flows are run here"
    return Claim("goal: 100,000 flows in 600 s, 2 M packet events a second", found, met, why)
