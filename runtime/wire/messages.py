"""The messages of STF/1, "SpecEdge token framing", and the bytes of their bodies.

Request 0 is the connection itself. A message can only be built with fields that keep its rules
(ValueError otherwise), so what is encoded is always valid, and what is decoded has been checked;
equal messages have equal bytes. Nobody changes one; but those of which a server makes thousands a
second are not frozen, as that would treble what one costs. Which message may come when is
`connection`'s business: this module knows no order, no role and no socket.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from operator import ge, gt
from typing import ClassVar, TypeVar, get_args

from runtime.wire.fields import (
    CONTROL_CHARACTERS,
    Limits,
    check,
    check_fields,
    check_length,
    check_name,
    decode_text,
    decode_utf8,
    unpack_head,
)
from runtime.wire.token_bits import check_tokens, pack_tokens, packed_bytes, unpack_tokens

VERSION = 1
OFFERS_VERSION = 2  # the same, and Offers: said by edges that make them
MAGIC = b"STF1"
VERSION_LAYOUT = struct.Struct("<H")

MAX_NODES = 255
MAX_STOP_IDS = 255
HASH_BYTES = 16
NONCE_BYTES = 32
PROOF_BYTES = 32
MAX_USER_BYTES = 64
MAX_HOST_BYTES = 255
MAX_MODEL_BYTES = 255
MAX_ADAPTER_BYTES = 64
MAX_ADAPTERS_BYTES = 16 * 1024 - 8  # a frame of 16 KiB, less its header
MAX_SENTENCE_BYTES = 400
MAX_TEMPLATE_BYTES = 60 * 1024 - 8  # a frame of 60 KiB, less its header
MAX_CONSTRAINT_BYTES = MAX_TEMPLATE_BYTES - 1  # less its kind
MAX_BIASES = 1024  # tokens whose logits a request changes by numbers of its own
MAX_BIAS = 100.0  # bans or forces a token as good as any larger one
MAX_PENALTY = 2.0
LEAST_REPETITION, MOST_REPETITION = 0.01, 100.0  # float32 logits stay finite
MAX_TOP_LOGPROBS = 20
NO_TEMPLATE = bytes(HASH_BYTES)  # in place of the hash of one

U16_MAX = 2**16 - 1
MAX_REQUEST = U16_MAX  # the last number; 0 is the connection
U32_MAX = 2**32 - 1
U64_MAX = 2**64 - 1
# Widths up to 24 bits: the largest vocabularies in use need 18.
MAX_VOCABULARY = 2**24


class ErrorCode(IntEnum):
    """What went wrong, for programs; the Error's sentence says it for people."""

    PROTOCOL = 1
    VERSION = 2
    VOCABULARY = 3
    LIMIT = 4
    BUSY = 5
    INTERNAL = 6
    DRAINING = 7
    TIMEOUT = 8
    AUTHENTICATION = 9
    CONSTRAINT = 10
    ADAPTER = 11


class Finish(IntEnum):
    """Why a request's output ends with this verdict, or NONE: it goes on."""

    NONE = 0
    STOP = 1
    LENGTH = 2


class Turn(IntEnum):
    """Who moves after a Verdict that does not finish."""

    SERVER = 0  # the server decodes by itself: another Verdict follows without a Draft
    EDGE = 1  # the edge drafts and sends
    WAIT = 2  # the edge drafts, and sends once a Credit has come
    MORE = 3  # nobody: another Verdict of the same step follows at once


class ConstraintKind(IntEnum):
    """How the text of a Constraint says which answers it allows."""

    JSON_SCHEMA = 1  # as a JSON Schema: the answer is JSON that is valid under it
    REGEX = 2  # as a regular expression, which the whole answer matches
    LARK = 3  # as a grammar in the language of llguidance, after Lark's
    TOKENS = 4  # as ids in decimals, with a space between two: they are the whole answer


NO_LIMIT_MS = U16_MAX  # of a Verdict's or Credit's late_ms


def clamp_ms(time_ms: float) -> int:
    """A measured time as a message carries it: whole, and at most 65,535."""
    if 0 <= time_ms <= U16_MAX:
        return round(time_ms)
    return 0 if time_ms < 0 else U16_MAX


