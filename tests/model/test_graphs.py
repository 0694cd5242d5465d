"""Padding to recorded sizes changes no bit of a pass, whatever the batch."""

import random
from contextlib import contextmanager

import pytest
import torch

from runtime.model.batch import BatchSize, Joined, TreeRequest
from runtime.model.engine import Engine, PagedKV
from runtime.model.graphs import ROWS, Recorded, holds, sizes_to_record
from tests.model import tiny
from tests.model.tiny import chain, random_tokens

TOKENS = 400  # in a cache


def twins(model, page_size: int) -> tuple[Engine, Engine]:
    """An engine that pads and one that does not, their caches full of NaN."""
    caches = [
        PagedKV(model.kv_shapes, TOKENS // page_size, page_size, torch.float32) for _ in range(2)
    ]
    for cache in caches:
        cache.pools[0].fill_(torch.nan)
    padding, plain = (Engine(model, cache) for cache in caches)
    padding.record(rows=128, requests=6)
    return padding, plain


def size_of(engine: Engine, requests: list[TreeRequest]) -> BatchSize | None:
    """The recorded size at which a batch runs."""
    assert engine._padded is not None
    return engine._padded.size(Joined(requests, engine.kv.page_size))


def random_batch(rng: random.Random, page_size: int) -> list[TreeRequest]:
    """Chunks, decode steps, trees and drafts of requests that have their prompts in the cache."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    pages = torch.randperm(TOKENS // page_size, generator=generator).tolist()
    requests = []
    for _ in range(rng.randint(1, 6)):
        own, pages = pages[: 48 // page_size], pages[48 // page_size :]
        n = rng.choice([1, 1, rng.randint(2, 16)])
        tree = range(-1, n - 1) if rng.random() < 0.3 else tiny.random_tree(n, generator)
        n_new, prefix = rng.choice([n, rng.randint(1, n)]), rng.randint(0, 30)
        rows = rng.sample(range(n_new), rng.randint(0, n_new))
        requests.append(TreeRequest(random_tokens(n_new, generator), tree, prefix, own, rows))
    return requests


def fill_prefixes(engine: Engine, requests: list[TreeRequest]) -> None:
    """Contexts and cached nodes, one request at a time and without padding."""
    for request in requests:
        n_cached = request.n_tokens - len(request.tokens)
        if n_cached:
            tokens = random_tokens(n_cached, torch.Generator().manual_seed(n_cached))
            engine.forward([chain(tokens, 0, request.pages)])


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("name", ["llama-tied", "mistral-window", "qwen3"])
def test_padded_equals_unpadded_to_the_last_bit(pairs, name, page_size):
    rng = random.Random(page_size)
    padding, plain = twins(pairs(name).ours, page_size)
    for _ in range(8):
        requests = random_batch(rng, page_size)
        fill_prefixes(plain, requests)
        padding.kv.pools[0].copy_(plain.kv.pools[0])
        assert size_of(padding, requests), "the batch was meant to be padded"
        assert torch.equal(padding.forward(requests), plain.forward(requests))
        assert torch.equal(padding.kv.pools[0].nan_to_num(7e9), plain.kv.pools[0].nan_to_num(7e9))


def test_a_size_met_again_keeps_nothing_of_the_batch_before(pairs):
    """The second batch has fewer rows, shorter prefixes and other pages in the same buffers."""
    padding, plain = twins(pairs("llama").ours, 4)
    first = [chain(list(range(30)), 0, range(8)), chain(list(range(20)), 0, range(8, 16))]
    second = [chain(list(range(40, 52)), 0, range(20, 24)), chain([7] * 40, 0, range(30, 40))]
    assert size_of(padding, first) == size_of(padding, second)
    for requests in (first, second, first):
        assert torch.equal(padding.forward(requests), plain.forward(requests))


@pytest.mark.parametrize("seed", range(3))
def test_the_first_size_that_holds_a_batch_is_the_least_and_leaves_room_for_the_filling(seed):
    rng = random.Random(seed)
    for _ in range(100):
        check_sizes(rng)


def check_sizes(rng: random.Random) -> None:
    most_rows, n_requests, page_size = rng.randint(1, 600), rng.randint(1, 40), rng.choice([1, 16])
    pages = 1200 // page_size
    recorded = sizes_to_record(most_rows, n_requests + 1, pages, 1200)
    assert len(recorded) <= 2 * len(ROWS)
    rows = rng.randint(1, most_rows)
    exact = BatchSize(
        *(rows, rng.randint(1, min(rows, n_requests))),
        *(rng.randint(1, pages), rng.choice([1, 2, 4]), rows // 2),
    )
    fitting = [size for size in recorded if holds(size, exact, page_size)]
    if not fitting:
        assert rows > ROWS[-1]
        return
    for size in fitting:
        spare = size.rows - rows
        assert 0 <= spare <= size.pages * page_size
        assert size.requests - exact.requests >= (spare > 0)
        assert size.words >= exact.words
    assert min(size.rows for size in fitting) == next(n for n in ROWS if n >= rows)


def test_a_server_records_few_sizes():
    assert len(sizes_to_record(512, 64, 512, 8448)) == 2 * len(ROWS)


def test_recorded_on_the_cpu_is_a_call():
    box = torch.zeros(1)
    double = Recorded(lambda: box * 2, torch.device("cpu"))
    for value in (3.0, 4.0, 5.0):
        box.fill_(value)
        assert double().item() == 2 * value


def test_recorded_compiles_records_and_then_only_replays(monkeypatch):
    """The order of events on a GPU, with a stand-in for the graph; tests/gpu has the real one."""
    events = []

    class Graph:
        def replay(self):
            events.append("replay")

    @contextmanager
    def record(graph, pool, capture_error_mode):
        events.append("record")
        yield

    @contextmanager
    def on(device):
        events.append(str(device))
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "graph", record)
    recorded = Recorded(lambda: events.append("run") or len(events), torch.device("cuda:1"))
    recorded.record()
    assert [recorded() for _ in range(3)] == [4, 4, 4]
    assert events == ["run", "cuda:1", "record", "run", "replay", "replay", "replay"]


def test_nothing_is_recorded_while_serving(pairs):
    """Batches of sizes that were not recorded run as they are, and leave nothing behind."""
    padding, plain = twins(pairs("llama").ours, 4)
    sizes = list(padding._padded._steps)
    for n_requests in (1, 6, 7, 20):
        requests = [chain([1, 2, b], 0, [3 * b]) for b in range(n_requests)]
        assert (size_of(padding, requests) is None) == (n_requests > 6)
        assert torch.equal(padding.forward(requests), plain.forward(requests))
    assert list(padding._padded._steps) == sizes
