"""The target's own token after each row, on a GPU, in four launches and without sorting.

1. Chunks: every chunk of every row leaves its maximum, and what top-p needs of it.
2. Rows: one program per row finds NaN, the likeliest token with its noise, and the cut of top-k,
   top-p and min-p.
3. Draw: parts of the vocabulary add noise to what the cut allows. A chunk that cannot overtake the
   likeliest token with the largest noise is never read again; one that cannot with about its own
   noise is left at that.
4. Merge: the best of a row's parts.

Greedy, free and filtered rows may share a batch. Knows no trees.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from specedge_kernels.gpu.allowed import (
    allowed,
    counts,
    divided,
    heat_of,
    logits_of,
    masked,
    scaled,
)
from specedge_kernels.gpu.noise import (
    MOST_NOISE,
    gumbel,
    index_of,
    most_noise,
    noise_bits,
    noise_key,
    ordered,
    ranked,
)

CHUNK = 512  # tokens that share a maximum
CHUNKS_AT_ONCE = 8  # chunks of one program of launch 1
CHUNKS_IN_PART = 16  # chunks of one program of launch 3
CAPACITY = 8192  # candidates of a row kept apart; a row with more is read again and again
NEVER = tl.constexpr(0x7FFFFFFF)  # above every key
NOTHING = tl.constexpr(-(1 << 63))  # below every rank


@triton.jit
def chunks_kernel(
    logits,  # [N, vocabulary]
    temperature,  # [N]
    top_k,  # [N]
    top_p,  # [N]
    mask,  # [M, words]
    mask_row,  # [N]
    maxima,  # [N, chunks] f32: NaN if the chunk holds one
    sums,  # [N, chunks] f64: of exp((logit - maximum) / T); rows with top-p alone
    vocabulary,
    chunks,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    HAS_MASK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1) * CHUNKS + tl.arange(0, CHUNKS)
    index = chunk[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    values, words, chosen = logits_of(logits, mask, mask_row, row, vocabulary, HAS_MASK)
    x = tl.load(values + index, mask=index < vocabulary, other=float("-inf"))
    x = masked(x, words, chosen, index, vocabulary, HAS_MASK)
    broken = tl.max((x != x).to(tl.int32), 1) > 0
    top = tl.max(tl.where(x != x, float("-inf"), x), 1)
    tl.store(
        maxima + row * chunks + chunk,
        tl.where(broken, float("nan"), top),
        mask=chunk < chunks,
    )
    heat = heat_of(temperature, row)
    if (heat > 0) & (tl.load(top_p + row) < 1) & ~counts(tl.load(top_k + row), vocabulary):
        shift = tl.where(top > float("-inf"), top, 0.0)
        difference = tl.div_rn(x, heat).to(tl.float64) - tl.div_rn(shift, heat)[:, None]
        tl.store(sums + row * chunks + chunk, tl.sum(tl.exp(difference), 1), mask=chunk < chunks)


@triton.jit
def rows_kernel(
    logits,  # [N, vocabulary]
    temperature,  # [N]
    top_k,  # [N]
    top_p,  # [N]
    min_p,  # [N]
    seed,  # [N]
    position,  # [N]
    mask,  # [M, words]
    mask_row,  # [N]
    maxima,  # [N, chunks]
    sums,  # [N, chunks]
    found,  # [N, capacity] f32
    limits,  # [N, 2] i32: key of the cut, last token at the cut
    leads,  # [N, 2] f32: the likeliest token's logit / T, and its noise
    out,  # [N]: -1, or the token of a greedy row
    vocabulary,
    capacity,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    HAS_MASK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    chunks = tl.cdiv(vocabulary, CHUNK)
    values = logits_of(logits, mask, mask_row, row, vocabulary, HAS_MASK)
    maxima += row * chunks
    chunk = tl.arange(0, CHUNKS)
    tops = tl.load(maxima + chunk, mask=chunk < chunks, other=float("-inf"))
    broken = tl.max((tops != tops).to(tl.int32), 0) > 0
    top = tl.max(tl.where(tops != tops, float("-inf"), tops), 0)
    heat = heat_of(temperature, row)
    cut, last = tl.full([], NEVER, tl.int32), vocabulary
    noise = tl.full([], 0.0, tl.float32)
    token = vocabulary * 0 - 1
    if (tl.abs(top) < float("inf")) & (broken == 0):
        is_drawn = (heat > 0) & (tl.abs(tl.div_rn(top, heat)) < float("inf"))
        heat = tl.where(is_drawn, heat, 1.0)
        top = tl.div_rn(top, heat)
        first = tl.min(tl.where(divided(maxima, chunk, chunks, heat) == top, chunk, CHUNKS), 0)
        index = first * CHUNK + tl.arange(0, CHUNK)
        is_top = scaled(values, index, vocabulary, heat, HAS_MASK) == top
        likeliest = tl.min(tl.where(is_top, index, vocabulary), 0)
        if is_drawn:
            k, p, ratio = tl.load(top_k + row), tl.load(top_p + row), tl.load(min_p + row)
            cut, last = allowed(
                values,
                maxima,
                sums + row * chunks,
                found + row * capacity,
                vocabulary,
                capacity,
                heat,
                top,
                k,
                p,
                ratio,
                CHUNKS,
                CHUNK,
                HAS_MASK,
            )
            key = noise_key(tl.load(seed + row), tl.load(position + row))
            noise = gumbel(noise_bits(key, likeliest))
        else:
            token = likeliest
    tl.store(limits + row * 2, cut)
    tl.store(limits + row * 2 + 1, last)
    tl.store(leads + row * 2, top)
    tl.store(leads + row * 2 + 1, noise)
    tl.store(out + row, token)


@triton.jit
def draw_kernel(
    logits,  # [N, vocabulary]
    temperature,  # [N]
    seed,  # [N]
    position,  # [N]
    mask,  # [M, words]
    mask_row,  # [N]
    maxima,  # [N, chunks]
    limits,  # [N, 2]
    leads,  # [N, 2]
    best,  # [N, parts] i64
    vocabulary,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    HAS_MASK: tl.constexpr,
):
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    chunks = tl.cdiv(vocabulary, CHUNK)
    cut, last = tl.load(limits + row * 2), tl.load(limits + row * 2 + 1)
    top, lead = tl.load(leads + row * 2), tl.load(leads + row * 2 + 1)
    heat = heat_of(temperature, row)
    key = noise_key(tl.load(seed + row), tl.load(position + row))
    values = logits_of(logits, mask, mask_row, row, vocabulary, HAS_MASK)
    ranks = tl.full([CHUNK], NOTHING, tl.int64)
    for chunk in range(part * CHUNKS, tl.minimum(part * CHUNKS + CHUNKS, chunks)):
        most = tl.div_rn(tl.load(maxima + row * chunks + chunk), heat)
        if (ordered(most) >= cut) & (most - top + MOST_NOISE >= lead):
            index = chunk * CHUNK + tl.arange(0, CHUNK)
            x = scaled(values, index, vocabulary, heat, HAS_MASK)
            order = ordered(x)
            kept = (index < vocabulary) & ((order > cut) | ((order == cut) & (index <= last)))
            bits = noise_bits(key, index)
            bound = tl.where(kept, x - top + most_noise(bits), float("-inf"))
            if tl.max(bound, 0) >= lead:
                rank = ranked(x - top + gumbel(bits), index)
                ranks = tl.where(kept, tl.maximum(ranks, rank), ranks)
    tl.store(best + row * tl.num_programs(1) + part, tl.max(ranks, 0))


@triton.jit
def merge_kernel(
    best,  # [N, parts]
    out,  # [N]
    parts,
    PARTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    rank = tl.max(tl.load(best + row * parts + part, mask=part < parts, other=NOTHING), 0)
    tl.store(out + row, index_of(rank), mask=rank > NOTHING)


def target_tokens(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    position: Tensor,
    mask: Tensor | None = None,
    mask_row: Tensor | None = None,
) -> Tensor:
    rows, vocabulary = logits.shape
    chunks = triton.cdiv(vocabulary, CHUNK)
    parts = triton.cdiv(chunks, CHUNKS_IN_PART)
    capacity = min(vocabulary, CAPACITY)
    out = logits.new_empty(rows, dtype=torch.int64)
    maxima = logits.new_empty(rows, chunks)
    sums = logits.new_empty(rows, chunks, dtype=torch.float64)
    found = logits.new_empty(rows, capacity)
    limits = logits.new_empty(rows, 2, dtype=torch.int32)
    leads = logits.new_empty(rows, 2)
    best = logits.new_empty(rows, parts, dtype=torch.int64)
    has_mask = mask is not None and mask_row is not None
    # Triton wants a tensor in either place.
    masks = (mask, mask_row) if has_mask else (top_k, top_k)
    if rows:
        chunks_kernel[(rows, triton.cdiv(chunks, CHUNKS_AT_ONCE))](
            *(logits, temperature, top_k, top_p, *masks, maxima, sums, vocabulary, chunks),
            CHUNKS=CHUNKS_AT_ONCE,
            CHUNK=CHUNK,
            HAS_MASK=has_mask,
        )
        # Noise has the same bits everywhere, so nothing is fused. With 128 registers four programs
        # fit side by side; for a fifth the compiler would spill, and with masks for the fourth.
        rows_kernel[(rows,)](
            *(logits, temperature, top_k, top_p, min_p, seed, position, *masks),
            *(maxima, sums, found, limits, leads, out, vocabulary, capacity),
            CHUNKS=triton.next_power_of_2(chunks),
            CHUNK=CHUNK,
            HAS_MASK=has_mask,
            maxnreg=168 if has_mask else 128,
            enable_fp_fusion=False,
        )
        draw_kernel[(rows, parts)](
            *(logits, temperature, seed, position, *masks),
            *(maxima, limits, leads, best, vocabulary),
            CHUNKS=CHUNKS_IN_PART,
            CHUNK=CHUNK,
            HAS_MASK=has_mask,
            enable_fp_fusion=False,
        )
        merge_kernel[(rows,)](best, out, parts, PARTS=triton.next_power_of_2(parts))
    return out
