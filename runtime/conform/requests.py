"""Cases 301 and on: how requests begin, what an Open may say, and who may have how many."""

import struct
from collections.abc import Sequence
from typing import Any

from runtime.conform.peer import Failed, Peer, Request, Skipped, Visitor, opening
from runtime.wire import messages as wire
from runtime.wire.messages import ErrorCode
from runtime.wire.token_bits import pack_tokens, packed_bytes, token_bits

MOST_REQUESTS = 1000  # beyond it a case would be a load test
RULE = wire.Rule(1, frequency_penalty=0.5)
CONSTRAINT = wire.Constraint(1, wire.ConstraintKind.REGEX, "[a-z]*")
ADAPTER = wire.Adapter(1, "no-such-adapter")
LONGEST_CONTEXT = 4096  # beyond it a case would take the server's memory for itself


async def a_prompt_is_answered(visitor: Visitor) -> None:
    """§5.5 Round 0 answers the prompt, with node 0."""
    request = (await visitor.admitted()).open()
    verdict = await request.verdict()
    if verdict.round or verdict.node:
        raise Failed(f"it is answered by round {verdict.round}, node {verdict.node}")


async def a_prompt_of_one_token(visitor: Visitor) -> None:
    """§3.3 A prompt has at least one token, and one is enough."""
    peer = await visitor.admitted()
    await peer.open(1, peer.prompt(1)).rest()


async def a_prompt_in_portions(visitor: Visitor) -> None:
    """§5.2 The prompt may come in any portions; the answer is the same."""
    peer = await visitor.admitted()
    prompt = peer.prompt(20)
    whole = await peer.open(1, prompt).rest()
    peer.send(opening(2, len(prompt)), *(wire.Prompt(2, (token,)) for token in prompt))
    if await Request(peer, opening(2, len(prompt)), prompt).rest() != whole:
        raise Failed("the answer is another one")


async def the_last_number(visitor: Visitor) -> None:
    """§1 Requests have the numbers 1 to 65,535."""
    await (await visitor.admitted()).open(65_535).rest()


async def a_number_in_use(visitor: Visitor) -> None:
    """§5.1 An Open of a number in use is a fault."""
    peer = await visitor.admitted()
    peer.send(opening(), opening())
    await peer.refused(ErrorCode.PROTOCOL)


async def a_number_again(visitor: Visitor) -> None:
    """§5.7 A number is unused again when both ends have said their word."""
    peer = await visitor.admitted()
    first = await peer.open(9).rest()
    if await peer.open(9).rest() != first:
        raise Failed("the second request has another answer")


async def a_number_again_after_an_error(visitor: Visitor) -> None:
    """§5.7 An Error is a last word too: after our Close the number is unused."""
    peer = await visitor.admitted()
    await _refused_for_its_length(peer, 4)
    await peer.open(4).rest()


async def one_number_on_two_connections(visitor: Visitor) -> None:
    """§5.2 The same number on two connections means two requests."""
    peers = [await visitor.admitted() for _ in range(2)]
    requests = [peer.open(7, peer.prompt(6, seed)) for seed, peer in enumerate(peers)]
    for request in requests:
        await request.rest()
        await request.peer.is_alive()


async def a_prompt_of_nothing(visitor: Visitor) -> None:
    """§5.1 A Prompt for a number that was never opened is a fault."""
    await _refused_message(visitor, wire.Prompt(5, (1,)))


async def a_draft_of_nothing(visitor: Visitor) -> None:
    """§5.1 A Draft for a number that was never opened is a fault."""
    await _refused_message(visitor, wire.Draft(5, 1, 5, (), ()))


async def a_close_of_nothing(visitor: Visitor) -> None:
    """§5.1 A Close for a number that was never opened is a fault."""
    await _refused_message(visitor, wire.Close(5))


async def a_draft_before_the_prompt(visitor: Visitor) -> None:
    """§5.1 A Draft while the prompt is due is a fault."""
    await _refused_message(visitor, opening(), wire.Draft(1, 1, 5, (), ()))


