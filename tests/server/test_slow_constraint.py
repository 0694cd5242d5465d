"""A constraint that takes long to be walked holds up its own request, and nobody else's step."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.constraint import Constraint
from runtime.edge.net.link import ServerError
from tests.server.in_loop import run, serving

WORDS = -(-260 // 32)


class HeldGuide:
    """Allows everything, as soon as the test lets it."""

    given = ()

    def __init__(self) -> None:
        self.asked: list[Future[Any]] = []  # one for each draft
        self.is_new = True

    def masks(self, tokens: Sequence[int], parents: Sequence[int]) -> Future[Any]:
        if self.is_new:
            self.asked.append(Future())
            self.is_new = False
        return self.asked[-1]

    def allow(self) -> None:
        self.asked[-1].set_result(np.full((1, WORDS), -1, np.int32))

    def advance(self, tokens: Sequence[int]) -> None:
        assert self.asked[-1].done(), "a verdict without its masks"
        self.is_new = True


class HeldGuides:
    def __init__(self) -> None:
        self.given = HeldGuide()

    async def guide(self, constraint: object, answer: Sequence[int]) -> HeldGuide:
        return self.given

    def close(self) -> None:
        pass


class BrokenGuides(HeldGuides):
    async def guide(self, constraint: object, answer: Sequence[int]) -> HeldGuide:
        raise MemoryError("no memory for a grammar")


def test_what_breaks_before_the_first_step_ends_that_request(tiny_pair: tuple[Path, Path]) -> None:
    """In a sentence: it would wait for ever."""

    async def scenario() -> None:
        async with serving(tiny_pair[0]) as it:
            it.server.edges.guides = BrokenGuides()
            edge, any_text = it.edge(), Constraint("regex", ".*")
            with pytest.raises(ServerError, match="no memory for a grammar"):
                await edge.generate("broken", constraint=any_text, raw=True, max_tokens=5).text
            assert not it.server.requests
            await edge.generate("whole", raw=True, max_tokens=5).text

    run(scenario)


def test_others_go_on_while_masks_are_awaited(tiny_pair: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        async with serving(tiny_pair[0]) as it:
            it.server.edges.guides = guides = HeldGuides()
            edge = it.edge()
            options = {"raw": True, "max_tokens": 5}
            expected = edge.generate("held up", **options)
            await expected.text
            any_text = Constraint("regex", ".*")
            held = edge.generate("held up", constraint=any_text, **options)
            guide = guides.given
            for count in range(1, 6):
                await it.until(lambda count=count: len(guide.asked) == count)
                # a whole answer of somebody else, from its prompt to its end
                other = edge.generate("the others", **options)
                await other.text
                assert other.finish_reason == "length"
                assert len(held.tokens) == count - 1
                it.server.scheduler.check()
                guide.allow()
            await held.text
            assert held.tokens == expected.tokens

    run(scenario)


def test_one_that_leaves_meanwhile_is_forgotten(tiny_pair: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        async with serving(tiny_pair[0]) as it:
            it.server.edges.guides = guides = HeldGuides()
            edge = it.edge()
            any_text = Constraint("regex", ".*")
            held = edge.generate("held up", raw=True, max_tokens=5, constraint=any_text)
            await it.until(lambda: bool(guides.given.asked))
            held.cancel()
            await it.until(lambda: not it.server.requests)
            guides.given.allow()
            await asyncio.sleep(0)
            after = edge.generate("the others", raw=True, max_tokens=3)
            await after.text
            it.server.scheduler.check()
            assert it.free_pages == it.all_pages

    run(scenario)
