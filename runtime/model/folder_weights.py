"""The weights of a Hugging Face folder, each whole, in whatever layout and files they lie.

Names are those of the model that was quantised: `x.weight`, of whatever tensors it is made. Knows
no configuration of a model: who reads a folder brings what its config.json says of quantisation.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from runtime.model.config import ModelError
from runtime.model.foreign import quantised_tensors
from runtime.model.formats import Weight, rows_of
from runtime.model.layouts import Layout, Parts, layouts_of
from runtime.model.safetensors_file import FileTensor, tensors_of
from runtime.model.shards import shards_of
from runtime.model.text_part import text_tensors

Made = TypeVar("Made")
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
# How activations, keys and values were meant to be rounded; here they are not.
_NOT_OF_WEIGHTS = re.compile(
    r"\.(input_scale(_ub)?|activation_scale|input_(global_scale|zero_point)|[qkv]_(scale|zero_point))$"
)


class FolderWeights:
    """The tensors of a folder, by the names of the model that was quantised. Raises ModelError.

    Of a model that sees as well, those of its text part.

    quantisation: the quantization_config of its config.json, where it has one.
    """

    def __init__(self, folder: Path, quantisation: Mapping[str, Any] | None = None):
        tensors: dict[str, FileTensor] = {}
        for path in shards_of(folder):
            tensors.update(tensors_of(path))
        self._plain = text_tensors(tensors)
        self._laid_out: dict[str, tuple[Layout, Parts]] = {}
        if quantisation:
            self._find(_layouts(folder, quantisation))
        elif method := quantised_tensors(self._plain):
            raise unread(folder, method)
        self.shapes = {name: tensor.shape for name, tensor in self._plain.items()}
        for name, (layout, parts) in self._laid_out.items():
            self.shapes[name] = self._of(name, layout.shape, parts)

    def _find(self, layouts: tuple[Layout, ...]) -> None:
        """Take the tensors that make weights together."""
        for name in [name for name in self._plain if _NOT_OF_WEIGHTS.search(name)]:
            del self._plain[name]
        for stem, parts in _by_module(self._plain, layouts):
            for layout in layouts:
                if layout.holds(parts):
                    taken = {end: parts[end] for end in layout.suffixes if end in parts}
                    self._laid_out[stem + layout.gives] = layout, taken
                    for end in taken:
                        del self._plain[stem + end]
                    break

    def n_bytes(self, name: str) -> int:
        """Of one weight in its files."""
        if name in self._plain:
            return self._plain[name].n_bytes
        return sum(part.n_bytes for part in self._laid_out[name][1].values())

    def running_bytes(self, name: str) -> int:
        """Of one weight as it runs on a CPU, about."""
        if name in self._plain:
            return self._plain[name].n_bytes
        layout, parts = self._laid_out[name]
        return int(math.prod(self.shapes[name]) * layout.bits(parts) / 8)

    def method(self, name: str) -> str | None:
        """What a weight is quantised with, as people write it; None for plain tensors."""
        return self._laid_out[name][0].method if name in self._laid_out else None

    def stored(self, name: str) -> Weight:
        """One weight, in memory of its own: as it is stored where that runs, else with its values.

        Raises ModelError for a type that no weight has, and for numbers that make none.
        """
        if name in self._laid_out:
            layout, parts = self._laid_out[name]
            return self._of(name, layout.weight, parts)
        return self.plain(name).read()

    def stored_rows(self, name: str, first: int, last: int) -> Weight:
        """Some rows of it: of a weight that is made of several tensors, once it is made."""
        if name in self._laid_out:
            return rows_of(self.stored(name), first, last)
        return self.plain(name).read_rows(first, last)

    def plain(self, name: str) -> FileTensor:
        """A tensor that is no part of others."""
        tensor = self._plain[name]
        if tensor.dtype not in _FLOATS:
            raise ModelError(
                f"tensor {name} is stored as {tensor.dtype}; expected one of {', '.join(_FLOATS)}"
            )
        return tensor

    def _of(self, name: str, make: Callable[[Parts], Made], parts: Parts) -> Made:
        try:
            return make(parts)
        except ModelError:
            raise
        except ValueError as error:
            method = self._laid_out[name][0].method
            raise ModelError(f"weight {name}, quantised with {method}: {error}") from None


def _layouts(folder: Path, quantisation: Mapping[str, Any]) -> tuple[Layout, ...]:
    try:
        return layouts_of(quantisation)
    except ValueError as error:
        raise ModelError(f"{folder}: quantization_config: {error}") from None


def _by_module(
    tensors: Mapping[str, FileTensor], layouts: tuple[Layout, ...]
) -> Iterator[tuple[str, dict[str, FileTensor]]]:
    """Modules and their tensors that may belong to a weight, by what follows the module's name."""
    ends = {end for layout in layouts for end in layout.suffixes}
    longest_first = sorted(ends, key=len, reverse=True)
    modules: defaultdict[str, dict[str, FileTensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        end = next((end for end in longest_first if name.endswith(end)), None)
        if end is not None:
            modules[name.removesuffix(end)][end] = tensor
    yield from modules.items()


def unread(path: Path, method: str) -> ModelError:
    return ModelError(
        f"{path}: the weights are quantised ({method}), which is not supported; take the model's "
        "unquantised folder, or a GGUF file of it"
    )
