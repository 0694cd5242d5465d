"""Many hosts that answer one at the same moment."""

from bench.expresspass.engine import PS_PER_US, Flow, Run, simulate
from bench.expresspass.network import (
    DATA_SHARE,
    FRAME_BYTES,
    NAMES,
    PAYLOAD_BYTES,
    TRANSPORTS,
    Network,
    star,
)
from bench.expresspass.table import Claim, Plot, Table, nothing_lost

GBIT_S, DELAY_PS = 10, 10 * PS_PER_US
ANSWER_BYTES = 64_000
SENDERS = (8, 64, 256, 1024)
START = 1 / 2


def incast() -> Table:
    """64 kB from each of many hosts to one, all at once, through one switch."""
    rows, lost, most = [], 0, 0.0
    lines: dict[str, list[tuple[float, float]]] = {NAMES[name]: [] for name in TRANSPORTS}
    for transport in TRANSPORTS:
        for count in SENDERS:
            network = Network(transport)
            paths = star(network, count, GBIT_S, DELAY_PS)
            flows = [Flow(0, ANSWER_BYTES, path) for path in paths]
            result = simulate(Run(network, flows, start_rate=START))
            took_ps = max(flow.finished_ps for flow in result.flows)
            times = took_ps / least_ps(count)
            resent = sum(flow.resent for flow in result.flows)
            rows.append(
                (
                    *(NAMES[transport], count, f"{took_ps / 1e9:.2f}", f"{times:.2f}"),
                    *(f"{result.ports[1].longest_bytes / 1e3:.0f}", result.counts.dropped, resent),
                )
            )
            lines[NAMES[transport]].append((count, times))
            if transport == "expresspass":
                lost += result.counts.dropped
                most = times * DATA_SHARE
    return Table(
        "incast",
        "Incast: 64 kB from each of many hosts to one, 10 Gbit/s, round trip 40 us; least: the"
        " link filled with data from the first moment, and one and a half round trips",
        ("transport", "senders", "ms", "of the least", "longest kB", "lost", "resent"),
        rows,
        [
            nothing_lost(lost),
            Claim(
                f"{SENDERS[-1]} senders end about as fast as credits allow (goal: 1.10 of it)",
                f"{most:.2f}",
                most <= 1.10,
            ),
        ],
        {"incast": Plot("senders", "time over the least", lines)},
        lost,
    )


def least_ps(count: int) -> float:
    frames = -(-ANSWER_BYTES // PAYLOAD_BYTES)
    return count * frames * FRAME_BYTES * 8000 / GBIT_S + 6 * DELAY_PS
