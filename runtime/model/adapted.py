"""Adapters beside a model's products: rows of one pass may each have another one, or none.

Each product W x of a layer has the pairs of all adapters as two grouped products, A and then B, of
which a row takes those of its own adapter: B (A x) is added to what W x gave. Nothing is merged, so
rows without an adapter have the bits that they would have without any, and a row's bits do not
depend on its batch. Source: S-LoRA (arXiv:2311.03285), Punica (arXiv:2310.18547).
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from runtime.model.adapter import Adapter, LowRank
from runtime.model.batch import AdaptedRows
from runtime.model.config import ModelError
from runtime.model.engine import Model
from runtime.model.experts import GroupedLinear
from runtime.model.transformer import Product


class AddedProducts:
    """What E adapters add to one product K -> M: x [N, K] and the rows that have one of them."""

    def __init__(self, pairs: Sequence["JoinedPair"], device: torch.device):
        self.a = GroupedLinear(pair.a.to(device) for pair in pairs)
        self.b = GroupedLinear(pair.b.to(device) for pair in pairs)
        self.scale = torch.stack([pair.scale for pair in pairs]).to(device)

    def __call__(self, out: Tensor, x: Tensor, adapted: AdaptedRows) -> None:
        """Add it to out [N, M]. Rows that have no adapter are not touched."""
        low = self.a(x[adapted.rows], adapted.sets)
        low *= self.scale[adapted.sets[:, 0]]
        # each row once, so that nothing depends on an order
        out.index_add_(0, adapted.rows, self.b(low, adapted.sets))


class JoinedPair(NamedTuple):
    """What an adapter adds to the modules of one product."""

    a: Tensor  # [R, K], that of one module below the other's
    b: Tensor  # [M, R], in blocks: zeros between them are few bytes, and save launches
    scale: Tensor  # [R] float32


def adapt(model: Model, adapters: Sequence[Adapter]) -> None:
    """Let rows of the model ask for these adapters, by their place.

    Raises ModelError where there is no memory for them.
    """
    try:
        for product in model.products:
            _add(product, adapters, model)
    except (RuntimeError, MemoryError) as error:
        raise ModelError(f"no memory for {len(adapters)} adapters; give fewer") from error
    model.adapters = tuple(adapter.name for adapter in adapters)


def _add(product: Product, adapters: Sequence[Adapter], model: Model) -> None:
    """Put beside a product what the adapters add to its modules."""
    pairs = [[adapter.added.get(module) for module in product.outputs] for adapter in adapters]
    known = [pair for of_one in pairs for pair in of_one if pair is not None]
    if not known:
        return
    dtypes = [half.dtype for pair in known for half in (pair.a, pair.b)]
    on_cpu, inputs = model.device.type == "cpu", known[0].a.shape[1]
    dtype = functools.reduce(torch.promote_types, dtypes) if on_cpu else model.dtype
    ranks = [sum(len(pair.a) for pair in of_one if pair is not None) for of_one in pairs]
    outputs = [*product.outputs.values()]
    joined = [_joined(of_one, outputs, inputs, max(ranks), dtype) for of_one in pairs]
    product.linear.added = AddedProducts(joined, model.device)


def _joined(
    pairs: Sequence[LowRank | None],
    outputs: Sequence[int],
    inputs: int,
    rank: int,
    dtype: torch.dtype,
) -> JoinedPair:
    """The pairs of one adapter, None for a module that it leaves as it is, filled up to a rank."""
    a, b = torch.zeros(rank, inputs, dtype=dtype), torch.zeros(sum(outputs), rank, dtype=dtype)
    scale, low, first = torch.zeros(rank), 0, 0
    for pair, size in zip(pairs, outputs, strict=True):
        if pair is not None:
            columns = slice(low, low + len(pair.a))
            a[columns], b[first : first + size, columns] = pair.a, pair.b
            scale[columns] = pair.scale
            low = columns.stop
        first += size
    return JoinedPair(a, b, scale)
