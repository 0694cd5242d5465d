"""Tile shapes of tree attention: a committed table, read by what the host knows without asking.

The keys of a tile depend on the card, the types and the head dimension alone; its rows follow the
mean size of the batch's trees. Entries were chosen by cross-compiling: no spills, loads in flight,
registers and shared memory for the programs of one multiprocessor. They are not timed yet.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from specedge_kernels.gpu.paged import are_parts


@dataclass(frozen=True)
class Tile:
    """`rows` query vectors and `keys` tokens, at most 64 of these: one mask word."""

    rows: int
    keys: int
    warps: int
    stages: int  # tiles of keys and values in shared memory, one in use and the others in flight
    programs: int  # for each multiprocessor of a card with 160 KiB of shared memory or more
    max_registers: int | None = None  # of a thread, where that many programs would not fit else


# architecture: (bytes of an element, most numbers of a key, of a value): tiles, fewest rows first
TILES: dict[str, dict[tuple[int, int, int], tuple[Tile, ...]]] = {
    "sm_80": {  # 8.x and 12.x: the smallest have 99 KiB of shared memory
        (2, 64, 64): (Tile(64, 32, 4, 3, 2), Tile(128, 32, 8, 3, 1)),
        (2, 128, 128): (Tile(64, 32, 4, 3, 2), Tile(128, 32, 8, 3, 1)),
        (2, 192, 128): (Tile(64, 32, 4, 3, 2), Tile(128, 32, 8, 3, 1)),
        (2, 256, 256): (Tile(64, 16, 8, 3, 1),),
        (2, 512, 512): (Tile(32, 16, 8, 3, 1),),
        (2, 576, 512): (Tile(16, 16, 8, 3, 1),),
        (4, 128, 128): (Tile(16, 32, 4, 3, 1),),
        (4, 256, 256): (Tile(16, 16, 8, 3, 1),),
    },
    "sm_90": {  # 9.0 has 227 KiB; 64 rows are one wgmma
        (2, 64, 64): (Tile(64, 64, 4, 3, 2), Tile(128, 64, 8, 3, 1)),
        # One program's matrix instructions run beside the softmax of another.
        (2, 128, 128): (Tile(64, 32, 4, 3, 3, 168), Tile(128, 32, 8, 4, 2, 128)),
        (2, 192, 128): (Tile(64, 64, 4, 3, 1), Tile(128, 64, 8, 3, 1)),
        (2, 256, 256): (Tile(64, 32, 8, 3, 1), Tile(128, 32, 8, 3, 1)),
        (2, 576, 512): (Tile(64, 16, 8, 3, 1),),
        (4, 128, 128): (Tile(16, 32, 4, 3, 2),),
        (4, 256, 256): (Tile(16, 16, 8, 3, 1),),
    },
    "sm_100": {  # 10.x has 227 KiB
        (2, 64, 64): (Tile(64, 64, 4, 3, 2), Tile(128, 64, 8, 3, 1)),
        (2, 128, 128): (Tile(64, 64, 4, 3, 2), Tile(128, 64, 8, 3, 1)),
        (2, 192, 128): (Tile(64, 64, 4, 3, 1), Tile(128, 64, 8, 3, 1)),
        (2, 256, 256): (Tile(64, 32, 8, 3, 1),),
        (2, 576, 512): (Tile(64, 16, 8, 3, 1),),
        (4, 128, 128): (Tile(16, 32, 4, 3, 2),),
        (4, 256, 256): (Tile(16, 16, 8, 3, 1),),
    },
}

# Where the values are the first numbers of the keys, as in absorbed latent attention: 576 and 512.
LATENT_TILES = {
    "sm_80": (Tile(32, 16, 8, 3, 1),),
    "sm_90": (Tile(64, 32, 8, 3, 1),),
    "sm_100": (Tile(64, 16, 8, 3, 1),),
}


def choose_tile(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: int, batch_invariant: bool = False
) -> Tile:
    """For q [N, Hq, D] of `batch` requests: the least tile that holds their mean rows.

    With batch_invariant the largest, whatever the batch.
    """
    rows, query_heads, dim = q.shape
    mean_rows = triton.cdiv(rows, max(batch, 1)) * (query_heads // k_cache.shape[2])
    n_bytes = max(q.itemsize, k_cache.itemsize, v_cache.itemsize)
    parts = are_parts(v_cache, k_cache)
    tiles = tiles_for(architecture(q.device), n_bytes, dim, v_cache.shape[3], parts)
    if batch_invariant:
        return tiles[-1]
    return next((tile for tile in tiles if tile.rows >= mean_rows), tiles[-1])


def tiles_for(
    arch: str, element_bytes: int, keys: int, values: int, parts: bool = False
) -> tuple[Tile, ...]:
    """For heads of `keys` and `values` numbers; parts: the values are a part of the keys."""
    if parts and element_bytes == 2 and keys > 256 >= keys - values:
        return LATENT_TILES[arch]
    fits = (
        tiles
        for (size, most_keys, most_values), tiles in TILES[arch].items()
        if size >= element_bytes and most_keys >= keys and most_values >= values
    )
    tiles = next(fits, None)
    if tiles is None:
        raise ValueError(
            "tree_attention: expected keys of at most 576 numbers and values of at most 512, "
            f"or 256 in float32, got {keys} and {values} of {element_bytes} bytes"
        )
    return tiles


def architecture(device: torch.device) -> str:
    if device.type == "cpu":  # the interpreter
        return "sm_90"
    major, _ = torch.cuda.get_device_capability(device)
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")


def converts_e4m3(device: torch.device) -> bool:
    """Whether the card converts float8 e4m3 by itself."""
    return device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 9)


def n_totals(device: torch.device) -> int:
    """In how many parts the total weight of a row is kept until all keys are seen.

    On sm_90 a thread has 2 of every 8 columns of its rows, and adds those up without another.
    Elsewhere it has a whole row, or warps share one.
    """
    return 8 if architecture(device) == "sm_90" else 1


def n_programs(device: torch.device, tile: Tile) -> int:
    """Persistent programs of one launch."""
    if device.type == "cpu":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count * tile.programs
