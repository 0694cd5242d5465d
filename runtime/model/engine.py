"""Model, paged KV cache and the forward pass over both.

Knows requests as token trees with pages; it refuses to know whose they are, and draws no tokens.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from runtime.model.batch import Joined, Rows, TreeBatch, TreeRequest, take_drawn, tree_batch
from runtime.model.config import KVShape
from runtime.model.graphs import PaddedSteps, sizes_to_record
from runtime.model.kv_cache import KeptPath, OutOfPages, PagedKV
from runtime.model.parallel import Ranks
from runtime.model.staging import Parcel
from runtime.model.transformer import Product

__all__ = ["Engine", "KeptPath", "Model", "OutOfPages", "PagedKV", "Rows", "TreeRequest"]


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

    `run` and `compact_verified` never wait for the device. They are called in inference mode, which
    a step enters once: each time costs as much as an op. Where `ranks` share the model, all of them
    call the same in the same order, and logits are of a rank's part of the vocabulary.
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
    def record(self, rows: int, requests: int) -> None:
        """From now on run batches of up to so many new nodes and requests at recorded sizes.

        That is what makes small passes fast on a GPU (graphs.py); a CPU gains nothing from it.
        """
        model, size = self.model, self.kv.page_size
        pages = min(self.kv.n_pages, self.kv.pages_for(model.n_positions))
        sizes = sizes_to_record(rows, requests + 1, pages, model.n_positions)
        self._padded = PaddedSteps(self.hidden, size, model.device, sizes)

    def prepare(self, requests: Sequence[TreeRequest]) -> Rows:
        """What `run` runs, to be packed. Raises ValueError for a request that cannot be run."""
        model, joined = self.model, Joined(requests, self.kv.page_size)
        joined.check(model.vocab_size, model.max_context, self.kv.n_pages, len(model.adapters))
        recorded = self._padded.size(joined) if self._padded else None
        return Rows(joined, recorded or joined.size())

    def run(self, rows: Rows, parcel: Parcel, drawn: Tensor | None = None) -> Tensor:
        """Logits [R, head_size] float32 of the wanted rows: requests in order, rows in order.

        parcel: that `rows` were sent with, under their name; drawn [B] i64: what the step before
        has drawn, on the device, where rows have their tokens of it; -1 where there is none.
        Writes keys and values of the new nodes into the requests' pages. Column c stands for
        token model.head_ids[c] where the model has head_ids.
        """
        if not rows.joined.requests:
            return torch.empty(0, self.model.head_size, device=self.model.device)
        hidden = self._padded.hidden(rows, parcel, drawn) if self._padded else None
        if hidden is None:
            arrays = parcel.tensors("rows")
            if drawn is not None:
                take_drawn(arrays, drawn)
            hidden = self.hidden(tree_batch(arrays))
        return self.model.logits(hidden)

    @torch.inference_mode()
    def forward(self, requests: Sequence[TreeRequest]) -> Tensor:
        """`run` of these requests, by an upload of their own. Raises as `prepare`, and nothing is
        written then."""
        rows = self.prepare(requests)
        parcel = Parcel(self.model.device, {"rows": rows})
        parcel.send()
        return self.run(rows, parcel)

    def hidden(self, batch: TreeBatch) -> Tensor:
        """Hidden states [R, H] of the wanted rows; writes all rows' KV."""
        return self.model.forward(batch, self.kv)

    @torch.inference_mode()
    def compact(self, kept: Sequence[KeptPath]) -> None:
        """After the verdicts: each request's kept nodes become part of its prefix."""
        self.kv.compact(kept)

    def compact_verified(
        self, page_table: Tensor, prefix_lens: Tensor, path: Tensor, accepted_lens: Tensor
    ) -> None:
        """`compact` by verdicts that are still on the device, as `verify` returns them.

        page_table [B, M] i32, prefix_lens [B] i32, path [B, A] i32, accepted_lens [B] i32.
        """
        self.kv.compact_verified(page_table, prefix_lens, path, accepted_lens)


def _listed(shapes: Iterable[KVShape]) -> str:
    """Layers' shapes in words, equal ones counted."""
    return ", ".join(
        f"{n} with {heads} heads of {key} and {value} numbers"
        for (heads, key, value), n in Counter(shapes).items()
    )