class ProtocolError(Exception):
    """The peer broke the protocol. The connection ends; the process lives."""

    def __init__(self, code: ErrorCode, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence


@dataclass(frozen=True, slots=True)
class Hello:
    """Edge to server, first: who I am.

    vocabulary_size are the rows of the draft model's embedding; vocabulary_hash (16 bytes) says
    what the ids below it stand for. user is empty, or the name whose token the edge can prove to
    have; the nonce (32 bytes) is new for every connection. template_hash is that of the chat
    template that the edge has: see `template_hash`.
    """

    TYPE: ClassVar[int] = 1
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<4sHI16s16s32sB")
    request: ClassVar[int] = 0
    LIMITS: ClassVar[Limits] = {
        "version": (0, U16_MAX),
        "vocabulary_size": (2, MAX_VOCABULARY),
    }

    version: int
    vocabulary_size: int
    vocabulary_hash: bytes
    model: str
    user: str = ""
    nonce: bytes = bytes(NONCE_BYTES)
    template_hash: bytes = NO_TEMPLATE

    def __post_init__(self) -> None:
        check_fields(self, self.LIMITS)
        check("bytes of vocabulary_hash", len(self.vocabulary_hash), HASH_BYTES, HASH_BYTES)
        check("bytes of template_hash", len(self.template_hash), HASH_BYTES, HASH_BYTES)
        check("bytes of nonce", len(self.nonce), NONCE_BYTES, NONCE_BYTES)
        check_name("user", self.user, MAX_USER_BYTES)
        check_name("model", self.model, MAX_MODEL_BYTES)

    def encode(self, vocabulary_size: int) -> bytes:
        user = self.user.encode()
        vocabulary = (self.vocabulary_size, self.vocabulary_hash)
        who = (self.template_hash, self.nonce, len(user))
        head = self.LAYOUT.pack(MAGIC, self.version, *vocabulary, *who)
        return head + user + self.model.encode()

    @classmethod
    def decode(cls, body: bytes, request: int, vocabulary_size: int) -> Hello:
        if body[: len(MAGIC)] != MAGIC:
            raise ProtocolError(ErrorCode.PROTOCOL, "the peer does not speak STF: wrong magic")
        _check_version(body[len(MAGIC) :])
        _, version, size, digest, template, nonce, user_bytes = unpack_head(cls.LAYOUT, body)
        names = body[cls.LAYOUT.size :]
        check("bytes of user", user_bytes, 0, len(names))
        user, model = decode_text(names[:user_bytes]), decode_text(names[user_bytes:])
        return cls(version, size, digest, model, user, nonce, template)


@dataclass(frozen=True, slots=True)
class Challenge:
    """Server to edge, in place of the Welcome: prove who you are, as I do here. See `auth`."""

    TYPE: ClassVar[int] = 12
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<32s32s")
    request: ClassVar[int] = 0

    nonce: bytes
    proof: bytes

    def __post_init__(self) -> None:
        check("bytes of nonce", len(self.nonce), NONCE_BYTES, NONCE_BYTES)
        check("bytes of proof", len(self.proof), PROOF_BYTES, PROOF_BYTES)

    def encode(self, vocabulary_size: int) -> bytes:
        return self.LAYOUT.pack(self.nonce, self.proof)

    @classmethod
    def decode(cls, body: bytes, request: int, vocabulary_size: int) -> Challenge:
        check_length(body, cls.LAYOUT.size)
        return cls(*cls.LAYOUT.unpack(body))


@dataclass(frozen=True, slots=True)
class Proof:
    """Edge to server, the answer to a Challenge. See `auth`."""

    TYPE: ClassVar[int] = 13
    request: ClassVar[int] = 0

    proof: bytes

    def __post_init__(self) -> None:
        check("bytes of proof", len(self.proof), PROOF_BYTES, PROOF_BYTES)

    def encode(self, vocabulary_size: int) -> bytes:
        return self.proof

    @classmethod
    def decode(cls, body: bytes, request: int, vocabulary_size: int) -> Proof:
        return cls(body)


@dataclass(frozen=True, slots=True)
class Redirect:
    """Server to edge, in place of the Welcome: ask there. The connection ends."""

    TYPE: ClassVar[int] = 14
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<H")
    request: ClassVar[int] = 0

    port: int
    host: str

    def __post_init__(self) -> None:
        check("port", self.port, 1, U16_MAX)
        check_name("host", self.host, MAX_HOST_BYTES, least_bytes=1)

    def encode(self, vocabulary_size: int) -> bytes:
        return self.LAYOUT.pack(self.port) + self.host.encode()

    @classmethod
    def decode(cls, body: bytes, request: int, vocabulary_size: int) -> Redirect:
        (port,) = unpack_head(cls.LAYOUT, body)
        return cls(port, decode_text(body[cls.LAYOUT.size :]))


@dataclass(frozen=True, slots=True)
class Welcome:
    """Server to edge, the answer to Hello: what this server holds its edges to.

    vocabulary_size are the rows of the target's embedding: all later token ids are below it, and
    have its width. vocabulary_hash (16 bytes) says what they stand for; max_nodes drafted nodes in
    a tree (the root is not counted); max_context tokens in a request; max_requests at one time.
    template_hash is that of the target's chat template: see `template_follows`.
    """

    TYPE: ClassVar[int] = 2
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<HI16s16sBIH")
    request: ClassVar[int] = 0
    LIMITS: ClassVar[Limits] = {
        "version": (0, U16_MAX),
        "vocabulary_size": (2, MAX_VOCABULARY),
        "max_nodes": (0, MAX_NODES),
        "max_context": (1, U32_MAX),
        "max_requests": (1, U16_MAX),
    }

    version: int
    vocabulary_size: int
    vocabulary_hash: bytes
    max_nodes: int
    max_context: int
    max_requests: int
    model: str
    template_hash: bytes = NO_TEMPLATE

    def __post_init__(self) -> None:
        check_fields(self, self.LIMITS)
        check("bytes of vocabulary_hash", len(self.vocabulary_hash), HASH_BYTES, HASH_BYTES)
        check("bytes of template_hash", len(self.template_hash), HASH_BYTES, HASH_BYTES)
        check_name("model", self.model, MAX_MODEL_BYTES)

    def encode(self, vocabulary_size: int) -> bytes:
        meaning = (self.vocabulary_size, self.vocabulary_hash, self.template_hash)
        limits = (self.max_nodes, self.max_context, self.max_requests)
        return self.LAYOUT.pack(self.version, *meaning, *limits) + self.model.encode()

    @classmethod
    def decode(cls, body: bytes, request: int, vocabulary_size: int) -> Welcome:
        _check_version(body)
        version, size, digest, template, *limits = unpack_head(cls.LAYOUT, body)
        nodes, context, requests = limits
        model = decode_text(body[cls.LAYOUT.size :])
        return cls(version, size, digest, nodes, context, requests, model, template)


def template_hash(source: str | None) -> bytes:
    """What a Hello or a Welcome says of a chat template, 16 bytes; `NO_TEMPLATE` for none."""
    if source is None:
        return NO_TEMPLATE
    return hashlib.sha256(source.encode()).digest()[:HASH_BYTES]


def template_follows(hello: Hello, welcome: Welcome) -> bool:
    """Whether a Template comes after the Welcome: the target has one that the edge has not."""
    return welcome.template_hash not in (NO_TEMPLATE, hello.template_hash)


@dataclass(frozen=True, slots=True)
class Template:
    """Server to edge, after a Welcome that says so: the target's chat template, in Jinja.

    Any text; empty in place of one that is longer than a frame holds.
    """

    TYPE: ClassVar[int] = 15
    request: ClassVar[int] = 0

    source: str

    def __post_init__(self) -> None:
        check("bytes of source", len(self.source.encode()), 0, MAX_TEMPLATE_BYTES)

    @classmethod
    def of(cls, source: str) -> Template:
        """The message for a template of any length."""
        return cls(source if len(source.encode()) <= MAX_TEMPLATE_BYTES else "")

    def encode(self, vocabulary_size: int) -> bytes:
        return self.source.encode()

    @classmethod
    def decode(cls, body: bytes, request: int, vocabulary_size: int) -> Template:
        check("bytes of source", len(body), 0, MAX_TEMPLATE_BYTES)
        return cls(decode_utf8(body))


@dataclass(frozen=True, slots=True)
class Adapters:
    """Server to edge, once it is admitted: which adapters of the model its requests may have.

    names are separated by blanks. The last of these messages counts; without one there are none.
    """

    TYPE: ClassVar[int] = 21
    request: ClassVar[int] = 0

    names: str

    def __post_init__(self) -> None:
        check_name("names", self.names, MAX_ADAPTERS_BYTES, least_bytes=1)

    @property
    def each(self) -> tuple[str, ...]:
        """The names, one by one."""
        return tuple(self.names.split(" "))

    def encode(self, vocabulary_size: int) -> bytes:
        return self.names.encode()

    @classmethod
    def decode(cls, body: bytes, request: int, vocabulary_size: int) -> Adapters:
        return cls(decode_text(body))


@dataclass(frozen=True, slots=True)
class Open:
    """Edge to server: begin a request. Its prompt_tokens ids follow in Prompt messages.

    The floats travel as 64-bit numbers, because the output is a function of their exact values.
    top_k = 0 is no limit; seed is 64 bits. max_nodes is the most that the edge will ever draft in
    a tree; with 0 it never gets the turn, and the server decodes by itself. The last output_tokens
    of the prompt are the beginning of the answer: what counts the answer's tokens counts them.
    logprobs is 0 for none, or 1 + n: each token's own, and those of the n likeliest.
    """

    TYPE: ClassVar[int] = 3
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<QdddIIIIBBB")
    LIMITS: ClassVar[Limits] = {
        "request": (1, U16_MAX),
        "seed": (0, U64_MAX),
        "temperature": (0, 100),
        "top_p": (0, 1),
        "min_p": (0, 1),
        "top_k": (0, U32_MAX),
        "max_tokens": (1, U32_MAX),
        "prompt_tokens": (1, U32_MAX),
        "max_nodes": (0, MAX_NODES),
        "logprobs": (0, 1 + MAX_TOP_LOGPROBS),
    }

    request: int
    seed: int
    temperature: float
    top_p: float
    min_p: float
    top_k: int
    max_tokens: int
    prompt_tokens: int
    stop_ids: tuple[int, ...]
    max_nodes: int = MAX_NODES
    output_tokens: int = 0
    logprobs: int = 0

    def __post_init__(self) -> None:
        check_fields(self, self.LIMITS)
        if self.top_p == 0:
            raise ValueError("top_p is 0: expected more than 0, up to 1")
        check("number of stop_ids", len(self.stop_ids), 0, MAX_STOP_IDS)
        check("output_tokens", self.output_tokens, 0, self.prompt_tokens - 1)

    def encode(self, vocabulary_size: int) -> bytes:
        sampling = (self.seed, self.temperature, self.top_p, self.min_p, self.top_k)
        counts = (self.max_tokens, self.prompt_tokens, self.output_tokens)
        wanted = (self.logprobs, self.max_nodes, len(self.stop_ids))
        head = self.LAYOUT.pack(*sampling, *counts, *wanted)
        return head + pack_tokens(self.stop_ids, vocabulary_size)

    @classmethod
    def decode(cls, body: bytes, request: int, vocabulary_size: int) -> Open:
        head = unpack_head(cls.LAYOUT, body)
        seed, temperature, top_p, min_p, top_k, *counts, logprobs, max_nodes, count = head
        max_tokens, prompt_tokens, output_tokens = counts
        check_length(body, cls.LAYOUT.size + packed_bytes(count, vocabulary_size))
        stop_ids = unpack_tokens(body[cls.LAYOUT.size :], count, vocabulary_size)
        sampling = (seed, temperature, top_p, min_p, top_k)
        due = (max_tokens, prompt_tokens, stop_ids)
        return cls(request, *sampling, *due, max_nodes, output_tokens, logprobs)


@dataclass(frozen=True, slots=True)
class Rule:
    """Edge to server, after Open where the logits are to be changed before a token is drawn.

    In this order: bias_values [i] is added to the logit of token bias_ids [i], which ascend; the
    logit of a token of the text is divided by repetition_penalty, or multiplied by it if it is
    negative; from that of a token that stands c times in the answer so far, c times
    frequency_penalty and once presence_penalty are subtracted.
    """

    TYPE: ClassVar[int] = 16
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<dddH")
    LIMITS: ClassVar[Limits] = {
        "request": (1, U16_MAX),
        "frequency_penalty": (-MAX_PENALTY, MAX_PENALTY),
        "presence_penalty": (-MAX_PENALTY, MAX_PENALTY),
        "repetition_penalty": (LEAST_REPETITION, MOST_REPETITION),
    }

    request: int
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    bias_ids: tuple[int, ...] = ()
    bias_values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, self.LIMITS)
        check("number of bias_ids", len(self.bias_ids), 0, MAX_BIASES)
        check("number of bias_values", len(self.bias_values), *[len(self.bias_ids)] * 2)
        if any(map(ge, self.bias_ids, self.bias_ids[1:])):
            raise ValueError("the ids of biases must ascend")
        for value in self.bias_values:
            check("bias", value, -MAX_BIAS, MAX_BIAS)
        # equal meanings have equal bytes
        if 0 in self.bias_values:
            raise ValueError("a bias of 0 changes nothing: leave it out")
        if not self.bias_ids and not self.counts_tokens:
            raise ValueError("this Rule changes nothing: leave it out")

    @property
    def counts_tokens(self) -> bool:
        """Whether the logits depend on which tokens the text has."""
        return bool(self.frequency_penalty or self.presence_penalty) or self.repetition_penalty != 1

    def encode(self, vocabulary_size: int) -> bytes:
        penalties = (self.frequency_penalty, self.presence_penalty, self.repetition_penalty)
        count = len(self.bias_ids)
        head = self.LAYOUT.pack(*penalties, count) + pack_tokens(self.bias_ids, vocabulary_size)
        return head + struct.pack(f"<{count}d", *self.bias_values)

    @classmethod
    def decode(cls, body: bytes, request: int, vocabulary_size: int) -> Rule:
        frequency, presence, repetition, count = unpack_head(cls.LAYOUT, body)
        values_at = cls.LAYOUT.size + packed_bytes(count, vocabulary_size)
        check_length(body, values_at + 8 * count)
        ids = unpack_tokens(body[cls.LAYOUT.size : values_at], count, vocabulary_size)
        values = struct.unpack(f"<{count}d", body[values_at:])
        return cls(request, frequency, presence, repetition, ids, values)


