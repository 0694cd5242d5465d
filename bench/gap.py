"""How long the model stands still between two full steps, while the server's Python runs.

The real server around a stub model whose passes sleep; stub edges in a process of their own, over
loopback. A step is full when it holds as many requests as the case names, all of them drafted or
all plain. There are two edges for each drafted tree of a step, so that a full step of trees waits
when one ends; a plain request is in every step. The gap is from the end of a pass to the beginning
of the next one: drawing and walking, telling the event loop, the verdicts if they are in the way,
choosing, packing and sending. Every text is checked by its edge.

    python -m bench.gap [--requests 1 8 32 128] [--step-ms 50] [--steps 60] [--json]
"""

import argparse
import asyncio
import multiprocessing
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from bench.harness import option_parser, report
from bench.stub_edges import HELLO, decode
from bench.stub_server import IDENTITY, StubEngine
from runtime.bench.figures import percentile
from runtime.config import ServerConfig
from runtime.edge.net.link import Link
from runtime.model.engine import Rows
from runtime.model.staging import Parcel
from runtime.server.door import Door
from runtime.server.loop import Server
from runtime.server.verify.warm_up import ROWS
from runtime.wire.places import listen

NODES = 8
PROMPT_TOKENS, MAX_TOKENS = 8, 4000
KV_TOKENS = 4400  # that one request may need, its tree included
REQUESTS_A_LINK = 8


@dataclass(frozen=True)
class Ran:
    """One pass of the model; times are of time.perf_counter()."""

    trees: int
    drafted: int  # of the trees, those with nodes under the root
    start_s: float
    end_s: float


class TimedEngine(StubEngine):
    """Remembers every pass; the stub's arithmetic counts as the model's."""

    def __init__(self, config: ServerConfig, step_s: float):
        super().__init__(config.kv_tokens, config.page_size, self._hold)
        self.passes: list[Ran] = []
        self._step_s = step_s
        self._start_s = 0.0

    def run(self, rows: Rows, parcel: Parcel, drawn: Tensor | None = None) -> Tensor:
        """As the stub's."""
        logits = super().run(rows, parcel, drawn)
        wanted = rows.joined.logits  # of each request: all of a tree, and none of a chunk
        sizes = int((wanted > 0).sum()), int((wanted > 1).sum())
        self.passes.append(Ran(*sizes, self._start_s, time.perf_counter()))
        return logits

    def _hold(self) -> None:
        self._start_s = time.perf_counter()
        time.sleep(self._step_s)


def main() -> None:
    """Print the report."""
    options = _options()
    torch.set_num_threads(1)
    rows: list[Sequence[object]] = []
    numbers: dict[str, float] = {}
    for drafted in (False, True):
        for requests in options.requests:
            gaps_ms = asyncio.run(_measure(requests, drafted, options))
            name = f"{requests}_{'drafted' if drafted else 'plain'}"
            shares = {share: percentile(gaps_ms, share) for share in (0.0, 0.25, 0.5, 0.75, 0.95)}
            numbers[f"idle_ms_{name}"] = round(shares[0.5], 3)
            numbers[f"idle_p95_ms_{name}"] = round(shares[0.95], 3)
            rows.append([name, len(gaps_ms), *(f"{gap:.2f}" for gap in shares.values())])
    title = f"ms without a pass between two full steps, stub model of {options.step_ms:g} ms"
    columns = ("requests", "gaps", "least", "p25", "median", "p75", "p95")
    report(title, columns, rows, numbers, options.json)


async def _measure(requests: int, drafted: bool, options: argparse.Namespace) -> list[float]:
    """The gaps between full steps, in ms."""
    edges = 2 * requests if drafted else requests
    config = ServerConfig(
        max_requests=edges,
        max_user_requests=edges,
        max_strangers=edges,
        max_batch=requests,
        max_step_nodes=max(requests * (1 + NODES), 256),
        kv_tokens=edges * KV_TOKENS,
        drain_s=0,
    )
    engine = TimedEngine(config, options.step_ms * 1e-3)
    server = Server(config, engine, Door(config, IDENTITY))
    server.pipeline.load.cost.learn((rows, options.step_ms * 1e-3) for rows in ROWS)
    listener = await listen("127.0.0.1", 0, server.new_peer, start=False)
    opened = asyncio.get_running_loop().create_future()
    running = asyncio.ensure_future(server.run(listener, lambda *at: opened.set_result(at)))
    crowd = multiprocessing.get_context("spawn").Process(
        target=_crowd, args=(await opened, edges, NODES if drafted else 0), daemon=True
    )
    crowd.start()
    try:
        while len(gaps_ms := _gaps_ms(engine.passes, requests, drafted)) < options.steps:
            assert crowd.is_alive(), "the edges have ended: one of them failed"
            await asyncio.sleep(0.5)
    finally:
        crowd.terminate()
        signal.raise_signal(signal.SIGTERM)
        await running
    crowd.join()
    return gaps_ms


def _gaps_ms(passes: Sequence[Ran], requests: int, drafted: bool) -> list[float]:
    """Between two full steps that follow each other; the first ten are for warming up."""

    def is_full(one: Ran) -> bool:
        return one.trees == requests and one.drafted == (requests if drafted else 0)

    both = [pair for pair in pairwise(passes) if all(map(is_full, pair))]
    return [(after.start_s - before.end_s) * 1e3 for before, after in both][10:]


def _crowd(address: tuple[str, int], edges: int, nodes: int) -> None:
    asyncio.run(_ask(address, edges, nodes))


async def _ask(address: tuple[str, int], edges: int, nodes: int) -> None:
    """Several requests on each of the links, again and again, until this process is ended."""
    links = [await Link.open(*address, HELLO) for _ in range(-(-edges // REQUESTS_A_LINK))]

    async def edge(number: int) -> None:
        while True:
            prompt = [number % 256] * PROMPT_TOKENS
            async for _ in decode(links[number // REQUESTS_A_LINK], prompt, MAX_TOKENS, nodes):
                pass

    await asyncio.gather(*map(edge, range(edges)))


def _options() -> argparse.Namespace:
    parser = option_parser("bench.gap", __doc__)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--step-ms", type=float, default=50.0)
    parser.add_argument("--steps", type=int, default=60, help="gaps to be measured of each case")
    return parser.parse_args()


if __name__ == "__main__":
    main()
