"""The running answer in a file, so that a new process can go on where the last one was killed.

The file holds ids of prompt and answer: whoever reads it reads the conversation, so it is its
owner's alone. Its first line is the answer as it stood when it was begun or gone on with, and is
there as a whole or not at all; each further line is what a round brought. A line that was cut short
is left out: what it said is asked for again, and is the same.
"""

import errno
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runtime.config import ConfigError
from runtime.constraint import Constraint
from runtime.edge.net.asking import before_prompt
from runtime.edge.resume import FinishReason, Transcript
from runtime.logs import fields
from runtime.option_files import read_secret
from runtime.sampling import Sampling

log = logging.getLogger(__name__)

FORMAT = 3


class ResumeFile:
    """Follows one answer. When the disk is full it says so once, and the answer goes on without."""

    def __init__(self, path: Path, vocabulary_hash: bytes) -> None:
        self._path, self._vocabulary_hash = path, vocabulary_hash
        self._begun = self._given_up = False

    def keep(self, transcript: Transcript, tokens: Sequence[int]) -> None:
        """Bring the file up to date; `tokens` are the newest of the transcript. ConfigError."""
        if self._given_up:
            return
        try:
            if self._begun:
                _append(self._path, list(tokens), transcript.finish)
            else:
                _write(self._path, transcript, self._vocabulary_hash)
        except OSError as error:
            if not self._begun and error.errno != errno.ENOSPC:
                raise ConfigError(
                    f"cannot write --resume-file {self._path}: {error.strerror}"
                ) from error
            self._given_up = True
            about = fields(file=str(self._path), reason=error.strerror)
            log.warning("the answer is kept no longer; it goes on", extra=about)
        self._begun = True

    def remove(self) -> None:
        """The answer has been read to its end."""
        self._path.unlink(missing_ok=True)


def save(path: Path, transcript: Transcript, vocabulary_hash: bytes) -> None:
    """Write the answer as it stands. Raises ConfigError."""
    ResumeFile(path, vocabulary_hash).keep(transcript, ())


def _write(path: Path, transcript: Transcript, vocabulary_hash: bytes) -> None:
    table = {"format": FORMAT, "vocabulary": vocabulary_hash.hex(), **asdict(transcript)}
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)  # of a process that was killed here; never followed as a link
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(table, file)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def _append(path: Path, tokens: list[int], finish: FinishReason | None) -> None:
    line = json.dumps([tokens, finish]) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def load(path: Path, vocabulary_hash: bytes) -> Transcript:
    """The answer to go on with; one that has ended has its reason. Raises ConfigError."""
    try:
        first, *rounds = read_secret(path).splitlines(keepends=True) or [""]
        table = json.loads(first)
        if (table["format"], table["vocabulary"]) != (FORMAT, vocabulary_hash.hex()):
            raise ConfigError(f"{path} holds an answer of another draft model or another version")
        transcript = Transcript(
            prompt=_ids(table["prompt"]),
            sampling=_sampling(table["sampling"]),
            accepted=_ids(table["accepted"]),
            stop=_texts(table["stop"]),
            finish=_reason(table["finish"]),
        )
        for line in rounds:
            if line.endswith("\n"):
                tokens, finish = json.loads(line)
                transcript.accepted += _ids(tokens)
                transcript.finish = _reason(finish)
        context, left = transcript.rest
        if transcript.finish is None:
            before_prompt(left, 1, len(context), max_nodes=0)  # checks every number
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} holds no answer that can go on: {error}") from error
    return transcript


def _sampling(table: Any) -> Sampling:
    stop_ids, bias = _ids(table.pop("stop_ids")), table.pop("logit_bias")
    constraint = table.pop("constraint")
    return Sampling(
        **table,
        stop_ids=tuple(stop_ids),
        logit_bias=tuple(
            zip(_ids([index for index, _ in bias]), (v for _, v in bias), strict=True)
        ),
        constraint=constraint and Constraint(**constraint),
    )


def _ids(value: Any) -> list[int]:
    if not isinstance(value, list) or {type(token) for token in value} - {int}:
        raise ValueError("token ids are a list of numbers")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
        raise ValueError("stop strings are a list of texts")
    return tuple(value)


def _reason(value: Any) -> FinishReason | None:
    if value not in (None, "stop", "length"):
        raise ValueError(f"an answer does not end with {value!r}")
    return value  # type: ignore[no-any-return]
