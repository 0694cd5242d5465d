"""What csrc/cuda/bindings.cpp offers: addresses and the stream are ints, types those of _cpu.Dtype.

Nothing waits for the device. RuntimeError says that a kernel could not be launched.
"""

class Cache:
    def __init__(
        self,
        data: int,
        dtype: int,
        n_pages: int,
        page_size: int,
        n_heads: int,
        head_dim: int,
        page_stride: int,
        token_stride: int,
        head_stride: int,
        /,
    ) -> None: ...

def append_kv(
    k: int,
    v: int,
    dtype: int,
    k_cache: Cache,
    v_cache: Cache,
    slots: int,
    rows: int,
    k_scale: float,
    v_scale: float,
    stream: int,
    /,
) -> None: ...
def rope_append_kv(
    qkv: int,
    dtype: int,
    query_heads: int,
    qk_norm: int,
    norm_dtype: int,
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
    v_scale: float,
    q: int,
    stream: int,
    /,
) -> None: ...
def compact_kv(
    kv: int,
    n_layers: int,
    page_size: int,
    n_heads: int,
    run_bytes: int,
    word_bytes: int,
    layer_stride: int,
    half_stride: int,
    page_stride: int,
    token_stride: int,
    head_stride: int,
    page_table: int,
    pages_per_request: int,
    prefix_lens: int,
    path: int,
    accepted_lens: int,
    batch: int,
    max_path: int,
    stream: int,
    /,
) -> None: ...
