"""Answers held to a JSON schema: what a verification brings and what the masks cost.

Drafter and verifier of the product in one process, as in bench.acceptance, for each of three
schemas: tokens per verification where the draft is held to the schema as well, where it is not, and
of the same prompts without a schema. Then the time of the masks of a batch: `--requests` trees of
64 nodes, a right path of 16 with three wrong siblings at each node, walked by the server's threads.

    python -m bench.constraints
"""

import argparse
import json
import os
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

os.environ.setdefault("GOMP_SPINCOUNT", "0")

import jsonschema

from bench.acceptance import Count, answer, open_model
from bench.harness import measure, option_parser, report
from runtime.bench.attempt import attempt
from runtime.edge.draft.drafter import Drafter
from runtime.edge.draft.guide import Guide as DraftGuide
from runtime.edge.draft.speculation import TreeShape
from runtime.grammar.grammars import Grammars
from runtime.grammar.tokens import Tokens
from runtime.model.tokenizer import Tokenizer
from runtime.server.guide import MOST_THREADS, Guide
from runtime.wire.messages import Open

TEXT = {"type": "string", "maxLength": 60}
PLACE = {
    "type": "object",
    "properties": {
        "name": TEXT,
        "country": TEXT,
        "sights": {"type": "array", "items": TEXT, "maxItems": 4},
    },
    "required": ["name", "country", "sights"],
    "additionalProperties": False,
}
FEELING = {
    "type": "object",
    "properties": {
        "sentiment": {"enum": ["positive", "negative", "neutral"]},
        "certainty": {"type": "number", "minimum": 0, "maximum": 1},
        "reason": {"type": "string", "maxLength": 120},
    },
    "required": ["sentiment", "certainty", "reason"],
    "additionalProperties": False,
}
CALL = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": {"enum": ["get_weather", "get_time", "search"]},
            "arguments": {"type": "object", "additionalProperties": TEXT},
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    },
    "minItems": 1,
    "maxItems": 2,
}
ASKED = {
    "place": (PLACE, "Describe {} as JSON with its name, country and sights.", "Paris Kyoto Cairo"),
    "feeling": (FEELING, "Is this a good review? 'The {} was great, but late.' Answer as JSON.",
                "pizza train film"),
    "call": (CALL, "Which tools answer 'How warm is it in {}?' Answer as a JSON list of calls.",
             "Oslo Lima Delhi"),
}  # fmt: skip
COLUMNS = (
    *("schema", "answers", "tokens", "draft held", "draft free", "no schema", "texts not plain"),
    *("masks us a tree", "masks ms a batch"),
)


def main() -> None:
    options = parse_options()
    bench = Bench(options)
    rows = [bench.row(name) for name in ASKED]
    report(
        f"tokens per verification under a JSON schema: {options.draft} for {options.model}, "
        f"T = {options.temperature:g}; masks of {options.requests} trees of 64 nodes",
        COLUMNS,
        rows,
        {
            f"{row[0]}_{what}": row[column]
            for row in rows
            for column, what in ((3, "held"), (4, "free"))
        },
        options.json,
    )


class Bench:
    """The models, once for all schemas."""

    def __init__(self, options: argparse.Namespace):
        self._options = options
        self._engine = open_model(options.model, "stored")
        self._drafter = Drafter(open_model(options.draft, "stored"))
        self._tokenizer = Tokenizer.load(options.model)
        rows = self._engine.model.vocab_size
        self._grammars = Grammars(lambda: Tokens(self._tokenizer, rows))
        self._threads = ThreadPoolExecutor(MOST_THREADS)

    def row(self, name: str) -> tuple[object, ...]:
        """All figures of one schema."""
        schema, question, names = ASKED[name]
        text = json.dumps(schema)
        held, free, loose = Count(), Count(), Count()
        said: list[int] = []
        for place in names.split():
            ask = partial(self._answer, question.format(place))
            plain = ask(text, Count(), draft_nodes=0)
            for count, is_held in ((held, True), (free, False)):
                said = ask(text, count, is_held=is_held)
                count.different += said != plain
            ask(None, loose)
            if said[-1] in self._tokenizer.stop_ids:
                jsonschema.validate(json.loads(self._tokenizer.decode(said)), schema)
        tree_us, batch_ms = self._masks(text, said)
        rates = (f"{count.rate:.2f}" for count in (held, free, loose))
        different = held.different + free.different
        return (
            name,
            held.prompts,
            held.tokens,
            *rates,
            different,
            f"{tree_us:.0f}",
            f"{batch_ms:.1f}",
        )

    def _answer(
        self,
        question: str,
        schema: str | None,
        count: Count,
        is_held: bool = True,
        draft_nodes: int = 32,
    ) -> list[int]:
        """One answer, which is counted."""
        prompt = self._tokenizer.chat_prompt([{"role": "user", "content": question}])
        params = Open(
            request=1, seed=1, temperature=self._options.temperature, top_p=1.0, min_p=0.0, top_k=0,
            max_tokens=self._options.max_tokens, prompt_tokens=len(prompt),
            stop_ids=tuple(self._tokenizer.stop_ids),
        )  # fmt: skip
        guides: dict[str, object] = {}
        if schema is not None:
            make = partial(self._grammars.matcher, "json_schema", schema)
            guides["target_guide"] = Guide(make(), self._threads)
            guides["draft_guide"] = DraftGuide(make, len(prompt)) if is_held else None
        shape = TreeShape(draft_nodes, 6, 6, 6)
        tokens, steps, passes = answer(self._engine, self._drafter, prompt, params, shape, **guides)
        count.add(steps[1:], passes)
        return tokens

    def _masks(self, schema: str, said: Sequence[int]) -> tuple[float, float]:
        """Microseconds of one tree's masks, and milliseconds of those of a batch."""
        dice, tokens, parents = random.Random(1), list[int](), list[int]()
        rows, node = self._engine.model.vocab_size, 0
        for right in said[:16]:
            tokens += [right, *(dice.randrange(rows) for _ in range(3))]
            parents += [node] * 4
            node = len(tokens) - 3
        matchers = [
            self._grammars.matcher("json_schema", schema) for _ in range(self._options.requests)
        ]

        def batch() -> None:
            walks = [self._threads.submit(one.masks, tokens, parents) for one in matchers]
            for walk in walks:
                walk.result()

        one = measure(lambda: matchers[0].masks(tokens, parents))
        return one.median_us, measure(batch).median_us / 1e3


def parse_options() -> argparse.Namespace:
    parser = option_parser("bench.constraints", __doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--draft", default="smollm2-draft")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--requests", type=int, default=32)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(attempt("bench.constraints", main))
