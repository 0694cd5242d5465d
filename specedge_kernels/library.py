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

SCHEMAS = {
    "build_tree": "(Tensor parents, Tensor offsets, int words) -> (Tensor, Tensor)",
    "tree_attention": "(Tensor q, Tensor k_cache, Tensor v_cache, Tensor page_table, "
    "Tensor prefix_lens, Tensor n_nodes, Tensor offsets, Tensor ancestors, Tensor depth, *, "
    "float scale, float softcap=0.0, int window=-1) -> Tensor",
    "append_kv": "(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor slots) -> ()",
    "compact_kv": "(Tensor(a!) kv, Tensor page_table, Tensor prefix_lens, Tensor path, "
    "Tensor accepted_lens) -> ()",
    "verify": "(Tensor tokens, Tensor ancestors, Tensor offsets, Tensor target, int max_path) "
    "-> (Tensor, Tensor, Tensor)",
    "target_tokens": "(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, "
    "Tensor min_p, Tensor seed, Tensor position) -> Tensor",
    "draft_topk": "(Tensor logits, int k, Tensor temperature, Tensor seed, Tensor position, "
    "Tensor? token_ids=None) -> (Tensor, Tensor)",
    "linear": "(Tensor x, Tensor panels, int out_features) -> Tensor",
}

# Each has a launcher of the same name in specedge_kernels/gpu/.
TRITON_OPS = (
    "build_tree",
    "tree_attention",
    "append_kv",
    "compact_kv",
    "verify",
    "target_tokens",
    "draft_topk",
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
    q: Tensor, *_: Tensor, scale: float, softcap: float = 0.0, window: int = -1
) -> Tensor:
    return torch.empty_like(q)


def _in_place(*_: Tensor) -> None:
    return None


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


def _linear(x: Tensor, panels: Tensor, out_features: int) -> Tensor:
    return x.new_empty(x.shape[0], out_features)


SHAPES = {
    "build_tree": _build_tree,
    "tree_attention": _tree_attention,
    "append_kv": _in_place,
    "compact_kv": _in_place,
    "verify": _verify,
    "target_tokens": _target_tokens,
    "draft_topk": _draft_topk,
    "linear": _linear,
}

for _op, _schema in SCHEMAS.items():
    LIBRARY.define(_op + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"specedge::{_op}", SHAPES[_op], lib=LIBRARY)
    DEVICES[_op] = ["meta"]
    implement(_op, "cpu", getattr(cpu, _op))

if find_spec("specedge_kernels._cuda"):
    from specedge_kernels import cuda

    implement("compact_kv", "cuda", cuda.compact_kv)

# Triton for what CUDA C++ leaves, imported only where there is a GPU to run it.
if torch.cuda.is_available() and find_spec("triton"):
    for _op in TRITON_OPS:
        if "cuda" not in DEVICES[_op]:
            _launch = getattr(import_module(f"specedge_kernels.gpu.{_op}"), _op)
            implement(_op, "cuda", on_its_device(_launch))
