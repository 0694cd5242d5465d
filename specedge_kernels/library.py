"""Registers the ops with torch: schemas, shapes for tracing, and one implementation per device.

Private: callers use `specedge_kernels.ops`, which checks arguments first. Implementations write
no output that torch has not allocated and never synchronise a device.
"""

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from specedge_kernels import cpu
from specedge_kernels.quantized import FORMS

SCHEMAS = {
    "build_tree": "(Tensor parents, Tensor offsets, int words) -> (Tensor, Tensor)",
    "tree_attention": "(Tensor q, Tensor k_cache, Tensor v_cache, Tensor page_table, "
    "Tensor prefix_lens, Tensor n_nodes, Tensor offsets, Tensor ancestors, Tensor depth, *, "
    "float scale, float softcap=0.0, int window=-1, float v_scale=1.0, bool with_lse=False, "
    "bool batch_invariant=False) -> (Tensor, Tensor)",
    "append_kv": "(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor slots, *, "
    "float k_scale=1.0, float v_scale=1.0) -> ()",
    "rope_append_kv": "(Tensor qkv, Tensor? qk_norm, Tensor cos, Tensor sin, Tensor positions, "
    "Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor slots, *, float eps=1e-6, float k_scale=1.0, "
    "float v_scale=1.0) -> Tensor",
    "compact_kv": "(Tensor(a!) kv, Tensor page_table, Tensor prefix_lens, Tensor path, "
    "Tensor accepted_lens) -> ()",
    "verify": "(Tensor tokens, Tensor ancestors, Tensor offsets, Tensor target, int max_path) "
    "-> (Tensor, Tensor, Tensor)",
    "target_tokens": "(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, "
    "Tensor min_p, Tensor seed, Tensor position) -> Tensor",
    "draft_topk": "(Tensor logits, int k, Tensor temperature, Tensor seed, Tensor position, "
    "Tensor? token_ids=None) -> (Tensor, Tensor)",
    "grow_tree": "(Tensor(a!) tokens, Tensor(b!) parents, Tensor(c!) scores, Tensor(d!) depths, "
    "Tensor(e!) slots, Tensor(f!) found, Tensor expanded, Tensor ids, Tensor logprobs, "
    "Tensor budget, int first_slot, int beams, int words) -> (Tensor, Tensor, Tensor, Tensor)",
    "linear": "(Tensor x, Tensor panels, int out_features) -> Tensor",
    "pack_quantized": "(Tensor stored, int kind) -> Tensor",
    "dequantize": "(Tensor stored, int kind) -> Tensor",
    "quantized_linear": "(Tensor x, Tensor packed, int[] kinds, int[] sizes, bool exact) -> Tensor",
    "rms_norm": "(Tensor(a!) x, Tensor weight, float eps, Tensor? delta=None) -> Tensor",
    "silu_mul": "(Tensor gate_up) -> Tensor",
}

# Each has a launcher of the same name in specedge_kernels/gpu/.
TRITON_OPS = (
    "build_tree",
    "tree_attention",
    "append_kv",
    "rope_append_kv",
    "compact_kv",
    "verify",
    "target_tokens",
    "draft_topk",
    "grow_tree",
    "rms_norm",
    "silu_mul",
)

LIBRARY = torch.library.Library("specedge", "FRAGMENT")

# The device types that have an implementation, by op; "meta" has shapes only.
DEVICES: dict[str, list[str]] = {}


def implement(op: str, device: str, function: Callable) -> None:
    """Make `function` the implementation of `op` for tensors on `device` ("cpu", "cuda")."""
    LIBRARY.impl(op, function, device.upper())
    DEVICES[op].append(device)


def on_its_device(launch: Callable) -> Callable:
    """`launch` with its first tensor's GPU as the current one, which is where Triton launches."""

    @wraps(launch)
    def run(tensor: Tensor, *rest: object, **options: object) -> object:
        with torch.cuda.device(tensor.device):
            return launch(tensor, *rest, **options)

    return run


def _build_tree(parents: Tensor, offsets: Tensor, words: int) -> tuple[Tensor, Tensor]:
    ancestors = parents.new_empty(parents.shape[0], words, dtype=torch.int64)
    return ancestors, torch.empty_like(parents)


