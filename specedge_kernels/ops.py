"""The public page: every op with its shapes, checks and sources.

Each function checks metadata (devices, types, shapes, strides), never values on an accelerator,
and calls the implementation for its device through torch's dispatcher, so all of them work under
torch.compile. On a CPU values are checked too, before anything is written. A wrong argument is a
ValueError that says what was expected, and so is a tensor that gradients are wanted for: no op has
any. Letters: see `specedge_kernels/__init__.py`; the meaning of each op in plain torch:
`reference.py`. Knows nothing of models, requests or networks.
"""

import torch
from torch import Tensor

from specedge_kernels import reference
from specedge_kernels.library import DEVICES
from specedge_kernels.quantized import FORMS, Form, QuantizedWeight

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
CACHED = (*FLOATS, torch.float8_e4m3fn)
PANEL = 64  # outputs that lie side by side in packed weights
SCALE_BLOCK = 128  # outputs and inputs of float8 weights that share a scale
MOST_FLOAT, MOST_INT = torch.finfo(torch.float32).max, torch.iinfo(torch.int64).max

_ops = torch.ops.specedge


def build_tree(parents: Tensor, offsets: Tensor, words: int) -> tuple[Tensor, Tensor]:
    """Ancestor masks and depths of the batch's trees.

    parents [N] int32: the parent's number inside its own request, -1 for a node under the prefix;
    parents precede children. offsets [B+1] int32: request b owns rows offsets[b] .. offsets[b+1]-1.
    Returns ancestors [N, words] int64, where bit j of node v says that j is v or an ancestor of v,
    and depth [N] int32. Nodes from 64 * words on have no bit of their own, which suits chains.

    Tree masks: SpecInfer (arXiv:2305.09781) section 4.2, one bit per node instead of a matrix.
    """
    _check_device("build_tree", parents, offsets)
    _check("parents", parents, torch.int32, (None,))
    _check("offsets", offsets, torch.int32, (None,))
    _expect(offsets.shape[0] >= 1, "offsets", "at least one entry", "none")
    _check_count("words", words, 1)
    return _ops.build_tree.default(parents, offsets, words)


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

    q [N, Hq, D] float32, bfloat16 or float16; k_cache [P, S, Hk, D] and v_cache [P, S, Hk, Dv] of
    any of these types or float8_e4m3fn and any strides with D and Dv contiguous; Hq a multiple of
    Hk; on a GPU D at most 576 and Dv 512 (256 in float32). Values may be a part of the keys,
    v_cache a view of k_cache, as in absorbed latent attention (DeepSeek-V2, arXiv:2405.04434,
    section 2.1). A key is what is stored times k_scale, a value what is stored times v_scale: a
    number, or [Hk] float32 for each head.
    page_table [B, M] int32; prefix_lens and n_nodes [B] int32; offsets [B+1] int32; ancestors
    [N, W] int64 and depth [N] int32 as from `build_tree`. The KV of node j lies at position
    prefix_len + j and is already written. The rows of request b are its last nodes: row r is node
    n_nodes[b] - rows_b + r. A prompt chunk is a chain (depth equals node) and may be longer than
    the mask; a decode step is a tree of one node. window >= 0 keeps the last `window` tokens of a
    node's path, itself included. softcap > 0 bounds scores by softcap * tanh(score / softcap).
    sinks [Hq] float32, finite or -inf: for each head one more score, neither scaled nor capped, of
    a key without a value (StreamingLLM, arXiv:2309.17453, section 3.2).
    Returns [N, Hq, Dv] in q's type, and with return_lse also [N, Hq] float32: the natural logarithm
    of the sum of e^score over what the row sees and its sink, -inf if nothing. With it the results
    of one query over disjoint tokens, one of them with the sinks, can be merged (FlashInfer,
    arXiv:2501.01005, section 2.2).
    With batch_invariant the bits of a row depend on its own path alone: as the last token of a
    prefix, as a node of any tree and in any batch it gets the same ones. On a CPU that is always
    so; a GPU pays for it with a fixed tile, fixed splits and a gather of every node's last keys.

    Tree attention: SpecInfer (arXiv:2305.09781) section 4.2; paged cache: PagedAttention
    (arXiv:2309.06180); online softmax: FlashAttention (arXiv:2205.14135).
    """
    tables = (page_table, prefix_lens, n_nodes, offsets, ancestors, depth)
    scales_and_sinks = _tensors(k_scale, v_scale) + (() if sinks is None else (sinks,))
    _check_device("tree_attention", q, k_cache, v_cache, *tables, *scales_and_sinks)
    _check_scoring(scale, softcap, window)
    _check_flags(return_lse=return_lse, batch_invariant=batch_invariant)
    _check("q", q, FLOATS, (None, None, None))
    _check("prefix_lens", prefix_lens, torch.int32, (None,))
    rows, batch = q.shape[0], prefix_lens.shape[0]
    _check_cache("k_cache", k_cache, (None, None, None, q.shape[2]))
    _check_cache("v_cache", v_cache, (*k_cache.shape[:3], None))
    heads = k_cache.shape[2]
    shared = heads > 0 and q.shape[1] > 0 and q.shape[1] % heads == 0
    _expect(shared, "q", f"a multiple of {heads} heads", q.shape[1])
    _check("page_table", page_table, torch.int32, (batch, None))
    _check("n_nodes", n_nodes, torch.int32, (batch,))
    _check("offsets", offsets, torch.int32, (batch + 1,))
    _check("ancestors", ancestors, torch.int64, (rows, None))
    _check("depth", depth, torch.int32, (rows,))
    if sinks is not None:
        _check("sinks", sinks, torch.float32, (q.shape[1],))
    out, lse = _ops.tree_attention.default(
        q,
        k_cache,
        v_cache,
        *tables,
        scale=scale,
        softcap=softcap,
        window=window,
        **_scales(k_scale, v_scale, heads),
        sinks=sinks,
        with_lse=return_lse,
        batch_invariant=batch_invariant,
    )
    return (out, lse) if return_lse else out


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
    """Write keys and values into the paged cache, in place.

    k [N, Hk, D] and v [N, Hk, Dv] float32, bfloat16 or float16, of one type; k_cache [P, S, Hk, D]
    and v_cache [P, S, Hk, Dv] of any of these types or float8_e4m3fn and any strides with D and Dv
    contiguous; slots [N] int64 = page * S + offset, distinct; rows with a negative slot are
    skipped. Stored is k / k_scale and v / v_scale, each a number, or [Hk] float32 for each head;
    rounded to nearest even; float8 saturates at 448. Dv may be 0: where values are a part of the
    keys, keys are all there is to write.
    """
    _check_device("append_kv", k, v, k_cache, v_cache, slots, *_tensors(k_scale, v_scale))
    _check_cache("k_cache", k_cache, (None, None, None, None))
    _check_cache("v_cache", v_cache, (*k_cache.shape[:3], None))
    _check_distinct("k_cache", k_cache)
    _check_distinct("v_cache", v_cache)
    _check("k", k, FLOATS, (None, *k_cache.shape[2:]))
    _check("v", v, k.dtype, (k.shape[0], *v_cache.shape[2:]))
    _check("slots", slots, torch.int64, (k.shape[0],))
    scales = _scales(k_scale, v_scale, k_cache.shape[2])
    _ops.append_kv.default(k, v, k_cache, v_cache, slots, **scales)


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
    """From a layer's projections to its queries and its cache: norm, rotary position, append.

    qkv [N, Hq + 2 Hk, D] float32, bfloat16 or float16: query, key and value heads of each row; D
    even. qk_norm [Hq + Hk, D] of any of these types: weights of an RMS norm of each query and key
    head with eps, None for no norm. cos, sin [C, D] float32, of which row positions[n] turns row n:
    dimension d turns together with d + D/2, and the first half of sin is negated. positions [N]
    int64 in 0 .. C-1, also of skipped rows. k_cache, v_cache [P, S, Hk, D], slots [N] int64 and
    scales as for `append_kv`.
    Returns the turned queries [N, Hq, D] in qkv's type. Everything between is float32. On a CPU the
    bits are those of `rms_norm` for each head and torch's products and sums.

    Rotary position: RoFormer (arXiv:2104.09864); norm of queries and keys: arXiv:2302.05442.
    """
    norms = () if qk_norm is None else (qk_norm,)
    tables = (cos, sin, positions, k_cache, v_cache, slots)
    _check_device("rope_append_kv", qkv, *norms, *tables, *_tensors(k_scale, v_scale))
    _check_cache("k_cache", k_cache, (None, None, None, None))
    _check_cache("v_cache", v_cache, tuple(k_cache.shape))
    _check_distinct("k_cache", k_cache)
    _check_distinct("v_cache", v_cache)
    heads, dim = k_cache.shape[2:]
    _check("qkv", qkv, FLOATS, (None, None, dim))
    rows, all_heads = qkv.shape[:2]
    _expect(dim % 2 == 0, "qkv", "an even D", dim)
    _expect(0 < 2 * heads < all_heads, "qkv", f"more than {2 * heads} heads", all_heads)
    if qk_norm is not None:
        _check("qk_norm", qk_norm, FLOATS, (all_heads - heads, dim))
    _check("cos", cos, torch.float32, (None, dim))
    _check("sin", sin, torch.float32, tuple(cos.shape))
    _check("positions", positions, torch.int64, (rows,))
    _check("slots", slots, torch.int64, (rows,))
    _check_eps(eps)
    return _ops.rope_append_kv.default(
        qkv,
        qk_norm,
        cos,
        sin,
        positions,
        k_cache,
        v_cache,
        slots,
        eps=eps,
        **_scales(k_scale, v_scale, heads),
    )


def compact_kv(
    kv: Tensor, page_table: Tensor, prefix_lens: Tensor, path: Tensor, accepted_lens: Tensor
) -> None:
    """Move the KV of each accepted path next to its prefix, all layers, in place.

    kv [L, X, P, S, Hk, D] of any type, D contiguous: X = 2 for keys and values, 1 where they lie
    side by side in D or are the same; page_table [B, M] int32; prefix_lens [B] int32; path [B, A]
    int32: node numbers, strictly increasing; accepted_lens [B] int32. Node path[b, j] moves to
    position prefix_lens[b] + j for j < accepted_lens[b]. Where anything moves, the pages from the
    prefix's end on are the request's own.
    """
    _check_device("compact_kv", kv, page_table, prefix_lens, path, accepted_lens)
    _expect(kv.dim() == 6, "kv", "shape [L, X, P, S, Hk, D]", kv.shape)
    if kv.shape[5] > 1 and kv.stride(5) != 1:
        raise ValueError(f"kv: expected D contiguous, got strides {kv.stride()}")
    _check_distinct("kv", kv)
    _expect(kv.shape[3] >= 1, "kv", "pages of at least one token", kv.shape)
    _check("prefix_lens", prefix_lens, torch.int32, (None,))
    batch = prefix_lens.shape[0]
    _check("page_table", page_table, torch.int32, (batch, None))
    _check("path", path, torch.int32, (batch, None))
    _check("accepted_lens", accepted_lens, torch.int32, (batch,))
    _ops.compact_kv.default(kv, page_table, prefix_lens, path, accepted_lens)


def verify(
    tokens: Tensor, ancestors: Tensor, offsets: Tensor, target: Tensor, max_path: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Walk each tree along the target's own tokens.

    tokens [N] int64; ancestors [N, W] int64 and offsets [B+1] int32 as for `build_tree`, trees of
    at most 64 W nodes; target [N] int64: the token that follows each node. A root is accepted; any
    other node is accepted if its parent is and its token is its parent's target. Returns path
    [B, max_path] int32 (the deepest accepted node's path, the lowest numbered of equals, -1
    beyond), accepted_lens [B] int32, and bonus [B] int64, the target after that node (-1 for an
    empty tree). A path longer than max_path is an error on a CPU and cut elsewhere.

    Sample-and-match over a tree: SpecInfer (arXiv:2305.09781) section 4.3, with the target's draw
    fixed by counter-based noise (arXiv:2408.07978).
    """
    _check_device("verify", tokens, ancestors, offsets, target)
    _check("tokens", tokens, torch.int64, (None,))
    _check("ancestors", ancestors, torch.int64, (tokens.shape[0], None))
    _check("offsets", offsets, torch.int32, (None,))
    _check("target", target, torch.int64, tuple(tokens.shape))
    _expect(offsets.shape[0] >= 1, "offsets", "at least one entry", "none")
    _check_count("max_path", max_path, 0)
    return _ops.verify.default(tokens, ancestors, offsets, target, max_path)


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

    logits [N, V] float32, V >= 1; temperature [N] float32 (plain argmax where it is 0, less, or so
    small that the greatest logit / T overflows); top_k [N] int32 (0 or less: all); top_p [N]
    float32 (1 or more: all); min_p [N] float32 (0: all); seed and position [N] int64, of which the
    Gumbel noise of each token is a pure function, with the same bits on every processor and device
    (reference.gumbel). It reaches from -3.79 to 44.36: a token 25 nats below the best is drawn as
    often as its probability. Top-k comes first, top-p counts what top-k left, the likeliest token
    always stays. Ties go to the lowest id.
    mask [M, ceil(V / 32)] int32, M from 0 on: bit t % 32 of word t / 32 says that token t may be
    drawn (llguidance's form). mask_row [N] int32 names the row of `mask` for each row of logits, -1
    where all tokens are allowed; several may name the same. Both are given or neither. The logits
    of other tokens count as -inf, whatever they are, so limits see only what is allowed.
    Returns [N] int64; -1 marks a row that has a NaN or no finite maximum among the tokens allowed.

    Gumbel-max draw with shared counter-based noise: arXiv:2408.07978.
    """
    rows = (temperature, top_k, top_p, min_p, seed, position)
    masks = _check_masks(mask, mask_row)
    _check_device("target_tokens", logits, *rows, *masks)
    _check("logits", logits, torch.float32, (None, None))
    _expect(logits.shape[1] >= 1, "logits", "at least one token", logits.shape)
    n = logits.shape[0]
    _check("temperature", temperature, torch.float32, (n,))
    _check("top_k", top_k, torch.int32, (n,))
    _check("top_p", top_p, torch.float32, (n,))
    _check("min_p", min_p, torch.float32, (n,))
    _check("seed", seed, torch.int64, (n,))
    _check("position", position, torch.int64, (n,))
    if masks:
        _check("mask", masks[0], torch.int32, (None, -(-logits.shape[1] // 32)))
        _check("mask_row", masks[1], torch.int32, (n,))
    return _ops.target_tokens.default(logits, *rows, *masks)


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
    """Bias and penalties of each request, in place, before `target_tokens` draws.

    logits [N, V] float32 are changed at the tokens named here alone. The rows are the nodes of
    trees, as for `verify`: tokens [N] int64, ancestors [N, W] int64, offsets [B+1] int32; node 0 of
    a request is the last token of its text. Plain decoding is a tree of one node.
    The text of request b is entries text_offsets[b] .. text_offsets[b+1]-1 (int32 [B+1]) of
    text_tokens [K] int64, distinct and rising, and text_counts [K] int32: how often each is in the
    output, 0 if it is in the prompt alone. To it each row adds, as output, the drafted tokens of
    its node and the node's ancestors but node 0. bias_offsets [B+1] int32, bias_tokens [J] int64,
    distinct and rising in each request, and bias_values [J] float32 (not NaN) name biases in the
    same way. Entries beyond the last offset are not looked at, so that K and J may be padded.
    Three steps, each rounded to float32: the bias is added; a logit of a token in the text is
    divided by repetition [B] float32 (above 0; 1: none) if it is above 0 and multiplied by it
    otherwise; a token that is `count` times in the output loses frequency * count and, if count is
    not 0, presence (both [B] float32; 0: none). A row's bits do not depend on its batch.

    Order and meaning: vLLM. Repetition penalty: CTRL (arXiv:1909.05858, section 4.1).
    """
    lists = (text_offsets, text_tokens, text_counts, bias_offsets, bias_tokens, bias_values)
    numbers = (repetition, frequency, presence)
    _check_device("edit_logits", logits, tokens, ancestors, offsets, *lists, *numbers)
    _check("logits", logits, torch.float32, (None, None))
    n = logits.shape[0]
    _check("tokens", tokens, torch.int64, (n,))
    _check("ancestors", ancestors, torch.int64, (n, None))
    _check("repetition", repetition, torch.float32, (None,))
    batch = repetition.shape[0]
    _check("frequency", frequency, torch.float32, (batch,))
    _check("presence", presence, torch.float32, (batch,))
    _check("offsets", offsets, torch.int32, (batch + 1,))
    _check("text_offsets", text_offsets, torch.int32, (batch + 1,))
    _check("text_tokens", text_tokens, torch.int64, (None,))
    _check("text_counts", text_counts, torch.int32, tuple(text_tokens.shape))
    _check("bias_offsets", bias_offsets, torch.int32, (batch + 1,))
    _check("bias_tokens", bias_tokens, torch.int64, (None,))
    _check("bias_values", bias_values, torch.float32, tuple(bias_tokens.shape))
    _ops.edit_logits.default(logits, tokens, ancestors, offsets, *lists, *numbers)


def token_logprobs(logits: Tensor, tokens: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The log-probability of a token of each row, and the n best with theirs.

    logits [N, V] float32, V >= 1, as the model gave them: before `edit_logits`, which changes them
    in place, and before any temperature or mask. tokens [N] int64 in 0 .. V-1, or -1 for none;
    0 <= n <= V, on a GPU at most 64. Returns logprobs [N] float32 = log_softmax(logits)[tokens],
    top_tokens [N, n] int64 and top_logprobs [N, n] float32, best first, ties to the lowest token.
    Token -1 has NaN, and a row with a NaN or without a finite maximum has -1 and NaN throughout.
    The exponentials of a row are summed in float64 (float32 on a GPU) in a fixed order, so that its
    bits do not depend on its batch, nor on the instruction set of a CPU.
    """
    _check_device("token_logprobs", logits, tokens)
    _check("logits", logits, torch.float32, (None, None))
    rows, vocabulary = logits.shape
    _expect(vocabulary >= 1, "logits", "at least one token", logits.shape)
    _check("tokens", tokens, torch.int64, (rows,))
    _expect(
        isinstance(n, int | torch.SymInt) and 0 <= n <= vocabulary, "n", f"0 .. {vocabulary}", n
    )
    return _ops.token_logprobs.default(logits, tokens, n)


def draft_topk(
    logits: Tensor,
    k: int,
    temperature: Tensor,
    seed: Tensor,
    position: Tensor,
    token_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k likeliest next tokens given the noise of each row's position.

    logits [N, V] float32; 1 <= k <= V; temperature [N] float32; seed and position [N] int64;
    token_ids [V] int64: the tokens that the columns stand for (default 0 .. V-1). Ranked by
    log_softmax(logits + T * noise), ties to the lowest column. Returns ids [N, k] int64 and their
    log-probabilities [N, k] float32, best first.

    Drafting coupled with the target's noise: arXiv:2408.07978, arXiv:2506.05632.
    """
    columns = () if token_ids is None else (token_ids,)
    _check_device("draft_topk", logits, temperature, seed, position, *columns)
    _check("logits", logits, torch.float32, (None, None))
    n, vocabulary = logits.shape
    _expect(
        isinstance(k, int | torch.SymInt) and 1 <= k <= vocabulary, "k", f"1 .. {vocabulary}", k
    )
    _check("temperature", temperature, torch.float32, (n,))
    _check("seed", seed, torch.int64, (n,))
    _check("position", position, torch.int64, (n,))
    if token_ids is not None:
        _check("token_ids", token_ids, torch.int64, (vocabulary,))
    return _ops.draft_topk.default(logits, k, temperature, seed, position, token_ids)


def pack_linear(weight: Tensor) -> Tensor:
    """weight [M, K] float32, bfloat16 or float16 -> as `linear` reads it on the weight's device.

    On a CPU panels [ceil(M / 64), K, 64], with zeros for outputs beyond M; on a GPU the weight
    itself, contiguous. Done once, at load.
    """
    _check_tensors("pack_linear", weight)
    _expect(
        weight.dtype in FLOATS and weight.dim() == 2,
        "weight",
        f"a tensor [M, K] of {_names(FLOATS)}",
        f"{weight.dtype} {_shape(weight)}",
    )
    return weight.contiguous() if weight.device.type == "cuda" else reference.pack_linear(weight)


def linear(
    x: Tensor,
    weight: Tensor,
    out_features: int,
    bias: Tensor | None = None,
    scales: Tensor | None = None,
) -> Tensor:
    """x @ weight.T + bias -> [N, M] in x's type, with a weight from `pack_linear`.

    x [N, K] and bias [M] are float32 on a CPU, and weight [ceil(M / 64), K, 64] float32, bfloat16
    or float16; M = out_features. Every output is one float32 accumulation in increasing k. On a GPU
    all of them are of one of these types and the weight is [M, K]; sums are float32, of chunks at
    fixed places of K, which are added in order. There the weight may also be float8_e4m3fn, with
    scales [ceil(M / 128), ceil(K / 128)] float32: each block of 128 x 128 is what is stored times
    its scale (DeepSeek-V3, arXiv:2412.19437, section 3.3).
    The bias is added last, before the one rounding. A row has the same bits alone and in any batch,
    whatever N and the number of threads.
    """
    given = tuple(tensor for tensor in (bias, scales) if tensor is not None)
    _check_device("linear", x, weight, *given)
    _check_count("out_features", out_features, 0)
    _check("x", x, FLOATS if x.device.type == "cuda" else torch.float32, (None, None))
    inputs = x.shape[1]
    if x.device.type != "cuda":
        _expect(scales is None, "scales", "none on a CPU, which has no float8 weights", "a tensor")
        _check("weight", weight, FLOATS, (-(-out_features // PANEL), inputs, PANEL))
    elif scales is None:
        _check("weight", weight, x.dtype, (out_features, inputs))
    else:
        _check("weight", weight, torch.float8_e4m3fn, (out_features, inputs))
        blocks = -(-out_features // SCALE_BLOCK), -(-inputs // SCALE_BLOCK)
        _check("scales", scales, torch.float32, blocks)
    if bias is not None:
        _check("bias", bias, x.dtype, (out_features,))
    return _ops.linear.default(x, weight, out_features, bias, scales)


def pack_quantized(stored: Tensor, kind: int) -> QuantizedWeight:
    """Quantised weights as a GGUF file has them, repacked for `quantized_linear`.

    stored [M, bytes] uint8: the blocks of each output, one output a row, such as the file mapped
    into memory; kind: ggml's number of the format, one of `quantized.FORMS`, or 256 and 257 for
    groups of 128 and of 32 float8_e4m3fn behind their float32 scale. Rows in another order
    are `stored[order]`. Done once, at load; no weight is ever a float. The host packs what lies on
    a GPU, and the packed weight lies there too.
    """
    _check_device("pack_quantized", stored)
    inputs = _check_stored(stored, kind)
    packed = _ops.pack_quantized.default(stored, kind)
    return QuantizedWeight(packed, (kind,), (stored.shape[0],), inputs)


def dequantize(stored: Tensor, kind: int) -> Tensor:
    """Quantised rows as a GGUF file has them -> [N, K] float32, such as the rows of an embedding.

    stored [N, bytes] uint8, kind: as for `pack_quantized`. The values have the bits that gguf-py's
    `dequantize` gives. For a GPU the host computes them.
    """
    _check_device("dequantize", stored)
    _check_stored(stored, kind)
    return _ops.dequantize.default(stored, kind)


def quantized_linear(
    x: Tensor, weight: QuantizedWeight, *, exact: bool = False, bias: Tensor | None = None
) -> Tensor:
    """x [N, K] times a packed quantised weight [M, K], plus bias [M] -> [N, M], all of one type.

    On a CPU x is float32. The activations are rounded to 8 bits: 32 consecutive ones of a row share
    the scale s = largest magnitude / 127, and each becomes the integer nearest to x / s. Products
    of integers are summed exactly, the blocks of 32 in float32 in increasing k. With `exact` the
    activations stay as they are, and the result has the bits of `linear` on the dequantised weight.
    Either way a row has the same bits alone and in any batch, with any number of threads, and
    without `exact` on every processor that has fused multiply-adds.
    Weights of float8 are always multiplied `exact`ly, as their products are no integers.
    32 activations whose largest is below 2^-100 count as 0; where one is not finite its row is NaN.
    On a GPU x is float32, bfloat16 or float16 and is never rounded, nor are weights: the codes of a
    block, which all these types hold, are multiplied with x, and the sums with the block's scales,
    in float32. There too a row has the same bits in any batch.
    An output with a scale or minimum that is not finite is not finite. The bias is added last.

    Block formats and 8-bit activations: ggml.
    """
    packed = isinstance(weight, QuantizedWeight)
    _expect(packed, "weight", "what pack_quantized returns", type(weight).__name__)
    biases = () if bias is None else (bias,)
    _check_device("quantized_linear", x, weight.packed, *biases)
    types = FLOATS if x.device.type == "cuda" else torch.float32
    _check("x", x, types, (None, weight.in_features))
    _check_quantized(weight)
    _check_flags(exact=exact)
    if bias is not None:
        _check("bias", bias, x.dtype, (weight.out_features,))
    return _ops.quantized_linear.default(x, weight.packed, weight.kinds, weight.sizes, exact, bias)


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
    """The experts of each row in a mixture of experts, and what their outputs are weighed by.

    logits [N, E] float32; 1 <= k <= E. An expert's score is the softmax of the row's logits, or
    with scoring "sigmoid" the sigmoid of its own. The k experts of the highest logits are chosen,
    with bias [E] float32 those of the highest score + bias; ties go to the lowest. Where the E
    experts are n_groups equal groups, only experts of the top_groups best are chosen, a group being
    as good as the sum of its group_best highest scores (+ bias). A weight is the expert's score,
    without bias, with `normalise` divided by the sum of the k, times scale: softmax of the k
    logits alone is softmax with `normalise`.
    Returns experts [N, k] int32, best first, and weights [N, k] float32, which are NaN for a row
    without a softmax. A row's bits do not depend on its batch.

    Choice by bias, and by groups: DeepSeek-V3 (arXiv:2412.19437) section 2.1.2.
    """
    biases = () if bias is None else (bias,)
    _check_device("route", logits, *biases)
    _check("logits", logits, torch.float32, (None, None))
    n_experts = logits.shape[1]
    _check_within("k", k, n_experts)
    _expect(scoring in ("softmax", "sigmoid"), "scoring", "softmax or sigmoid", scoring)
    _check_flags(normalise=normalise)
    _expect(_is_finite(scale), "scale", "a finite float32", scale)
    if bias is not None:
        _check("bias", bias, torch.float32, (n_experts,))
    _check_within("n_groups", n_groups, n_experts)
    _expect(n_experts % n_groups == 0, "n_groups", f"a divisor of {n_experts}", n_groups)
    _check_within("top_groups", top_groups, n_groups)
    size = n_experts // n_groups
    _expect(k <= top_groups * size, "top_groups", f"groups of {k} experts together", top_groups)
    if n_groups > 1:
        _check_within("group_best", group_best, size)
    chosen = (n_groups, top_groups, group_best)
    return _ops.route.default(logits, k, scoring, normalise, scale, bias, *chosen)


def grouped_linear(
    x: Tensor, weight: Tensor, out_features: int, groups: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Each row of x [N, K] times k of E sets of weights -> [N k, M]: experts, or adapters.

    groups [N, k] int32 in -1 .. E-1: row n k + j of the result is x[n] times set groups[n, j] plus
    bias [E, M] float32 of that set, and zeros where that is -1. A set that no row names costs
    nothing; one that many name is read once for all.
    On a CPU x is float32, weight [E, ceil(M / 64), K, 64] float32, bfloat16 or float16, as from
    `pack_linear` for each set, and a row has the bits of `linear`. On a GPU x is float32, bfloat16
    or float16 and weight [E, M, K] of its type. M = out_features. A row's bits do not depend on the
    rows beside it, nor on who shares its set.

    One launch for all experts: MegaBlocks (arXiv:2211.15841); for adapters: Punica
    (arXiv:2310.18547).
    """
    biases = () if bias is None else (bias,)
    _check_device("grouped_linear", x, weight, groups, *biases)
    _check_count("out_features", out_features, 0)
    if x.device.type == "cuda":
        _check("x", x, FLOATS, (None, None))
        _check("weight", weight, x.dtype, (None, out_features, x.shape[1]))
    else:
        _check("x", x, torch.float32, (None, None))
        panels = -(-out_features // PANEL)
        _check("weight", weight, FLOATS, (None, panels, x.shape[1], PANEL))
    _check_groups(x, groups, bias, weight.shape[0], out_features)
    return _ops.grouped_linear.default(x, weight, out_features, groups, bias)


def grouped_quantized_linear(
    x: Tensor,
    weight: QuantizedWeight,
    groups: Tensor,
    bias: Tensor | None = None,
    *,
    exact: bool = False,
) -> Tensor:
    """`grouped_linear` with quantised weights: x [N, K] -> [N k, M] of its type.

    x as for `quantized_linear`, whose bits a row has, and exact too; weight: E sets of the same
    formats, as from `QuantizedWeight.stacked`; groups [N, k] int32 and bias [E, M] float32 as for
    `grouped_linear`.
    """
    packed = isinstance(weight, QuantizedWeight)
    _expect(packed, "weight", "what QuantizedWeight.stacked returns", type(weight).__name__)
    biases = () if bias is None else (bias,)
    _check_device("grouped_quantized_linear", x, weight.packed, groups, *biases)
    types = FLOATS if x.device.type == "cuda" else torch.float32
    _check("x", x, types, (None, weight.in_features))
    _expect(weight.packed.dim() == 2, "packed", "[E, bytes]", weight.packed.shape)
    _check_quantized(weight, weight.packed.shape[:1])
    _check_groups(x, groups, bias, weight.packed.shape[0], weight.out_features)
    _check_flags(exact=exact)
    quantized = (weight.packed, weight.kinds, weight.sizes)
    return _ops.grouped_quantized_linear.default(x, *quantized, groups, bias, exact)


def weighted_sum(y: Tensor, weights: Tensor) -> Tensor:
    """What the experts of each row gave, as one: y [N k, M], weights [N, k] float32 -> [N, M].

    y float32, bfloat16 or float16. Row n is the sum of weights[n, j] * y[n k + j], in float32 in
    the order of j, every product and sum rounded by itself, and rounded to y's type at the end.
    """
    _check_device("weighted_sum", y, weights)
    _check("weights", weights, torch.float32, (None, None))
    _check("y", y, FLOATS, (weights.shape[0] * weights.shape[1], None))
    return _ops.weighted_sum.default(y, weights)


def rms_norm(x: Tensor, weight: Tensor, eps: float, delta: Tensor | None = None) -> Tensor:
    """x + delta, in place, and its RMS norm times weight.

    x [N, H] float32, bfloat16 or float16; delta [N, H] of the same type is added to x in place, if
    given; weight [H] of the same type. Returns x / sqrt(mean(x^2) + eps) * weight [N, H] of the sum
    as stored, computed in float32 and rounded once. A row's bits do not depend on its batch.

    RMS norm: arXiv:1910.07467.
    """
    deltas = () if delta is None else (delta,)
    _check_device("rms_norm", x, weight, *deltas)
    _check("x", x, FLOATS, (None, None))
    _check("weight", weight, x.dtype, (x.shape[1],))
    _check_eps(eps)
    if delta is not None:
        _check("delta", delta, x.dtype, tuple(x.shape))
    return _ops.rms_norm.default(x, weight, eps, delta)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, the middle of a gated MLP (SwiGLU, arXiv:2002.05202).

    gate_up [N, 2 I] float32, bfloat16 or float16: gate, then up. Returns [N, I], computed in
    float32. A row's bits do not depend on its batch.
    """
    _check_device("silu_mul", gate_up)
    _check("gate_up", gate_up, FLOATS, (None, None))
    _expect(gate_up.shape[1] % 2 == 0, "gate_up", "an even number of columns", gate_up.shape[1])
    return _ops.silu_mul.default(gate_up)


def _check_device(op: str, first: Tensor, *others: Tensor) -> None:
    """Tensors on one device that has the op, none of which awaits a gradient."""
    _check_tensors(op, first, *others)
    device = first.device
    for other in others:
        if other.device != device:
            raise ValueError(f"{op}: expected all tensors on {device}, got one on {other.device}")
    if device.type not in DEVICES[op]:
        devices = " and ".join(name for name in DEVICES[op] if name != "meta")
        raise ValueError(f"{op} has no implementation for {device.type}; it runs on {devices}")


def _check_tensors(op: str, *given: Tensor) -> None:
    may_negate, has_grads = not torch.compiler.is_compiling(), torch.is_grad_enabled()
    for tensor in given:
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{op}: expected a tensor, got {type(tensor).__name__}")
        # Numbers that lie in memory as they are: no sparse or nested tensor, no view that negates.
        plain = tensor.layout == torch.strided and not tensor.is_nested
        if not plain or (may_negate and tensor.is_neg()):
            peculiarity = _peculiarity(tensor)
            raise ValueError(f"{op}: expected a plain dense tensor, got one that is {peculiarity}")
        if has_grads and tensor.requires_grad:
            raise ValueError(
                f"{op} has no gradient, and one is wanted for a tensor of shape {_shape(tensor)}: "
                "call it under torch.no_grad(), or give tensor.detach()"
            )


def _check(
    name: str,
    tensor: Tensor,
    dtypes: torch.dtype | tuple[torch.dtype, ...],
    shape: tuple[int | None, ...],
) -> None:
    """A contiguous tensor of one of the types and this shape, None being any size."""
    if isinstance(dtypes, torch.dtype):
        dtypes = (dtypes,)
    if tensor.dtype not in dtypes or not _fits(tensor, shape) or not tensor.is_contiguous():
        raise ValueError(
            f"{name}: expected a contiguous {_names(dtypes)} tensor of shape {_pattern(shape)}, "
            f"got {tensor.dtype} {_shape(tensor)} with strides {list(tensor.stride())}"
        )


def _check_masks(mask: Tensor | None, mask_row: Tensor | None) -> tuple[Tensor, ...]:
    """Both or neither of them."""
    given = tuple(tensor for tensor in (mask, mask_row) if tensor is not None)
    _expect(len(given) != 1, "mask and mask_row", "both or neither", "one")
    return given


def _check_cache(name: str, cache: Tensor, shape: tuple[int | None, ...]) -> None:
    if (
        cache.dtype not in CACHED
        or not _fits(cache, shape)
        or (cache.stride(3) != 1 and cache.shape[3] > 1)
        or cache.shape[1] < 1
    ):
        raise ValueError(
            f"{name}: expected a {_names(CACHED)} cache [P, S, Hk, D] of shape {_pattern(shape)} "
            f"with D contiguous, got {cache.dtype} {_shape(cache)} "
            f"with strides {list(cache.stride())}"
        )


def _check_distinct(name: str, written: Tensor) -> None:
    """No two elements of what is written to are one in memory, as after Tensor.expand."""
    for size, stride in zip(written.shape, written.stride(), strict=True):
        if size > 1 and stride <= 0:
            raise ValueError(f"{name}: expected no stride of 0, got strides {written.stride()}")


def _check_stored(stored: Tensor, kind: int) -> int:
    """Rows of whole groups of a format; their inputs."""
    form = _form(kind)
    _check("stored", stored, torch.uint8, (None, None))
    n_bytes = stored.shape[1]
    whole = n_bytes % form.stored_bytes == 0
    _expect(whole, "stored", f"rows of a multiple of {form.stored_bytes} bytes", n_bytes)
    return n_bytes // form.stored_bytes * form.inputs


def _check_quantized(weight: QuantizedWeight, sets: tuple[int, ...] = ()) -> None:
    parts = len(weight.kinds), len(weight.sizes)
    _expect(parts[0] == parts[1], "kinds and sizes", "one of each a part", parts)
    n_bytes = 0
    for kind, size in zip(weight.kinds, weight.sizes, strict=True):
        form = _form(kind)
        _check_count("sizes", size, 0)
        whole = weight.in_features % form.inputs == 0
        _expect(whole, "in_features", f"a multiple of {form.inputs}", weight.in_features)
        n_bytes += form.packed_bytes(size, weight.in_features)
    _check("packed", weight.packed, torch.uint8, (*sets, n_bytes))


def _check_groups(
    x: Tensor, groups: Tensor, bias: Tensor | None, n_sets: int, outputs: int
) -> None:
    _check("groups", groups, torch.int32, (x.shape[0], None))
    if bias is not None:
        _check("bias", bias, torch.float32, (n_sets, outputs))


def _form(kind: int) -> Form:
    if not isinstance(kind, int) or kind not in FORMS:
        names = ", ".join(f"{number} ({form.name})" for number, form in FORMS.items())
        raise ValueError(f"kind: expected one of {names}, got {kind}")
    return FORMS[kind]


def _tensors(*given: object) -> tuple[Tensor, ...]:
    return tuple(value for value in given if isinstance(value, Tensor))


def _scales(
    k_scale: float | Tensor, v_scale: float | Tensor, heads: int
) -> dict[str, float | Tensor | None]:
    """As the implementations take them: a number for all heads, and maybe one for each."""
    scales: dict[str, float | Tensor | None] = {}
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        if isinstance(scale, Tensor):
            _check(name, scale, torch.float32, (heads,))
            scales |= {name: 1.0, name + "s": scale}
        else:
            _expect(
                _is_finite(scale) and scale > 0, name, "more than 0, and a finite float32", scale
            )
            scales |= {name: scale, name + "s": None}
    return scales


def _check_scoring(scale: float, softcap: float, window: int) -> None:
    _expect(_is_finite(scale), "scale", "a finite float32", scale)
    _expect(
        _is_finite(softcap) and softcap >= 0, "softcap", "0 or more, and a finite float32", softcap
    )
    _check_count("window", window, -1)


def _check_eps(eps: float) -> None:
    _expect(_is_finite(eps) and eps >= 0, "eps", "0 or more, and a finite float32", eps)


def _check_count(name: str, value: int, least: int) -> None:
    holds = isinstance(value, int | torch.SymInt) and value >= least
    _expect(holds, name, f"{least} or more", value)
    _expect(not isinstance(value, int) or value <= MOST_INT, name, "an int64", value)


def _check_within(name: str, value: int, most: int) -> None:
    holds = isinstance(value, int | torch.SymInt) and 1 <= value <= most
    _expect(holds, name, f"1 .. {most}", value)


def _peculiarity(tensor: Tensor) -> str:
    if tensor.is_nested:
        return "nested"
    kind = str(tensor.layout).removeprefix("torch.").removeprefix("_")
    return "a negated view" if kind == "strided" else kind


def _check_flags(**flags: bool) -> None:
    for name, value in flags.items():
        _expect(isinstance(value, bool), name, "True or False", repr(value))


def _is_finite(value: float) -> bool:
    """As a float32, which is what the implementations take."""
    return isinstance(value, int | float) and abs(value) <= MOST_FLOAT


def _expect(holds: bool, name: str, expected: object, got: object) -> None:
    """What was got is spelled out where it is wrong, and nowhere else: a step makes many calls."""
    if not holds:
        got = list(got) if isinstance(got, torch.Size) else got
        raise ValueError(f"{name}: expected {expected}, got {got}")


def _fits(tensor: Tensor, shape: tuple[int | None, ...]) -> bool:
    # Every op checks several tensors in every call. Most have a shape that is known as a whole; for
    # the others all() would take twice as long as the loop.
    sizes = tensor.shape
    if sizes == shape:
        return True
    if len(sizes) != len(shape):
        return False
    for got, want in zip(sizes, shape, strict=True):
        if want is not None and got != want:
            return False
    return True


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _pattern(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