@dataclass(frozen=True, slots=True)
class Constraint:
    """Edge to server, after Open where only some answers are allowed: see `ConstraintKind`.

    A token that no allowed answer goes on with is never drawn, and the answer ends with a stop id
    where an allowed one is whole; one of TOKENS with its last token, and not with a stop id before.
    """

    TYPE: ClassVar[int] = 17
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<B")

    request: int
    kind: ConstraintKind
    text: str

    def __post_init__(self) -> None:
        check("request", self.request, 1, U16_MAX)
        check("bytes of text", len(self.text.encode()), 1, MAX_CONSTRAINT_BYTES)

    def encode(self, vocabulary_size: int) -> bytes:
        return self.LAYOUT.pack(self.kind) + self.text.encode()

    @classmethod
    def decode(cls, body: bytes, request: int, vocabulary_size: int) -> Constraint:
        (kind,) = unpack_head(cls.LAYOUT, body)
        check("bytes of text", len(body) - cls.LAYOUT.size, 1, MAX_CONSTRAINT_BYTES)
        return cls(request, ConstraintKind(kind), decode_utf8(body[cls.LAYOUT.size :]))


@dataclass(frozen=True, slots=True)
class Adapter:
    """Edge to server, after Open: the model answers with this adapter of its own."""

    TYPE: ClassVar[int] = 20

    request: int
    name: str

    def __post_init__(self) -> None:
        check("request", self.request, 1, U16_MAX)
        check_name("name", self.name, MAX_ADAPTER_BYTES, least_bytes=1)

    def encode(self, vocabulary_size: int) -> bytes:
        return self.name.encode()

    @classmethod
    def decode(cls, body: bytes, request: int, vocabulary_size: int) -> Adapter:
        return cls(request, decode_text(body))


