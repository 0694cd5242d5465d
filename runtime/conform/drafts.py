"""Cases 401 and on: the turn, and which trees are taken, refused, or end their request."""

import asyncio
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from runtime.conform.peer import Failed, Peer, Request, Skipped, Visitor, plain_answer
from runtime.wire import messages as wire
from runtime.wire.messages import ErrorCode
from runtime.wire.token_bits import pack_tokens, packed_bytes, token_bits

TOKENS = 40  # answers long enough that a server may try what pays
EDGES = 6  # enough that some of them have to wait, where edges ever do
NO_WAIT = "the server never lets an edge wait for a Credit"


async def a_draft_without_nodes(visitor: Visitor) -> None:
    """§5.3 A Draft may have no nodes; its Verdict has node 0."""
    request = await _in_turn(visitor)
    request.draft()
    if (await request.verdict()).node:
        raise Failed("a node of nothing is accepted")


async def as_many_nodes_as_allowed(visitor: Visitor) -> None:
    """§5.3 A Draft may have as many nodes as the turn allows."""
    request = await _in_turn(visitor, nodes=1)
    assert request.granted_nodes is not None, "the turn was waited for"
    nodes = min(request.granted_nodes, request.peer.vocabulary_size)
    request.draft(range(nodes), [0] * nodes)
    await request.verdict()


async def one_node_too_many(visitor: Visitor) -> None:
    """§5.4 More nodes than the turn allows are a fault, LIMIT."""
    request = await _in_turn(visitor, max_nodes=8)
    assert request.granted_nodes is not None, "the turn was waited for"
    request.draft(range(request.granted_nodes + 1), [0] * (request.granted_nodes + 1))
    await request.peer.refused(ErrorCode.LIMIT)


async def no_turn_allows_more_than_the_open(visitor: Visitor) -> None:
    """§5.3 A turn never allows more nodes than Open and Welcome do."""
    peer = await visitor.admitted()
    for number, most in enumerate((1, 3, 255), start=1):
        request = peer.open(number, max_nodes=most)
        await request.rest()  # a Request checks every turn
        request.needs_turn()


async def a_draft_after_the_prompt(visitor: Visitor) -> None:
    """§5.4 A Draft while the server owes a Verdict is a fault."""
    peer = await visitor.admitted()
    prompt = peer.prompt(5)
    message = wire.Draft(1, 1, 6, (), ())
    peer.send(wire.Open(1, 0, 0, 1, 0, 0, 16, 5, ()), wire.Prompt(1, prompt), message)
    await peer.refused(ErrorCode.PROTOCOL)


async def two_drafts_at_once(visitor: Visitor) -> None:
    """§5.4 One Draft is under way at a time."""
    request = await _in_turn(visitor)
    request.peer.send(request.message(), request.message())
    await _refused(request)


async def a_later_round(visitor: Visitor) -> None:
    """§5.4 A Draft of another round than the one due is a fault."""
    await _refused_draft(visitor, round=1)


async def an_earlier_round(visitor: Visitor) -> None:
    """§5.4 A Draft of a round that was answered is a fault."""
    request = await _in_turn(visitor)
    while len(request.verdicts) < 2:
        request.draft()
        await request.turn()
    request.peer.write(_frame(request, round=-1))
    await _refused(request)


async def round_zero(visitor: Visitor) -> None:
    """§3.5 A Draft's round is 1 or more."""
    request = await _in_turn(visitor)
    request.peer.write(_frame(request, round=-len(request.verdicts)))
    await _refused(request)


async def another_base(visitor: Visitor) -> None:
    """§5.4 A base that is not the length of the text ends the request with PROTOCOL, no more."""
    for step in (-1, 1):
        request = await _in_turn(visitor)
        request.peer.write(_frame(request, base=step))
        await request.failed(ErrorCode.PROTOCOL)
        await request.peer.open(2).rest()
        await request.peer.is_alive()


async def a_parent_after_its_node(visitor: Visitor) -> None:
    """§5.4 A node's parent comes before it."""
    await _refused_draft(visitor, tokens=(1, 2), parents=(2, 0))


async def a_node_that_is_its_own_parent(visitor: Visitor) -> None:
    """§5.4 A node is not its own parent."""
    await _refused_draft(visitor, tokens=(1, 2), parents=(0, 2))


async def a_parent_that_is_not_there(visitor: Visitor) -> None:
    """§5.4 A parent is a node of the tree."""
    await _refused_draft(visitor, tokens=(1, 2), parents=(0, 255))


async def equal_siblings(visitor: Visitor) -> None:
    """§5.4 Two children of one node differ."""
    await _refused_draft(visitor, tokens=(1, 2, 1), parents=(0, 0, 0))


async def equal_cousins(visitor: Visitor) -> None:
    """§3.5 Children of different nodes may have the same token."""
    request = await _in_turn(visitor, nodes=4)
    request.draft((1, 2, 3, 3), (0, 0, 1, 2))
    await request.rest()


