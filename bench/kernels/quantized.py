"""Products of quantised weights and 8-bit activations, on a CPU only."""

from collections.abc import Iterator

import torch

import specedge_kernels as ours
from bench.kernels.case import Case, Work, far_from
from bench.kernels.step import normal
from specedge_kernels import QuantizedWeight, reference
from specedge_kernels.quantized import FORMS

CPU = torch.device("cpu")


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    if device.type == "cpu":
        for kind in (3, 12) if quick else FORMS:
            yield from (quantized_linear(rows, kind) for rows in (1, 8))


def quantized_linear(rows: int, kind: int, inputs: int = 1536, outputs: int = 576) -> Case:
    """An MLP projection of SmolLM2-135M."""

    def prepare(seed: int) -> Work:
        x = normal(rows, inputs, device=CPU, seed=seed)
        weight = random_weight(kind, inputs, outputs, seed)
        call = lambda: ours.quantized_linear(x, weight)  # noqa: E731
        values = reference.unpack_quantized(weight).double()
        expected = reference.round_activations(x).double() @ values.T
        return Work(call, lambda: far_from(expected, call(), 1e-5))

    n_bytes = FORMS[kind].packed_bytes(outputs, inputs) + rows * (inputs + outputs) * 4
    shape = f"{FORMS[kind].name} N{rows} K{inputs} M{outputs}"
    return Case("quantized_linear", "ours", shape, n_bytes, 2 * rows * inputs * outputs, prepare)


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
