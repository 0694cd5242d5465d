"""Kernels for verifying many users' token trees against one paged KV cache.

The ops work on any tensors; they know nothing of networks, models or schedulers.
`specedge_kernels.reference` is their specification in plain torch, `specedge_kernels.ops` the
public page with shapes and checks, `specedge_kernels.decoder` the ops of whole layers in one call
on a CPU; CPU code is in csrc/, Triton code in `specedge_kernels/gpu`. Beside them the package needs
torch, and Triton where there is a GPU. `__version__`, `instruction_set()` and `devices()` say what
is installed.

Glossary, used in every shape comment:

    B   requests in the batch            Hq  query heads            P  pages in the cache
    N   rows: query nodes of the batch   Hk  key/value heads        S  tokens in a page
    T   nodes of one request's tree      G   Hq / Hk                M  pages a table row can name
    W   64-bit mask words of a node      D   head dimension         L  layers
    V   vocabulary                       K   inputs of a linear     A  longest accepted path
    E   experts, or sets of weights      k   experts of a row       I  inputs of an expert's last

Dv is the head dimension of values where it is not that of keys.

Ragged batches are packed: request b owns rows offsets[b] .. offsets[b+1]-1, and the nodes of a
tree are numbered from 0 inside their own request, parents before children. The KV of node j of a
request lies at logical position prefix_len + j; its rotary position is prefix_len + depth(j).
"""

from specedge_kernels.decoder import Decoder, DecoderLayer, PackedLinear, PackedRouter
from specedge_kernels.installed import devices, instruction_set, version
from specedge_kernels.ops import (
    append_kv,
    build_tree,
    compact_kv,
    dequantize,
    draft_topk,
    edit_logits,
    grouped_linear,
    grouped_quantized_linear,
    linear,
    pack_linear,
    pack_quantized,
    quantized_linear,
    rms_norm,
    rope_append_kv,
    route,
    silu_mul,
    target_tokens,
    token_logprobs,
    tree_attention,
    verify,
    weighted_sum,
)
from specedge_kernels.quantized import QuantizedWeight, StoredWeight

__version__ = version()

__all__ = [
    "Decoder",
    "DecoderLayer",
    "PackedLinear",
    "PackedRouter",
    "QuantizedWeight",
    "StoredWeight",
    "append_kv",
    "build_tree",
    "compact_kv",
    "dequantize",
    "devices",
    "draft_topk",
    "edit_logits",
    "grouped_linear",
    "grouped_quantized_linear",
    "instruction_set",
    "linear",
    "pack_linear",
    "pack_quantized",
    "quantized_linear",
    "rms_norm",
    "rope_append_kv",
    "route",
    "silu_mul",
    "target_tokens",
    "token_logprobs",
    "tree_attention",
    "verify",
    "weighted_sum",
]
