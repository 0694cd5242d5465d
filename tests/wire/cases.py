"""Messages, conversations and connected ends that the protocol's tests share."""

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from runtime.wire.connection import Connection, Role
from runtime.wire.messages import (
    NO_TEMPLATE,
    Adapter,
    Adapters,
    Challenge,
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
    Message,
    Offer,
    Open,
    Ping,
    Pong,
    Prompt,
    Proof,
    Reading,
    Redirect,
    Rule,
    Template,
    Turn,
    Verdict,
    Welcome,
    template_hash,
)

VOCABULARY = 49_152
MEANING, NONCE = bytes(range(16)), bytes(range(32))
TEMPLATE = Template("{% for m in messages %}[{{ m.role }}]\n\t{{ m.content }}§{% endfor %}")
TEMPLATE_HASH = template_hash(TEMPLATE.source)
HELLO = Hello(1, VOCABULARY, MEANING, "draft-135m", "alice", NONCE, TEMPLATE_HASH)
BARE_HELLO = replace(HELLO, template_hash=NO_TEMPLATE, version=2)
CHALLENGE = Challenge(bytes(range(32, 64)), bytes(range(64, 96)))
PROOF = Proof(bytes(range(96, 128)))
REDIRECT = Redirect(8400, "replica-2.example")
WELCOME = Welcome(1, VOCABULARY, MEANING, 64, 8192, 4, "target-8b", TEMPLATE_HASH)
OFFERS_WELCOME = replace(WELCOME, version=2)
OFFER = Offer(2, 5, (7, 8, 7, 49_151), (0, 1, 1, 2))


RULE = Rule(1, -0.5, 2.0, 1.25, (7, 49_151), (-100.0, 2.5))
CONSTRAINT = Constraint(1, ConstraintKind.REGEX, "(yes|no)\n§")
ADAPTER, ADAPTERS = Adapter(1, "sql"), Adapters("sql à-bientôt")


def opening(request: int, prompt_tokens: int = 3, seed: int = 7) -> Open:
    """An Open with ordinary parameters."""
    return Open(request, seed, 0.8, 0.95, 0.05, 40, 256, prompt_tokens, (2, 49_151))


def verdict(
    request: int,
    round: int,
    node: int = 0,
    finish: Finish = Finish.NONE,
    turn: Turn = Turn.EDGE,
    max_nodes: int = 64,
) -> Verdict:
    """A Verdict whose bonus is token 11; unless it is the last, it asks for a draft."""
    place, times = (request, round, node, 11, finish), (3, 40)
    if finish or turn in (Turn.SERVER, Turn.MORE):
        return Verdict(*place, *times, turn if not finish else Turn.SERVER)
    return Verdict(*place, *times, turn, max_nodes, free_ms=12, late_ms=3)


def logprobs(request: int, tokens: int = 1, listed: int = 2) -> Logprobs:
    """Logprobs of so many tokens, with so many likeliest ones each."""
    ids = tuple(range(listed)) * tokens
    return Logprobs(request, (-1.5,) * tokens, ids, (-0.25,) * len(ids))


def draft(request: int, round: int, nodes: int = 4) -> Draft:
    """A Draft that is a chain."""
    return Draft(request, round, 4 + round, tuple(range(100, 100 + nodes)), tuple(range(nodes)))


def connected(welcome: Welcome = WELCOME) -> tuple[Connection, Connection]:
    """An edge and a server that have shaken hands."""
    edge, server = Connection(Role.EDGE), Connection(Role.SERVER)
    server.receive(edge.send(replace(HELLO, version=welcome.version)))
    edge.receive(server.send(welcome))
    return edge, server


