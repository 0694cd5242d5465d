"""python -m bench.kernels: see the package's docstring."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch

from bench.harness import Timing, option_parser, report, this_machine
from bench.kernels import attention, experts, ops, products
from bench.kernels.case import Case
from bench.kernels.timing import copy_bandwidth, matmul_rate, n_copies, time_calls
from specedge_kernels.library import OPS

COLUMNS = ("op", "shape", "way", "time", "of ours", "share of floor", "GB/s", "TFLOP/s")


@dataclass(frozen=True)
class Machine:
    device: torch.device
    bytes_per_s: float
    flops_per_s: float

    def floor_s(self, case: Case) -> float:
        return max(case.n_bytes / self.bytes_per_s, case.flops / self.flops_per_s)


@dataclass(frozen=True)
class Row:
    case: Case
    took: Timing
    floor_s: float

    def numbers(self) -> dict[str, object]:
        case, took = self.case, self.took
        return {
            "op": case.op,
            "shape": case.shape,
            "way": case.way,
            "median_us": round(took.median_us, 3),
            "low_us": round(took.low_s * 1e6, 3),
            "high_us": round(took.high_s * 1e6, 3),
            "floor_us": round(self.floor_s * 1e6, 3),
            "share_of_floor": round(self.floor_s / took.median_s, 4),
            "gb_s": round(case.n_bytes / took.median_s / 1e9, 2),
            "tflop_s": round(case.flops / took.median_s / 1e12, 4),
        }


def main() -> int:
    options = parse_options()
    device = torch.device(options.device)
    found = Machine(device, copy_bandwidth(device), matmul_rate(device))
    wanted = (case for case in cases(device, options.quick) if options.only in (None, case.op))
    rows: list[Row] = []
    failures: list[str] = []
    for row in measured(wanted, found, failures):
        rows.append(row)
        print(f"{row.case.op}, {row.case.way}, {row.case.shape}: {row.took}", file=sys.stderr)
        if options.save:  # after every row, so that a run cut short leaves what it has
            numbers = {**results(found, rows, failures), **where_and_how()}
            options.save.write_text(json.dumps(numbers, indent=2) + "\n")
    numbers = results(found, rows, failures)
    report(title(numbers, device), COLUMNS, cells(rows), numbers, options.json)
    return 1 if failures else 0


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Everything, tree attention first, what may fail or take long to compile last."""
    yield from attention.cases(device, quick, optional=False)
    yield from ops.cases(device, quick)
    yield from products.cases(device, quick)
    yield from experts.cases(device)
    yield from attention.cases(device, quick, optional=True)


def results(found: Machine, rows: list[Row], failures: list[str]) -> dict[str, object]:
    return {
        "device": device_name(found.device),
        "copy_gb_s": round(found.bytes_per_s / 1e9, 2),
        "matmul_tflop_s": round(found.flops_per_s / 1e12, 4),
        "failures": failures,
        "rows": [row.numbers() for row in rows],
    }


def where_and_how() -> dict[str, object]:
    command = " ".join(("python -m bench.kernels", *sys.argv[1:]))
    return {"machine": this_machine(), "date": date.today().isoformat(), "command": command}


def measured(cases: Iterator[Case], found: Machine, failures: list[str]) -> Iterator[Row]:
    """Rows whose check passed; the others are named on stderr and in `failures`."""
    for case in cases:
        name = f"{case.op}, {case.way}, {case.shape}"
        try:
            floor_s = found.floor_s(case)
            copies = n_copies(found.device, case.n_bytes)
            work = [case.prepare(seed) for seed in range(copies)]
            fault = work[0].check()
            if not fault:
                took = time_calls([one.call for one in work], found.device, floor_s)
                yield Row(case, took, floor_s)
        # One broken way must not cost the rows of the others.
        except Exception as error:
            fault = f"{type(error).__name__}: {str(error).strip()[:500]}"
        if fault and case.optional:
            print(f"skipped: {name}: {fault}", file=sys.stderr)
        elif fault:
            failures.append(name)
            print(f"FAILED: {name}: {fault}", file=sys.stderr)


def cells(rows: list[Row]) -> list[tuple[str, ...]]:
    ours = {key(row): row.took.median_s for row in rows if row.case.way == "ours"}
    table = []
    order = [key(row) for row in rows]
    for row in sorted(rows, key=lambda row: order.index(key(row))):
        case, numbers, own_s = row.case, row.numbers(), ours.get(key(row))
        ratio = f"{row.took.median_s / own_s:.2f}x" if own_s else "-"
        share, rate = f"{row.floor_s / row.took.median_s:.0%}", f"{numbers['tflop_s']:.3f}"
        rates = (f"{numbers['gb_s']:.1f}", rate if case.flops else "-")
        table.append((case.op, case.shape, case.way, str(row.took), ratio, share, *rates))
    return table


def key(row: Row) -> tuple[str, str]:
    return row.case.op, row.case.shape


def title(numbers: dict[str, object], device: torch.device) -> str:
    how = "cold L2, graph replay" if device.type == "cuda" else "warm caches"
    return (
        f"kernels on {numbers['device']}, {how}; copy {numbers['copy_gb_s']} GB/s, "
        f"products {numbers['matmul_tflop_s']} TFLOP/s\n"
        "gathering keys, masks and plans of the other ways is not counted"
    )


def device_name(device: torch.device) -> str:
    if device.type == "cpu":
        return f"cpu, {torch.get_num_threads()} threads"
    return torch.cuda.get_device_name(device)


def parse_options() -> argparse.Namespace:
    parser = option_parser("bench.kernels", __doc__)
    parser.add_argument("--save", type=Path, help="write the JSON object to this file as well")
    parser.add_argument("--quick", action="store_true", help="few and small shapes")
    parser.add_argument("--only", choices=list(OPS), help="one op")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; use --device cpu")
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


if __name__ == "__main__":
    sys.exit(main())
