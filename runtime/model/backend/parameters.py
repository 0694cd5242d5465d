"""The tensors of a folder under the names of transformers' modules.

Files have other names than modules where a family was renamed or its experts were packed since;
transformers knows how, and its rules are applied here, one tensor at a time.
"""

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from runtime.model.config import ModelError
from runtime.model.folder_weights import FolderWeights
from runtime.model.formats import Weight, floats

_NOT_NEEDED = (r"rotary_emb\.inv_freq$", r"\.masked_bias$", r"\.attn\.bias$")


class Parameters:
    """What modules' parameters and buffers read. Raises ModelError for tensors of no module."""

    def __init__(self, causal: Any, folder: FolderWeights):
        self._causal, self._folder = causal, folder
        self._expected: Mapping[str, Tensor] = causal.state_dict()
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._expected.items()}
        self._plain: dict[str, str] = {}  # by the module's name
        self._joined: dict[str, Any] = {}  # the rule by which it is made of several, or in part
        self._sources: dict[str, list[str]] = {}
        self._made: dict[str, Tensor] = {}
        self._assign()

    def __contains__(self, name: str) -> bool:
        return name in self._plain or name in self._joined

    def same(self, names: list[str]) -> bool:
        """Whether two tensors hold the same numbers."""
        one, other = (floats(self.stored(name), torch.float32) for name in names)
        return torch.equal(one, other)

    def n_bytes(self, name: str) -> int:
        """Bytes on disk; what is made of the same tensors counts them once."""
        if name in self._plain:
            return self._folder.n_bytes(self._plain[name])
        return sum(map(self._folder.n_bytes, self._sources.get(name, ())))

    def method(self, name: str) -> str | None:
        """What a tensor is quantised with where `stored` gives floats of it."""
        return self._folder.method(self._plain[name]) if name in self._plain else None

    def stored(self, name: str) -> Weight:
        if name in self._plain:
            weight = self._folder.stored(self._plain[name])
            self._check(name, self._folder.shapes[self._plain[name]])
            return weight
        if name not in self._made:
            self._made.update(self._join(name))
        made = self._made.pop(name)
        self._check(name, made.shape)
        return made

    def _assign(self) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        rules = get_model_conversion_mapping(self._causal)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        of_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
        known: Any = (self._causal.base_model_prefix, self._expected)
        for source in sorted(self._folder.shapes, key=dot_natural_key):
            name, pattern = rename_source_key(source, renamings, converters, *known)
            if name not in self._expected and source in self._expected:
                name, pattern = rename_source_key(source, [], [], *known)
            if name not in self._expected:
                self._refuse_unless_ignored(source)
            elif pattern is None:
                self._plain[name] = source
            else:
                self._collect(name, source, pattern, of_pattern[pattern])

    def _collect(self, name: str, source: str, pattern: str, rule: Any) -> None:
        """One tensor of those that the rule takes to `name`, and to its other targets there."""
        own = self._joined.get(name)
        if own is None:
            own = copy.deepcopy(rule)
            for target in _targets(name, rule.target_patterns):
                self._joined[target] = own
        self._sources.setdefault(name, []).append(source)
        own.add_tensor(name, source, pattern, lambda: self._floats(source))

    def _floats(self, source: str) -> Tensor:
        weight = self._folder.stored(source)
        return weight if isinstance(weight, Tensor) else floats(weight, torch.float32)

    def _join(self, name: str) -> dict[str, Tensor]:
        rule = self._joined[name]
        first = next(target for target in self._sources if self._joined[target] is rule)
        try:
            made = rule.convert(first, model=self._causal, config=self._causal.config)
        except (RuntimeError, ValueError, KeyError, IndexError) as error:
            raise ModelError(f"the tensors of {name} do not fit together: {error}") from None
        return {
            target: value[0] if isinstance(value, list) else value for target, value in made.items()
        }

    def _check(self, name: str, shape: Iterable[int]) -> None:
        expected = tuple(self._expected[name].shape)
        if tuple(shape) != expected and not self._lies_by_outputs(name, tuple(shape)):
            raise ModelError(f"tensor {name} has shape {list(shape)}; expected {list(expected)}")

    def _lies_by_outputs(self, name: str, shape: tuple[int, ...]) -> bool:
        """Quantised experts do, where modules may have them the other way round."""
        experts, inputs, outputs = (*self._expected[name].shape, 0, 0, 0)[:3]
        return self.method(name) is not None and shape == (experts, outputs, inputs)

    def check(self) -> None:
        """Every tensor that is used as it is, before any is read."""
        for name, source in self._plain.items():
            self._check(name, self._folder.shapes[source])

    def _refuse_unless_ignored(self, source: str) -> None:
        ignored = (*_NOT_NEEDED, *(self._causal._keys_to_ignore_on_load_unexpected or ()))
        if not any(re.search(pattern, source) for pattern in ignored):
            raise ModelError(
                f"tensor {source} of shape {list(self._folder.shapes[source])} is not part of "
                "this model; expected no such tensor"
            )


def _targets(name: str, patterns: Iterable[str]) -> list[str]:
    """Names of all that a rule makes beside `name`, which has the first of the patterns in it."""
    first, *others = patterns
    before, found, after = name.partition(first)
    return [name, *(before + other + after for other in others)] if found else [name]
