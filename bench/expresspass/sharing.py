"""What many flows make of one link, and few flows of several: queues, loss, use, fairness."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from bench.expresspass.engine import PS_PER_US, Flow, Result, Run, simulate
from bench.expresspass.network import (
    DATA_SHARE,
    FRAME_BYTES,
    NAMES,
    TRANSPORTS,
    Network,
    dumbbell,
    multi_bottleneck,
    parking_lot,
)
from bench.expresspass.table import Claim, Plot, Table, nothing_lost

GBIT_S, DELAY_PS = 10, 10 * PS_PER_US
FROM_PS, UNTIL_PS = 20_000 * PS_PER_US, 60_000 * PS_PER_US
CROWDS = (1, 4, 16, 64, 256, 1024)
LINKS, OTHERS, FASTER = (1, 2, 4, 6), (1, 4, 16, 64), (1, 4)
SHORT_PS = 4 * PS_PER_US
FEW_START = 1 / 32  # start rate and weight of the authors' parking lot and multi-bottleneck
SHARE_TOLERANCE = 0.001  # the mean of 30,000 random sizes of credits


def steady(
    network: Network, paths: Sequence[Sequence[int]], start: float = 1 / 16
) -> tuple[Run, Result]:
    """Endless flows that all start at once: the run and its result."""
    flows = [Flow(0, -1, path) for path in paths]
    run = Run(network, flows, UNTIL_PS, FROM_PS, FROM_PS, start, start)
    return run, simulate(run)


def rates(result: Result) -> list[float]:
    """Payload of each flow, in Gbit/s, between the first sample and the last."""
    first, last = result.samples[0], result.samples[-1]
    pairs = zip(first.delivered_bytes, last.delivered_bytes, strict=True)
    elapsed_s = (last.time_ps - first.time_ps) / 1e12
    return [(after - before) * 8e-9 / elapsed_s for before, after in pairs]


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness: 1 if all are equal, 1/n if one has all."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


def crowd() -> Table:
    """Queue, loss, use and fairness of one link by the number of flows."""
    rows, lost, most_used, longest = [], 0, 0.0, 0
    queues: dict[str, list[tuple[float, float]]] = {NAMES[name]: [] for name in TRANSPORTS}
    for transport in TRANSPORTS:
        for count in CROWDS:
            network = Network(transport)
            run, result = steady(network, dumbbell(network, count, GBIT_S, DELAY_PS))
            port, used = result.ports[0], result.utilisation(run, 0)
            mean_bytes = port.byte_ps / (result.counts.end_ps - FROM_PS)
            rows.append(
                (
                    *(NAMES[transport], count, f"{used:.4f}", f"{jain(rates(result)):.3f}"),
                    *(f"{mean_bytes / 1e3:.1f}", f"{port.longest_bytes / 1e3:.1f}"),
                    *(result.counts.dropped, result.counts.dropped_credits),
                )
            )
            queues[NAMES[transport]].append((count, port.longest_bytes / 1e3))
            if transport == "expresspass":
                lost += result.counts.dropped
                most_used = max(most_used, used)
                longest = max(longest, port.longest_bytes)
    return Table(
        "crowd",
        "One link of 10 Gbit/s, round trip 60 us, by the number of endless flows: from 20 to 60 ms"
        " (packets lost: from the start); ExpressPass starts at 1/16",
        ("transport", "flows", "used", "Jain", "queue kB", "longest kB", "lost", "credits lost"),
        rows,
        [
            nothing_lost(lost),
            Claim("low buffers", f"never more than {longest} bytes", longest <= 8 * FRAME_BYTES),
            Claim(
                f"data takes at most 1538/1622 = {DATA_SHARE:.4f}",
                f"{most_used:.4f}",
                most_used <= DATA_SHARE + SHARE_TOLERANCE,
            ),
        ],
        {"queue": Plot("flows", "longest queue, kB", queues)},
        lost,
    )


@dataclass(frozen=True)
class Shared:
    """How flows share several links: the least used of them, and the part of one flow."""

    shape: str
    used: float
    share: float
    lost: int


def parking_lots(transport: str) -> Iterator[Shared]:
    """The part of the flow over all links, over half of the first link."""
    for links in LINKS:
        network = Network(transport)
        paths = parking_lot(network, links, GBIT_S, SHORT_PS)
        run, result = steady(network, paths, FEW_START)
        used = min(result.utilisation(run, link) for link in paths[0][1:-1])
        through, beside = rates(result)[:2]
        share = 2 * through / (through + beside)
        yield Shared(f"parking lot, {links}", used, share, result.counts.dropped)


def multi_bottlenecks(transport: str) -> Iterator[Shared]:
    """The part of the near flow, over an equal part."""
    for others in OTHERS:
        network = Network(transport)
        paths = multi_bottleneck(network, others, GBIT_S, SHORT_PS)
        run, result = steady(network, paths, FEW_START)
        of_flows = rates(result)
        share = of_flows[0] / sum(of_flows) * len(of_flows)
        name = f"multi-bottleneck, {others}"
        yield Shared(name, result.utilisation(run, 0), share, result.counts.dropped)


def faster_hosts(transport: str) -> Iterator[Shared]:
    """The part of the lesser of two flows, over a half."""
    for times in FASTER:
        network = Network(transport)
        run, result = steady(network, dumbbell(network, 2, GBIT_S, DELAY_PS, times))
        lesser, greater = sorted(rates(result))
        name = f"hosts {times} x as fast, 2 flows"
        share = 2 * lesser / (lesser + greater)
        yield Shared(name, result.utilisation(run, 0), share, result.counts.dropped)


def several() -> Table:
    """Flows over several full links beside flows over one of them, and hosts that outrun a link."""
    scenes = (parking_lots, multi_bottlenecks, faster_hosts)
    found = {name: [list(scene(name)) for scene in scenes] for name in TRANSPORTS}
    rows = [
        (NAMES[name], shared.shape, f"{shared.used:.4f}", f"{shared.share:.3f}", shared.lost)
        for name in TRANSPORTS
        for shared in chain(*found[name])
    ]
    lots, near, fast = found["expresspass"]
    lost = sum(shared.lost for shared in chain(lots, near, fast))
    least_used = min(shared.used for shared in lots) / DATA_SHARE
    least_near = min(min(shared.share, 1 / shared.share) for shared in near)
    least_fast = min(shared.share for shared in fast)
    return Table(
        "fairness",
        "Flows over several links of 10 Gbit/s; used: the least used; share: of the flow over all"
        " links over a half, of the near flow over an equal part, of the lesser flow over a half",
        ("transport", "shape", "used", "share", "lost"),
        rows,
        [nothing_lost(lost), *fairness_claims(least_used, least_near, least_fast)],
        lost=lost,
    )


def fairness_claims(used: float, near: float, fast: float) -> list[Claim]:
    """None of the paper's abstract: goals of ours."""
    return [
        Claim(
            "goal: links of the parking lot are used for 0.95 of 1538/1622",
            f"{used:.3f}",
            used >= 0.95,
            "the flow over all links loses credits at each of them, and the others are slow to"
            " take over what it leaves",
        ),
        Claim(
            "goal: the near flow's part is equal within a factor of 1.5",
            f"{near:.3f}",
            near >= 2 / 3,
            "no flow falls below a credit a round trip: 64 of them overfill the far link",
        ),
        Claim(
            "goal: hosts faster than the link share it within a factor of 1.5",
            f"{fast:.3f}",
            fast >= 2 / 3,
            "the greater flow's credits come as evenly as the full queue has room, so that the"
            " lesser one's find none",
        ),
    ]