async def a_drafted_id_outside_the_vocabulary(visitor: Visitor) -> None:
    """§2.3 A drafted id outside the vocabulary is a fault, LIMIT."""
    request = await _in_turn(visitor, nodes=1)
    size = request.peer.vocabulary_size
    if size == 1 << token_bits(size):
        raise Skipped(f"every id of {token_bits(size)} bits is in a vocabulary of {size}")
    packed = size.to_bytes(packed_bytes(1, size), "little")
    request.peer.write(_frame(request, packed=packed + b"\0", nodes=1))
    await request.peer.refused(ErrorCode.LIMIT)


async def a_draft_without_its_parents(visitor: Visitor) -> None:
    """§2.1 A Draft holds a parent for each node."""
    request = await _in_turn(visitor, nodes=1)
    packed = bytes(packed_bytes(1, request.peer.vocabulary_size))
    request.peer.write(_frame(request, packed=packed, nodes=1))
    await _refused(request)


async def a_draft_with_more_than_its_nodes(visitor: Visitor) -> None:
    """§2.1 A Draft holds nothing behind its parents."""
    request = await _in_turn(visitor)
    request.peer.write(_frame(request, packed=b"\0"))
    await _refused(request)


async def a_tree_that_is_too_deep(visitor: Visitor) -> None:
    """§5.4 A path that leaves no place for the bonus ends the request with PROTOCOL, no more."""
    request = await _near_the_end(visitor)
    request.draft([1] * (TOKENS - len(request.answer)))
    await request.failed(ErrorCode.PROTOCOL)
    await request.peer.open(2).rest()


async def a_tree_of_the_greatest_depth(visitor: Visitor) -> None:
    """§5.4 A path may reach to the last token before the bonus."""
    request = await _near_the_end(visitor)
    request.draft([1] * (TOKENS - len(request.answer) - 1))
    await request.verdict()


async def a_long_time_of_drafting(visitor: Visitor) -> None:
    """§3.5 draft_ms may have any value."""
    request = await _in_turn(visitor)
    request.peer.write(_frame(request, draft_ms=65_535))
    request.granted_nodes = None
    await request.verdict()


async def a_draft_after_the_end(visitor: Visitor) -> None:
    """§5.7 A Draft that was under way to a request that the server has ended is dropped."""
    peer = await visitor.admitted()
    request = peer.open(max_tokens=1)
    await request.verdict()
    request.draft()
    request.close()
    await peer.is_alive()


async def a_draft_of_a_closed_request(visitor: Visitor) -> None:
    """§5.1 A Draft for a number that is unused again is a fault."""
    peer = await visitor.admitted()
    await peer.open().cancel()
    peer.send(wire.Draft(1, 1, 6, (), ()))
    await peer.refused(ErrorCode.PROTOCOL)


async def a_draft_without_its_credit(visitor: Visitor) -> None:
    """§5.4 With turn wait a Draft before its Credit is a fault."""
    reason = NO_WAIT
    for _ in range(5):  # those of earlier times keep their turns: sooner or later one has to wait
        request = await _waiting(visitor)
        if request is None:
            continue
        reason = "Credits come sooner than they can be ignored"
        peer, ping = request.peer, wire.Ping(1)
        peer.send(request.message(), ping)
        answer = await peer.receive()
        if isinstance(answer, wire.Error) and answer.code is ErrorCode.PROTOCOL and answer.fatal:
            await peer.ended()
            return
        # a Credit that was on its way already has made it a right Draft
        if answer != wire.Pong(ping.nonce) or not peer.has_mail(request.number):
            raise Failed(f"it is answered by a {type(answer).__name__}, and no Credit has come")
        if not isinstance(await peer.receive(request.number), wire.Credit):
            raise Failed("it is taken without a Credit")
    raise Skipped(reason)


async def one_credit_for_each_wait(visitor: Visitor) -> None:
    """§5.6 A Credit comes once after every Verdict with turn wait, and never otherwise."""
    peers = [await visitor.admitted() for _ in range(EDGES)]
    requests = [peer.open(max_tokens=TOKENS) for peer in peers]
    await asyncio.gather(*(request.rest() for request in requests))  # a Request checks the order
    for peer in peers:
        await peer.is_alive()
    turns = {verdict.turn for request in requests for verdict in request.verdicts}
    if wire.Turn.WAIT not in turns:
        raise Skipped(NO_WAIT)


async def offers_change_nothing(visitor: Visitor) -> None:
    """§5.8 Offers may come at any time, right and wrong ones, and change no answer."""
    peer = await _with_offers(visitor)
    prompt = peer.prompt(5)
    truth = await plain_answer(visitor, prompt, max_tokens=TOKENS)
    request = peer.open(prompt=prompt, max_tokens=TOKENS)
    while not request.finish:
        known = len(request.answer)
        if known < TOKENS - 9:
            request.offer(truth[known : known + 8] if known % 3 else [1, 1, 1])
        await _go_on(request)
    _check_answer(request, truth)


async def an_offer_of_version_1(visitor: Visitor) -> None:
    """§4.2 An Offer where nobody has said version 2 is a fault."""
    peer = await visitor.admitted()
    peer.open(max_tokens=TOKENS).offer([1])
    await peer.refused(ErrorCode.PROTOCOL)


