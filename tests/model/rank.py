"""One of the ranks that `test_parallel` starts: python -m torch.distributed.run ... this FOLDER.

Runs each model that FOLDER/cases.json lists, and leaves what came of it there, for the test to
judge. What needs no second opinion (draws, whose oracle is the op of one process) it judges itself.
"""

import ctypes
import gc
import json
import mmap
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime.model.batch import NO_ADAPTER
from runtime.model.config import ModelError
from runtime.model.engine import Engine, PagedKV, TreeRequest
from runtime.model.open import open_engine
from runtime.model.parallel import LeaderTells, Ranks, part
from runtime.model.weights import load
from runtime.server.verify.ranks import draw
from specedge_kernels import target_tokens

PAGE, PAGES = 4, 64
SHARED = range(3)  # pages of the first request


def passes(engine, adapter=NO_ADAPTER):
    """Logits of a prompt, then of its tree beside another prompt, then of a part of the tree.

    adapter: of the tree alone.
    """
    prompt, other = [3, 47, 0, 11, 11, 30, 5, 22, 8], [1, 2, 3, 4, 5, 6, 7]
    parents = [-1, 0, 0, 1, 2, 2]
    pages, strangers = [*SHARED, 9, 5], [20, 21]
    chain = lambda tokens, own: TreeRequest(  # noqa: E731
        tokens, range(-1, len(tokens) - 1), 0, own, range(len(tokens))
    )
    yield engine.forward([chain(prompt, pages)])
    tree = TreeRequest([8, 1, 2, 3, 4, 5], parents, len(prompt), pages, range(6), adapter=adapter)
    yield engine.forward([tree, chain(other, strangers)])
    yield engine.forward([TreeRequest([8, 40], parents[:2], len(prompt), pages, [1])])


def engine_of(model):
    return Engine(model, PagedKV(model.kv_shapes, PAGES, PAGE, torch.float32), model.ranks)


def opened(path, weights, adapter, ranks=None):
    """adapter: a folder, or None."""
    adapters = {"one": Path(adapter)} if adapter else {}
    tokens = lambda _: PAGES * PAGE  # noqa: E731
    return open_engine(path, weights, "cpu", tokens, PAGE, adapters=adapters, ranks=ranks)


def tensor_bytes():
    """Of the memory behind all tensors that there are, as far as something was written to it."""
    gc.collect()
    storages = [one.untyped_storage() for one in gc.get_objects() if type(one) is torch.Tensor]
    return sum(map(resident, {one.data_ptr(): one.nbytes() for one in storages}.items()))


def resident(place):
    """Bytes of the pages in memory, of those that begin within so many bytes at an address."""
    address, n_bytes = place
    first, size = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE, address + n_bytes
    pages = -(-max(size - first, 0) // mmap.PAGESIZE)
    found = (ctypes.c_ubyte * pages)()
    if pages and ctypes.CDLL(None).mincore(
        ctypes.c_void_p(first), ctypes.c_size_t(pages * mmap.PAGESIZE), found
    ):
        return 0  # not a place of the host's memory
    return mmap.PAGESIZE * sum(state & 1 for state in found)


def counted(field):
    """Bytes that this process has read or written so far, as the kernel counts them."""
    return int(re.search(rf"{field}: (\d+)", Path("/proc/self/io").read_text())[1])


def run_cases(ranks, folder):
    for number, (path, weights, adapter) in enumerate(
        json.loads((folder / "cases.json").read_text())
    ):
        with torch.inference_mode():
            engine = opened(path, weights, adapter, ranks)
            own = passes(engine, len(engine.model.adapters) - 1)
            rows = [ranks.columns(one, engine.model.vocab_size) for one in own]
        if ranks.rank == 0:
            np.save(folder / f"{number}.npy", torch.cat(rows).numpy())


def check_draws(ranks):
    """Random rows, ties in and across parts, rows of nothing, and every temperature."""
    generator = torch.Generator().manual_seed(3)
    vocab, rows = 101, 400
    logits = torch.randn(rows, vocab, generator=generator) * 3
    logits[40:120] = logits[40:120].round()  # ties
    logits[120:130] = 1.5  # nothing but ties
    logits[130:140, : vocab // 2] = -torch.inf
    logits[140:150, vocab // 2 :] = -torch.inf
    logits[150], logits[151, 7], logits[152, 99], logits[153, 99] = (
        *(-torch.inf, torch.nan),
        *(torch.nan, torch.inf),
    )
    heats = torch.tensor(
        [0.0, 1.0, 0.3, 1e-7, 1e-30, 1e-38, 30.0, 1e38, torch.inf, -1.0, torch.nan]
    )
    heat = heats[torch.randint(len(heats), (rows,), generator=generator)]
    seed, position = torch.randint(-(2**62), 2**62, (2, rows), generator=generator)
    ones, none = torch.ones(rows), torch.zeros(rows)
    expected = target_tokens(logits, heat, none.int(), ones, none, seed, position)
    columns = {"temperature": heat, "seed": seed, "position": position}
    mine = logits[:, slice(*part(ranks.rank, ranks.size, vocab))].contiguous()
    assert torch.equal(draw(ranks, mine, columns, vocab), expected)
    assert (expected == -1).sum() >= 4
    assert len(expected.unique()) > 60


def measure(ranks, folder):
    """What a rank of the larger model reads, holds and sends."""
    before, read = tensor_bytes(), counted("rchar")
    engine = engine_of(load(folder / "large", ranks=ranks))
    held, read = tensor_bytes() - before, counted("rchar") - read
    held -= sum(resident((pool.data_ptr(), pool.nbytes)) for pool in engine.kv.pools)
    n_rows = 64
    request = TreeRequest([*range(n_rows)], range(-1, n_rows - 1), 0, [*range(16)], range(n_rows))
    columns = {
        "temperature": torch.ones(n_rows),
        "seed": torch.zeros(n_rows, dtype=torch.int64),
        "position": torch.arange(n_rows),
    }
    with torch.inference_mode():
        draw(ranks, engine.forward([request]), columns, engine.model.vocab_size)
        sent, told = counted("wchar"), ranks.n_bytes
        draw(ranks, engine.forward([request]), columns, engine.model.vocab_size)
        sent, told = counted("wchar") - sent, ranks.n_bytes - told
    figures = {"read": read, "held": held, "sent": sent, "told": told}
    (folder / f"rank{ranks.rank}.json").write_text(json.dumps(figures))


def main(folder):
    ranks = Ranks.join(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    check_agreement(ranks)
    ranks.begin(torch.device("cpu"), silence_s=60)
    if ranks.rank == 0:
        with ranks.leading(torch.zeros(4, dtype=torch.uint8)):
            run_all(ranks, folder)
        ranks.stop()
    else:
        for _ in ranks.steps():
            run_all(ranks, folder)


def check_agreement(ranks):
    """Where one rank cannot open the model, rank 0 says why, and the others end."""
    with ranks.agreeing():
        assert ranks.least(7 - ranks.rank) == 7 - (ranks.size - 1)
    for who, sentence in ((0, "no memory"), (1, "rank 1: no memory")):
        told = pytest.raises(ModelError, match=f"^{sentence}$")
        with told if ranks.rank == 0 else pytest.raises(LeaderTells), ranks.agreeing():
            if ranks.rank == who:
                raise ModelError("no memory")


def run_all(ranks, folder):
    """All in one step, as it were: between steps rank 0 says that it is there."""
    run_cases(ranks, folder)
    check_draws(ranks)
    measure(ranks, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
