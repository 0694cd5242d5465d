"""Folders of adapters as peft saves them: adapter_config.json and adapter_model.safetensors.

What the configuration says is taken as peft takes it, or refused in a sentence: nothing that would
change an answer is left out. Source: peft's documentation of LoraConfig.
"""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import regex
from torch import Tensor

from runtime.model.config import ModelError
from runtime.model.json_file import read_json
from runtime.model.regular_file import check_regular
from runtime.model.safetensors_file import FileTensor, tensors_of
from runtime.model.text_part import TEXT_PREFIXES

CONFIG, WEIGHTS, PICKLED = (
    "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
)  # fmt: skip
_PREFIX, _SUFFIXES = "base_model.model.", (".lora_A.weight", ".lora_B.weight")
# A pattern may go back and forth for years, and its copies of what it repeats fill the memory.
_PATTERN_S, _PATTERN_CHARACTERS, _PATTERN_REPEATS = 0.2, 512, 1000
_PATTERNS_S = 0.5  # of a processor, for all patterns and all modules of an adapter
_MOST_LAYERS = 1 << 20
# What adds more than B A, or to another base than the model as it is; by what each asks for.
_REFUSED = {
    "use_dora": "magnitudes of its own (DoRA)",
    "lora_bias": "biases of its own",
    "modules_to_save": "whole modules in place of the model's",
    "trainable_token_indices": "rows of the embedding",
    "target_parameters": "parameters that are no matrix of a module",
    "layer_replication": "layers that the model does not have",
    "alora_invocation_tokens": "that it is switched on in the middle of a text",
    "use_qalora": "inputs that are pooled (QALoRA)",
    "use_bdlora": "blocks of its own (BD-LoRA)",
    "arrow_config": "routing between adapters",
    "kasa_config": "singular values of its own (KaSA)",
    "monteclora_config": "random factors (MonteCLoRA)",
    "velora_config": "activations that are projected (VeLoRA)",
}
# the first steps of these change the model's own weights, and what is saved stands on that
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class FolderAdapter:
    """A folder. `shapes` and `scale` by the Hugging Face name of the module.

    Raises ModelError.
    """

    def __init__(self, folder: Path):
        self._path = folder / CONFIG
        self._fields = _read_fields(self._path)
        self._patterns_s = _PATTERNS_S  # that are left
        if not (folder / WEIGHTS).exists() and (folder / PICKLED).exists():
            raise ModelError(
                f"{folder / PICKLED} is pickled, and pickles can run programs; load the adapter "
                "with peft and save it again with safe_serialization=True"
            )
        self._pairs = _pairs(tensors_of(folder / WEIGHTS))
        self.shapes = {module: (a.shape, b.shape) for module, (_, a, b) in self._pairs.items()}
        self._scales = {
            module: self._scale(theirs, a.shape) for module, (theirs, a, _) in self._pairs.items()
        }

    def pair(self, module: str) -> tuple[Tensor, Tensor]:
        """A and B as they are stored."""
        _, a, b = self._pairs[module]
        return a.read(), b.read()

    def scale(self, module: str) -> float:
        """What B A is multiplied with."""
        return self._scales[module]

    def _scale(self, module: str, shape: tuple[int, ...]) -> float:
        """alpha by rank, of the first pattern that the module's name ends with."""
        fields = self._fields
        if not self._is_target(module):
            raise ModelError(f"{self._path} does not name {module} as adapted, but it is")
        rank = self._by_pattern("rank_pattern", module, fields.get("r", 8))
        alpha = self._by_pattern("alpha_pattern", module, fields.get("lora_alpha", 8))
        if type(rank) is not int or rank < 1 or shape[:1] != (rank,):
            raise ModelError(
                f"{self._path} gives {module} the rank {rank!r}, and its matrix has shape "
                f"{list(shape)}"
            )
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not _is_finite(alpha):
            raise ModelError(f"{self._path} gives {module} the alpha {alpha!r}; expected a number")
        return alpha / (math.sqrt(rank) if fields.get("use_rslora") else rank)

    def _by_pattern(self, field: str, module: str, default: Any) -> Any:
        patterns = self._fields.get(field) or {}
        if not isinstance(patterns, dict):
            raise ModelError(f"{self._path}: {field} is {patterns!r}; expected names and numbers")
        for pattern, value in patterns.items():
            if self._matches(rf"(.*\.)?({pattern})", module):
                return value
        return default

    def _is_target(self, module: str) -> bool:
        """Whether peft would adapt a module of that name."""
        is_named = self._fields.get("target_modules") == "all-linear"
        is_named = is_named or self._names("target_modules", module)
        is_excluded = self._names("exclude_modules", module)
        return is_named and not is_excluded and self._is_in_layers(module)

    def _is_in_layers(self, module: str) -> bool:
        """Whether its layer is one of those that are adapted, if some are.

        The number of the layer stands behind a part of the name that a pattern fits; without
        patterns, behind any part but the first.
        """
        targets = self._fields.get("target_modules")
        if isinstance(targets, list) and module in targets:
            return True  # a whole name stands for itself
        layers = self._fields.get("layers_to_transform")
        layers = [layers] if type(layers) is int else layers or []
        patterns = self._fields.get("layers_pattern") or [r".*\.[^.]*"]
        patterns = [patterns] if isinstance(patterns, str) else patterns
        if not isinstance(layers, list) or not all(map(_is_layer, layers)):
            raise ModelError(f"{self._path}: layers_to_transform has no list of layers' numbers")
        if not isinstance(patterns, list) or not all(isinstance(one, str) for one in patterns):
            raise ModelError(f"{self._path}: layers_pattern has no list of names")
        numbers = set(module.split(".")) & set(map(str, layers))
        return not layers or any(
            self._matches(rf"(.*\.)?({pattern})\.{number}\..*", module)
            for pattern in patterns
            for number in numbers
        )

    def _names(self, field: str, module: str) -> bool:
        """By a pattern for the whole name, or a list of its last parts."""
        names = self._fields.get(field)
        if names is None:
            return False
        if isinstance(names, str):
            return self._matches(names, module)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ModelError(f"{self._path}: {field} is {names!r}; expected a list of names")
        return any(f".{module}".endswith(f".{name}") for name in names)

    def _matches(self, pattern: str, module: str) -> bool:
        try:
            if len(pattern) > _PATTERN_CHARACTERS:
                raise ValueError(f"has more than {_PATTERN_CHARACTERS} characters")
            if _repeats(pattern) > _PATTERN_REPEATS:
                raise ValueError(f"repeats a part more than {_PATTERN_REPEATS} times")
            started_s = time.thread_time()
            found = regex.fullmatch(pattern, module, timeout=_PATTERN_S)
            self._patterns_s -= time.thread_time() - started_s
        except TimeoutError:
            raise ModelError(f"{self._path}: pattern {pattern!r} takes too long") from None
        except (ValueError, regex.error) as error:
            raise ModelError(f"{self._path}: pattern {pattern[:80]!r} {error}") from None
        if self._patterns_s < 0:
            raise ModelError(f"{self._path}: all its patterns together take too long")
        return bool(found)