@dataclass(frozen=True, slots=True)
class Prompt:
    """Edge to server: the next ids of the prompt, at least one."""

    TYPE: ClassVar[int] = 4
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<H")

    request: int
    tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        check("request", self.request, 1, U16_MAX)
        check("number of tokens", len(self.tokens), 1, U16_MAX)

    def encode(self, vocabulary_size: int) -> bytes:
        return self.LAYOUT.pack(len(self.tokens)) + pack_tokens(self.tokens, vocabulary_size)

    @classmethod
    def decode(cls, body: bytes, request: int, vocabulary_size: int) -> Prompt:
        (count,) = unpack_head(cls.LAYOUT, body)
        check_length(body, cls.LAYOUT.size + packed_bytes(count, vocabulary_size))
        return cls(request, unpack_tokens(body[cls.LAYOUT.size :], count, vocabulary_size))


@dataclass(slots=True)
class Draft:
    """Edge to server: a tree of drafted tokens to verify.

    Node 0, the root, is the last token of the request's text and is not sent. Node i has token
    tokens[i-1] and parent parents[i-1] < i; siblings differ. base counts the tokens of prompt and
    output so far, the root included. The round is that of the last Verdict plus one. draft_ms is
    the time from receiving the turn (Verdict or Credit) to sending this: see clamp_ms.
    """

    TYPE: ClassVar[int] = 5
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIHB")
    LIMITS: ClassVar[Limits] = {
        "request": (1, U16_MAX),
        "round": (1, U32_MAX),
        "base": (1, U32_MAX),
        "draft_ms": (0, U16_MAX),
    }

    request: int
    round: int
    base: int
    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    draft_ms: int = 0

    def __post_init__(self) -> None:
        nodes = len(self.tokens)
        # Spelled out, as in Verdict and Credit: thousands of these come and go a second.
        if not (
            1 <= self.request <= U16_MAX
            and 1 <= self.round <= U32_MAX
            and 1 <= self.base <= U32_MAX
            and 0 <= self.draft_ms <= U16_MAX
        ):
            check_fields(self, self.LIMITS)
        if nodes > MAX_NODES:
            check("number of nodes", nodes, 0, MAX_NODES)
        _check_tree(self.tokens, self.parents)

    def encode(self, vocabulary_size: int) -> bytes:
        head = self.LAYOUT.pack(self.round, self.base, self.draft_ms, len(self.tokens))
        return head + pack_tokens(self.tokens, vocabulary_size) + bytes(self.parents)

    @classmethod
    def decode(cls, body: bytes, request: int, vocabulary_size: int) -> Draft:
        round, base, draft_ms, nodes = unpack_head(cls.LAYOUT, body)
        parents_at = cls.LAYOUT.size + packed_bytes(nodes, vocabulary_size)
        check_length(body, parents_at + nodes)
        tokens = unpack_tokens(body[cls.LAYOUT.size : parents_at], nodes, vocabulary_size)
        return cls(request, round, base, tokens, tuple(body[parents_at:]), draft_ms)


