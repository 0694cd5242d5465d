"""Shared pages against a model of a few lines, and keys that tell texts apart."""

import random

import pytest

from runtime.server.schedule.prefix_cache import Key, PrefixCache, extend_keys

N_PAGES = 12


def keys_of(context: list[int], tenant: str = "") -> list[Key]:
    keys: list[Key] = []
    extend_keys(keys, tenant, context, 4)
    return keys


@pytest.fixture
def free_pages() -> list[int]:
    return list(range(N_PAGES))


@pytest.fixture
def cache(free_pages: list[int]) -> PrefixCache:
    def free(pages: list[int]) -> None:
        assert not set(pages) & set(free_pages), "a page was freed twice"
        free_pages.extend(pages)

    return PrefixCache(N_PAGES, lambda n: [free_pages.pop() for _ in range(n)], free)


def test_keys_name_every_token_before_the_end_of_their_page() -> None:
    context = list(range(18))
    keys = keys_of(context)
    assert len(keys) == len(set(keys)) == 4, "the last two tokens fill no page"
    for index in range(18):
        other = [*context]
        other[index] += 1000
        same = [a == b for a, b in zip(keys, keys_of(other), strict=True)]
        assert same == [page < index // 4 for page in range(4)]
    assert keys_of([7] * 16, "a") != keys_of([7] * 16, "b")
    assert len(set(keys_of([7] * 16))) == 4, "the same tokens at another place"


def test_keys_grow_with_the_text() -> None:
    context, keys = list(range(100, 160)), []
    for length in range(61):
        extend_keys(keys, "", context[:length], 4)
        assert keys == keys_of(context[:length])


def test_a_chain_is_evicted_from_its_end(cache: PrefixCache) -> None:
    keys, pages = keys_of(list(range(16))), cache.lend(4)
    for key, page in zip(keys, pages, strict=True):
        cache.publish(key, page)
    cache.release(pages)
    for left in (3, 2, 1, 0):
        held = cache.lend(cache.room() - left)
        assert cache.find(keys) == pages[:left]
        cache.release(held)
    assert cache.evictions == 4


def test_what_is_used_again_stays(cache: PrefixCache) -> None:
    """Least recently used first: the chain that was found once more outlives the other."""
    chains = [keys_of([text] * 4) for text in range(2)]
    for keys in chains:
        (page,) = cache.lend(1)
        cache.publish(keys[0], page)
        cache.release([page])
    pages = cache.find(chains[0])
    cache.hold(pages)
    cache.release(pages)
    cache.lend(N_PAGES - 1)
    assert cache.find(chains[0]) == pages
    assert cache.find(chains[1]) == []


def test_our_own_mistakes_are_assertions(cache: PrefixCache) -> None:
    pages = cache.lend(3)
    with pytest.raises(AssertionError, match="10 pages asked for, 9 can be lent"):
        cache.lend(10)
    cache.release(pages[:1])
    with pytest.raises(AssertionError, match="nobody holds it"):
        cache.release(pages[:1])
    with pytest.raises(AssertionError, match="nobody holds it"):
        cache.publish(keys_of([1] * 4)[0], pages[0])
    cache.check(pages[1:])
    for wrong in (pages, pages[2:], [*pages[1:], pages[1]]):
        with pytest.raises(AssertionError, match="counted"):
            cache.check(wrong)


@pytest.mark.parametrize("seed", range(20))
def test_random_use(cache: PrefixCache, free_pages: list[int], seed: int) -> None:
    """Requests of a small alphabet hold, publish and release; the model keeps lists."""
    dice = random.Random(seed)
    held: list[tuple[list[Key], list[int]]] = []
    published: dict[Key, int] = {}
    unused: list[int] = []  # published and held by nobody, the next to be evicted first
    for _ in range(300):
        holders = [page for _, pages in held for page in pages]
        cache.check(holders)
        assert cache.room() == N_PAGES - len(set(holders))
        assert len(free_pages) == N_PAGES - len(set(holders)) - len(unused)
        assert set(unused) <= set(published.values())
        if held and dice.random() < 0.5:
            keys, pages = held.pop(dice.randrange(len(held)))
            for key, page in [*zip(keys, pages, strict=True)][: dice.randrange(5)]:
                cache.publish(key, page)
                published.setdefault(key, page)
            cache.release(pages)
            others = {page for _, pages in held for page in pages}
            unused += [p for p in reversed(pages) if p in published.values() and p not in others]
            continue
        keys = keys_of([dice.randrange(2) for _ in range(4 * dice.randrange(1, 5))])
        expected = []
        for key in keys:
            if key not in published:
                break
            expected.append(published[key])
        assert cache.find(keys) == expected
        fresh = len(keys) - len(expected)
        assert cache.room(expected) == cache.room() - len(set(expected) & set(unused))
        if fresh > cache.room(expected):
            continue
        cache.hold(expected)
        unused = [page for page in unused if page not in expected]
        for page in unused[: max(0, fresh - len(free_pages))]:
            unused.remove(page)
            published = {key: other for key, other in published.items() if other != page}
        held.append((keys, expected + cache.lend(fresh)))
