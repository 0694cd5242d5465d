"""docs/protocol.md says what the code does: it is read, and messages are encoded as it says."""

import dataclasses
import hashlib
import hmac
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given

from runtime.wire.frames import HEADER, Header, decode_body
from runtime.wire.messages import (
    MESSAGE_TYPES,
    ConstraintKind,
    ErrorCode,
    Finish,
    Logprobs,
    Message,
    ProtocolError,
    Reading,
    Turn,
    Verdict,
)
from tests.wire import protocol_page
from tests.wire.cases import CHALLENGE, HELLO, VOCABULARY, messages

TEXT = protocol_page.PAGE.read_text(encoding="utf-8")
INTEGERS = {"u8": "<B", "u16": "<H", "u32": "<I", "u64": "<Q"}
SCALARS = {**INTEGERS, "f32": "<f", "f64": "<d"}
ROW = re.compile(r"^\|(.*)\|$", re.MULTILINE)


@dataclass(frozen=True)
class Field:
    """A row of a message's table."""

    name: str
    kind: str
    limits: str

    @property
    def counted(self) -> str:
        """The field whose size this one tells."""
        return re.sub(r"^(number|bytes) of ", "", self.name)


def section(name: str) -> str:
    found = re.search(rf"^### 3\.\d+ {name}\n(.*?)(?=^##)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"the page has no section on {name}"
    return found[1]


def fields_of(name: str) -> list[Field]:
    rows = ROW.findall(section(name))
    return [Field(*(cell.strip() for cell in row.split("|")[:3])) for row in rows[2:]]


def body_of(fields: list[Field], values: Mapping[str, Any], vocabulary: int) -> bytes:
    """A body, encoded by the page and by nothing else."""
    return b"".join(encode(field, values, vocabulary) for field in fields)


def encode(field: Field, values: Mapping[str, Any], vocabulary: int) -> bytes:
    if field.kind.startswith('"'):
        return field.kind.strip('"').encode()
    if field.kind in SCALARS:
        return struct.pack(SCALARS[field.kind], number(field, values))
    value = values[field.name]
    if field.kind == "ids":
        width = len(f"{vocabulary - 1:b}")
        bits = "".join(f"{token:0{width}b}" for token in reversed(value))
        return int(bits or "0", 2).to_bytes(-(-len(bits) // 8), "little")
    if field.kind.endswith(" each"):
        layout = SCALARS[field.kind.removesuffix(" each")][1]
        return struct.pack(f"<{len(value)}{layout}", *value)
    return value.encode() if field.kind.startswith("text") else value


def number(field: Field, values: Mapping[str, Any]) -> Any:
    if field.counted == field.name:
        return values[field.name]
    counted = values[field.counted]
    return len(counted.encode() if isinstance(counted, str) else counted)


def values_of(message: Message) -> dict[str, Any]:
    return {name: getattr(message, name) for name in names(type(message))}


def names(kind: type[Message]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def is_taken(kind: type[Message], body: bytes) -> bool:
    request = 1 if "request" in names(kind) else 0
    header = Header(HEADER.size + len(body), kind.TYPE, 0, request, 0)
    try:
        decode_body(header, body, VOCABULARY)
    except ProtocolError:
        return False
    return True


def test_the_printed_parts_are_up_to_date() -> None:
    """Otherwise: python -m tests.wire.protocol_page."""
    assert protocol_page.renewed(TEXT) == TEXT
    assert set(protocol_page.PRINTED.findall(TEXT)) == set(protocol_page.printed())


@given(message=messages(VOCABULARY))
def test_any_message_has_the_bytes_that_the_page_says(message: Message) -> None:
    fields = fields_of(type(message).__name__)
    assert body_of(fields, values_of(message), VOCABULARY) == message.encode(VOCABULARY)


@given(message=messages(260))
def test_an_odd_width_of_ids_too(message: Message) -> None:
    fields = fields_of(type(message).__name__)
    assert body_of(fields, values_of(message), 260) == message.encode(260)


def test_every_field_is_in_the_page_and_no_other() -> None:
    for kind in MESSAGE_TYPES.values():
        told = {field.name for field in fields_of(kind.__name__) if field.counted == field.name}
        assert told - {"magic"} == set(names(kind)) - {"request"}, kind.__name__


EXAMPLES = [
    *protocol_page.EXAMPLES,
    Verdict(1, 0, 0, 11, Finish.NONE, 0, 0),
    Reading(1, 0, 0),
    Logprobs(1, (-1.0,), (), ()),
]
LIMITED = [
    (kind, field)
    for kind in MESSAGE_TYPES.values()
    for field in fields_of(kind.__name__)
    if re.search(r"\d", field.limits)
]


def edges(limits: str) -> tuple[float, float]:
    """The least and the greatest value; a single number is both."""
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", limits)
    numbers = [float(text) if "." in text else int(text.replace(",", "")) for text in found]
    return numbers[0], numbers[-1]


def with_value(field: Field, message: Message, value: float) -> dict[str, Any]:
    """The fields of a message, one of them changed; of a list or text, its size."""
    values = values_of(message)
    if field.counted == field.name and not field.kind.startswith("text"):
        return values | {field.name: value}
    size = int(value)
    if isinstance(values[field.counted], str):
        return values | {field.counted: "x" * size}
    sized = {"parents": (0,) * size, "bias_values": (1.0,) * size}
    return values | sized | {field.counted: tuple(ids_of(field, size))}


def ids_of(field: Field, size: int) -> list[float]:
    if field.counted == "logprobs":
        return [-1.0] * size
    return [i % VOCABULARY for i in range(size)]


@pytest.mark.parametrize(
    ("kind", "field"), LIMITED, ids=[f"{kind.__name__}-{field.name}" for kind, field in LIMITED]
)
def test_a_limit_is_what_the_page_says(kind: type[Message], field: Field) -> None:
    """At both ends of a range a message is taken, a step beyond it is not."""
    low, high = edges(field.limits)
    examples = [message for message in EXAMPLES if type(message) is kind]
    step = 1e-9 if field.kind == "f64" else 1

    def taken(value: float) -> bool:
        changed = [with_value(field, message, value) for message in examples]
        bodies = [body_of(fields_of(kind.__name__), values, VOCABULARY) for values in changed]
        return any(is_taken(kind, body) for body in bodies)

    assert taken(low) is not field.limits.startswith("above")
    assert taken(high)
    most = {"u8": 2**8, "u16": 2**16, "u32": 2**32, "u64": 2**64}.get(field.kind, 2**32) - 1
    if high + step <= most:
        assert not taken(high + step)
    if field.kind == "f64":
        assert not taken(low - step)
        assert not taken(float("nan"))
    elif low > 0:
        assert not taken(low - step)


def test_codes_have_the_names_of_the_page() -> None:
    rows = re.findall(r"^\| (\d+) \| ([A-Z]+) \| ", TEXT, re.MULTILINE)
    assert {int(code): name for code, name in rows} == {code: code.name for code in ErrorCode}
    turns = re.findall(r"^\* \*\*(\w+)\*\* \((\d)\):", TEXT, re.MULTILINE)
    assert {name.upper(): int(code) for name, code in turns} == {t.name: t for t in Turn}
    assert "0 goes on, 1 stop id, 2 length reached" in section("Verdict")
    assert (Finish.NONE, Finish.STOP, Finish.LENGTH) == (0, 1, 2)
    assert "1 JSON Schema, 2 regular expression, 3 Lark grammar, 4 tokens" in section("Constraint")
    assert [kind.name for kind in ConstraintKind] == ["JSON_SCHEMA", "REGEX", "LARK", "TOKENS"]


@pytest.mark.parametrize("role", ["server", "edge"])
def test_the_example_of_a_proof_follows_from_the_description(role: str) -> None:
    shown = re.search(rf"^proof of the {role}\n([0-9a-f ]+)$", TEXT, re.MULTILINE)
    certificate = hashlib.sha256(b"a certificate").digest()
    hello = body_of(fields_of("Hello"), values_of(HELLO), VOCABULARY)
    parts = [b"STF1 proof", role.encode(), hello, CHALLENGE.nonce, certificate]
    transcript = b"".join(struct.pack("<I", len(part)) + part for part in parts)
    proof = hmac.new(b"0123456789abcdef" * 4, transcript, hashlib.sha256).digest()
    assert bytes.fromhex(shown[1]) == proof


def test_the_header_has_the_fields_of_the_page() -> None:
    rows = re.findall(r"^\| (\d) \| (u\d+) \| (\w+) \|", TEXT, re.MULTILINE)
    assert [name for _, _, name in rows] == list(Header._fields)
    layout = "<" + "".join(INTEGERS[kind][1] for _, kind, _ in rows)
    assert layout == HEADER.format
    assert [int(offset) for offset, _, _ in rows] == [
        struct.calcsize(layout[: 1 + index]) for index in range(len(rows))
    ]
