"""What every benchmark needs: options, a timing with its spread, a table, JSON.

It measures what it is given and judges nothing; checking the result first is the caller's duty.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from runtime.arguments import Parser
from runtime.bench.machine import machine
from runtime.bench.table import laid_out

# Reported when a benchmark has imported them; the harness itself loads none.
LIBRARIES = ("torch", "triton", "transformers", "numpy")


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median of several samples, and the quartiles around it."""

    median_s: float
    low_s: float
    high_s: float

    @classmethod
    def of(cls, times_s: Sequence[float]) -> Timing:
        """Of single samples, two or more."""
        low_s, median_s, high_s = statistics.quantiles(times_s, n=4)
        return cls(median_s, low_s, high_s)

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
    return Timing.of([_time(call, calls, synchronize) / calls for _ in range(samples)])


def measure_in_turns(
    calls: Sequence[Callable[[], object]],
    samples: int = 15,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Time several calls, one of each in every turn, so that a busy machine slows all of them.

    clock: time.thread_time counts nothing of other work on the machine, for calls of one thread.
    """
    times_s = [[_time(call, 1, no_wait, clock) for call in calls] for _ in range(samples + 1)][1:]
    return [Timing.of(of_one) for of_one in zip(*times_s, strict=True)]


def _time(
    call: Callable[[], object],
    calls: int,
    synchronize: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    synchronize()
    start_s = clock()
    for _ in range(calls):
        call()
    synchronize()
    return clock() - start_s


def option_parser(module: str, description: str | None) -> Parser:
    """Options of `python -m module`, of which all benchmarks have --json."""
    parser = Parser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, no table")
    return parser


def whole_number(text: str) -> int:
    """An option's `type`: a whole number of 1 or more. Raises ValueError, ArgumentTypeError."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def this_machine() -> dict[str, str]:
    """What the benchmark runs on, with the libraries that it has imported."""
    return machine(name for name in LIBRARIES if name in sys.modules)


def report(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    numbers: Mapping[str, float],
    as_json: bool,
) -> None:
    """Print a table under the machine's description, or `numbers` and the machine as JSON."""
    if as_json:
        print(json.dumps({**numbers, "machine": this_machine()}, indent=2))
        return
    print(title)
    print("\n".join(f"  {name}: {value}" for name, value in this_machine().items()))
    print(laid_out(columns, rows))
