"""Each row's process: mean and spread of its confidence, found on the server-only columns alone.

    python -m runtime.bench.standin.calibration

finds them anew and writes them to calibrated.json: with the server-only method's tree, tokens per
verification and their deviation are those of the row. What else there is of a process is the
embedded pair's (`python -m bench.standin_fit`).
"""

import json
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean, pstdev

from runtime.bench.standin.agreement import Agreement, Process
from runtime.bench.standin.drafter import StandInDrafter
from runtime.bench.standin.gain import gains
from runtime.bench.standin.paper import NODES, TABLE_1, Row, times
from runtime.edge.draft.speculation import TreeShape

FILE = Path(__file__).with_name("calibrated.json")
SEED = 1
BEAMS, WIDTH = 6, 6  # nodes of a pass, children of a node: the defaults of the product
# Of the embedded pair, `python -m bench.standin_fit`; its mean and deviation are replaced.
FITTED = Process(-0.179, 1.344, 0.059, 0.048, (0.996, 0.379), 1.1, 1.26, 0.141)
TOLERANCE = 0.02  # tokens
ROUNDS = 25
STEP = 0.05  # of a parameter, to see what it does


def name(row: Row) -> str:
    return f"{row.pair} {row.task}"


def server_only_shape(row: Row) -> TreeShape:
    """The server-only method's tree of this row."""
    return TreeShape(NODES, BEAMS, times()[row.pair].depth, WIDTH)


@lru_cache(maxsize=4)
def agreement(row: str) -> Agreement:
    """The calibrated one of a row, by name. Raises ValueError for an unknown one."""
    found = json.loads(FILE.read_text(encoding="utf-8"))
    if row not in found:
        raise ValueError(f"no row {row!r}; there are {', '.join(found)}")
    mean, deviation = (found[row][key] for key in ("mean", "deviation"))
    return Agreement.of(replace(FITTED, mean=mean, deviation=deviation), SEED)


def server_only_tokens(row: Row) -> float:
    """Tokens of a verification of the server-only method over the whole text, as calibrated."""
    given: list[float] = json.loads(FILE.read_text(encoding="utf-8"))[name(row)]["gives"]
    return given[0]


def tokens_per_verification(process: Process, shape: TreeShape) -> tuple[float, float]:
    """Mean and deviation over the whole text."""
    drafter = StandInDrafter(Agreement.of(process, SEED), 0.0, [])
    gained = gains(drafter, shape)
    return fmean(gained), pstdev(gained)


def calibrate(row: Row) -> tuple[Process, tuple[float, float]]:
    """The process that is nearest to the row, and what it gives: Newton's method, damped."""
    shape, process = server_only_shape(row), replace(FITTED, mean=1.0, deviation=1.5)
    best = process, tokens_per_verification(process, shape)
    now = best
    for _ in range(ROUNDS):
        if _miss(best[1], row) < TOLERANCE:
            break
        now = _stepped(*now, row, shape)
        best = min(best, now, key=lambda one: _miss(one[1], row))
    return best


def _miss(got: tuple[float, float], row: Row) -> float:
    """The deviation counts half: it says less."""
    mean, deviation = (a - b for a, b in zip(got, row.server_only, strict=True))
    return float((mean**2 + (deviation / 2) ** 2) ** 0.5)


def _stepped(
    process: Process, got: tuple[float, float], row: Row, shape: TreeShape
) -> tuple[Process, tuple[float, float]]:
    """One step towards the row, along what both parameters are seen to do."""
    by_mean = tokens_per_verification(replace(process, mean=process.mean + STEP), shape)
    spread = process.deviation + STEP
    by_deviation = tokens_per_verification(replace(process, deviation=spread), shape)
    a, c = ((x - y) / STEP for x, y in zip(by_mean, got, strict=True))
    b, d = ((x - y) / STEP for x, y in zip(by_deviation, got, strict=True))
    e, f = (x - y for x, y in zip(row.server_only, got, strict=True))
    determinant = a * d - b * c or 1e-9
    mean = min(max((d * e - b * f) / determinant, -0.5), 0.5)
    deviation = min(max((a * f - c * e) / determinant, -0.4), 0.4)
    moved = replace(
        process,
        mean=round(process.mean + mean / 2, 4),
        deviation=round(min(max(process.deviation + deviation / 2, 0.1), 6.0), 4),
    )
    return moved, tokens_per_verification(moved, shape)


def main() -> None:
    """Calibrate every row, or those whose names are given, and write the file."""
    found = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    for row in TABLE_1:
        if len(sys.argv) > 1 and name(row) not in sys.argv[1:]:
            continue
        process, (mean, deviation) = calibrate(row)
        found[name(row)] = {
            "mean": process.mean,
            "deviation": process.deviation,
            "gives": [round(mean, 3), round(deviation, 3)],
            "paper": list(row.server_only),
        }
        print(name(row), found[name(row)], flush=True)
        FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
