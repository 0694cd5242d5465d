"""What csrc/bindings.cpp offers: addresses are ints, and 0 is none; types and shapes are trusted.

Every function lets other threads run and raises ValueError for values that lead out of a tensor.
"""

from collections.abc import Sequence
from typing import final, overload

@final
class Dtype:
    float32: Dtype
    bfloat16: Dtype
    float16: Dtype
    float8_e4m3fn: Dtype
    def __init__(self, value: int, /) -> None: ...
    def __int__(self) -> int: ...

@final
class Quant:
    Q4_0: Quant
    Q4_1: Quant
    Q5_0: Quant
    Q5_1: Quant
    Q8_0: Quant
    Q4_K: Quant
    Q5_K: Quant
    Q6_K: Quant
    IQ4_NL: Quant
    IQ4_XS: Quant
    MXFP4: Quant
    FP8: Quant
    FP8_32: Quant
    def __init__(self, value: int, /) -> None: ...

class Cache:
    def __init__(
        self,
        data: int,
        dtype: Dtype,
        n_pages: int,
        page_size: int,
        n_heads: int,
        head_dim: int,
        page_stride: int,
        token_stride: int,
        head_stride: int,
        /,
    ) -> None: ...

class Linear:
    @overload
    def __init__(
        self, panels: int, dtype: Dtype, inputs: int, outputs: int, bias: int, /
    ) -> None: ...
    @overload
    def __init__(
        self,
        packed: int,
        quants: Sequence[Quant],
        sizes: Sequence[int],
        exact: bool,
        inputs: int,
        outputs: int,
        bias: int,
        /,
    ) -> None: ...

class LayeredCache:
    def __init__(self, first_keys: Cache, layer_stride: int, half_stride: int, /) -> None: ...

class Router:
    def __init__(self, linear: Linear, n_experts: int, k: int, normalise: bool, /) -> None: ...

class Decoder:
    def __init__(
        self,
        hidden: int,
        query_heads: int,
        heads: int,
        head_dim: int,
        eps: float,
        scale: float,
        cos: int,
        sin: int,
        n_positions: int,
        embedding: int,
        embedding_type: Dtype | Quant,
        vocabulary: int,
        norm: int,
        head: Linear,
        /,
    ) -> None: ...
    def add_layer(
        self,
        attention_norm: int,
        qkv: Linear,
        qk_norm: int,
        output: Linear,
        mlp_norm: int,
        gate_up: Linear,
        down: Linear,
        inner: int,
        window: int,
        router: Router | None,
        /,
    ) -> None: ...

class Planes:
    def __init__(
        self,
        data: int,
        n_layers: int,
        n_parts: int,
        n_pages: int,
        page_size: int,
        n_heads: int,
        run_bytes: int,
        layer_stride: int,
        part_stride: int,
        page_stride: int,
        token_stride: int,
        head_stride: int,
        /,
    ) -> None: ...

