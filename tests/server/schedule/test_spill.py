"""Pages that the pool gave up: against a model of two lists, and what is kept for how long."""

import random

import pytest

from runtime.server.schedule.prefix_cache import Key
from runtime.server.schedule.spill import LEAST_WRITING, Spill


def key(number: int) -> Key:
    return "somebody", number.to_bytes(4, "little")


class World:
    """A spill, and the pool and the disk that it tells what to do; a page holds its own key."""

    def __init__(self, memory: int, disk: int = 0):
        self.spill = Spill[Key](memory, disk, self._write, self._drop)
        self.files: dict[Key, Key] = {}
        self.writing: list[Key] = []
        self._pool: dict[int, Key] = {}

    def evict(self, *numbers: int) -> None:
        for number in numbers:
            self._pool[number] = key(number)
            self.spill.evicted(key(number), page=number)
            self._pool[number] = "another text", b""
            # the page is lent at once, and read again only by transfers that were decided before
            self._make({number: key(number)})

    def found(self, *numbers: int) -> int:
        """How many of them are put back, into pages that then hold them."""
        kept = self.spill.find([key(number) for number in numbers])
        for page, one in enumerate(kept):
            self.spill.put_back(one, page)
        self._make({})
        held = [self._pool[page] for page in range(len(kept))]
        assert held == [key(number) for number in numbers[: len(kept)]]
        return len(kept)

    def end_writing(self, succeeded: bool = True) -> None:
        for one in self.writing:
            self.spill.written(one, succeeded)
        self.writing.clear()

    def read(self, *numbers: int) -> int:
        """Bring them from disk; how many files were asked for."""
        keys = self.spill.to_read([key(number) for number in numbers])
        self.spill.was_read([(one, self.files.get(one)) for one in keys])
        self.spill.check()
        return len(keys)

    def _make(self, evicted: dict[int, Key]) -> None:
        while self.spill.transfers:
            transfer = self.spill.transfers.popleft()
            if transfer.is_out:
                transfer.kept.copy = evicted[transfer.page]
            else:
                assert transfer.kept.copy is not None
                self._pool[transfer.page] = transfer.kept.copy
        self.spill.check()

    def _write(self, key: Key, copy: Key) -> None:
        self.files[key] = copy
        self.writing.append(key)

    def _drop(self, key: Key) -> None:
        del self.files[key]


def test_what_was_evicted_comes_back() -> None:
    world = World(memory=4)
    world.evict(3, 2, 1)
    assert world.found(1, 2, 3) == 3
    assert world.found(1, 2, 9, 3) == 2, "a run ends where a page is missing"
    assert world.found(9, 1) == 0
    assert world.spill.hits == 5


def test_nothing_is_kept_without_memory() -> None:
    spill = Spill[Key](memory_pages=0)
    spill.evicted(key(1), 7)
    assert not spill.transfers
    assert not spill.in_memory


def test_a_text_loses_its_end_first() -> None:
    """As the pool gives pages up, and as they were used since."""
    world = World(memory=4)
    world.evict(4, 3, 2, 1)
    world.evict(9)
    assert world.found(1, 2, 3, 4) == 3
    world.evict(8, 7)
    assert world.found(1, 2, 3) == 2, "9 was older than those that were found"


def test_a_page_that_is_evicted_again_is_not_copied_again() -> None:
    spill = Spill[Key](memory_pages=2)
    spill.evicted(key(1), 7)
    spill.evicted(key(1), 8)
    assert [(transfer.page, transfer.is_out) for transfer in spill.transfers] == [(7, True)]


def test_full_memory_goes_to_disk_and_comes_back() -> None:
    world = World(memory=2, disk=4)
    world.evict(6, 5, 4, 3, 2, 1)
    assert sorted(world.files) == [key(number) for number in (3, 4, 5, 6)]
    assert world.read(1, 2, 3, 4) == 0, "files that are being written are not read"
    world.end_writing()
    assert world.found(3) == 0, "admission does not wait for a disk"
    assert world.read(3, 4, 5) == 2, "more than memory holds would push out what was just read"
    assert world.found(3, 4) == 2
    assert world.read(3, 4) == 0
    assert world.writing == [key(2), key(1)], "what gave way to them"
    world.end_writing()
    world.evict(11, 12)
    assert not world.writing, "3 and 4 are on disk already"


def test_what_is_nowhere_is_not_read_and_what_is_in_memory_is_passed_over() -> None:
    world = World(memory=2, disk=4)
    world.evict(4, 3, 2, 1)
    world.end_writing()
    assert world.spill.to_read([key(9), key(3)]) == []
    assert world.spill.to_read([key(1), key(3)]) == [key(3)]
    assert world.spill.to_read([key(1), key(2)]) == []


def test_the_oldest_file_makes_room() -> None:
    world = World(memory=1, disk=2)
    world.evict(1, 2, 3, 4)
    world.end_writing()
    assert sorted(world.files) == [key(2), key(3)]
    assert world.read(2) == 1  # used again, so that 3 is the oldest
    world.evict(5, 6)
    assert key(2) in world.files
    assert key(3) not in world.files


def test_a_file_that_is_lost_is_forgotten() -> None:
    world = World(memory=2, disk=4)
    world.evict(4, 3, 2, 1)
    world.end_writing()
    assert world.read(3, 4) == 2
    world.evict(9, 8)
    world.files[key(3)] = None
    assert world.read(3, 4) == 2
    assert world.found(3) == 0
    assert key(3) not in world.files
    assert world.found(4) == 1


def test_a_disk_that_fails_keeps_nothing() -> None:
    world = World(memory=1, disk=4)
    world.evict(1, 2, 3)
    world.end_writing(succeeded=False)
    assert not world.files
    assert not world.spill.on_disk


def test_a_slow_disk_is_not_waited_for() -> None:
    world = World(memory=1, disk=2 * LEAST_WRITING)
    world.evict(*range(2 * LEAST_WRITING))
    assert len(world.files) == LEAST_WRITING
    world.end_writing()
    world.evict(-1 % 2**31)
    assert len(world.files) == LEAST_WRITING + 1


@pytest.mark.parametrize("pages", [LEAST_WRITING, 4 * LEAST_WRITING])
def test_a_long_text_goes_to_disk_as_a_whole(pages: int) -> None:
    """All its pages are given up at once, before the disk has written the first."""
    world = World(memory=pages, disk=4 * pages)
    for text in range(2):
        world.evict(*reversed(range(text * pages, (text + 1) * pages)))
    world.end_writing()
    assert world.read(*range(pages)) == pages
    assert world.found(*range(pages)) == pages


@pytest.mark.parametrize("seed", range(20))
def test_random_texts(seed: int) -> None:
    """Nothing that is found is another page's, and bounds hold, whatever the disk does."""
    dice = random.Random(seed)
    world = World(memory=dice.randint(1, 6), disk=dice.choice([0, 3, 8]))
    found = 0
    for _ in range(400):
        text = [10 * dice.randrange(4) + page for page in range(dice.randint(1, 5))]
        match dice.randrange(4):
            case 0:
                world.evict(*reversed(text))
            case 1:
                world.read(*text)
            case 2:
                found += world.found(*text)
            case _:
                world.end_writing(succeeded=dice.random() < 0.8)
        world.spill.check()
        assert world.files.keys() == world.spill._disk.keys()
    assert found > 20
