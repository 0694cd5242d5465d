"""Cases 601 and on: cancelling in every state, requests side by side, and edges that vanish."""

import asyncio

from runtime.conform.peer import Failed, Request, Visitor, opening, plain_answer
from runtime.wire import messages as wire
from runtime.wire.messages import ErrorCode

# About six megabytes of refusals, and four of what they answer: no system keeps so much of a narrow
# connection on its own.
UNREAD_ANSWERS = 60_000


async def cancel_before_the_prompt(visitor: Visitor) -> None:
    """§5.7 A Close before the prompt is answered by a Close."""
    await _cancelled_by_close(visitor, opening())


async def cancel_within_the_prompt(visitor: Visitor) -> None:
    """§5.7 A Close within the prompt is answered by a Close."""
    await _cancelled_by_close(visitor, opening(), wire.Prompt(1, (1, 2)))


async def cancel_while_a_verdict_is_due(visitor: Visitor) -> None:
    """§5.7 A Close while the server owes a Verdict is answered by the server's last word."""
    peer = await visitor.admitted()
    await peer.open(max_tokens=400).cancel()
    await peer.is_alive()


async def cancel_in_the_edges_turn(visitor: Visitor) -> None:
    """§5.7 A Close in place of a Draft is answered by a Close."""
    peer = await visitor.admitted()
    request = peer.open(max_tokens=40)
    await request.turn()
    request.close()
    await peer.expect(wire.Close, 1)
    await peer.is_alive()


async def cancel_after_a_draft(visitor: Visitor) -> None:
    """§5.7 A Close behind a Draft is answered by the server's last word."""
    peer = await visitor.admitted()
    request = peer.open(max_tokens=40)
    await request.turn(nodes=1)
    request.draft([1])
    await request.cancel()
    await peer.is_alive()


async def cancel_while_the_server_decodes(visitor: Visitor) -> None:
    """§5.7 A Close while the server has the turn is answered by its last word."""
    peer = await visitor.admitted()
    request = peer.open(max_nodes=0, max_tokens=400)
    await request.verdict()
    await request.cancel()
    await peer.is_alive()


async def cancel_at_the_end(visitor: Visitor) -> None:
    """§5.7 A Close that crosses the last Verdict is not answered."""
    peer = await visitor.admitted()
    request = peer.open(max_tokens=1)
    await request.verdict()
    request.close()
    await peer.is_alive()


async def cancel_a_refused_request(visitor: Visitor) -> None:
    """§5.7 A Close after the request's Error is not answered."""
    peer = await visitor.admitted()
    assert peer.welcome is not None, "a request before the Welcome"
    message = opening(1, peer.welcome.max_context)
    peer.send(message)
    await Request(peer, message, ()).failed(ErrorCode.LIMIT)
    await peer.is_alive()


async def close_twice(visitor: Visitor) -> None:
    """§5.7 An end says its word once: a second Close is a fault."""
    peer = await visitor.admitted()
    request = peer.open(max_tokens=1)
    await request.verdict()
    peer.send(wire.Close(1), wire.Close(1))
    await peer.refused(ErrorCode.PROTOCOL)


async def a_cancelled_number_again(visitor: Visitor) -> None:
    """§5.7 After the server's Close the number may be opened, and nothing old comes."""
    truth = await plain_answer(visitor)
    peer = await visitor.admitted()
    for _ in range(5):
        await peer.open(3, peer.prompt(30, seed=9), max_nodes=0, max_tokens=300).cancel()
        if await peer.open(3).rest() != truth:
            raise Failed("the new request's answer is another one")


async def cancel_one_of_two(visitor: Visitor) -> None:
    """§5.7 Cancelling a request leaves its neighbour alone."""
    truth = await plain_answer(visitor, max_tokens=24)
    peer = await visitor.admitted()
    kept, given_up = peer.open(1, max_tokens=24), peer.open(2, max_tokens=400)
    await kept.verdict()
    await given_up.cancel()
    if await kept.rest() != truth:
        raise Failed("the other request's answer changes")


async def an_error_in_one_of_two(visitor: Visitor) -> None:
    """§5.4 A request that ends with an Error leaves its neighbour alone."""
    truth = await plain_answer(visitor, max_tokens=24)
    peer = await visitor.admitted()
    kept, refused = peer.open(1, max_tokens=24), peer.open(2, max_tokens=40)
    await refused.turn()
    late = refused.message()
    peer.send(wire.Draft(2, late.round, late.base + 1, (), ()))
    await refused.failed(ErrorCode.PROTOCOL)
    if await kept.rest() != truth:
        raise Failed("the other request's answer changes")


