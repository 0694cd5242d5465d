"""How long a newcomer takes to its half of a link, by the link's speed."""

from collections.abc import Sequence
from statistics import median

from bench.expresspass.engine import PS_PER_US, Flow, Result, Run, simulate
from bench.expresspass.network import NAMES, TRANSPORTS, Network, dumbbell
from bench.expresspass.table import Claim, Line, Plot, Table, nothing_lost

SPEEDS = (10, 40, 100)
RTT_PS = 100 * PS_PER_US
HOPS = 3
ALONE_PS, TOGETHER_PS = 30_000 * PS_PER_US, 300_000 * PS_PER_US
HALF, NEAR, HELD_RTTS = 0.5, 0.1, 20
TRIES = 3
START = 1 / 2  # start rate and weight, as in the authors' dumbbell


def convergence() -> Table:
    """Two flows over one link, round trip 100 us, the second 30 ms after the first."""
    rows, first_hits, lost = [], {}, 0
    plots: dict[str, Plot] = {}
    for gbit_s in SPEEDS:
        shares: dict[str, Line] = {}
        for transport in TRANSPORTS:
            tries = [two_flows(transport, gbit_s, number) for number in range(TRIES)]
            curves = [shares_of_newcomer(result) for result in tries]
            first = [first_near(curve, 1) for curve in curves]
            held = [first_near(curve, HELD_RTTS) for curve in curves]
            rows.append((NAMES[transport], gbit_s, middle(first), middle(held)))
            first_hits[transport, gbit_s] = middle(first)
            shares[NAMES[transport]] = list(enumerate(curves[0][:600]))
            lost += sum(result.counts.dropped for result in tries) * (transport == "expresspass")
        plots[f"convergence-{gbit_s}"] = Plot(
            "round trips since the second flow began", "its share", shares, log_y=False
        )
    ratios = [first_hits["dctcp", g] / max(1, first_hits["expresspass", g]) for g in SPEEDS]
    by_speed = ", ".join(f"{ratio:.0f} x at {g}" for ratio, g in zip(ratios, SPEEDS, strict=True))
    return Table(
        "convergence",
        "Convergence, in round trips of 100 us: the newcomer's share of what both are allowed"
        " (credit rate, or window) is within 0.4 to 0.6 for the first time, and for 20 in a row;"
        f" medians of {TRIES}",
        ("transport", "Gbit/s", "first", "held"),
        rows,
        [
            Claim("up to 80 x faster than DCTCP at 10 Gbit/s", by_speed, ratios[0] >= 80),
            Claim("the gap grows with the speed", by_speed, ratios == sorted(ratios)),
            nothing_lost(lost),
        ],
        plots,
        lost,
    )


def two_flows(transport: str, gbit_s: int, number: int) -> Result:
    network = Network(transport)
    paths = dumbbell(network, 2, gbit_s, RTT_PS // (2 * HOPS))
    joins_ps = ALONE_PS + number * RTT_PS // TRIES
    flows = [Flow(0, -1, paths[0]), Flow(joins_ps, -1, paths[1])]
    return simulate(
        Run(
            network,
            flows,
            until_ps=joins_ps + TOGETHER_PS,
            measure_from_ps=joins_ps,
            sample_every_ps=RTT_PS,
            start_rate=START,
            start_weight=START,
            seed=number,
        )
    )


def shares_of_newcomer(result: Result) -> Sequence[float]:
    """Of what both are allowed, once a round trip from the first sample after it began."""
    joined = next(at for at, sample in enumerate(result.samples) if sample.time_ps >= ALONE_PS)
    return [sample.allowed[1] / sum(sample.allowed) for sample in result.samples[joined:]]


def first_near(shares: Sequence[float], in_a_row: int) -> int:
    """The round trip from which on so many shares in a row are near a half; the end if none are."""
    near = [abs(share - HALF) <= NEAR for share in shares]
    ends = range(len(near) - in_a_row + 1)
    return next((at for at in ends if all(near[at : at + in_a_row])), len(near))


def middle(values: Sequence[int]) -> int:
    return round(median(values))
