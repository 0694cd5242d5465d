"""Logs: one line for each event, with what it is about as fields.

An event is a record of the standard library whose `extra` is `fields(...)`:

    log.info("edge left", extra=fields(peer="10.0.0.7:51712", user="alice"))

Knows nothing of what is logged. Tokens and texts of users are nobody's business: no caller gives
them.
"""

import json
import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from runtime.terminal import inert

SILENCE_S = 60.0  # between two lines about the same trouble
FLOOD_S = 1.0  # between two warnings of the same event
PLAIN = re.compile(r"[\w.:@/+-]+")


def fields(**values: object) -> dict[str, Any]:
    """What an event is about, as the `extra` of a logging call; None is left out."""
    return {"fields": {name: value for name, value in values.items() if value is not None}}


def configure(level: str, form: str) -> None:
    """Send every log of this process to standard error, from `level` up, as text or json.

    Libraries that write their records themselves get them without control characters, too.
    """
    handler = logging.StreamHandler()
    handler.addFilter(Bounded())
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.setLogRecordFactory(InertRecord)
    logging.captureWarnings(True)
    logging.basicConfig(level=level.upper(), handlers=[handler])


class Seldom:
    """A trouble that may come a thousand times a minute, and is told once, with how often it came.

    `failures` counts those since the last line, which are told with the next one.
    """

    def __init__(self, log: logging.Logger, event: str) -> None:
        self._log, self._event = log, event
        self._failures = 0
        self._told_s = float("-inf")

    def __call__(self, reason: str) -> None:
        """It came once more."""
        self._failures += 1
        now_s = time.monotonic()
        if now_s - self._told_s >= SILENCE_S:
            self._log.warning(self._event, extra=fields(reason=reason, failures=self._failures))
            self._failures, self._told_s = 0, now_s


class Bounded(logging.Filter):
    """Of the warnings of one event, with the same `code`, one a second; `others` counts those
    before it.

    Whoever may connect may cause warnings, as many as they like: the disk is not theirs.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        # by event: when it was told, and how often it came since
        self._told: dict[tuple[str, str, object], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is told."""
        if record.levelno != logging.WARNING:
            return True
        about, now_s = _fields(record), self._clock()
        event = record.name, record.getMessage(), about.get("code")
        told_s, others = self._told.get(event, (-math.inf, 0))
        if now_s - told_s < FLOOD_S:
            self._told[event] = told_s, others + 1
            return False
        # what has no others is as good as never told
        self._told = {e: t for e, t in self._told.items() if t[1] or now_s - t[0] < FLOOD_S}
        self._told[event] = now_s, 0
        if others:
            record.__dict__.update(fields(**about, others=others))
        return True


class InertRecord(logging.LogRecord):
    """A record whose message can be written to a terminal, whoever does it."""

    def getMessage(self) -> str:
        """The message, without anything that a terminal would obey."""
        return inert(super().getMessage())


class TextFormatter(logging.Formatter):
    """WARNING request refused peer=10.0.0.7:51712 code=busy reason="the server is full"."""

    def format(self, record: logging.LogRecord) -> str:
        # what a library says may have lines, and must not look like several events
        message = record.getMessage().rstrip("\n").replace("\n", "\N{SYMBOL FOR NEWLINE}")
        parts = [record.levelname, message]
        parts += [f"{name}={_spelled(value)}" for name, value in _fields(record).items()]
        if record.exc_info:
            parts += ["\n" + self.formatException(record.exc_info)]
        return inert(" ".join(parts))


class JsonFormatter(logging.Formatter):
    """One object on one line: time, level, logger and event, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, timezone.utc)
        line: dict[str, object] = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _quoted(line)


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    values: Mapping[str, object] = getattr(record, "fields", {})
    return values


def _spelled(value: object) -> str:
    """A value as one word; quoted where it is not one, so that nobody can forge a line."""
    text = str(value)
    return text if PLAIN.fullmatch(text) else _quoted(text)


def _quoted(value: object) -> str:
    """JSON in ASCII, which leaves DEL alone of what a terminal may obey."""
    return json.dumps(value, default=str).replace("\x7f", r"\u007f")
