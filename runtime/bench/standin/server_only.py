"""The paper's baseline with stand-in models, as a process of the bench: several rows at a time.

Each row is a server of its own, in a thread that mostly sleeps. A list of rows a line in, what came
of them a line out.
"""

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast

import torch

from runtime.bench.records import Span
from runtime.bench.server_only import Baseline
from runtime.bench.standin.agreement import TOKENS
from runtime.bench.standin.calibration import agreement, name, server_only_shape
from runtime.bench.standin.drafter import StandInDrafter
from runtime.bench.standin.paper import TABLE_1, times
from runtime.bench.standin.target import StandInTarget
from runtime.bench.standin.texts import prompt, starts
from runtime.server.schedule.step import Work
from runtime.server.verify.verifier import Outcome

KV_TOKENS, PAGE_TOKENS = 4096, 16


class StandInBaseline(Baseline):
    """Whose steps take the stated time with what the host does for them."""

    def verify(self, batch: Sequence[Work]) -> list[Outcome]:
        cast(StandInTarget, self.target).begins()
        return super().verify(batch)


def serve(row: str, answers: int, tokens: int) -> dict[str, Any]:
    """All answers of a row, one after the other, as of `Baseline.serve`."""
    (of_paper,) = (one for one in TABLE_1 if name(one) == row)
    pair, spans = times()[of_paper.pair], list[Span]()
    drafter = StandInDrafter(agreement(row), pair.server_pass_ms * 1e-3, spans)
    target = StandInTarget(KV_TOKENS, PAGE_TOKENS, pair.verify_ms * 1e-3)
    sampling = {"seed": 1, "temperature": 0.0, "max_tokens": tokens, "stop_ids": ()}
    baseline = StandInBaseline(target, drafter, TOKENS, sampling, 1)
    prompts = [prompt(first) for first in starts(answers)]
    done = baseline.serve(prompts, server_only_shape(of_paper), 1)
    for step, others_s in zip(done["steps"], target.others_s, strict=True):
        step["others_s"] = others_s
    return done | {"drafting": spans}


def main() -> None:
    """The first line says nothing."""
    json.loads(sys.stdin.readline())
    torch.set_num_threads(1)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        one = partial(serve, answers=job["answers"], tokens=job["tokens"])
        with ThreadPoolExecutor(len(job["rows"])) as pool:
            done = dict(zip(job["rows"], pool.map(one, job["rows"]), strict=True))
        print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main()
