"""Sizes of flows in data centres, as published, and when flows come.

The points are those of the ExpressPass authors' simulation, which read them off the figures of:
data mining: VL2 (Greenberg et al., SIGCOMM 2009); web search: DCTCP (Alizadeh et al., SIGCOMM
2010); cache follower and web server: Facebook (Roy et al., SIGCOMM 2015).
"""

import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from bench.expresspass.engine import PS_PER_S, Flow
from bench.expresspass.network import FRAME_BYTES, PAYLOAD_BYTES, FatTree


@dataclass(frozen=True)
class Workload:
    """Flow sizes: (bytes, share of the flows that are no larger), straight between the points."""

    name: str
    points: Sequence[tuple[int, float]]

    def size(self, share: float) -> int:
        """The size in bytes that so large a share of the flows does not exceed; at least 1."""
        at = max(1, bisect_left([above for _, above in self.points], share))
        (low, below), (high, above) = self.points[at - 1 : at + 1]
        return max(1, round(low + (high - low) * (share - below) / (above - below)))

    @property
    def mean_bytes(self) -> float:
        steps = pairwise(self.points)
        return sum((above - below) * (low + high) / 2 for (low, below), (high, above) in steps)


WORKLOADS = (
    Workload(
        "web server",
        (
            *((150, 0.0), (300, 0.12), (300, 0.2), (600, 0.2), (1000, 0.3), (2000, 0.4)),
            *((3100, 0.5), (6000, 0.6), (20000, 0.71), (60000, 0.8), (150000, 0.82)),
            *((300000, 0.9), (500000, 1.0)),
        ),
    ),
    Workload(
        "cache follower",
        (
            *((70, 0.0), (70, 0.01), (150, 0.015), (150, 0.04), (300, 0.08), (350, 0.1)),
            *((350, 0.19), (450, 0.2), (500, 0.28), (600, 0.3), (700, 0.35), (1100, 0.4)),
            *((2000, 0.42), (10000, 0.48), (30000, 0.5), (100000, 0.52), (200000, 0.6)),
            *((400000, 0.68), (600000, 0.7), (1500000, 0.701), (2000000, 0.8)),
            *((2400000, 0.9), (3000000, 1.0)),
        ),
    ),
    Workload(
        "web search",
        (
            *((9000, 0.0), (9000, 0.15), (18582, 0.2), (28140, 0.3), (38913, 0.4)),
            *((77468, 0.53), (200000, 0.6), (1000000, 0.7), (2000000, 0.8)),
            *((5000000, 0.9), (10000000, 0.97), (30000000, 1.0)),
        ),
    ),
    Workload(
        "data mining",
        (
            *((100, 0.0), (10000, 0.8), (152522, 0.8346), (390541, 0.9)),
            *((3223542, 0.953846), (100000000, 0.99), (1000000000, 1.0)),
        ),
    ),
)


def on_fat_tree(
    tree: FatTree, workload: Workload, count: int, load: float, seed: int
) -> list[Flow]:
    """Poisson arrivals between any two hosts that fill `load` of the racks' links up, headers too.

    The same seed gives the same flows on the same paths, whatever the transport.
    """
    dice = random.Random(seed)
    hosts = len(tree.hosts)
    wire_bits = 8 * workload.mean_bytes * FRAME_BYTES / PAYLOAD_BYTES
    leaving = (hosts - tree.HOSTS_A_RACK) / (hosts - 1)
    uplinks_bit_s = 2 * tree.RACKS * tree.GBIT_S * 1e9
    gap_ps = PS_PER_S * wire_bits * leaving / (load * uplinks_bit_s)
    flows, now_ps = [], 0.0
    for _ in range(count):
        now_ps += dice.expovariate(1) * gap_ps
        source, sink = dice.sample(range(hosts), 2)
        size = workload.size(dice.random())
        flows.append(Flow(round(now_ps), size, tree.path(source, sink, dice)))
    return flows