async def an_offer_without_nodes(visitor: Visitor) -> None:
    """§3.22 An Offer has a node at least."""
    peer = await _with_offers(visitor)
    request = peer.open(max_tokens=TOKENS)
    peer.write(peer.raw(wire.Offer, struct.pack("<IB", 5, 0), request=request.number))
    await peer.refused(ErrorCode.PROTOCOL)


async def an_offer_where_no_nodes_are_allowed(visitor: Visitor) -> None:
    """§5.8 An Offer for a request whose Open says that nothing is drafted is a fault, LIMIT."""
    peer = await _with_offers(visitor)
    peer.open(max_tokens=TOKENS, max_nodes=0).offer([1])
    await peer.refused(ErrorCode.LIMIT)


async def an_offer_of_many_nodes(visitor: Visitor) -> None:
    """§5.8 An Offer may have more nodes than a draft: the text is as if it had none."""
    peer = await _with_offers(visitor)
    prompt = peer.prompt(5)
    truth = await plain_answer(visitor, prompt, max_tokens=TOKENS)
    request = peer.open(prompt=prompt, max_tokens=TOKENS, max_nodes=1)
    request.offer(truth[: TOKENS - 1])
    while not request.finish:
        await _go_on(request)
    _check_answer(request, truth)


async def an_offer_beyond_the_text(visitor: Visitor) -> None:
    """§5.8 An Offer from beyond the text ends the request with PROTOCOL, no more."""
    peer = await _with_offers(visitor)
    request = peer.open(max_tokens=TOKENS)
    await request.verdict()
    request.offer([1], base=TOKENS + 100)
    while not isinstance(word := await peer.receive(request.number), wire.Error):
        if isinstance(word, wire.Verdict) and word.finish:
            raise Failed("the request ends as if the Offer were right")
    if word.code is not ErrorCode.PROTOCOL or word.fatal:
        raise Failed(f"it ends with {word.code.name}")
    request.close()
    await peer.is_alive()


async def an_offer_after_the_end(visitor: Visitor) -> None:
    """§5.7 An Offer that was under way to a request that the server has ended is dropped."""
    peer = await _with_offers(visitor)
    request = peer.open(max_tokens=1)
    await request.verdict()
    request.offer([1])
    request.close()
    await peer.is_alive()


async def _go_on(request: Request) -> None:
    """Send an empty Draft where one is due, and take the next Verdict."""
    if request.granted_nodes is not None:
        request.draft()
    await request.advance()


def _check_answer(request: Request, truth: list[int]) -> None:
    request.close()
    if request.answer != truth:
        raise Failed("the answer is another one than without Offers")


async def _with_offers(visitor: Visitor) -> Peer:
    """A connection on which Offers may be sent. Skipped where the server knows none."""
    peer = await visitor.connect()
    peer.hello = replace(peer.hello, version=wire.OFFERS_VERSION)
    try:
        welcome = await peer.greet()
    except Failed as failed:
        raise Skipped(f"version {wire.OFFERS_VERSION} is not spoken: {failed}") from failed
    if welcome.version < wire.OFFERS_VERSION:
        raise Skipped("the server knows no Offers")
    return peer


async def _waiting(visitor: Visitor) -> Request | None:
    """A request that was just told to wait, among others that keep their turns to themselves."""
    requests = [(await visitor.admitted()).open(max_tokens=TOKENS) for _ in range(EDGES)]
    for request in requests:
        while (await request.verdict()).turn is wire.Turn.SERVER and not request.finish:
            pass
        if request.verdicts[-1].turn is wire.Turn.WAIT:
            return request
    return None


async def _in_turn(visitor: Visitor, nodes: int = 0, **options: Any) -> Request:
    """A request whose edge may send a draft of `nodes` nodes."""
    request = (await visitor.admitted()).open(**({"max_tokens": TOKENS} | options))
    await request.turn(nodes)
    return request


async def _near_the_end(visitor: Visitor) -> Request:
    """A request in whose turn a path may have a node for every token that is left."""
    request = await _in_turn(visitor)
    while TOKENS - len(request.answer) > (request.granted_nodes or 0):
        request.draft()
        await request.turn()
    return request


async def _refused_draft(
    visitor: Visitor, round: int = 0, tokens: Sequence[int] = (), parents: Sequence[int] = ()
) -> None:
    request = await _in_turn(visitor, nodes=len(tokens))
    packed = pack_tokens(tokens, request.peer.vocabulary_size) + bytes(parents)
    request.peer.write(_frame(request, round, packed=packed, nodes=len(tokens)))
    await _refused(request)


async def _refused(request: Request) -> None:
    error = await request.peer.refused(ErrorCode.PROTOCOL)
    if error.request:
        raise Failed("the Error is one of the request")


def _frame(
    request: Request,
    round: int = 0,
    base: int = 0,
    draft_ms: int = 0,
    packed: bytes = b"",
    nodes: int = 0,
) -> bytes:
    """A Draft frame; round and base differ from the right ones by what is given."""
    right = request.message()
    head = struct.pack("<IIHB", right.round + round, right.base + base, draft_ms, nodes)
    return request.peer.raw(wire.Draft, head + packed, request=request.number)