def isa() -> str: ...
def build_tree(
    parents: int, offsets: int, batch: int, rows: int, words: int, ancestors: int, depth: int, /
) -> None: ...
def tree_attention(
    q: int,
    dtype: Dtype,
    query_heads: int,
    k_cache: Cache,
    v_cache: Cache,
    batch: int,
    rows: int,
    words: int,
    pages_per_request: int,
    page_table: int,
    prefix_lens: int,
    n_nodes: int,
    offsets: int,
    ancestors: int,
    depth: int,
    scale: float,
    softcap: float,
    window: int,
    k_scale: float,
    k_scales: int,
    v_scale: float,
    v_scales: int,
    sinks: int,
    out: int,
    lse: int,
    /,
) -> None: ...
def append_kv(
    k: int,
    v: int,
    dtype: Dtype,
    k_cache: Cache,
    v_cache: Cache,
    slots: int,
    rows: int,
    k_scale: float,
    k_scales: int,
    v_scale: float,
    v_scales: int,
    /,
) -> None: ...
def rope_append_kv(
    qk: int,
    qk_stride: int,
    v: int,
    v_stride: int,
    dtype: Dtype,
    query_heads: int,
    qk_norm: int,
    eps: float,
    cos: int,
    sin: int,
    n_positions: int,
    positions: int,
    k_cache: Cache,
    v_cache: Cache,
    slots: int,
    rows: int,
    k_scale: float,
    k_scales: int,
    v_scale: float,
    v_scales: int,
    q: int,
    /,
) -> None: ...
def compact_kv(
    kv: Planes,
    page_table: int,
    pages_per_request: int,
    prefix_lens: int,
    path: int,
    accepted_lens: int,
    batch: int,
    max_path: int,
    /,
) -> None: ...
def verify(
    tokens: int,
    ancestors: int,
    offsets: int,
    target: int,
    batch: int,
    rows: int,
    words: int,
    max_path: int,
    path: int,
    accepted_lens: int,
    bonus: int,
    /,
) -> None: ...
def target_tokens(
    logits: int,
    rows: int,
    vocabulary: int,
    temperature: int,
    top_k: int,
    top_p: int,
    min_p: int,
    seed: int,
    position: int,
    mask: int,
    n_masks: int,
    mask_row: int,
    out: int,
    /,
) -> None: ...
def edit_logits(
    logits: int,
    rows: int,
    vocabulary: int,
    tokens: int,
    ancestors: int,
    words: int,
    offsets: int,
    batch: int,
    text_offsets: int,
    text_tokens: int,
    text_counts: int,
    n_text: int,
    bias_offsets: int,
    bias_tokens: int,
    bias_values: int,
    n_bias: int,
    repetition: int,
    frequency: int,
    presence: int,
    /,
) -> None: ...
def token_logprobs(
    logits: int,
    rows: int,
    vocabulary: int,
    tokens: int,
    n: int,
    logprobs: int,
    top_tokens: int,
    top_logprobs: int,
    /,
) -> None: ...
def draft_topk(
    logits: int,
    rows: int,
    vocabulary: int,
    k: int,
    temperature: int,
    seed: int,
    position: int,
    token_ids: int,
    ids: int,
    logprobs: int,
    /,
) -> None: ...
def multiply(linear: Linear, x: int, rows: int, out: int, /) -> None: ...
def grouped_multiply(
    linear: Linear,
    sets: int,
    n_sets: int,
    per_row: int,
    bias: int,
    x: int,
    rows: int,
    out: int,
    /,
) -> None: ...
def route(
    logits: int,
    rows: int,
    n_experts: int,
    k: int,
    sigmoid: bool,
    normalise: bool,
    scale: float,
    bias: int,
    n_groups: int,
    top_groups: int,
    group_best: int,
    experts: int,
    weights: int,
    /,
) -> None: ...
def weighted_sum(
    y: int, dtype: Dtype, weights: int, rows: int, parts: int, width: int, out: int, /
) -> None: ...
def rms_norm(
    x: int, delta: int, weight: int, dtype: Dtype, rows: int, width: int, eps: float, out: int, /
) -> None: ...
def silu_mul(gate_up: int, dtype: Dtype, rows: int, width: int, out: int, /) -> None: ...
def decode(
    decoder: Decoder,
    kv: LayeredCache,
    tokens: int,
    rows: int,
    positions: int,
    slots: int,
    batch: int,
    words: int,
    pages_per_request: int,
    page_table: int,
    prefix_lens: int,
    n_nodes: int,
    offsets: int,
    ancestors: int,
    depth: int,
    wanted: int,
    n_wanted: int,
    out: int,
    /,
) -> None: ...
def logits(decoder: Decoder, hidden: int, rows: int, out: int, /) -> None: ...
def pack_quantized(
    stored: int, quant: Quant, outputs: int, inputs: int, packed: int, /
) -> None: ...
def dequantize(stored: int, quant: Quant, rows: int, inputs: int, out: int, /) -> None: ...
