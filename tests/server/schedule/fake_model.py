"""A model without numbers: the KV of a token is its user and all the text up to it.

Reading a place that holds another text is what sharing, preempting or freeing a page wrongly
would come to.
"""

import random
from collections import deque
from collections.abc import Sequence

from runtime.server.request import Request
from runtime.server.schedule.spill import Transfer
from runtime.server.schedule.step import Work
from runtime.tree import Tree

BONUS = 99  # what it draws after every path


class FakeModel:
    """Writes and checks KV like the engine, and walks trees at random."""

    def __init__(
        self,
        page_size: int,
        dice: random.Random,
        transfers: deque[Transfer[list[object]]] | None = None,
    ):
        self._page_size, self._dice = page_size, dice
        self._transfers = deque[Transfer[list[object]]]() if transfers is None else transfers
        self._kv: dict[int, object] = {}

    def step(self, batch: Sequence[Work]) -> list[list[int]]:
        """Run a batch; the accepted path of every work, empty where nothing was verified."""
        self._move()
        for work in batch:
            request = work.request
            self.check(request, work.start)
            for index in range(work.start, work.start + work.chunk):
                self._write(request, index, request.context[: index + 1])
        return [self._verify(work) if work.verify else [] for work in batch]

    def check(self, request: Request, cached: int) -> None:
        """So much of the request's own text must be in the KV cache."""
        self._move()
        for index in range(cached):
            kv = self._kv.get(self._place(request, index))
            assert kv == (request.user, request.context[: index + 1]), (
                f"request {request.key} reads {kv} at {index}"
            )

    def _move(self) -> None:
        while self._transfers:
            transfer = self._transfers.popleft()
            first = transfer.page * self._page_size
            places = range(first, first + self._page_size)
            if transfer.is_out:
                transfer.kept.copy = [self._kv.get(place) for place in places]
            else:
                assert transfer.kept.copy is not None
                self._kv |= zip(places, transfer.kept.copy, strict=True)

    def _verify(self, work: Work) -> list[int]:
        request = work.request
        if work.follows:  # the token of the step before, whose verdict is not applied yet
            self._write(request, request.root + 1, [*request.context, BONUS])
            return [0]
        draft = request.draft or Tree()
        for node in range(1 + len(draft)):
            path = [draft.tokens[n - 1] for n in draft.path(node)]
            self._write(request, request.root + node, request.context + path)
        node = self._dice.randint(0, len(draft))
        accepted = [0, *draft.path(node)]
        for index, node in enumerate(accepted):
            kept = self._kv[self._place(request, request.root + node)]
            self._kv[self._place(request, request.root + index)] = kept
        return accepted

    def _write(self, request: Request, index: int, text: list[int]) -> None:
        self._kv[self._place(request, index)] = (request.user, text)

    def _place(self, request: Request, index: int) -> int:
        page = request.pages[index // self._page_size]
        return page * self._page_size + index % self._page_size
