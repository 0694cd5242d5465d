"""Steps that are run for nobody before the port opens.

The policy then knows what steps cost before the first request, and what is made on first use
(compiled kernels, captured graphs, workspaces) does not keep that request waiting.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np

from runtime.history import History
from runtime.model.engine import Engine
from runtime.model.weights import ModelError
from runtime.server.request import Request
from runtime.server.schedule.step import Work
from runtime.server.verify.verifier import Failed, verify_batch
from runtime.tree import Tree
from runtime.wire.messages import Open, Rule

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
# What runs kernels that a greedy text does without.
DEMANDING = replace(GREEDY, temperature=1.0, top_k=2, top_p=0.9, min_p=0.01, logprobs=2)
RULE = Rule(1, repetition_penalty=1.1, bias_ids=(0,), bias_values=(1.0,))


class AnyToken:
    """A constraint that allows all tokens."""

    given: Sequence[int] = ()

    def __init__(self, vocab_size: int):
        self._words = -(-vocab_size // 32)

    def masks(self, tokens: Sequence[int], parents: Sequence[int]) -> Future[Any]:
        masks: Future[Any] = Future()
        masks.set_result(np.full((1 + len(tokens), self._words), -1, np.int32))
        return masks

    def advance(self, tokens: Sequence[int]) -> None:
        """It goes on as it was."""


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
    if on_gpu:
        _step_s(engine, pages, sizes[-1], wants_all=True)
    costs = [(rows, _step_s(engine, pages, rows)) for rows in sizes]
    kv.free(pages)
    return costs


def _step_s(engine: Engine, pages: list[int], rows: int, wants_all: bool = False) -> float:
    """Seconds of a step that verifies a chain under a text of one token, of a request that
    `wants_all` that one can have, or nothing of that."""
    chain = Tree((0,) * (rows - 1), tuple(range(rows - 1)))
    params = DEMANDING if wants_all else GREEDY
    request = Request("warm-up", params, rows + 1, context=[0], pages=pages, draft=chain)
    if wants_all:
        request.rule, request.history = RULE, History(request.context, ())
        request.guide = AnyToken(engine.model.vocab_size)
    start_s = time.monotonic()
    (outcome,) = verify_batch(engine, [Work(request, chunk=0, verify=True)])
    if isinstance(outcome, Failed):
        raise ModelError(f"the model cannot verify {rows} rows: {outcome.sentence}")
    return time.monotonic() - start_s
