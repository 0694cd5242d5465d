"""Where a model's name leads: to a folder of safetensors or to a GGUF file, on this machine.

Knows names, folders and the Hugging Face hub; opens no model. huggingface_hub is imported when it
is needed.
"""

import re
import stat
from collections.abc import Iterable
from pathlib import Path

from runtime import embedded
from runtime.model.config import ModelError
from runtime.model.foreign import described_file, described_names, listed

TARGET, DRAFT = "smollm2", "smollm2-draft"  # the embedded pair
# no *.py: code that comes with a model is not even fetched
_HUB_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
_HUB_WEIGHTS = ("model*.safetensors",)
_KINDS = {
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe, which cannot be read twice",
    stat.S_IFSOCK: "a socket",
}
MOST_SHOWN = 80  # of a name that may be a whole text
_PART = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.gguf")


class HubAway(ModelError):
    """A model that could not be fetched now, and may be in a while."""


def locate(name: str | Path, weights: bool = True) -> Path:
    """The folder or GGUF file that a model's name stands for; hub ids are downloaded.

    Without `weights` only what else there is: the tokenizer, and what the model is.
    Both embedded names lead to the target's file, which holds the tokenizer of the pair.
    """
    if str(name) in (TARGET, DRAFT):
        try:
            return embedded.target_path()
        except FileNotFoundError as error:
            raise ModelError(str(error)) from None
    expected = "expected a model's folder, a .gguf file or a hub id"
    if (path := here(name, expected)) is None:
        if str(name).count("/") == 1 and not str(name).startswith((".", "/", "~")):
            return _download(str(name), weights)
        raise ModelError(f"{name} does not exist; {expected}")
    return _in_folder(path) if path.is_dir() else _checked_file(path)


def here(name: str | Path, expected: str) -> Path | None:
    """The file or folder of this name on this machine; None where there is nothing.

    Raises ModelError, with what is `expected`, for anything else that is there.
    """
    try:
        path = Path(name).expanduser()
        kind = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise ModelError(
                f"{path} is a link to {path.readlink()}, which does not exist"
            ) from None
        return None
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: ~ of a user that is none
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{str(name)[:MOST_SHOWN]} cannot be looked at: {reason}") from None
    if stat.S_ISDIR(kind) or stat.S_ISREG(kind):
        return path
    raise ModelError(f"{path} is {_KINDS.get(stat.S_IFMT(kind), 'no file')}; {expected}")


def _checked_file(path: Path) -> Path:
    """A file that is GGUF by its name or its first bytes; downloaders also keep it by its hash."""
    try:
        kind = described_file(path)
        with path.open("rb") as file:
            is_gguf = path.suffix == ".gguf" or file.read(4) == b"GGUF"
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    if is_gguf and kind is None:
        return path
    not_kind = f", not {kind}" if kind else ""
    raise ModelError(
        f"{path} is not a model: expected a folder or a file ending in .gguf{not_kind}"
    )


def _in_folder(folder: Path) -> Path:
    """The folder where its weights are safetensors, else the one GGUF model that lies in it."""
    models = _gguf_models(path.name for path in folder.glob("*.gguf"))
    if not models or any(folder.glob("*.safetensors")):
        return folder
    if len(models) > 1:
        raise ModelError(
            f"{folder} holds {len(models)} models, {listed(models)}; give the path of one"
        )
    return _checked_file(folder / models[0])


def _gguf_models(names: Iterable[str]) -> list[str]:
    """One file for each model: of a model in parts the first one."""
    models: dict[str, str] = {}
    for name in sorted(names):
        part = _PART.fullmatch(name)
        models.setdefault(f"{part['stem']} of {part['count']}" if part else name, name)
    return list(models.values())


def _download(hub_id: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = (*_HUB_FILES, *_HUB_WEIGHTS) if weights else _HUB_FILES
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=list(patterns)))
    # the hub's client raises its own, its HTTP library's and the socket's errors
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise (HubAway if _passes(error) else ModelError)(
            f"{hub_id} is no folder here and could not be fetched from the Hugging Face hub: "
            f"{type(error).__name__}: {reason}"
        ) from None
    if not weights or any(folder.glob("*.safetensors")) or any(folder.glob("*.gguf")):
        return _in_folder(folder)
    raise ModelError(f"{hub_id} has no safetensors to fetch{_instead(hub_id)}")


def _passes(error: Exception) -> bool:
    """Whether the hub was not reached, or not well, although it may be asked."""
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if HF_HUB_OFFLINE:
        return False
    if isinstance(error, LocalEntryNotFoundError):  # its way to say that there was no answer
        return True
    if isinstance(error, HfHubHTTPError):
        return error.response is None or error.response.status_code in (429, 500, 502, 503, 504)
    # what is left are errors of the connection, of the name and of the disk
    return not isinstance(error, ValueError) and getattr(error, "errno", None) is None


def _instead(hub_id: str) -> str:
    """What a repository of the hub holds in place of safetensors, if the hub can be asked."""
    from huggingface_hub import HfApi

    try:
        names = HfApi().list_repo_files(hub_id)
    except Exception:  # as above: without an answer there is nothing to add
        return ""
    if models := _gguf_models(name for name in names if name.endswith(".gguf")):
        return f", but {listed(models)}: download one of them and give its path"
    return f", but {described_names(names) or listed(sorted(names))}"