async def more_prompt_than_was_told(visitor: Visitor) -> None:
    """§5.2 A Prompt brings no more ids than are due."""
    await _refused_message(visitor, opening(1, 2), wire.Prompt(1, (1, 2, 3)))


async def a_prompt_after_the_prompt(visitor: Visitor) -> None:
    """§5.1 A Prompt when all ids have come is a fault."""
    peer = await visitor.admitted()
    prompt = wire.Prompt(1, peer.prompt(5))
    peer.send(opening(max_tokens=200), prompt, prompt)
    await _refused_in_a_request(peer)


async def an_id_outside_the_vocabulary(visitor: Visitor) -> None:
    """§2.3 An id outside the vocabulary is a fault, LIMIT."""
    peer = await visitor.admitted()
    outside = _id_outside(peer)
    peer.send(opening(1, 1))
    peer.write(peer.raw(wire.Prompt, struct.pack("<H", 1) + outside, request=1))
    await peer.refused(ErrorCode.LIMIT)


async def a_stop_id_outside_the_vocabulary(visitor: Visitor) -> None:
    """§2.3 So is a stop id outside the vocabulary."""
    peer = await visitor.admitted()
    outside = _id_outside(peer)
    peer.write(peer.raw(wire.Open, _open_body(stop_ids=1) + outside, request=1))
    await peer.refused(ErrorCode.LIMIT)


async def padding_that_is_not_zero(visitor: Visitor) -> None:
    """§2.3 The bits after the last id are zero."""
    peer = await visitor.admitted()
    size = peer.vocabulary_size
    if token_bits(size) % 8 == 0:
        raise Skipped(f"ids of {token_bits(size)} bits leave no padding")
    peer.send(opening(1, 1))
    body = struct.pack("<H", 1) + (1 << token_bits(size)).to_bytes(packed_bytes(1, size), "little")
    peer.write(peer.raw(wire.Prompt, body, request=1))
    await peer.refused(ErrorCode.PROTOCOL)


async def an_empty_prompt(visitor: Visitor) -> None:
    """§3.4 A Prompt brings at least one id."""
    peer = await visitor.admitted()
    peer.send(opening())
    peer.write(peer.raw(wire.Prompt, struct.pack("<H", 0), request=1))
    await peer.refused(ErrorCode.PROTOCOL)


async def counts_of_zero(visitor: Visitor) -> None:
    """§3.3 max_tokens and prompt_tokens are 1 or more."""
    await _refused_open(visitor, max_tokens=0)
    await _refused_open(visitor, prompt_tokens=0)


async def temperatures(visitor: Visitor) -> None:
    """§3.3 temperature is 0 to 100."""
    for value in (-0.5, 100.5, float("nan"), float("inf")):
        await _refused_open(visitor, temperature=value)


async def probabilities(visitor: Visitor) -> None:
    """§3.3 top_p is above 0 and at most 1, min_p is 0 to 1."""
    for value in (-0.1, 1.1, float("nan")):
        await _refused_open(visitor, top_p=value)
        await _refused_open(visitor, min_p=value)
    await _refused_open(visitor, top_p=0.0)


async def stop_ids_that_are_not_there(visitor: Visitor) -> None:
    """§2.1 An Open whose body does not hold the stop ids it counts is a fault."""
    peer = await visitor.admitted()
    peer.write(peer.raw(wire.Open, _open_body(stop_ids=2), request=1))
    await peer.refused(ErrorCode.PROTOCOL)


async def the_longest_parameters(visitor: Visitor) -> None:
    """§3.3 The largest seed, temperature, top_k and 255 stop ids are allowed."""
    peer = await visitor.admitted()
    extremes: dict[str, Any] = {
        "seed": 2**64 - 1,
        "temperature": 100.0,
        "top_k": 2**32 - 1,
        "min_p": 1.0,
    }
    stop_ids = tuple(token % peer.vocabulary_size for token in range(wire.MAX_STOP_IDS))
    await peer.open(stop_ids=stop_ids, **extremes).rest()


