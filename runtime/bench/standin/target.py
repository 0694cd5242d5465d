"""python -m runtime.bench.standin.target STEP_S ...: the server around a stand-in target.

The rest of the arguments are those of python -m runtime.server, --trace among them. Its text is
known in advance: the token after t is t + 1. A step takes STEP_S seconds, and everything but the
model is the product's.
"""

import asyncio
import json
import os
import sys
import time
from collections import deque
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from runtime.arguments import parse
from runtime.bench.circle_model import CircleModel
from runtime.bench.others import others_s
from runtime.bench.standin.agreement import TOKENS
from runtime.config import ServerConfig
from runtime.logs import configure
from runtime.model.engine import Engine, PagedKV, Rows
from runtime.model.open import CPU_KV_TOKENS
from runtime.model.staging import Parcel
from runtime.server.door import Door, Identity
from runtime.server.loop import Server
from runtime.server.schedule.step import Step
from runtime.server.verify.warm_up import ROWS
from runtime.whole_lines import WholeLines
from runtime.wire.places import listen

CONTEXT_TOKENS = 4096
IDENTITY = Identity("stand-in", TOKENS, lambda rows: bytes(16), CONTEXT_TOKENS, frozenset(), None)


class StandInTarget(Engine):
    """A step takes `step_s` seconds, drawing and walking the trees included.

    The paper's time is that of the whole verification, so what this machine spends on it is a part.
    `others_s` has for each step, oldest first, how long others had its cores since the one before.
    """

    def __init__(self, kv_tokens: int, page_size: int, step_s: float):
        model = CircleModel(TOKENS, CONTEXT_TOKENS)
        kv = PagedKV(model.kv_shapes, kv_tokens // page_size, page_size, torch.float32)
        super().__init__(model, kv)
        self._step_s, self._ends_s = step_s, 0.0
        self.others_s, self._others_s = deque[float](), others_s()

    def begins(self) -> None:
        """A step, which holds all that is done from now on; by itself it begins with its run."""
        self._ends_s = time.monotonic() + self._step_s

    def run(self, rows: Rows, parcel: Parcel, drawn: Tensor | None = None) -> Tensor:
        """As Engine's."""
        if self._ends_s < time.monotonic():
            self.begins()
        before_s, self._others_s = self._others_s, others_s()
        self.others_s.append(self._others_s - before_s)
        logits = super().run(rows, parcel, drawn)
        if not len(logits):  # a step that only reads prompts ends here
            self._sleep()
        return logits

    def compact_verified(
        self, page_table: Tensor, prefix_lens: Tensor, path: Tensor, accepted_lens: Tensor
    ) -> None:
        """There are no keys and values to move; nothing but the copy of the verdicts follows."""
        self._sleep()

    def _sleep(self) -> None:
        time.sleep(max(0.0, self._ends_s - time.monotonic()))


async def serve(config: ServerConfig, step_s: float, trace: WholeLines) -> None:
    """Until SIGTERM; prints where edges connect."""
    engine = StandInTarget(config.kv_tokens or CPU_KV_TOKENS, config.page_size, step_s)

    def on_step(step: Step) -> None:
        line = json.loads(step.line()) | {"others_s": engine.others_s.popleft()}
        trace.append(json.dumps(line))

    server = Server(config, engine, Door(config, IDENTITY), on_step)
    server.pipeline.load.cost.learn((rows, step_s) for rows in ROWS)
    listener = await listen(config.host, config.port, server.new_peer, start=False)

    def announce(host: str, port: int) -> None:
        print(f"python -m runtime.edge --server {host}:{port}", flush=True)

    await server.run(listener, announce)


def main() -> None:
    """Options that are wrong end it with a traceback, which only the bench sees."""
    step_s = float(sys.argv[1])
    program = "python -m runtime.bench.standin.target"
    config = parse(ServerConfig, sys.argv[2:], os.environ, program)
    configure("warning", config.log_format)
    torch.set_num_threads(1)
    with closing(WholeLines(Path(config.trace), "w")) as trace:
        asyncio.run(serve(config, step_s, trace))


if __name__ == "__main__":
    main()
