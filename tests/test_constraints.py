"""Constrained text is the target's own among what its constraint allows, whatever is drafted.

The oracle is a plain loop in this process: one token per pass, forbidden ones at minus infinity by
llguidance's own masks, drawn by the reference sampler in torch. What an answer has to be is judged
by the jsonschema package and by Python's `re`.
"""

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from runtime.constraint import Constraint
from runtime.edge.draft.speculation import Proactive, TreeShape
from runtime.edge.loading import Vocabulary
from runtime.edge.loop import Drafting
from runtime.edge.net.link import ServerError
from runtime.grammar.schema import ready
from runtime.model.engine import TreeRequest
from runtime.model.tokenizer import Tokenizer
from runtime.sampling import Sampling
from runtime.wire import messages as wire
from specedge_kernels import reference
from tests.test_lossless import Job, Pair, adversary, all_rounds, answers

pytestmark = pytest.mark.usefixtures("eager")

SHAPE = TreeShape(max_budget=32, max_n_beams=8, max_beam_len=5, max_branch_width=4)
PROMPT = [72, 101, 33, 108, 33, 72, 101, 33]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
CONSTRAINTS = {
    "person": Constraint("json_schema", json.dumps(PERSON)),
    "regex": Constraint("regex", r"[a-f]{3,12}(-[0-9]{2}){0,4}!"),
    "lark": Constraint(
        "lark",
        'start: sum\nsum: NUMBER | sum ("+" | "-") NUMBER | "(" sum ")"\nNUMBER: /[0-9]{1,3}/',
    ),
    "choice": Constraint("regex", "yes|no|perhaps|by all means"),
}
SAMPLINGS = {
    "greedy": Sampling(max_tokens=90),
    "T1": Sampling(max_tokens=90, temperature=1.0, seed=2),
    "T1.5 top-k": Sampling(max_tokens=90, temperature=1.5, top_k=5, seed=5),
    "T1 top-p": Sampling(max_tokens=90, temperature=1.0, top_p=0.8, seed=4),
}


class Oracle:
    """llguidance, told of the tokenizer without our own code."""

    def __init__(self, tokenizer: Tokenizer, rows: int):
        spelling, stops = tokenizer.token_bytes, tokenizer.stop_ids
        texts = [None if i in stops else spelling.get(i, first=False) for i in range(rows)]
        self.eos_token_id, self.bos_token_id = min(stops), None
        self.tokens = [text or b"" for text in texts]
        self.special_token_ids = [i for i, text in enumerate(texts) if text is None]
        self._tokenizer = LLTokenizer(TokenizerWrapper(self), eos_token=sorted(stops))

    def __call__(self, text: str) -> list[int]:
        raise NotImplementedError

    def matcher(self, constraint: Constraint) -> LLMatcher:
        text = {
            "json_schema": lambda: f"start: %json {json.dumps(ready(json.loads(constraint.text)))}",
            "regex": lambda: f"start: /{constraint.text}/",
            "lark": lambda: constraint.text,
        }[constraint.kind]()
        grammar = '%llguidance {"no_forcing": true}\n' + text
        return LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(grammar))


def plain_text(pair: Pair, sampling: Sampling, prompt: Sequence[int] = PROMPT) -> list[int]:
    assert sampling.constraint is not None
    engine, text, cached = pair.target, list(prompt), 0
    rows = engine.model.vocab_size
    matcher = Oracle(pair.tokenizer, rows).matcher(sampling.constraint)
    pages = engine.kv.allocate(engine.kv.n_free)
    while len(text) < len(prompt) + sampling.max_tokens:
        new = text[cached:]
        logits = engine.forward(
            [TreeRequest(new, range(-1, len(new) - 1), cached, pages, (len(new) - 1,))]
        )
        allowed = torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.uint8)
        logits = logits.masked_fill(allowed[:rows] == 0, -torch.inf)
        (token,) = reference.target_tokens(
            logits,
            torch.tensor([sampling.temperature]),
            torch.tensor([sampling.top_k]),
            torch.tensor([sampling.top_p]),
            torch.tensor([sampling.min_p]),
            torch.tensor([sampling.seed]),
            torch.tensor([len(text)]),
        ).tolist()
        cached = len(text)
        text.append(token)
        if token in pair.tokenizer.stop_ids:
            break
        assert matcher.consume_token(token)
    engine.kv.free(pages)
    return text[len(prompt) :]


@pytest.fixture(scope="module")
def tiny(tiny_pair: tuple[Path, Path]) -> Pair:
    return Pair(str(tiny_pair[0]), str(tiny_pair[1]))


