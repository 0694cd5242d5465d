"""python -m bench.quantized: all products of SmolLM2-135M's weights with the rows of one step.

Every format, 1 to 64 rows, on as many threads as OMP_NUM_THREADS says and on the instruction set
that SPECEDGE_ISA may force. Rows take turns, so that what else the machine does falls on all of
them. The floors: the bytes of the weights at the rate at which this machine reads memory, and the
multiply-adds at the rate of the same kernel on weights that stay in the second-level cache.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch

from bench.harness import option_parser, report
from bench.kernels.products import quantized_linear, random_weight
from specedge_kernels import QuantizedWeight, _cpu
from specedge_kernels.cpu import quantized_of
from specedge_kernels.quantized import FORMS

LAYERS, LAYER, HEAD = 30, [(576, 960), (576, 576), (576, 3072), (1536, 576)], (576, 49152)  # K, M
ROWS = (1, 2, 4, 8, 16, 32, 64)
COLUMNS = ("format", "rows", "ms", "of 1 row", "GB/s", "GMAC/s", "of bytes' floor", "of products'")


def main() -> int:
    options = parse_options()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    table, numbers = [], {"read_gb_s": round(read_rate() / 1e9, 2)}
    for kind in options.kinds:
        form = FORMS[kind]
        fault = quantized_linear(9, kind).prepare(0).check()
        if fault:
            print(f"FAILED: {form.name}: {fault}", file=sys.stderr)
            return 1
        weights = [make_weight(kind, *shape) for shape in [*LAYER * LAYERS, HEAD]]
        n_bytes = sum(weight.packed.nbytes for weight in weights)
        products = sum(weight.in_features * weight.out_features for weight in weights)
        rate = product_rate(kind, options.exact)
        took_s = times(weights, options.exact, options.rounds)
        for rows in ROWS:
            bytes_s, products_s = n_bytes / (numbers["read_gb_s"] * 1e9), products * rows / rate
            table.append(
                (
                    *(form.name, rows, f"{took_s[rows] * 1e3:.2f}"),
                    f"{took_s[rows] / took_s[1]:.2f}",
                    f"{n_bytes / took_s[rows] / 1e9:.1f}",
                    f"{products * rows / took_s[rows] / 1e9:.0f}",
                    f"{bytes_s / took_s[rows]:.0%}",
                    f"{products_s / took_s[rows]:.0%}",
                )
            )
            numbers[f"{form.name}_rows{rows}_ms"] = round(took_s[rows] * 1e3, 3)
    activations = "float32" if options.exact else "8-bit"
    title = (
        f"products of SmolLM2-135M on {_cpu.isa()}, {torch.get_num_threads()} threads, "
        f"{activations} activations; memory is read at {numbers['read_gb_s']} GB/s"
    )
    report(title, COLUMNS, table, numbers, options.json)
    return 0


def parse_options() -> argparse.Namespace:
    parser = option_parser("bench.quantized", __doc__)
    parser.add_argument("--exact", action="store_true", help="activations as they are")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each number of rows")
    kinds = {form.name: kind for kind, form in FORMS.items()}
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=", ".join(kinds))
    options = parser.parse_args()
    unknown = [name for name in options.formats if name not in kinds]
    if unknown:
        parser.error(f"there is no format {unknown[0]}; there are {', '.join(kinds)}")
    options.kinds = [kinds[name] for name in options.formats] or list(FORMS)
    return options


def make_weight(kind: int, inputs: int, outputs: int) -> QuantizedWeight:
    """Of as many inputs as are whole groups of the format."""
    return random_weight(kind, inputs - inputs % FORMS[kind].inputs, outputs)


def step(weights: list[QuantizedWeight], rows: int, exact: bool) -> Callable[[], None]:
    """All products one after the other, called as a step in C++ would be."""
    x = torch.randn(rows, max(weight.in_features for weight in weights))
    out = torch.empty(rows, max(weight.out_features for weight in weights))
    linears = [quantized_of(weight, exact) for weight in weights]

    def run() -> None:
        for linear in linears:
            _cpu.multiply(linear, x.data_ptr(), rows, out.data_ptr())

    return run


def times(weights: list[QuantizedWeight], exact: bool, rounds: int) -> dict[int, float]:
    """Median seconds of a step by its rows, which take turns."""
    steps = {rows: step(weights, rows, exact) for rows in ROWS}
    took_s: dict[int, list[float]] = {rows: [] for rows in ROWS}
    for _ in range(rounds):
        for rows, run in steps.items():
            took_s[rows].append(seconds(run))
    return {rows: statistics.median(seconds) for rows, seconds in took_s.items()}


def product_rate(kind: int, exact: bool) -> float:
    """Multiply-adds a second of 64 rows with a weight that stays in the second-level cache."""
    weight = random_weight(kind, 512, 256)
    run = step([weight] * 20, 64, exact)
    fastest_s = min(seconds(run) for _ in range(20))
    return 20 * 64 * weight.in_features * weight.out_features / fastest_s


def read_rate() -> float:
    """Bytes a second at which memory is read from end to end."""
    numbers = torch.zeros(1 << 24, dtype=torch.int64)
    return numbers.nbytes / min(seconds(numbers.sum) for _ in range(10))


def seconds(call: Callable[[], object]) -> float:
    """Seconds of a call, of one thread's own time: other work on the machine counts for less."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start_s = clock()
    call()
    return clock() - start_s


if __name__ == "__main__":
    sys.exit(main())
