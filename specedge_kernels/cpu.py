"""The CPU implementations: tensors in, raw pointers to the C++ of csrc/, tensors out.

Metadata was checked by `ops.py`; values (page ids, parents, offsets) are checked by the C++, which
raises ValueError before it writes anything.
"""

import torch
from torch import Tensor

from specedge_kernels import _cpu
from specedge_kernels.quantized import FORMS, QuantizedWeight

DTYPES = {
    torch.float32: _cpu.Dtype.float32,
    torch.bfloat16: _cpu.Dtype.bfloat16,
    torch.float16: _cpu.Dtype.float16,
    torch.float8_e4m3fn: _cpu.Dtype.float8_e4m3fn,
}


def build_tree(parents: Tensor, offsets: Tensor, words: int) -> tuple[Tensor, Tensor]:
    rows = parents.shape[0]
    ancestors = parents.new_empty(rows, words, dtype=torch.int64)
    depth = torch.empty_like(parents)
    _cpu.build_tree(
        parents.data_ptr(),
        offsets.data_ptr(),
        offsets.shape[0] - 1,
        rows,
        words,
        ancestors.data_ptr(),
        depth.data_ptr(),
    )
    return ancestors, depth


def tree_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    page_table: Tensor,
    prefix_lens: Tensor,
    n_nodes: Tensor,
    offsets: Tensor,
    ancestors: Tensor,
    depth: Tensor,
    *,
    scale: float,
    softcap: float = 0.0,
    window: int = -1,
    k_scale: float = 1.0,
    k_scales: Tensor | None = None,
    v_scale: float = 1.0,
    v_scales: Tensor | None = None,
    sinks: Tensor | None = None,
    with_lse: bool = False,
    batch_invariant: bool = False,
) -> tuple[Tensor, Tensor]:
    out = q.new_empty(*q.shape[:2], v_cache.shape[3])
    lse = q.new_empty(q.shape[:2] if with_lse else 0, dtype=torch.float32)
    _cpu.tree_attention(
        q.data_ptr(),
        DTYPES[q.dtype],
        q.shape[1],
        cache_of(k_cache),
        cache_of(v_cache),
        prefix_lens.shape[0],
        q.shape[0],
        ancestors.shape[1],
        page_table.shape[1],
        page_table.data_ptr(),
        prefix_lens.data_ptr(),
        n_nodes.data_ptr(),
        offsets.data_ptr(),
        ancestors.data_ptr(),
        depth.data_ptr(),
        scale,
        softcap,
        window,
        k_scale,
        address_of(k_scales),
        v_scale,
        address_of(v_scales),
        address_of(sinks),
        out.data_ptr(),
        lse.data_ptr() if with_lse else 0,
    )
    return out, lse


def append_kv(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    *,
    k_scale: float = 1.0,
    k_scales: Tensor | None = None,
    v_scale: float = 1.0,
    v_scales: Tensor | None = None,
) -> None:
    _cpu.append_kv(
        k.data_ptr(),
        v.data_ptr(),
        DTYPES[k.dtype],
        cache_of(k_cache),
        cache_of(v_cache),
        slots.data_ptr(),
        slots.shape[0],
        k_scale,
        address_of(k_scales),
        v_scale,
        address_of(v_scales),
    )


def rope_append_kv(
    qkv: Tensor,
    qk_norm: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    *,
    eps: float = 1e-6,
    k_scale: float = 1.0,
    k_scales: Tensor | None = None,
    v_scale: float = 1.0,
    v_scales: Tensor | None = None,
) -> Tensor:
    heads, dim = k_cache.shape[2:]
    q = qkv.new_empty(qkv.shape[0], qkv.shape[1] - 2 * heads, dim)
    norms = None if qk_norm is None else qk_norm.float()
    _cpu.rope_append_kv(
        qkv.data_ptr(),
        qkv.stride(0),
        qkv[:, -heads:].data_ptr(),
        qkv.stride(0),
        DTYPES[qkv.dtype],
        q.shape[1],
        address_of(norms),
        eps,
        cos.data_ptr(),
        sin.data_ptr(),
        cos.shape[0],
        positions.data_ptr(),
        cache_of(k_cache),
        cache_of(v_cache),
        slots.data_ptr(),
        slots.shape[0],
        k_scale,
        address_of(k_scales),
        v_scale,
        address_of(v_scales),
        q.data_ptr(),
    )
    return q


def rms_norm(x: Tensor, weight: Tensor, eps: float, delta: Tensor | None = None) -> Tensor:
    out = torch.empty_like(x)
    _cpu.rms_norm(
        x.data_ptr(),
        address_of(delta),
        weight.data_ptr(),
        DTYPES[x.dtype],
        x.shape[0],
        x.shape[1],
        eps,
        out.data_ptr(),
    )
    return out


def silu_mul(gate_up: Tensor) -> Tensor:
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, width)
    _cpu.silu_mul(gate_up.data_ptr(), DTYPES[gate_up.dtype], rows, width, out.data_ptr())
    return out