async def two_requests_in_turns(visitor: Visitor) -> None:
    """§1 Requests of a connection go on side by side, each with its own answer."""
    peer = await visitor.admitted()
    prompts = [peer.prompt(5, seed) for seed in (1, 2)]
    truths = [await plain_answer(visitor, prompt, max_tokens=24) for prompt in prompts]
    requests = [peer.open(n, prompt, max_tokens=24) for n, prompt in enumerate(prompts, start=1)]
    while not all(request.finish for request in requests):
        for request in requests:
            if request.granted_nodes is not None:
                request.draft()
            if not request.finish:
                await request.advance()
    if [request.answer for request in requests] != truths:
        raise Failed("an answer is not the request's own")


async def eight_requests_at_once(visitor: Visitor) -> None:
    """§1 Eight requests on one connection have the answers that they have alone."""
    peer = await visitor.admitted()
    prompts = [peer.prompt(3 + seed, seed) for seed in range(8)]
    truths = [await peer.open(1, prompt).rest() for prompt in prompts]
    requests = [peer.open(n, prompt) for n, prompt in enumerate(prompts, start=1)]
    if [await request.rest() for request in requests] != truths:
        raise Failed("an answer is not the request's own")


async def eight_connections_at_once(visitor: Visitor) -> None:
    """§5.2 Requests on eight connections have the answers that they have alone."""
    peers = [await visitor.admitted() for _ in range(8)]
    prompts = [peer.prompt(3 + seed, seed) for seed, peer in enumerate(peers)]
    truths = [await peers[0].open(1, prompt).rest() for prompt in prompts]
    requests = [peer.open(1, prompt) for peer, prompt in zip(peers, prompts, strict=True)]
    answers = await asyncio.gather(*(request.rest() for request in requests))
    if answers != truths:
        raise Failed("an answer is not the request's own")


async def an_edge_that_vanishes(visitor: Visitor) -> None:
    """§4.6 An edge may go in any state of a request; the others are served."""
    for messages in ((), (wire.Prompt(1, (1, 2)),), (wire.Prompt(1, (1, 2, 3, 4, 5)),)):
        peer = await visitor.admitted()
        peer.send(opening(max_tokens=400), *messages)
        peer.hang_up()
    request = (await visitor.admitted()).open(max_tokens=40)
    await request.turn()
    request.draft()
    request.peer.hang_up()
    await (await visitor.admitted()).open().rest()


async def an_edge_that_closes_its_half(visitor: Visitor) -> None:
    """§4.6 An end that closes its half of the stream is gone: the server closes too."""
    peer = await visitor.admitted()
    request = peer.open(max_tokens=400)
    await request.verdict()
    peer.end()
    while not peer.at_end:
        try:
            await peer.receive(1)
        except Failed:
            break
    if not peer.at_end:
        raise Failed("the connection stays open")


async def twenty_edges_that_vanish(visitor: Visitor) -> None:
    """§4.6 What a gone edge held is free: twenty of them leave room for the next."""
    for _ in range(20):
        peer = await visitor.admitted()
        peer.open(1, peer.prompt(100), max_tokens=300)
        peer.hang_up()
    await (await visitor.admitted()).open().rest()


async def an_edge_that_does_not_read(visitor: Visitor) -> None:
    """§4.6 What waits for an edge that does not read is bounded; the others are served."""
    deaf, other = await visitor.admitted(narrow=True), await visitor.admitted()
    assert deaf.welcome is not None, "a request before the Welcome"
    deaf.stop_reading()
    for number in range(1, UNREAD_ANSWERS):
        deaf.send(opening(number, deaf.welcome.max_context), wire.Close(number))
        if not await deaf.goes_on():
            break
        if number % 1000 == 0:
            await other.is_alive()
    else:
        raise Failed(f"{number} answers wait for an edge that reads none")
    await other.open().rest()


async def _cancelled_by_close(visitor: Visitor, *messages: wire.Message) -> None:
    peer = await visitor.admitted()
    peer.send(*messages, wire.Close(1))
    await peer.expect(wire.Close, 1)
    await peer.is_alive()
