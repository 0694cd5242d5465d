"""The running answer in a file, so that a new process can go on where the last one was killed.

The file holds ids of prompt and answer: whoever reads it reads the conversation, so it is its
owner's alone. It is JSON; it is replaced as a whole, so that it is there as before or as after.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runtime.config import ConfigError, read_secret
from runtime.edge.net.link import Sampling
from runtime.edge.resume import Answer

FORMAT = 1


def save(path: Path, answer: Answer, vocabulary_hash: bytes) -> None:
    """Write the answer as it stands. Raises ConfigError."""
    table = {"format": FORMAT, "vocabulary": vocabulary_hash.hex(), **asdict(answer)}
    new = path.with_name(f"{path.name}.new")
    try:
        new.unlink(missing_ok=True)  # of a process that was killed here; never followed as a link
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(table, file)
        new.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write --resume-file {path}: {error.strerror}") from error


def load(path: Path, vocabulary_hash: bytes) -> Answer:
    """The answer to go on with. Raises ConfigError."""
    try:
        table = json.loads(read_secret(path))
        if (table["format"], table["vocabulary"]) != (FORMAT, vocabulary_hash.hex()):
            raise ConfigError(f"{path} holds an answer of another draft model or another version")
        stop_ids = _ids(table["sampling"].pop("stop_ids"))
        sampling = Sampling(**table["sampling"], stop_ids=tuple(stop_ids))
        stop = _texts(table["stop"])
        answer = Answer(_ids(table["prompt"]), sampling, _ids(table["accepted"]), stop)
        context, left = answer.rest
        left.opening(1, len(context), max_nodes=0)  # checks every number
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} holds no answer that can go on: {error}") from error
    return answer


def _ids(value: Any) -> list[int]:
    if not isinstance(value, list) or {type(token) for token in value} - {int}:
        raise ValueError("token ids are a list of numbers")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
        raise ValueError("stop strings are a list of texts")
    return tuple(value)
