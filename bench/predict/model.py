"""From what a kernel is made of to seconds on a card: the terms that the package names."""

import math
from dataclasses import asdict, dataclass

from bench.predict.cards import (
    LATENCY_S,
    LAUNCH_S,
    PROGRAMS,
    RATES,
    REGISTERS,
    RESERVED_BYTES,
    WARP_MMA_SHARE,
    WARPS,
    Card,
)
from bench.predict.machine_code import Code


@dataclass(frozen=True)
class Stream:
    """What one launch moves, and in how many equal pieces of work that are never split."""

    memory_bytes: float
    through_bytes: float  # loaded by programs, from memory or from the L2
    items: int
    turns: float | None = None  # of an item; if None, as many as load its share
    partial_bytes: float = 0.0  # of results that one launch leaves in the L2 for the next


@dataclass(frozen=True)
class Terms:
    """Seconds."""

    memory: float
    l2: float
    flight: float
    issue: float
    pipe: float
    matrix: float
    alone: float

    @property
    def bound(self) -> str:
        return max(self.seconds, key=self.seconds.__getitem__)

    @property
    def seconds(self) -> dict[str, float]:
        return asdict(self)

    @property
    def total_s(self) -> float:
        return max(self.seconds.values()) + LATENCY_S + LAUNCH_S


def resident(code: Code, card: Card) -> int:
    """Programs that fit side by side on a multiprocessor."""
    # Registers are given to warps in units of 256.
    warp_registers = math.ceil(code.registers * 32 / 256) * 256
    by_registers = REGISTERS // (warp_registers * code.warps)
    by_shared = card.shared_bytes // (code.shared_bytes + RESERVED_BYTES)
    return max(1, min(by_registers, by_shared, WARPS // code.warps, PROGRAMS))


def terms(code: Code, stream: Stream, card: Card, programs: int) -> Terms:
    """Of one launch of that many programs."""
    side_by_side = min(resident(code, card), math.ceil(programs / card.multiprocessors))
    slots = min(card.multiprocessors * side_by_side, programs)
    whole, rest = divmod(stream.items, slots)
    busiest = whole * side_by_side + math.ceil(rest / card.multiprocessors)
    turns = turns_of_an_item(code, stream)
    turns_there = busiest * turns
    warp_clocks = turns_there * code.warps / card.clock_hz
    pipes = [code.by_unit.get(unit, 0) / rate for unit, rate in RATES.items()]
    share = WARP_MMA_SHARE if code.warp_mma and card.arch != "sm_80" else 1.0
    turn_matrix_s = code.turn_flops / (card.flops_per_s * share / card.multiprocessors)
    turn_issue_s = code.instructions * max(code.warps / 4, 2) / card.clock_hz
    turn_s = turn_matrix_s + turn_issue_s
    if code.products_ahead:
        turn_s = max(turn_matrix_s, turn_issue_s)
    if not code.loads_ahead:
        turn_s += LATENCY_S
    under_way = min(side_by_side, busiest) * code.flight_bytes
    # What was streamed leaves the L2 first; of the rest what it cannot hold goes by memory.
    spilled_bytes = max(0.0, stream.partial_bytes - card.l2_bytes)
    return Terms(
        memory=(stream.memory_bytes + spilled_bytes) / card.bytes_per_s,
        l2=(stream.through_bytes + stream.partial_bytes) / card.l2_bytes_per_s,
        flight=turns_there * code.turn_bytes / under_way * LATENCY_S if under_way else 0.0,
        issue=warp_clocks * code.instructions / 4,
        pipe=warp_clocks * max(pipes),
        matrix=turns_there * turn_matrix_s,
        alone=(whole + (rest > 0)) * turns * turn_s,
    )


def turns_of_an_item(code: Code, stream: Stream) -> float:
    if not code.loops or not code.turn_bytes:
        return 1.0
    if stream.turns is not None:
        return stream.turns
    return stream.through_bytes / code.turn_bytes / stream.items
