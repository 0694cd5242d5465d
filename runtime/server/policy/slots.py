"""When a tree that is still to be drafted can be verified, foreseen step by step.

The server takes what has come, oldest first, and begins as soon as there is anything. An example
with steps of 100 ms and two trees each: the running step ends at 60 ms, three trees have come, and
one more is expected at 90. A tree that could come at 70 ms at the soonest misses the step at 60;
the one at 160 begins with the third tree and the one of 90, and is full; so its slot is the step at
260. It may as well be drafted until 260 ms: then nothing else stands in line, and it could be later
still if the server may wait. Pure arithmetic over predicted times.
"""

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence

MOST_STEPS = 64  # that are foreseen


class Expected:
    """When trees are expected that are still to come, in order."""

    def __init__(self) -> None:
        self._times_s: list[float] = []

    def __len__(self) -> int:
        return len(self._times_s)

    def after(self, time_s: float) -> list[float]:
        """The times after this one, in order."""
        return self._times_s[bisect_right(self._times_s, time_s) :]

    def add(self, time_s: float) -> None:
        """One more tree is expected then."""
        insort(self._times_s, time_s)

    def discard(self, time_s: float) -> None:
        """The tree that was expected then has come, or never will."""
        at = bisect_left(self._times_s, time_s)
        assert self._times_s[at : at + 1] == [time_s], f"no tree is expected at {time_s}"
        del self._times_s[at]


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

    The next step may begin at `start_s` with `ahead` trees and `plain` requests that need no draft
    and stand in line again after every step; others come at the sorted times `due_s`. A step holds
    `batch` requests and takes step_s(requests) seconds with so many. Returns when the tree's step
    begins, which is `arrival_s` where the server would be idle by then, and how late the tree may
    come at most if that step is not to begin without it.
    """
    ahead, came, full_s = ahead + plain, 0, step_s(batch)
    for _ in range(MOST_STEPS):
        come = bisect_right(due_s, start_s, came)
        ahead, came = ahead + come - came, come
        next_s = due_s[came] if came < len(due_s) else math.inf
        if start_s >= arrival_s and ahead < batch:
            return start_s, start_s if ahead or plain else next_s
        if ahead:
            taken = min(ahead, batch)
            ahead -= taken
            start_s += full_s if taken == batch else step_s(taken)
            if start_s < arrival_s:  # later they stand in line behind the tree
                ahead += min(plain, taken)
        elif arrival_s <= next_s:
            return arrival_s, next_s
        else:
            start_s = next_s
    slot_s = max(start_s, arrival_s)
    return slot_s, slot_s
