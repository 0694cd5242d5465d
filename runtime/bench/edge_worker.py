"""One edge as a process of the bench: a question a line in, an answer with its times a line out.

The edge is the product's own, used as a library; only its passes are paced.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from runtime.bench.device import PacedDrafts
from runtime.bench.records import Answer, Span
from runtime.bench.workers import work
from runtime.config import EdgeConfig
from runtime.edge.client import Edge
from runtime.edge.draft.batcher import Drafts
from runtime.edge.loading import make_drafter


def main() -> None:
    """The first line is {"config": fields of EdgeConfig, "draft_pass_s": seconds}."""
    setup = json.loads(sys.stdin.readline())
    passes: list[Span] = []

    def paced(config: EdgeConfig) -> Drafts:
        return PacedDrafts(make_drafter(config), setup["draft_pass_s"], passes)

    with Edge(EdgeConfig(**setup["config"]), make_drafter=paced) as edge:
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            print(json.dumps(dataclasses.asdict(ask(edge, passes, json.loads(line)))), flush=True)


def ask(edge: Edge, passes: list[Span], question: Mapping[str, Any]) -> Answer:
    """One answer. `question`: the prompt's number and text, fields that override the config's."""
    passes.clear()
    asked_s = time.monotonic()
    arrivals: list[tuple[float, int]] = []
    answer = edge.generate(question["text"], **question.get("options", {}))
    for _ in answer:
        note_arrival(arrivals, len(answer.tokens))
    note_arrival(arrivals, len(answer.tokens))  # a last token may have no text
    stats = answer.statistics
    return Answer(
        prompt=question["prompt"],
        ids=tuple(answer.tokens),
        asked_s=asked_s,
        arrivals=tuple(arrivals),
        verifications=stats.verifications,
        wire_bytes=stats.bytes_sent + stats.bytes_received,
        proactive_hits=stats.hits,
        proactive_rounds=stats.rounds_ahead,
        passes=tuple(passes),
    )


def note_arrival(arrivals: list[tuple[float, int]], tokens: int) -> None:
    """Text has come; a second piece of the same tokens is no arrival of its own."""
    if tokens > (arrivals[-1][1] if arrivals else 0):
        arrivals.append((time.monotonic(), tokens))


if __name__ == "__main__":
    sys.exit(work("runtime.bench.edge_worker", main))
