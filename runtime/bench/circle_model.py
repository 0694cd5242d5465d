"""A model without arithmetic: each token has one successor, so that a text is known in advance."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from runtime.model.batch import MAX_TREE_NODES, TreeBatch
from runtime.model.config import KVShape
from runtime.model.engine import PagedKV
from runtime.model.transformer import Product


class CircleModel:
    """The token after t is (factor · t + 1) mod vocab_size: with a factor of 1, or of 1 more than a
    multiple of 4 where vocab_size is a power of two, all tokens form one circle.

    `hold` is called in every pass, in the model's thread.
    """

    device, dtype = torch.device("cpu"), torch.float32
    kv_shapes: tuple[KVShape, ...] = (KVShape(1, 1, 1),)
    head_ids: Tensor | None = None
    products: Sequence[Product] = ()
    adapters: tuple[str, ...] = ()

    def __init__(
        self,
        vocab_size: int,
        max_context: int,
        factor: int = 1,
        hold: Callable[[], object] = lambda: None,
    ):
        self.vocab_size = self.head_size = vocab_size
        self.max_context, self.n_positions = max_context, max_context + MAX_TREE_NODES
        self._factor, self._hold = factor, hold

    def forward(self, batch: TreeBatch, kv: PagedKV) -> Tensor:
        """The tokens of the wanted rows; there are no keys and values to write."""
        self._hold()
        return batch.tokens[batch.wanted, None]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [R, V] float32 that leave no choice."""
        following = (self._factor * hidden + 1) % self.vocab_size
        return torch.zeros(len(hidden), self.vocab_size).scatter_(1, following, 1.0)
