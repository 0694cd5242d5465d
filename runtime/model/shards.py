"""Which safetensors files of a folder make the model: the single one, those of the index, or all
parts. Opens no tensor.
"""

import re
from pathlib import Path

from runtime.model.config import ModelError
from runtime.model.foreign import described_names, in_place_of, listed
from runtime.model.json_file import read_json

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")


def shards_of(folder: Path) -> list[Path]:
    """Raises ModelError where there are none, or not all."""
    indexed = _indexed(folder / _INDEX) if (folder / _INDEX).is_file() else []
    for path in indexed:
        if not path.is_file():
            raise ModelError(f"{path} is {in_place_of(path) or 'missing'}; {_INDEX} names it")
    single = folder / _WEIGHTS
    # transformers, too, takes the single file where there are both
    if single.is_file():
        return [single]
    if paths := indexed or _parts(folder):
        return paths
    if link := in_place_of(single):
        raise ModelError(f"{single} is {link}")
    raise ModelError(f"{single} is missing{instead(folder)}")


def instead(folder: Path) -> str:
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
