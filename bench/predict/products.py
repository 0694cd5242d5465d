"""Products with a layer's weights, and with the head's."""

from collections.abc import Iterator
from functools import partial
from itertools import product as product_of

import torch

from bench.predict.model import Stream
from bench.predict.work import BF16, DENSE, EXPERTS, F32, Model, Work, empty, in_triton
from specedge_kernels.gpu.linear import linear
from specedge_kernels.gpu.quantized_linear import PackedTile, quantized_linear
from specedge_kernels.quantized import BLOCK, FORMS
from tests.gpu.launches import Launch

FP8, U8 = torch.float8_e4m3fn, torch.uint8
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
    for kind, rows in product_of((2, 12, 39, 256), (1, 16, 64)):
        yield quantised(f"{DENSE.name} gate_up", kind, rows, DENSE.hidden, 2 * DENSE.inner)


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


def quantised(name: str, kind: int, rows: int, inputs: int, outputs: int) -> Work:
    """kind: the number of the format."""
    form = FORMS[kind]
    x, packed = empty(rows, inputs, dtype=BF16), empty(form.packed_bytes(outputs, inputs), dtype=U8)
    n_bytes = packed.nbytes + x.nbytes + rows * outputs * BF16.itemsize
    call = partial(quantized_linear, x, packed, [kind], [outputs], True)
    stream_of = partial(quantised_stream, n_bytes, rows, inputs, packed.nbytes)
    label, flops = f"{name} {form.name} N{rows} K{inputs} M{outputs}", 2 * rows * inputs * outputs
    return Work(
        "quantized_linear", "ours", label, n_bytes, flops, partial(in_triton, call, stream_of)
    )


def quantised_stream(
    n_bytes: float, rows: int, inputs: int, packed_bytes: int, launch: Launch
) -> Stream | None:
    if launch.kernel.__name__ != "quantized_linear_kernel":
        return None
    row_tiles, tiles, splits = launch.grid
    through = row_tiles * packed_bytes + tiles * rows * inputs * BF16.itemsize
    turns = -(-inputs // (splits * packed_turn_inputs(launch)))
    return Stream(n_bytes, through, launch.programs, turns)


def packed_turn_inputs(launch: Launch) -> int:
    tile = launch.arguments["TILE"]
    assert isinstance(tile, PackedTile)
    return tile.blocks * BLOCK


def stream(
    n_bytes: float, rows: int, inputs: int, outputs: int, weight_bytes: int, launch: Launch
) -> Stream:
    """Every tile of rows reads all weights, every tile of outputs all rows."""
    row_tiles, tiles = launch.grid
    through = row_tiles * inputs * outputs * weight_bytes + tiles * rows * inputs * BF16.itemsize
    turns = -(-inputs // launch.constant("BLOCK_K"))
    return Stream(n_bytes, through, launch.programs, turns)
