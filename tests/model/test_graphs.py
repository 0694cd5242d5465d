"""Padding to recorded sizes changes no bit of a pass, whatever the batch."""

import random
from contextlib import contextmanager

import pytest
import torch

from runtime.model.batch import BatchSize, TreeRequest
from runtime.model.engine import Engine, KeptPath, PagedKV
from runtime.model.graphs import NODES, PAGES, ROWS, Recorded, padded
from tests.model import tiny
from tests.model.tiny import chain, random_tokens

TOKENS = 400  # in a cache


def twins(model, page_size: int) -> tuple[Engine, Engine]:
    """An engine that pads and one that does not, their caches full of NaN."""
    caches = [
        PagedKV(model.config, TOKENS // page_size, page_size, torch.float32) for _ in range(2)
    ]
    for cache in caches:
        cache.kv.fill_(torch.nan)
    return Engine(model, caches[0], pad=True), Engine(model, caches[1])


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
        padding.kv.kv.copy_(plain.kv.kv)
        assert padding._padded.size(requests), "the batch was meant to be padded"
        assert torch.equal(padding.forward(requests), plain.forward(requests))
        assert torch.equal(padding.kv.kv.nan_to_num(7e9), plain.kv.kv.nan_to_num(7e9))


def test_a_size_met_again_keeps_nothing_of_the_batch_before(pairs):
    """The second batch has fewer rows, shorter prefixes and other pages in the same buffers."""
    padding, plain = twins(pairs("llama").ours, 4)
    first = [chain(list(range(30)), 0, range(8)), chain(list(range(20)), 0, range(8, 16))]
    second = [chain(list(range(40, 52)), 0, range(20, 24)), chain([7] * 40, 0, range(30, 40))]
    assert padding._padded.size(first) == padding._padded.size(second)
    for requests in (first, second, first):
        assert torch.equal(padding.forward(requests), plain.forward(requests))


def test_more_rows_than_any_size_run_as_they_are(pairs):
    padding, plain = twins(pairs("llama").ours, 4)
    requests = [chain([1] * 100, 0, range(i * 25, i * 25 + 25)) for i in range(4)]
    assert padding._padded.size(requests[:2])
    # 400 rows would be filled up by a chain of 112, and the model has positions for 384
    assert padding._padded.size(requests) is None
    assert torch.equal(padding.forward(requests), plain.forward(requests))


@pytest.mark.parametrize("seed", range(3))
def test_the_least_size_that_holds_a_batch(seed):
    rng = random.Random(seed)
    for _ in range(300):
        check_padded(rng)


def check_padded(rng: random.Random) -> None:
    n_requests = rng.randint(1, 40)
    rows = rng.randint(n_requests, 520)
    cached = rng.choice([0, 0, rng.randint(1, 600)])
    page_size = rng.choice([1, 16, 64])
    exact = BatchSize(
        rows, rows + cached, n_requests, rng.randint(1, 5000), rng.choice([1, 2, 4]), rows // 2
    )
    size = padded(exact, page_size)
    if size is None:
        assert rows > ROWS[-1] or cached > NODES[-1] - ROWS[-1]
        return
    spare = size.rows - rows, size.nodes - exact.nodes
    assert size.rows in ROWS
    assert size.nodes in (size.rows, *NODES)
    assert size.pages in PAGES
    assert 0 <= spare[0] <= spare[1]
    assert size.requests - any(spare) >= n_requests > (size.requests - any(spare)) / 2
    assert size.pages >= exact.pages
    assert size.pages * page_size >= spare[1], "the chain that fills up must fit its pages"
    assert (size.words, size.logits) == (exact.words, size.rows)
    assert size.rows == next(n for n in ROWS if n >= rows)


def test_batches_of_a_few_requests_share_few_sizes():
    exact = [
        BatchSize(n, n, b, p, 1, n) for b in range(1, 17) for n in range(b, 65) for p in (1, 9)
    ]
    assert len({padded(size, 16) for size in exact}) <= 60


def test_recorded_on_the_cpu_is_a_call():
    box = torch.zeros(1)
    double = Recorded(lambda: box * 2, torch.device("cpu"))
    for value in (3.0, 4.0, 5.0):
        box.fill_(value)
        assert double().item() == 2 * value


def test_recorded_runs_once_records_once_then_replays(monkeypatch):
    """The order of events on a GPU, with a stand-in for the graph; tests/gpu has the real one."""
    events = []

    class Graph:
        def replay(self):
            events.append("replay")

    @contextmanager
    def record(graph, pool, capture_error_mode):
        events.append("record")
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    recorded = Recorded(lambda: events.append("run") or len(events), torch.device("cuda"))
    assert [recorded() for _ in range(4)] == [1, 3, 3, 3]
    assert events == ["run", "record", "run", "replay", "replay", "replay"]


def test_verdicts_on_the_device_compact_like_those_read_from_it(pairs, generator):
    model = pairs("llama").ours
    engines = twins(model, 4)
    parents, paths = [-1, 0, 0, 2, 2, 4], [[0, 2, 4, 5], [0], [0, 1]]
    trees = [
        TreeRequest(random_tokens(6, generator), parents, n, range(10 * i, 10 * i + 6), range(6))
        for i, n in enumerate((3, 0, 11))
    ]
    for engine in engines:
        engine.kv.kv.copy_(torch.randn(engine.kv.kv.shape, generator=generator.manual_seed(1)))
        engine.forward(trees)
    path = torch.full((3, 6), -1, dtype=torch.int32)
    for row, nodes in zip(path, paths, strict=True):
        row[: len(nodes)] = torch.tensor(nodes)
    lengths = torch.tensor([len(nodes) for nodes in paths], dtype=torch.int32)
    engines[0].compact_verified(trees, path, lengths)
    engines[1].compact(
        [KeptPath(t.pages, t.prefix_len, p) for t, p in zip(trees, paths, strict=True)]
    )
    assert torch.equal(engines[0].kv.kv, engines[1].kv.kv)
