"""Model, paged KV cache and the forward pass over both.

Knows requests as token trees with pages; it refuses to know whose they are, and draws no tokens.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from runtime.model import staging
from runtime.model.batch import Drawn, Joined, TreeBatch, TreeRequest, take_drawn, tree_batch
from runtime.model.config import KVShape
from runtime.model.graphs import PaddedSteps, sizes_to_record
from runtime.model.kv_cache import KeptPath, OutOfPages, PagedKV
from runtime.model.parallel import Ranks
from runtime.model.transformer import Product

__all__ = ["Drawn", "Engine", "KeptPath", "Model", "OutOfPages", "PagedKV", "TreeRequest"]


class Model(Protocol):
    """What the engine runs: our own transformer, or transformers' modules over our kernels.

    On a CPU activations are float32 and a row's bits do not depend on what shares its pass.
    """

    device: torch.device
    dtype: torch.dtype  # of activations
    kv_shapes: tuple[KVShape, ...]  # of each layer
    vocab_size: int
    head_size: int  # logits of a row
    head_ids: Tensor | None  # [head_size] i64, the token of each logit; None: column t is token t
    max_context: int  # tokens of the longest text
    n_positions: int  # that a node can have: those of the text, and a tree's beyond its end
    products: Sequence[Product]  # that adapters can be beside
    adapters: tuple[str, ...]  # names; a request has one by its place among these

    def forward(self, batch: TreeBatch, kv: PagedKV) -> Tensor:
        """Hidden states [R, H] of the wanted rows; writes all rows' KV. Never waits."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [R, head_size] float32 of rows of hidden states [R, H]."""
        ...


class Engine:
    """Runs batches of token trees through a model and keeps their keys and values.

    `forward` and `compact_verified` never wait for the device. Where `ranks` share the model, all
    of them call the same in the same order, and logits are of a rank's part of the vocabulary.
    """

    def __init__(self, model: Model, kv: PagedKV, ranks: Ranks | None = None):
        if kv.shapes != model.kv_shapes:
            raise ValueError(
                "the KV cache was made for another model: layers of "
                f"{_listed(kv.shapes)}, expected {_listed(model.kv_shapes)}"
            )
        self.model, self.kv, self.ranks = model, kv, ranks
        self._padded: PaddedSteps | None = None

    @torch.inference_mode()
    def record(self, rows: int, requests: int, nodes: int = 0) -> None:
        """From now on run batches of up to so many new nodes and requests at recorded sizes.

        That is what makes small passes fast on a GPU (graphs.py); a CPU gains nothing from it.
        Their trees may have up to `nodes` cached nodes together.
        """
        model, size = self.model, self.kv.page_size
        pages = min(self.kv.n_pages, self.kv.pages_for(model.n_positions))
        sizes = sizes_to_record(rows, nodes, requests + 1, pages, model.n_positions)
        self._padded = PaddedSteps(self.hidden, size, model.device, sizes)

    @torch.inference_mode()
    def forward(self, requests: Sequence[TreeRequest]) -> Tensor:
        """Logits [R, head_size] float32 of the wanted rows: requests in order, rows in order.

        Writes keys and values of the new nodes into the requests' pages. Column c stands for
        token model.head_ids[c] where the model has head_ids. Raises ValueError for a request
        that cannot be run; nothing is written then.
        """
        if not requests:
            return torch.empty(0, self.model.head_size, device=self.model.device)
        joined = self._joined(requests)
        hidden = self._padded.hidden(joined) if self._padded else None
        if hidden is None:
            hidden = self.hidden(self._upload(joined))
        return self.model.logits(hidden)

    def check(self, requests: Sequence[TreeRequest]) -> None:
        """Raises ValueError where `forward` would."""
        self._joined(requests)

    def hidden(self, batch: TreeBatch) -> Tensor:
        """Hidden states [R, H] of the wanted rows; writes all rows' KV."""
        return self.model.forward(batch, self.kv)

    @torch.inference_mode()
    def compact(self, kept: Sequence[KeptPath]) -> None:
        """After the verdicts: each request's kept nodes become part of its prefix."""
        self.kv.compact(kept)

    @torch.inference_mode()
    def compact_verified(
        self, page_table: Tensor, prefix_lens: Tensor, path: Tensor, accepted_lens: Tensor
    ) -> None:
        """`compact` by verdicts that are still on the device, as `verify` returns them.

        page_table [B, M] i32, prefix_lens [B] i32, path [B, A] i32, accepted_lens [B] i32.
        """
        self.kv.compact_verified(page_table, prefix_lens, path, accepted_lens)

    def _joined(self, requests: Sequence[TreeRequest]) -> Joined:
        model, joined = self.model, Joined(requests, self.kv.page_size)
        joined.check(model.vocab_size, model.max_context, self.kv.n_pages, len(model.adapters))
        return joined

    def _upload(self, joined: Joined) -> TreeBatch:
        """The tensors of one pass."""
        size = joined.size()
        layout, device = size.layout(), self.model.device
        buffer, arrays = layout.host_buffer(device)
        joined.fill(arrays)
        on_device = layout.views(staging.upload(buffer, device))
        if joined.drawn is not None:
            take_drawn(on_device, joined.drawn)
        return tree_batch(on_device, size.words)


def _listed(shapes: Iterable[KVShape]) -> str:
    """Layers' shapes in words, equal ones counted."""
    return ", ".join(
        f"{n} with {heads} heads of {key} and {value} numbers"
        for (heads, key, value), n in Counter(shapes).items()
    )
