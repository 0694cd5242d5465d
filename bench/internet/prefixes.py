"""What a replica's prefix cache finds: the product's own, with the pages of real proportions.

Keys are numbers of edge, chat and page in place of hashes of texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from runtime.server.schedule.prefix_cache import Key, PrefixCache


@dataclass
class Found:
    """Tokens before the root of all answers, by what became of them."""

    sought: int = 0
    said_before: int = 0  # in the same chat, to whichever replica
    found: int = 0
    no_room: int = 0  # answers for which the pool had no pages beside those of others


@dataclass
class Prefixes:
    """The cache of one replica. Answers begin and end; one that is cut leaves by `forget`."""

    pages: int
    page_tokens: int
    counts: Found = field(default_factory=Found)

    def __post_init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """The replica starts anew, with nothing."""
        free = [*range(self.pages)]

        def allocate(count: int) -> list[int]:
            return [free.pop() for _ in range(count)]

        self._cache = PrefixCache(self.pages, allocate, free.extend)
        self._held: dict[int, tuple[list[Key], list[int]]] = {}

    def begin(self, edge: int, chat: int, history: int, prompt: int, answer: int) -> None:
        """An answer to a prompt after so many tokens of the chat. At most `pages` in all."""
        self.counts.sought += history + prompt
        self.counts.said_before += history
        keys = self._keys(edge, chat, history + prompt + answer)
        root = (history + prompt - 1) // self.page_tokens
        shared = self._cache.find(keys[:root])
        fresh = len(keys) + 1 - len(shared)
        if fresh > self._cache.room(beside=shared):
            self.counts.no_room += 1
            return
        self.counts.found += len(shared) * self.page_tokens
        self._cache.hold(shared)
        self._held[edge] = keys, shared + self._cache.lend(fresh)

    def end(self, edge: int) -> None:
        """The answer of an edge is complete and can be found from now on, if it had room."""
        if edge in self._held:
            keys, pages = self._held.pop(edge)
            for key, page in zip(keys, pages, strict=False):
                self._cache.publish(key, page)
            self._cache.release(pages)

    def check(self) -> None:
        """Recount."""
        self._cache.check(page for _, pages in self._held.values() for page in pages)

    def _keys(self, edge: int, chat: int, tokens: int) -> list[Key]:
        sharers = edge, chat
        return [(sharers, PAGE[page]) for page in range(tokens // self.page_tokens)]


PAGE: Sequence[bytes] = [page.to_bytes(2, "little") for page in range(1 << 12)]