def _tree_attention(
    q: Tensor, *_: Tensor, scale: float, with_lse: bool = False, **__: object
) -> tuple[Tensor, Tensor]:
    lse = q.new_empty(q.shape[:2] if with_lse else 0, dtype=torch.float32)
    return torch.empty_like(q), lse


def _in_place(*_: Tensor, **__: float) -> None:
    return None


def _rope_append_kv(
    qkv: Tensor,
    qk_norm: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    *_: Tensor,
    **__: float,
) -> Tensor:
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] - 2 * k_cache.shape[2], qkv.shape[2])


def _verify(
    tokens: Tensor, ancestors: Tensor, offsets: Tensor, target: Tensor, max_path: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch = offsets.shape[0] - 1
    return offsets.new_empty(batch, max_path), offsets.new_empty(batch), target.new_empty(batch)


def _target_tokens(logits: Tensor, *_: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.int64)


def _draft_topk(
    logits: Tensor,
    k: int,
    temperature: Tensor,
    seed: Tensor,
    position: Tensor,
    token_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    rows = logits.shape[0]
    return logits.new_empty(rows, k, dtype=torch.int64), logits.new_empty(rows, k)


def _grow_tree(
    tokens: Tensor,
    parents: Tensor,
    scores: Tensor,
    depths: Tensor,
    slots: Tensor,
    found: Tensor,
    expanded: Tensor,
    ids: Tensor,
    logprobs: Tensor,
    budget: Tensor,
    first_slot: int,
    beams: int,
    words: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = found.shape[0]
    return (
        parents.new_empty(batch, beams),
        tokens.new_empty(batch * beams),
        tokens.new_empty(batch * beams, words),
        depths.new_empty(batch * beams),
    )


def _linear(x: Tensor, panels: Tensor, out_features: int) -> Tensor:
    return x.new_empty(x.shape[0], out_features)


def _pack_quantized(stored: Tensor, kind: int) -> Tensor:
    form = FORMS[kind]
    inputs = stored.shape[1] // form.stored_bytes * form.inputs
    return stored.new_empty(form.packed_bytes(stored.shape[0], inputs))


def _dequantize(stored: Tensor, kind: int) -> Tensor:
    form = FORMS[kind]
    inputs = stored.shape[1] // form.stored_bytes * form.inputs
    return stored.new_empty(stored.shape[0], inputs, dtype=torch.float32)


def _quantized_linear(
    x: Tensor, packed: Tensor, kinds: list[int], sizes: list[int], exact: bool
) -> Tensor:
    return x.new_empty(x.shape[0], sum(sizes))


def _rms_norm(x: Tensor, weight: Tensor, eps: float, delta: Tensor | None = None) -> Tensor:
    return torch.empty_like(x)


def _silu_mul(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


SHAPES = {
    "build_tree": _build_tree,
    "tree_attention": _tree_attention,
    "append_kv": _in_place,
    "rope_append_kv": _rope_append_kv,
    "compact_kv": _in_place,
    "verify": _verify,
    "target_tokens": _target_tokens,
    "draft_topk": _draft_topk,
    "grow_tree": _grow_tree,
    "linear": _linear,
    "pack_quantized": _pack_quantized,
    "dequantize": _dequantize,
    "quantized_linear": _quantized_linear,
    "rms_norm": _rms_norm,
    "silu_mul": _silu_mul,
}

for _op, _schema in SCHEMAS.items():
    LIBRARY.define(_op + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"specedge::{_op}", SHAPES[_op], lib=LIBRARY)
    DEVICES[_op] = ["meta"]
    implement(_op, "cpu", getattr(cpu, _op))

if find_spec("specedge_kernels._cuda"):
    from specedge_kernels import cuda

    for _op in ("append_kv", "rope_append_kv", "compact_kv"):
        implement(_op, "cuda", getattr(cuda, _op))

# Triton for what CUDA C++ leaves, imported only where there is a GPU to run it.
if torch.cuda.is_available() and find_spec("triton"):
    for _op in TRITON_OPS:
        if "cuda" not in DEVICES[_op]:
            _launch = getattr(import_module(f"specedge_kernels.gpu.{_op}"), _op)
            implement(_op, "cuda", on_its_device(_launch))
