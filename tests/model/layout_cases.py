"""Quantised weights as each method's savers write them, and their values in float64.

Packed and decoded here by the published formulas, one number at a time where that is plainer, and
with nothing of ours.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


@dataclass(frozen=True)
class Case:
    """Tensors by what follows the module's name, and what they stand for, float64 [M, K]."""

    tensors: dict[str, Tensor]
    values: np.ndarray


def packed(codes, bits):
    """Codes [..., n] in int32 words [..., ceil(n bits / 32)], the first in the lowest bits."""
    per_word = 32 // bits
    padded = np.zeros((*codes.shape[:-1], -(-codes.shape[-1] // per_word) * per_word), np.int64)
    padded[..., : codes.shape[-1]] = codes
    padded = padded.reshape(*codes.shape[:-1], -1, per_word)
    words = sum(padded[..., i] << bits * i for i in range(per_word))
    return torch.from_numpy(words.astype(np.uint32).view(np.int32))


def integers(rng, weight, bits, symmetric, groups, dtype=np.float16):
    """Codes [M, K], zero points and scales [M, G] of a weight float64 [M, K]."""
    n_groups, top = int(groups.max()) + 1, (1 << bits) - 1
    scales, zeros = (np.zeros((len(weight), n_groups)) for _ in range(2))
    for g in range(n_groups):
        part = weight[:, groups == g]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        if symmetric:
            scales[:, g], zeros[:, g] = abs(part).max(1) / (top // 2), (top + 1) // 2
        else:
            scales[:, g] = (high - low) / top
            zeros[:, g] = np.clip(np.rint(-low / scales[:, g]), 0, top)
    scales = torch.from_numpy(scales).to(dtype)
    wide = scales.double().numpy()[:, groups]
    codes = np.clip(np.rint(weight / wide) + zeros[:, groups], 0, top).astype(np.int64)
    zeros = zeros.astype(np.int64)
    return codes, zeros, scales, wide * (codes - zeros[:, groups])


def even(inputs, length):
    return np.arange(inputs) // (length if length > 0 else inputs)


def gptq(weight, bits=4, symmetric=True, group=32, act_order=False, version=1, g_idx=True, seed=0):
    rng = np.random.default_rng(seed)
    groups = even(weight.shape[1], group)
    if act_order:
        groups = rng.permutation(groups)
    codes, zeros, scales, values = integers(rng, weight, bits, symmetric, groups, torch.float16)
    # version 1 takes one of each word's zero points at once: numbers below zero borrow
    words = packed(zeros.T, bits).numpy().view(np.uint32).astype(np.int64)
    if version == 1:
        words = words - sum(1 << bits * i for i in range(32 // bits)) & 0xFFFFFFFF
    tensors = {
        ".qweight": packed(codes, bits).T.contiguous(),
        ".qzeros": torch.from_numpy(words.astype(np.uint32).view(np.int32)),
        ".scales": scales.T.contiguous(),
    }
    if g_idx or act_order:
        tensors[".g_idx"] = torch.from_numpy(groups.astype(np.int32))
    return Case(tensors, values)


def awq(weight, symmetric=False, group=32, seed=0):
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    groups = even(weight.shape[1], group)
    rng = np.random.default_rng(seed)
    codes, zeros, scales, values = integers(rng, weight, 4, symmetric, groups, torch.float16)

    def words(numbers):  # [n, M]
        return packed(numbers.reshape(len(numbers), -1, 8)[..., order].reshape(numbers.shape), 4)

    tensors = {".qweight": words(codes.T), ".qzeros": words(zeros.T)}
    return Case({**tensors, ".scales": scales.T.contiguous()}, values)


def pack_quantized(weight, bits=4, symmetric=True, group=32, act_order=False, seed=0):
    rng = np.random.default_rng(seed)
    groups = even(weight.shape[1], group)
    if act_order:
        groups = rng.permutation(groups)
    codes, zeros, scales, values = integers(rng, weight, bits, symmetric, groups, torch.bfloat16)
    tensors = {
        ".weight_packed": packed(codes, bits),
        ".weight_scale": scales,
        ".weight_shape": torch.tensor(weight.shape),
    }
    if not symmetric:
        tensors[".weight_zero_point"] = packed(zeros.T, bits).T.contiguous()
    if act_order:
        tensors[".weight_g_idx"] = torch.from_numpy(groups.astype(np.int32))
    return Case(tensors, values)


def int_quantized(weight, symmetric=True, block=None):
    rows, columns = block or (1, weight.shape[1])
    of = np.arange(weight.shape[0])[:, None] // rows, np.arange(weight.shape[1]) // columns
    scales, zeros = (np.zeros((of[0].max() + 1, of[1].max() + 1)) for _ in range(2))
    np.maximum.at(scales, of, abs(weight) / 127)
    scales = torch.from_numpy(scales).bfloat16()
    wide = scales.double().numpy()[of]
    if not symmetric:
        zeros[:] = np.arange(zeros.size).reshape(zeros.shape) % 5 - 2
    codes = np.clip(np.rint(weight / wide) + zeros[of], -128, 127)
    tensors = {".weight": torch.from_numpy(codes).to(torch.int8), ".weight_scale": scales}
    if not symmetric:
        tensors[".weight_zero_point"] = torch.from_numpy(zeros).to(torch.int8)
    return Case(tensors, wide * (codes - zeros[of]))


def float8(weight, block=(128, 128), shape="block", powers=False, name=".weight_scale_inv"):
    """shape: of the scales, "block", "row" or "tensor"; powers: of two only."""
    rows, columns = {"block": block, "row": (1, weight.shape[1]), "tensor": weight.shape}[shape]
    of = np.arange(weight.shape[0])[:, None] // rows, np.arange(weight.shape[1]) // columns
    scales = np.zeros((of[0].max() + 1, of[1].max() + 1))
    np.maximum.at(scales, of, abs(weight) / 448)
    scales = (2.0 ** np.ceil(np.log2(scales)) if powers else scales).astype(np.float32)
    wide = scales.astype(np.float64)[of]
    codes = torch.from_numpy(weight / wide).to(torch.float8_e4m3fn)
    scale = torch.from_numpy(scales)
    return Case(
        {".weight": codes, name: scale[0, 0] if shape == "tensor" else scale},
        codes.double().numpy() * wide,
    )


def nearest_fp4(numbers):
    return abs(numbers[..., None] - FP4[:8]).argmin(-1)


def float4(weight, group, name=".weight_packed", factor=".weight_global_scale"):
    """NVFP4 where group is 16, MXFP4 where it is 32."""
    groups = weight.reshape(len(weight), -1, group)
    largest = abs(groups).max(-1) / 6
    tensors = {}
    if group == 32:
        exponents = np.ceil(np.log2(largest)) + 127
        tensors[".weight_scale"] = torch.from_numpy(exponents.astype(np.uint8))
        scales = 2.0 ** (exponents - 127)
    else:
        divisor = np.float32(448 / largest.max())
        stored = torch.from_numpy(largest * divisor).to(torch.float8_e4m3fn)
        by = divisor if factor == ".weight_global_scale" else 1 / divisor
        tensors = {".weight_scale": stored, factor: torch.tensor([by])}
        scales = stored.double().numpy() * (
            1 / np.float64(by) if factor == ".weight_global_scale" else np.float64(by)
        )
    codes = nearest_fp4(abs(groups) / scales[..., None]) | (groups < 0) << 3
    values = FP4[codes] * scales[..., None]
    codes = codes.reshape(weight.shape).astype(np.uint8)
    tensors[name] = torch.from_numpy(codes[:, ::2] | codes[:, 1::2] << 4)
    return Case(tensors, values.reshape(weight.shape))


def experts(weight):
    """gpt-oss' matrix [E, M, K] of all experts."""
    flat = float4(weight.reshape(-1, weight.shape[-1]), 32)
    blocks = flat.tensors[".weight_packed"].view(*weight.shape[:2], -1, 16)
    scales = flat.tensors[".weight_scale"].view(*blocks.shape[:3])
    return Case({"_blocks": blocks, "_scales": scales}, flat.values.reshape(weight.shape))
