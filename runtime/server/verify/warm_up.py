"""Steps that are run for nobody before the port opens.

The policy then knows what steps cost before the first request, and what is made on first use
(compiled kernels, captured graphs, workspaces) does not keep that request waiting.
"""

import time

from runtime.model.engine import Engine
from runtime.model.weights import ModelError
from runtime.server.request import Request
from runtime.server.schedule.step import Work
from runtime.server.verify.verifier import Failed, verify_batch
from runtime.tree import Tree
from runtime.wire.messages import Open

ROWS = (1, 4, 16, 64)
GREEDY = Open(
    request=1,
    seed=0,
    temperature=0.0,
    top_p=1.0,
    min_p=0.0,
    top_k=0,
    max_tokens=1,
    prompt_tokens=1,
    stop_ids=(),
)


def warm_up(engine: Engine, most_rows: int, most_trees: int) -> list[tuple[int, float]]:
    """Rows and seconds of steps of one tree each, as far as `most_rows` and the KV pool allow.

    A GPU records steps of up to so many rows and trees, and as many chunks of prompts; one that
    shares the model with others records none.

    Raises ModelError if the model cannot run them.
    """
    kv, on_gpu = engine.kv, engine.model.device.type == "cuda"
    if on_gpu and engine.ranks is None:
        engine.record(most_rows, 2 * most_trees)
    sizes = [rows for rows in ROWS if rows <= min(most_rows, kv.n_free * kv.page_size)]
    pages = kv.allocate(-(-sizes[-1] // kv.page_size))
    # What is made on first use is no cost of a step; a GPU makes something for every size.
    for rows in sizes if on_gpu else sizes[:1]:
        _step_s(engine, pages, rows)
    costs = [(rows, _step_s(engine, pages, rows)) for rows in sizes]
    kv.free(pages)
    return costs


def _step_s(engine: Engine, pages: list[int], rows: int) -> float:
    """Seconds of a step that verifies a chain under a text of one token."""
    chain = Tree((0,) * (rows - 1), tuple(range(rows - 1)))
    request = Request("warm-up", GREEDY, rows + 1, context=[0], pages=pages, draft=chain)
    start_s = time.monotonic()
    (outcome,) = verify_batch(engine, [Work(request, chunk=0, verify=True)])
    if isinstance(outcome, Failed):
        raise ModelError(f"the model cannot verify {rows} rows: {outcome.sentence}")
    return time.monotonic() - start_s