@dataclass(slots=True)
class Offer:
    """Edge to server, unasked: a tree that a later step may verify, or nobody ever looks at.

    As in a Draft, but its root is the last token that the edge knew when it made it, the base-th:
    the text may be longer by the time that it comes. It has one node at least.
    """

    TYPE: ClassVar[int] = 22
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IB")
    LIMITS: ClassVar[Limits] = {
        "request": (1, U16_MAX),
        "base": (1, U32_MAX),
    }

    request: int
    base: int
    tokens: tuple[int, ...]
    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        check_fields(self, self.LIMITS)
        check("number of nodes", len(self.tokens), 1, MAX_NODES)
        _check_tree(self.tokens, self.parents)

    def encode(self, vocabulary_size: int) -> bytes:
        head = self.LAYOUT.pack(self.base, len(self.tokens))
        return head + pack_tokens(self.tokens, vocabulary_size) + bytes(self.parents)

    @classmethod
    def decode(cls, body: bytes, request: int, vocabulary_size: int) -> Offer:
        base, nodes = unpack_head(cls.LAYOUT, body)
        parents_at = cls.LAYOUT.size + packed_bytes(nodes, vocabulary_size)
        check_length(body, parents_at + nodes)
        tokens = unpack_tokens(body[cls.LAYOUT.size : parents_at], nodes, vocabulary_size)
        return cls(request, base, tokens, tuple(body[parents_at:]))


