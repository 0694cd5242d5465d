"""A mixture of experts: the router, the products of its experts, their sum."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import specedge_kernels as ours
from bench.kernels.case import TOLERANCES, Case, Work, far_from, unlike
from bench.kernels.products import random_weight
from bench.kernels.step import normal
from specedge_kernels import QuantizedWeight, reference
from specedge_kernels.library import DEVICES

KIND = 12  # Q4_K


@dataclass(frozen=True)
class Mixture:
    rows: int
    experts: int
    chosen: int
    inputs: int
    outputs: int
    dtype: torch.dtype

    def __str__(self) -> str:
        sizes = f"K{self.inputs} M{self.outputs}"
        return f"{self.chosen} of {self.experts} experts N{self.rows} {sizes}"

    def experts_of(self, seed: int) -> Tensor:
        """[N, k]: distinct in each row."""
        draws = torch.rand(self.rows, self.experts, generator=torch.manual_seed(seed))
        return draws.topk(self.chosen).indices.int()

    @property
    def read_experts(self) -> float:
        """How many are chosen by any row, on average."""
        missed = (1 - self.chosen / self.experts) ** self.rows
        return self.experts * (1 - missed)


def cases(device: torch.device) -> Iterator[Case]:
    """A gate and up of Qwen3-30B-A3B on a GPU, of a small mixture on a CPU."""
    mixture = Mixture(16, 16, 4, 256, 256, torch.float32)
    if device.type == "cuda":
        mixture = Mixture(16, 128, 8, 2048, 1536, torch.bfloat16)
    makers = (route, grouped_linear, grouped_quantized_linear, weighted_sum)
    yield from (make(mixture, device) for make in makers if device.type in DEVICES[make.__name__])


def route(mixture: Mixture, device: torch.device) -> Case:
    def prepare(seed: int) -> Work:
        logits = normal(mixture.rows, mixture.experts, device=device, seed=seed)
        call = lambda: ours.route(logits, mixture.chosen, normalise=True)  # noqa: E731

        def check() -> str:
            experts, weights = reference.route(logits.cpu(), mixture.chosen, normalise=True)
            got = call()
            return unlike((experts,), got[:1]) or far_from(weights, got[1], 1e-5)

        return Work(call, check)

    n_bytes = mixture.rows * (4 * mixture.experts + 8 * mixture.chosen)
    return Case("route", "ours", str(mixture), n_bytes, 0, prepare)


def grouped_linear(mixture: Mixture, device: torch.device) -> Case:
    def prepare(seed: int) -> Work:
        like = {"device": device, "seed": seed, "dtype": mixture.dtype}
        x = normal(mixture.rows, mixture.inputs, **like)
        weights = normal(mixture.experts, mixture.outputs, mixture.inputs, **like)
        packed = torch.stack([ours.pack_linear(weight) for weight in weights])
        experts = mixture.experts_of(seed)
        there = experts.to(device)
        call = lambda: ours.grouped_linear(x, packed, mixture.outputs, there)  # noqa: E731

        def check() -> str:
            chosen = weights.cpu().double()[experts.long()]
            expected = torch.einsum("nk,njmk->njm", x.cpu().double(), chosen)
            return far_from(expected.flatten(0, 1), call(), TOLERANCES[mixture.dtype])

        return Work(call, check)

    expert_bytes = mixture.inputs * mixture.outputs * mixture.dtype.itemsize
    return grouped("grouped_linear", mixture, expert_bytes, prepare)


def grouped_quantized_linear(mixture: Mixture, device: torch.device) -> Case:
    """A CPU rounds activations to 8 bits; a GPU takes them as they are."""
    on_cpu = device.type == "cpu"

    def prepare(seed: int) -> Work:
        x = normal(mixture.rows, mixture.inputs, device=device, seed=seed, dtype=mixture.dtype)
        sizes = (mixture.inputs, mixture.outputs)
        sets = [random_weight(KIND, *sizes, seed + i) for i in range(mixture.experts)]
        packed, experts = QuantizedWeight.stacked(sets).to(device), mixture.experts_of(seed)
        there = experts.to(device)
        call = lambda: ours.grouped_quantized_linear(x, packed, there)  # noqa: E731

        def check() -> str:
            multiplied = (reference.round_activations(x) if on_cpu else x.cpu()).double()
            every = [multiplied @ reference.unpack_quantized(w).double().T for w in sets]
            chosen = experts.long()[..., None].expand(-1, -1, mixture.outputs)
            expected = torch.stack(every, 1).gather(1, chosen).flatten(0, 1)
            return far_from(expected, call(), TOLERANCES[mixture.dtype])

        return Work(call, check)

    n_bytes = random_weight(KIND, mixture.inputs, mixture.outputs).packed.nbytes
    return grouped("grouped_quantized_linear", mixture, n_bytes, prepare)


def grouped(op: str, mixture: Mixture, expert_bytes: int, prepare: object) -> Case:
    pairs = mixture.rows * mixture.chosen
    numbers = mixture.rows * mixture.inputs + pairs * mixture.outputs
    n_bytes = round(mixture.read_experts * expert_bytes) + numbers * mixture.dtype.itemsize
    flops = 2 * pairs * mixture.inputs * mixture.outputs
    return Case(op, "ours", str(mixture), n_bytes, flops, prepare)


def weighted_sum(mixture: Mixture, device: torch.device) -> Case:
    pairs = mixture.rows * mixture.chosen

    def prepare(seed: int) -> Work:
        like = {"device": device, "seed": seed}
        y = normal(pairs, mixture.outputs, **like, dtype=mixture.dtype)
        weights = normal(mixture.rows, mixture.chosen, **like)
        call = lambda: ours.weighted_sum(y, weights)  # noqa: E731
        expected = lambda: reference.weighted_sum(y.cpu(), weights.cpu())  # noqa: E731
        return Work(call, lambda: far_from(expected(), call(), TOLERANCES[mixture.dtype]))

    n_bytes = (pairs + mixture.rows) * mixture.outputs * mixture.dtype.itemsize
    return Case("weighted_sum", "ours", str(mixture), n_bytes, 0, prepare)
