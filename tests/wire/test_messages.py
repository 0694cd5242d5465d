"""Every message: bytes written down by hand, round trips, and each rule broken one at a time."""

import hashlib
import math
import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.wire.frames import HEADER, Header, decode_body, decode_header, encode_frame
from runtime.wire.messages import (
    MESSAGE_TYPES,
    Adapter,
    Adapters,
    Close,
    Constraint,
    ConstraintKind,
    Credit,
    Draft,
    Error,
    ErrorCode,
    Finish,
    Hello,
    Logprobs,
    Offer,
    Open,
    Ping,
    Pong,
    Prompt,
    ProtocolError,
    Reading,
    Redirect,
    Rule,
    Template,
    Turn,
    Verdict,
    Welcome,
    clamp_ms,
    template_hash,
)
from tests.wire.cases import (
    ADAPTER,
    ADAPTERS,
    CHALLENGE,
    CONSTRAINT,
    HELLO,
    OFFER,
    PROOF,
    REDIRECT,
    RULE,
    TEMPLATE,
    VOCABULARY,
    WELCOME,
    draft,
    logprobs,
    messages,
    opening,
    verdict,
)


def decode(frame, vocabulary=VOCABULARY):
    return decode_body(decode_header(frame), frame[HEADER.size :], vocabulary)


def spoil(message, layout, position, value):
    """The frame of a message with one field of its body replaced."""
    frame = bytearray(encode_frame(message, 0, VOCABULARY))
    struct.pack_into("<" + layout, frame, HEADER.size + position, value)
    return bytes(frame)


def resize(frame, body):
    """A frame with another body and the length that belongs to it."""
    return struct.pack("<H", HEADER.size + len(body)) + frame[2 : HEADER.size] + body


@settings(max_examples=400)
@given(st.data(), st.sampled_from([2, 3, 300, 32_000, 49_152, 151_936, 2**24]))
def test_every_message_comes_back_from_its_bytes(data, vocabulary):
    message, seq = data.draw(messages(vocabulary)), data.draw(st.integers(0, 2**16 - 1))
    frame = encode_frame(message, seq, vocabulary)
    header = decode_header(frame)
    assert (header.length, header.seq, header.flags) == (len(frame), seq, 0)
    again = decode(frame, vocabulary)
    assert again == message
    assert type(again) is type(message)
    assert encode_frame(again, seq, vocabulary) == frame


