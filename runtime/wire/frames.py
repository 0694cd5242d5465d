"""Frames: an 8-byte little-endian header, then the body of one message.

    length u16 (of the whole frame) · type u8 · flags u8 (zero) · request u16 · seq u16

Knows which types there are and how long each may be, not which may come when.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

from runtime.wire.fields import check
from runtime.wire.messages import (
    MESSAGE_TYPES,
    Constraint,
    ErrorCode,
    Logprobs,
    Message,
    Prompt,
    ProtocolError,
    Template,
)
from runtime.wire.token_bits import OutsideVocabulary

HEADER = struct.Struct("<HBBHH")
MAX_FRAME_BYTES = 16 * 1024
MAX_LONG_FRAME_BYTES = 60 * 1024
LONG = (Prompt, Template, Constraint, Logprobs)
# The longest frame of each kind of message.
MOST_BYTES: Mapping[type[Message], int] = {
    kind: MAX_LONG_FRAME_BYTES if kind in LONG else MAX_FRAME_BYTES
    for kind in MESSAGE_TYPES.values()
}


class Header(NamedTuple):
    """The eight bytes before a body."""

    length: int
    type: int
    flags: int
    request: int
    seq: int


def encode_frame(message: Message, seq: int, vocabulary_size: int) -> bytes:
    """The frame of a message; ValueError for a token id outside the vocabulary, or too many."""
    try:
        body = message.encode(vocabulary_size)
    except struct.error as fault:
        raise ValueError(f"{type(message).__name__} has a field of a wrong type: {fault}") from None
    kind, length = type(message), HEADER.size + len(body)
    if length > MOST_BYTES[kind]:
        check(f"bytes of {kind.__name__}", length, HEADER.size, MOST_BYTES[kind])
    return HEADER.pack(length, message.TYPE, 0, message.request, seq) + body


def decode_header(data: bytes | bytearray) -> Header:
    """The header at the start of data; ProtocolError for an unknown type, flag or short length."""
    header = Header(*HEADER.unpack_from(data))
    if header.type not in MESSAGE_TYPES:
        raise ProtocolError(ErrorCode.PROTOCOL, f"frame type {header.type} is not known")
    if header.flags:
        raise ProtocolError(ErrorCode.PROTOCOL, f"frame flags are {header.flags}: expected 0")
    if header.length < HEADER.size:
        sentence = f"frame length is {header.length}: expected {HEADER.size} or more"
        raise ProtocolError(ErrorCode.PROTOCOL, sentence)
    return header


def decode_body(header: Header, body: bytes, vocabulary_size: int) -> Message:
    """The message of a whole frame; ProtocolError if any field breaks a rule."""
    kind = MESSAGE_TYPES[header.type]
    try:
        message = kind.decode(body, header.request, vocabulary_size)
        if header.request != message.request:
            check("request", header.request, message.request, message.request)
    except ValueError as fault:
        outside = isinstance(fault, OutsideVocabulary)
        code = ErrorCode.LIMIT if outside else ErrorCode.PROTOCOL
        raise ProtocolError(code, f"{kind.__name__}: {fault}") from None
    return message
