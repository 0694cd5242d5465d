"""Two ends in memory: who may send what when, however the bytes are cut and the frames cross."""

import random
from dataclasses import replace

import pytest

from runtime.wire.connection import Connection, ConnectionState, RequestState, Role
from runtime.wire.frames import HEADER, decode_body, decode_header, encode_frame
from runtime.wire.messages import (
    Adapter,
    Adapters,
    Challenge,
    Close,
    Constraint,
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
    Proof,
    ProtocolError,
    Reading,
    Redirect,
    Rule,
    Template,
    Turn,
    Verdict,
    Welcome,
    template_hash,
)
from runtime.wire.states import CONNECTION_TABLE, REQUEST_TABLE, Move
from tests.wire.cases import (
    ADAPTER,
    ADAPTERS,
    BARE_HELLO,
    CHALLENGE,
    CONSTRAINT,
    CONVERSATION,
    HELLO,
    OFFER,
    OFFERS_WELCOME,
    PROOF,
    REDIRECT,
    RULE,
    TEMPLATE,
    VOCABULARY,
    WELCOME,
    connected,
    draft,
    logprobs,
    opening,
    verdict,
)

EDGE, SERVER = Role.EDGE, Role.SERVER
FATAL = Error(0, ErrorCode.INTERNAL, True, "out of memory")
NOTICE = Error(0, ErrorCode.DRAINING, False, "stopping soon")
REQUEST_ERROR = Error(1, ErrorCode.BUSY, False, "no room")
CREDIT = Credit(1, max_nodes=8, free_ms=5, late_ms=0)


def frames(data, vocabulary=VOCABULARY):
    """The messages of whole frames, whatever the state of any connection."""
    found = []
    while data:
        header = decode_header(data)
        found.append(decode_body(header, data[HEADER.size : header.length], vocabulary))
        data = data[header.length :]
    return found


def settle(sender, receiver, data):
    """Carry bytes across, and the answers to them, until both ends are quiet."""
    delivered = receiver.receive(data)
    if answer := receiver.data_to_send():
        settle(receiver, sender, answer)
    return delivered


def inject(receiver, message):
    """Give a connection a frame that its peer would not send."""
    seq = receiver.frames_received & 0xFFFF
    return receiver.receive(encode_frame(message, seq, VOCABULARY))


def drafting(nodes=0):
    """Ends whose request 1 drafts round 1, or, given nodes, owes the verdict on that many."""
    edge, server = connected()
    server.receive(edge.send(opening(1)) + edge.send(Prompt(1, (1, 2, 3))))
    edge.receive(server.send(verdict(1, 0)))
    if nodes:
        server.receive(edge.send(draft(1, 1, nodes)))
    return edge, server


# A conversation, and every way to cut it.


def logs():
    """What each end of the conversation did: messages sent and bytes received, in order."""
    ends = {EDGE: Connection(EDGE), SERVER: Connection(SERVER)}
    log = {EDGE: [], SERVER: []}

    def carry(role, data):
        log[role].append(data)
        ends[role].receive(data)
        if answer := ends[role].data_to_send():
            carry(role.peer, answer)

    for role, message in CONVERSATION:
        log[role].append(message)
        carry(role.peer, ends[role].send(message))
    return log


LOGS = logs()


def expected_at(role):
    """What an end is delivered: all that the other says, but pings come back as pongs."""
    heard = []
    for sender, message in CONVERSATION:
        if isinstance(message, Ping) and sender is role:
            heard.append(Pong(message.nonce))
        elif not isinstance(message, Ping) and sender is not role:
            heard.append(message)
    return heard


def replay(role, cut):
    """Deliver a log again; cut(step, data) gives the pieces of the bytes of each step."""
    end, heard = Connection(role), []
    for step, event in enumerate(LOGS[role]):
        if isinstance(event, bytes):
            for piece in cut(step, event):
                heard += end.receive(piece)
                assert end.buffered_bytes < len(event)
        else:
            end.send(event)
    assert end.state is ConnectionState.CLOSED
    assert (end.hello, end.welcome) == (BARE_HELLO, OFFERS_WELCOME)
    return heard


@pytest.mark.parametrize("role", Role)
def test_a_conversation_arrives_as_it_was_said(role):
    assert replay(role, lambda step, data: [data]) == expected_at(role)


@pytest.mark.parametrize("role", Role)
def test_byte_by_byte(role):
    assert replay(role, lambda step, data: [bytes([byte]) for byte in data]) == expected_at(role)


@pytest.mark.parametrize("role", Role)
def test_every_split_point(role):
    heard = expected_at(role)
    received = [(step, event) for step, event in enumerate(LOGS[role]) if isinstance(event, bytes)]
    for cut, at in [(step, at) for step, data in received for at in range(len(data))]:

        def pieces(step, data, cut=cut, at=at):
            return [data[:at], data[at:]] if step == cut else [data]

        assert replay(role, pieces) == heard


def test_frames_of_one_chunk_are_all_delivered_and_feed_gives_them_one_by_one():
    edge, server = connected()
    said = [opening(1), Prompt(1, (1,)), Prompt(1, (2,)), opening(2), Close(1)]
    data = b"".join(map(edge.send, said))
    server.feed(data + b"\x10")
    heard = []
    while (message := server.next_message()) is not None:
        heard.append((message, server.request_state(1)))
    states = [RequestState.PROMPTING] * 4 + [RequestState.UNUSED]
    assert heard == list(zip(said, states, strict=True))
    assert server.buffered_bytes == 1


# The tables. The rules are written down here once more, so that a slip in either shows.