# Frames as bytes, written down once: another implementation must read the same.
TEMPLATE_DIGEST = hashlib.sha256(TEMPLATE.source.encode()).hexdigest()[:32]
GOLDEN = [
    (HELLO, "62 00 01 00 00 00 09 00 53544631 0100 00c00000 000102030405060708090a0b0c0d0e0f"
     + TEMPLATE_DIGEST + bytes(range(32)).hex() + "05" + b"alicedraft-135m".hex()),
    (CHALLENGE, "48 00 0c 00 00 00 09 00" + bytes(range(32, 96)).hex()),
    (PROOF, "28 00 0d 00 00 00 09 00" + bytes(range(96, 128)).hex()),
    (REDIRECT, "1b 00 0e 00 00 00 09 00 d020" + b"replica-2.example".hex()),
    (WELCOME, "3e 00 02 00 00 00 09 00 0100 00c00000 000102030405060708090a0b0c0d0e0f"
     + TEMPLATE_DIGEST + "40 00200000 0400" + b"target-8b".hex()),
    (Template("{{ bos }}\n§"), "14 00 0f 00 00 00 09 00 7b7b20626f73207d7d 0a c2a7"),
    (Open(3, 2**64 - 2, 0.5, 1.0, 0.0, 40, 256, 1000, (2, 49_151), 33, 258, 21),
     "3f 00 03 00 03 00 09 00 feffffffffffffff 000000000000e03f 000000000000f03f"
     "0000000000000000 28000000 00010000 e8030000 02010000 15 21 02 0200 ffbf"),
    (Rule(3, 0.5, -1.0, 2.0, (2, 49_151), (-0.5, 1.0)),
     "36 00 10 00 03 00 09 00 000000000000e03f 000000000000f0bf 0000000000000040 0200"
     "0200 ffbf 000000000000e0bf 000000000000f03f"),
    (Constraint(3, ConstraintKind.LARK, "\né"), "0c 00 11 00 03 00 09 00 03 0a c3a9"),
    (Adapter(3, "sql\u00e9"), "0d 00 14 00 03 00 09 00 73716cc3a9"),
    (Adapters("sql chat"), "10 00 15 00 00 00 09 00 73716c 20 63686174"),
    (Reading(3, 258, 1000), "10 00 12 00 03 00 09 00 02010000 e8030000"),
    (Logprobs(3, (-0.5,), (2, 49_151), (0.0, -math.inf)),
     "1c 00 13 00 03 00 09 00 0100 0200 0200 ffbf 000000bf 00000000 000080ff"),
    (Prompt(3, (1, 2, 258)), "10 00 04 00 03 00 09 00 0300 0100 0200 0201"),
    (Draft(3, 1, 1001, (5, 6, 5), (0, 0, 2), 258),
     "1c 00 05 00 03 00 09 00 01000000 e9030000 0201 03 0500 0600 0500 00 00 02"),
    (Offer(3, 1001, (5, 6, 5), (0, 0, 2)),
     "16 00 16 00 03 00 09 00 e9030000 03 0500 0600 0500 00 00 02"),
    (Verdict(3, 1, 0, 77, Finish.NONE, 3, 4, Turn.MORE),
     "1c 00 06 00 03 00 09 00 01000000 00 4d000000 00 0300 0400 03 00 0000 0000"),
    (Verdict(3, 1, 2, 77, Finish.NONE, 3, 4, Turn.SERVER, 32),
     "1c 00 06 00 03 00 09 00 01000000 02 4d000000 00 0300 0400 00 20 0000 0000"),
    (Verdict(3, 1, 2, 77, Finish.LENGTH, 3, 65_535),
     "1c 00 06 00 03 00 09 00 01000000 02 4d000000 02 0300 ffff 00 00 0000 0000"),
    (Verdict(3, 1, 2, 77, Finish.NONE, 3, 4, Turn.WAIT, 32, 258, 7),
     "1c 00 06 00 03 00 09 00 01000000 02 4d000000 00 0300 0400 02 20 0201 0700"),
    (Credit(3, 32, 258, 65_535), "0d 00 0b 00 03 00 09 00 20 0201 ffff"),
    (Close(65_535), "08 00 07 00 ff ff 09 00"),
    (Error(0, ErrorCode.BUSY, True, "é"), "0c 00 08 00 00 00 09 00 05 01 c3a9"),
    (Ping(258), "10 00 09 00 00 00 09 00 0201000000000000"),
    (Pong(258), "10 00 0a 00 00 00 09 00 0201000000000000"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "text"), GOLDEN, ids=lambda case: type(case).__name__)
def test_golden_frames(message, text):
    assert encode_frame(message, 9, VOCABULARY).hex(" ") == bytes.fromhex(text).hex(" ")


def test_golden_frames_cover_every_type():
    assert {type(message) for message, _ in GOLDEN} == set(MESSAGE_TYPES.values())


