"""Who holds which page of the KV pool, and which pages a request with the same beginning may share.

A full page of verified text is *published* under a key that names who may share it (a user, with
one adapter or none) and every token up to its end. A request whose context begins with the same
tokens holds that page too instead of computing it again. Nobody writes a published page: chunks and
trees begin behind it. A published page that nobody holds is *idle* and stays until a page is
needed, least recently used first.
Knows pages and keys; refuses to know requests, tensors and which text is verified.
Source: block sharing of PagedAttention (2309.06180, section 4.4), prefix hashes after vLLM.
"""

from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from hashlib import blake2b
from itertools import takewhile

Key = tuple[Hashable, bytes]  # sharers, hash of all tokens up to the page's end


def extend_keys(
    keys: list[Key], sharers: Hashable, context: Sequence[int], page_size_tokens: int
) -> None:
    """Append the keys of the full pages of `context` that `keys` does not have yet.

    The hash has 256 bits: it is all that keeps apart two texts of one user, and users choose
    their texts.
    """
    end = len(context) - page_size_tokens + 1
    for first in range(len(keys) * page_size_tokens, end, page_size_tokens):
        parent = keys[-1][1] if keys else b""
        page = array("I", context[first : first + page_size_tokens]).tobytes()
        keys.append((sharers, blake2b(parent + page, digest_size=32).digest()))


class PrefixCache:
    """Pages of a pool, counted by holders; `allocate` and `free` move them in the pool itself.

    evicted(key, page)  is told of each published page that is given up
    """

    def __init__(
        self,
        n_pages: int,
        allocate: Callable[[int], list[int]],
        free: Callable[[list[int]], None],
        evicted: Callable[[Key, int], object] = lambda key, page: None,
    ):
        self.evictions = 0
        self._evicted = evicted
        self._n_pages, self._n_free = n_pages, n_pages
        self._allocate, self._free = allocate, free
        self._holders: Counter[int] = Counter()
        self._page_of: dict[Key, int] = {}
        self._key_of: dict[int, Key] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    def room(self, beside: Iterable[int] = ()) -> int:
        """Pages that `lend` could give to someone who first holds the pages `beside`."""
        return self._n_free + len(self._idle) - sum(page in self._idle for page in beside)

    def find(self, keys: Iterable[Key]) -> list[int]:
        """The pages of the longest published prefix. They may be evicted until they are held."""
        return [self._page_of[key] for key in takewhile(self._page_of.__contains__, keys)]

    def beyond(self, keys: Sequence[Key]) -> Sequence[Key]:
        """What follows the longest published prefix."""
        return keys[len(self.find(keys)) :]

    def hold(self, pages: Iterable[int]) -> None:
        """Count one more holder of each page."""
        for page in pages:
            self._holders[page] += 1
            self._idle.pop(page, None)

    def lend(self, n: int) -> list[int]:
        """n pages that nobody else holds; idle ones are evicted for them. At most `room()`."""
        assert n <= self.room(), f"{n} pages asked for, {self.room()} can be lent"
        while self._n_free < n:
            self._evict()
        pages = self._allocate(n)
        self._n_free -= n
        self.hold(pages)
        return pages

    def publish(self, key: Key, page: int) -> None:
        """Let others find a held page. The first page with a key keeps it."""
        assert self._holders[page], f"page {page} is published, but nobody holds it"
        if key not in self._page_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def release(self, pages: Sequence[int]) -> None:
        """Count one holder less of each page of a chain; its end becomes idle before its start."""
        for page in reversed(pages):
            assert self._holders[page] > 0, f"page {page} is released, but nobody holds it"
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            del self._holders[page]
            if page in self._key_of:
                self._idle[page] = None
            else:
                self._give_back(page)

    def check(self, held: Iterable[int]) -> None:
        """Recount: `held` names every page once for each holder. Asserts it."""
        counted = Counter(held)
        assert counted == self._holders, f"holders {self._holders}, counted {counted}"
        assert not self._holders.keys() & self._idle.keys(), "a page is both held and idle"
        assert len(self._holders) + len(self._idle) + self._n_free == self._n_pages, (
            f"{len(self._holders)} pages held, {len(self._idle)} idle and {self._n_free} free "
            f"of {self._n_pages}"
        )
        assert self._page_of == {key: page for page, key in self._key_of.items()}, (
            "pages and their keys differ"
        )
        assert self._idle.keys() <= self._key_of.keys(), "an idle page cannot be found"
        assert self._key_of.keys() <= self._holders.keys() | self._idle.keys(), (
            "a page is published, but neither held nor idle"
        )

    def _evict(self) -> None:
        page, _ = self._idle.popitem(last=False)
        key = self._key_of.pop(page)
        del self._page_of[key]
        self._evicted(key, page)
        self._give_back(page)
        self.evictions += 1

    def _give_back(self, page: int) -> None:
        self._free([page])
        self._n_free += 1