def _check_tree(tokens: tuple[int, ...], parents: tuple[int, ...]) -> None:
    nodes = len(tokens)
    if len(parents) != nodes:
        raise ValueError(f"{nodes} nodes have {len(parents)} parents: expected one each")
    if any(map(gt, parents, range(nodes))) or (nodes and min(parents) < 0):
        raise ValueError("a node's parent must be a node before it")
    if len(set(zip(parents, tokens))) != nodes:  # noqa: B905 - as many of both
        raise ValueError("two children of one node have the same token")


@dataclass(frozen=True, slots=True)
class Reading:
    """Server to edge, before Verdict 0: the first read_tokens of the prompt are in its KV cache.

    Of these, cached_tokens were there from an earlier request. Advice, as often as the server will.
    """

    TYPE: ClassVar[int] = 18
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<II")
    LIMITS: ClassVar[Limits] = {
        "request": (1, U16_MAX),
        "read_tokens": (0, U32_MAX),
    }

    request: int
    cached_tokens: int
    read_tokens: int

    def __post_init__(self) -> None:
        check_fields(self, self.LIMITS)
        check("cached_tokens", self.cached_tokens, 0, self.read_tokens)

    def encode(self, vocabulary_size: int) -> bytes:
        return self.LAYOUT.pack(self.cached_tokens, self.read_tokens)

    @classmethod
    def decode(cls, body: bytes, request: int, vocabulary_size: int) -> Reading:
        check_length(body, cls.LAYOUT.size)
        return cls(request, *cls.LAYOUT.unpack(body))


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Server to edge, right before each Verdict of an Open that asked: of the tokens it brings.

    logprobs: each token's log-probability, natural, by the model's own logits, before the Rule,
    the temperature and whatever else the token was drawn with. top_ids and top_logprobs: of the n
    likeliest tokens in its place, likeliest first; those of the first token, then the next one's.
    """

    TYPE: ClassVar[int] = 19
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<HH")

    request: int
    logprobs: tuple[float, ...]
    top_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]

    def __post_init__(self) -> None:
        tokens, listed = len(self.logprobs), len(self.top_ids)
        check("request", self.request, 1, U16_MAX)
        check("number of logprobs", tokens, 1, 1 + MAX_NODES)
        check("number of top_ids", listed, 0, tokens * MAX_TOP_LOGPROBS)
        check("number of top_logprobs", len(self.top_logprobs), listed, listed)
        if listed % tokens:
            raise ValueError(f"{listed} top_ids are not as many for each of {tokens} tokens")
        for value in (*self.logprobs, *self.top_logprobs):
            check("logprob", value, -math.inf, 0.0)

    def encode(self, vocabulary_size: int) -> bytes:
        tokens, listed = len(self.logprobs), len(self.top_ids)
        ids = pack_tokens(self.top_ids, vocabulary_size)
        values = (*self.logprobs, *self.top_logprobs)
        return self.LAYOUT.pack(tokens, listed) + ids + struct.pack(f"<{len(values)}f", *values)

    @classmethod
    def decode(cls, body: bytes, request: int, vocabulary_size: int) -> Logprobs:
        tokens, listed = unpack_head(cls.LAYOUT, body)
        values_at = cls.LAYOUT.size + packed_bytes(listed, vocabulary_size)
        check_length(body, values_at + 4 * (tokens + listed))
        ids = unpack_tokens(body[cls.LAYOUT.size : values_at], listed, vocabulary_size)
        values = struct.unpack(f"<{tokens + listed}f", body[values_at:])
        return cls(request, values[:tokens], ids, values[tokens:])


@dataclass(slots=True)
class Verdict:
    """Server to edge: the path to `node` is accepted, and token `bonus` follows it.

    Round 0 answers the prompt and round r the Draft r, or nothing where the server had the turn;
    without a draft node is 0. queue_ms is how long the draft waited, verify_ms how long its batch
    took: see clamp_ms. turn says who moves next; max_nodes bounds the next draft, and before
    free_ms, counted from the receipt, the server has no use for it. The step that it is for waits
    late_ms longer at most, which only costs time; NO_LIMIT_MS if it has nothing else to begin with.
    With turn SERVER max_nodes says how much of an Offer a step would take along; 0: none is of use.
    """

    TYPE: ClassVar[int] = 6
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IBIBHHBBHH")
    LIMITS: ClassVar[Limits] = {
        "request": (1, U16_MAX),
        "round": (0, U32_MAX),
        "node": (0, MAX_NODES),
        "bonus": (0, MAX_VOCABULARY - 1),
        "queue_ms": (0, U16_MAX),
        "verify_ms": (0, U16_MAX),
        "max_nodes": (0, MAX_NODES),
        "free_ms": (0, U16_MAX),
        "late_ms": (0, U16_MAX),
    }
    LIMITS_OF_NO_DRAFT: ClassVar[Limits] = {
        "free_ms": (0, 0),
        "late_ms": (0, 0),
    }

    request: int
    round: int
    node: int
    bonus: int
    finish: Finish
    queue_ms: int
    verify_ms: int
    turn: Turn = Turn.SERVER
    max_nodes: int = 0
    free_ms: int = 0
    late_ms: int = 0

    def __post_init__(self) -> None:
        if not (
            1 <= self.request <= U16_MAX
            and 0 <= self.round <= U32_MAX
            and 0 <= self.node <= MAX_NODES
            and 0 <= self.bonus < MAX_VOCABULARY
            and 0 <= self.queue_ms <= U16_MAX
            and 0 <= self.verify_ms <= U16_MAX
            and 0 <= self.max_nodes <= MAX_NODES
            and 0 <= self.free_ms <= U16_MAX
            and 0 <= self.late_ms <= U16_MAX
        ):
            check_fields(self, self.LIMITS)
        if not self.round:
            check("node", self.node, 0, 0)
        # Who does not draft is told nothing about drafting: equal meanings have equal bytes.
        if self.finish is not Finish.NONE:
            check("turn of a last Verdict", self.turn, Turn.SERVER, Turn.SERVER)
        if self.turn not in (Turn.EDGE, Turn.WAIT):
            if self.free_ms or self.late_ms:
                check_fields(self, self.LIMITS_OF_NO_DRAFT)
            if self.max_nodes and (self.turn is Turn.MORE or self.finish is not Finish.NONE):
                check("max_nodes", self.max_nodes, 0, 0)

    def encode(self, vocabulary_size: int) -> bytes:
        check_tokens((self.bonus,), vocabulary_size)
        place = (self.round, self.node, self.bonus, self.finish, self.queue_ms, self.verify_ms)
        return self.LAYOUT.pack(*place, self.turn, self.max_nodes, self.free_ms, self.late_ms)

    @classmethod
    def decode(cls, body: bytes, request: int, vocabulary_size: int) -> Verdict:
        check_length(body, cls.LAYOUT.size)
        head = cls.LAYOUT.unpack(body)
        round, node, bonus, finish, queue_ms, verify_ms, turn, *grant = head
        check_tokens((bonus,), vocabulary_size)
        place = (request, round, node, bonus, Finish(finish), queue_ms, verify_ms)
        return cls(*place, Turn(turn), *grant)


@dataclass(slots=True)
class Credit:
    """Server to edge, after a Verdict that said WAIT: now a draft may come, as in that Verdict."""

    TYPE: ClassVar[int] = 11
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<BHH")
    LIMITS: ClassVar[Limits] = {
        "request": (1, U16_MAX),
        "max_nodes": (0, MAX_NODES),
        "free_ms": (0, U16_MAX),
        "late_ms": (0, U16_MAX),
    }

    request: int
    max_nodes: int
    free_ms: int
    late_ms: int

    def __post_init__(self) -> None:
        if not (
            1 <= self.request <= U16_MAX
            and 0 <= self.max_nodes <= MAX_NODES
            and 0 <= self.free_ms <= U16_MAX
            and 0 <= self.late_ms <= U16_MAX
        ):
            check_fields(self, self.LIMITS)

    def encode(self, vocabulary_size: int) -> bytes:
        return self.LAYOUT.pack(self.max_nodes, self.free_ms, self.late_ms)

    @classmethod
    def decode(cls, body: bytes, request: int, vocabulary_size: int) -> Credit:
        check_length(body, cls.LAYOUT.size)
        return cls(request, *cls.LAYOUT.unpack(body))


@dataclass(frozen=True, slots=True)
class Close:
    """Edge to server: the request is over for me. Server to edge: seen, nothing more follows."""

    TYPE: ClassVar[int] = 7

    request: int

    def __post_init__(self) -> None:
        check("request", self.request, 1, U16_MAX)

    def encode(self, vocabulary_size: int) -> bytes:
        return b""

    @classmethod
    def decode(cls, body: bytes, request: int, vocabulary_size: int) -> Close:
        check_length(body, 0)
        return cls(request)


@dataclass(frozen=True, slots=True)
class Error:
    """Something failed. With a request: that request ends, and fatal is false. With request 0 and
    fatal: the connection ends. With request 0 and not fatal: a notice, such as DRAINING.

    An Error can always be sent: on the wire its sentence is cut to 400 bytes and its control
    characters are blanks. Its layout stays the same in every version.
    """

    TYPE: ClassVar[int] = 8
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<BB")

    request: int
    code: ErrorCode
    fatal: bool
    sentence: str

    def __post_init__(self) -> None:
        check("request", self.request, 0, U16_MAX)

    def encode(self, vocabulary_size: int) -> bytes:
        text = CONTROL_CHARACTERS.sub(" ", self.sentence).encode("utf-8", "replace")
        whole_characters = text[:MAX_SENTENCE_BYTES].decode("utf-8", "ignore").encode()
        return self.LAYOUT.pack(self.code, self.fatal) + whole_characters

    @classmethod
    def decode(cls, body: bytes, request: int, vocabulary_size: int) -> Error:
        code, fatal = unpack_head(cls.LAYOUT, body)
        check("fatal", fatal, 0, 1)
        check("bytes of sentence", len(body) - cls.LAYOUT.size, 0, MAX_SENTENCE_BYTES)
        return cls(request, ErrorCode(code), bool(fatal), decode_text(body[cls.LAYOUT.size :]))


WithNonce = TypeVar("WithNonce", bound="_Nonce")


@dataclass(frozen=True, slots=True)
class _Nonce:
    """Of a Ping, and of the Pong that answers it."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<Q")
    request: ClassVar[int] = 0

    nonce: int

    def __post_init__(self) -> None:
        check("nonce", self.nonce, 0, U64_MAX)

    def encode(self, vocabulary_size: int) -> bytes:
        return self.LAYOUT.pack(self.nonce)

    @classmethod
    def decode(cls: type[WithNonce], body: bytes, request: int, vocabulary_size: int) -> WithNonce:
        check_length(body, cls.LAYOUT.size)
        return cls(*cls.LAYOUT.unpack(body))


@dataclass(frozen=True, slots=True)
class Ping(_Nonce):
    """Either way: are you there? The connection answers by itself with a Pong of this nonce."""

    TYPE: ClassVar[int] = 9


@dataclass(frozen=True, slots=True)
class Pong(_Nonce):
    """The answer to a Ping, with its nonce."""

    TYPE: ClassVar[int] = 10


Greeting = Hello | Challenge | Proof | Redirect | Welcome | Template | Adapters
Asking = Open | Rule | Constraint | Adapter | Prompt
Answering = Reading | Logprobs | Verdict | Credit
Message = Greeting | Asking | Draft | Offer | Answering | Close | Error | Ping | Pong

MESSAGE_TYPES: Mapping[int, type[Message]] = {kind.TYPE: kind for kind in get_args(Message)}


def _check_version(field: bytes) -> None:
    # Before anything else: the rest of another version's body may have another layout.
    (version,) = unpack_head(VERSION_LAYOUT, field)
    if version not in (VERSION, OFFERS_VERSION):
        known = f"versions {VERSION} and {OFFERS_VERSION}"
        sentence = f"the peer speaks STF version {version}, this side {known}"
        raise ProtocolError(ErrorCode.VERSION, sentence)