def test_a_round_is_small():
    assert len(encode_frame(draft(1, 1, nodes=32), 0, 49_152)) <= 150
    assert len(encode_frame(verdict(1, 1), 0, 49_152)) <= 32
    assert len(encode_frame(draft(1, 1, nodes=32), 0, 151_936)) == 8 + 11 + 32 * 18 // 8 + 32


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (HELLO, {"version": 65_536}),
        (HELLO, {"vocabulary_size": 1}),
        (HELLO, {"vocabulary_size": 2**24 + 1}),
        (HELLO, {"vocabulary_hash": bytes(15)}),
        (HELLO, {"vocabulary_hash": bytes(17)}),
        (HELLO, {"template_hash": bytes(15)}),
        (WELCOME, {"vocabulary_hash": bytes(17)}),
        (WELCOME, {"template_hash": b""}),
        (TEMPLATE, {"source": "x" * 61_433}),
        (TEMPLATE, {"source": "é" * 30_717}),
        (HELLO, {"nonce": bytes(31)}),
        (HELLO, {"user": "x" * 65}),
        (HELLO, {"user": "a\nb"}),
        (CHALLENGE, {"nonce": bytes(33)}),
        (CHALLENGE, {"proof": bytes(31)}),
        (PROOF, {"proof": b""}),
        (REDIRECT, {"port": 0}),
        (REDIRECT, {"port": 65_536}),
        (REDIRECT, {"host": ""}),
        (REDIRECT, {"host": "a\x00b"}),
        (HELLO, {"model": "x" * 256}),
        (HELLO, {"model": "é" * 128}),
        (HELLO, {"model": "a\x1b[2J"}),
        (WELCOME, {"vocabulary_size": 0}),
        (WELCOME, {"max_nodes": 256}),
        (WELCOME, {"max_nodes": -1}),
        (WELCOME, {"max_context": 0}),
        (WELCOME, {"max_requests": 0}),
        (WELCOME, {"max_requests": 65_536}),
        (WELCOME, {"model": "a\nb"}),
        (opening(1), {"request": 0}),
        (opening(1), {"request": 65_536}),
        (opening(1), {"seed": -1}),
        (opening(1), {"seed": 2**64}),
        (opening(1), {"temperature": -0.1}),
        (opening(1), {"temperature": 100.1}),
        (opening(1), {"temperature": float("nan")}),
        (opening(1), {"temperature": float("inf")}),
        (opening(1), {"top_p": 0.0}),
        (opening(1), {"top_p": 1.1}),
        (opening(1), {"top_p": float("nan")}),
        (opening(1), {"min_p": -0.1}),
        (opening(1), {"min_p": 1.1}),
        (opening(1), {"min_p": float("nan")}),
        (opening(1), {"top_k": -1}),
        (opening(1), {"max_tokens": 0}),
        (opening(1), {"max_nodes": -1}),
        (opening(1), {"max_nodes": 256}),
        (draft(1, 1), {"draft_ms": -1}),
        (draft(1, 1), {"draft_ms": 65_536}),
        (verdict(1, 1), {"max_nodes": 256}),
        (verdict(1, 1), {"free_ms": 65_536}),
        (verdict(1, 1), {"late_ms": 65_536}),
        (verdict(1, 1), {"turn": Turn.SERVER}),
        (verdict(1, 1), {"finish": Finish.STOP}),
        (Credit(1, 8, 5, 0), {"request": 0}),
        (Credit(1, 8, 5, 0), {"max_nodes": 256}),
        (Credit(1, 8, 5, 0), {"free_ms": 65_536}),
        (Credit(1, 8, 5, 0), {"late_ms": -1}),
        (opening(1), {"prompt_tokens": 0}),
        (opening(1), {"stop_ids": tuple(range(256))}),
        (opening(1), {"output_tokens": 3}),
        (opening(1), {"output_tokens": -1}),
        (opening(1), {"logprobs": 22}),
        (opening(1), {"logprobs": -1}),
        (RULE, {"request": 0}),
        (RULE, {"frequency_penalty": 2.1}),
        (RULE, {"presence_penalty": -2.1}),
        (RULE, {"frequency_penalty": float("nan")}),
        (RULE, {"repetition_penalty": 0.0}),
        (RULE, {"repetition_penalty": 101.0}),
        (RULE, {"repetition_penalty": float("nan")}),
        (RULE, {"bias_values": (-100.1, 1.0)}),
        (RULE, {"bias_values": (1.0, float("nan"))}),
        (RULE, {"bias_values": (1.0, float("inf"))}),
        (RULE, {"bias_values": (1.0,)}),
        (RULE, {"bias_ids": tuple(range(1025)), "bias_values": (1.0,) * 1025}),
        (ADAPTER, {"request": 0}),
        (ADAPTER, {"name": ""}),
        (ADAPTER, {"name": "\u00e9" * 33}),
        (ADAPTER, {"name": "a\nb"}),
        (ADAPTERS, {"names": ""}),
        (ADAPTERS, {"names": "x" * 16_377}),
        (ADAPTERS, {"names": "a\0"}),
        (CONSTRAINT, {"request": 0}),
        (CONSTRAINT, {"text": ""}),
        (CONSTRAINT, {"text": "x" * 61_432}),
        (CONSTRAINT, {"text": "é" * 30_716}),
        (Reading(1, 1, 2), {"request": 0}),
        (Reading(1, 1, 2), {"cached_tokens": 3}),
        (Reading(1, 1, 2), {"read_tokens": 2**32}),
        (logprobs(1), {"request": 0}),
        (logprobs(1), {"logprobs": (0.1,)}),
        (logprobs(1), {"logprobs": (float("nan"),)}),
        (logprobs(1), {"logprobs": ()}),
        (logprobs(1), {"logprobs": (-1.0,) * 257}),
        (logprobs(1), {"top_logprobs": (-1.0, 0.5)}),
        (logprobs(1), {"top_logprobs": (-1.0,)}),
        (logprobs(1), {"top_ids": (1,) * 21, "top_logprobs": (-1.0,) * 21}),
        (Prompt(1, (1,)), {"request": 0}),
        (Prompt(1, (1,)), {"tokens": ()}),
        (draft(1, 1), {"request": 0}),
        (draft(1, 1), {"round": 0}),
        (OFFER, {"tokens": (), "parents": ()}),
        (OFFER, {"base": 0}),
        (OFFER, {"parents": (0, 1, 2)}),
        (OFFER, {"tokens": (7, 8, 7, 7), "parents": (0, 1, 0, 2)}),
        (draft(1, 1), {"base": 0}),
        (draft(1, 1), {"base": 2**32}),
        (draft(1, 1), {"parents": (0, 1, 2)}),
        (draft(1, 1), {"parents": (0, 1, 2, 4)}),
        (draft(1, 1), {"parents": (1, 1, 2, 3)}),
        (draft(1, 1), {"parents": (0, -1, 2, 3)}),
        (draft(1, 1), {"tokens": (5, 5, 6, 7), "parents": (0, 0, 0, 0)}),
        (draft(1, 1), {"tokens": tuple(range(256)), "parents": tuple(range(256))}),
        (verdict(1, 1), {"request": 0}),
        (verdict(1, 1), {"node": 256}),
        (verdict(1, 0), {"node": 1}),
        (verdict(1, 1), {"bonus": -1}),
        (verdict(1, 1), {"queue_ms": 65_536}),
        (verdict(1, 1), {"verify_ms": -1}),
        (Close(1), {"request": 0}),
        (Error(0, ErrorCode.BUSY, False, ""), {"request": -1}),
        (Ping(0), {"nonce": -1}),
        (Pong(0), {"nonce": 2**64}),
    ],
)  # fmt: skip
def test_no_message_can_be_built_that_breaks_a_rule(message, change):
    with pytest.raises(ValueError, match=r"expected|control characters|token|parent"):
        replace(message, **change)


