"""Products with weights, plain and quantised, and what becomes of quantised weights at load."""

from collections.abc import Iterator

import torch

import specedge_kernels as ours
from bench.kernels.case import TOLERANCES, Case, Work, far_from, unlike
from bench.kernels.step import normal
from specedge_kernels import QuantizedWeight, reference
from specedge_kernels.quantized import FORMS

CPU = torch.device("cpu")


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """MLP projections: of SmolLM2-135M on a CPU, of Qwen3-14B on a GPU."""
    if device.type == "cuda":
        yield from (linear(rows, torch.bfloat16, device, 5120, 34816) for rows in (1, 16, 64, 512))
        for kind in (12,) if quick else (2, 12, 14):  # Q4_0, Q4_K, Q6_K
            yield from (quantized_linear(rows, kind, 5120, 5120, device) for rows in (1, 16, 64))
        return
    for dtype in (torch.float32, torch.bfloat16):
        yield from (linear(rows, dtype, device) for rows in (1, 16))
    for kind in (3, 12) if quick else FORMS:
        yield from (quantized_linear(rows, kind) for rows in (1, 8))
        yield pack_quantized(kind)
        yield dequantize(kind)


def linear(
    rows: int, stored: torch.dtype, device: torch.device, inputs: int = 576, outputs: int = 1536
) -> Case:
    """Activations are float32 on a CPU, and of the weight's type on a GPU."""
    dtype = torch.float32 if device.type == "cpu" else stored

    def prepare(seed: int) -> Work:
        x = normal(rows, inputs, device=device, seed=seed, dtype=dtype)
        weight = normal(outputs, inputs, device=device, seed=seed, dtype=stored)
        packed = ours.pack_linear(weight)
        call = lambda: ours.linear(x, packed, outputs)  # noqa: E731

        def check() -> str:
            expected = x.cpu().double() @ weight.cpu().double().T
            return far_from(expected, call(), TOLERANCES[dtype])

        return Work(call, check)

    n_bytes = inputs * outputs * stored.itemsize + rows * (inputs + outputs) * dtype.itemsize
    shape = f"{str(stored).removeprefix('torch.')} N{rows} K{inputs} M{outputs}"
    return Case("linear", "ours", shape, n_bytes, 2 * rows * inputs * outputs, prepare)


def quantized_linear(
    rows: int, kind: int, inputs: int = 1536, outputs: int = 576, device: torch.device = CPU
) -> Case:
    """A CPU rounds activations to 8 bits; a GPU takes bfloat16 as it is."""
    on_cpu = device.type == "cpu"
    dtype = torch.float32 if on_cpu else torch.bfloat16

    def prepare(seed: int) -> Work:
        x = normal(rows, inputs, device=device, seed=seed, dtype=dtype)
        weight = random_weight(kind, inputs, outputs, seed)
        there = weight.to(device)
        call = lambda: ours.quantized_linear(x, there)  # noqa: E731

        def check() -> str:
            multiplied = reference.round_activations(x) if on_cpu else x.cpu()
            expected = multiplied.double() @ reference.unpack_quantized(weight).double().T
            return far_from(expected, call(), TOLERANCES[dtype])

        return Work(call, check)

    numbers = rows * (inputs + outputs)
    n_bytes = FORMS[kind].packed_bytes(outputs, inputs) + numbers * dtype.itemsize
    shape = f"{FORMS[kind].name} N{rows} K{inputs} M{outputs}"
    return Case("quantized_linear", "ours", shape, n_bytes, 2 * rows * inputs * outputs, prepare)


def pack_quantized(kind: int, inputs: int = 1536, outputs: int = 576) -> Case:
    def prepare(seed: int) -> Work:
        stored = random_stored(kind, inputs, outputs, seed)
        call = lambda: ours.pack_quantized(stored, kind)  # noqa: E731

        def check() -> str:
            values = reference.unpack_quantized(call())
            return unlike((reference.dequantize(stored, kind),), (values,))

        return Work(call, check)

    n_bytes = outputs * stored_bytes(kind, inputs) + FORMS[kind].packed_bytes(outputs, inputs)
    shape = f"{FORMS[kind].name} K{inputs} M{outputs}"
    return Case("pack_quantized", "ours", shape, n_bytes, 0, prepare)


def dequantize(kind: int, inputs: int = 1536, rows: int = 64) -> Case:
    def prepare(seed: int) -> Work:
        stored = random_stored(kind, inputs, rows, seed)
        call = lambda: ours.dequantize(stored, kind)  # noqa: E731
        return Work(call, lambda: unlike((reference.dequantize(stored, kind),), (call(),)))

    n_bytes = rows * (stored_bytes(kind, inputs) + 4 * inputs)
    return Case("dequantize", "ours", f"{FORMS[kind].name} N{rows} K{inputs}", n_bytes, 0, prepare)


def stored_bytes(kind: int, inputs: int) -> int:
    """Of a row as a file has it."""
    return inputs // FORMS[kind].inputs * FORMS[kind].stored_bytes


def random_stored(kind: int, inputs: int, outputs: int, seed: int) -> torch.Tensor:
    """Random codes under scales of half precision that are ordinary numbers."""
    generator = torch.Generator().manual_seed(seed)
    size = (outputs, stored_bytes(kind, inputs))
    stored = torch.randint(256, size, dtype=torch.uint8, generator=generator)
    # No exponent is all ones, wherever in a group the scales lie.
    return stored & 0xBB


def random_weight(kind: int, inputs: int, outputs: int, seed: int = 0) -> QuantizedWeight:
    """Random codes under ordinary scales."""
    form = FORMS[kind]
    generator = torch.Generator().manual_seed(seed)
    n_bytes = form.packed_bytes(outputs, inputs)
    packed = torch.randint(256, (n_bytes,), dtype=torch.uint8, generator=generator)
    groups = packed.view(-1, form.group_bytes)
    scales = torch.tensor([0.01, -0.05], dtype=torch.float16)[: form.halves]
    groups[:, : 16 * form.halves] = scales.repeat_interleave(8).view(torch.uint8)
    if not form.halves:
        groups[:, :8] = 120  # 2^-8
    return QuantizedWeight(packed, (kind,), (outputs,), inputs)
