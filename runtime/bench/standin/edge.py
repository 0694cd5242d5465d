"""One edge with a stand-in draft as a process of the bench: a question a line in, an answer out.

The product's own link, drafting and pacing; only the draft model is looked up.
"""

import asyncio
import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from runtime.bench.records import Answer, Span
from runtime.bench.standin import texts
from runtime.bench.standin.agreement import TOKENS
from runtime.bench.standin.calibration import agreement
from runtime.bench.standin.drafter import StandInDrafter
from runtime.bench.standin.target import IDENTITY
from runtime.config import parse_address
from runtime.edge.draft.batcher import Batcher
from runtime.edge.draft.speculation import Proactive, TreeShape
from runtime.edge.loop import Drafting, generate
from runtime.edge.net.link import Link
from runtime.sampling import Sampling
from runtime.wire import messages as wire

HASH = IDENTITY.vocabulary_hash(TOKENS)


class StandInEdge:
    """An edge that is connected; its passes take `pass_s`."""

    def __init__(self, link: Link, row: str, pass_s: float, drafting: Drafting):
        self.spans: list[Span] = []
        drafter = StandInDrafter(agreement(row), pass_s, self.spans)
        self._link, self._batcher, self._drafting = link, Batcher(drafter), drafting

    async def answer(self, number: int, first: int, tokens: int) -> Answer:
        """`tokens` of the text from `first` on, which must be right. Raises ServerError."""
        self.spans.clear()
        link, asked_s = self._link, time.monotonic()
        bytes_before = link.bytes_sent + link.bytes_received
        ids: list[int] = []
        arrivals: list[tuple[float, int]] = []
        rounds = ahead = hits = 0
        sampling = Sampling(max_tokens=tokens, temperature=0.0, seed=1, stop_ids=())
        async for round_ in generate(
            link, self._batcher, texts.prompt(first), sampling, self._drafting
        ):
            ids += round_.tokens
            if round_.verdict.turn is wire.Turn.MORE:
                continue  # the rest of its step comes with it
            arrivals.append((time.monotonic(), len(ids)))
            rounds, hits = rounds + 1, hits + round_.commit.hit
            ahead += round_.commit.n_ahead > 0
        if ids != texts.answer(first, tokens):
            raise ValueError(f"answer {number} is not the target's text")
        wire_bytes = link.bytes_sent + link.bytes_received - bytes_before
        passes = tuple(self.spans)
        return Answer(
            *(number, tuple(ids), asked_s, tuple(arrivals), rounds),
            wire_bytes=wire_bytes,
            proactive_hits=hits,
            proactive_rounds=ahead,
            passes=passes,
        )


async def answer_all(setup: Mapping[str, Any]) -> None:
    """Answer what stdin asks, line by line."""
    loop = asyncio.get_running_loop()
    shape, proactive = TreeShape(**setup["shape"]), Proactive(setup["proactive"])
    version = wire.OFFERS_VERSION if setup["offers"] else wire.VERSION
    hello = wire.Hello(version, TOKENS, HASH, "stand-in")
    link = await Link.open(*parse_address(setup["server"]), hello)
    drafting = Drafting(shape, proactive=proactive)
    edge = StandInEdge(link, setup["row"], setup["pass_s"], drafting)
    print(json.dumps({"ready": True}), flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        answer = await edge.answer(**json.loads(line))
        print(json.dumps(dataclasses.asdict(answer)), flush=True)
    await link.close()


def main() -> None:
    """The first line: the server, the row of the table, seconds of a pass, the tree's shape."""
    asyncio.run(answer_all(json.loads(sys.stdin.readline())))


if __name__ == "__main__":
    main()
