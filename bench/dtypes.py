"""How often bfloat16 text differs from float32 text, in plain decoding.

Speculation changes no text in either type (`bench.acceptance` checks that); the type itself does.
For each prompt both texts are compared up to the first token that differs, since everything after
it continues another text.

    python -m bench.dtypes --prompts specbench.jsonl --per-task 6
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "0")

from bench.acceptance import CONTEXT_TOKENS, answer, read_prompts
from bench.harness import report
from runtime.edge.draft.drafter import Drafter
from runtime.edge.draft.speculation import TreeShape
from runtime.model.engine import Engine
from runtime.model.open import open_engine
from runtime.model.tokenizer import Tokenizer
from runtime.wire.messages import Open

PLAIN = TreeShape(0, 1, 1, 1)


def main() -> None:
    options = parse_options()
    tokenizer = Tokenizer.load(options.model)
    engines = [
        open_engine(options.model, dtype, "cpu", lambda _: CONTEXT_TOKENS, 16)
        for dtype in ("float32", "bfloat16")
    ]
    # With an empty tree the drafter never runs its model: any engine will do.
    drafter = Drafter(open_engine(options.model, "bfloat16", "cpu", lambda _: 16, 16))
    prompts = compared = different = 0
    for _, text in read_prompts(options.prompts, options.per_task):
        prompt = tokenizer.chat_prompt([{"role": "user", "content": text}])
        if len(prompt) + options.max_tokens > CONTEXT_TOKENS - 256:
            continue
        exact, rounded = (plain(engine, drafter, prompt, options, tokenizer) for engine in engines)
        pairs = zip(exact, rounded, strict=False)
        equal = next((i for i, (a, b) in enumerate(pairs) if a != b), len(exact))
        prompts, compared = prompts + 1, compared + min(equal + 1, len(exact))
        different += exact != rounded
    report(
        f"greedy text of {options.model}: bfloat16 against float32",
        ("prompts", "texts that differ", "tokens compared", "differing token every"),
        [(prompts, different, compared, f"{compared / max(different, 1):.0f} tokens")],
        {"prompts": prompts, "texts_that_differ": different, "tokens_compared": compared},
        options.json,
    )


def plain(
    engine: Engine,
    drafter: Drafter,
    prompt: list[int],
    options: argparse.Namespace,
    tokenizer: Tokenizer,
) -> list[int]:
    params = Open(
        session=1, seed=0, temperature=0.0, top_p=1.0, min_p=0.0, top_k=0,
        max_tokens=options.max_tokens, prompt_tokens=len(prompt),
        stop_ids=tuple(tokenizer.stop_ids),
    )  # fmt: skip
    return answer(engine, drafter, prompt, params, PLAIN)[0]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.dtypes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE")
    parser.add_argument("--per-task", type=int, default=6, help="prompts of each task")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
