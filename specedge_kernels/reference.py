"""The specification: every op in plain torch, same name and signature as on the public page.

Written to be read, not to be fast: loops over requests and nodes, one formula at a time. It is
the oracle of the tests and the baseline of the benches. Shapes and letters: see
`specedge_kernels/__init__.py`; checks of arguments live in `ops.py`.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from specedge_kernels.quantized import FORMS, Form, QuantizedWeight

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 / golden ratio, as a signed 64-bit integer
LN2 = 0.693147182
FLOAT_MAX = torch.finfo(torch.float32).max
# (log(1 + f) - f) / f^2 for 1 + f from sqrt(1/2) to sqrt(2), by falling power: the minimax fit of
# the relative error of log(1 + f), 1.8e-7.
LOG1P = (
    *(-0.100823812, 0.161805019, -0.172432244, 0.199068829),
    *(-0.249712288, 0.333347142, -0.500003219),
)


def build_tree(parents: Tensor, offsets: Tensor, words: int) -> tuple[Tensor, Tensor]:
    """Ancestor masks and depths. parents [N] i32, offsets [B+1] i32 -> [N, W] i64, [N] i32."""
    n = parents.shape[0]
    ancestors = torch.zeros(n, words, dtype=torch.int64)
    depth = torch.zeros(n, dtype=torch.int32)
    for first, end in zip(offsets.tolist(), offsets.tolist()[1:], strict=False):
        for node in range(end - first):
            row, parent = first + node, int(parents[first + node])
            if parent >= 0:
                ancestors[row] = ancestors[first + parent]
                depth[row] = depth[first + parent] + 1
            if node < 64 * words:
                ancestors[row, node // 64] |= _bit(node % 64)
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
    k_scale: float | Tensor = 1.0,
    v_scale: float | Tensor = 1.0,
    sinks: Tensor | None = None,
    return_lse: bool = False,
    batch_invariant: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of each query node over its prefix and its own ancestors.

    sinks [Hq]: of each head one more score, whose value is zero. Returns [N, Hq, Dv], and with
    return_lse the logarithm of each row's sum of exponentials [N, Hq] f32. One row at a time, so
    batch_invariant as it is.
    """
    out = q.new_empty(*q.shape[:2], v_cache.shape[3])
    lse = q.new_empty(q.shape[:2], dtype=torch.float32)
    page_size, group = k_cache.shape[1], q.shape[1] // k_cache.shape[2]
    bounds = offsets.tolist()
    for b in range(len(bounds) - 1):
        prefix, total, first, end = int(prefix_lens[b]), int(n_nodes[b]), bounds[b], bounds[b + 1]
        for row in range(first, end):
            node = total - (end - first) + (row - first)
            path = visible_nodes(ancestors[row], int(depth[row]), node)
            positions = torch.tensor([*range(prefix), *(prefix + j for j in path)])
            if window >= 0:  # the last `window` tokens of the path, itself included
                positions = positions[-window:] if window else positions[:0]
            pages = page_table[b][positions // page_size].long()
            keys = k_cache[pages, positions % page_size].to(q.dtype) * _of_heads(k_scale)
            values = v_cache[pages, positions % page_size].to(q.dtype) * _of_heads(v_scale)
            keys, values = (kv.repeat_interleave(group, 1) for kv in (keys, values))
            scores = torch.einsum("hd,khd->hk", q[row], keys) * scale  # [Hq, keys]
            if softcap > 0:
                scores = softcap * torch.tanh(scores / softcap)
            if sinks is not None:
                scores = torch.cat((scores, sinks[:, None].to(q.dtype)), -1)
            weights = scores.softmax(-1)[:, : len(values)]
            out[row] = torch.einsum("hk,khd->hd", weights, values)
            lse[row] = scores.logsumexp(-1)
    return (out, lse) if return_lse else out


def visible_nodes(mask: Tensor, depth: int, node: int) -> list[int]:
    """The path from the prefix to `node`, itself last.

    A node whose depth equals its index is preceded by its ancestors only, so chains (prompt
    chunks) may be longer than the mask.
    """
    if depth == node:
        return list(range(node + 1))
    words = [int(word) for word in mask]
    return [j for j in range(node + 1) if words[j // 64] >> (j % 64) & 1]


def append_kv(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    *,
    k_scale: float | Tensor = 1.0,
    v_scale: float | Tensor = 1.0,
) -> None:
    """Write k / k_scale [N, Hk, D], v / v_scale [N, Hk, Dv] at slots [N] i64 of 0 or more."""
    page_size = k_cache.shape[1]
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0:
            place = slot // page_size, slot % page_size
            k_cache[place] = _stored(k[row], k_scale, k_cache.dtype)
            v_cache[place] = _stored(v[row], v_scale, v_cache.dtype)


def _of_heads(scale: float | Tensor) -> float | Tensor:
    """A scale for all heads, or of each head [Hk], for tensors [..., Hk, D]."""
    return scale[:, None] if isinstance(scale, Tensor) else scale


def _stored(x: Tensor, scale: float | Tensor, dtype: torch.dtype) -> Tensor:
    """x / scale, rounded to nearest even; float8 saturates at its greatest number."""
    scaled = x.float() / _of_heads(scale)
    if dtype == torch.float8_e4m3fn:
        scaled = scaled.clamp(-448, 448)
    return scaled.to(dtype)


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
    k_scale: float | Tensor = 1.0,
    v_scale: float | Tensor = 1.0,
) -> Tensor:
    """Normalise and turn the q and k of qkv [N, Hq + 2 Hk, D], append k and v, return q."""
    heads, dim = k_cache.shape[2:]
    qk, v = qkv[:, :-heads].float(), qkv[:, -heads:]
    if qk_norm is not None:
        qk = qk * torch.rsqrt(qk.pow(2).mean(-1, keepdim=True) + eps) * qk_norm
    turned = qk * cos[positions][:, None] + qk.roll(dim // 2, -1) * sin[positions][:, None]
    scales = {"k_scale": k_scale, "v_scale": v_scale}
    append_kv(turned[:, -heads:], v, k_cache, v_cache, slots, **scales)
    return turned[:, :-heads].to(qkv.dtype, memory_format=torch.contiguous_format, copy=True)


def rms_norm(x: Tensor, weight: Tensor, eps: float, delta: Tensor | None = None) -> Tensor:
    """x += delta [N, H] in place, then x / rms(x) * weight [H], rounded once."""
    if delta is not None:
        x += delta
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def silu_mul(gate_up: Tensor) -> Tensor:
    """gate * sigmoid(gate) * up of gate_up [N, 2 I] -> [N, I], rounded once."""
    gate, up = gate_up.float().chunk(2, dim=1)
    return (gate * torch.sigmoid(gate) * up).to(gate_up.dtype)


def compact_kv(
    kv: Tensor, page_table: Tensor, prefix_lens: Tensor, path: Tensor, accepted_lens: Tensor
) -> None:
    """Move node path[b, j] to position prefix_lens[b] + j, for all layers; kv [L,X,P,S,Hk,D]."""
    page_size = kv.shape[3]
    for b in range(path.shape[0]):
        prefix, count = int(prefix_lens[b]), int(accepted_lens[b])
        source = prefix + path[b, :count].long()
        target = prefix + torch.arange(count)
        moved = kv[:, :, page_table[b][source // page_size].long(), source % page_size].clone()
        kv[:, :, page_table[b][target // page_size].long(), target % page_size] = moved


def verify(
    tokens: Tensor, ancestors: Tensor, offsets: Tensor, target: Tensor, max_path: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Walk each tree along the target's tokens: path [B, A] i32, accepted_lens [B], bonus [B].

    target[v] is the token that follows node v; a node is accepted if its token is the target of
    its parent and its parent is accepted. Roots (no ancestor but themselves) are always accepted.
    """
    bounds = offsets.tolist()
    batch = len(bounds) - 1
    path = torch.full((batch, max_path), -1, dtype=torch.int32)
    accepted_lens = torch.zeros(batch, dtype=torch.int32)
    bonus = torch.full((batch,), -1, dtype=torch.int64)
    for b in range(batch):
        first, end = bounds[b], bounds[b + 1]
        best: list[int] = []
        accepted: dict[int, list[int]] = {}
        for node in range(end - first):
            ancestry = visible_nodes(ancestors[first + node], -1, node)
            parent = ancestry[-2] if len(ancestry) > 1 else -1
            if parent < 0 or (
                parent in accepted and tokens[first + node] == target[first + parent]
            ):
                accepted[node] = ancestry
                best = max(best, ancestry, key=len)
        if best:
            path[b, : len(best)] = torch.tensor(best, dtype=torch.int32)
            accepted_lens[b] = len(best)
            bonus[b] = target[first + best[-1]]
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
    """The target's own token after each row: argmax of logit / T + noise over allowed tokens.

    The row's greatest logit / T is subtracted first, so that float32 resolves the sums where they
    compete: two of 152,064 equal tokens share the greatest in less than one draw of a million.

    All of temperature, top_k, top_p, min_p, seed, position are [N]; logits [N, V] f32. A logit
    that row mask_row [N] i32 of the mask [M, W] i32 forbids is as good as -inf. Returns [N] i64;
    -1 marks a row with a NaN or without a finite maximum. Ties go to the lowest id.
    """
    out = torch.empty(logits.shape[0], dtype=torch.int64)
    for row in range(logits.shape[0]):
        values, heat = logits[row].float(), temperature[row].clamp(max=FLOAT_MAX)
        if mask is not None and mask_row is not None and mask_row[row] >= 0:
            permitted = mask_bits(mask[mask_row[row]], torch.arange(values.shape[0]))
            values = values.masked_fill(~permitted, -math.inf)
        if values.isnan().any() or not values.max().isfinite():
            out[row] = -1
        elif not heat > 0 or not (values.max() / heat).isfinite():
            out[row] = values.argmax()
        else:
            scaled = values / heat
            allowed = _allowed(scaled, int(top_k[row]), float(top_p[row]), float(min_p[row]))
            noise = gumbel(int(seed[row]), int(position[row]), torch.arange(values.shape[0]))
            noisy = scaled - scaled.max() + noise
            out[row] = noisy.masked_fill(~allowed, -math.inf).argmax()
    return out


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
    """Bias, then penalties: logits [N, V] f32 in place, at the tokens of each row's text alone.

    The text of a row is its request's tokens, with their counts in the output, and the tokens of
    its own node and that node's ancestors but node 0. Tokens of the text have their logit divided
    (or, below 0, multiplied) by the repetition penalty; those of the output are lowered by
    frequency times their count, and once by presence.
    """
    bounds, texts, biases = offsets.tolist(), text_offsets.tolist(), bias_offsets.tolist()
    for b in range(len(bounds) - 1):
        first, text = bounds[b], slice(texts[b], texts[b + 1])
        bias = slice(biases[b], biases[b + 1])
        counts = dict(zip(text_tokens[text].tolist(), text_counts[text].tolist(), strict=True))
        for row in range(first, bounds[b + 1]):
            logits[row, bias_tokens[bias]] += bias_values[bias]
            path = visible_nodes(ancestors[row], -1, row - first)
            drafted = [int(tokens[first + node]) for node in path if node > 0]
            for token in {*counts, *drafted}:
                count, x = counts.get(token, 0) + drafted.count(token), logits[row, token]
                x = x / repetition[b] if x > 0 else x * repetition[b]
                x = x - frequency[b] * count
                logits[row, token] = x - presence[b] if count > 0 else x


def token_logprobs(logits: Tensor, tokens: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """log_softmax of logits [N, V] f32 at tokens [N] i64 and at the n best of each row.

    Returns [N] f32, [N, n] i64 and [N, n] f32, best first, ties to the lowest token. NaN for token
    -1; NaN and -1 throughout for a row with a NaN or without a finite maximum.
    """
    all_of_row = logits.double().log_softmax(-1).float()
    order = torch.sort(logits, dim=-1, descending=True, stable=True).indices[:, :n]
    logprobs = all_of_row.gather(1, tokens.clamp(min=0)[:, None])[:, 0]
    tops = all_of_row.gather(1, order)
    broken = ~logits.amax(-1).isfinite()  # the maximum of a row with a NaN is NaN
    return (
        logprobs.masked_fill(broken | (tokens < 0), math.nan),
        order.masked_fill(broken[:, None], -1),
        tops.masked_fill(broken[:, None], math.nan),
    )


def mask_bits(words: Tensor, tokens: Tensor) -> Tensor:
    """Bit t % 32 of word t / 32 of a mask's row [W] i32, for tokens [X] -> [X] bool."""
    return (words[tokens // 32] >> (tokens % 32) & 1).bool()


def _allowed(scaled: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Tokens kept by top-k, then top-p of what is left, and min-p; the likeliest always stays."""
    order = torch.sort(scaled, descending=True, stable=True).indices
    keep = torch.ones_like(order, dtype=torch.bool)
    if top_k > 0:
        keep[top_k:] = False
    if top_p < 1:
        p = scaled[order].masked_fill(~keep, -math.inf).double().softmax(-1)
        keep &= p.cumsum(-1) - p < top_p  # keeps the token that crosses top_p
    if min_p > 0:
        keep &= scaled[order] >= scaled[order[0]] + math.log(min_p)
    keep[0] = True
    return torch.zeros_like(keep).scatter(0, order, keep)


def draft_topk(
    logits: Tensor,
    k: int,
    temperature: Tensor,
    seed: Tensor,
    position: Tensor,
    token_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k likeliest next tokens given the noise: ids [N, k] i64 and log-probabilities [N, k].

    The noise of the position is known to the drafter, so the target's choice is uncertain only
    through the difference of the two models: children are ranked, and weighed, by
    log_softmax(logits + T * noise), which is the plain log_softmax at T = 0. Columns stand for
    the tokens token_ids [V] (default: 0 .. V-1).
    """
    tokens = torch.arange(logits.shape[1]) if token_ids is None else token_ids
    noise = torch.stack(
        [gumbel(s, p, tokens) for s, p in zip(seed.tolist(), position.tolist(), strict=True)]
    )
    coupled = (logits.float() + temperature[:, None].clamp(min=0) * noise).log_softmax(-1)
    order = torch.sort(coupled, dim=-1, descending=True, stable=True).indices[:, :k]
    return tokens[order], coupled.gather(1, order)


def gumbel(seed: int | Tensor, position: int | Tensor, tokens: Tensor) -> Tensor:
    """Standard Gumbel noise of (seed, position, token), a pure function. tokens [X] -> [X] f32.

    seed and position may be [X] i64 as well.
    """
    key = _mix(_mix(torch.as_tensor(seed)) + (torch.as_tensor(position) + 1) * GOLDEN)
    return gumbel_of(_mix(key + (tokens.long() + 1) * GOLDEN))


def gumbel_of(bits: Tensor) -> Tensor:
    """-log(-log(1 - v)) of v = (bits | 1) / 2^64, the bits [X] i64 read as unsigned -> [X] f32.

    Either end has full relative precision, so the noise reaches from -3.79 to 44.36. Only float32
    operations that IEEE 754 fixes, one rounding each: equal on every machine, to the last bit.
    """
    is_upper = bits < 0
    nearer = bits ^ (bits >> 63)
    high, low = nearer >> 32, (nearer & 0xFFFFFFFF) >> 1
    r = (high.float() + (low.float() + 0.5) * 2.0**-31) * 2.0**-32  # the lesser of v and 1 - v
    exponent, f = _split(torch.where(is_upper, r, 1 - r))
    f = torch.where(exponent == 0, -r, f)  # where 1 - r is rounded, r itself is exact
    exponent, f = _split(-_log(exponent, f))
    return -_log(exponent, f)


def pack_linear(weight: Tensor) -> Tensor:
    """weight [M, K] -> panels [ceil(M / 64), K, 64], so that 64 outputs are read side by side."""
    (outputs, inputs), whole = weight.shape, len(weight) // 64
    panels = weight.new_zeros(-(-outputs // 64), inputs, 64)
    panels[:whole] = weight[: whole * 64].unflatten(0, (whole, 64)).transpose(1, 2)
    if whole < len(panels):
        panels[whole, :, : outputs % 64] = weight[whole * 64 :].T
    return panels


def linear(
    x: Tensor,
    weight: Tensor,
    out_features: int,
    bias: Tensor | None = None,
    scales: Tensor | None = None,
) -> Tensor:
    """x [N, K] times panels or a weight [M, K], summed in float32 -> [N, M] in x's type."""
    if weight.dim() == 3:
        weight = weight.transpose(1, 2).reshape(-1, weight.shape[1])[:out_features]
    values = weight.float()
    if scales is not None:
        blocks = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
        values = values * blocks[: values.shape[0], : values.shape[1]]
    sums = x.float() @ values.T
    return (sums if bias is None else sums + bias.float()).to(x.dtype)


def route(
    logits: Tensor,
    k: int,
    *,
    scoring: str = "softmax",
    normalise: bool = False,
    scale: float = 1.0,
    bias: Tensor | None = None,
    n_groups: int = 1,
    top_groups: int = 1,
    group_best: int = 2,
) -> tuple[Tensor, Tensor]:
    """The k experts of each row and their weights: [N, k] i32 and [N, k] f32 of logits [N, E] f32.

    Chosen by logit, with a bias or groups by score + bias; weighed by score alone. Ties go to the
    lowest expert.
    """
    wide = logits.double()
    scores = wide.sigmoid() if scoring == "sigmoid" else wide.softmax(-1)
    ranks = logits
    if bias is not None or n_groups > 1:
        ranks = scores.float() + (0 if bias is None else bias)
    if n_groups > 1:
        members = ranks.unflatten(1, (n_groups, -1))  # [N, groups, E / groups]
        group_ranks = members.topk(group_best, dim=-1).values.sum(-1)
        best_groups = torch.sort(group_ranks, dim=-1, descending=True, stable=True).indices
        is_open = torch.zeros_like(group_ranks, dtype=torch.bool)
        is_open.scatter_(1, best_groups[:, :top_groups], True)
        ranks = members.masked_fill(~is_open[..., None], -math.inf).flatten(1)
    experts = torch.sort(ranks, dim=-1, descending=True, stable=True).indices[:, :k]
    weights = scores.gather(1, experts)
    if normalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return experts.int(), (weights * scale).float()


def grouped_linear(
    x: Tensor, weight: Tensor, out_features: int, groups: Tensor, bias: Tensor | None = None
) -> Tensor:
    """x [N, K] times set groups[n, j] of packed weights, plus its bias [E, M] -> [N k, M]."""
    return _grouped(x, groups, bias, out_features, lambda x, e: linear(x, weight[e], out_features))


def grouped_quantized_linear(
    x: Tensor,
    weight: QuantizedWeight,
    groups: Tensor,
    bias: Tensor | None = None,
    *,
    exact: bool = False,
) -> Tensor:
    """The same with quantised sets: packed [E, bytes]."""
    sets = [replace(weight, packed=packed) for packed in weight.packed]
    return _grouped(
        x, groups, bias, weight.out_features, lambda x, e: quantized_linear(x, sets[e], exact=exact)
    )


def _grouped(
    x: Tensor,
    groups: Tensor,
    bias: Tensor | None,
    outputs: int,
    product: Callable[[Tensor, int], Tensor],
) -> Tensor:
    """One pair of a row and a set at a time; zeros where the set is -1."""
    out = x.new_zeros(groups.numel(), outputs)
    for pair, e in enumerate(groups.flatten().tolist()):
        if e >= 0:
            row = x[pair // groups.shape[1]][None]
            out[pair] = product(row, e)[0] + (0 if bias is None else bias[e])
    return out


def weighted_sum(y: Tensor, weights: Tensor) -> Tensor:
    """The sum of weights[n, j] * y[n k + j], in the order of j, rounded to y's type -> [N, M]."""
    parts = y.view(*weights.shape, -1).float()
    total = torch.zeros_like(parts[:, 0]) if parts.shape[1] else y.new_zeros(len(y), y.shape[1])
    for j in range(weights.shape[1]):
        total = total + weights[:, j, None] * parts[:, j]
    return total.to(y.dtype)


def dequantize(stored: Tensor, kind: int) -> Tensor:
    """Rows [N, bytes] u8 of a file -> [N, K] f32; gguf-py defines ggml's formats."""
    form = FORMS[kind]
    if form.float8:
        groups = stored.unflatten(1, (-1, form.stored_bytes))
        scales, codes = groups[..., :4], groups[..., 4:]
        numbers = codes.contiguous().view(torch.float8_e4m3fn).float()
        weights: Tensor = numbers * scales.contiguous().view(torch.float32)
        return weights.flatten(1)
    from gguf import GGMLQuantizationType, quants

    return torch.from_numpy(quants.dequantize(stored.numpy(), GGMLQuantizationType(kind)))


def quantized_linear(
    x: Tensor, weight: QuantizedWeight, *, exact: bool = False, bias: Tensor | None = None
) -> Tensor:
    """x [N, K] times a packed weight, plus bias -> [N, M].

    x is rounded to 8 bits, but for `exact` and for float8.
    """
    parts = zip(weight.kinds, unpack_quantized(weight).split(weight.sizes), strict=True)
    products = (
        (x.float() if exact or FORMS[kind].float8 else round_activations(x)) @ values.T
        for kind, values in parts
    )
    sums = torch.cat(list(products), 1)
    return (sums if bias is None else sums + bias.float()).to(x.dtype)


def round_activations(x: Tensor) -> Tensor:
    """x [N, K] f32 with each 32 of a row as integers in -127 .. 127 times a scale of their own."""
    blocks = x.unflatten(1, (-1, 32))
    largest = blocks.abs().amax(-1, keepdim=True)
    codes = (blocks * (127 / largest)).round()  # halves to even
    rounded = torch.where(largest < 2.0**-100, 0.0, codes * (largest / 127))
    return torch.where(largest.isfinite(), rounded, math.nan).flatten(1)


def unpack_quantized(weight: QuantizedWeight) -> Tensor:
    """The values [M, K] f32 of a packed weight: what the bytes of quant_form.h mean."""
    values, start = [], 0
    for kind, size in zip(weight.kinds, weight.sizes, strict=True):
        form = FORMS[kind]
        n_bytes = form.packed_bytes(size, weight.in_features)
        part = weight.packed[start : start + n_bytes]
        values.append(_unpacked(part, form, weight.in_features)[:size])
        start += n_bytes
    return torch.cat(values)


def unpack_rows(weight: QuantizedWeight, ids: Tensor) -> Tensor:
    """Rows ids [n] i64 of a packed weight of one format, [n, K] f32, on the weight's device."""
    (kind,) = weight.kinds
    form, inputs = FORMS[kind], weight.in_features
    panels = weight.packed.view(-1, form.packed_bytes(1, inputs))[ids // 8]
    values = _unpacked(panels.flatten(), form, inputs).view(-1, 8, inputs)
    return values[torch.arange(len(ids), device=ids.device), ids % 8]


def _unpacked(packed: Tensor, form: Form, inputs: int) -> Tensor:
    """Whole panels of one format -> [8 panels, K] f32. Letters: p panels, n groups, b blocks."""
    groups = packed.view(-1, inputs // form.inputs, form.group_bytes)  # [p, n, bytes]
    head, blocks = groups.split([form.head_bytes, form.group * form.block_bytes], -1)
    blocks = blocks.unflatten(-1, (form.group, form.block_bytes))  # [p, n, b, bytes]
    factors, codes = blocks.split([8 * form.factors, 256 * form.bits // 8], -1)
    if form.float8:
        scale, minimum = head.contiguous().view(torch.float32)[:, :, None, None], torch.zeros(())
    else:
        halves = head.contiguous().view(torch.float16).float().unflatten(-1, (form.halves, 1, 8))
        factors = factors.unflatten(-1, (form.factors, 8)).movedim(3, 0)  # [factors, p, n, b, 8]
        scale, minimum = _scales(form, halves.movedim(2, 0), factors)
    values: Tensor = (
        _codes(form, codes).float() - form.offset
    ) * scale + minimum  # [p, n, b, 32, 8]
    return values.permute(0, 4, 1, 2, 3).flatten(2).flatten(0, 1)


def _codes(form: Form, codes: Tensor) -> Tensor:
    """The codes [..., bytes] u8 of blocks -> integers, or numbers, [..., 32, 8]."""
    found: Tensor
    if form.bits == 8:
        dtype = torch.float8_e4m3fn if form.float8 else torch.int8
        found = codes.contiguous().view(dtype).unflatten(-1, (8, 8, 4))
    else:
        low = codes[..., :128].unflatten(-1, (4, 8, 4))
        found = torch.cat((low & 15, low >> 4), -3)  # [..., 8 groups, 8 outputs, 4 inputs]
        shifts = torch.arange(8, dtype=torch.uint8, device=codes.device)[:, None, None]
        if form.bits == 5:
            found = found | (codes[..., 128:].unflatten(-1, (1, 8, 4)) >> shifts & 1) << 4
        if form.bits == 6:
            planes = codes[..., 128:].unflatten(-1, (2, 8, 4)).repeat_interleave(4, -3)
            found = found | (planes >> shifts % 4 * 2 & 3) << 4
    if form.table:
        found = _table(form, found.device)[found.long()]
    return found.transpose(-1, -2).flatten(-3, -2)


@functools.cache
def _table(form: Form, device: torch.device) -> Tensor:
    """Kept: a copy to a GPU could not be part of a recorded pass."""
    return torch.tensor(form.table, device=device)


def _scales(form: Form, halves: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """halves [halves, p, n, 1, 8] f32, factors [factors, p, n, b, 8] u8 -> the scale of each code
    and its minimum, both to be broadcast to [p, n, b, 32, 8]."""
    if form.halves == 0:  # half of 2^(factor - 127)
        return torch.exp2(factors[0].float() - 128)[..., None, :], torch.zeros(())
    if form.factors:
        signed = factors.view(torch.int8).float()
        if form.halves == 2:
            scale, minimum = halves[0] * signed[0], -halves[1] * signed[1]
            return scale[..., None, :], minimum[..., None, :]
        # one scale for all 32 codes, or one for each 16
        scales = (halves[0] * signed).movedim(0, -2)  # [p, n, b, factors, 8]
        return scales.repeat_interleave(32 // form.factors, -2), torch.zeros(())
    return halves[0][..., None, :], halves[1][..., None, :] if form.halves == 2 else torch.zeros(())


def _mix(z: Tensor) -> Tensor:
    """The finaliser of splitmix64, in wrapping 64-bit arithmetic."""
    z = (z ^ _shift(z, 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    z = (z ^ _shift(z, 27)) * (0x94D049BB133111EB - (1 << 64))
    return z ^ _shift(z, 31)


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """x = 2^e (1 + f) with 1 + f from sqrt(1/2) to sqrt(2), for normal x > 0: e, f."""
    offset = x.view(torch.int32) - 0x3F3504F3
    return (offset >> 23).float(), ((offset & 0x7FFFFF) + 0x3F3504F3).view(torch.float32) - 1


def _log(exponent: Tensor, f: Tensor) -> Tensor:
    """log(2^exponent (1 + f))."""
    p = torch.full_like(f, LOG1P[0])
    for coefficient in LOG1P[1:]:
        p = p * f + coefficient
    return exponent * LN2 + (f * f * p + f)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right of signed 64-bit integers."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _bit(index: int) -> int:
    """1 << index as a signed 64-bit integer."""
    return (1 << index) - (1 << 64) * (index == 63)
