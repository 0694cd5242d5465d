"""Where the parts of a split GGUF file lie. Knows their headers, not what is in them."""

from collections.abc import Sequence
from pathlib import Path

from runtime.model.config import ModelError
from runtime.model.gguf_config import header_of
from runtime.model.gguf_header import ALIGNMENT, DEFAULT_ALIGNMENT, Header


def parts_of(path: Path, first: Header) -> list[tuple[Path, Header]]:
    """All parts of the model whose first part is `path`, in order; a whole file is its only one.

    Parts are named PREFIX-00001-of-00014.gguf. Raises ModelError for a part that is missing, that
    is another one than its name says, or that does not fit the first.
    """
    count = first.metadata.get("split.count", 1)
    if count in (0, 1):
        return [(path, first)]
    parts = [(path, first)]
    for index, other in enumerate(_other_paths(path, count), 1):
        if not other.is_file():
            raise ModelError(f"{other} is missing: part {index + 1} of {count} of {path}")
        header = header_of(other)
        _check_part(other, header, first, index)
        parts.append((other, header))
    _check_tensors(path, first, [header for _, header in parts])
    return parts


def _other_paths(path: Path, count: int) -> list[Path]:
    if not isinstance(count, int) or not 1 <= count < 2**16:
        raise ModelError(f"{path}: split.count is {count!r}; expected a number of parts")
    ending = f"-00001-of-{count:05d}.gguf"
    if not path.name.endswith(ending):
        raise ModelError(
            f"{path} is the first of {count} parts, whose name must end in {ending} to find the "
            "others"
        )
    prefix = path.name.removesuffix(ending)
    return [
        path.with_name(f"{prefix}-{part:05d}-of-{count:05d}.gguf") for part in range(2, count + 1)
    ]


def _check_part(path: Path, header: Header, first: Header, index: int) -> None:
    for key, default, expected in (
        ("split.no", None, index),
        ("split.count", None, first.metadata["split.count"]),
        ("split.tensors.count", None, first.metadata.get("split.tensors.count")),
        # some writers name it in the first part only, and then align the others or do not
        (ALIGNMENT, DEFAULT_ALIGNMENT, first.metadata.get(ALIGNMENT, DEFAULT_ALIGNMENT)),
    ):
        got = header.metadata.get(key, default)
        if got != expected:
            raise ModelError(
                f"{path}: {key} is {got!r}; expected {expected!r}, to be a part of the same model"
            )


def _check_tensors(path: Path, first: Header, headers: Sequence[Header]) -> None:
    names = [info.name for header in headers for info in header.tensors]
    expected = first.metadata.get("split.tensors.count")
    if len(names) != expected:
        raise ModelError(
            f"{path}: its parts hold {len(names)} tensors; split.tensors.count is {expected!r}"
        )
    if len(set(names)) != len(names):
        raise ModelError(f"{path}: its parts hold a tensor twice")
