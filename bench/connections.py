"""What a verification costs the server beside the model's pass, with many edges connected.

The processor time of the server process, less that of its (stub) passes, over the trees verified:
sockets, messages, scheduling, pages, drawing and walking. Gates no wall-clock time.

    python -m bench.connections [--edges 2000] [--step-ms 20] [--measure-s 20] [--json]
"""

import argparse
import asyncio
from collections.abc import Sequence

from bench.harness import option_parser, report
from bench.stub_edges import StubServer, decode, stub_server

GOAL_US = 100.0
PROMPT_TOKENS, MAX_TOKENS, NODES = 32, 3000, 8
WARM_UP_S = 5.0
CONNECTING = 32  # at a time: the server lets 64 strangers stand at its door


def main() -> None:
    """Print the report."""
    options = _options()
    n = str(options.edges)
    limits = ["--max-connections", n, "--max-requests", n, "--max-user-requests", n]
    limits += ["--kv-tokens", str(2**20)]
    with stub_server(options.step_ms * 1e-3, *limits, *options.server) as server:
        figures = asyncio.run(_measure(server, options.edges, options.measure_s))
    rows = [[name, f"{value:,.1f}"] for name, value in figures.items()]
    title = f"processor time per verified tree, stub model of {options.step_ms:g} ms"
    report(title, ("figure", "value"), rows, figures, options.json)


async def _measure(server: StubServer, edges: int, measure_s: float) -> dict[str, float]:
    door = asyncio.Semaphore(CONNECTING)
    everyone = [asyncio.ensure_future(_edge(server, door, number)) for number in range(edges)]
    while (await server.samples())["num_requests_running"] < edges:
        _raise_first(everyone)
        await asyncio.sleep(0.5)
    await asyncio.sleep(WARM_UP_S)
    before = await server.samples()
    await asyncio.sleep(measure_s)
    after = await server.samples()
    _raise_first(everyone)
    for edge in everyone:
        edge.cancel()
    await asyncio.gather(*everyone, return_exceptions=True)
    return _figures(before, after)


async def _edge(server: StubServer, door: asyncio.Semaphore, number: int) -> None:
    """Connect, then ask and draft until cancelled."""
    async with door:
        opening = server.link()
        link = await opening.__aenter__()
    try:
        while True:
            prompt = [number % 256] * PROMPT_TOKENS
            async for _ in decode(link, prompt, MAX_TOKENS, NODES):
                pass
    finally:
        await opening.__aexit__(None, None, None)


def _raise_first(edges: Sequence["asyncio.Future[None]"]) -> None:
    """An edge that has ended has failed."""
    for edge in edges:
        if edge.done():
            edge.result()


def _figures(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    passed = {name: after[name] - before[name] for name in after.keys() & before.keys()}
    trees, steps = passed["verify_batch_size_sum"], passed["verify_batch_size_count"]
    own_s = passed["process_cpu_seconds_total"] - passed["stub_forward_cpu_seconds"]
    verdicts_s = passed["stub_thread_cpu_seconds"] - passed["stub_forward_cpu_seconds"]
    return {
        "edges connected": after["edges_connected"],
        "steps": steps,
        "trees verified": trees,
        "trees in a step": trees / steps,
        "drafted nodes in a tree": passed["spec_decode_num_draft_tokens_total"] / trees,
        "us of the server per tree": own_s / trees * 1e6,
        "of these, drawing and walking": verdicts_s / trees * 1e6,
        "of these, the event loop": (own_s - verdicts_s) / trees * 1e6,
        "of all, in the kernel": passed["stub_system_cpu_seconds"] / trees * 1e6,
        "goal, us": GOAL_US,
        "server RSS, MB": after["process_resident_memory_bytes"] * 1e-6,
        "server descriptors": after["process_open_fds"],
    }


def _options() -> argparse.Namespace:
    parser = option_parser("bench.connections", __doc__)
    parser.add_argument("--edges", type=int, default=2000)
    parser.add_argument("--step-ms", type=float, default=20.0)
    parser.add_argument("--measure-s", type=float, default=20.0)
    parser.add_argument("server", nargs="*", help="after --: further options of the server")
    return parser.parse_args()


if __name__ == "__main__":
    main()
