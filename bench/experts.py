"""A layer's mixture of experts against transformers' own block, in the same run.

Random weights of Qwen3-MoE's shape, scaled to memory; several layers, so that no weights stay in a
cache. A row is printed only if both give the same numbers, within what the format of the weights
rounds. The floor is the time in which as many bytes as the woken experts have are read from end to
end, on large pages as our weights are, in the same turn; transformers' share of it counts its own.
With one thread, seconds are that thread's own.

    python -m bench.experts [--rows 1 16] [--threads 1] [--weights bfloat16] [--json]
                            [--save FOLDER]

--save writes the random model to a folder instead, for `bench.verify_cost --model FOLDER`.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch

from bench.harness import measure_in_turns, option_parser, report
from runtime.model.experts import MixtureOfExperts
from runtime.model.weight_memory import WeightMemory
from runtime.model.weights import load
from specedge_kernels import instruction_set

COLUMNS = (
    *("weights", "rows", "experts", "ours", "transformers", "share", "floor"),
    *("floor / ours", "floor / transformers"),
)
# what ours run as, what transformers' run as, and how far apart the two may be
FORMATS = {
    "float32": (torch.float32, 1e-5),
    "bfloat16": (torch.bfloat16, 0.02),
    "q8_0": (torch.bfloat16, 0.03),
    "q4_0": (torch.bfloat16, 0.3),
}
TURNS = 9


def main() -> None:
    options = parse_options()
    if options.save:
        random_model(options).save_pretrained(options.save)
        return
    torch.set_grad_enabled(False)
    torch.set_num_threads(options.threads)
    rows: list[tuple[object, ...]] = []
    numbers: dict[str, float] = {}
    with TemporaryDirectory() as folder:
        model = random_model(options)
        model.save_pretrained(folder)
        # float32 is the first, as theirs are rounded in place
        for name, (dtype, tolerance) in FORMATS.items():
            if name not in options.weights:
                continue
            theirs = [layer.mlp for layer in model.to(dtype).model.layers]
            ours = [layer.mlp for layer in load(folder, name).layers]
            for n_rows in options.rows:
                row, figures = compared(ours, theirs, n_rows, dtype, tolerance)
                rows.append((name, n_rows, *row))
                numbers.update({f"{name}_{n_rows}_{key}": value for key, value in figures.items()})
    title = (
        f"{options.layers} layers of {options.experts} experts, {options.chosen} a row, hidden "
        f"{options.hidden}, inner {options.inner}; {options.threads} threads, "
        f"{instruction_set()}; transformers' {model.config._experts_implementation}"
    )
    report(title, COLUMNS, rows, numbers, options.json)


def random_model(options: argparse.Namespace) -> Any:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=2048,
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=64,
        num_experts=options.experts,
        num_experts_per_tok=options.chosen,
        moe_intermediate_size=options.inner,
        norm_topk_prob=True,
        initializer_range=0.05,
    )
    return Qwen3MoeForCausalLM(config).eval()


def compared(
    ours: list[MixtureOfExperts],
    theirs: list[Any],
    n_rows: int,
    dtype: torch.dtype,
    tolerance: float,
) -> tuple[tuple[object, ...], dict[str, float]]:
    """A row of the table, once both are found alike."""
    x = torch.randn(n_rows, theirs[0].gate.weight.shape[1])
    given, n_bytes, woken = x.to(dtype)[None], 0, 0
    for mixture, block in zip(ours, theirs, strict=True):
        got, want = mixture(x), block(given)[0].float()
        error = float((got - want).norm() / want.norm())
        # a rounded logit may choose another expert, which is no fault of the product
        assert error < tolerance or dtype != torch.float32, f"blocks differ by {error:.1e}"
        chosen = len(mixture.router(x)[0].unique())
        woken += chosen
        n_bytes += chosen * mixture.experts.bytes_of_one
    as_many = torch.as_tensor(WeightMemory().moved(torch.ones(n_bytes // 4)))
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    calls: list[Callable[[], object]] = [
        *(lambda: run(ours, x), lambda: run(theirs, given)),
        as_many.sum,
    ]
    mine_s, other_s, floor_s = (took.median_s for took in measure_in_turns(calls, TURNS, clock))
    numbers = sum(weight[0].numel() for weight in theirs[0].experts.parameters())
    other_floor_s = floor_s * woken * numbers * dtype.itemsize / n_bytes
    figures = {
        **{"ms": mine_s * 1e3, "share": mine_s / other_s, "floor_ms": floor_s * 1e3},
        **{"floor_over_ours": floor_s / mine_s, "floor_over_theirs": other_floor_s / other_s},
    }
    shown = (f"{took_s * 1e3:.1f} ms" for took_s in (mine_s, other_s))
    return (
        *(woken // len(ours), *shown, f"{mine_s / other_s:.2f}", f"{floor_s * 1e3:.1f} ms"),
        *(f"{floor_s / mine_s:.0%}", f"{other_floor_s / other_s:.0%}"),
    ), figures


def run(blocks: list[Any], rows: torch.Tensor) -> None:
    for block in blocks:
        block(rows)


def parse_options() -> argparse.Namespace:
    parser = option_parser("bench.experts", __doc__)
    for name, default in (
        *(("experts", 64), ("chosen", 8), ("hidden", 1024), ("inner", 384)),
        *(("layers", 3), ("threads", torch.get_num_threads())),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--weights", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--save", type=Path, metavar="FOLDER")
    return parser.parse_args()


if __name__ == "__main__":
    main()
