"""Models on devices of a stated speed: a pass takes at least so long, whatever this machine is.

On one small machine the edges' arithmetic would take the server's cores, and a CPU pays for every
node where an accelerator does not. A pass that sleeps out the rest of its time leaves the cores
free, and drafting and verifying get the proportion of other hardware.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from runtime.bench.records import Span
from runtime.edge.draft.batcher import Drafts
from runtime.edge.draft.speculation import Pass
from runtime.model.engine import Engine, TreeRequest


class PacedDrafts:
    """A drafter of any kind whose runs take at least `pass_s` seconds, as those of PacedEngine."""

    def __init__(self, drafts: Drafts, pass_s: float, spans: list[Span]):
        self.vocabulary_size, self.finish = drafts.vocabulary_size, drafts.finish
        self._drafts, self._pass_s, self._spans = drafts, pass_s, spans

    def run(self, passes: Sequence[Pass]) -> list[bool]:
        """As that of what it paces."""
        start_s = time.monotonic()
        ran = self._drafts.run(passes)
        time.sleep(max(0.0, start_s + self._pass_s - time.monotonic()))
        self._spans.append((start_s, time.monotonic()))
        return ran


class PacedEngine(Engine):
    """An engine whose forward passes take at least `pass_s` seconds, as if on another device.

    It takes the place of `engine`, whose model and KV cache it runs. The span of each pass is put
    behind those in `spans`.
    """

    def __init__(self, engine: Engine, pass_s: float, spans: list[Span]):
        super().__init__(engine.model, engine.kv)
        self.pass_s, self.spans = pass_s, spans

    def forward(self, requests: Sequence[TreeRequest]) -> Tensor:
        """As Engine's, but done when it returns."""
        start_s, device = time.monotonic(), self.model.device
        logits = super().forward(requests)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        time.sleep(max(0.0, start_s + self.pass_s - time.monotonic()))
        self.spans.append((start_s, time.monotonic()))
        return logits
