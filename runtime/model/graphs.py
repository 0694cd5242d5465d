"""Passes at a few fixed sizes, recorded as CUDA graphs: one launch instead of hundreds.

A batch is padded to the least of these sizes that holds it, copied to where the recorded pass
reads it, and the pass is replayed. On the CPU a replay is a call of the same function on the same
arrays, so all but the capture itself runs there too. Knows neither layers nor whose requests.
Source: nodes of a verification step padded to few sizes as decoding batches are in vLLM and SGLang.
"""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from runtime.model.batch import BatchSize, TreeBatch, TreeRequest, fill, tree_batch

# A prompt chunk larger than the last of them runs as it is.
ROWS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
NODES = (64, 128, 256, 512, 1024)  # where some are cached, as in drafting
PAGES = (64, 256, 1024, 4096, 16384)

Result = TypeVar("Result")


def graph_pool(device: torch.device) -> Any:
    """Memory for recorded passes that are replayed one after the other; None on a CPU."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


class Recorded(Generic[Result]):
    """A function of no arguments that reads and writes the same tensors in every call.

    On a CUDA device the first call runs it, which compiles its kernels, the second records it,
    and from then on calls are replays: a size met only once costs no recording. The results of a
    replay are overwritten by the next replay of anything recorded with the same pool.
    """

    def __init__(self, function: Callable[[], Result], device: torch.device, pool: Any = None):
        self._function, self._device, self._pool = function, device, pool
        self._n_calls = 0
        self._graph: Any = None
        self._result: Result

    def __call__(self) -> Result:
        self._n_calls += 1
        if self._device.type != "cuda" or self._n_calls == 1:
            return self._function()
        if self._graph is None:
            self._record()
        self._graph.replay()
        return self._result

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self._result = self._function()
        self._graph = graph


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
        self.arrays = self.layout.views(self.inputs)
        self.forward = Recorded(lambda: forward(tree_batch(self.arrays, size.words)), device, pool)


class PaddedSteps:
    """Runs batches at padded sizes; each size is set up when it is first met.

    `forward` takes a batch to the hidden states [R, H] of its wanted rows and waits for nothing;
    the positions that it accepts end at n_positions.
    """

    def __init__(
        self,
        forward: Callable[[TreeBatch], Tensor],
        page_size: int,
        n_positions: int,
        device: torch.device,
    ):
        self._forward, self._device = forward, device
        self._page_size, self._n_positions = page_size, n_positions
        self._pool = graph_pool(device)
        self._steps: dict[BatchSize, Step] = {}

    def size(self, requests: Sequence[TreeRequest]) -> BatchSize | None:
        """The size at which the requests run; None if they are more than any size holds."""
        size = padded(BatchSize.of(requests, self._page_size), self._page_size)
        # the rows that fill up are a chain, which has as many positions as nodes
        return size if size and size.nodes <= self._n_positions else None

    def hidden(self, requests: Sequence[TreeRequest]) -> Tensor | None:
        """Hidden states [R, H] of the wanted rows; None, and nothing done, if there is no size."""
        size = self.size(requests)
        if size is None:
            return None
        step = self._steps.get(size)
        if step is None:
            step = self._steps[size] = Step(size, self._forward, self._device, self._pool)
        buffer, arrays = step.layout.host_buffer(self._device)
        fill(arrays, requests, self._page_size)
        step.inputs.copy_(buffer, non_blocking=True)
        n_logits = sum(len(request.logit_rows) for request in requests)
        # a copy, made before the next replay overwrites the original
        return step.forward()[:n_logits].clone()


def padded(size: BatchSize, page_size: int) -> BatchSize | None:
    """The least recorded size that holds a batch of `size`, None if there is none.

    One request more than a power of two where rows or nodes are filled up: they are its own.
    """
    rows = least(ROWS, size.rows)
    if rows is None:
        return None
    nodes = least(NODES, size.nodes - size.rows + rows) if size.nodes > size.rows else rows
    if nodes is None or size.logits > rows:
        return None
    pages = least(PAGES, max(size.pages, -(-nodes // page_size)))
    if pages is None:
        return None
    filled_up = (rows, nodes) != (size.rows, size.nodes)
    requests = (1 << (size.requests - 1).bit_length()) + filled_up
    return BatchSize(rows, nodes, requests, pages, size.words, logits=rows)


def least(sizes: Sequence[int], wanted: int) -> int | None:
    """The first of the increasing sizes that holds `wanted`."""
    return next((size for size in sizes if size >= wanted), None)
