"""Links and the shapes that the experiments join them to. Knows no flows and no time."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

TRANSPORTS = ("expresspass", "dctcp", "hull", "dx")
NAMES = {"expresspass": "ExpressPass", "dctcp": "DCTCP", "hull": "HULL", "dx": "DX"}

FRAME_BYTES, PAYLOAD_BYTES, CREDIT_BYTES = 1538, 1460, 84
DATA_SHARE = FRAME_BYTES / (FRAME_BYTES + CREDIT_BYTES)  # what credits leave of a link
SWITCH_FRAMES, HOST_FRAMES = 250, 1000  # that a queue holds, at 10 Gbit/s
MARK_FRAMES = 65  # DCTCP, section 3.4, at 10 Gbit/s
PHANTOM_BYTES = 1000  # HULL's, at 1 Gbit/s


@dataclass(frozen=True)
class Port:
    """One direction of a link, and the queue before it."""

    ps_per_byte: int
    delay_ps: int
    queue_bytes: int
    mark_bytes: int
    phantom_bytes: int


@dataclass
class Network:
    """Ports in pairs: a link's two directions are n and n ^ 1."""

    transport: str
    ports: list[Port] = field(default_factory=list)

    def link(
        self, gbit_s: int, delay_ps: int, frames: int = SWITCH_FRAMES, back: int = SWITCH_FRAMES
    ) -> int:
        """Adds a link; the port of its first direction. Queues grow with the speed."""
        if 8000 % gbit_s:
            raise ValueError(f"{gbit_s} Gbit/s: a byte must take whole picoseconds")
        for room in (frames, back):
            self.ports.append(
                Port(
                    ps_per_byte=8000 // gbit_s,
                    delay_ps=delay_ps,
                    queue_bytes=room * FRAME_BYTES * max(gbit_s, 10) // 10,
                    mark_bytes=self._only("dctcp", MARK_FRAMES * FRAME_BYTES * gbit_s // 10),
                    phantom_bytes=self._only("hull", PHANTOM_BYTES * gbit_s),
                )
            )
        return len(self.ports) - 2

    def host_link(self, gbit_s: int, delay_ps: int) -> int:
        """From a host to its switch."""
        return self.link(gbit_s, delay_ps, frames=HOST_FRAMES)

    def _only(self, transport: str, value: int) -> int:
        return value if self.transport == transport else 0


def dumbbell(
    network: Network, pairs: int, gbit_s: int, delay_ps: int, times: int = 1
) -> list[list[int]]:
    """Pairs of hosts on two switches: the paths from left to right, all over link 0.

    The hosts' links are so many `times` as fast.
    """
    middle = network.link(gbit_s, delay_ps)
    ends = [[network.host_link(times * gbit_s, delay_ps) for _ in range(2)] for _ in range(pairs)]
    return [[left, middle, right ^ 1] for left, right in ends]


def parking_lot(network: Network, links: int, gbit_s: int, delay_ps: int) -> list[list[int]]:
    """A row of switches: the path over all of their links, then one over each link alone."""
    row = [network.link(gbit_s, delay_ps) for _ in range(links)]
    hosts = [network.host_link(gbit_s, delay_ps) for _ in range(2 * links + 2)]
    crossing = [[hosts[2 * at], link, hosts[2 * at + 1] ^ 1] for at, link in enumerate(row)]
    return [[hosts[-2], *row, hosts[-1] ^ 1], *crossing]


def multi_bottleneck(network: Network, others: int, gbit_s: int, delay_ps: int) -> list[list[int]]:
    """One sender: the path to a host nearby, then those to hosts behind one more link."""
    source = network.host_link(gbit_s, delay_ps)
    middle = network.link(gbit_s, delay_ps)
    near = network.host_link(gbit_s, delay_ps)
    far = [network.host_link(gbit_s, delay_ps) for _ in range(others)]
    return [[source, near ^ 1], *([source, middle, host ^ 1] for host in far)]


def star(network: Network, senders: int, gbit_s: int, delay_ps: int) -> list[list[int]]:
    """Hosts on one switch: the paths to the first of them, which is link 0."""
    sink = network.host_link(gbit_s, delay_ps)
    hosts = [network.host_link(gbit_s, delay_ps) for _ in range(senders)]
    return [[host, sink ^ 1] for host in hosts]


@dataclass
class FatTree:
    """192 hosts, 32 racks in 8 pods, 16 aggregation and 8 core switches, links of 10 Gbit/s, 4 us.

    A rack has 6 hosts and 2 links up. As in the authors' simulation; hosts add 1 us when they send.
    """

    network: Network
    hosts: list[int] = field(init=False)
    up: list[list[int]] = field(init=False)  # [rack][aggregation switch of its pod]
    core: list[list[list[int]]] = field(init=False)  # [pod][aggregation switch][link up]

    RACKS, HOSTS_A_RACK, PODS = 32, 6, 8
    GBIT_S, DELAY_PS = 10, 4_000_000

    def __post_init__(self) -> None:
        link, count = self.network.link, self.RACKS * self.HOSTS_A_RACK
        self.hosts = [
            self.network.host_link(self.GBIT_S, self.DELAY_PS + 1_000_000) for _ in range(count)
        ]
        speed = (self.GBIT_S, self.DELAY_PS)
        self.up = [[link(*speed) for _ in range(2)] for _ in range(self.RACKS)]
        self.core = [[[link(*speed) for _ in range(4)] for _ in range(2)] for _ in range(self.PODS)]

    def path(self, source: int, sink: int, dice: random.Random) -> Sequence[int]:
        """One of the shortest, as a hash of the flow would choose; answers come back along it."""
        racks = [host // self.HOSTS_A_RACK for host in (source, sink)]
        pods = [rack // (self.RACKS // self.PODS) for rack in racks]
        first, last = self.hosts[source], self.hosts[sink] ^ 1
        if racks[0] == racks[1]:
            return [first, last]
        side = dice.randrange(2)  # aggregation switch n of every pod has the same four cores
        rise, fall = self.up[racks[0]][side], self.up[racks[1]][side] ^ 1
        if pods[0] == pods[1]:
            return [first, rise, fall, last]
        lane = dice.randrange(4)
        over = [self.core[pods[0]][side][lane], self.core[pods[1]][side][lane] ^ 1]
        return [first, rise, *over, fall, last]
