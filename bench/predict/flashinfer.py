"""FlashInfer's kernel for paged prompts with a mask of its own, compiled from its own headers.

Needs the flashinfer package, for its headers alone, and nvcc; for head dimension 128, bfloat16 and
more than 16 rows.
What it launches follows its dispatcher and planner (include/flashinfer/attention/prefill.cuh and
scheduler.cuh of 0.6.6), without its second launch, which merges: that favours it.
"""

import re
import shutil
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import triton

from bench.kernels.attention import Shape
from bench.predict.cards import Card
from bench.predict.machine_code import Code, by_unit, count_spills, turn
from bench.predict.model import Stream
from bench.predict.work import Compiled

DIM = 128
LEAST_CHUNK = 128  # tokens, of a prefix that is cut

# Rows of a tile -> matrix instructions of a warp in rows, those in keys, warps in rows, in keys.
TILES = {64: (1, 8, 4, 1), 128: (2, 4, 4, 1)}
SOURCE = """
#include <flashinfer/attention/default_prefill_params.cuh>
#include <flashinfer/attention/variants.cuh>
#include <flashinfer/attention/prefill.cuh>
#include <flashinfer/page.cuh>
namespace flashinfer {
using T = nv_bfloat16;
using Params = BatchPrefillPagedParams<T, T, T, int32_t>;
using Masked = DefaultAttention<true, false, false, false>;
using Traits = KernelTraits<MaskMode::kCustom, %d, %d, %d, 8, 8, %d, %d, PosEncodingMode::kNone,
                            T, T, T, float, int32_t, Masked>;
template __global__ void
BatchPrefillWithPagedKVCacheKernel<Traits, Params>(const __grid_constant__ Params);
}
"""


def is_here() -> bool:
    return bool(find_spec("flashinfer") and shutil.which("nvcc"))


def launches(shape: Shape, card: Card) -> list[Compiled]:
    rows = shape.nodes * shape.query_heads // shape.heads
    tile = 128 if rows > 64 else 64
    code = compiled(tile, card.arch)
    tiles = shape.batch * triton.cdiv(rows, tile)
    # The shortest chunks that leave no more than two programs to a multiprocessor.
    places = 2 * card.multiprocessors // shape.heads
    tokens = shape.prefix + shape.nodes
    chunks = max(1, min(places // tiles, triton.cdiv(tokens, LEAST_CHUNK)))
    items = tiles * chunks * shape.heads
    token_bytes = 2 * DIM * shape.cached.itemsize
    through = tiles * shape.heads * tokens * token_bytes
    return [Compiled("BatchPrefill", code, items, Stream(shape.n_bytes, through, items))]


@cache
def compiled(tile: int, arch: str) -> Code:
    mma_rows, mma_keys, warps_rows, warps_keys = TILES[tile]
    with TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "kernel.cu", Path(folder) / "kernel.cubin"
        source.write_text(SOURCE % (tile, mma_rows, mma_keys, warps_rows, warps_keys))
        flags = ("-std=c++17", f"-arch={arch}", "-O3", "-use_fast_math", "-cubin", f"-I{headers()}")
        subprocess.run(["nvcc", *flags, "-o", cubin, source], check=True)
        tool = triton.knobs.nvidia.cuobjdump.path
        usage, sass = (
            subprocess.check_output([tool, option, cubin], text=True)
            for option in ("--dump-resource-usage", "--dump-sass")
        )
    instructions = turn(sass, loops=True)
    keys = 16 * mma_keys * warps_keys
    numbers = {name: int(n) for name, n in re.findall(r"(REG|STACK):(\d+)", usage)}
    return Code(
        registers=numbers["REG"],
        stack_bytes=numbers["STACK"],
        shared_bytes=(tile + 2 * keys) * DIM * 2,
        warps=warps_rows * warps_keys,
        turn_bytes=2 * keys * DIM * 2,
        turn_flops=4 * tile * keys * DIM,
        by_unit=by_unit(instructions),
        instructions=len(instructions),
        spills=count_spills(instructions),
        flight_bytes=keys * DIM * 2,  # values while keys are multiplied, and the other way round
        loads_ahead=True,
        products_ahead=False,
        loops=True,
        warp_mma=True,
    )


def headers() -> Path:
    found = find_spec("flashinfer")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "data/include"