# An edge without a template. Two requests one after another, two side by side, a cancel, an error,
# a notice and pings; the server goes on by itself, is made an offer, and gives credit later. The
# second request has all that one may have: a rule, a constraint, an adapter, log-probabilities.
CONVERSATION: list[tuple[Role, Message]] = [
    (Role.EDGE, BARE_HELLO),
    (Role.SERVER, OFFERS_WELCOME),
    (Role.SERVER, TEMPLATE),
    (Role.SERVER, ADAPTERS),
    (Role.EDGE, opening(1, prompt_tokens=900)),
    (Role.EDGE, Prompt(1, tuple(range(0, 45_000, 90)))),
    (Role.EDGE, Prompt(1, tuple(range(48_000, 48_400)))),
    (Role.EDGE, Ping(2**64 - 1)),
    (Role.SERVER, verdict(1, 0)),
    (Role.EDGE, Draft(1, 1, 901, (5, 6, 5, 49_151), (0, 0, 1, 3))),
    (Role.EDGE, replace(opening(2), output_tokens=1, logprobs=3)),
    (Role.SERVER, verdict(1, 1, node=4)),
    (Role.EDGE, replace(RULE, request=2)),
    (Role.EDGE, replace(CONSTRAINT, request=2)),
    (Role.EDGE, replace(ADAPTER, request=2)),
    (Role.EDGE, Prompt(2, (1, 2, 3))),
    (Role.EDGE, draft(1, 2, nodes=64)),
    (Role.SERVER, Ping(0)),
    (Role.SERVER, Reading(2, 1, 2)),
    (Role.SERVER, logprobs(2)),
    (Role.SERVER, verdict(2, 0)),
    (Role.SERVER, verdict(1, 2, node=63, finish=Finish.STOP)),
    (Role.EDGE, Draft(2, 1, 4, (), ())),
    (Role.EDGE, opening(1)),
    (Role.SERVER, logprobs(2)),
    (Role.SERVER, verdict(2, 1, turn=Turn.SERVER)),
    (Role.EDGE, OFFER),
    (Role.SERVER, logprobs(2)),
    (Role.SERVER, verdict(2, 2, turn=Turn.MORE)),
    (Role.SERVER, logprobs(2)),
    (Role.SERVER, verdict(2, 3, turn=Turn.WAIT)),
    (Role.SERVER, Credit(2, max_nodes=2, free_ms=0, late_ms=0)),
    (Role.EDGE, draft(2, 4, nodes=2)),
    (Role.SERVER, logprobs(2, tokens=3)),
    (Role.SERVER, verdict(2, 4, node=2)),
    (Role.EDGE, Close(2)),
    (Role.SERVER, Error(1, ErrorCode.BUSY, False, "no room; try again: à bientôt")),
    (Role.SERVER, Error(0, ErrorCode.DRAINING, False, "the server stops at 18:00")),
    (Role.EDGE, Error(0, ErrorCode.INTERNAL, True, "the draft model failed")),
]

requests = st.integers(1, 2**16 - 1)
u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
# At most 63 characters of at most 4 bytes each.
names = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=63)
short_names = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=16)


def exactly(count: int) -> st.SearchStrategy[bytes]:
    """Bytes of this length."""
    return st.binary(min_size=count, max_size=count)


