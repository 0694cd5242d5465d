"""The tokenizer of a Hugging Face model folder, from whichever files describe it there.

Never runs code that comes with a model. transformers is imported when a tokenizer is loaded.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runtime.model.config import ModelError
from runtime.model.foreign import in_place_of
from runtime.model.json_file import read_json

_FILES = {
    *("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"),
    *("tokenizer_config.json", "chat_template.jinja"),
}


def folder_tokenizer(folder: Path) -> Any:
    """transformers' tokenizer of a folder; a tokenizer.json is read as it is written.

    AutoTokenizer puts a normalizer and a split of its own in place of the file's where it knows a
    class for the model (Qwen2Tokenizer, GPT2Tokenizer), and then gives other ids than the model
    was trained on. Its classes are right where their own files are all there is. Raises ModelError.
    """
    from transformers import PreTrainedTokenizerFast

    files = {path.name for path in folder.glob("*")}
    try:
        for name in sorted(files & _FILES):
            if kind := in_place_of(folder / name):
                raise ValueError(f"{name} is {kind}")
        _refuse_code(folder)
        if "tokenizer.json" not in files and "tokenizer.model" in files:
            _check_sentencepiece(folder / "tokenizer.model")
        if files & {"tokenizer.json", "tokenizer.model"}:
            return PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
        if {"vocab.json", "merges.txt"} <= files:
            return _from_lists(folder)
        raise ValueError("expected tokenizer.json, or vocab.json and merges.txt")
    # the tokenizers library raises bare Exceptions
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{folder} has no readable tokenizer: {reason}") from error


def _from_lists(folder: Path) -> Any:
    """From vocab.json and merges.txt, which leave it to a class how texts are split."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        # a class of another kind makes an empty one, without a word
        if len(tokenizer) >= len(read_json(folder / "vocab.json")):
            return tokenizer
    except (OSError, ValueError):
        pass
    raise ValueError("transformers has no class for its vocab.json; save a tokenizer.json")


def _refuse_code(folder: Path) -> None:
    """Raises ValueError for a tokenizer that is Python code of the model's own."""
    import transformers

    path = folder / "tokenizer_config.json"
    fields = read_json(path) if path.is_file() else {}
    if not isinstance(fields, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    code = fields.get("auto_map")
    code = code.get("AutoTokenizer") if isinstance(code, dict) else code
    if code and not hasattr(transformers, str(fields.get("tokenizer_class"))):
        raise ValueError(f"it is code of its own ({path.name}: auto_map), which is never run")


def _check_sentencepiece(path: Path) -> None:
    """Raises ValueError unless transformers can read a tokenizer.model that stands alone."""
    with path.open("rb") as file:
        if file.read(1) != b"\n":  # field 1 of the protobuf message: the pieces
            raise ValueError(f"{path.name} is not a SentencePiece model; save a tokenizer.json")
    packages = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
    try:
        missing = [name for module, name in packages.items() if not find_spec(module)]
    except ModuleNotFoundError:  # not even the namespace package google
        missing = list(packages.values())
    if missing:
        raise ValueError(
            f"{path.name} alone needs more packages: `pip install {' '.join(missing)}`, or save "
            "a tokenizer.json"
        )
