"""Low-rank adapters (LoRA, arXiv:2106.09685): what a file adds to which of a model's matrices.

An adapter of peft is a folder, one of llama.cpp a .gguf file. Everything is checked against the
model's own shapes before it is read. Knows files and numbers, not how a pass uses them.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from runtime.model.adapter_folder import FolderAdapter
from runtime.model.adapter_gguf import GgufAdapter
from runtime.model.config import ModelConfig, ModelError
from runtime.model.formats import FLOATS
from runtime.model.locate import here
from runtime.model.weights import expected_shapes

MAX_RANK = 256
MAX_REASON_CHARACTERS = 1000
# of the products that a layer has; those of experts are grouped already
MODULE = re.compile(
    r"model\.layers\.\d+\.(self_attn\.[qkvo]|mlp\.(shared_expert\.)?(gate|up|down))_proj", re.ASCII
)


class AdapterFile(Protocol):
    """An adapter on disk: pairs of matrices by the module that they are added to."""

    @property
    def shapes(self) -> Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Of A and B, by the Hugging Face name of the module, model.layers.3.mlp.up_proj."""
        ...

    def pair(self, module: str) -> tuple[Tensor, Tensor]:
        """A and B as they are stored."""
        ...

    def scale(self, module: str) -> float:
        """What B A is multiplied with before it is added."""
        ...


@dataclass(frozen=True)
class LowRank:
    """What is added to a matrix W [M, K]: scale B A, of a float type that runs, on the CPU."""

    a: Tensor  # [R, K]
    b: Tensor  # [M, R]
    scale: float

    def of_rows(self, first: int, last: int) -> "LowRank":
        """What is added to these rows of W."""
        return replace(self, b=self.b[first:last])


@dataclass(frozen=True)
class Adapter:
    """An adapter that has been read: what it adds, by the name of the module."""

    name: str
    added: Mapping[str, LowRank]

    def part(self, rows: Callable[[str], tuple[int, int] | None]) -> "Adapter":
        """For a process that has these rows of each matrix, by its name; all where it is None."""
        return replace(
            self,
            added={
                module: low if (own := rows(f"{module}.weight")) is None else low.of_rows(*own)
                for module, low in self.added.items()
            },
        )


@dataclass(frozen=True)
class Base:
    """The model that an adapter is for.

    matrices  [outputs, inputs] of all it has, by the name of the module
    products  those of them that adapters can be beside
    head_dim  of queries and keys, which .gguf files of a llama have in another order; None where
              no such files are read
    """

    matrices: Mapping[str, tuple[int, ...]]
    products: Collection[str]
    head_dim: int | None = None


def base_of(config: ModelConfig) -> Base:
    """A model of our own code."""
    matrices = {
        name.removesuffix(".weight"): shape
        for name, shape in expected_shapes(config).items()
        if len(shape) == 2
    }
    return Base(matrices, list(filter(MODULE.fullmatch, matrices)), config.head_dim)


def load_adapter(name: str, path: Path, base: Base) -> Adapter:
    """Read an adapter for a model.

    path: a folder as peft saves it, or a .gguf file of an adapter. Raises ModelError with a
    sentence for what is no adapter, is none of this model, or adds what is not added here.
    """
    try:
        file = _open(path, base.head_dim)
        for module, (a, b) in file.shapes.items():
            _check_shapes(module, a, b, base)
        return Adapter(name, {module: _low_rank(file, module) for module in file.shapes})
    except ModelError as error:
        # names and values out of the file may be as long as it is
        raise ModelError(f"adapter {name}: {str(error)[:MAX_REASON_CHARACTERS]}") from None


def _open(path: Path, head_dim: int | None) -> AdapterFile:
    expected = "expected a folder of peft's or a .gguf file"
    if here(path, expected) is None:
        raise ModelError(f"{path} does not exist; {expected}")
    if path.is_dir():
        return FolderAdapter(path)
    if path.suffix != ".gguf":
        raise ModelError(f"{path} is no .gguf file; of an adapter of peft's, give the folder")
    if head_dim is None:
        raise ModelError(
            f"{path} is for a family that runs by our own code, and this model is run by "
            "transformers' modules; give the folder of peft's"
        )
    return GgufAdapter(path, head_dim)


def _check_shapes(module: str, a: tuple[int, ...], b: tuple[int, ...], base: Base) -> None:
    weight = base.matrices.get(module)
    if weight is None:
        raise ModelError(f"{module} is adapted, but the model has no such matrix")
    if module not in base.products:
        raise ModelError(
            f"{module} is adapted; only the products of attention and of MLPs that every token "
            "goes through can be, not embeddings, the output head or experts"
        )
    (outputs, inputs), rank = weight, a[0] if a else 0
    if a != (rank, inputs) or b != (outputs, rank):
        raise ModelError(
            f"the matrices of {module} have shapes {list(a)} and {list(b)}; expected "
            f"[rank, {inputs}] and [{outputs}, rank]"
        )
    if not 1 <= rank <= MAX_RANK:
        raise ModelError(f"{module} has rank {rank}; expected 1 to {MAX_RANK}")


def _low_rank(file: AdapterFile, module: str) -> LowRank:
    pair, scale = file.pair(module), file.scale(module)
    a, b = (half if half.dtype in FLOATS.values() else half.float() for half in pair)
    if not (torch.isfinite(a).all() and torch.isfinite(b.float() * scale).all()):
        raise ModelError(f"the matrices of {module} have numbers that are not finite")
    return LowRank(a, b, scale)