@pytest.mark.parametrize(
    ("frame", "sentence"),
    [
        (spoil(HELLO, "H", 4, 0), "speaks STF version 0"),
        (spoil(HELLO, "I", 6, 1), "vocabulary_size is 1"),
        (spoil(HELLO, "I", 6, 2**32 - 1), "vocabulary_size is 4294967295"),
        (spoil(HELLO, "B", 75, 0xFF), "not UTF-8"),
        (spoil(HELLO, "B", 80, 0xFF), "not UTF-8"),
        (spoil(HELLO, "B", 75, 0x1B), "control characters"),
        (spoil(HELLO, "B", 74, 16), "bytes of user is 16"),
        (spoil(REDIRECT, "H", 0, 0), "port is 0"),
        (spoil(HELLO, "B", 0, 0x73), "wrong magic"),
        (spoil(WELCOME, "H", 0, 3), "speaks STF version 3"),
        (spoil(WELCOME, "I", 39, 0), "max_context is 0"),
        (spoil(WELCOME, "H", 43, 0), "max_requests is 0"),
        (spoil(TEMPLATE, "B", 0, 0xFF), "not UTF-8"),
        (spoil(opening(1), "d", 8, float("nan")), "temperature is nan"),
        (spoil(opening(1), "d", 8, float("-inf")), "temperature is -inf"),
        (spoil(opening(1), "d", 16, 0.0), "top_p is 0"),
        (spoil(opening(1), "d", 24, 2.0), "min_p is 2.0"),
        (spoil(opening(1), "I", 36, 0), "max_tokens is 0"),
        (spoil(opening(1), "I", 40, 0), "prompt_tokens is 0"),
        (spoil(opening(1), "I", 44, 3), "output_tokens is 3"),
        (spoil(opening(1), "B", 48, 22), "logprobs is 22"),
        (spoil(opening(1), "B", 50, 255), "body has 55 bytes"),
        (spoil(opening(1), "B", 50, 1), "body has 55 bytes"),
        (spoil(opening(1), "H", 51, 49_152), "outside the vocabulary"),
        (spoil(RULE, "d", 0, float("nan")), "frequency_penalty is nan"),
        (spoil(RULE, "d", 16, -1.0), "repetition_penalty is -1.0"),
        (spoil(RULE, "H", 24, 65_535), "body has 46 bytes"),
        (spoil(RULE, "H", 24, 1), "body has 46 bytes"),
        (spoil(RULE, "H", 26, 49_151), "ids of biases must ascend"),
        (spoil(RULE, "H", 28, 49_152), "outside the vocabulary"),
        (spoil(RULE, "d", 30, 0.0), "a bias of 0 changes nothing"),
        (spoil(RULE, "d", 38, float("inf")), "bias is inf"),
        (spoil(CONSTRAINT, "B", 0, 0), "not a valid ConstraintKind"),
        (spoil(CONSTRAINT, "B", 1, 0xFF), "not UTF-8"),
        (spoil(Reading(1, 1, 2), "I", 0, 3), "cached_tokens is 3"),
        (spoil(logprobs(1, 2), "H", 0, 3), "body has 36 bytes"),
        (spoil(logprobs(1, 2), "H", 0, 0), "body has 36 bytes"),
        (spoil(logprobs(1, 2), "H", 2, 65_535), "body has 36 bytes"),
        (spoil(logprobs(1, 2), "H", 4, 49_152), "outside the vocabulary"),
        (spoil(logprobs(1, 2), "f", 12, float("nan")), "logprob is nan"),
        (spoil(logprobs(1, 2), "f", 12, 0.5), "logprob is 0.5"),
        (resize(encode_frame(logprobs(1, 2), 0, VOCABULARY),
                struct.pack("<HHHfff", 2, 1, 7, 0.0, 0.0, 0.0)), "1 top_ids are not as many"),
        (spoil(Prompt(1, (7,)), "H", 0, 65_535), "body has 4 bytes"),
        (spoil(Prompt(1, (7,)), "H", 2, 65_535), "outside the vocabulary"),
        (spoil(draft(1, 1), "I", 0, 0), "round is 0"),
        (spoil(draft(1, 1), "I", 4, 0), "base is 0"),
        (spoil(draft(1, 1), "B", 10, 255), "body has 23 bytes"),
        (spoil(draft(1, 1), "B", 10, 3), "body has 23 bytes"),
        (spoil(draft(1, 1), "H", 11, 49_152), "outside the vocabulary"),
        (spoil(draft(1, 1), "B", 19, 1), "a node before it"),
        (spoil(draft(1, 1), "B", 22, 255), "a node before it"),
        (spoil(Draft(1, 1, 1, (5, 5), (0, 1)), "B", 16, 0), "same token"),
        (spoil(verdict(1, 0), "B", 4, 1), "node is 1"),
        (spoil(verdict(1, 1), "I", 5, 49_152), "outside the vocabulary"),
        (spoil(verdict(1, 1), "B", 9, 3), "not a valid Finish"),
        (spoil(verdict(1, 1), "B", 9, 1), "turn of a last Verdict is 1"),
        (spoil(verdict(1, 1), "B", 14, 4), "not a valid Turn"),
        (spoil(verdict(1, 1), "B", 14, 0), "free_ms is 12"),
        (spoil(verdict(1, 1), "B", 14, 3), "free_ms is 12"),
        (spoil(Error(0, ErrorCode.BUSY, False, "x"), "B", 0, 99), "not a valid ErrorCode"),
        (spoil(Error(0, ErrorCode.BUSY, False, "x"), "B", 1, 2), "fatal is 2"),
        (spoil(Error(0, ErrorCode.BUSY, False, "x"), "B", 2, 0xC3), "not UTF-8"),
        (spoil(Error(0, ErrorCode.BUSY, False, "x"), "B", 2, 0x07), "control characters"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)  # fmt: skip
def test_a_received_field_that_breaks_a_rule_is_a_protocol_error(frame, sentence):
    with pytest.raises(ProtocolError, match=sentence) as caught:
        decode(frame)
    if caught.value.code is not ErrorCode.VERSION:
        more_than_allowed = sentence == "outside the vocabulary"
        assert caught.value.code is (ErrorCode.LIMIT if more_than_allowed else ErrorCode.PROTOCOL)


@pytest.mark.parametrize(
    "message", [message for message, _ in GOLDEN], ids=lambda m: type(m).__name__
)
def test_every_other_body_length_is_refused(message):
    frame = encode_frame(message, 0, VOCABULARY)
    # These end in text of any length.
    texts = {Hello: 80, Redirect: 3, Welcome: 45, Template: 0, Error: 2, Constraint: 2}
    texts |= {Adapter: 1, Adapters: 1}
    fixed = texts.get(type(message), len(frame) - HEADER.size)
    for cut in range(fixed):
        with pytest.raises(ProtocolError, match=r"bytes|magic|version"):
            decode(resize(frame, frame[HEADER.size : HEADER.size + cut]))
    if type(message) not in texts:
        with pytest.raises(ProtocolError, match="bytes"):
            decode(resize(frame, frame[HEADER.size :] + b"\0"))
    else:
        longest = {Template: 61_433, Constraint: 61_433, Adapters: 16_377}
        more = longest.get(type(message), 401)
        with pytest.raises(ProtocolError, match="bytes of"):
            decode(resize(frame, frame[HEADER.size :] + b"x" * more))


@pytest.mark.parametrize(
    "message", [HELLO, WELCOME, Ping(1), Pong(1)], ids=lambda m: type(m).__name__
)
def test_messages_of_the_connection_have_request_0(message):
    frame = bytearray(encode_frame(message, 0, VOCABULARY))
    struct.pack_into("<H", frame, 4, 1)
    with pytest.raises(ProtocolError, match="request is 1"):
        decode(bytes(frame))


@pytest.mark.parametrize(
    "message",
    [
        *(opening(1), RULE, CONSTRAINT, ADAPTER, Prompt(1, (1,)), draft(1, 1), Reading(1, 0, 1)),
        *(logprobs(1), verdict(1, 1), Close(1)),
    ],
)
def test_messages_of_a_request_have_one(message):
    frame = bytearray(encode_frame(message, 0, VOCABULARY))
    struct.pack_into("<H", frame, 4, 0)
    with pytest.raises(ProtocolError, match="request is 0"):
        decode(bytes(frame))


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (Header(8, 0, 0, 0, 0), "type 0 is not known"),
        (Header(8, 23, 0, 0, 0), "type 23 is not known"),
        (Header(8, 255, 0, 0, 0), "type 255 is not known"),
        (Header(8, 7, 1, 1, 0), "flags are 1"),
        (Header(8, 7, 128, 1, 0), "flags are 128"),
        (Header(7, 7, 0, 1, 0), "length is 7"),
        (Header(0, 7, 0, 1, 0), "length is 0"),
    ],
)
def test_headers_that_are_refused(header, sentence):
    with pytest.raises(ProtocolError, match=sentence):
        decode_header(HEADER.pack(*header))


