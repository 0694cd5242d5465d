"""The parts of docs/protocol.md that the code can print: states, limits, examples.

`python -m tests.wire.protocol_page` writes them into the page anew.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from enum import IntEnum
from pathlib import Path

from runtime.config import ServerConfig
from runtime.server.users import FREE_FAILURES, LONGEST_WAIT_S, MIN_TOKEN_CHARACTERS
from runtime.wire import connection, frames, messages, states, tcp
from runtime.wire.auth import certificate_hash, prove
from runtime.wire.messages import (
    MESSAGE_TYPES,
    Close,
    Credit,
    Draft,
    Error,
    ErrorCode,
    Finish,
    Logprobs,
    Message,
    Offer,
    Open,
    Ping,
    Pong,
    Prompt,
    Reading,
    Turn,
    Verdict,
)
from tests.wire.cases import (
    ADAPTER,
    ADAPTERS,
    CHALLENGE,
    CONSTRAINT,
    HELLO,
    PROOF,
    REDIRECT,
    RULE,
    TEMPLATE,
    VOCABULARY,
    WELCOME,
)

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"
PRINTED = re.compile(r"<!-- printed: (\w+) -->\n.*?<!-- end -->", re.DOTALL)

EXAMPLES: tuple[Message, ...] = (
    HELLO,
    WELCOME,
    Open(1, 7, 0.8, 0.95, 0.05, 40, 256, 3, (2, 49_151), 32),
    Prompt(1, (100, 101, 102)),
    Draft(1, 1, 4, (5, 6, 5, 49_151), (0, 0, 1, 3), 8),
    Verdict(1, 1, 3, 11, Finish.NONE, 3, 40, Turn.EDGE, 24, 12),
    Close(1),
    Error(1, ErrorCode.BUSY, False, "the server is full"),
    Ping(7),
    Pong(7),
    Credit(1, 24, 0, 65_535),
    CHALLENGE,
    PROOF,
    REDIRECT,
    TEMPLATE,
    RULE,
    CONSTRAINT,
    Reading(1, 4096, 6144),
    ADAPTER,
    ADAPTERS,
    Logprobs(1, (-0.5, -2.0), (5, 9, 7, 11), (-0.5, -1.5, -1.0, -2.0)),
    Offer(1, 4, (5, 6, 5, 49_151), (0, 0, 1, 3)),
)
EXAMPLE_TOKEN, EXAMPLE_CERTIFICATE = b"0123456789abcdef" * 4, b"a certificate"


def printed() -> Mapping[str, str]:
    """Every printed part by its name."""
    examples = {type(message).__name__: _example(message) for message in EXAMPLES}
    return {
        "limits": _limits(),
        "types": _types(),
        "connection": _table("state", states.CONNECTION_TABLE),
        "request": _table("state", states.REQUEST_TABLE),
        "proof": _proof(),
        **examples,
    }


def renewed(page: str) -> str:
    """The page with its printed parts as the code has them now."""
    parts = printed()

    def renew(found: re.Match[str]) -> str:
        return f"<!-- printed: {found[1]} -->\n{parts[found[1]]}\n<!-- end -->"

    return PRINTED.sub(renew, page)


def _limits() -> str:
    wait = f"waits 1, 2, 4 … up to {LONGEST_WAIT_S:.0f} s"
    rows = (
        ("frame before the Welcome", f"{connection.MAX_HANDSHAKE_FRAME_BYTES} bytes"),
        ("frame", f"{frames.MAX_FRAME_BYTES:,} bytes"),
        (
            "frame of a Prompt, Template, Constraint or Logprobs",
            f"{frames.MAX_LONG_FRAME_BYTES:,} bytes",
        ),
        ("time until the Welcome", f"{tcp.HANDSHAKE_TIMEOUT_S:g} s"),
        ("time to take a last frame", f"{tcp.CLOSE_TIMEOUT_S:g} s"),
        (
            "bytes that wait for a slow edge",
            f"{tcp.MAX_WRITE_BUFFER_BYTES[states.Role.SERVER]:,}",
        ),
        ("strangers at one time", f"{ServerConfig.max_strangers} (`--max-strangers`)"),
        ("wrong proofs", f"after {FREE_FAILURES} in a row an address {wait}"),
        ("token of a user", f"at least {MIN_TOKEN_CHARACTERS} characters"),
        ("vocabulary", f"{messages.MAX_VOCABULARY:,} tokens"),
        ("tokens with a bias", f"{messages.MAX_BIASES:,}"),
        ("nodes of a tree", f"{messages.MAX_NODES}, and what the turn allows"),
    )
    return _markdown(("what", "limit"), rows)


def _types() -> str:
    rows = []
    for number, kind in sorted(MESSAGE_TYPES.items()):
        places = [move for move in states.CONNECTION_TABLE if move.message is kind]
        senders = {role.value for role in states.Role if any(m.sender is role for m in places)}
        rows.append((f"{number}", kind.__name__, " or ".join(sorted(senders)), _request(kind)))
    return _markdown(("type", "message", "sent by", "request"), rows)


def _request(kind: type[Message]) -> str:
    if kind is Error:
        return "0 or a request"
    return "a request" if any(field.name == "request" for field in fields(kind)) else "0"


def _table(
    kind: str,
    table: Mapping[
        states.Move, tuple[states.ConnectionState, ...] | tuple[states.RequestState, ...]
    ],
) -> str:
    rows, last = [], None
    for move, followers in sorted(table.items(), key=_order):
        place = f"**{_name(move.state)}**: {move.state.value}" if move.state is not last else ""
        what = f"{move.sender.value}: {move.message.__name__}"
        rows.append((place, what, " or ".join(_name(place) for place in followers)))
        last = move.state
    return _markdown((kind, "who may send what", "then"), rows)


def _order(row: tuple[states.Move, tuple[object, ...]]) -> tuple[int, str, int]:
    move = row[0]
    order = list(type(move.state)).index(move.state)
    return order, move.sender.value, move.message.TYPE


def _name(place: states.ConnectionState | states.RequestState) -> str:
    return place.name.lower().replace("_", " ")


def _example(message: Message) -> str:
    values = [f"{field.name} {_value(getattr(message, field.name))}" for field in fields(message)]
    frame = _hex(frames.encode_frame(message, 0, VOCABULARY))
    return f"```\n{type(message).__name__}: {', '.join(values)}\n{frame}\n```"


def _value(value: object) -> str:
    match value:
        case bytes():
            return value.hex()
        case IntEnum():
            return f"{value:d} ({value.name})"
    return repr(value)


def _proof() -> str:
    certificate = certificate_hash(EXAMPLE_CERTIFICATE)
    lines = [
        f'token       "{EXAMPLE_TOKEN.decode()}"',
        f"hello       the body of the example in section 3.1 ({len(HELLO.encode(0))} bytes)",
        "nonce       that of the example in section 3.12",
        f'certificate SHA-256 of "{EXAMPLE_CERTIFICATE.decode()}"',
    ]
    for role in (states.Role.SERVER, states.Role.EDGE):
        proof = prove(EXAMPLE_TOKEN, role, HELLO, CHALLENGE.nonce, certificate)
        lines += [f"proof of the {role.value}", _hex(proof)]
    return "```\n" + "\n".join(lines) + "\n```"


def _hex(data: bytes, bytes_per_line: int = 32) -> str:
    starts = range(0, len(data), bytes_per_line)
    return "\n".join(data[start : start + bytes_per_line].hex(" ") for start in starts)


def _markdown(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
