"""Hugging Face model folders: config.json and safetensors, in one file or in many.

Knows names, shapes and bytes, not what a transformer does with them. transformers and safetensors
are imported when they are needed.
"""

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.model.config import (
    FAMILIES,
    MAX_LAYERS,
    ModelConfig,
    ModelError,
    check_count,
    from_huggingface,
)
from runtime.model.foreign import (
    described_bytes,
    described_names,
    listed,
    quantisation,
    quantised_tensors,
)
from runtime.model.json_file import read_json

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_ROWS_COMPARED = 1024


class SafetensorsFolder:
    """A Hugging Face model folder: config.json and one or many .safetensors files."""

    def __init__(self, folder: Path):
        self.config = read_config(folder / "config.json")
        self._files: dict[str, Any] = {}
        for path in _shards(folder):
            opened = open_safetensors(path)
            self._files.update(dict.fromkeys(opened.keys(), opened))
        if method := quantised_tensors(self._files):
            raise _quantised(folder, method)
        self._stored = {_full_name(name, self._files): name for name in self._files}
        if self.config.tied_embedding:
            self._tie()
        self.shapes = {name: self._shape(stored) for name, stored in self._stored.items()}

    def _tie(self) -> None:
        """A tied head as transformers takes it: the one that is stored is both.

        Where both are stored and differ, they are not tied, whatever the configuration says.
        """
        if HEAD not in self._stored:
            return
        if EMBEDDING not in self._stored:
            self._stored[EMBEDDING] = self._stored.pop(HEAD)
        elif not self._same(self._stored[EMBEDDING], self._stored[HEAD]):
            self.config = replace(self.config, tied_embedding=False)

    def _same(self, one: str, other: str) -> bool:
        """Whether two matrices hold the same numbers, looked at some rows at a time."""
        shape = self._shape(one)
        if len(shape) != 2 or shape != self._shape(other):
            return False
        slices = [self._file(stored).get_slice(stored) for stored in (one, other)]
        for first in range(0, shape[0], _ROWS_COMPARED):
            a, b = (part[first : first + _ROWS_COMPARED].float() for part in slices)
            if not torch.equal(a, b):
                return False
        return True

    def _shape(self, stored: str) -> tuple[int, ...]:
        return tuple(self._files[stored].get_slice(stored).get_shape())

    def _file(self, stored: str) -> Any:
        """The file of a tensor that is to be read."""
        dtype = self._files[stored].get_slice(stored).get_dtype()
        if dtype not in _FLOATS:
            raise ModelError(
                f"tensor {stored} is stored as {dtype}; expected one of {', '.join(_FLOATS)}"
            )
        return self._files[stored]

    def n_bytes(self, name: str) -> int:
        stored = self._stored[name]
        return n_bytes(self._files[stored], stored)

    def stored(self, name: str) -> Tensor:
        stored = self._stored[name]
        return copied(self._file(stored), stored)


def _full_name(name: str, every: Collection[str]) -> str:
    """The name of a tensor; models saved without their head leave out its first part."""
    return f"model.{name}" if name != HEAD and "norm.weight" in every else name


def read_config(path: Path) -> ModelConfig:
    """The ModelConfig of a config.json. Raises ModelError."""
    try:
        fields = read_json(path)
    except FileNotFoundError:
        raise ModelError(
            f"{path.parent} is not a model folder: {path.name} is missing{_instead(path.parent)}"
        ) from None
    model_type = fields.get("model_type") if isinstance(fields, dict) else None
    if model_type not in FAMILIES:
        raise ModelError(
            f"{path}: model type {model_type!r} is not supported; expected {', '.join(FAMILIES)}"
        )
    if method := quantisation(fields):
        raise _quantised(path, method)
    from transformers import AutoConfig

    try:
        # transformers makes a list of that length
        check_count("num_hidden_layers", fields.get("num_hidden_layers", 1), MAX_LAYERS)
        config = AutoConfig.for_model(**fields)
    # its validation raises classes of its own, by version
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{path} is not a {model_type} configuration: {reason}") from error
    try:
        return from_huggingface(config)
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from None
    # older versions of transformers let fields of wrong types through
    except (ArithmeticError, AttributeError, TypeError) as error:
        raise ModelError(f"{path} is not a {model_type} configuration: {error}") from error


def open_safetensors(path: Path) -> Any:
    """A safetensors file, its tensors unread. Raises ModelError."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise ModelError(f"{path} is missing") from None
    except (SafetensorError, OSError) as error:
        kind = described_bytes(path) if isinstance(error, SafetensorError) else None
        raise ModelError(f"{path} is not a safetensors file: {kind or error}") from None


def _quantised(path: Path, method: str) -> ModelError:
    return ModelError(
        f"{path}: the weights are quantised ({method}), which is not supported; take the model's "
        "unquantised folder, or a GGUF file of it"
    )


def _shards(folder: Path) -> list[Path]:
    """The safetensors files of a folder: the single one, those of the index, or all parts."""
    indexed = _indexed(folder / _INDEX) if (folder / _INDEX).is_file() else []
    for path in indexed:
        if not path.is_file():
            raise ModelError(f"{path} is missing; {_INDEX} names it")
    single = folder / _WEIGHTS
    # transformers, too, takes the single file where there are both
    if single.is_file():
        return [single]
    if paths := indexed or _parts(folder):
        return paths
    raise ModelError(f"{single} is missing{_instead(folder)}")


def _instead(folder: Path) -> str:
    """The end of a sentence about something that is missing in a folder."""
    kind = described_names(path.name for path in folder.glob("*"))
    return f"; the folder holds {kind}" if kind else ""


def _indexed(index: Path) -> list[Path]:
    try:
        names = set(read_json(index)["weight_map"].values())
        paths = [index.parent / name for name in sorted(names)]
    except (KeyError, AttributeError, TypeError):
        raise ModelError(f"{index} is not an index: expected a JSON object weight_map") from None
    if any(path.parent != index.parent for path in paths):
        raise ModelError(f"{index} names files outside of its folder")
    return paths


def _parts(folder: Path) -> list[Path]:
    """The files NAME-00001-of-0000N.safetensors where there is no index; all of them or none."""
    matches = [_PART.fullmatch(path.name) for path in folder.glob("*.safetensors")]
    parts = {(part["stem"], part["count"]): part for part in matches if part}
    if not parts:
        return []
    if len(parts) > 1:
        raise ModelError(f"{folder} holds parts of several models and no {_INDEX}")
    ((stem, count),) = parts
    present = {part["number"] for part in matches if part}
    missing = [n for n in range(1, int(count) + 1) if f"{n:05d}" not in present]
    if missing:
        names = listed(f"{stem}-{n:05d}-of-{count}.safetensors" for n in missing)
        raise ModelError(f"{folder} lacks {names}, and {_INDEX}")
    return [folder / f"{stem}-{n:05d}-of-{count}.safetensors" for n in range(1, int(count) + 1)]


def copied(file: Any, name: str) -> Tensor:
    """A tensor of an open safetensors file.

    What safetensors gives is the file itself: who writes over it would change a model that runs,
    and who cuts it short would end the process.
    """
    tensor: Tensor = file.get_tensor(name)
    return tensor.clone()


def n_bytes(file: Any, name: str) -> int:
    tensor = file.get_slice(name)
    n_bits = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I32": 32, "I64": 64}
    count = 1
    for size in tensor.get_shape():
        count *= size
    return count * n_bits.get(tensor.get_dtype(), 8) // 8
