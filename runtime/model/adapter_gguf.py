"""Adapters in .gguf files, as llama.cpp's convert_lora_to_gguf.py writes them and llama.cpp reads.

Knows bytes and names, not the model that they belong to.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from runtime.model.config import ModelError
from runtime.model.formats import floats
from runtime.model.gguf import GgufTensor, huggingface_name, stored_tensors, unpermuted
from runtime.model.gguf_config import ARCHITECTURES, header_of

ALPHA, INVOCATION = "adapter.lora.alpha", "adapter.alora.invocation_tokens"
_EXPECTED = {"general.type": ("adapter",), "adapter.type": ("lora",)}
_SUFFIXES = (".lora_a", ".lora_b")


class GgufAdapter:
    """A .gguf file. `shapes` and `scale` by the Hugging Face name of the module.

    head_dim: of the model, whose queries and keys llama's files have in another order.
    Raises ModelError.
    """

    def __init__(self, path: Path, head_dim: int):
        header = header_of(path)
        self._metadata, self._path, self._head_dim = header.metadata, path, head_dim
        self._check_kind()
        self._pairs = _pairs({tensor.name: tensor for tensor in stored_tensors(path, header)})
        self.shapes = {module: (a.shape, b.shape) for module, (a, b) in self._pairs.items()}

    def pair(self, module: str) -> tuple[Tensor, Tensor]:
        """A and B as they are stored, the rows of B in Hugging Face's order."""
        a, b = (floats(half.read(), torch.float32) for half in self._pairs[module])
        turns = module.endswith(("q_proj", "k_proj"))
        if turns and self._metadata["general.architecture"] == "llama":
            b = unpermuted(b, self._head_dim)
        return a, b

    def scale(self, module: str) -> float:
        """What B A is multiplied with: alpha by rank, and 1 where alpha is 0 or not there."""
        alpha = self._metadata.get(ALPHA, 0.0)
        if not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise ModelError(f"{self._path}: {ALPHA} is {alpha!r}; expected a number")
        return alpha / self.shapes[module][0][0] if alpha else 1.0

    def _check_kind(self) -> None:
        for field, expected in {**_EXPECTED, "general.architecture": ARCHITECTURES}.items():
            if (got := self._metadata.get(field)) not in expected:
                raise ModelError(
                    f"{self._path}: {field} is {str(got)[:80]!r}; expected {', '.join(expected)}"
                )
        if INVOCATION in self._metadata:
            raise ModelError(
                f"{self._path} asks that it is switched on in the middle of a text "
                f"({INVOCATION}), which is not supported"
            )


def _pairs(tensors: Mapping[str, GgufTensor]) -> dict[str, tuple[GgufTensor, GgufTensor]]:
    """A and B by the Hugging Face name of the module."""
    pairs = {}
    for name in tensors:
        stem = name.removesuffix(_SUFFIXES[0]).removesuffix(_SUFFIXES[1])
        theirs = None if stem == name else huggingface_name(stem)
        if theirs is None:
            raise ModelError(f"tensor {name} is none that a LoRA of a known matrix has")
        a, b = (tensors.get(f"{stem}{suffix}") for suffix in _SUFFIXES)
        if a is None or b is None:
            raise ModelError(f"tensor {name} has no counterpart; expected A and B of each matrix")
        pairs[theirs.removesuffix(".weight")] = a, b
    if not pairs:
        raise ModelError("it has no tensors")
    return pairs
