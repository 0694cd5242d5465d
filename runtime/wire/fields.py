"""Checks that every message makes of its fields; each failure is a ValueError with a sentence.

Knows no messages: only numbers, lengths and text.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Any

Limits = Mapping[str, tuple[float, float]]  # least and most, by the names of fields

CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def check(name: str, value: float, low: float, high: float) -> None:
    # Written so that NaN fails.
    if not low <= value <= high:
        expected = f"{low}" if low == high else f"{low} to {high}"
        raise ValueError(f"{name} is {value}: expected {expected}")


def check_fields(message: object, limits: Limits) -> None:
    """All fields that have limits lie within them."""
    for name, (low, high) in limits.items():
        value = getattr(message, name)
        if not low <= value <= high:
            check(name, value, low, high)


def check_length(body: bytes, expected_bytes: int) -> None:
    if len(body) != expected_bytes:
        raise ValueError(f"the body has {len(body)} bytes: expected {expected_bytes}")


def unpack_head(layout: struct.Struct, body: bytes) -> tuple[Any, ...]:
    if len(body) < layout.size:
        raise ValueError(f"the body has {len(body)} bytes: expected {layout.size} or more")
    return layout.unpack_from(body)


def check_name(name: str, value: str, most_bytes: int, least_bytes: int = 0) -> None:
    check(f"bytes of {name}", len(value.encode()), least_bytes, most_bytes)
    if CONTROL_CHARACTERS.search(value):
        raise ValueError(f"{name} {value!r} has control characters")


def decode_utf8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ValueError("the text is not UTF-8") from None


def decode_text(data: bytes) -> str:
    text = decode_utf8(data)
    if CONTROL_CHARACTERS.search(text):
        raise ValueError("the text has control characters")
    return text
