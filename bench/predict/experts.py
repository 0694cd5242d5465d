"""A mixture of experts at the sizes of Qwen3-30B-A3B: router, grouped products, their sum."""

from collections.abc import Iterator
from functools import partial
from itertools import product as product_of

import torch
from torch import Tensor

from bench.kernels.experts import Mixture
from bench.predict.model import Stream
from bench.predict.ops import simple
from bench.predict.products import packed_turn_inputs
from bench.predict.work import BF16, EXPERTS, F32, Work, empty, in_triton
from specedge_kernels.gpu.grouped_linear import grouped_linear
from specedge_kernels.gpu.grouped_quantized_linear import grouped_quantized_linear
from specedge_kernels.quantized import FORMS
from tests.gpu.launches import Launch

N_EXPERTS, CHOSEN = 128, 8


def works() -> Iterator[Work]:
    for rows in (1, 16, 64):
        yield from (floats(name, mixture) for name, mixture in products(rows))
    for kind, rows in product_of((2, 12, 39), (1, 16, 64)):
        yield from (packed(name, mixture, kind) for name, mixture in products(rows))
    rows = 512
    logits, weights = empty(rows, N_EXPERTS, dtype=F32), empty(rows, CHOSEN, dtype=F32)
    label = f"{EXPERTS.name} {CHOSEN} of {N_EXPERTS} N{rows}"
    chosen = (logits, CHOSEN, "softmax", True, 1.0, None, 1, 1, 2)
    yield simple("route", label, logits.nbytes + 2 * weights.nbytes, chosen)
    y = empty(rows * CHOSEN, EXPERTS.hidden, dtype=BF16)
    yield simple("weighted_sum", label, y.nbytes * (1 + 1 / CHOSEN), (y, weights), y.nbytes)


def products(rows: int) -> Iterator[tuple[str, Mixture]]:
    """Both products of the experts; the second has its own row for every pair."""
    into, out = EXPERTS.hidden, EXPERTS.inner
    yield "gate_up", Mixture(rows, N_EXPERTS, CHOSEN, into, 2 * out, BF16)
    yield "down", Mixture(rows, N_EXPERTS, CHOSEN, out, into, BF16)


def floats(name: str, mixture: Mixture) -> Work:
    weight = empty(N_EXPERTS, mixture.outputs, mixture.inputs, dtype=BF16)
    x, groups = arguments(name, mixture)
    call = partial(grouped_linear, x, weight, mixture.outputs, groups, None)
    return grouped("grouped_linear", "bfloat16", name, mixture, weight, call)


def packed(name: str, mixture: Mixture, kind: int) -> Work:
    """kind: ggml's number of the format."""
    n_bytes = FORMS[kind].packed_bytes(mixture.outputs, mixture.inputs)
    weight = empty(N_EXPERTS, n_bytes, dtype=torch.uint8)
    x, groups = arguments(name, mixture)
    formats = ([kind], [mixture.outputs])
    call = partial(grouped_quantized_linear, x, weight, *formats, groups, None, False)
    return grouped("grouped_quantized_linear", FORMS[kind].name, name, mixture, weight, call)


def arguments(name: str, mixture: Mixture) -> tuple[Tensor, Tensor]:
    rows, chosen = mixture.rows, mixture.chosen
    rows, chosen = (rows * chosen, 1) if name == "down" else (rows, chosen)
    return empty(rows, mixture.inputs, dtype=BF16), empty(rows, chosen)


def grouped(
    op: str, stored: str, name: str, mixture: Mixture, weight: Tensor, call: partial[Tensor]
) -> Work:
    """Of as many experts as draws of each row on its own would name, each of one tile of rows."""
    pairs, read = mixture.rows * mixture.chosen, mixture.read_experts
    expert_bytes = weight.nbytes / N_EXPERTS
    rows = pairs if name == "down" else mixture.rows
    numbers = rows * mixture.inputs + pairs * mixture.outputs
    n_bytes = read * expert_bytes + numbers * BF16.itemsize
    label = f"{EXPERTS.name} {name} {stored} {mixture}"

    def stream(launch: Launch) -> Stream | None:
        if launch.kernel.__name__ == "sort_pairs_kernel":
            return None
        _, tiles = launch.grid
        through = read * expert_bytes + tiles * pairs * mixture.inputs * BF16.itemsize
        plain = op == "grouped_linear"
        inputs = launch.constant("BLOCK_K") if plain else packed_turn_inputs(launch)
        return Stream(n_bytes, through, round(read * tiles), -(-mixture.inputs // inputs))

    flops = 2 * pairs * mixture.inputs * mixture.outputs
    return Work(op, "ours", label, n_bytes, flops, partial(in_triton, call, stream))