def token_ids(vocabulary: int, **sizes: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Tuples of token ids, the last id of the vocabulary among them more often than by chance."""
    token = st.integers(0, vocabulary - 1) | st.just(vocabulary - 1)
    return st.lists(token, **sizes).map(tuple)


@st.composite
def drafts(draw: st.DrawFn, vocabulary: int) -> Draft:
    """Any tree of up to 255 nodes; a repeated sibling is left out."""
    nodes = draw(
        st.lists(st.tuples(st.integers(0, 254), st.integers(0, vocabulary - 1)), max_size=255)
    )
    tree: dict[tuple[int, int], None] = {}
    for number, token in nodes:
        tree[(number % (len(tree) + 1), token)] = None
    base, round = draw(st.integers(1, 2**32 - 1)), draw(st.integers(1, 2**32 - 1))
    tokens, parents = tuple(token for _, token in tree), tuple(parent for parent, _ in tree)
    return Draft(draw(requests), round, base, tokens, parents, draw(u16))


def offers(vocabulary: int) -> st.SearchStrategy[Offer]:
    """Any Offer."""
    some = drafts(vocabulary).filter(lambda draft: len(draft.tokens) > 0)
    return some.map(lambda made: Offer(made.request, made.base, made.tokens, made.parents))


def verdicts(vocabulary: int) -> st.SearchStrategy[Verdict]:
    """Any Verdict; that of round 0 names node 0."""

    def build(round: int, node: int, *rest: int) -> Verdict:
        request, bonus, finish, queue_ms, verify_ms, turn, *grant = rest
        place = (request, round, node if round else 0, bonus, Finish(finish))
        if finish:
            return Verdict(*place, queue_ms, verify_ms)
        if turn is Turn.SERVER:
            return Verdict(*place, queue_ms, verify_ms, turn, grant[0])
        if turn is Turn.MORE:
            return Verdict(*place, queue_ms, verify_ms, Turn.MORE)
        return Verdict(*place, queue_ms, verify_ms, Turn(turn), *grant)

    outcome = (requests, st.integers(0, vocabulary - 1), st.sampled_from(Finish), u16, u16)
    grant = (st.sampled_from(Turn), st.integers(0, 255), u16, u16)
    return st.builds(build, u32, st.integers(0, 255), *outcome, *grant)


def openings(vocabulary: int) -> st.SearchStrategy[Open]:
    """Any Open."""

    def build(prompt_tokens: int, before: int, logprobs: int, *rest: Any) -> Open:
        *head, stop_ids, max_nodes = rest
        counts = (prompt_tokens, stop_ids, max_nodes, before % prompt_tokens, logprobs)
        return Open(*head, *counts)

    positive = st.integers(1, 2**32 - 1)
    floats = (st.floats(0, 100), st.floats(0, 1, exclude_min=True), st.floats(0, 1))
    stop_ids = token_ids(vocabulary, max_size=255)
    head = (requests, u64, *floats, u32, positive)
    return st.builds(build, positive, u32, st.integers(0, 21), *head, stop_ids, st.integers(0, 255))


@st.composite
def rules(draw: st.DrawFn, vocabulary: int) -> Rule:
    """Any Rule."""
    penalty = st.floats(-2, 2)
    ids = sorted({*draw(token_ids(vocabulary, max_size=30))})
    value = st.floats(-100, 100).filter(bool)
    values = draw(st.lists(value, min_size=len(ids), max_size=len(ids)))
    least = 1e-3 if not ids else -2  # one without biases has a penalty
    frequency = draw(st.floats(least, 2))
    numbers = (frequency, draw(penalty), draw(st.floats(0.01, 100)))
    return Rule(draw(requests), *numbers, tuple(ids), tuple(values))


@st.composite
def any_logprobs(draw: st.DrawFn, vocabulary: int) -> Logprobs:
    """Any Logprobs, of up to 8 tokens."""
    tokens, each = draw(st.integers(1, 8)), draw(st.integers(0, 20))
    count = tokens * each
    ids = draw(token_ids(vocabulary, min_size=count, max_size=count))

    def values(size: int) -> tuple[float, ...]:
        value = st.floats(max_value=0, width=32)
        return tuple(draw(st.lists(value, min_size=size, max_size=size)))

    return Logprobs(draw(requests), values(tokens), ids, values(count))


def messages(vocabulary: int) -> st.SearchStrategy[Message]:
    """Any valid message for a vocabulary."""
    sizes = st.integers(2, 2**24)
    errors = st.builds(
        Error, st.just(0) | requests, st.sampled_from(ErrorCode), st.booleans(), names
    )
    return st.one_of(
        st.builds(
            Hello,
            st.sampled_from((1, 2)),
            sizes,
            exactly(16),
            names,
            short_names,
            exactly(32),
            exactly(16),
        ),
        st.builds(Challenge, exactly(32), exactly(32)),
        st.builds(Proof, exactly(32)),
        st.builds(Redirect, requests, short_names.filter(bool)),
        st.builds(
            Welcome,
            st.sampled_from((1, 2)),
            sizes,
            exactly(16),
            st.integers(0, 255),
            st.integers(1, 2**32 - 1),
            requests,
            names,
            exactly(16),
        ),
        st.builds(Template, st.text(st.characters(exclude_categories=("Cs",)), max_size=300)),
        openings(vocabulary),
        rules(vocabulary),
        st.builds(
            Constraint,
            requests,
            st.sampled_from(ConstraintKind),
            st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=300),
        ),
        st.builds(Adapter, requests, short_names.filter(bool)),
        st.builds(Adapters, names.filter(bool)),
        st.builds(Prompt, requests, token_ids(vocabulary, min_size=1, max_size=200)),
        drafts(vocabulary),
        offers(vocabulary),
        st.builds(lambda request, *read: Reading(request, *sorted(read)), requests, u32, u32),
        any_logprobs(vocabulary),
        verdicts(vocabulary),
        st.builds(Credit, requests, st.integers(0, 255), u16, u16),
        st.builds(Close, requests),
        errors,
        st.builds(Ping, u64),
        st.builds(Pong, u64),
    )
