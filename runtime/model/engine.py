"""Model, paged KV cache and the forward pass over both.

Knows requests as token trees with pages; it refuses to know whose they are, and draws no tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from runtime.model.batch import TreeBatch, TreeRequest, build_batch, check_request
from runtime.model.kv_cache import KeptPath, OutOfPages, PagedKV
from runtime.model.transformer import Transformer

__all__ = ["Engine", "KeptPath", "OutOfPages", "PagedKV", "TreeBatch", "TreeRequest"]


class Engine:
    """Runs batches of token trees through a model and keeps their keys and values."""

    def __init__(self, model: Transformer, kv: PagedKV):
        config = model.config
        cached = kv.kv.shape[0], kv.kv.shape[4], kv.kv.shape[5]
        expected = config.n_layers, config.n_kv_heads, config.head_dim
        if cached != expected:
            raise ValueError(
                "the KV cache was made for another model: layers, heads and head size are "
                f"{cached}, expected {expected}"
            )
        self.model, self.kv = model, kv

    @torch.inference_mode()
    def forward(self, requests: Sequence[TreeRequest]) -> Tensor:
        """Logits [R, head_size] float32 of the wanted rows: requests in order, rows in order.

        Writes keys and values of the new nodes into the requests' pages. Column c stands for
        token model.head_ids[c] where the model has head_ids. Raises ValueError for a request
        that cannot be run; nothing is written then.
        """
        if not requests:
            return torch.empty(0, self.model.config.head_size, device=self.model.device)
        batch = self.batch(requests)
        hidden = self.model.forward(batch, self.kv.layers)  # [N, H]
        return self.model.logits(hidden[batch.logit_rows])

    def batch(self, requests: Sequence[TreeRequest]) -> TreeBatch:
        """The checked tensors of one pass over at least one request."""
        config = self.model.config
        for request in requests:
            check_request(
                request, config.vocab_size, config.max_context, self.kv.n_pages, self.kv.page_size
            )
        return build_batch(requests, self.kv.page_size, self.model.device)

    @torch.inference_mode()
    def compact(self, kept: Sequence[KeptPath]) -> None:
        """After the verdicts: each request's kept nodes become part of its prefix."""
        self.kv.compact(kept)