async def a_prompt_as_long_as_the_context(visitor: Visitor) -> None:
    """§5.2 A prompt that leaves no room is refused with LIMIT; only its request ends."""
    peer = await visitor.admitted()
    await _refused_for_its_length(peer, 1)
    await peer.open(2).rest()
    await peer.is_alive()


async def the_rest_of_a_refused_prompt(visitor: Visitor) -> None:
    """§5.7 What was under way to a request that the server has ended is dropped."""
    peer = await visitor.admitted()
    peer.send(opening(1, _context(peer)), wire.Prompt(1, (1, 2)), wire.Prompt(1, (3,)))
    error = await peer.receive(1)
    if not isinstance(error, wire.Error):
        raise Failed(f"a {type(error).__name__} comes, not an Error")
    peer.send(wire.Prompt(1, (4,)), wire.Draft(1, 1, 5, (), ()), wire.Close(1))
    await peer.is_alive()


async def an_answer_to_the_end_of_the_context(visitor: Visitor) -> None:
    """§5.5 The answer ends when the text has max_context tokens."""
    peer = await visitor.admitted()
    request = peer.open(1, peer.prompt(_context(peer) - 3), max_tokens=100)
    await _has_length(request, 3)


async def exactly_max_tokens(visitor: Visitor) -> None:
    """§5.5 Without a stop id exactly max_tokens tokens come."""
    peer = await visitor.admitted()
    for count in (1, 2, 17):
        await _has_length(peer.open(max_tokens=count), count)


async def an_edge_that_never_drafts(visitor: Visitor) -> None:
    """§5.3 With max_nodes 0 the server always has the turn, and the answer comes by itself."""
    peer = await visitor.admitted()
    request = peer.open(max_nodes=0)
    await _has_length(request, 16)
    if any(verdict.turn is not wire.Turn.SERVER for verdict in request.verdicts):
        raise Failed("the edge is given the turn")


async def too_many_requests(visitor: Visitor) -> None:
    """§5.2 One request more than max_requests is a fault, LIMIT."""
    peer = await visitor.admitted()
    peer.send(*(opening(number) for number in range(1, _requests(peer) + 2)))
    await peer.refused(ErrorCode.LIMIT)


async def a_closed_request_does_not_count(visitor: Visitor) -> None:
    """§5.2 Requests count until the edge has closed them."""
    peer = await visitor.admitted()
    last = _requests(peer)
    peer.send(*(opening(number) for number in range(1, last + 1)), wire.Close(last))
    while not isinstance(await peer.receive(last), wire.Close | wire.Error):
        pass
    peer.send(opening(last), wire.Ping(1))
    await peer.expect(wire.Pong)


async def requests_end_with_their_connection(visitor: Visitor) -> None:
    """§4.6 What the requests of a gone edge held is free at once."""
    for _ in range(3):
        peer = await visitor.admitted()
        peer.send(*(opening(number) for number in range(1, _requests(peer))))
        await peer.is_alive()
        peer.end()
        await peer.ended()
    await (await visitor.admitted()).open().rest()


async def an_answer_that_is_all_of_its_prompt(visitor: Visitor) -> None:
    """§3.3 output_tokens is less than prompt_tokens."""
    await _refused_open(visitor, output_tokens=5)
    await _refused_open(visitor, output_tokens=2**32 - 1)


async def too_many_likeliest_tokens(visitor: Visitor) -> None:
    """§3.3 logprobs is 0 to 21."""
    await _refused_open(visitor, logprobs=22)
    await _refused_open(visitor, logprobs=255)


async def a_rule_of_nothing(visitor: Visitor) -> None:
    """§5.1 A Rule, Constraint or Adapter for a number that was never opened is a fault."""
    for message in (RULE, CONSTRAINT, ADAPTER):
        await _refused_message(visitor, message)


async def a_rule_twice(visitor: Visitor) -> None:
    """§5.2 A Rule and a Constraint come at most once each."""
    for message in (RULE, CONSTRAINT):
        peer = await visitor.admitted()
        peer.send(opening(), message, message)
        await _refused_in_a_request(peer)


