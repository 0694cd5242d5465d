"""Replays of recorded passes, on a GPU: the one part of runtime/model/graphs.py that needs it."""

import pytest
import torch

from runtime.model import weights
from runtime.model.engine import Engine, PagedKV, TreeRequest
from tests.model import tiny
from tests.model.tiny import assert_close, chain, random_tokens

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.fixture
def engines(tmp_path) -> list[Engine]:
    """One that records its passes and one that does not."""
    folder = tiny.save(tiny.huggingface_model("llama"), tmp_path)
    model = weights.load(folder, "float32", torch.device("cuda"))
    caches = [PagedKV(model.kv_shapes, 64, 16, torch.float32, "cuda") for _ in range(2)]
    engines = [Engine(model, cache) for cache in caches]
    engines[0].record(rows=64, requests=4)
    return engines


def test_replays_follow_new_trees_pages_and_lengths(engines):
    generator = torch.Generator().manual_seed(1)
    for turn in range(5):
        pages = torch.randperm(64, generator=generator).tolist()
        requests = []
        for b, n in enumerate((5, 1 + turn, 9)):
            own, prefix = pages[4 * b : 4 * b + 4], 3 + 7 * turn
            prompt = random_tokens(prefix, generator)
            for engine in engines:
                engine.forward([chain(prompt, 0, own)])
            tree = tiny.random_tree(n, generator)
            requests.append(
                TreeRequest(random_tokens(n, generator), tree, prefix, own, range(n - 1, -1, -1))
            )
        assert_close(*(engine.forward(requests) for engine in engines))
