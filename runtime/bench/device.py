"""Models on devices of a stated speed: they take at least so long, whatever this machine is.

On one small machine the edges' arithmetic would take the server's cores, and a CPU pays for every
node where an accelerator does not. A device that sleeps out the rest of its time leaves the cores
free, and drafting and verifying get the proportion of other hardware.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from runtime.bench.records import Span
from runtime.edge.draft.batcher import Drafts
from runtime.edge.draft.speculation import Pass
from runtime.model.engine import Engine, Rows
from runtime.model.staging import Parcel


class PacedDrafts:
    """A drafter of any kind whose runs take at least `pass_s` seconds.

    The span of each run is put behind those in `spans`.
    """

    def __init__(self, drafts: Drafts, pass_s: float, spans: list[Span]):
        self.vocabulary_size, self.finish, self.pass_s = (
            drafts.vocabulary_size,
            drafts.finish,
            pass_s,
        )
        self._drafts, self._spans = drafts, spans

    def run(self, passes: Sequence[Pass]) -> list[bool]:
        """As that of what it paces."""
        start_s = time.monotonic()
        ran = self._drafts.run(passes)
        _sleep_until(start_s + self.pass_s)
        self._spans.append((start_s, time.monotonic()))
        return ran


class PacedTarget(Engine):
    """A target whose steps take at least `step_s` seconds, as if on another device.

    The time is that of the whole verification, as the paper's: the draws and walks of the trees,
    and whatever else is done between the pass and the move of the KV, are part of it. It takes the
    place of `engine`, whose model and KV cache it runs.
    """

    def __init__(self, engine: Engine, step_s: float):
        super().__init__(engine.model, engine.kv)
        self.step_s, self._ends_s = step_s, 0.0

    def run(self, rows: Rows, parcel: Parcel, drawn: Tensor | None = None) -> Tensor:
        """As Engine's; a step that only reads prompts ends with it."""
        self._ends_s = time.monotonic() + self.step_s
        logits = super().run(rows, parcel, drawn)
        if not len(logits):
            self._end()
        return logits

    def compact_verified(
        self, page_table: Tensor, prefix_lens: Tensor, path: Tensor, accepted_lens: Tensor
    ) -> None:
        """As Engine's, and the end of a step that verifies trees."""
        super().compact_verified(page_table, prefix_lens, path, accepted_lens)
        self._end()

    def _end(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        _sleep_until(self._ends_s)


def _sleep_until(then_s: float) -> None:
    time.sleep(max(0.0, then_s - time.monotonic()))
