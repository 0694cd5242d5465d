"""What ranks that share a layer exchange, in two ways: whole outputs, or partial sums.

    torchrun --standalone --nproc-per-node 2 -m bench.ranks [--hidden 2048] [--inner 5632] [--json]

The first is what a server does (runtime/model/parallel.py): every product is shared by its outputs,
which all ranks are then given, and a row has the bits of one process. The second shares the
products after attention and in the middle of an MLP by their inputs and adds partial sums, the
usual way: fewer bytes, and sums of another order for each number of ranks. Products of a layer
without attention, bfloat16 weights. A row is printed only if both give the same numbers, and the
first the bits of one process.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.distributed as dist
from torch import Tensor

from bench.harness import measure_in_turns, option_parser, report
from runtime.model.parallel import Ranks, part
from runtime.model.transformer import Linear
from specedge_kernels import silu_mul

COLUMNS = ("rows", "whole outputs", "partial sums", "ratio", "exchanged", "exchanged", "products")
TURNS = 25


class Layer:
    """Products H -> H -> H -> 2 I -> I -> H of random weights, and the parts of this rank."""

    def __init__(self, ranks: Ranks, hidden: int, inner: int):
        self.ranks = ranks
        generator = torch.Generator().manual_seed(1)
        shapes = ((hidden, hidden), (hidden, hidden), (2 * inner, hidden), (hidden, inner))
        self.whole = [
            (torch.randn(shape, generator=generator) * shape[1] ** -0.5).bfloat16()
            for shape in shapes
        ]
        first, output, gate_up, down = self.whole
        gate, up = gate_up.chunk(2)
        self.first = Linear(self.rows(first))
        self.gate_up = Linear(torch.cat((self.rows(gate), self.rows(up))))
        self.by_outputs = [Linear(self.rows(one)) for one in (output, down)]
        self.by_inputs = [Linear(self.rows(one.T).T.contiguous()) for one in (output, down)]

    def rows(self, weight: Tensor) -> Tensor:
        return weight[slice(*part(self.ranks.rank, self.ranks.size, len(weight)))]

    def whole_outputs(self, x: Tensor) -> Tensor:
        give, (output, down) = self.ranks.whole, self.by_outputs
        x = give(output(give(self.first(x))))
        return give(down(give(silu_mul(self.gate_up(x)))))

    def partial_sums(self, x: Tensor) -> Tensor:
        output, down = self.by_inputs
        x = added(output(self.first(x)))
        return added(down(silu_mul(self.gate_up(x))))

    def products_alone(self, x: Tensor) -> Tensor:
        output, down = self.by_inputs
        return down(silu_mul(self.gate_up(output(self.first(x)))))

    def in_one_process(self, x: Tensor) -> Tensor:
        first, output, gate_up, down = map(Linear, self.whole)
        return down(silu_mul(gate_up(output(first(x)))))


def added(x: Tensor) -> Tensor:
    dist.all_reduce(x)
    return x


def main() -> None:
    parser = option_parser("bench.ranks", __doc__)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--inner", type=int, default=5632)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 16, 64])
    options = parser.parse_args()
    ranks = Ranks.join(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    layer = Layer(ranks, options.hidden, options.inner)
    rows, numbers = [], {}
    for n in options.rows:
        x = torch.randn(n, options.hidden, generator=torch.Generator().manual_seed(n))
        before = ranks.n_bytes
        got = layer.whole_outputs(x)
        sent = ranks.n_bytes - before
        assert torch.equal(got, layer.in_one_process(x)), "not the bits of one process"
        torch.testing.assert_close(layer.partial_sums(x), got, rtol=1e-3, atol=1e-3)
        calls = [layer.whole_outputs, layer.partial_sums, layer.products_alone]
        times = measure_in_turns([lambda call=call, x=x: call(x) for call in calls], TURNS)
        usual = 4 * (ranks.size - 1) * x.nbytes // ranks.size
        ratio = times[0].median_s / times[1].median_s
        numbers[f"rows_{n}"] = ratio
        milliseconds = [f"{time.median_s * 1e3:.2f} ms" for time in times]
        kib = [f"{count / 1024:.0f} KiB" for count in (sent, usual)]
        rows.append((n, *milliseconds[:2], f"{ratio:.2f}", *kib, milliseconds[2]))
    if ranks.rank == 0:
        title = f"a layer {options.hidden} wide over {ranks.size} ranks, bytes that each sends"
        report(title, COLUMNS, rows, numbers, options.json)


if __name__ == "__main__":
    main()
