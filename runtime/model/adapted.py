"""Adapters beside a model's products: rows of one pass may each have another one, or none.

Each product W x of a layer has the pairs of all adapters as two grouped products, A and then B, of
which a row takes those of its own adapter: B (A x) is added to what W x gave. Nothing is merged, so
rows without an adapter have the bits that they would have without any, and a row's bits do not
depend on its batch. Source: S-LoRA (arXiv:2311.03285), Punica (arXiv:2310.18547).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from runtime.model.adapter import Adapter, LowRank
from runtime.model.batch import AdaptedRows
from runtime.model.config import ModelError
from runtime.model.experts import GroupedLinear
from runtime.model.transformer import GatedMlp, Linear, Transformer


class AddedProducts:
    """What E adapters add to one product H -> M: x [N, H] and the rows that have one of them.

    a: of each adapter [R, H]; b: [M, R], whose rank is filled up to one R with zeros.
    """

    def __init__(self, a: Sequence[Tensor], b: Sequence[Tensor]):
        self.a, self.b = GroupedLinear(a), GroupedLinear(b)

    def __call__(self, out: Tensor, x: Tensor, adapted: AdaptedRows) -> None:
        """Add it to out [N, M]. Rows that have no adapter are not touched."""
        low = self.a(x[adapted.rows], adapted.sets)
        # each row once, so that nothing depends on an order
        out.index_add_(0, adapted.rows, self.b(low, adapted.sets))


def adapt(model: Transformer, adapters: Sequence[Adapter]) -> None:
    """Let rows of the model ask for these adapters, by their place.

    Raises ModelError where there is no memory for them.
    """
    try:
        for index, layer in enumerate(model.layers):
            attention, mlp = (f"model.layers.{index}.{part}" for part in ("self_attn", "mlp"))
            config = model.config
            heads = [config.n_heads, config.n_kv_heads, config.n_kv_heads]
            sizes = [count * config.head_dim for count in heads]
            qkv = dict(zip((f"{attention}.{part}_proj" for part in "qkv"), sizes, strict=True))
            _add(layer.qkv, qkv, adapters, model)
            _add(layer.output, {f"{attention}.o_proj": config.hidden_size}, adapters, model)
            if isinstance(layer.mlp, GatedMlp):
                inner = config.intermediate_size
                gate_up = {f"{mlp}.gate_proj": inner, f"{mlp}.up_proj": inner}
                _add(layer.mlp.gate_up, gate_up, adapters, model)
                down = {f"{mlp}.down_proj": config.hidden_size}
                _add(layer.mlp.down, down, adapters, model)
    except (RuntimeError, MemoryError) as error:
        raise ModelError(f"no memory for {len(adapters)} adapters; give fewer") from error
    model.adapters = tuple(adapter.name for adapter in adapters)


def _add(
    linear: Linear, modules: dict[str, int], adapters: Sequence[Adapter], model: Transformer
) -> None:
    """Put what the adapters add beside a product of some modules, whose outputs are given."""
    joined = [_joined(adapter, modules) for adapter in adapters]
    known = [pair for pair in joined if pair is not None]
    if not known:
        return
    rank, inputs = max(len(pair.a) for pair in known), known[0].a.shape[1]
    a = [torch.zeros(rank, inputs) for _ in joined]
    b = [torch.zeros(sum(modules.values()), rank) for _ in joined]
    for index, pair in enumerate(joined):
        if pair is not None:
            a[index][: len(pair.a)], b[index][:, : len(pair.a)] = pair.a, pair.b
    linear.added = AddedProducts(
        *([half.to(model.device, model.dtype) for half in one] for one in (a, b))
    )


def _joined(adapter: Adapter, modules: dict[str, int]) -> LowRank | None:
    """What an adapter adds to modules of one input: their A one below the other, B as blocks.

    Zeros between the blocks are a few bytes of the products, and save a launch for each module.
    """
    pairs = [adapter.added.get(module) for module in modules]
    known = [pair for pair in pairs if pair is not None]
    if not known:
        return None
    empty = [
        torch.zeros(size, 0) if pair is None else pair.b
        for pair, size in zip(pairs, modules.values(), strict=True)
    ]
    return LowRank(torch.cat([pair.a for pair in known]), torch.block_diag(*empty))
