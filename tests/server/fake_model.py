"""A model without numbers: the KV of a token is its tenant and all the text up to it.

Reading a place that holds another text is what sharing, preempting or freeing a page wrongly
would come to.
"""

import random
from collections.abc import Sequence

from runtime.server.scheduler import Work
from runtime.server.session import Session
from runtime.tree import Tree


class FakeModel:
    """Writes and checks KV like the engine, and walks trees at random."""

    def __init__(self, page_size: int, dice: random.Random):
        self._page_size, self._dice = page_size, dice
        self._kv: dict[int, object] = {}

    def step(self, batch: Sequence[Work]) -> list[list[int]]:
        """Run a batch; the accepted path of every work, empty where nothing was verified."""
        for work in batch:
            session = work.session
            self.check(session)
            for index in range(session.cached, session.cached + work.chunk):
                self._write(session, index, session.context[: index + 1])
        return [self._verify(work.session) if work.verify else [] for work in batch]

    def check(self, session: Session) -> None:
        """What counts as cached must be the KV of the session's own text."""
        for index in range(session.cached):
            kv = self._kv.get(self._place(session, index))
            assert kv == (session.tenant, session.context[: index + 1]), (
                f"session {session.key} reads {kv} at {index}"
            )

    def _verify(self, session: Session) -> list[int]:
        draft = session.draft or Tree()
        for node in range(1 + len(draft)):
            path = [draft.tokens[n - 1] for n in draft.path(node)]
            self._write(session, session.root + node, session.context + path)
        node = self._dice.randint(0, len(draft))
        accepted = [0, *draft.path(node)]
        for index, node in enumerate(accepted):
            kept = self._kv[self._place(session, session.root + node)]
            self._kv[self._place(session, session.root + index)] = kept
        return accepted

    def _write(self, session: Session, index: int, text: list[int]) -> None:
        self._kv[self._place(session, index)] = (session.tenant, text)

    def _place(self, session: Session, index: int) -> int:
        page = session.pages[index // self._page_size]
        return page * self._page_size + index % self._page_size
