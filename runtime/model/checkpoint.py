"""Checkpoints of every kind: tensors under Hugging Face's names, and what model they make.

Reads safetensors and GGUF, never pickled files. Knows names, shapes and bytes, not what a
transformer does with them.
"""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

import torch
from torch import Tensor

from runtime import embedded
from runtime.model.config import ModelConfig, from_huggingface
from runtime.model.folder import EMBEDDING, SafetensorsFolder
from runtime.model.formats import rows_of
from runtime.model.gguf import GgufFile
from runtime.model.json_file import read_json
from runtime.model.locate import DRAFT, TARGET, locate
from runtime.model.safetensors_file import tensors_of
from specedge_kernels import StoredWeight
from specedge_kernels.quantized import BLOCK


class Checkpoint(Protocol):
    """A model on disk."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of every tensor, by Hugging Face name."""
        ...

    def n_bytes(self, name: str) -> int:
        """Bytes of one tensor on disk."""
        ...

    def running_bytes(self, name: str) -> int:
        """Bytes of one tensor as it runs on a CPU, about."""
        ...

    def method(self, name: str) -> str | None:
        """What a tensor is quantised with whose layout no format here has; None for others."""
        ...

    def stored(self, name: str) -> Tensor | StoredWeight:
        """One tensor as it is stored, on the CPU, and no part of the file any more."""
        ...

    def stored_rows(self, name: str, first: int, last: int) -> Tensor | StoredWeight:
        """Rows first .. last - 1 of it; no others are read where they can be told apart."""
        ...


def open_checkpoint(name: str | Path) -> Checkpoint:
    """The checkpoint behind a folder, a .gguf file, a hub id, "smollm2" or "smollm2-draft".

    Raises ModelError.
    """
    if str(name) == DRAFT:
        return EmbeddedDraft(GgufFile(locate(TARGET)))
    path = locate(name)
    return SafetensorsFolder(path) if path.is_dir() else GgufFile(path)


class EmbeddedDraft:
    """The embedded draft: int8 rows with a scale each, and the target's token embedding."""

    def __init__(self, target: Checkpoint):
        # every field is written down there, so that no library has to know the rest
        fields = {"rope_scaling": None, **read_json(embedded.DRAFT_CONFIG)}
        self.config = from_huggingface(SimpleNamespace(**fields))
        self._tensors = tensors_of(embedded.DRAFT_WEIGHTS)
        self._target = target
        names = [name for name in self._tensors if not name.endswith(".scale")]
        self.shapes = {name: self._tensors[name].shape for name in names}
        self.shapes[EMBEDDING] = self._target.shapes[EMBEDDING]

    def n_bytes(self, name: str) -> int:
        return self._target.n_bytes(name) if name == EMBEDDING else self._tensors[name].n_bytes

    def running_bytes(self, name: str) -> int:
        return self.n_bytes(name)

    def method(self, name: str) -> None:
        return None

    def stored(self, name: str) -> Tensor | StoredWeight:
        if name == EMBEDDING:
            return self._target.stored(name)
        tensor = self._tensors[name].read()
        if tensor.dtype != torch.int8:
            return tensor
        scales = self._tensors[f"{name}.scale"].read()
        whole = tensor.shape[1] % BLOCK == 0
        return _q8_0(tensor, scales) if whole else tensor.float() * scales[:, None]

    def stored_rows(self, name: str, first: int, last: int) -> Tensor | StoredWeight:
        return rows_of(self.stored(name), first, last)


def _q8_0(codes: Tensor, scales: Tensor) -> StoredWeight:
    """Codes [M, K] int8 with a scale [M] each as blocks of Q8_0: all of a row have its scale."""
    blocks = codes.unflatten(1, (-1, BLOCK))
    halves = scales.half()[:, None, None].expand(*blocks.shape[:2], 1).contiguous()
    rows = torch.cat((halves.view(torch.uint8), blocks.view(torch.uint8)), -1)
    return StoredWeight(rows.flatten(1), 8)
