"""The attention function that transformers' modules call: ours, over the paged cache.

transformers finds it by name; what a layer needs beyond its arguments hangs on its module.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runtime.model.batch import AdaptedRows, TreeBatch
from runtime.model.config import KVShape, ModelError
from runtime.model.kv_cache import PagedKV
from specedge_kernels import append_kv, tree_attention

NAME = "specedge"  # of the attention function and of the experts' in transformers' tables
PLACE = "specedge_attention"  # of the layer's part, in its module


class Pass:
    """What the layers of one model read in the pass that is running."""

    batch: TreeBatch
    kv: PagedKV
    adapted: AdaptedRows | None = None  # its rows that have an adapter

    def __init__(self) -> None:
        self._turns: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def begin(self, batch: TreeBatch, kv: PagedKV) -> None:
        self.batch, self.kv, self.adapted = batch, kv, batch.adapted
        self._turns.clear()

    def turns(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The rows' cosines and sines [N, D] as `rope_append_kv` takes them, and row numbers [N].

        Computed once for all layers that are given the same.
        """
        known = self._turns.get(id(cos))
        if known is None:
            half = sin.shape[-1] // 2
            signed = torch.cat((-sin[0, :, :half], sin[0, :, half:]), -1).float()
            places = torch.arange(sin.shape[1], device=sin.device)
            # the cosines as they came are kept, so that nothing else gets their id meanwhile
            known = self._turns[id(cos)] = cos[0].float().contiguous(), signed, places, cos
        return known[:3]


@dataclass(frozen=True)
class AttentionCall:
    """What a layer hands to attention that does not change from pass to pass."""

    layer: int  # transformers' number of it
    shape: KVShape
    n_heads: int
    scale: float
    softcap: float
    window: int  # tokens that a node sees, itself included; -1 for all
    has_sinks: bool
    keeper: int  # which call keeps its keys and values: this one, or an earlier layer's


class Recorder:
    """In the place of a layer's attention while shapes are looked at: notes calls alone."""

    def __init__(self, calls: list[tuple[torch.nn.Module, AttentionCall]]):
        self._calls = calls
        self._keys: dict[int, tuple[int, Tensor]] = {}  # which call brought them first

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, options: Any
    ) -> tuple[Tensor, None]:
        if mask is not None:
            raise ModelError("it brings attention masks of its own, which a tree cannot follow")
        scale, window = options.get("scaling"), options.get("sliding_window")
        keeper, _ = self._keys.setdefault(id(key), (len(self._calls), key))
        self._calls.append(
            (
                module,
                AttentionCall(
                    layer=module.layer_idx,
                    shape=KVShape(key.shape[1], key.shape[3], value.shape[3]),
                    n_heads=query.shape[1],
                    scale=float(query.shape[3] ** -0.5 if scale is None else scale),
                    softcap=float(options.get("softcap") or 0.0),
                    window=-1 if window is None else int(window),
                    has_sinks=options.get("s_aux") is not None,
                    keeper=keeper,
                ),
            )
        )
        return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3]), None


class PagedAttention:
    """Attention of one layer: keys and values go to the cache, queries over their paths.

    index   of its layer in the cache
    appends whether they are its own, and not those of an earlier layer, which are there already
    """

    def __init__(
        self,
        index: int,
        appends: bool,
        call: AttentionCall,
        running: Pass,
        batch_invariant: bool,
    ):
        self.index, self.appends, self.call = index, appends, call
        self.running, self.batch_invariant = running, batch_invariant

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, options: Any
    ) -> tuple[Tensor, None]:
        """query [1, Hq, N, D], key [1, Hk, N, D], value [1, Hk, N, Dv] -> [1, N, Hq, Dv]."""
        if self.appends:
            keys, values = self.running.kv.layers[self.index]
            append_kv(_by_row(key), _by_row(value), keys, values, self.running.batch.slots)
        sinks = options["s_aux"].float() if self.call.has_sinks else None
        return self.attended(_by_row(query), sinks)[None], None

    def attended(self, q: Tensor, sinks: Tensor | None) -> Tensor:
        """What q [N, Hq, D] sees in the cache, [N, Hq, Dv]."""
        batch, call = self.running.batch, self.call
        mixed = tree_attention(
            q,
            *self.running.kv.layers[self.index],
            batch.page_table,
            batch.prefix_lens,
            batch.n_nodes,
            batch.offsets,
            batch.ancestors,
            batch.depth,
            scale=call.scale,
            softcap=call.softcap,
            window=call.window,
            sinks=sinks,
            batch_invariant=self.batch_invariant,
        )
        assert isinstance(mixed, Tensor), "asked for no lse"
        return mixed


def _by_row(heads: Tensor) -> Tensor:
    """[1, H, N, D] -> [N, H, D]."""
    return heads[0].transpose(0, 1).contiguous()


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface. The parameters' names are its own."""
    attention: Any = module.__dict__.get(PLACE)
    if attention is None:
        raise ModelError("it has attention in a module without a layer's number")
    mixed: tuple[Tensor, None] = attention(module, query, key, value, attention_mask, options)
    return mixed
