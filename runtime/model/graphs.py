"""Passes at a few fixed sizes, recorded as CUDA graphs: one launch instead of hundreds.

Sizes are recorded before anybody is served, and no others ever: recording takes as long as many
passes. A batch is padded to the least of the sizes that hold it, copied on the device to where the
recorded pass reads it, and the pass is replayed; a batch that none holds runs as it is. On the CPU
a replay is a call of the same function on the same arrays, so all but the capture itself runs there
too. Knows neither layers nor whose requests.
Source: nodes of a verification step padded to few sizes as decoding batches are in vLLM and SGLang.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from runtime.model.batch import BatchSize, Joined, Rows, TreeBatch, take_drawn, tree_batch
from runtime.model.staging import Parcel

ROWS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
WORDS = (1, 4)  # of masks: of trees of up to 64 nodes, and of any

Result = TypeVar("Result")


def sizes_to_record(rows: int, requests: int, pages: int, n_positions: int) -> list[BatchSize]:
    """Sizes for every batch of up to `rows` new nodes, within ROWS.

    `requests` and `pages` are the most that any batch has, and every size has as many: what nobody
    needs of them costs next to nothing. Positions end at n_positions.
    """
    most_rows = least(ROWS, rows) or ROWS[-1]
    return [
        BatchSize(n_rows, requests, pages, words, logits=n_rows)
        for n_rows in ROWS
        for words in WORDS
        # the rows that fill up are a chain, which has as many positions
        if n_rows <= min(most_rows, n_positions)
    ]


class Recorded(Generic[Result]):
    """A function of no arguments that reads and writes the same tensors in every call.

    Once recorded, on a CUDA device, calls are replays. The results of a replay are overwritten by
    the next replay of anything recorded with the same pool.
    """

    def __init__(self, function: Callable[[], Result], device: torch.device, pool: Any = None):
        self._function, self._device, self._pool = function, device, pool
        self._graph: Any = None
        self._result: Result

    def record(self) -> None:
        """Run it, which compiles its kernels, and record it, where there are graphs."""
        self._function()
        if self._device.type != "cuda":
            return
        graph = torch.cuda.CUDAGraph()
        # On a stream of its own device; other threads may use the GPU meanwhile.
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            self._result = self._function()
        self._graph = graph

    def __call__(self) -> Result:
        if self._graph is None:
            return self._function()
        self._graph.replay()
        return self._result


class Step:
    """The pass of one size: where its inputs lie, and what is recorded of it."""

    def __init__(
        self,
        size: BatchSize,
        forward: Callable[[TreeBatch], Tensor],
        device: torch.device,
        pool: Any = None,
    ):
        self.layout = size.layout()
        self.inputs = torch.zeros(self.layout.n_bytes, dtype=torch.uint8, device=device)
        arrays = self.arrays = self.layout.views(self.inputs)
        self.forward = Recorded(lambda: forward(tree_batch(arrays)), device, pool)


class PaddedSteps:
    """Runs batches at recorded sizes.

    `forward` takes a batch to the hidden states [R, H] of its wanted rows and waits for nothing.
    """

    def __init__(
        self,
        forward: Callable[[TreeBatch], Tensor],
        page_size: int,
        device: torch.device,
        sizes: Iterable[BatchSize],
    ):
        pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        # the largest first, into whose memory the others then fit
        ordered = sorted(sizes, key=lambda size: (size.rows, size.words), reverse=True)
        steps = {size: Step(size, forward, device, pool) for size in ordered}
        for size, step in steps.items():
            filling = Parcel(device, {"rows": Rows(Joined((), page_size), size)})
            filling.send()
            step.inputs.copy_(filling.bytes["rows"])
            step.forward.record()
        self._steps = dict(reversed(steps.items()))

    def size(self, joined: Joined) -> BatchSize | None:
        """The size at which the requests run; None if no recorded one holds them."""
        exact, page_size = joined.size(), joined.page_size
        return next((size for size in self._steps if holds(size, exact, page_size)), None)

    def hidden(self, rows: Rows, parcel: Parcel, drawn: Tensor | None) -> Tensor | None:
        """Hidden states [R, H] of the wanted rows; None, and nothing done, where no recorded pass
        has this size. parcel and drawn as for `Engine.run`."""
        step = self._steps.get(rows.size)
        if step is None:
            return None
        step.inputs.copy_(parcel.bytes["rows"])
        if drawn is not None:
            take_drawn(step.arrays, drawn)
        # a copy, made before the next replay overwrites the original
        return step.forward()[: len(rows.joined.logit_rows)].clone()


def holds(size: BatchSize, exact: BatchSize, page_size: int) -> bool:
    """Whether a batch of the sizes `exact` can be filled up to `size`.

    What is filled up is one more request: a chain of the spare rows. A batch with adapters is held
    by none.
    """
    rows = size.rows - exact.rows
    fits = (
        size.requests >= exact.requests + (rows > 0)
        and size.pages >= exact.pages
        and size.words >= exact.words
        and size.logits >= exact.logits
        and exact.adapted == 0
    )
    return fits and 0 <= rows <= size.pages * page_size


def least(sizes: Sequence[int], wanted: int) -> int | None:
    """The first of the increasing sizes that holds `wanted`."""
    return next((size for size in sizes if size >= wanted), None)