def _read_fields(path: Path) -> Mapping[str, Any]:
    try:
        check_regular(path)
        fields = read_json(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}; give peft's folder") from None
    if not isinstance(fields, dict) or fields.get("peft_type") != "LORA":
        kind = fields.get("peft_type") if isinstance(fields, dict) else None
        raise ModelError(f"{path} is of an adapter of kind {kind!r}; expected 'LORA'")
    for name, what in _REFUSED.items():
        if fields.get(name):
            raise ModelError(f"{path}: {name} asks for {what}, which is not supported")
    if fields.get("bias", "none") != "none":
        raise ModelError(f"{path}: bias is {fields['bias']!r}; only 'none' is supported")
    first = fields.get("init_lora_weights")
    if isinstance(first, str) and first.lower().startswith(_CHANGED_BASE):
        raise ModelError(
            f"{path}: init_lora_weights is {first!r}, so it stands on other weights than the "
            "model's; save it with peft's path_initial_model_for_weight_conversion"
        )
    return fields


def _pairs(tensors: Mapping[str, FileTensor]) -> dict[str, tuple[str, FileTensor, FileTensor]]:
    """By the module in a whole model: its name in the adapter's, and A and B."""
    pairs: dict[str, tuple[str, FileTensor, FileTensor]] = {}
    for name in tensors:
        stem = name.removesuffix(_SUFFIXES[0]).removesuffix(_SUFFIXES[1])
        halves = [tensors.get(f"{stem}{suffix}") for suffix in _SUFFIXES]
        if stem == name or not name.startswith(_PREFIX):
            raise ModelError(f"tensor {name} is none that a LoRA of a matrix has")
        if halves[0] is None or halves[1] is None:
            raise ModelError(f"tensor {name} has no counterpart; expected A and B of each module")
        theirs = stem.removeprefix(_PREFIX)
        whole = _in_text_model(theirs)
        if pairs.get(whole, (theirs,))[0] != theirs:
            raise ModelError(f"{whole} is adapted twice, with and without model. before its name")
        pairs[whole] = theirs, halves[0], halves[1]
    if not pairs:
        raise ModelError("it has no tensors")
    return pairs


def _in_text_model(name: str) -> str:
    """The module of one that was trained without its head, or that sees as well."""
    for prefix, ours in TEXT_PREFIXES.items():
        if name.startswith(prefix):
            return ours + name.removeprefix(prefix)
    return f"model.{name}" if name.startswith("layers.") else name


def _repeats(pattern: str) -> int:
    """How many copies of a part a pattern has at most: where counts are nested, their product."""
    counts = (regex.findall(r"\d+", braces) for braces in regex.findall(r"\{[^{}]*\}", pattern))
    return math.prod(max(1, *map(int, numbers)) for numbers in counts if numbers)


def _is_layer(number: object) -> bool:
    return type(number) is int and 0 <= number < _MOST_LAYERS


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond all floats
        return False
