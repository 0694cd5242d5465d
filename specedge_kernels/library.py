"""Registers the ops with torch: schemas, shapes for tracing, and one implementation per device.

Private: callers use `specedge_kernels.ops`, which checks arguments first. Implementations write
no output that torch has not allocated and never synchronise a device.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from specedge_kernels import cpu
from specedge_kernels.quantized import FORMS

# The ops, each with the tensors that it writes into. Their schemas are the signatures of the CPU's
# implementations, which every other device's repeat.
OPS: dict[str, tuple[str, ...]] = {
    "build_tree": (),
    "tree_attention": (),
    "append_kv": ("k_cache", "v_cache"),
    "rope_append_kv": ("k_cache", "v_cache"),
    "compact_kv": ("kv",),
    "verify": (),
    "target_tokens": (),
    "edit_logits": ("logits",),
    "token_logprobs": (),
    "draft_topk": (),
    "linear": (),
    "pack_quantized": (),
    "dequantize": (),
    "quantized_linear": (),
    "route": (),
    "grouped_linear": (),
    "grouped_quantized_linear": (),
    "weighted_sum": (),
    "rms_norm": ("x",),
    "silu_mul": (),
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
    "edit_logits",
    "token_logprobs",
    "draft_topk",
    "linear",
    "quantized_linear",
    "rms_norm",
    "silu_mul",
    "route",
    "grouped_linear",
    "grouped_quantized_linear",
    "weighted_sum",
)

# Of weights that are being loaded: the host's code does it, wherever the bytes lie.
HOST_OPS = ("pack_quantized", "dequantize")

# Of CUDA C++, which comes before Triton where it was built.
CUDA_OPS = ("append_kv", "rope_append_kv", "compact_kv")

LIBRARY = torch.library.Library("specedge", "FRAGMENT")

# The device types that have an implementation, by op; "meta" has shapes only.
DEVICES: dict[str, list[str]] = {}


def implement(op: str, device: str, function: Callable[..., object]) -> None:
    """Make `function` the implementation of `op` for tensors on `device` ("cpu", "cuda")."""
    LIBRARY.impl(op, function, device.upper())
    DEVICES[op].append(device)


def on_its_device(launch: Callable[..., object]) -> Callable[..., object]:
    """`launch` with its first tensor's GPU as the current one, which is where Triton launches."""

    @wraps(launch)
    def run(tensor: Tensor, *rest: object, **options: object) -> object:
        with torch.cuda.device(tensor.device):
            return launch(tensor, *rest, **options)

    return run