@pytest.fixture(scope="module")
def vocabulary(tiny: Pair) -> Vocabulary:
    return Vocabulary(tiny.tokenizer, 260)


def fits(constraint: Constraint, text: str) -> bool:
    if constraint.kind == "json_schema":
        schema = json.loads(constraint.text)
        return bool(jsonschema.Draft202012Validator(schema).is_valid(json.loads(text)))
    expression = constraint.text if constraint.kind == "regex" else r"[0-9+()-]+"
    return re.fullmatch(expression, text) is not None


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("constraint", CONSTRAINTS.values(), ids=CONSTRAINTS)
def test_constrained_text_is_that_of_plain_decoding(
    tiny: Pair,
    tiny_server: str,
    vocabulary: Vocabulary,
    constraint: Constraint,
    sampling: Sampling,
) -> None:
    """Of edges that draft what fits, or anything, with the target's noise or without, or nothing,
    and of one that sends trees of all shapes."""
    sampling = replace(sampling, constraint=constraint)
    truth = plain_text(tiny, sampling)
    how = Drafting(SHAPE, matcher=vocabulary.matcher)
    hows = [
        how,
        replace(how, coupling=False),
        replace(how, matcher=None, proactive=Proactive.SINGLE),
        replace(how, shape=replace(SHAPE, max_budget=0)),
    ]
    jobs: list[Job] = [(tiny.drafter(), PROMPT, sampling, how) for how in hows]
    for form, seed in (("random", 1), ("chain", 2), ("star", 3), ("wrong", 4)):
        source = adversary(form, truth, seed, PROMPT, sampling, budget=24)
        jobs.append((source, PROMPT, sampling, how))
    for answer in answers(tiny_server, tiny.hello, jobs):
        assert answer == truth
    if truth[-1] in tiny.tokenizer.stop_ids:
        assert fits(constraint, tiny.tokenizer.decode(truth[:-1]))
    else:
        assert len(truth) == sampling.max_tokens


def test_one_that_is_resumed_goes_on_as_before(tiny: Pair, tiny_server: str) -> None:
    """What was said already is the end of the prompt, and counts as answer."""
    sampling = Sampling(90, 1.0, seed=3, constraint=CONSTRAINTS["regex"])
    truth = plain_text(tiny, sampling)
    how = Drafting(replace(SHAPE, max_budget=0))
    jobs: list[Job] = []
    cuts = (0, 1, 5, len(truth) - 2, len(truth) - 1)
    for said in cuts:
        left = replace(sampling, max_tokens=90 - said, output_tokens=said)
        jobs.append((tiny.drafter(), [*PROMPT, *truth[:said]], left, how))
    rounds = asyncio.run(all_rounds(tiny_server, tiny.hello, jobs))
    for said, answer in zip(cuts, rounds, strict=True):
        assert [token for round_ in answer for token in round_.tokens] == truth[said:]
        assert answer[-1].verdict.finish is wire.Finish.STOP


@pytest.mark.parametrize(
    ("constraint", "said", "sentence"),
    [
        (Constraint("json_schema", '{"not": {}}'), 0, '"not"'),
        (Constraint("regex", "(?=a)b"), 0, "look-around"),
        (Constraint("regex", "a"), 1, "token 0 of the answer is not one that its constraint"),
    ],
)
def test_what_cannot_be_enforced_is_refused(
    tiny: Pair, tiny_server: str, constraint: Constraint, said: int, sentence: str
) -> None:
    sampling = Sampling(9, constraint=constraint, output_tokens=said)
    job: Job = (tiny.drafter(), PROMPT, sampling, Drafting(SHAPE))
    with pytest.raises(ServerError, match=re.escape(sentence)) as refused:
        answers(tiny_server, tiny.hello, [job])
    assert refused.value.code is wire.ErrorCode.CONSTRAINT


def test_a_grammar_that_is_stuck_ends_its_request_alone(tiny: Pair, tiny_server: str) -> None:
    """Here one that becomes too complex at its first token."""
    options = {f"p{i}": {"type": "integer"} for i in range(1500)}
    schema = {"type": "object", "properties": options, "required": ["p1499"]}
    stuck = Sampling(40, constraint=Constraint("json_schema", json.dumps(schema)))
    fine = Sampling(40, constraint=CONSTRAINTS["choice"])
    how = Drafting(SHAPE)
    with pytest.raises(ServerError, match="constraint"):
        answers(tiny_server, tiny.hello, [(tiny.drafter(), PROMPT, stuck, how)])
    assert answers(tiny_server, tiny.hello, [(tiny.drafter(), PROMPT, fine, how)]) == [
        plain_text(tiny, fine)
    ]
