"""Pages that the KV pool gave up: kept in host memory, and behind it on disk, by their keys.

A published page that is evicted is copied to host memory before another text is written to it. A
request whose context begins with its tokens gets a fresh page and the copy in it, where it would
else compute them again. Where host memory is full, the page that was used least recently goes to
disk; there again the oldest makes room. What is on disk must be read into memory before the request
is admitted; admission itself never waits.

The event loop decides, and whoever runs the model makes the `transfers`, in the order of the
decisions: before a page that was evicted can be written to, and before a page can be attended to.
So a copy that is decided and not made yet counts as made for all decisions after it.

Knows keys and pages; refuses to know requests, tensors and files.
Source: the levels of LMCache (arXiv:2510.09665) and of SGLang's HiCache, one page at a time.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Generic, TypeVar

from runtime.server.schedule.prefix_cache import Key

Copy = TypeVar("Copy")  # of a page, as the pool makes it

# A disk may be slower than eviction, and a long text gives up all its pages at once. As many wait
# to be written as memory holds, or these, and what is more is let go. With fewer a text would lose
# its start, without which what else there is of it cannot be used.
LEAST_WRITING = 64


@dataclass(eq=False)
class Kept(Generic[Copy]):
    """A page in host memory; `copy` is there once the transfer that makes it has been made."""

    copy: Copy | None = None


@dataclass(frozen=True)
class Transfer(Generic[Copy]):
    """A page of the pool to be copied out, or a copy to be put into one."""

    page: int
    kept: Kept[Copy]
    is_out: bool


class Spill(Generic[Copy]):
    """At most so many pages in memory and on disk, each used least recently first to go.

    write  begins to write a page to disk; `written` is called when that has ended
    drop   forgets a page on disk, written or being written
    """

    def __init__(
        self,
        memory_pages: int,
        disk_pages: int = 0,
        write: Callable[[Key, Copy], object] = lambda key, copy: None,
        drop: Callable[[Key], object] = lambda key: None,
    ):
        self.transfers: deque[Transfer[Copy]] = deque()
        self.memory_pages, self.disk_pages = memory_pages, disk_pages
        self.most_writing = max(memory_pages, LEAST_WRITING)
        self.hits = 0  # pages that were put back
        self._write, self._drop = write, drop
        self._memory: OrderedDict[Key, Kept[Copy]] = OrderedDict()
        self._disk: OrderedDict[Key, bool] = OrderedDict()  # whether it is all there
        self.writing = 0  # pages that are on their way to disk

    @property
    def in_memory(self) -> int:
        """Pages in host memory."""
        return len(self._memory)

    @property
    def on_disk(self) -> int:
        """Pages on disk, those that are being written included."""
        return len(self._disk)

    def evicted(self, key: Key, page: int) -> None:
        """The pool gives up a page: keep what is in it."""
        if not self.memory_pages:
            return
        if key not in self._memory:
            kept: Kept[Copy] = Kept()
            self.transfers.append(Transfer(page, kept, is_out=True))
            self._memory[key] = kept
        self._memory.move_to_end(key)
        self._make_room()

    def find(self, keys: Iterable[Key]) -> list[Kept[Copy]]:
        """The longest run of these pages that is in memory, from the first on."""
        run = [*takewhile(self._memory.__contains__, keys)]
        self._use(run)
        return [self._memory[key] for key in run]

    def put_back(self, kept: Kept[Copy], page: int) -> None:
        """Have a copy put into a page that nobody has read or written since it was lent."""
        self.transfers.append(Transfer(page, kept, is_out=False))
        self.hits += 1

    def to_read(self, keys: Iterable[Key]) -> list[Key]:
        """What must be read from disk so that `find` finds the longest run that there is."""
        run = [*takewhile(lambda key: key in self._memory or self._disk.get(key, False), keys)]
        run = run[: self.memory_pages]
        self._use(run)
        return [key for key in run if key not in self._memory]

    def was_read(self, copies: Sequence[tuple[Key, Copy | None]]) -> None:
        """Pages that came from disk, in the order of their text; None where one is lost."""
        for key, copy in copies:
            if copy is None:
                self._forget(key)
            elif key not in self._memory:
                self._memory[key] = Kept(copy)
        self._use([key for key, _ in copies if key in self._memory])
        self._make_room()

    def written(self, key: Key, succeeded: bool) -> None:
        """What `write` began has ended."""
        self.writing -= 1
        if key in self._disk:
            if succeeded:
                self._disk[key] = True
            else:
                self._forget(key)

    def check(self) -> None:
        """Recount. Asserts it."""
        assert len(self._memory) <= self.memory_pages, f"{len(self._memory)} pages in memory"
        assert len(self._disk) <= self.disk_pages, f"{len(self._disk)} pages on disk"
        assert 0 <= self.writing <= self.most_writing, f"{self.writing} pages are being written"

    def _use(self, run: Sequence[Key]) -> None:
        """They are the last to go; of a text its end goes before its start."""
        for key in reversed(run):
            for level in (self._memory, self._disk):
                if key in level:
                    level.move_to_end(key)

    def _make_room(self) -> None:
        while len(self._memory) > self.memory_pages:
            key, kept = self._memory.popitem(last=False)
            if key in self._disk:
                self._disk.move_to_end(key)
            elif self.disk_pages and kept.copy is not None and self.writing < self.most_writing:
                self._to_disk(key, kept.copy)

    def _to_disk(self, key: Key, copy: Copy) -> None:
        if len(self._disk) == self.disk_pages:
            self._forget(next(iter(self._disk)))
        self._disk[key] = False
        self.writing += 1
        self._write(key, copy)

    def _forget(self, key: Key) -> None:
        if self._disk.pop(key, None) is not None:
            self._drop(key)