async def a_rule_in_the_prompt(visitor: Visitor) -> None:
    """§5.2 They come before the first Prompt."""
    for message in (RULE, CONSTRAINT, ADAPTER):
        await _refused_message(visitor, opening(), wire.Prompt(1, (1,)), message)


async def penalties(visitor: Visitor) -> None:
    """§3.16 Penalties are -2 to 2, the repetition penalty is 0.01 to 100."""
    for value in (-2.5, 2.5, float("nan"), float("inf")):
        await _refused_rule(visitor, frequency=value)
        await _refused_rule(visitor, presence=value)
    for value in (0.0, -1.0, 101.0, float("nan")):
        await _refused_rule(visitor, repetition=value)


async def biases(visitor: Visitor) -> None:
    """§3.16 At most 1,024 ids have a bias each, from -100 to 100 and not 0."""
    for value in (-100.5, 100.5, 0.0, float("nan"), float("inf")):
        await _refused_rule(visitor, biases=((7, value),))
    await _refused_rule(visitor, biases=((7, 1.0),) * 1025)


async def biases_in_any_order(visitor: Visitor) -> None:
    """§3.16 The ids of biases ascend."""
    await _refused_rule(visitor, biases=((8, 1.0), (7, 1.0)))
    await _refused_rule(visitor, biases=((7, 1.0), (7, 2.0)))


async def a_bias_outside_the_vocabulary(visitor: Visitor) -> None:
    """§2.3 An id with a bias outside the vocabulary is a fault, LIMIT."""
    peer = await visitor.admitted()
    outside, value = _id_outside(peer), struct.pack("<d", 1.0)
    peer.send(opening())
    peer.write(peer.raw(wire.Rule, _rule_head(1) + outside + value, request=1))
    await peer.refused(ErrorCode.LIMIT)


async def a_rule_that_changes_nothing(visitor: Visitor) -> None:
    """§3.16 A Rule that changes nothing is not sent."""
    await _refused_rule(visitor)


async def an_empty_constraint(visitor: Visitor) -> None:
    """§3.17 A Constraint has a kind that there is, and a text."""
    for body in (b"\x01", b"\x00{}", b"\x05{}", b"\x02\xff"):
        peer = await visitor.admitted()
        peer.send(opening())
        peer.write(peer.raw(wire.Constraint, body, request=1))
        await peer.refused(ErrorCode.PROTOCOL)


async def a_constraint_that_is_none(visitor: Visitor) -> None:
    """§5.2 A Constraint that cannot be enforced is refused with CONSTRAINT; the others go on."""
    peer = await visitor.admitted()
    message = wire.Constraint(1, wire.ConstraintKind.REGEX, "(unfinished")
    prompt = peer.prompt(5)
    peer.send(opening(), message, wire.Prompt(1, prompt))
    await Request(peer, opening(), prompt).failed(ErrorCode.CONSTRAINT)
    await peer.open(2).rest()
    await peer.is_alive()


async def how_far_a_prompt_is_read(visitor: Visitor) -> None:
    """§3.18 A Reading comes before Verdict 0, and says no more than there is."""
    peer = await visitor.admitted()
    request = peer.open(1, peer.prompt(60))
    await request.verdict()
    before = list(peer.readings[1])
    await request.rest()
    if not before and not peer.readings[1]:
        raise Skipped("this server does not say how far it has read")
    if peer.readings[1] != before:
        raise Failed("a Reading comes after Verdict 0")
    if any(reading.read_tokens > 60 for reading in before):
        raise Failed(f"{before[-1].read_tokens} tokens of 60 are read")


async def an_adapter_without_a_name(visitor: Visitor) -> None:
    """§3.20 The name of an Adapter has 1 to 64 bytes."""
    for body in (b"", b"x" * 65, b"a\nb", b"\xff"):
        peer = await visitor.admitted()
        peer.send(opening())
        peer.write(peer.raw(wire.Adapter, body, request=1))
        await peer.refused(ErrorCode.PROTOCOL)


