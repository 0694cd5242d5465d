"""python -m bench.predict: see the package's docstring."""

import os

# Kernels are compiled as ordinary installations of Triton compile them.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain

import triton

from bench.harness import option_parser
from bench.predict import attention, experts, ops, products
from bench.predict.cards import CARDS, LATENCY_S, LAUNCH_S, Card
from bench.predict.machine_code import Code
from bench.predict.model import Terms, resident, terms
from bench.predict.work import Compiled, Work
from runtime.bench.table import laid_out
from specedge_kernels.library import OPS

COLUMNS = (
    *("op", "shape", "way", "floor us", "predicted us", "of ours", "share of floor", "bound by"),
    *("regs", "spills", "KiB", "resident", "in flight KiB"),
)


@dataclass(frozen=True)
class Predicted:
    """A launch; without a stream it moves next to nothing."""

    kernel: str
    code: Code
    resident: int
    terms: Terms | None

    @property
    def total_s(self) -> float:
        return self.terms.total_s if self.terms else LATENCY_S + LAUNCH_S


@dataclass(frozen=True)
class Row:
    work: Work
    floor_s: float
    launches: list[Predicted]

    @property
    def total_s(self) -> float:
        return sum(launch.total_s for launch in self.launches)

    @property
    def main(self) -> Predicted:
        return max(self.launches, key=lambda launch: launch.total_s)

    def numbers(self) -> dict[str, object]:
        return {
            **{
                name: getattr(self.work, name)
                for name in ("op", "way", "shape", "n_bytes", "flops")
            },
            "floor_us": self.floor_s * 1e6,
            "predicted_us": self.total_s * 1e6,
            "predicted_share_of_floor": self.floor_s / self.total_s,
            "launches": [asdict(launch) for launch in self.launches],
        }


def main() -> int:
    options = parse_options()
    card = CARDS[options.card]
    rows = []
    for work in chain(attention.works(), products.works(), experts.works(), ops.works()):
        if options.only in (None, work.op):
            rows.append(row_of(work, card))
            print(f"{work.op}, {work.way}, {work.shape}", file=sys.stderr)
    if options.json:
        numbers = {"card": asdict(card), "predicted": [row.numbers() for row in rows]}
        print(json.dumps(numbers, indent=2))
        return 0
    print(f"predicted for {card.name}, nothing is measured; triton {triton.__version__}")
    print(laid_out(COLUMNS, list(cells(rows))))
    if options.terms:
        print(laid_out(("op", "shape", "way", "kernel", *TERMS), list(term_cells(rows))))
    return 0


def row_of(work: Work, card: Card) -> Row:
    floor_s = max(work.n_bytes / card.bytes_per_s, work.flops / card.flops_per_s)
    return Row(work, floor_s, [predicted(launch, card) for launch in work.launches(card)])


def predicted(launch: Compiled, card: Card) -> Predicted:
    code, stream = launch.code, launch.stream
    found = terms(code, stream, card, launch.programs) if stream else None
    return Predicted(launch.kernel, code, resident(code, card), found)


TERMS = (*Terms.__dataclass_fields__, "total")


def cells(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    ours = {(row.work.op, row.work.shape): row.total_s for row in rows if row.work.way == "ours"}
    for row in rows:
        work, main = row.work, row.main
        own_s = ours.get((work.op, work.shape))
        yield (
            *(work.op, work.shape, work.way, f"{row.floor_s * 1e6:.1f}"),
            *(f"{row.total_s * 1e6:.1f}", f"{row.total_s / own_s:.2f}x" if own_s else "-"),
            *(f"{row.floor_s / row.total_s:.0%}", main.terms.bound if main.terms else "launch"),
            *(str(main.code.registers), str(main.code.spills)),
            *(f"{main.code.shared_bytes / 1024:.0f}", str(main.resident)),
            f"{main.code.flight_bytes * main.resident / 1024:.0f}",
        )


def term_cells(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    """Microseconds of every launch."""
    for row in rows:
        for launch in row.launches:
            seconds = launch.terms.seconds.values() if launch.terms else [0.0] * (len(TERMS) - 1)
            times = (f"{1e6 * s:.1f}" for s in (*seconds, launch.total_s))
            yield (row.work.op, row.work.shape, row.work.way, launch.kernel, *times)


def parse_options() -> argparse.Namespace:
    parser = option_parser("bench.predict", __doc__)
    parser.add_argument("--card", default="H100", choices=list(CARDS))
    parser.add_argument("--only", choices=list(OPS), help="one op")
    parser.add_argument("--terms", action="store_true", help="every term of every launch")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