CONNECTION_RULES = {
    (ConnectionState.HELLO_DUE, EDGE): {Hello, Error},
    (ConnectionState.HELLO_DUE, SERVER): {Error},
    (ConnectionState.WELCOME_DUE, EDGE): {Error},
    (ConnectionState.WELCOME_DUE, SERVER): {Welcome, Challenge, Redirect, Error},
    (ConnectionState.TEMPLATE_DUE, EDGE): {Error},
    (ConnectionState.TEMPLATE_DUE, SERVER): {Template, Error},
    (ConnectionState.PROOF_DUE, EDGE): {Proof, Error},
    (ConnectionState.PROOF_DUE, SERVER): {Error},
    (ConnectionState.ADMISSION_DUE, EDGE): {Error},
    (ConnectionState.ADMISSION_DUE, SERVER): {Welcome, Redirect, Error},
    (ConnectionState.OPEN, EDGE): {
        *(Open, Rule, Constraint, Adapter, Prompt, Draft, Offer, Close, Error, Ping, Pong)
    },
    (ConnectionState.OPEN, SERVER): {
        Adapters,
        Reading,
        Logprobs,
        Verdict,
        Credit,
        Close,
        Error,
        Ping,
        Pong,
    },
    (ConnectionState.CLOSED, EDGE): set(),
    (ConnectionState.CLOSED, SERVER): set(),
}
REQUEST_RULES = {
    (RequestState.UNUSED, EDGE): {Open},
    (RequestState.PROMPTING, EDGE): {Rule, Constraint, Adapter, Prompt, Close},
    (RequestState.PROMPTING, SERVER): {Error},
    (RequestState.VERIFYING, EDGE): {Offer, Close},
    (RequestState.VERIFYING, SERVER): {Reading, Logprobs, Verdict, Error},
    (RequestState.DRAFTING, EDGE): {Draft, Offer, Close},
    (RequestState.DRAFTING, SERVER): {Error},
    (RequestState.WAITING, EDGE): {Offer, Close},
    (RequestState.WAITING, SERVER): {Credit, Error},
    (RequestState.FINISHED, EDGE): {Rule, Constraint, Adapter, Prompt, Draft, Offer, Close},
    (RequestState.CLOSING, SERVER): {Reading, Logprobs, Verdict, Credit, Error, Close},
}
SAMPLES = [
    HELLO, CHALLENGE, PROOF, REDIRECT, WELCOME, TEMPLATE, opening(1), Prompt(1, (1,)),
    draft(1, 1), verdict(1, 0), CREDIT, Close(1), FATAL, Ping(5), Pong(6), RULE, CONSTRAINT,
    ADAPTER, ADAPTERS, Reading(1, 0, 2), logprobs(1), OFFER,
]  # fmt: skip
REQUEST_SAMPLES = [
    opening(1), RULE, CONSTRAINT, ADAPTER, Prompt(1, (1,)), draft(1, 1), Reading(1, 0, 2),
    logprobs(1), verdict(1, 0), CREDIT, Close(1), REQUEST_ERROR,
]  # fmt: skip


def test_the_tables_say_what_the_rules_say():
    def flat(rules):
        return {
            Move(place, sender, kind) for (place, sender), kinds in rules.items() for kind in kinds
        }

    assert set(CONNECTION_TABLE) == flat(CONNECTION_RULES)
    assert set(REQUEST_TABLE) == flat(REQUEST_RULES)


def ends_in_state(state):
    edge, server = Connection(EDGE), Connection(SERVER)
    if state is not ConnectionState.HELLO_DUE:
        server.receive(edge.send(BARE_HELLO if state is ConnectionState.TEMPLATE_DUE else HELLO))
    if state in (ConnectionState.PROOF_DUE, ConnectionState.ADMISSION_DUE):
        edge.receive(server.send(CHALLENGE))
    if state is ConnectionState.ADMISSION_DUE:
        server.receive(edge.send(PROOF))
    if state in (ConnectionState.OPEN, ConnectionState.CLOSED, ConnectionState.TEMPLATE_DUE):
        edge.receive(server.send(WELCOME))
    if state is ConnectionState.OPEN:
        # So that a Pong either way has a Ping to answer; the answer itself is held back.
        edge.send(Ping(6))
        server.send(Ping(6))
    if state is ConnectionState.CLOSED:
        edge.receive(server.send(FATAL))
    assert edge.state is server.state is state or state is ConnectionState.CLOSED
    return {EDGE: edge, SERVER: server}


