"""What a layout is: how one weight lies in several tensors of a folder.

A layout says which tensors of a module belong to its weight, checks their types and shapes against
one another before any is read, and makes the one weight of them. Shapes are taken from the tensors,
not from the configuration, whose words for single modules differ by version. Errors are ValueErrors
that go on from the name of the weight.
"""

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from runtime.model.formats import Weight
from runtime.model.safetensors_file import FileTensor

Parts = Mapping[str, FileTensor]  # the tensors of one weight, by what follows the module's name

FLOATS = ("F32", "F16", "BF16")
# of a weight as it runs, with its share of a block's scale
Q5_0_BITS, Q8_0_BITS, MXFP4_BITS, FLOAT_BITS = 5.5, 8.5, 4.25, 16


class Layout(Protocol):
    @property
    def method(self) -> str:
        """As people write it."""
        ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of the tensors that may belong to a weight."""
        ...

    @property
    def gives(self) -> str:
        """What follows the module's name in that of the weight."""
        ...

    def holds(self, parts: Parts) -> bool:
        """Whether these tensors of a module are a weight in this layout."""
        ...

    def shape(self, parts: Parts) -> tuple[int, ...]:
        """Of the weight that the tensors make. Raises ValueError if they do not fit together."""
        ...

    def bits(self, parts: Parts) -> float:
        """Of a weight as it runs, where its groups are whole blocks."""
        ...

    def weight(self, parts: Parts) -> Weight:
        """Raises ValueError for numbers that make no weight."""
        ...


def expect(
    parts: Parts, suffix: str, dtypes: tuple[str, ...], shape: tuple[int | None, ...] | None
) -> None:
    """Raises ValueError unless a tensor is there, of one of the types and of that shape.

    None stands for any size, and for any shape.
    """
    name = suffix.strip("._")
    if suffix not in parts:
        raise ValueError(f"its {name} is missing")
    tensor = parts[suffix]
    if tensor.dtype not in dtypes:
        raise ValueError(f"its {name} is stored as {tensor.dtype}; expected {' or '.join(dtypes)}")
    if shape is None:
        return
    fits = len(shape) == len(tensor.shape) and all(
        want is None or want == size for want, size in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"its {name} has the shape {list(tensor.shape)}; expected [{wanted}]")


def group_length(inputs: int, n_groups: int, told: Collection[int]) -> int:
    """Inputs of a group: of a length told, where the last may have fewer, else all of one."""
    for length in told:
        if -(-inputs // length) == n_groups:
            return length
    if n_groups and inputs % n_groups == 0:
        return inputs // n_groups
    raise ValueError(f"its {inputs} inputs do not divide into {n_groups} groups")


def evenly(inputs: int, n_groups: int, told: Collection[int]) -> Tensor:
    """The group of each input [K], of groups of one length."""
    return torch.arange(inputs) // max(1, group_length(inputs, n_groups, told))


def lengths(*told: Any) -> tuple[int, ...]:
    """Those that are lengths of groups: -1 stands for all inputs."""
    return tuple(length for length in told if type(length) is int and length > 0)
