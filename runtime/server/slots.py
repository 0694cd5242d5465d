"""When a tree that is still to be drafted can be verified, foreseen step by step.

The server takes what has come, oldest first, and begins as soon as there is anything. Pure
arithmetic over predicted times.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence

MOST_STEPS = 64  # so far ahead it is looked


def first_slot(
    arrival_s: float,
    start_s: float,
    ahead: int,
    plain: int,
    due_s: Sequence[float],
    batch: int,
    step_s: Callable[[int], float],
) -> tuple[float, float]:
    """The first step that a tree can be in which comes at `arrival_s` or later.

    The next step may begin at `start_s` with `ahead` trees, others come at the times `due_s`, and
    `plain` sessions that need no draft are in every step. A step holds `batch` sessions and takes
    step_s(trees) seconds with so many trees. Returns when the tree's step begins, which is
    `arrival_s` where the server would be idle by then, and how late the tree may come at most if
    that step is not to begin without it.
    """
    due_s = sorted(due_s)
    for _ in range(MOST_STEPS):
        came = bisect_right(due_s, start_s)
        ahead, due_s = ahead + came, due_s[came:]
        next_s = due_s[0] if due_s else float("inf")
        if start_s >= arrival_s and ahead + plain < batch:
            return start_s, start_s if ahead + plain else next_s
        if ahead + plain:
            taken = min(ahead, max(batch - plain, 1))
            ahead -= taken
            start_s += step_s(taken)
        elif arrival_s <= next_s:
            return arrival_s, next_s
        else:
            start_s = next_s
    slot_s = max(start_s, arrival_s)
    return slot_s, slot_s
