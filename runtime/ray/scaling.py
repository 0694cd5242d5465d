"""How many replicas there should be. Knows no Ray."""

import math
from collections.abc import Collection
from typing import Any

# A replica is given up if the others would then be in use by no more than this share.
STILL_EASY = 0.5


def wanted(now: int, lines: Collection[float], loads: Collection[float]) -> int:
    """Replicas, of which there are `now`, that keep lines short and do not stand idle.

    Of each replica that has told: lines, its requests that wait, over as many as may; loads, its
    requests, over as many as it runs at once. One that still loads has told nothing yet: it is
    counted in `now`, so that its start is not taken for more need.
    """
    if not loads:
        return now
    longer = math.ceil(sum(lines))
    if longer > now:
        return longer
    is_easy = now > 1 and sum(loads) <= STILL_EASY * (now - 1)
    return now - 1 if is_easy else now


def policy(context: Any) -> tuple[int, dict[str, Any]]:
    """Ray's autoscaling policy: its AutoscalingContext to (replicas, nothing to remember).

    Ray itself keeps to the least, the most and the delays.
    """
    told = context.aggregated_metrics
    lines, loads = (told.get(name, {}).values() for name in ("line", "load"))
    return wanted(context.target_num_replicas, lines, loads), {}