async def an_unknown_adapter(visitor: Visitor) -> None:
    """§5.2 An Adapter that the server does not have is refused with ADAPTER; the others go on."""
    peer = await visitor.admitted()
    prompt = peer.prompt(5)
    peer.send(opening(), ADAPTER, wire.Prompt(1, prompt))
    await Request(peer, opening(), prompt).failed(ErrorCode.ADAPTER)
    await peer.open(2).rest()
    await peer.is_alive()


async def _refused_message(visitor: Visitor, *messages: wire.Message) -> None:
    peer = await visitor.admitted()
    peer.send(*messages)
    await peer.refused(ErrorCode.PROTOCOL)


async def _refused_in_a_request(peer: Peer) -> None:
    """Refused; Verdicts of the request may come before."""
    message = await peer.receive()
    if not isinstance(message, wire.Error) or message.code is not ErrorCode.PROTOCOL:
        raise Failed(f"a {type(message).__name__} comes, not PROTOCOL")


async def _refused_rule(
    visitor: Visitor,
    frequency: float = 0.0,
    presence: float = 0.0,
    repetition: float = 1.0,
    biases: Sequence[tuple[int, float]] = (),
) -> None:
    peer = await visitor.admitted()
    peer.send(opening())
    ids = pack_tokens([index for index, _ in biases], peer.vocabulary_size)
    values = struct.pack(f"<{len(biases)}d", *(value for _, value in biases))
    body = _rule_head(len(biases), frequency, presence, repetition) + ids + values
    peer.write(peer.raw(wire.Rule, body, request=1))
    await peer.refused(ErrorCode.PROTOCOL)


def _rule_head(
    biases: int, frequency: float = 0.0, presence: float = 0.0, repetition: float = 1.0
) -> bytes:
    """The body of a Rule with any values, without its biases."""
    return wire.Rule.LAYOUT.pack(frequency, presence, repetition, biases)


async def _refused_open(visitor: Visitor, **values: Any) -> None:
    peer = await visitor.admitted()
    peer.write(peer.raw(wire.Open, _open_body(**values), request=1))
    await peer.refused(ErrorCode.PROTOCOL)


def _id_outside(peer: Peer) -> bytes:
    """The first id that there is none of, packed."""
    size = peer.vocabulary_size
    if size == 1 << token_bits(size):
        raise Skipped(f"every id of {token_bits(size)} bits is in a vocabulary of {size}")
    return size.to_bytes(packed_bytes(1, size), "little")


def _open_body(
    temperature: float = 0.0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    max_tokens: int = 16,
    prompt_tokens: int = 5,
    output_tokens: int = 0,
    logprobs: int = 0,
    stop_ids: int = 0,
) -> bytes:
    """The body of an Open with any values, without stop ids."""
    counts = (max_tokens, prompt_tokens, output_tokens)
    wanted = (logprobs, 32, stop_ids)
    return wire.Open.LAYOUT.pack(0, temperature, top_p, min_p, 0, *counts, *wanted)


async def _refused_for_its_length(peer: Peer, number: int) -> None:
    assert peer.welcome is not None, "a request before the Welcome"
    message = opening(number, peer.welcome.max_context)
    peer.send(message)
    await Request(peer, message, ()).failed(ErrorCode.LIMIT)


async def _has_length(request: Request, count: int) -> None:
    answer = await request.rest()
    if len(answer) != count or request.finish is not wire.Finish.LENGTH:
        raise Failed(f"{len(answer)} tokens come, not {count}, and then {request.finish.name}")


def _context(peer: Peer) -> int:
    assert peer.welcome is not None, "a request before the Welcome"
    if peer.welcome.max_context > LONGEST_CONTEXT:
        raise Skipped(f"a context of {peer.welcome.max_context} tokens is too long to be filled")
    return peer.welcome.max_context


def _requests(peer: Peer) -> int:
    assert peer.welcome is not None, "a request before the Welcome"
    if peer.welcome.max_requests > MOST_REQUESTS:
        raise Skipped(f"{peer.welcome.max_requests} requests are too many to be opened")
    return peer.welcome.max_requests
