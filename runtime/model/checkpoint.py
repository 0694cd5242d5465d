"""Where a model's name leads, and the tensors that lie there, under Hugging Face's names.

Reads safetensors and GGUF, never pickled files. Knows names, shapes and bytes, not what a
transformer does with them. transformers, safetensors and gguf are imported when they are needed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from runtime import embedded
from runtime.model.config import (
    FAMILIES,
    MAX_LAYERS,
    ModelConfig,
    ModelError,
    check_count,
    from_huggingface,
)
from runtime.model.gguf import GgufFile

TARGET, DRAFT = "smollm2", "smollm2-draft"  # the embedded pair
EMBEDDING = "model.embed_tokens.weight"
_HUB_FILES = ("*.json", "model*.safetensors", "*.txt", "*.model", "*.jinja")


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

    def read(self, name: str) -> Tensor:
        """One tensor in its own, or a dequantised, dtype, on the CPU."""
        ...


def open_checkpoint(name: str | Path) -> Checkpoint:
    """The checkpoint behind a folder, a .gguf file, a hub id, "smollm2" or "smollm2-draft".

    Raises ModelError.
    """
    if str(name) == DRAFT:
        return EmbeddedDraft(GgufFile(locate(TARGET)))
    path = locate(name)
    return SafetensorsFolder(path) if path.is_dir() else GgufFile(path)


def locate(name: str | Path) -> Path:
    """The folder or GGUF file that a model's name stands for; hub ids are downloaded.

    Both embedded names lead to the target's file, which holds the tokenizer of the pair.
    """
    if str(name) in (TARGET, DRAFT):
        try:
            return embedded.target_path()
        except FileNotFoundError as error:
            raise ModelError(str(error)) from None
    path = Path(name).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.is_file():
        raise ModelError(f"{path} is not a model: expected a folder or a file ending in .gguf")
    if str(name).count("/") == 1 and not str(name).startswith((".", "/", "~")):
        return _download(str(name))
    raise ModelError(f"{path} does not exist; expected a model's folder, a .gguf file or a hub id")


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(_HUB_FILES)))
    # the hub's client raises its own, its HTTP library's and the socket's errors
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"{hub_id} is no folder here and could not be fetched from the Hugging Face hub: "
            f"{type(error).__name__}: {reason}"
        ) from None


class SafetensorsFolder:
    """A Hugging Face model folder: config.json and one or many .safetensors files."""

    def __init__(self, folder: Path):
        self.config = read_config(folder / "config.json")
        self._files: dict[str, Any] = {}
        for path in _shards(folder):
            opened = open_safetensors(path)
            self._files.update(dict.fromkeys(opened.keys(), opened))
        self.shapes = {
            name: tuple(file.get_slice(name).get_shape()) for name, file in self._files.items()
        }

    def n_bytes(self, name: str) -> int:
        return _n_bytes(self._files[name], name)

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor


class EmbeddedDraft:
    """The embedded draft: int8 rows with a scale each, and the target's token embedding."""

    def __init__(self, target: Checkpoint):
        self.config = read_config(embedded.DRAFT_CONFIG)
        self._file = open_safetensors(embedded.DRAFT_WEIGHTS)
        self._target = target
        names = [name for name in self._file.keys() if not name.endswith(".scale")]  # noqa: SIM118
        self.shapes = {name: tuple(self._file.get_slice(name).get_shape()) for name in names}
        self.shapes[EMBEDDING] = self._target.shapes[EMBEDDING]

    def n_bytes(self, name: str) -> int:
        return self._target.n_bytes(name) if name == EMBEDDING else _n_bytes(self._file, name)

    def read(self, name: str) -> Tensor:
        if name == EMBEDDING:
            return self._target.read(name)
        tensor: Tensor = self._file.get_tensor(name)
        if tensor.dtype == torch.int8:
            tensor = tensor.float() * self._file.get_tensor(f"{name}.scale")[:, None]
        return tensor


def read_config(path: Path) -> ModelConfig:
    """The ModelConfig of a config.json. Raises ModelError."""
    try:
        fields = read_json(path)
    except FileNotFoundError:
        raise ModelError(f"{path.parent} is not a model folder: {path.name} is missing") from None
    model_type = fields.get("model_type") if isinstance(fields, dict) else None
    if model_type not in FAMILIES:
        raise ModelError(
            f"{path}: model type {model_type!r} is not supported; expected {', '.join(FAMILIES)}"
        )
    from transformers import AutoConfig

    try:
        # transformers makes a list of that length
        check_count("num_hidden_layers", fields.get("num_hidden_layers", 1), MAX_LAYERS)
        config = AutoConfig.for_model(**fields)
    # its validation raises classes of its own, by version
    except Exception as error:
        raise ModelError(f"{path} is not a {model_type} configuration: {error}") from error
    try:
        return from_huggingface(config)
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from None
    # older versions of transformers let fields of wrong types through
    except (ArithmeticError, AttributeError, TypeError) as error:
        raise ModelError(f"{path} is not a {model_type} configuration: {error}") from error


def read_json(path: Path) -> Any:
    """Raises ModelError for a file that is not JSON, OSError where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from None


def open_safetensors(path: Path) -> Any:
    """A safetensors file, its tensors unread. Raises ModelError."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise ModelError(f"{path} is missing") from None
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a safetensors file: {error}") from None


def _shards(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those its index names, else the single one."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    try:
        names = set(read_json(index)["weight_map"].values())
        paths = [folder / name for name in sorted(names)]
    except (KeyError, AttributeError, TypeError):
        raise ModelError(f"{index} is not an index: expected a JSON object weight_map") from None
    if any(path.parent != folder for path in paths):
        raise ModelError(f"{index} names files outside of its folder")
    return paths


def _n_bytes(file: Any, name: str) -> int:
    tensor = file.get_slice(name)
    n_bits = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I32": 32, "I64": 64}
    count = 1
    for size in tensor.get_shape():
        count *= size
    return count * n_bits.get(tensor.get_dtype(), 8) // 8
