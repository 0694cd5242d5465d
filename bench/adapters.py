"""What adapters cost: a step of one node for each of some requests, with adapters and without.

    python -m bench.adapters [--model smollm2] [--rank 16] [--adapters 4] [--rows 1 16] [--json]

Random adapters of all products of attention and MLPs stand beside the model. A row is printed only
if requests without one have the bits of a model that has none, alone and in a mixed step.
"""

import os
import sys
from collections.abc import Sequence
from functools import partial

os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch

from bench.harness import measure_in_turns, option_parser, report
from runtime.bench.attempt import attempt
from runtime.config import WEIGHTS
from runtime.model.adapted import adapt
from runtime.model.adapter import MODULE, Adapter, LowRank
from runtime.model.batch import NO_ADAPTER
from runtime.model.engine import Engine, TreeRequest
from runtime.model.open import open_engine
from runtime.model.transformer import Transformer
from runtime.model.weights import expected_shapes

COLUMNS = ("rows", "no adapters", "nobody asks", "half ask", "all ask", "nobody", "half", "all")
PROMPT_TOKENS, PAGE_TOKENS, TURNS = 96, 16, 25
PAGES = PROMPT_TOKENS // PAGE_TOKENS + 1


def main() -> None:
    parser = option_parser("bench.adapters", __doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--weights", choices=WEIGHTS, default="stored")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 16])
    options = parser.parse_args()
    plain, adapted = (opened(options.model, options.weights, max(options.rows)) for _ in range(2))
    assert isinstance(adapted.model, Transformer), "a family of our own code"
    adapt(adapted.model, random_adapters(adapted.model, options.adapters, options.rank))
    rows, numbers = [], {}
    for n in options.rows:
        some = [i // 2 % options.adapters if i % 2 == 0 else NO_ADAPTER for i in range(n)]
        none, half = step([NO_ADAPTER] * n), step(some)
        every = step([i % options.adapters for i in range(n)])
        check(plain, adapted, none, half)
        calls = [partial(plain.forward, none)]
        calls += [partial(adapted.forward, one) for one in (none, half, every)]
        times = measure_in_turns(calls, TURNS)
        ratios = [time.median_s / times[0].median_s for time in times[1:]]
        numbers[f"rows_{n}"] = ratios
        shown = (f"{time.median_s * 1e3:.2f} ms" for time in times)
        rows.append((n, *shown, *(f"{ratio:.2f}" for ratio in ratios)))
    title = f"steps of {options.model} beside {options.adapters} adapters of rank {options.rank}"
    report(title, COLUMNS, rows, numbers, options.json)


def opened(model: str, weights: str, requests: int) -> Engine:
    """A model after a prompt for each request."""
    tokens = requests * PAGES * PAGE_TOKENS
    engine = open_engine(model, weights, "cpu", lambda _: tokens, PAGE_TOKENS, backend="own")
    chunk = range(PROMPT_TOKENS)
    for request in range(requests):
        engine.forward([TreeRequest(chunk, range(-1, len(chunk) - 1), 0, pages(request), [0])])
    return engine


def random_adapters(model: Transformer, count: int, rank: int) -> list[Adapter]:
    """Of all that can be adapted, each as large as a tenth of a usual weight."""
    modules = {
        name.removesuffix(".weight"): shape
        for name, shape in expected_shapes(model.config).items()
        if MODULE.fullmatch(name.removesuffix(".weight"))
    }
    return [
        Adapter(
            str(index),
            {
                module: LowRank(torch.randn(rank, inputs), torch.randn(outputs, rank), 1e-4)
                for module, (outputs, inputs) in modules.items()
            },
        )
        for index in range(count)
    ]


def pages(request: int) -> range:
    return range(request * PAGES, (request + 1) * PAGES)


def step(adapters: Sequence[int]) -> list[TreeRequest]:
    """One node for each request, with these adapters."""
    return [
        TreeRequest([7 + i], [-1], PROMPT_TOKENS, pages(i), [0], adapter=adapter)
        for i, adapter in enumerate(adapters)
    ]


def check(plain: Engine, adapted: Engine, none: list[TreeRequest], half: list[TreeRequest]) -> None:
    expected = plain.forward(none)
    if not torch.equal(adapted.forward(none), expected):
        raise SystemExit("adapters that nobody asks for change the logits")
    has_none = [request.adapter == NO_ADAPTER for request in half]
    if not torch.equal(adapted.forward(half)[has_none], expected[has_none]):
        raise SystemExit("adapters of others change the logits")


if __name__ == "__main__":
    sys.exit(attempt("bench.adapters", main))
