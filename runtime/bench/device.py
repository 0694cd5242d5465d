"""Models on devices of a stated speed: a pass takes at least so long, whatever this machine is.

On one small machine the edges' arithmetic would take the server's cores, and a CPU pays for every
node where an accelerator does not. A pass that sleeps out the rest of its time leaves the cores
free, and drafting and verifying get the proportion of other hardware.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from runtime.bench.records import Span
from runtime.model.engine import Engine, TreeRequest


def pace(engine: Engine, pass_s: float) -> list[Span]:
    """From now on a forward pass of this engine takes at least `pass_s` seconds.

    Returns a list that grows by the span of each pass.
    """
    spans: list[Span] = []
    run, device = engine.forward, engine.model.device

    def forward(requests: Sequence[TreeRequest]) -> Tensor:
        start_s = time.monotonic()
        logits = run(requests)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        time.sleep(max(0.0, start_s + pass_s - time.monotonic()))
        spans.append((start_s, time.monotonic()))
        return logits

    engine.forward = forward
    return spans


@contextmanager
def paced_engines(module: ModuleType, pass_s: float) -> Iterator[list[list[Span]]]:
    """Engines that `module` opens meanwhile are paced; gives a list of spans for each of them."""
    opened: list[list[Span]] = []
    open_engine = module.open_engine

    def open_paced(*arguments: Any, **options: Any) -> Engine:
        engine = open_engine(*arguments, **options)
        opened.append(pace(engine, pass_s))
        return engine

    module.open_engine = open_paced
    try:
        yield opened
    finally:
        module.open_engine = open_engine