def compact_kv(
    kv: Tensor, page_table: Tensor, prefix_lens: Tensor, path: Tensor, accepted_lens: Tensor
) -> None:
    layers, parts, pages, page_size, heads, dim = kv.shape
    size = kv.element_size()
    planes = _cpu.Planes(
        kv.data_ptr(),
        layers,
        parts,
        pages,
        page_size,
        heads,
        dim * size,
        *(stride * size for stride in kv.stride()[:5]),
    )
    _cpu.compact_kv(
        planes,
        page_table.data_ptr(),
        page_table.shape[1],
        prefix_lens.data_ptr(),
        path.data_ptr(),
        accepted_lens.data_ptr(),
        path.shape[0],
        path.shape[1],
    )


def verify(
    tokens: Tensor, ancestors: Tensor, offsets: Tensor, target: Tensor, max_path: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch = offsets.shape[0] - 1
    path = offsets.new_empty(batch, max_path)
    accepted_lens = offsets.new_empty(batch)
    bonus = target.new_empty(batch)
    _cpu.verify(
        tokens.data_ptr(),
        ancestors.data_ptr(),
        offsets.data_ptr(),
        target.data_ptr(),
        batch,
        tokens.shape[0],
        ancestors.shape[1],
        max_path,
        path.data_ptr(),
        accepted_lens.data_ptr(),
        bonus.data_ptr(),
    )
    return path, accepted_lens, bonus


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
    out = logits.new_empty(rows, dtype=torch.int64)
    _cpu.target_tokens(
        logits.data_ptr(),
        rows,
        vocabulary,
        temperature.data_ptr(),
        top_k.data_ptr(),
        top_p.data_ptr(),
        min_p.data_ptr(),
        seed.data_ptr(),
        position.data_ptr(),
        *_masks_of(mask, mask_row),
        out.data_ptr(),
    )
    return out


def _masks_of(mask: Tensor | None, mask_row: Tensor | None) -> tuple[int, int, int]:
    """Masks [M, words] and the one of each row [N] as C++ sees them."""
    if mask is None or mask_row is None:
        return 0, 0, 0
    return mask.data_ptr(), mask.shape[0], mask_row.data_ptr()


def edit_logits(
    logits: Tensor,
    tokens: Tensor,
    ancestors: Tensor,
    offsets: Tensor,
    text_offsets: Tensor,
    text_tokens: Tensor,
    text_counts: Tensor,
    bias_offsets: Tensor,
    bias_tokens: Tensor,
    bias_values: Tensor,
    repetition: Tensor,
    frequency: Tensor,
    presence: Tensor,
) -> None:
    rows, vocabulary = logits.shape
    _cpu.edit_logits(
        logits.data_ptr(),
        rows,
        vocabulary,
        tokens.data_ptr(),
        ancestors.data_ptr(),
        ancestors.shape[1],
        offsets.data_ptr(),
        repetition.shape[0],
        text_offsets.data_ptr(),
        text_tokens.data_ptr(),
        text_counts.data_ptr(),
        text_tokens.shape[0],
        bias_offsets.data_ptr(),
        bias_tokens.data_ptr(),
        bias_values.data_ptr(),
        bias_tokens.shape[0],
        repetition.data_ptr(),
        frequency.data_ptr(),
        presence.data_ptr(),
    )


def token_logprobs(logits: Tensor, tokens: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, vocabulary = logits.shape
    logprobs = logits.new_empty(rows)
    top_tokens, top_logprobs = tokens.new_empty(rows, n), logits.new_empty(rows, n)
    _cpu.token_logprobs(
        logits.data_ptr(),
        rows,
        vocabulary,
        tokens.data_ptr(),
        n,
        logprobs.data_ptr(),
        top_tokens.data_ptr(),
        top_logprobs.data_ptr(),
    )
    return logprobs, top_tokens, top_logprobs


def draft_topk(
    logits: Tensor,
    k: int,
    temperature: Tensor,
    seed: Tensor,
    position: Tensor,
    token_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    rows, vocabulary = logits.shape
    ids = logits.new_empty(rows, k, dtype=torch.int64)
    logprobs = logits.new_empty(rows, k)
    _cpu.draft_topk(
        logits.data_ptr(),
        rows,
        vocabulary,
        k,
        temperature.data_ptr(),
        seed.data_ptr(),
        position.data_ptr(),
        address_of(token_ids),
        ids.data_ptr(),
        logprobs.data_ptr(),
    )
    return ids, logprobs


def linear(
    x: Tensor,
    weight: Tensor,
    out_features: int,
    bias: Tensor | None = None,
    scales: Tensor | None = None,
) -> Tensor:
    out = x.new_empty(x.shape[0], out_features)
    packed = linear_of(weight, out_features, bias)
    _cpu.multiply(packed, x.data_ptr(), x.shape[0], out.data_ptr())
    return out


def linear_of(panels: Tensor, out_features: int, bias: Tensor | None = None) -> _cpu.Linear:
    """Packed weights [ceil(M / 64), K, 64], or sets of such, and a bias [M] f32, for C++."""
    return _cpu.Linear(
        panels.data_ptr(),
        DTYPES[panels.dtype],
        panels.shape[-2],
        out_features,
        address_of(bias),
    )


def pack_quantized(stored: Tensor, kind: int) -> Tensor:
    outputs, inputs = _stored_shape(stored, kind)
    packed = stored.new_empty(FORMS[kind].packed_bytes(outputs, inputs))
    _cpu.pack_quantized(stored.data_ptr(), _cpu.Quant(kind), outputs, inputs, packed.data_ptr())
    return packed


def dequantize(stored: Tensor, kind: int) -> Tensor:
    rows, inputs = _stored_shape(stored, kind)
    out = stored.new_empty(rows, inputs, dtype=torch.float32)
    _cpu.dequantize(stored.data_ptr(), _cpu.Quant(kind), rows, inputs, out.data_ptr())
    return out


def quantized_linear(
    x: Tensor,
    packed: Tensor,
    kinds: list[int],
    sizes: list[int],
    exact: bool,
    bias: Tensor | None = None,
) -> Tensor:
    rows, inputs = x.shape
    out = x.new_empty(rows, sum(sizes))
    weight = QuantizedWeight(packed, tuple(kinds), tuple(sizes), inputs)
    _cpu.multiply(quantized_of(weight, exact, bias), x.data_ptr(), rows, out.data_ptr())
    return out


def route(
    logits: Tensor,
    k: int,
    scoring: str,
    normalise: bool,
    scale: float,
    bias: Tensor | None,
    n_groups: int,
    top_groups: int,
    group_best: int,
) -> tuple[Tensor, Tensor]:
    rows, n_experts = logits.shape
    experts, weights = logits.new_empty(rows, k, dtype=torch.int32), logits.new_empty(rows, k)
    _cpu.route(
        logits.data_ptr(),
        rows,
        n_experts,
        k,
        scoring == "sigmoid",
        normalise,
        scale,
        0 if bias is None else bias.data_ptr(),
        n_groups,
        top_groups,
        group_best,
        experts.data_ptr(),
        weights.data_ptr(),
    )
    return experts, weights


def grouped_linear(
    x: Tensor, weight: Tensor, out_features: int, groups: Tensor, bias: Tensor | None
) -> Tensor:
    sets = _cpu.Linear(weight.data_ptr(), DTYPES[weight.dtype], weight.shape[2], out_features, 0)
    return _grouped(x, sets, weight.shape[0], out_features, groups, bias)


def grouped_quantized_linear(
    x: Tensor,
    packed: Tensor,
    kinds: list[int],
    sizes: list[int],
    groups: Tensor,
    bias: Tensor | None,
    exact: bool,
) -> Tensor:
    weight = QuantizedWeight(packed, tuple(kinds), tuple(sizes), x.shape[1])
    return _grouped(
        x, quantized_of(weight, exact), packed.shape[0], weight.out_features, groups, bias
    )


def _grouped(
    x: Tensor, sets: _cpu.Linear, n_sets: int, outputs: int, groups: Tensor, bias: Tensor | None
) -> Tensor:
    out = x.new_empty(groups.numel(), outputs)
    _cpu.grouped_multiply(
        sets,
        groups.data_ptr(),
        n_sets,
        groups.shape[1],
        0 if bias is None else bias.data_ptr(),
        x.data_ptr(),
        x.shape[0],
        out.data_ptr(),
    )
    return out


def weighted_sum(y: Tensor, weights: Tensor) -> Tensor:
    (rows, parts), width = weights.shape, y.shape[1]
    out = y.new_empty(rows, width)
    dtype = DTYPES[y.dtype]
    _cpu.weighted_sum(y.data_ptr(), dtype, weights.data_ptr(), rows, parts, width, out.data_ptr())
    return out


def quantized_of(
    weight: QuantizedWeight, exact: bool = False, bias: Tensor | None = None
) -> _cpu.Linear:
    """A packed weight and a bias [M] f32 as C++ sees them."""
    return _cpu.Linear(
        weight.packed.data_ptr(),
        [_cpu.Quant(kind) for kind in weight.kinds],
        list(weight.sizes),
        exact,
        weight.in_features,
        weight.out_features,
        address_of(bias),
    )


def _stored_shape(stored: Tensor, kind: int) -> tuple[int, int]:
    """Outputs and inputs of rows as a GGUF file has them."""
    form = FORMS[kind]
    return stored.shape[0], stored.shape[1] // form.stored_bytes * form.inputs


def cache_of(cache: Tensor) -> _cpu.Cache:
    """cache [P, S, Hk, D] as C++ sees it."""
    return _cpu.Cache(cache.data_ptr(), DTYPES[cache.dtype], *cache.shape, *cache.stride()[:3])


def address_of(tensor: Tensor | None) -> int:
    """Of a tensor that may be missing; 0 is null in C++."""
    return 0 if tensor is None else tensor.data_ptr()
