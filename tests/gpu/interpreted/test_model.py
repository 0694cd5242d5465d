"""A whole model through the kernels of a GPU: a drafted token has the bits of plain decoding."""

from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from runtime.model import experts, transformer, weights
from runtime.model.adapted import adapt
from runtime.model.adapter import base_of, load_adapter
from runtime.model.batch import NO_ADAPTER
from runtime.model.engine import TreeRequest
from specedge_kernels import ops
from specedge_kernels.gpu.grouped_linear import grouped_linear
from specedge_kernels.gpu.linear import linear
from tests.model import tiny
from tests.model.adapters import EVERYTHING, random_pairs, save_folder
from tests.model.tiny import chain, random_tokens

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs its own model")


class Launchers:
    """Stands where torch's dispatcher does, and takes every op to its Triton launcher."""

    def __getattr__(self, op):
        module = import_module(f"specedge_kernels.gpu.{op}")
        return SimpleNamespace(default=getattr(module, op))


def dot_in_order(_, a, b, total, *__):
    product = np.einsum("mk,kn->mn", a.data, b.data)
    return TensorHandle(product + total.data, total.dtype.scalar)


@pytest.mark.long
@pytest.mark.parametrize("adapter", [NO_ADAPTER, 1])
def test_a_tree_among_strangers_equals_plain_decoding(tmp_path, monkeypatch, adapter):
    model = tiny.huggingface_model("qwen3")
    folder = tiny.save(model, tmp_path / "model")
    theirs = weights.load(folder)
    paths = [
        save_folder(tmp_path / str(seed), random_pairs(model, EVERYTHING, 4, seed))
        for seed in range(2)
    ]
    adapters = [load_adapter(path.name, path, base_of(theirs.config)) for path in paths]
    adapt(theirs, adapters)
    for module in (transformer, experts):
        monkeypatch.setattr(module, "pack_linear", lambda weight: weight)
    monkeypatch.setattr(transformer.Transformer, "_decoder", lambda self: None)
    ours = weights.load(folder)
    adapt(ours, adapters)

    def row_of(tokens, prefix_len, pages, of=adapter):
        return replace(chain(tokens, prefix_len, pages), adapter=of)

    generator = torch.Generator().manual_seed(1)
    prompt, tree = random_tokens(3, generator), random_tokens(4, generator)
    stranger, parents, path = random_tokens(2, generator), [-1, 0, 0, 2], [2, 3]
    engine = tiny.engine_of(theirs)
    text = prompt + [tree[node] for node in (0, *path)]
    on_cpu = engine.forward([row_of(text, 0, engine.kv.allocate(2))])[-len(path) :]

    monkeypatch.setattr(transformer, "linear", linear)
    monkeypatch.setattr(experts, "grouped_linear", grouped_linear)
    monkeypatch.setattr(ops, "_ops", Launchers())
    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot_in_order)
    engine = tiny.engine_of(ours)
    own, other, again = (engine.kv.allocate(2) for _ in range(3))
    engine.forward([row_of(prompt, 0, own), row_of([*prompt, tree[0]], 0, again)])
    drafted = TreeRequest(tree, parents, len(prompt), own, path, adapter=adapter)
    drafted = engine.forward([row_of(stranger, 0, other, of=0), drafted])[-len(path) :]
    plain = [
        engine.forward([row_of([tree[node]], len(prompt) + 1 + i, again)])
        for i, node in enumerate(path)
    ]
    assert torch.equal(drafted, torch.cat(plain))
    torch.testing.assert_close(drafted, on_cpu, rtol=1e-4, atol=1e-3)
