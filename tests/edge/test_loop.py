"""Whole exchanges with a scripted server: the text is the server's, whatever is drafted when."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from runtime.edge.draft.batcher import Batcher
from runtime.edge.draft.drafter import Drafter
from runtime.edge.draft.speculation import Pass, Proactive, Speculation, TreeShape
from runtime.edge.loop import Drafting, Round, generate
from runtime.edge.net.link import ServerError
from runtime.model.engine import Engine, TreeRequest
from runtime.model.open import open_engine
from runtime.sampling import Sampling
from runtime.tree import ROOT
from runtime.wire import messages as wire
from tests.edge.drafting import PROMPT
from tests.edge.scripted import ScriptedServer

SHAPE = TreeShape(16, 4, 4, 3)
TOKENS = 50


@pytest.fixture(scope="module")
def truth(tiny_pair: tuple[Path, Path]) -> list[int]:
    """What the draft model itself would say, but for every sixth token."""
    engine, rng = tiny_engine(tiny_pair), random.Random(0)
    pages, text = engine.kv.allocate(engine.kv.n_free), list(PROMPT)
    while len(text) < len(PROMPT) + TOKENS:
        chain = TreeRequest(text, range(-1, len(text) - 1), 0, pages, (len(text) - 1,))
        likeliest = int(engine.forward([chain]).argmax())
        text.append(rng.randrange(250) if len(text) % 6 == 0 else likeliest)
    return text[len(PROMPT) :]


def tiny_engine(tiny_pair: tuple[Path, Path], kv_tokens: int = 1024) -> Engine:
    return open_engine(str(tiny_pair[1]), "float32", "cpu", lambda model: kv_tokens, 16)


class WatchedDrafter(Drafter):
    """Notes the size of every pass and tells when one has run."""

    def __init__(self, engine: Engine, ran: Callable[[], object] = lambda: None):
        super().__init__(engine)
        self.sizes: list[int] = []
        self._ran = ran

    def run(self, passes: Sequence[Pass]) -> list[bool]:
        self.sizes.append(len(passes))
        done = super().run(passes)
        self._ran()
        return done


@asynccontextmanager
async def batching(drafter: Drafter) -> AsyncIterator[Batcher]:
    batcher = Batcher(drafter)
    try:
        yield batcher
    finally:
        await batcher.close()


def tokens_of(rounds: list[Round]) -> list[int]:
    return [token for round_ in rounds for token in round_.tokens]


@pytest.mark.parametrize("proactive", Proactive)
@pytest.mark.parametrize("seed", range(3))
def test_the_text_is_the_servers_at_any_delay(
    tiny_pair: tuple[Path, Path],
    truth: list[int],
    proactive: Proactive,
    seed: int,
    eager: None,
) -> None:
    """Four requests over one model, with turns, grants and delays drawn at random."""
    drafter = WatchedDrafter(tiny_engine(tiny_pair))

    async def scenario() -> list[list[Round]]:
        async with batching(drafter) as batcher:
            server = ScriptedServer(truth, random.Random(seed))
            link, drafting = server.link(), Drafting(SHAPE, proactive=proactive)

            async def ask(max_tokens: int) -> list[Round]:
                going = generate(link, batcher, PROMPT, Sampling(max_tokens), drafting)
                return [round_ async for round_ in going]

            return await asyncio.gather(*(ask(TOKENS - 9 * n) for n in range(4)))

    answers = asyncio.run(scenario())
    assert [tokens_of(rounds) for rounds in answers] == [truth[: TOKENS - 9 * n] for n in range(4)]
    rounds = [round_ for answer in answers for round_ in answer]
    assert len(rounds) < 0.9 * sum(len(round_.tokens) for round_ in rounds), "nothing was accepted"
    assert max(drafter.sizes) > 1, "requests that run at the same time share passes"
    hits = sum(round_.commit.hit for round_ in rounds)
    assert hits == 0 if proactive is Proactive.OFF else hits > 0
    assert drafter.engine.kv.n_free + len(drafter._last.pages) == drafter.engine.kv.n_pages


@pytest.mark.parametrize("passes", [0, 1, 3])
def test_a_verdict_is_heard_between_two_passes(
    tiny_pair: tuple[Path, Path], truth: list[int], passes: int, eager: None
) -> None:
    """The server answers while a certain pass runs: no other one follows it."""

    async def scenario() -> list[Round]:
        loop = asyncio.get_running_loop()
        held: list[Callable[[], None]] = []
        count = 0

        def hold(answer: Callable[[], None]) -> None:
            nonlocal count
            count = 0
            if passes and len(server.drafts) < 6:  # near its end a text leaves nothing to foresee
                held.append(answer)
            else:
                answer()

        def ran() -> None:
            nonlocal count
            count += 1
            if held and count == passes:
                loop.call_soon_threadsafe(held.pop())

        async with batching(WatchedDrafter(tiny_engine(tiny_pair), ran)) as batcher:
            server = ScriptedServer(truth, random.Random(1), hold)
            server.turns = [wire.Turn.EDGE]
            drafting = Drafting(TreeShape(32, 2, 4, 3), proactive=Proactive.MULTI)
            going = generate(server.link(), batcher, PROMPT, Sampling(TOKENS), drafting)
            return [round_ async for round_ in going]

    rounds = asyncio.run(asyncio.wait_for(scenario(), 120))
    assert tokens_of(rounds) == truth
    assert [round_.passes_ahead for round_ in rounds[:6]] == [passes] * 6


def test_a_draft_waits_for_its_credit_and_says_how_long_it_took(
    tiny_pair: tuple[Path, Path], truth: list[int], eager: None
) -> None:
    """Credits come after ten milliseconds or more: on most machines drafts are full by then."""

    async def scenario() -> ScriptedServer:
        def delay(answer: Callable[[], None]) -> None:
            asyncio.get_running_loop().call_later(0.01, answer)

        async with batching(Drafter(tiny_engine(tiny_pair))) as batcher:
            server = ScriptedServer(truth, random.Random(1), delay)
            server.turns = [wire.Turn.WAIT]
            going = generate(server.link(), batcher, PROMPT, Sampling(TOKENS), Drafting(SHAPE))
            assert tokens_of([round_ async for round_ in going]) == truth
            return server

    server = asyncio.run(asyncio.wait_for(scenario(), 120))
    assert len(server.drafts) > 3
    assert max(len(draft.tokens) for draft in server.drafts) > 8
    # all were drafted while the credit was awaited, but where no more than the bonus is wanted
    last = len(PROMPT) + TOKENS - 1
    assert all(draft.tokens for draft in server.drafts if draft.base < last)


def test_leaving_early_gives_everything_back(
    tiny_pair: tuple[Path, Path], truth: list[int]
) -> None:
    """Cancelled at many moments, some of them inside a pass; the last request runs to its end."""
    drafter = Drafter(tiny_engine(tiny_pair, kv_tokens=256))

    async def scenario() -> None:
        async with batching(drafter) as batcher:
            server = ScriptedServer(truth, random.Random(2))
            link = server.link()

            async def ask() -> list[int]:
                going = generate(link, batcher, PROMPT, Sampling(TOKENS), Drafting(SHAPE))
                return tokens_of([round_ async for round_ in going])

            for steps in range(0, 60, 2):
                task = asyncio.ensure_future(ask())
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert await ask() == truth
            assert not link._inboxes

    asyncio.run(asyncio.wait_for(scenario(), 120))
    assert drafter.engine.kv.n_free + len(drafter._last.pages) == drafter.engine.kv.n_pages


def test_a_pass_that_fails_ends_its_requests(
    tiny_pair: tuple[Path, Path], truth: list[int]
) -> None:
    class Broken(Drafter):
        def run(self, passes: Sequence[Pass]) -> list[bool]:
            raise RuntimeError("no memory")

    async def scenario() -> None:
        async with batching(Broken(tiny_engine(tiny_pair))) as batcher:
            link = ScriptedServer(truth, random.Random(3)).link()
            going = generate(link, batcher, PROMPT, Sampling(TOKENS), Drafting(SHAPE))
            with pytest.raises(RuntimeError, match="no memory"):
                await anext(going)

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_lost_connection_ends_the_text(tiny_pair: tuple[Path, Path], truth: list[int]) -> None:
    async def scenario() -> None:
        async with batching(Drafter(tiny_engine(tiny_pair))) as batcher:
            link = ScriptedServer(truth, random.Random(4)).link()
            going = generate(link, batcher, PROMPT, Sampling(TOKENS), Drafting(SHAPE))
            await anext(going)
            link._on_closed(link._peer, "the server fell silent")
            with pytest.raises(ServerError, match="fell silent"):
                async for _ in going:
                    pass

    asyncio.run(asyncio.wait_for(scenario(), 120))


class Knowing:
    """A drafter that knows the text, and is rather sure of it."""

    vocabulary_size = 260

    def __init__(self, text: Sequence[int]):
        self.text, self.passes = text, 0

    def run(self, passes: Sequence[Pass]) -> list[bool]:
        for one in passes:
            self.passes += 1
            speculation, tree = one.speculation, one.speculation.tree
            speculation.places = []
            speculation.cached = len(speculation.context)
            tree.expanded += [node for node in one.frontier if node != ROOT]
            for node in one.frontier:
                at = len(speculation.context) + len(tree.path(node))
                tree.add_children(node, [(token, -0.05) for token in self.text[at : at + 1]])
        return [True] * len(passes)

    def finish(self, speculation: Speculation) -> None:
        speculation.forget_cache()


@pytest.mark.parametrize("likes_offers", [True, False])
def test_what_is_likely_to_follow_is_offered_where_the_server_likes_it(
    truth: list[int], likes_offers: bool
) -> None:
    """The server decodes plainly, and tells the next token when it has an offer."""
    drafter = Knowing([*PROMPT, *truth])
    offered = 12  # verdicts; near its end a text leaves nothing to offer

    async def scenario() -> tuple[list[Round], list[wire.Offer]]:
        held: list[Callable[[], None]] = []

        def hold(answer: Callable[[], None]) -> None:
            if likes_offers and server.rounds and len(server.offers) < offered:
                held.append(answer)
            else:
                answer()

        async with batching(drafter) as batcher:
            batcher.pace.round_s = 1e6  # time for all passes
            server = ScriptedServer(truth, random.Random(5), hold)
            server.turns, server.likes_offers = [wire.Turn.SERVER], likes_offers
            link, send = server.link(), server.send

            def offer(message: wire.Message) -> None:
                send(message)
                if isinstance(message, wire.Offer) and held:
                    held.pop()()

            server.send = offer  # type: ignore[method-assign]
            going = generate(link, batcher, PROMPT, Sampling(TOKENS), Drafting(SHAPE))
            return [round_ async for round_ in going], server.offers

    rounds, offers = asyncio.run(asyncio.wait_for(scenario(), 120))
    assert tokens_of(rounds) == truth
    if not likes_offers:
        assert (offers, drafter.passes) == ([], 0), "work for nothing"
        return
    assert len(offers) >= offered
    for offer in offers:
        at = offer.base - len(PROMPT)
        assert list(offer.tokens) == truth[at : at + len(offer.tokens)]
        assert len(offer.tokens) > 1, "the next token alone comes too late"


def test_plain_decoding_asks_for_no_draft(tiny_pair: tuple[Path, Path], truth: list[int]) -> None:
    drafter = WatchedDrafter(tiny_engine(tiny_pair))

    async def scenario() -> list[int]:
        async with batching(drafter) as batcher:
            server = ScriptedServer(truth, random.Random(5))
            drafting = Drafting(TreeShape(0, 1, 1, 1))
            going = generate(server.link(), batcher, PROMPT, Sampling(TOKENS), drafting)
            return tokens_of([round_ async for round_ in going])

    assert asyncio.run(scenario()) == truth
    assert drafter.sizes == []