def test_another_version_is_refused_before_its_body_is_read():
    frame = encode_frame(HELLO, 0, VOCABULARY)
    future = resize(frame, b"STF1\x03\x00 anything at all \xff\xff")
    with pytest.raises(ProtocolError, match="version 3, this side versions 1 and 2") as caught:
        decode(future)
    assert caught.value.code is ErrorCode.VERSION


@pytest.mark.parametrize("message", [verdict(1, 1), Prompt(1, (60_000,)), draft(1, 1)])
def test_a_token_outside_the_vocabulary_is_not_sent(message):
    with pytest.raises(ValueError, match="outside the vocabulary"):
        encode_frame(message, 0, vocabulary_size=11)


def test_a_field_of_a_wrong_type_is_a_value_error():
    with pytest.raises(ValueError, match="Open has a field of a wrong type"):
        encode_frame(replace(opening(1), seed=1.5), 0, VOCABULARY)


@given(st.text())
def test_any_sentence_can_be_sent_and_arrives_in_400_clean_bytes(sentence):
    sent = Error(0, ErrorCode.INTERNAL, True, sentence * 50)
    got = decode(encode_frame(sent, 0, VOCABULARY)).sentence
    assert len(got.encode()) <= 400
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in got)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"bias_ids": (7, 7)}, "must ascend"),
        ({"bias_ids": (8, 7)}, "must ascend"),
        ({"bias_values": (1.0, 0.0)}, "leave it out"),
        ({"bias_values": (1.0, -0.0)}, "leave it out"),
    ],
)
def test_one_rule_has_one_spelling(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(RULE, **change)


def test_a_rule_that_changes_nothing_is_none():
    with pytest.raises(ValueError, match="this Rule changes nothing"):
        Rule(1)
    assert not Rule(1, bias_ids=(3,), bias_values=(1.0,)).counts_tokens
    for penalty in ({"frequency_penalty": 0.1}, {"presence_penalty": -0.1}):
        assert Rule(1, **penalty).counts_tokens
    assert Rule(1, repetition_penalty=0.9).counts_tokens


def test_the_largest_messages_fit_their_frames():
    ids = tuple(range(1024))
    assert len(encode_frame(Rule(1, 0, 0, 1, ids, (1.0,) * 1024), 0, 2**24)) <= 16_384
    assert len(encode_frame(logprobs(1, tokens=256, listed=20), 0, 2**24)) <= 61_440
    longest = Constraint(1, ConstraintKind.REGEX, "x" * 61_431)
    assert len(encode_frame(longest, 0, 2**24)) == 61_440


def test_a_long_sentence_is_cut_at_a_character():
    got = decode(encode_frame(Error(0, ErrorCode.INTERNAL, True, "x" + "é" * 300), 0, VOCABULARY))
    assert got.sentence == "x" + "é" * 199


def test_a_template_of_any_characters_is_sent_and_one_too_long_is_empty():
    source = "\x00\x1b[2J\n{{ '€' }}\r\n" + "x" * 60_000
    assert decode(encode_frame(Template.of(source), 0, VOCABULARY)).source == source
    longest = "é" * (61_432 // 2)
    assert Template.of(longest).source == longest
    assert Template.of(longest + "x").source == ""
    assert template_hash(None) == bytes(16)
    assert template_hash("é") == hashlib.sha256(b"\xc3\xa9").digest()[:16]


@pytest.mark.parametrize(
    ("time_ms", "sent"),
    [(-5, 0), (0.4, 0), (12.6, 13), (65_535.4, 65_535), (1e9, 65_535), (float("inf"), 65_535)],
)
def test_times_are_clamped(time_ms, sent):
    assert clamp_ms(time_ms) == sent


def test_only_a_verdict_that_leaves_the_turn_with_the_server_likes_offers():
    for finish, turn in ((Finish.STOP, Turn.SERVER), (Finish.NONE, Turn.MORE)):
        with pytest.raises(ValueError, match="max_nodes is 5"):
            Verdict(3, 1, 2, 77, finish, 3, 4, turn, 5)
