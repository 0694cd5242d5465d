"""The real server around a model without arithmetic: whatever it costs, the server itself costs.

    python -m bench.stub_server STEP_S [options of python -m runtime.server]

A step sleeps STEP_S seconds. The text is known in advance, so that every client can check its own.
/metrics also has how many credits could be out at most.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import torch
from prometheus_client import Gauge
from torch import Tensor

from runtime.api.serving import serving
from runtime.arguments import parse
from runtime.bench.circle_model import CircleModel
from runtime.config import ServerConfig
from runtime.logs import configure
from runtime.model.engine import Engine, PagedKV, Rows
from runtime.model.open import CPU_KV_TOKENS
from runtime.model.staging import Parcel
from runtime.model.tokenizer import Tokenizer
from runtime.server.door import Door, Identity
from runtime.server.http import application
from runtime.server.loop import Server
from runtime.server.metrics import Metrics
from runtime.server.schedule.step import Step
from runtime.server.trace_file import tracing
from runtime.server.users import load_users
from runtime.server.verify.warm_up import ROWS
from runtime.wire import stacks
from runtime.wire.places import Listener, listen

VOCABULARY = 256
MAX_CONTEXT = 4096
FACTOR = 5
IDENTITY = Identity("stub", VOCABULARY, lambda rows: bytes(16), MAX_CONTEXT, frozenset(), None)


def next_token(token: int) -> int:
    """The model: each token has one successor, and all of them form one circle."""
    return (FACTOR * token + 1) % VOCABULARY


class StubEngine(Engine):
    """An engine around a `CircleModel`; `hold` is called in every pass, in the model's thread.

    cpu_s         processor time of all passes so far, which is not the server's
    thread_cpu_s  that of the thread they run in, which draws the verdicts too
    """

    def __init__(self, kv_tokens: int, page_size: int, hold: Callable[[], object]):
        n_pages = (kv_tokens or CPU_KV_TOKENS) // page_size
        model = CircleModel(VOCABULARY, MAX_CONTEXT, FACTOR, hold)
        super().__init__(model, PagedKV(model.kv_shapes, n_pages, page_size, torch.float32))
        self.cpu_s = self.thread_cpu_s = 0.0

    def run(self, rows: Rows, parcel: Parcel, drawn: Tensor | None = None) -> Tensor:
        """As Engine's."""
        start_s = time.thread_time()
        logits = super().run(rows, parcel, drawn)
        self.thread_cpu_s = time.thread_time()
        self.cpu_s += self.thread_cpu_s - start_s
        return logits


async def serve(config: ServerConfig, step_s: float, on_step: Callable[[Step], None]) -> None:
    """Until SIGTERM; prints where pages, clients without an edge (if `openai`) and edges ask."""
    largest_window = 0.0

    def hold() -> None:
        nonlocal largest_window
        largest_window = max(largest_window, server.pipeline.credits.window.size)
        time.sleep(step_s)

    metrics, engine = (
        Metrics(),
        StubEngine(config.kv_tokens, config.page_size, hold),
    )
    forward_s = Gauge("stub_forward_cpu_seconds", "Of the passes", registry=metrics.registry)
    forward_s.set_function(lambda: engine.cpu_s)
    thread_s = Gauge("stub_thread_cpu_seconds", "Of their thread", registry=metrics.registry)
    thread_s.set_function(lambda: engine.thread_cpu_s)
    system_s = Gauge("stub_system_cpu_seconds", "In the kernel", registry=metrics.registry)
    system_s.set_function(lambda: os.times().system)
    window = Gauge("stub_largest_window", "Credits, since the start", registry=metrics.registry)
    window.set_function(lambda: largest_window)
    users = load_users(Path(config.users)) if config.users else None
    door = Door(config, _identity(config), users)
    server = Server(config, engine, door, on_step, metrics)
    server.pipeline.load.cost.learn((rows, step_s) for rows in ROWS)
    place = config.host, config.port, server.new_peer
    if config.stack:
        listener: Listener = await stacks.listen(config.stack, *place)
    else:
        listener = await listen(*place, start=False)
    pages = application(lambda: server.unready, metrics.registry)
    async with serving(config.http, pages) as url, _clients(config, server) as api:
        words = (url, api) if api else (url,)
        await server.run(listener, lambda host, port: print(*words, f"{host}:{port}", flush=True))
    server.scheduler.check()


def _identity(config: ServerConfig) -> Identity:
    """With --model the ids stand for what those of that folder do."""
    if config.model == ServerConfig.model:
        return IDENTITY
    return replace(IDENTITY, vocabulary_hash=Tokenizer.load(config.model).hashes.below)


@asynccontextmanager
async def _clients(config: ServerConfig, server: Server) -> AsyncIterator[str]:
    """Serve clients without an edge at `config.openai`, if it is given; the URL.

    `config.model` has the tokenizer, with a text for each id.
    """
    if not config.openai:
        yield ""
        return
    from runtime.server.local import serving_clients

    users = server.door.users
    async with serving_clients(config, lambda: server.unready, users, None, server.metrics) as it:
        url, join = it
        join(server, Tokenizer.load(config.model))
        yield url


def main() -> None:
    """Serve; an option that is wrong ends it with a traceback, which only its caller sees."""
    step_s = float(sys.argv[1])
    config = parse(ServerConfig, sys.argv[2:], os.environ, "python -m bench.stub_server")
    configure(config.log_level, config.log_format)
    torch.set_num_threads(1)
    with tracing(config.trace) as on_step:
        asyncio.run(serve(config, step_s, on_step))


if __name__ == "__main__":
    main()
