"""What every benchmark needs: a timing with its spread, the machine, a table, JSON.

It measures what it is given and judges nothing; checking the result first is the caller's duty.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# Reported when a benchmark has imported them; the harness itself loads none.
LIBRARIES = ("torch", "triton", "transformers", "numpy")


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median of several samples, and the quartiles around it."""

    median_s: float
    low_s: float
    high_s: float

    @property
    def median_us(self) -> float:
        """The median in microseconds."""
        return self.median_s * 1e6

    def __str__(self) -> str:
        return f"{self.median_us:.2f} us [{self.low_s * 1e6:.2f}-{self.high_s * 1e6:.2f}]"


def no_wait() -> None:
    """For calls that are done when they return."""


def measure(
    call: Callable[[], object],
    samples: int = 15,
    sample_s: float = 0.02,
    synchronize: Callable[[], None] = no_wait,
) -> Timing:
    """Time a call: `samples` samples of about `sample_s` seconds each, after one to warm up.

    `synchronize` waits for what the calls have left running, as torch.cuda.synchronize does.
    """
    calls = 1
    while (elapsed_s := _time(call, calls, synchronize)) < sample_s:
        calls = max(2 * calls, int(calls * sample_s / max(elapsed_s, 1e-9)))
    times_s = [_time(call, calls, synchronize) / calls for _ in range(samples)]
    low_s, median_s, high_s = statistics.quantiles(times_s, n=4)
    return Timing(median_s, low_s, high_s)


def measure_in_turns(calls: Sequence[Callable[[], object]], samples: int = 15) -> list[Timing]:
    """Time several calls, one of each in every turn, so that a busy machine slows all of them."""
    times_s = [[_time(call, 1, no_wait) for call in calls] for _ in range(samples + 1)][1:]
    quartiles = [statistics.quantiles(of_one, n=4) for of_one in zip(*times_s, strict=True)]
    return [Timing(median_s, low_s, high_s) for low_s, median_s, high_s in quartiles]


def _time(call: Callable[[], object], calls: int, synchronize: Callable[[], None]) -> float:
    synchronize()
    start_s = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize()
    return time.perf_counter() - start_s


def machine() -> dict[str, str]:
    """The processor, the interpreter and the libraries in use."""
    versions = {
        name: str(getattr(sys.modules[name], "__version__", "?"))
        for name in LIBRARIES
        if name in sys.modules
    }
    return {
        "system": platform.platform(terse=True),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = [
                line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def parse_options(description: str) -> argparse.Namespace:
    """The options that all benchmarks share: --json."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object, no table")
    return parser.parse_args()


def report(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    numbers: Mapping[str, float],
    as_json: bool,
) -> None:
    """Print a table under the machine's description, or `numbers` and the machine as JSON."""
    if as_json:
        print(json.dumps({**numbers, "machine": machine()}, indent=2))
        return
    print(title)
    print("\n".join(f"  {name}: {value}" for name, value in machine().items()))
    cells = [list(map(str, columns)), *(list(map(str, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
