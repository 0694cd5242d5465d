"""A model of transformers as the engine runs it. Knows rows of tokens and a cache, no files."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from runtime.model.adapter import Base
from runtime.model.backend.attention import Pass
from runtime.model.backend.steady import Steady
from runtime.model.batch import MAX_TREE_NODES, TreeBatch
from runtime.model.config import KVShape
from runtime.model.kv_cache import PagedKV
from runtime.model.transformer import Product
from specedge_kernels import Decoder


class Given:
    """In the place of a model's body, for its head alone: gives the hidden states it was given."""

    def __init__(self) -> None:
        self.last_hidden_state: Tensor

    def __call__(self, *_: Any, **__: Any) -> "Given":
        return self

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        """Caches and the like, of which there are none."""
        return None


class TransformersModel:
    """transformers' modules, their parts replaced; see `load.py` for how it is made.

    causal   the whole model, whose body is `given`; only its head is run, with what the family
             does to logits
    body     the body: embedding, layers and last norm
    running  what the attention of the layers reads
    decoder  all of it in one call, in place of the modules, for models that are plain enough; rows
             with adapters run through the modules still
    products those that adapters can be beside; base is what such adapters are checked against
    """

    head_ids: Tensor | None = None
    products: Sequence[Product] = ()
    adapters: tuple[str, ...] = ()
    base: Base

    def __init__(
        self,
        causal: Any,
        body: Any,
        given: Given,
        running: Pass,
        kv_shapes: tuple[KVShape, ...],
        embedding: Tensor,
        max_context: int,
    ):
        self._causal, self.body, self._given, self._running = causal, body, given, running
        self.decoder: Decoder | None = None
        self.kv_shapes, self.n_layers, self.max_context = kv_shapes, len(kv_shapes), max_context
        self.vocab_size = self.head_size = embedding.shape[0]
        self.device, self.dtype = embedding.device, embedding.dtype
        on_cpu = self.device.type == "cpu"
        self._steady_body: Steady | nullcontext[None] = Steady() if on_cpu else nullcontext()
        self._steady_head: Steady | nullcontext[None] = Steady() if on_cpu else nullcontext()
        self.n_positions = max_context + MAX_TREE_NODES

    def forward(self, batch: TreeBatch, kv: PagedKV) -> Tensor:
        """Hidden states [R, H] of the wanted rows; writes all rows' KV.

        Nodes beyond the context, which are never accepted, are placed at its end.
        """
        positions = batch.positions.clamp(max=self.max_context - 1)
        if self.decoder is not None and batch.adapted is None:
            return self._decoded(batch, positions, kv)
        self._running.begin(batch, kv)
        with self._steady_body:
            found = self.body(
                input_ids=batch.tokens[None], position_ids=positions[None], use_cache=False
            )
        hidden: Tensor = found.last_hidden_state[0]
        return hidden if batch.wanted is None else hidden[batch.wanted]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [R, head_size] float32 of rows of hidden states [R, H]."""
        if self.decoder is not None:
            return self.decoder.logits(hidden)
        self._given.last_hidden_state = hidden[None]
        with self._steady_head:
            logits: Tensor = self._causal(inputs_embeds=hidden[None], use_cache=False).logits
        return logits[0].float()

    def settle(self) -> None:
        """After it has run: leave out what it did not need."""
        self._steady_body = _if_used(self._steady_body)
        self._steady_head = _if_used(self._steady_head)

    def _decoded(self, batch: TreeBatch, positions: Tensor, kv: PagedKV) -> Tensor:
        assert self.decoder is not None
        (pool,) = kv.pools  # all layers have one shape
        return self.decoder(
            batch.tokens,
            positions,
            batch.slots,
            batch.page_table,
            batch.prefix_lens,
            batch.n_nodes,
            batch.offsets,
            batch.ancestors,
            batch.depth,
            pool,
            batch.wanted,
        )


def _if_used(mode: "Steady | nullcontext[None]") -> "Steady | nullcontext[None]":
    return mode if isinstance(mode, Steady) and mode.used else nullcontext()