@pytest.mark.parametrize("message", SAMPLES, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("sender", Role)
@pytest.mark.parametrize(
    "state", [state for state in ConnectionState if state is not ConnectionState.CLOSED]
)
def test_every_state_of_a_connection_and_message(state, sender, message):
    receiver = ends_in_state(state)[sender.peer]
    in_request = type(message) in {*map(type, REQUEST_SAMPLES), Offer} - {Error}
    if type(message) not in CONNECTION_RULES[state, sender]:
        with pytest.raises(
            ProtocolError, match=rf"{sender.value} may not send {type(message).__name__}"
        ):
            inject(receiver, message)
        assert receiver.state is ConnectionState.CLOSED
    elif not in_request:
        heard = inject(receiver, message)
        assert heard == ([] if isinstance(message, Ping) else [message])


@pytest.mark.parametrize("message", SAMPLES, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("sender", Role)
@pytest.mark.parametrize("state", ConnectionState)
def test_no_end_sends_what_the_state_of_a_connection_forbids(state, sender, message):
    end = ends_in_state(state)[sender]
    if type(message) not in CONNECTION_RULES[state, sender]:
        before = end.state, end.frames_sent
        with pytest.raises(ValueError, match=r"outside the vocabulary|cannot send"):
            end.send(message)
        assert (end.state, end.frames_sent) == before


def end_in_state(state, role, wanted=0):
    """An end that sees request 1 in this state, or None where that does not last.

    `wanted` are the log-probabilities that its Open asks for.
    """
    edge, server = connected()
    ends = {EDGE: edge, SERVER: server}
    if state is RequestState.UNUSED:
        return ends[role]
    server.receive(edge.send(replace(opening(1), logprobs=wanted)))
    if state is not RequestState.PROMPTING:
        server.receive(edge.send(Prompt(1, (1, 2, 3))))
    if wanted and state in (RequestState.DRAFTING, RequestState.WAITING, RequestState.FINISHED):
        edge.receive(server.send(logprobs(1, listed=wanted - 1)))
    if state is RequestState.DRAFTING:
        edge.receive(server.send(verdict(1, 0)))
    if state is RequestState.WAITING:
        edge.receive(server.send(verdict(1, 0, turn=Turn.WAIT)))
    if state is RequestState.FINISHED:
        server.send(verdict(1, 0, finish=Finish.LENGTH))
    if state is RequestState.CLOSING:
        edge.send(Close(1))
    return ends[role] if ends[role].request_state(1) is state else None


def test_states_that_do_not_last():
    seen = {(state, role) for state in RequestState for role in Role if end_in_state(state, role)}
    everything = {(state, role) for state in RequestState for role in Role}
    assert everything - seen == {(RequestState.FINISHED, EDGE), (RequestState.CLOSING, SERVER)}


@pytest.mark.parametrize("message", REQUEST_SAMPLES, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("sender", Role)
@pytest.mark.parametrize("state", RequestState)
def test_every_state_of_a_request_and_message(state, sender, message):
    receiver = end_in_state(state, sender.peer, wanted=3 * isinstance(message, Logprobs))
    if receiver is None:
        return
    if type(message) in REQUEST_RULES.get((state, sender), ()):
        late = state in (RequestState.FINISHED, RequestState.CLOSING)
        assert inject(receiver, message) == ([] if late else [message])
    else:
        with pytest.raises(ProtocolError, match=rf"may not send {type(message).__name__}"):
            inject(receiver, message)


@pytest.mark.parametrize("message", REQUEST_SAMPLES, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("sender", Role)
@pytest.mark.parametrize("state", RequestState)
def test_no_end_sends_what_the_state_of_a_request_forbids(state, sender, message):
    end = end_in_state(state, sender, wanted=3 * isinstance(message, Logprobs))
    if end is None:
        return
    if type(message) in REQUEST_RULES.get((state, sender), ()):
        assert frames(end.send(message)) == [message]
    elif isinstance(message, Close) and (state, sender) == (RequestState.CLOSING, EDGE):
        assert end.send(message) == b""
    else:
        with pytest.raises(ValueError, match=rf"cannot send {type(message).__name__}"):
            end.send(message)


# Content against what came before.


def violate(end, message, code, sentence):
    """The peer's violation is a ProtocolError; afterwards the connection is dead and says so."""
    with pytest.raises(ProtocolError, match=sentence) as caught:
        inject(end, message)
    assert caught.value.code is code
    assert end.state is ConnectionState.CLOSED
    (farewell,) = frames(end.data_to_send())
    assert farewell == Error(0, code, True, caught.value.sentence)
    for _ in range(2):
        with pytest.raises(ProtocolError, match=sentence):
            end.receive(b"more")
    with pytest.raises(ValueError, match="fatal Error or a fault has ended it"):
        end.send(Ping(1))
    assert end.data_to_send() == b""


def waiting(max_nodes=64):
    """Ends whose request 1, of an edge with this limit, waits for a credit."""
    edge, server = connected()
    most = replace(opening(1), max_nodes=max_nodes)
    server.receive(edge.send(most) + edge.send(Prompt(1, (1, 2, 3))))
    edge.receive(server.send(verdict(1, 0, turn=Turn.WAIT, max_nodes=min(8, max_nodes))))
    return edge, server


def answering(max_nodes):
    """Ends whose request 1, of an edge with this limit, owes the verdict on its prompt."""
    edge, server = connected()
    most = replace(opening(1), max_nodes=max_nodes)
    server.receive(edge.send(most) + edge.send(Prompt(1, (1, 2, 3))))
    return edge, server


def prompting():
    """Ends whose request 1 has sent nothing of its prompt of 3 tokens."""
    edge, server = connected()
    server.receive(edge.send(opening(1)))
    return edge, server


def drafting_with_logprobs(nodes=0, told=0):
    """As `drafting`, of an Open that asked for the log-probabilities of 2 tokens each.

    `told`: the verdict's are there, of so many tokens.
    """
    edge, server = connected()
    server.receive(edge.send(replace(opening(1), logprobs=3)) + edge.send(Prompt(1, (1, 2, 3))))
    edge.receive(server.send(logprobs(1)) + server.send(verdict(1, 0)))
    if nodes:
        server.receive(edge.send(draft(1, 1, nodes)))
    if told:
        edge.receive(server.send(logprobs(1, tokens=told)))
    return edge, server


def ruled(*messages):
    """Ends whose request 1 has told these, and has sent nothing of its prompt of 3 tokens."""
    edge, server = prompting()
    server.receive(b"".join(map(edge.send, messages)))
    return edge, server


CONTENT = [
    (EDGE, lambda: ruled(RULE), RULE, "Rule comes once, and before the prompt"),
    (EDGE, lambda: ruled(RULE, CONSTRAINT), RULE, "Rule comes once"),
    (EDGE, lambda: ruled(ADAPTER), ADAPTER, "Adapter comes once, and before"),
    (EDGE, lambda: ruled(CONSTRAINT), CONSTRAINT, "Constraint comes once, and before"),
    (SERVER, lambda: answering(64), Reading(1, 0, 4), "4 tokens of 3 are read"),
    (SERVER, lambda: drafting(4), Reading(1, 0, 3), "read before Verdict 0"),
    (SERVER, lambda: drafting(4), logprobs(1), "no Logprobs are due"),
    (SERVER, lambda: drafting_with_logprobs(4, told=1), logprobs(1), "no Logprobs are due"),
    (SERVER, lambda: drafting_with_logprobs(4), logprobs(1, listed=3), "3 top_ids come for 1"),
    (SERVER, lambda: drafting_with_logprobs(4), verdict(1, 1), "1 tokens come with 0 logprobs"),
    (SERVER, lambda: drafting_with_logprobs(4, told=2), verdict(1, 1, node=2),
     "3 tokens come with 2 logprobs"),
    (EDGE, prompting, Prompt(1, (1, 2, 3, 4)), "3 prompt tokens were due, 4"),
    (EDGE, drafting, draft(1, 2), "round 1 was due, 2 came"),
    (EDGE, drafting, draft(1, 1, nodes=65), "65 nodes, at most 64"),
    (EDGE, drafting, draft(2, 1), "may not send Draft while no request has this number"),
    (SERVER, lambda: drafting(4), verdict(1, 2), "the verdict of round 1 was due, not 2"),
    (SERVER, lambda: drafting(4), verdict(1, 0), "the verdict of round 1 was due, not 0"),
    (SERVER, lambda: drafting(4), verdict(1, 1, node=5), "node 5 of 4"),
    (SERVER, lambda: drafting(4), verdict(2, 0), "while no request has this number"),
    (SERVER, lambda: answering(8), verdict(1, 0, max_nodes=9), "may draft 8 nodes at most, not 9"),
    (SERVER, lambda: answering(255), verdict(1, 0, max_nodes=65), "64 nodes at most, not 65"),
    (SERVER, lambda: answering(0), verdict(1, 0, max_nodes=0), "its edge never drafts"),
    (SERVER, lambda: answering(0), verdict(1, 0, turn=Turn.WAIT, max_nodes=0), "never drafts"),
    (SERVER, lambda: waiting(8), Credit(1, 9, 0, 0), "may draft 8 nodes at most, not 9"),
    (EDGE, waiting, draft(1, 1), "the edge drafts and waits for a Credit"),
    (SERVER, drafting, CREDIT, "server may not send Credit while the edge drafts"),
    (SERVER, drafting, Error(1, ErrorCode.BUSY, True, ""), "fatal Error ends the connection"),
    (EDGE, drafting, Error(1, ErrorCode.BUSY, False, ""), "edge may not send Error"),
    (EDGE, drafting, Pong(1), "no Ping with nonce 1"),
    (SERVER, drafting, Pong(1), "no Ping with nonce 1"),
]  # fmt: skip


@pytest.mark.parametrize(("sender", "prepare", "message", "sentence"), CONTENT)
def test_content_that_does_not_follow(sender, prepare, message, sentence):
    code = ErrorCode.LIMIT if "nodes, at most" in sentence else ErrorCode.PROTOCOL
    edge, server = prepare()
    violate(server if sender is EDGE else edge, message, code, sentence)


@pytest.mark.parametrize(("sender", "prepare", "message", "sentence"), CONTENT)
def test_the_same_content_is_not_sent_and_moves_nothing(sender, prepare, message, sentence):
    edge, server = prepare()
    end = edge if sender is EDGE else server
    before = end.request_state(1), end.state, end.frames_sent
    with pytest.raises(ValueError, match=sentence):
        end.send(message)
    assert (end.request_state(1), end.state, end.frames_sent) == before
    # The request goes on as if nothing had been tried.
    follow = {
        RequestState.PROMPTING: (edge, server, Prompt(1, (1, 2, 3))),
        RequestState.DRAFTING: (edge, server, draft(1, 1)),
        RequestState.VERIFYING: (server, edge, REQUEST_ERROR),
        RequestState.WAITING: (server, edge, CREDIT),
    }
    source, target, next_message = follow[before[0]]
    assert target.receive(source.send(next_message)) == [next_message]


def test_a_rule_comes_before_the_prompt_begins():
    edge, server = connected()
    server.receive(edge.send(opening(1)) + edge.send(Prompt(1, (1,))))
    for message in (RULE, CONSTRAINT, ADAPTER):
        with pytest.raises(ValueError, match="once, and before the prompt"):
            edge.send(message)
    violate(server, RULE, ErrorCode.PROTOCOL, "Rule comes once, and before the prompt")


def test_log_probabilities_are_those_of_the_path():
    """A branching tree: what counts is the depth of the node, not its number."""
    edge, server = drafting_with_logprobs()
    branching = Draft(1, 1, 4, (5, 6, 7, 8), (0, 0, 2, 1))
    server.receive(edge.send(branching))
    edge.receive(server.send(logprobs(1, tokens=3)))
    assert edge.receive(server.send(verdict(1, 1, node=4))) == [verdict(1, 1, node=4)]
    edge.receive(server.send(Error(1, ErrorCode.INTERNAL, False, "ends without another Logprobs")))
    assert edge.request_state(1) is RequestState.UNUSED


def test_of_a_small_vocabulary_all_are_listed():
    edge, server = connected(replace(WELCOME, vocabulary_size=5))
    server.receive(edge.send(Open(1, 0, 0, 1, 0, 0, 9, 1, (), logprobs=21)))
    server.receive(edge.send(Prompt(1, (1,))))
    told = logprobs(1, listed=5)
    assert edge.receive(server.send(told)) == [told]


def test_a_message_that_has_no_bytes_moves_nothing():
    edge, server = drafting()
    with pytest.raises(ValueError, match="outside the vocabulary"):
        edge.send(replace(draft(1, 1), tokens=(1, 2, 3, VOCABULARY)))
    assert server.receive(edge.send(draft(1, 1))) == [draft(1, 1)]


def test_requests_are_limited_and_a_closed_one_makes_room():
    edge, server = connected()
    for request in range(1, 5):
        server.receive(edge.send(opening(request)))
    with pytest.raises(ValueError, match="4 requests are open"):
        edge.send(opening(5))
    closing = edge.send(Close(2)) + edge.send(opening(5))
    assert edge.live_requests == 4
    assert server.receive(closing) == [Close(2), opening(5)]
    edge.receive(server.data_to_send())
    violate(server, opening(6), ErrorCode.LIMIT, "4 requests are open")


def test_prompt_in_pieces_then_exactly_no_more():
    edge, server = connected()
    server.receive(edge.send(opening(1, prompt_tokens=3)))
    assert server.receive(edge.send(Prompt(1, (1, 2)))) == [Prompt(1, (1, 2))]
    assert server.request_state(1) is RequestState.PROMPTING
    server.receive(edge.send(Prompt(1, (3,))))
    assert server.request_state(1) is edge.request_state(1) is RequestState.VERIFYING


def test_rounds_count_on_and_one_tree_is_in_flight():
    edge, server = drafting()
    for round in range(1, 30):
        server.receive(edge.send(draft(1, round, nodes=round)))
        with pytest.raises(ValueError, match="cannot send Draft"):
            edge.send(draft(1, round + 1))
        edge.receive(server.send(verdict(1, round, node=round)))


def test_a_draft_keeps_to_the_last_grant():
    """Of the verdict that gave the turn, or of the credit after it; not of an earlier one."""
    edge, server = drafting()
    server.receive(edge.send(draft(1, 1, nodes=64)))
    edge.receive(server.send(verdict(1, 1, max_nodes=3)))
    with pytest.raises(ValueError, match="4 nodes, at most 3"):
        edge.send(draft(1, 2, nodes=4))
    server.receive(edge.send(draft(1, 2, nodes=3)))
    edge.receive(server.send(verdict(1, 2, turn=Turn.WAIT, max_nodes=3)))
    edge.receive(server.send(Credit(1, max_nodes=5, free_ms=0, late_ms=0)))
    with pytest.raises(ValueError, match="6 nodes, at most 5"):
        edge.send(draft(1, 3, nodes=6))
    assert server.receive(edge.send(draft(1, 3, nodes=5))) == [draft(1, 3, nodes=5)]


def test_the_server_goes_on_by_itself_and_rounds_count_on():
    edge, server = answering(0)
    for round in range(20):
        word = verdict(1, round, turn=Turn.SERVER)
        assert edge.receive(server.send(word)) == [word]
        with pytest.raises(ValueError, match="the server owes a Verdict"):
            edge.send(draft(1, round + 1))
    with pytest.raises(ValueError, match="round 20 was due, not 19"):
        server.send(verdict(1, 19, turn=Turn.SERVER))
    with pytest.raises(ValueError, match="node 1 of 0"):
        server.send(verdict(1, 20, node=1, turn=Turn.SERVER))


def test_one_ping_waits_at_a_time_and_the_connection_answers():
    edge, server = connected()
    ping = edge.send(Ping(77))
    with pytest.raises(ValueError, match="Ping before has no answer"):
        edge.send(Ping(78))
    assert server.receive(ping) == []
    assert edge.receive(server.data_to_send()) == [Pong(77)]
    assert settle(edge, server, edge.send(Ping(78))) == []
    inject(server, Ping(1))
    # That Pong has gone, so another Ping may come; two without an answer between cannot.
    inject(server, Ping(2))
    assert [type(m) for m in frames(server.data_to_send())] == [Pong, Pong]


def test_answers_come_before_what_is_sent_next():
    edge, server = connected()
    server.receive(edge.send(Ping(5)))
    data = server.send(NOTICE)
    assert frames(data) == [Pong(5), NOTICE]
    assert edge.receive(data) == [Pong(5), NOTICE]


@pytest.mark.parametrize("offset", [1, -1, 1000])
def test_a_lost_or_doubled_frame_is_noticed(offset):
    _, server = connected()
    seq = (server.frames_received + offset) & 0xFFFF
    with pytest.raises(ProtocolError, match="one is lost"):
        server.receive(encode_frame(Ping(1), seq, VOCABULARY))


def test_the_frame_counter_wraps():
    edge, server = connected()
    for _ in range(2**16 + 10):
        assert edge.receive(server.send(NOTICE)) == [NOTICE]
    assert server.frames_sent == edge.frames_received > 2**16


@pytest.mark.parametrize(
    ("state", "kind", "length", "refused"),
    [
        (ConnectionState.HELLO_DUE, Hello, 512, False),
        (ConnectionState.HELLO_DUE, Hello, 513, True),
        (ConnectionState.HELLO_DUE, Error, 513, True),
        (ConnectionState.TEMPLATE_DUE, Template, 60 * 1024, False),
        (ConnectionState.TEMPLATE_DUE, Template, 60 * 1024 + 1, True),
        (ConnectionState.TEMPLATE_DUE, Error, 16 * 1024 + 1, True),
        (ConnectionState.OPEN, Draft, 16 * 1024, False),
        (ConnectionState.OPEN, Draft, 16 * 1024 + 1, True),
        (ConnectionState.OPEN, Ping, 65_535, True),
        (ConnectionState.OPEN, Prompt, 60 * 1024, False),
        (ConnectionState.OPEN, Prompt, 60 * 1024 + 1, True),
    ],
)
def test_a_long_frame_is_refused_at_its_header(state, kind, length, refused):
    receiver = ends_in_state(state)[EDGE if state is ConnectionState.TEMPLATE_DUE else SERVER]
    header = HEADER.pack(length, kind.TYPE, 0, 0, receiver.frames_received)
    if not refused:
        assert receiver.receive(header) == []
        return
    with pytest.raises(ProtocolError, match=f"has {length} bytes") as caught:
        receiver.receive(header)
    assert caught.value.code is ErrorCode.LIMIT


def test_a_prompt_too_long_for_a_frame_is_not_sent():
    edge, _ = connected()
    edge.send(opening(1, prompt_tokens=40_000))
    with pytest.raises(ValueError, match="expected 8 to 61440"):
        edge.send(Prompt(1, (1,) * 40_000))
    edge.send(Prompt(1, (1,) * 30_000))
    edge.send(Prompt(1, (1,) * 10_000))
    assert edge.request_state(1) is RequestState.VERIFYING


@pytest.mark.parametrize(
    "state", [s for s in ConnectionState if s not in (ConnectionState.OPEN, ConnectionState.CLOSED)]
)
@pytest.mark.parametrize("error", [NOTICE, REQUEST_ERROR])
def test_only_a_fatal_error_may_come_before_the_connection_is_open(state, error):
    for role in Role:
        with pytest.raises(ProtocolError, match=r"must be fatal|may not send Error"):
            inject(ends_in_state(state)[role], error)
        with pytest.raises(ValueError, match=r"must be fatal|may not send Error"):
            ends_in_state(state)[role].send(error)


@pytest.mark.parametrize(
    "state", [state for state in ConnectionState if state is not ConnectionState.CLOSED]
)
@pytest.mark.parametrize("role", Role)
def test_a_fatal_error_ends_the_connection_quietly(state, role):
    end = ends_in_state(state)[role]
    seq = end.frames_received
    data = encode_frame(FATAL, seq, VOCABULARY) + b"whatever comes after is not even looked at"
    assert end.receive(data) == [FATAL]
    assert end.receive(b"nor this") == []
    assert (end.buffered_bytes, end.data_to_send()) == (0, b"")
    with pytest.raises(ValueError, match="has ended it"):
        end.send(FATAL)


def test_a_challenge_comes_once_and_its_proof_opens_the_door():
    edge, server = Connection(EDGE), Connection(SERVER)
    server.receive(edge.send(HELLO))
    assert edge.receive(server.send(CHALLENGE)) == [CHALLENGE]
    assert edge.challenge == server.challenge == CHALLENGE
    with pytest.raises(ValueError, match="the edge's Proof is due"):
        server.send(WELCOME)
    assert server.receive(edge.send(PROOF)) == [PROOF]
    with pytest.raises(ValueError, match="after the edge's Proof"):
        server.send(CHALLENGE)
    assert edge.receive(server.send(WELCOME)) == [WELCOME]
    assert edge.state is server.state is ConnectionState.OPEN


@pytest.mark.parametrize(
    ("has", "targets", "follows"),
    [
        (None, None, False),
        ("a", None, False),
        ("a", "a", False),
        ("a", "b", True),
        (None, "b", True),
    ],
)
def test_a_template_comes_where_the_edge_has_another_or_none(has, targets, follows):
    edge, server = Connection(EDGE), Connection(SERVER)
    server.receive(edge.send(replace(HELLO, template_hash=template_hash(has))))
    edge.receive(server.send(replace(WELCOME, template_hash=template_hash(targets))))
    assert (
        edge.state
        is server.state
        is (ConnectionState.TEMPLATE_DUE if follows else ConnectionState.OPEN)
    )
    if not follows:
        with pytest.raises(ValueError, match="may not send Template"):
            server.send(Template("b"))
        return
    with pytest.raises(ValueError, match="the server's Template is due"):
        edge.send(opening(1))
    assert edge.receive(server.send(Template(targets))) == [Template(targets)]
    assert edge.state is server.state is ConnectionState.OPEN
    with pytest.raises(ValueError, match="may not send Template"):
        server.send(Template(targets))


def test_a_template_is_the_one_of_the_welcome_or_empty():
    for source in ("", TEMPLATE.source):
        ends = ends_in_state(ConnectionState.TEMPLATE_DUE)
        assert inject(ends[EDGE], Template(source)) == [Template(source)]
        assert ends[EDGE].state is ConnectionState.OPEN
    ends = ends_in_state(ConnectionState.TEMPLATE_DUE)
    with pytest.raises(ProtocolError, match="not the one that the Welcome tells of"):
        inject(ends[EDGE], Template(TEMPLATE.source + " "))
    with pytest.raises(ValueError, match="not the one that the Welcome tells of"):
        ends[SERVER].send(Template(TEMPLATE.source + " "))


def test_a_redirect_ends_the_connection():
    edge, server = Connection(EDGE), Connection(SERVER)
    server.receive(edge.send(HELLO))
    assert edge.receive(server.send(REDIRECT) + b"whatever follows") == [REDIRECT]
    assert edge.state is server.state is ConnectionState.CLOSED
    assert edge.receive(b"more") == []


def test_the_vocabulary_of_the_welcome_sets_the_width():
    edge, server = connected(replace(WELCOME, vocabulary_size=151_936))
    server.receive(edge.send(opening(1)))
    data = edge.send(Prompt(1, (151_935,) * 3))
    assert len(data) == 8 + 2 + 7
    assert server.receive(data) == [Prompt(1, (151_935,) * 3)]


def test_messages_before_a_fault_can_be_had_one_by_one():
    edge, server = connected()
    data = edge.send(opening(1)) + b"\xff" * 8
    server.feed(data)
    assert server.next_message() == opening(1)
    with pytest.raises(ProtocolError, match="type 255"):
        server.next_message()


# How requests end: frames that cross, numbers that come again.


def test_a_finished_request_is_closed_by_the_edge_itself():
    edge, server = drafting(nodes=4)
    last = verdict(1, 1, finish=Finish.STOP)
    assert edge.receive(server.send(last)) == [last]
    assert (edge.request_state(1), server.request_state(1)) == (
        RequestState.UNUSED,
        RequestState.FINISHED,
    )
    assert server.receive(edge.data_to_send()) == []
    assert server.request_state(1) is RequestState.UNUSED


@pytest.mark.parametrize(
    "word", [verdict(1, 1), verdict(1, 1, finish=Finish.LENGTH), REQUEST_ERROR], ids=str
)
def test_a_close_that_crosses_the_servers_word(word):
    edge, server = drafting(nodes=4)
    down, up = server.send(word), edge.send(Close(1))
    assert edge.receive(down) == []
    live = word == verdict(1, 1)
    assert server.receive(up) == ([Close(1)] if live else [])
    edge.receive(server.data_to_send())
    assert server.receive(edge.data_to_send()) == []
    assert edge.request_state(1) is server.request_state(1) is RequestState.UNUSED


def test_a_number_is_not_free_while_something_may_still_come_for_it():
    edge, server = drafting(nodes=4)
    late = server.send(verdict(1, 1))
    up = edge.send(Close(1))
    with pytest.raises(ValueError, match="the server's last word is due"):
        edge.send(opening(1))
    edge.receive(late)
    with pytest.raises(ValueError, match="the server's last word is due"):
        edge.send(opening(1))
    server.receive(up)
    edge.receive(server.data_to_send())
    assert server.receive(edge.send(opening(1, seed=99))) == [opening(1, seed=99)]


def test_a_prompt_under_way_when_the_server_refuses_is_dropped():
    edge, server = connected()
    server.receive(edge.send(opening(1)))
    refusal = server.send(REQUEST_ERROR)
    assert server.receive(edge.send(Prompt(1, (1, 2, 3)))) == []
    assert edge.receive(refusal) == [REQUEST_ERROR]
    server.receive(edge.data_to_send())
    assert server.request_state(1) is RequestState.UNUSED


def test_an_edge_that_has_not_read_the_news_may_go_on_talking():
    edge, server = drafting()
    edge.receive(server.send(REQUEST_ERROR))
    closing = edge.data_to_send()
    assert edge.send(draft(1, 1)) == edge.send(Close(1)) == edge.send(Close(1)) == b""
    server.receive(closing)
    assert server.receive(edge.send(opening(1))) == [opening(1)]
    assert server.receive(edge.send(Close(1))) == [Close(1)]


def test_a_request_that_never_was_is_no_late_one():
    edge, _ = drafting()
    for message in (draft(9, 1), Close(9), Prompt(9, (1,))):
        with pytest.raises(ValueError, match="no request has this number"):
            edge.send(message)


class Storm:
    """Two ends that act at random over links that deliver late; few numbers, so they come again.

    Every request has a generation, which all its messages carry; a message that is delivered to
    a request of another generation has been misread.
    """

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.ends = dict(zip(Role, connected(replace(OFFERS_WELCOME, max_requests=2)), strict=True))
        self.links = {EDGE: b"", SERVER: b""}
        self.generations = {EDGE: {}, SERVER: {}}
        self.rounds = {EDGE: {}, SERVER: {}}
        self.offers = {}  # that may still be made
        self.opened = self.delivered = 0

    def run(self, steps):
        for _ in range(steps):
            self.rng.choice((self.edge_acts, self.server_acts, self.carry, self.carry))()
        self.finish()

    def say(self, role, message):
        self.links[role] += self.ends[role].send(message)

    def edge_acts(self):
        request = self.rng.randint(1, 3)
        edge, generation = self.ends[EDGE], self.generations[EDGE].get(request)
        state = edge.request_state(request)
        if state is RequestState.UNUSED and edge.live_requests < 2:
            self.opened += 1
            self.generations[EDGE][request] = self.opened
            self.rounds[EDGE][request], self.offers[request] = 0, 2
            self.say(EDGE, opening(request, prompt_tokens=2, seed=self.opened))
        elif state in (RequestState.UNUSED, RequestState.CLOSING):
            return
        elif self.rng.random() < 0.2:
            self.say(EDGE, Close(request))
        elif state is RequestState.PROMPTING:
            self.say(EDGE, Prompt(request, (generation,)))
        elif self.offers[request] and self.rng.random() < 0.3:
            self.offers[request] -= 1
            self.say(EDGE, Offer(request, generation, (generation,), (0,)))
        elif state is RequestState.DRAFTING:
            round = self.rounds[EDGE][request]
            self.say(EDGE, Draft(request, round, generation, (generation,), (0,)))

    def server_acts(self):
        request = self.rng.randint(1, 3)
        server, generation = self.ends[SERVER], self.generations[SERVER].get(request)
        state = server.request_state(request)
        live = state in (
            RequestState.PROMPTING,
            RequestState.VERIFYING,
            RequestState.DRAFTING,
            RequestState.WAITING,
        )
        if live and self.rng.random() < 0.1:
            self.say(SERVER, Error(request, ErrorCode.BUSY, False, str(generation)))
        elif state is RequestState.VERIFYING:
            finish = self.rng.choice((Finish.NONE, Finish.NONE, Finish.STOP))
            turn = Turn.SERVER if finish else self.rng.choice(list(Turn))
            grant = (turn, 64, 0) if turn in (Turn.EDGE, Turn.WAIT) else (turn,)
            round = self.rounds[SERVER][request]
            self.rounds[SERVER][request] += 1
            self.say(SERVER, Verdict(request, round, 0, generation, finish, 0, 0, *grant))
        elif state is RequestState.WAITING:
            self.say(SERVER, Credit(request, 64, generation, 0))

    def carry(self):
        sender = self.rng.choice((EDGE, SERVER))
        count = self.rng.randint(0, 40)
        data, self.links[sender] = self.links[sender][:count], self.links[sender][count:]
        self.hear(sender.peer, data)

    def hear(self, role, data):
        end = self.ends[role]
        end.feed(data)
        while (message := end.next_message()) is not None:
            self.delivered += 1
            self.check(role, message)
        self.links[role] += end.data_to_send()

    def check(self, role, message):
        generations = self.generations[role]
        match message:
            case Open(request, seed=seed):
                generations[request] = seed
                self.rounds[SERVER][request] = 0
            case Prompt(request, (generation,)):
                assert generations[request] == generation
            case Offer(request, generation):
                assert generations[request] == generation
            case Draft(request, round, generation):
                assert generations[request] == generation
                assert self.rounds[SERVER][request] == round
            case Verdict(request, round=round, bonus=generation):
                assert generations[request] == generation
                self.rounds[EDGE][request] = round + 1
                self.offers[request] += 2
            case Credit(request, free_ms=generation):
                assert generations[request] == generation
            case Error(request, sentence=generation):
                assert str(generations[request]) == generation
            case Close(request):
                assert role is SERVER
                assert self.ends[SERVER].request_state(request) is RequestState.UNUSED

    def finish(self):
        edge, server = self.ends.values()
        for request in (1, 2, 3):
            if edge.request_state(request) not in (RequestState.UNUSED, RequestState.CLOSING):
                self.say(EDGE, Close(request))
        while any(self.links.values()):
            for role in Role:
                data, self.links[role] = self.links[role], b""
                self.hear(role.peer, data)
        assert [end.request_state(request) for end in (edge, server) for request in (1, 2, 3)] == [
            RequestState.UNUSED
        ] * 6
        assert edge.live_requests == server.live_requests == 0
        assert edge.buffered_bytes == server.buffered_bytes == 0


def test_no_frame_is_misread_however_they_cross():
    opened = delivered = 0
    for seed in range(250):
        storm = Storm(seed)
        storm.run(200)
        opened, delivered = opened + storm.opened, delivered + storm.delivered
    assert opened > 1000
    assert delivered > 6000


def offering(most_nodes=64):
    """Ends that both say version 2, with a request whose Verdict is due."""
    edge, server = Connection(EDGE), Connection(SERVER)
    server.receive(edge.send(replace(HELLO, version=2)))
    edge.receive(server.send(OFFERS_WELCOME))
    server.receive(edge.send(replace(opening(2), max_nodes=most_nodes)))
    server.receive(edge.send(Prompt(2, (1, 2, 3))))
    return edge, server


def test_offers_come_in_any_state_behind_the_prompt_and_move_nothing():
    edge, server = offering()
    due = [verdict(2, 0, turn=Turn.SERVER), verdict(2, 1, turn=Turn.MORE), verdict(2, 2)]
    for said in [*due, verdict(2, 3, turn=Turn.WAIT)]:
        state = server.request_state(2)
        assert server.receive(edge.send(OFFER)) == [OFFER]
        assert server.request_state(2) is edge.request_state(2) is state
        if state is RequestState.DRAFTING:
            server.receive(edge.send(draft(2, 3)))
        edge.receive(server.send(said))
    assert server.request_state(2) is RequestState.WAITING
    assert server.receive(edge.send(OFFER)) == [OFFER]
    edge.receive(server.send(replace(REQUEST_ERROR, request=2)))
    assert server.receive(edge.send(OFFER)) == [], "the edge has not read that it is over"


def test_offers_may_have_more_nodes_than_a_draft_but_only_where_there_are_drafts():
    edge, server = offering(most_nodes=3)
    assert len(OFFER.tokens) > 3
    server.receive(edge.send(OFFER))
    edge, _ = offering(most_nodes=0)
    with pytest.raises(ValueError, match="no nodes are allowed"):
        edge.send(OFFER)


def test_two_offers_may_be_made_for_each_verdict():
    edge, server = offering()
    for round in range(5):
        for _ in range(2):
            server.receive(edge.send(OFFER))
        with pytest.raises(ValueError, match=f"too many Offers for {round} Verdicts"):
            edge.send(OFFER)
        edge.receive(server.send(verdict(2, round, turn=Turn.SERVER)))


def test_without_version_2_there_are_no_offers_and_no_verdicts_of_the_same_step():
    for versions in ((1, 1), (2, 1)):
        edge, server = Connection(EDGE), Connection(SERVER)
        server.receive(edge.send(replace(HELLO, version=versions[0])))
        edge.receive(server.send(replace(WELCOME, version=versions[1])))
        server.receive(edge.send(opening(2)))
        server.receive(edge.send(Prompt(2, (1, 2, 3))))
        with pytest.raises(ValueError, match="Offers are of version 2"):
            edge.send(OFFER)
        with pytest.raises(ValueError, match="says MORE to an edge that makes no Offers"):
            server.send(verdict(2, 0, turn=Turn.MORE))
        with pytest.raises(ValueError, match="would like Offers of an edge that makes none"):
            server.send(liking(1))


def liking(nodes):
    """The first Verdict of `offering`, which leaves the turn with the server."""
    return replace(verdict(2, 0, turn=Turn.SERVER), max_nodes=nodes)


def test_a_verdict_likes_offers_of_no_more_nodes_than_the_edge_ever_drafts():
    for most in (0, 1, 8):
        edge, server = offering(most_nodes=most)
        with pytest.raises(ValueError, match=r"may draft|never drafts"):
            server.send(liking(most + 1))
        edge.receive(server.send(liking(most)))
        assert server.request_state(2) is edge.request_state(2) is RequestState.VERIFYING


def test_a_welcome_says_no_later_version_than_the_hello():
    edge, server = Connection(EDGE), Connection(SERVER)
    server.receive(edge.send(HELLO))
    with pytest.raises(ValueError, match="the Welcome says version 2, the Hello 1"):
        server.send(OFFERS_WELCOME)
