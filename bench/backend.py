"""What it costs that transformers' modules run a model: a step of theirs against our own code.

    python -m bench.backend [--shape smollm2 1b] [--weights bfloat16] [--rows 1 16] [--json]

A random llama of each shape is saved and opened both ways; steps of one node for each of so many
requests run in turns. A row is printed only if both give the same logits up to rounding.
"""

import os
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch

from bench.harness import measure_in_turns, option_parser, report
from runtime.bench.attempt import attempt
from runtime.config import WEIGHTS
from runtime.model.engine import Engine, TreeRequest
from runtime.model.open import open_engine

SHAPES: Mapping[str, Mapping[str, int]] = {
    "smollm2": {
        **{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
        **{"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152},
    },
    "1b": {
        **{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32768},
    },
}
COLUMNS = ("shape", "rows", "own", "transformers", "ratio")
PROMPT_TOKENS, PAGE_TOKENS, TURNS = 96, 16, 25
PAGES = PROMPT_TOKENS // PAGE_TOKENS + 1


def main() -> None:
    parser = option_parser("bench.backend", __doc__)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--weights", choices=WEIGHTS, default="bfloat16")
    parser.add_argument("--layers", type=int, default=0, help="in place of the shape's")
    options = parser.parse_args()
    rows, numbers = [], {}
    for shape in options.shape:
        own, theirs = opened(shape, options.layers, options.weights, max(options.rows))
        for n in options.rows:
            step = steps(n)
            check(own, theirs, step)
            times = measure_in_turns([partial(one.forward, step) for one in (own, theirs)], TURNS)
            ratio = times[1].median_s / times[0].median_s
            numbers[f"{shape}_{n}"] = ratio
            rows.append((shape, n, *(f"{t.median_s * 1e3:.2f} ms" for t in times), f"{ratio:.3f}"))
    report(
        "a step of our own code and of transformers' modules", COLUMNS, rows, numbers, options.json
    )


def opened(shape: str, layers: int, weights: str, requests: int) -> list[Engine]:
    """The same random model by our own code and by transformers', each after its prompts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {**SHAPES[shape], **({"num_hidden_layers": layers} if layers else {})}
    torch.manual_seed(0)
    config = LlamaConfig(**sizes, tie_word_embeddings=True, max_position_embeddings=2048)
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(Path(folder))
        tokens = requests * PAGES * PAGE_TOKENS
        engines = [
            open_engine(folder, weights, "cpu", lambda _: tokens, PAGE_TOKENS, backend=backend)
            for backend in ("own", "transformers")
        ]
    prompt = list(range(PROMPT_TOKENS))
    for engine in engines:
        for request in range(requests):
            engine.forward(
                [TreeRequest(prompt, range(-1, len(prompt) - 1), 0, pages(request), [0])]
            )
    return engines


def pages(request: int) -> range:
    return range(request * PAGES, (request + 1) * PAGES)


def steps(n: int) -> list[TreeRequest]:
    return [TreeRequest([7 + i], [-1], PROMPT_TOKENS, pages(i), [0]) for i in range(n)]


def check(own: Engine, theirs: Engine, step: list[TreeRequest]) -> None:
    expected = own.forward(step)
    error = float((theirs.forward(step) - expected).abs().max() / expected.abs().max())
    if error > 1e-4:
        raise SystemExit(f"the two give different logits, by {error:.1e} of the largest")


if __name__ == "__main__":
    sys.exit(attempt("bench.backend", main))
