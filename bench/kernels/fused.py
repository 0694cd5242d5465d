"""The fused ops of a layer beside the same work done op by op in torch."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import specedge_kernels as ours
from bench.kernels.case import TOLERANCES, Case, Work, far_from
from bench.kernels.step import PAGE_TOKENS, Step, normal, triton_ways
from specedge_kernels import reference

CONTEXT = 4096
EPS = 1e-6

Way = tuple[str, Callable[..., Tensor]]


def cases_of(step: Step, device: torch.device) -> Iterator[Case]:
    turn = ("ours", ours.rope_append_kv), ("torch", turn_and_append)
    for way in (*turn, *triton_ways("rope_append_kv", device)):
        yield rope_append_kv(step, device, way)
    for way in (("ours", ours.rms_norm), ("torch", add_and_norm)):
        yield rms_norm(step, device, way)
    for way in (("ours", ours.silu_mul), ("torch", silu_times_up)):
        yield silu_mul(step, device, way)


def turn_and_append(
    qkv: Tensor,
    qk_norm: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
) -> Tensor:
    heads, dim = k_cache.shape[2:]
    qk = F.rms_norm(qkv[:, :-heads], (dim,), eps=EPS) * qk_norm
    cos, sin = (table[positions][:, None].to(qkv.dtype) for table in (cos, sin))
    qk = qk * cos + qk.roll(dim // 2, -1) * sin
    k_cache.flatten(0, 1)[slots] = qk[:, -heads:]
    v_cache.flatten(0, 1)[slots] = qkv[:, -heads:]
    return qk[:, :-heads].contiguous()


def add_and_norm(x: Tensor, weight: Tensor, eps: float, delta: Tensor) -> Tensor:
    x += delta
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def silu_times_up(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=1)
    return F.silu(gate) * up


def rope_append_kv(step: Step, device: torch.device, way: Way) -> Case:
    name, turn = way
    rows, all_heads = step.rows, (step.group + 2) * step.heads

    def prepare(seed: int) -> Work:
        like = {"device": device, "seed": seed, "dtype": step.dtype}
        qkv = normal(rows, all_heads, step.dim, **like)
        qk_norm = normal(all_heads - step.heads, step.dim, **like)
        cos, sin = normal(2, CONTEXT, step.dim, device=device, seed=seed)
        caches = normal(2, rows, PAGE_TOKENS, step.heads, step.dim, **like)
        generator = torch.manual_seed(seed)
        positions = torch.randint(CONTEXT, (rows,), generator=generator)
        slots = torch.randperm(rows * PAGE_TOKENS, generator=generator)[:rows]
        arguments = (qkv, qk_norm, cos, sin, positions.to(device), *caches, slots.to(device))

        def check() -> str:
            expected = tuple(argument.cpu().clone() for argument in arguments)
            q = reference.rope_append_kv(*expected)
            outputs = zip((q, *expected[5:7]), (turn(*arguments), *arguments[5:7]), strict=True)
            return next(filter(None, (far(want, got) for want, got in outputs)), "")

        return Work(lambda: turn(*arguments), check)

    n_bytes = rows * step.dim * (2 * all_heads * step.dtype.itemsize + 2 * 4)
    return Case("rope_append_kv", name, step.trees_shape(), n_bytes, 0, prepare)


def rms_norm(step: Step, device: torch.device, way: Way) -> Case:
    name, norm = way

    def prepare(seed: int) -> Work:
        like = {"device": device, "seed": seed, "dtype": step.dtype}
        x, delta = normal(2, step.rows, step.hidden, **like)
        weight = normal(step.hidden, **like)

        def check() -> str:
            grown = x.cpu().clone()
            want = reference.rms_norm(grown, weight.cpu(), EPS, delta.cpu())
            return far(want, norm(x, weight, EPS, delta)) or far(grown, x)

        return Work(lambda: norm(x, weight, EPS, delta), check)

    n_bytes = (4 * step.rows + 1) * step.hidden * step.dtype.itemsize
    return Case("rms_norm", name, f"N{step.rows} H{step.hidden}", n_bytes, 0, prepare)


def silu_mul(step: Step, device: torch.device, way: Way) -> Case:
    name, multiply = way

    def prepare(seed: int) -> Work:
        gate_up = normal(step.rows, 2 * step.inner, device=device, seed=seed, dtype=step.dtype)
        check = lambda: far(reference.silu_mul(gate_up.cpu()), multiply(gate_up))  # noqa: E731
        return Work(lambda: multiply(gate_up), check)

    n_bytes = 3 * step.rows * step.inner * step.dtype.itemsize
    return Case("silu_mul", name, f"N{step.rows} I{step.inner}", n_bytes, 0, prepare)


def far(want: Tensor, got: Tensor) -> str:
    return far_from(want, got, TOLERANCES[want.dtype])
