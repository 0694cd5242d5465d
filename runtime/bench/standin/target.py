"""python -m runtime.bench.standin.target STEP_S ...: the server around a stand-in target.

The rest of the arguments are those of python -m runtime.server. Its text is known in advance: the
token after t is t + 1. A step takes STEP_S seconds, and everything but the model is the product's.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from runtime.arguments import parse
from runtime.bench.standin.agreement import TOKENS
from runtime.config import ServerConfig
from runtime.logs import configure
from runtime.model.config import KVShape
from runtime.model.engine import Engine, TreeRequest
from runtime.model.kv_cache import PagedKV
from runtime.model.open import CPU_KV_TOKENS
from runtime.server.door import Door, Identity
from runtime.server.loop import Server
from runtime.server.schedule.step import Step
from runtime.server.trace_file import tracing
from runtime.server.verify.warm_up import ROWS
from runtime.wire.places import listen

CONTEXT_TOKENS = 4096
IDENTITY = Identity("stand-in", TOKENS, lambda rows: bytes(16), CONTEXT_TOKENS, frozenset(), None)


class StandInTarget:
    """Stands in for Engine; a step takes `step_s` seconds, drawing and walking the trees included.

    The paper's time is that of the whole verification, so what this machine spends on it is a part.
    """

    ranks = None  # it runs in one process

    def __init__(self, kv_tokens: int, page_size: int, step_s: float):
        self.kv = PagedKV([KVShape(1, 1, 1)], kv_tokens // page_size, page_size, torch.float32)
        self._step_s, self._ends_s = step_s, 0.0

    def forward(self, requests: Sequence[TreeRequest]) -> Tensor:
        """Logits [R, TOKENS] float32 that leave no choice."""
        self._ends_s = time.monotonic() + self._step_s
        tokens = [_token(request, row) for request in requests for row in request.logit_rows]
        logits = torch.zeros(len(tokens), TOKENS)
        logits[range(len(tokens)), [(token + 1) % TOKENS for token in tokens]] = 1.0
        if not tokens:  # a step that only reads prompts ends here
            self._sleep()
        return logits

    def compact_verified(
        self, page_table: Tensor, prefix_lens: Tensor, path: Tensor, accepted_lens: Tensor
    ) -> None:
        """There are no keys and values to move; nothing but the copy of the verdicts follows."""
        self._sleep()

    def _sleep(self) -> None:
        time.sleep(max(0.0, self._ends_s - time.monotonic()))


def _token(request: TreeRequest, row: int) -> int:
    if request.drawn is None or row:
        return request.tokens[row]
    return int(request.drawn.tokens[request.drawn.place])


async def serve(config: ServerConfig, step_s: float, on_step: Callable[[Step], None]) -> None:
    """Until SIGTERM; prints where edges connect."""
    engine = StandInTarget(config.kv_tokens or CPU_KV_TOKENS, config.page_size, step_s)
    server = Server(config, cast(Engine, engine), Door(config, IDENTITY), on_step)
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
    with tracing(config.trace) as on_step:
        asyncio.run(serve(config, step_s, on_step))


if __name__ == "__main__":
    main()
