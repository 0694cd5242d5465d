"""Hugging Face model folders as checkpoints: what config.json says, and the weights beside it.

Knows names and shapes, not what a transformer does with them. transformers is imported when it is
needed.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from runtime.model.config import (
    FAMILIES,
    MAX_LAYERS,
    ModelConfig,
    ModelError,
    Unsupported,
    check_count,
    from_huggingface,
)
from runtime.model.folder_weights import FolderWeights, unread
from runtime.model.foreign import quantisation
from runtime.model.formats import Weight
from runtime.model.json_file import read_json
from runtime.model.layouts import READ
from runtime.model.shards import instead
from runtime.model.text_part import text_fields

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_ROWS_COMPARED = 1024


class SafetensorsFolder:
    """A Hugging Face model folder: config.json and one or many .safetensors files."""

    def __init__(self, folder: Path):
        path = folder / "config.json"
        fields = read_fields(path)
        self.config = config_of(path, fields)
        self._weights = FolderWeights(folder, quantisation_of(path, fields))
        names = self._weights.shapes
        self._stored = {_full_name(name, names): name for name in names}
        if fields.get("model_type") == "mixtral":
            self._stored = {_mixtral_name(name): stored for name, stored in self._stored.items()}
        if self.config.tied_embedding:
            self._tie()
        self.shapes = {name: self._weights.shapes[stored] for name, stored in self._stored.items()}

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
        shape = self._weights.shapes[one]
        if len(shape) != 2 or shape != self._weights.shapes[other]:
            return False
        if self._weights.method(one) or self._weights.method(other):
            return False
        tensors = [self._weights.plain(stored) for stored in (one, other)]
        for first in range(0, shape[0], _ROWS_COMPARED):
            last = min(first + _ROWS_COMPARED, shape[0])
            a, b = (tensor.read_rows(first, last).float() for tensor in tensors)
            if not torch.equal(a, b):
                return False
        return True

    def n_bytes(self, name: str) -> int:
        return self._weights.n_bytes(self._stored[name])

    def running_bytes(self, name: str) -> int:
        return self._weights.running_bytes(self._stored[name])

    def method(self, name: str) -> str | None:
        return self._weights.method(self._stored[name])

    def stored(self, name: str) -> Weight:
        return self._weights.stored(self._stored[name])

    def stored_rows(self, name: str, first: int, last: int) -> Weight:
        return self._weights.stored_rows(self._stored[name], first, last)


def _full_name(name: str, every: Collection[str]) -> str:
    """The name of a tensor; models saved without their head leave out its first part."""
    return f"model.{name}" if name != HEAD and "norm.weight" in every else name


def _mixtral_name(name: str) -> str:
    """The name that the other families with experts have for a tensor of Mixtral."""
    name = name.replace(".block_sparse_moe.", ".mlp.")
    for theirs, ours in ("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj"):
        name = name.replace(f".{theirs}.", f".{ours}.")
    return name


def read_fields(path: Path) -> Mapping[str, Any]:
    """What a config.json says of the text model. Raises ModelError."""
    try:
        fields = read_json(path)
    except FileNotFoundError:
        raise ModelError(
            f"{path.parent} is not a model folder: {path.name} is missing{instead(path.parent)}"
        ) from None
    return text_fields(fields) if isinstance(fields, dict) else {}


def quantisation_of(path: Path, fields: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The quantization_config of a config.json, None where weights are plain.

    Raises ModelError for a method that is not read.
    """
    method = quantisation(fields)
    if method is None:
        return None
    described = fields.get("quantization_config") or fields.get("compression_config")
    if fields.get("quantization") or not isinstance(described, dict):
        raise unread(path, method)
    if described.get("quant_method") not in READ:
        raise unread(path, method)
    return described


def config_of(path: Path, fields: Mapping[str, Any]) -> ModelConfig:
    """The ModelConfig of a config.json. Raises ModelError."""
    model_type = fields.get("model_type")
    if model_type not in FAMILIES:
        raise Unsupported(
            f"{path}: model type {model_type!r} is not supported; expected {', '.join(FAMILIES)}"
        )
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
        raise Unsupported(f"{path}: {error}") from None
    # older versions of transformers let fields of wrong types through
    except (ArithmeticError, AttributeError, TypeError) as error:
        raise ModelError(f"{path} is not a {model_type} configuration: {error}") from error
