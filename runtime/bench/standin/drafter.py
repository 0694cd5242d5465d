"""The stand-in for an edge's drafter: what it proposes is looked up, and a pass takes its time."""

import time
from collections.abc import Sequence

from runtime.bench.records import Span
from runtime.bench.standin.agreement import TOKENS, Agreement
from runtime.edge.draft.speculation import Pass, Speculation
from runtime.tree import ROOT


class StandInDrafter:
    """`Drafts` whose passes take `pass_s` seconds; their spans are put behind those in `spans`."""

    def __init__(self, agreement: Agreement, pass_s: float, spans: list[Span]):
        self.pass_s, self.spans = pass_s, spans
        self._candidates = agreement.candidates.tolist()
        self._scores = agreement.scores.tolist()

    @property
    def vocabulary_size(self) -> int:
        return TOKENS

    def run(self, passes: Sequence[Pass]) -> list[bool]:
        """One pass for all; a text is read whole."""
        start_s = time.monotonic()
        for one in passes:
            speculation = one.speculation
            speculation.places = []
            if one.is_text:
                speculation.cached = len(speculation.context)
            else:
                speculation.tree.expanded += one.frontier
            for node in one.frontier:
                self._offer(speculation, node)
        if self.pass_s:
            time.sleep(max(0.0, start_s + self.pass_s - time.monotonic()))
            self.spans.append((start_s, time.monotonic()))
        return [True] * len(passes)

    def finish(self, speculation: Speculation) -> None:
        """Nothing is kept."""
        speculation.forget_cache()

    def _offer(self, speculation: Speculation, node: int) -> None:
        tree = speculation.tree
        token = speculation.context[-1] if node == ROOT else tree.tokens[node]
        width = speculation.shape.max_branch_width
        found = zip(self._candidates[token][:width], self._scores[token][:width], strict=True)
        tree.add_children(node, found)
