"""Products with a layer's weights, and with the head's."""

from collections.abc import Iterator
from functools import partial

import torch

from bench.predict.model import Stream
from bench.predict.work import BF16, DENSE, EXPERTS, F32, Model, Work, empty, in_triton
from specedge_kernels.gpu.linear import linear
from tests.gpu.launches import Launch

FP8 = torch.float8_e4m3fn
SCALE_BLOCK = 128  # outputs and inputs of float8 weights under one scale


def works() -> Iterator[Work]:
    for rows in (1, 16, 64, 512):
        for name, inputs, outputs in weights(DENSE):
            yield product(f"{DENSE.name} {name}", rows, inputs, outputs, BF16)
    for rows in (16, 512):
        for name, inputs, outputs in weights(EXPERTS):
            if name != "gate_up" and name != "down":
                yield product(f"{EXPERTS.name} {name}", rows, inputs, outputs, BF16)
        yield product(f"{DENSE.name} gate_up", rows, DENSE.hidden, 2 * DENSE.inner, FP8)


def weights(model: Model) -> Iterator[tuple[str, int, int]]:
    """Name, inputs, outputs."""
    heads = model.query_heads * model.dim
    yield "qkv", model.hidden, heads + 2 * model.heads * model.dim
    yield "o", heads, model.hidden
    yield "gate_up", model.hidden, 2 * model.inner
    yield "down", model.inner, model.hidden
    yield "head", model.hidden, model.vocabulary


def product(name: str, rows: int, inputs: int, outputs: int, stored: torch.dtype) -> Work:
    x, weight = empty(rows, inputs, dtype=BF16), empty(outputs, inputs, dtype=stored)
    scales = None
    if stored == FP8:
        scales = empty(-(-outputs // SCALE_BLOCK), -(-inputs // SCALE_BLOCK), dtype=F32)
    n_bytes = weight.nbytes + x.nbytes + rows * outputs * BF16.itemsize
    label = f"{name} {str(stored).removeprefix('torch.')} N{rows} K{inputs} M{outputs}"
    call = partial(linear, x, weight, outputs, None, scales)
    stream_of = partial(stream, n_bytes, rows, inputs, outputs, weight.itemsize)
    flops = 2 * rows * inputs * outputs
    return Work("linear", "ours", label, n_bytes, flops, partial(in_triton, call, stream_of))


def stream(
    n_bytes: float, rows: int, inputs: int, outputs: int, weight_bytes: int, launch: Launch
) -> Stream:
    """Every tile of rows reads all weights, every tile of outputs all rows."""
    if launch.kernel.__name__ == "sum_chunks_kernel":
        parts = launch.constant("n_chunks") * rows * outputs * F32.itemsize
        return Stream(0, parts, launch.programs)
    row_tiles, tiles, splits = launch.grid
    through = row_tiles * inputs * outputs * weight_bytes + tiles * rows * inputs * BF16.itemsize
    turns = -(-inputs // (splits * launch.constant("BLOCK_K")))
    return Stream(n_bytes, through, launch.programs, turns)