def on_the_host(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` of the CPU for a first tensor on a GPU, where its result goes too."""

    @wraps(function)
    def run(tensor: Tensor, *rest: object) -> Tensor:
        return function(tensor.cpu(), *rest).to(tensor.device)

    return run


class Shapes:
    """What each op gives for its arguments `a`, by name: tensors of the right shape and type."""

    @staticmethod
    def build_tree(a: Any) -> tuple[Tensor, Tensor]:
        ancestors = a.parents.new_empty(a.parents.shape[0], a.words, dtype=torch.int64)
        return ancestors, torch.empty_like(a.parents)

    @staticmethod
    def tree_attention(a: Any) -> tuple[Tensor, Tensor]:
        lse = a.q.new_empty(a.q.shape[:2] if a.with_lse else 0, dtype=torch.float32)
        return a.q.new_empty(*a.q.shape[:2], a.v_cache.shape[3]), lse

    @staticmethod
    def append_kv(a: Any) -> None:
        return None

    @staticmethod
    def rope_append_kv(a: Any) -> Tensor:
        rows, heads, dim = a.qkv.shape
        return a.qkv.new_empty(rows, heads - 2 * a.k_cache.shape[2], dim)

    @staticmethod
    def compact_kv(a: Any) -> None:
        return None

    @staticmethod
    def verify(a: Any) -> tuple[Tensor, Tensor, Tensor]:
        batch = a.offsets.shape[0] - 1
        path = a.offsets.new_empty(batch, a.max_path)
        return path, a.offsets.new_empty(batch), a.target.new_empty(batch)

    @staticmethod
    def target_tokens(a: Any) -> Tensor:
        return a.logits.new_empty(a.logits.shape[0], dtype=torch.int64)

    @staticmethod
    def edit_logits(a: Any) -> None:
        return None

    @staticmethod
    def token_logprobs(a: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows = a.logits.shape[0]
        tops = a.tokens.new_empty(rows, a.n), a.logits.new_empty(rows, a.n)
        return a.logits.new_empty(rows), *tops

    @staticmethod
    def draft_topk(a: Any) -> tuple[Tensor, Tensor]:
        rows = a.logits.shape[0]
        return a.logits.new_empty(rows, a.k, dtype=torch.int64), a.logits.new_empty(rows, a.k)

    @staticmethod
    def linear(a: Any) -> Tensor:
        return a.x.new_empty(a.x.shape[0], a.out_features)

    @staticmethod
    def pack_quantized(a: Any) -> Tensor:
        outputs, inputs = a.stored.shape[0], _inputs(a)
        return a.stored.new_empty(FORMS[a.kind].packed_bytes(outputs, inputs))

    @staticmethod
    def dequantize(a: Any) -> Tensor:
        return a.stored.new_empty(a.stored.shape[0], _inputs(a), dtype=torch.float32)

    @staticmethod
    def quantized_linear(a: Any) -> Tensor:
        return a.x.new_empty(a.x.shape[0], sum(a.sizes))

    @staticmethod
    def route(a: Any) -> tuple[Tensor, Tensor]:
        shape = a.logits.shape[0], a.k
        return a.logits.new_empty(shape, dtype=torch.int32), a.logits.new_empty(shape)

    @staticmethod
    def grouped_linear(a: Any) -> Tensor:
        return a.x.new_empty(a.groups.shape[0] * a.groups.shape[1], a.out_features)

    @staticmethod
    def grouped_quantized_linear(a: Any) -> Tensor:
        return a.x.new_empty(a.groups.shape[0] * a.groups.shape[1], sum(a.sizes))

    @staticmethod
    def weighted_sum(a: Any) -> Tensor:
        return a.y.new_empty(a.weights.shape[0], a.y.shape[1])

    @staticmethod
    def rms_norm(a: Any) -> Tensor:
        return torch.empty_like(a.x)

    @staticmethod
    def silu_mul(a: Any) -> Tensor:
        return a.gate_up.new_empty(a.gate_up.shape[0], a.gate_up.shape[1] // 2)


def _inputs(a: Any) -> int:
    form = FORMS[a.kind]
    return a.stored.shape[1] // form.stored_bytes * form.inputs


def _define(op: str, writes: tuple[str, ...]) -> None:
    on_cpu, shape = getattr(cpu, op), getattr(Shapes, op)
    schema = torch.library.infer_schema(on_cpu, mutates_args=writes)
    LIBRARY.define(op + schema, tags=(torch.Tag.pt2_compliant_tag,))
    signature = inspect.signature(on_cpu)

    def without_numbers(*arguments: object, **options: object) -> object:
        bound = signature.bind(*arguments, **options)
        bound.apply_defaults()
        return shape(SimpleNamespace(**bound.arguments))

    torch.library.register_fake(f"specedge::{op}", without_numbers, lib=LIBRARY)
    DEVICES[op] = ["meta"]
    implement(op, "cpu", on_cpu)


for _op, _writes in OPS.items():
    _define(_op, _writes)

if find_spec("specedge_kernels._cuda"):
    from specedge_kernels import cuda

    for _op in CUDA_OPS:
        implement(_op, "cuda", getattr(cuda, _op))

if torch.cuda.is_available():
    for _op in HOST_OPS:
        implement(_op, "cuda", on_the_host(getattr(cpu, _op)))

# Triton for what CUDA C++ leaves, imported only where there is a GPU to run it.
if torch.cuda.is_available() and find_spec("triton"):
    for _op in TRITON_OPS:
        if "cuda" not in DEVICES[_op]:
            _launch = getattr(import_module(f"specedge_kernels.gpu.{_op}"), _op)
            implement(_op, "cuda", on_its_device(_launch))
