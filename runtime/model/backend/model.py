"""A model of transformers as the engine runs it. Knows rows of tokens and a cache, no files."""

from contextlib import nullcontext
from typing import Any

from torch import Tensor

from runtime.model.backend.attention import Pass
from runtime.model.backend.steady import Steady
from runtime.model.batch import MAX_TREE_NODES, TreeBatch
from runtime.model.config import KVShape
from runtime.model.kv_cache import PagedKV


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
    base     the body: embedding, layers and last norm
    running  what the attention of the layers reads
    unsteady whether they use functions whose bits depend on the batch; see `steady.py`
    """

    head_ids: Tensor | None = None

    def __init__(
        self,
        causal: Any,
        base: Any,
        given: Given,
        running: Pass,
        kv_shapes: tuple[KVShape, ...],
        embedding: Tensor,
        max_context: int,
        unsteady: bool,
    ):
        self._causal, self._base, self._given, self._running = causal, base, given, running
        self.kv_shapes, self.n_layers, self.max_context = kv_shapes, len(kv_shapes), max_context
        self.vocab_size = self.head_size = embedding.shape[0]
        self.device, self.dtype = embedding.device, embedding.dtype
        self._steady = Steady() if unsteady and self.device.type == "cpu" else nullcontext()
        self.n_positions = max_context + MAX_TREE_NODES

    def forward(self, batch: TreeBatch, kv: PagedKV) -> Tensor:
        """Hidden states [R, H] after the last norm of the wanted rows; writes all rows' KV.

        Nodes beyond the context, which are never accepted, are placed at its end.
        """
        self._running.batch, self._running.kv = batch, kv
        positions = batch.positions.clamp(max=self.max_context - 1)
        with self._steady:
            found = self._base(
                input_ids=batch.tokens[None], position_ids=positions[None], use_cache=False
            )
        hidden: Tensor = found.last_hidden_state[0]
        return hidden if batch.wanted is None else hidden[batch.wanted]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [R, head_size] float32 of rows of hidden states [R, H]."""
        self._given.last_hidden_state = hidden[None]
        with self._steady:
            logits: Tensor = self._causal(inputs_embeds=hidden[None], use_cache=False).logits
        return logits[0].float()
