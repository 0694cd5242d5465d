"""What is not read: model files of other formats, told by names, fields and first bytes.

Each becomes the end of a sentence that says what it is and what to do. Opens no tensor.
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

_FILES_NAMED = 6  # in a sentence

_FIRST_BYTES = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer in place of the file; fetch the file itself with `git lfs pull`",
    ),
    *(
        (magic, "a GGML file, the format before GGUF; convert the model to GGUF")
        for magic in (b"lmgg", b"fmgg", b"tjgg", b"algg")
    ),
)
_PICKLED = (
    "pickled weights, which are never read because they can run code; save the model again "
    "as safetensors"
)
_ADAPTER = "an adapter, not a whole model; give its base model, and this with --adapter NAME=PATH"
# the first one that matches a file counts: from the most telling to the least
_FILES = (
    ("adapter_config.json", _ADAPTER),
    ("adapter_model.*", _ADAPTER),
    ("model_index.json", "a diffusers pipeline; expected a language model"),
    ("consolidated*", "weights under their maker's own names; take the Hugging Face folder"),
    ("params.json", "weights under their maker's own names; take the Hugging Face folder"),
    *((f"*.{kind}", _PICKLED) for kind in ("bin", "pt", "pth", "ckpt", "pkl")),
    ("*.npz", "NumPy arrays; convert the model to safetensors or GGUF"),
    ("*.onnx", "an ONNX graph; take the model that it was made from"),
    ("onnx", "an ONNX graph; take the model that it was made from"),
    ("*.h5", "TensorFlow weights; convert the model to safetensors"),
    ("*.msgpack", "Flax weights; convert the model to safetensors"),
    (
        "*.safetensors",
        "weights, which belong into a folder, as model.safetensors beside config.json",
    ),
)
_METHODS = {
    "hqq": "HQQ",
    "eetq": "EETQ",
    "aqlm": "AQLM",
    "exl2": "EXL2",
    "exl3": "EXL3",
}
_QUANTISED_TENSORS = {
    ".qweight": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors",
    ".weight_scale": "FP8 or compressed-tensors",
    ".weight_scale_inv": "FP8",
    ".absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".scales": "MLX",
}


def described_file(path: Path) -> str | None:
    """What a file is that holds no readable model, None where nothing is known of it.

    Raises OSError for one that cannot be read.
    """
    kinds = (kind for pattern, kind in _FILES if fnmatch(path.name, pattern))
    return described_bytes(path) or next(kinds, None)


def described_bytes(path: Path) -> str | None:
    """What the first bytes of a file say that it is, None where they say nothing."""
    with path.open("rb") as file:
        first = file.read(max(len(magic) for magic, _ in _FIRST_BYTES))
    return next((kind for magic, kind in _FIRST_BYTES if first.startswith(magic)), None)


def in_place_of(path: Path) -> str | None:
    """What stands where a file was not fetched, None where nothing is known of that.

    Raises OSError for one that cannot be read.
    """
    if path.is_symlink() and not path.exists():
        return f"a link to {path.readlink()}, which does not exist"
    return described_bytes(path) if path.is_file() else None


def described_names(names: Iterable[str]) -> str | None:
    """What files are that hold no readable model, None where nothing is known of them."""
    every = sorted(names)
    for pattern, kind in _FILES:
        if found := [name for name in every if fnmatch(name, pattern)]:
            return f"{listed(found)}: {kind}"
    return None


def quantisation(fields: Mapping[str, Any]) -> str | None:
    """The name of the method that a config.json says its weights are quantised with."""
    if fields.get("quantization"):
        return "MLX"
    described = fields.get("quantization_config") or fields.get("compression_config")
    if not described:
        return None
    described = described if isinstance(described, dict) else {}
    method = described.get("quant_method")
    if not method and any(key.startswith(("load_in_", "_load_in_", "bnb_")) for key in described):
        method = "bitsandbytes"
    return _METHODS.get(str(method), str(method or "an unnamed method"))


def quantised_tensors(names: Iterable[str]) -> str | None:
    """The method that names of tensors give away."""
    every = list(names)
    for suffix, method in _QUANTISED_TENSORS.items():
        if any(name.endswith(suffix) for name in every):
            return method
    return None


def listed(names: Iterable[str]) -> str:
    """Names for a sentence, cut where there are many."""
    every = list(names)
    shown, more = every[:_FILES_NAMED], len(every) - _FILES_NAMED
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
