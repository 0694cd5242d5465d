"""A step of a family through the engine, against transformers' own pass over the same model.

    python -m bench.families [--family gemma3_text phi3 ...] [--rows 1 16] [--json]

Random models of the families' real blocks, with a width of 1024 and a few layers; one new token for
each of so many requests behind a prompt, in turns. transformers runs in bfloat16 with its own cache
and experts, as `generate` would. A row is printed only if our logits are those of its pass in
float32.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch
from torch import Tensor

from bench.backend import PAGE_TOKENS, PAGES, PROMPT_TOKENS, pages, steps
from bench.harness import measure_in_turns, option_parser, report
from runtime.bench.attempt import attempt
from runtime.model.engine import Engine, TreeRequest
from runtime.model.open import open_engine

COMMON = {"hidden_size": 1024, "num_hidden_layers": 6, "vocab_size": 32768, "pad_token_id": 0}
HEADS = {"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64}
DENSE = {"intermediate_size": 4096}
EXPERTS = {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 512}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {**HEADS, **DENSE},
    "gemma3_text": {**HEADS, **DENSE},
    "phi3": {**HEADS, **DENSE},
    "olmo2": {**HEADS, **DENSE},
    "glm4": {**HEADS, **DENSE},
    "qwen3_moe": {**HEADS, **EXPERTS},
    "gpt_oss": {
        **HEADS,
        **{"num_local_experts": 16, "num_experts_per_tok": 4, "intermediate_size": 512},
    },
    "deepseek_v3": {
        **{"num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": 4096},
        **{"q_lora_rank": 384, "kv_lora_rank": 256, "qk_nope_head_dim": 64},
        **{"qk_rope_head_dim": 32, "v_head_dim": 64, "n_routed_experts": 16, "n_group": 4},
        **{"topk_group": 2, "num_experts_per_tok": 4, "moe_intermediate_size": 512},
        **{"first_k_dense_replace": 1},
    },
}
COLUMNS = ("family", "code", "rows", "ours", "transformers", "ratio")
TURNS = 15


def main() -> None:
    parser = option_parser("bench.families", __doc__)
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 16])
    options = parser.parse_args()
    rows, numbers = [], {}
    for family in options.family:
        engine, theirs, exact = opened(family, max(options.rows))
        code = "own" if type(engine.model).__name__ == "Transformer" else "transformers"
        for n in options.rows:
            step, own_pass = steps(n), their_pass(theirs, n)
            check(family, engine.forward(step), their_pass(exact, n)())
            times = measure_in_turns([partial(engine.forward, step), own_pass], TURNS)
            ratio = times[0].median_s / times[1].median_s
            numbers[f"{family}_{n}"] = ratio
            shown = (f"{time.median_s * 1e3:.2f} ms" for time in times)
            rows.append((family, code, n, *shown, f"{ratio:.2f}"))
    title = "a step through the engine and by transformers alone, bfloat16 weights"
    report(title, COLUMNS, rows, numbers, options.json)


def opened(family: str, requests: int) -> tuple[Engine, Any, Any]:
    """A random model in the engine, after its prompts; in transformers; there in float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **COMMON, **FAMILIES[family])
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(Path(folder))
        tokens = requests * PAGES * PAGE_TOKENS
        engine = open_engine(folder, "bfloat16", "cpu", lambda _: tokens, PAGE_TOKENS)
        theirs, exact = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
            for dtype in (torch.bfloat16, torch.float32)
        )
    prompt = list(range(PROMPT_TOKENS))
    for request in range(requests):
        engine.forward([TreeRequest(prompt, range(-1, len(prompt) - 1), 0, pages(request), [0])])
    return engine, theirs, exact


def their_pass(model: Any, rows: int) -> Callable[[], Tensor]:
    """The same step: a token each behind the same prompt; the cache is as before afterwards."""
    with torch.inference_mode():
        prompts = torch.arange(PROMPT_TOKENS).expand(rows, -1)
        cache = model(prompts, use_cache=True).past_key_values
    tokens = 7 + torch.arange(rows)[:, None]

    def run() -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(tokens, past_key_values=cache, use_cache=True).logits
        cache.crop(-1)
        return logits[:, -1].float()

    return run


def check(family: str, ours: Tensor, theirs: Tensor) -> None:
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    if not error < 1e-3:
        raise SystemExit(f"{family}: the two give different logits, by {error:.1e} of the largest")


if __name__ == "__main__":
    sys.exit(attempt("bench.families", main))
