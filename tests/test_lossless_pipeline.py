"""The same claim with everything on: slots, credits, drafting ahead, preemption, a prefix cache.

The server has KV for a quarter of what its edges want, batches of four trees, and decides itself
who drafts; the edges draft ahead, in every mode, over links that delay each message by another
time; prompts begin alike; some requests are given up midway. Some edges make offers: of what they
expect, or of nonsense, for a text of some time ago. Whatever is finished is plain text.
"""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.bench.link import Conditions, emulated_link
from runtime.config import parse_address
from runtime.edge.draft.batcher import Batcher, Drafts
from runtime.edge.draft.lookup_drafter import LookupDrafter
from runtime.edge.draft.speculation import Proactive, TreeShape
from runtime.edge.draft.suffixes import Earlier
from runtime.edge.loop import Drafting, generate
from runtime.edge.net.link import Link
from runtime.edge.statistics import Statistics
from runtime.sampling import Sampling
from runtime.wire.messages import OFFERS_VERSION, Offer, Turn
from tests.processes import running_server
from tests.test_lossless import Pair

EDGES = 12
BEGINNING = "All of these prompts begin with the same words, which fill more than two pages. "


@pytest.fixture(scope="module")
def pair(tiny_pair: tuple[Path, Path]) -> Pair:
    return Pair(str(tiny_pair[0]), str(tiny_pair[1]))


@pytest.fixture(scope="module", params=["open", "drr"])
def server(request: pytest.FixtureRequest, tiny_pair: tuple[Path, Path]) -> Iterator[str]:
    """A small server behind a slow and unsteady link."""
    options = ["--model", str(tiny_pair[0]), "--port", "0", "--threads", "1"]
    limits = ["--kv-tokens", "640", "--max-nodes", "63", "--max-batch", "4"]
    limits += ["--max-step-nodes", "128", "--chunk-tokens", "32", "--credits", request.param]
    conditions = Conditions(rtt_s=0.002, jitter_s=0.01)
    with (
        running_server(*options, *limits) as address,
        emulated_link(address, conditions) as far_address,
    ):
        yield far_address


async def ask(
    address: str,
    pair: Pair,
    prompt: list[int],
    sampling: Sampling,
    how: Drafting,
    rounds: int,
    drafter: Drafts | None = None,
    liar: random.Random | None = None,
    offers: bool = False,
) -> list[int] | None:
    """The answer of an edge of its own; None if it gives up after so many rounds.

    With a drafter of its own it makes offers, and with the draft model if it `offers`; a liar makes
    others beside them.
    """
    version = OFFERS_VERSION if offers or drafter else pair.hello.version
    hello = replace(pair.hello, version=version)
    link = await Link.open(*parse_address(address), hello)
    batcher, tokens = Batcher(drafter or pair.drafter()), []
    going = generate(link, batcher, prompt, sampling, how)
    given_up = False
    async for round_ in going:
        tokens += round_.tokens
        if liar is not None and how.shape.max_budget and not round_.verdict.finish:
            base = len(prompt) + liar.randint(0, len(tokens))
            known = [*tokens[base - len(prompt) :], *liar.choices(range(250), k=3)]
            chain = tuple(known[: how.shape.max_budget])
            link._send(Offer(round_.verdict.request, base, chain, tuple(range(len(chain)))))
        rounds -= 1
        if rounds == 0:
            given_up = True
            break
    await going.aclose()
    await batcher.close()
    await link.close()
    return None if given_up else tokens


@pytest.mark.parametrize("seed", range(3))
def test_every_finished_text_is_the_plain_text(pair: Pair, server: str, seed: int) -> None:
    rng = random.Random(seed)
    jobs, expected = [], []
    for edge in range(EDGES):
        prompt = pair.tokenizer.encode(BEGINNING * rng.randint(0, 1) + f"edge {edge} " * 3)
        sampling = Sampling(
            max_tokens=rng.randint(20, 60),
            temperature=rng.choice((0.0, 0.7, 1.0)),
            top_p=rng.choice((1.0, 0.9)),
            seed=rng.randrange(1000),
        )
        shape = TreeShape(rng.choice((0, 4, 16, 63)), 6, 4, 4)
        how = Drafting(shape, rng.random() < 0.8, rng.choice(list(Proactive)))
        rounds = rng.choice((-1, -1, -1, 2, 5))
        drafter = LookupDrafter(Earlier(1 << 18)) if edge % 2 else None
        liar = random.Random(edge) if edge % 4 == 3 else None
        jobs.append((prompt, sampling, how, rounds, drafter, liar, rng.random() < 0.7))
        expected.append(pair.plain_text(prompt, sampling))

    async def everyone() -> list[list[int] | None]:
        return await asyncio.gather(*(ask(server, pair, *job) for job in jobs))

    texts = asyncio.run(asyncio.wait_for(everyone(), 240))
    finished = [text for text in texts if text is not None]
    assert [text or plain for text, plain in zip(texts, expected, strict=True)] == expected
    assert len(finished) >= EDGES // 3


def test_what_was_read_before_gives_tokens(pair: Pair, server: str) -> None:
    """One edge alone, which has read its answer before: some tokens come without a step."""
    prompt = pair.tokenizer.encode("alone ")
    sampling = Sampling(max_tokens=40)
    expected = pair.plain_text(prompt, sampling)

    async def alone() -> tuple[list[int], int]:
        statistics = Statistics()
        hello = replace(pair.hello, version=OFFERS_VERSION)
        link = await Link.open(*parse_address(server), hello)
        earlier = Earlier(1 << 18)
        earlier.add([*prompt, *expected])
        batcher, tokens, more = Batcher(LookupDrafter(earlier)), [], 0
        how = Drafting(TreeShape(16, 6, 4, 4))
        async for round_ in generate(link, batcher, prompt, sampling, how):
            tokens += round_.tokens
            more += round_.verdict.turn is Turn.MORE
            statistics.count(round_)
        assert more <= statistics.accepted_nodes <= statistics.drafted_nodes
        assert statistics.verifications + statistics.accepted_nodes == len(tokens)
        await batcher.close()
        await link.close()
        return tokens, statistics.accepted_nodes

    for _ in range(3):  # the first finds out what the edge's drafts are worth
        tokens, accepted = asyncio.run(asyncio.wait_for(alone(), 240))
        assert tokens == expected
        if accepted:
            return
    raise AssertionError("nothing that the edge foresaw was taken along")


def test_afterwards_every_page_is_free(pair: Pair, server: str) -> None:
    """A request that needs nearly the whole pool is admitted, and gives the plain text."""
    prompt = pair.tokenizer.encode("z" * 500)
    sampling = Sampling(max_tokens=60, temperature=1.0, seed=9)
    how = Drafting(TreeShape(16, 6, 4, 4))
    text = asyncio.run(asyncio.wait_for(ask(server, pair, prompt, sampling, how, -1), 240))
    assert text == pair.plain_text(prompt, sampling)
