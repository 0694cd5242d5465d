"""Penalties, biases and log-probabilities: the text and the numbers are those of plain decoding.

The oracle is a plain loop: one token per forward pass of one request, its logits changed token by
token in Python's numbers as docs/protocol.md says, its token drawn by the reference in torch.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime.config import EdgeConfig
from runtime.demo import running_server
from runtime.edge import loop
from runtime.edge.client import Edge
from runtime.edge.writer import told
from runtime.embedded import target_path
from runtime.model.engine import Engine, TreeRequest
from runtime.sampling import Sampling
from specedge_kernels import reference
from tests.test_lossless import Pair, adversary, all_rounds, answers, drafting

pytestmark = pytest.mark.usefixtures("eager")

TOKENS = 40
RULES = {
    "none": {},
    "frequency": {"frequency_penalty": 1.5},
    "presence": {"presence_penalty": 2.0},
    "repetition": {"repetition_penalty": 1.7},
    "bias": {"logit_bias": ((10, -100.0), (65, 2.5), (200, 1.25))},
    "all": {
        "frequency_penalty": -0.7,
        "presence_penalty": 0.9,
        "repetition_penalty": 1.2,
        "logit_bias": ((65, 2.0), (200, 1.5)),
    },
}
DRAWS = {
    "greedy": ({}, True),
    "coupled": ({"temperature": 0.8, "seed": 3}, True),
    "uncoupled": ({"temperature": 0.8, "top_p": 0.95, "seed": 3}, False),
}
f32 = np.float32


def changed(row: np.ndarray, sampling: Sampling, prompt: list[int], output: list[int]) -> None:
    """Logits [V] f32 as the rule changes them, one token after the other."""
    for token, bias in sampling.logit_bias:
        row[token] += f32(bias)
    repetition = f32(sampling.repetition_penalty)
    for token in {*prompt, *output}:
        x = row[token]
        row[token] = x / repetition if x > 0 else x * repetition
    for token, count in Counter(output).items():
        row[token] -= f32(sampling.frequency_penalty) * f32(count)
        row[token] -= f32(sampling.presence_penalty)


def plain(
    engine: Engine, prompt: Sequence[int], sampling: Sampling, stop_ids: Iterable[int] = ()
) -> tuple[list[int], list[torch.Tensor]]:
    """The answer, and the model's own log-probabilities [V] in the place of each token."""
    text, cached, pages = list(prompt), 0, engine.kv.allocate(engine.kv.n_free)
    said = len(prompt) - sampling.output_tokens
    thought = []
    while len(text) < len(prompt) + sampling.max_tokens:
        new = text[cached:]
        request = TreeRequest(new, range(-1, len(new) - 1), cached, pages, (len(new) - 1,))
        raw = engine.forward([request])[0]
        thought.append(raw.double().log_softmax(-1))
        row = raw.numpy().copy()
        changed(row, sampling, text[:said], text[said:])
        (token,) = reference.target_tokens(
            torch.from_numpy(row)[None],
            torch.tensor([sampling.temperature]),
            torch.tensor([sampling.top_k]),
            torch.tensor([sampling.top_p]),
            torch.tensor([sampling.min_p]),
            torch.tensor([sampling.seed]),
            torch.tensor([len(text)]),
        ).tolist()
        cached = len(text)
        text.append(token)
        if token in stop_ids:
            break
    engine.kv.free(pages)
    return text[len(prompt) :], thought


@pytest.fixture(scope="module")
def tiny(tiny_pair: tuple[Path, Path]) -> Pair:
    return Pair(str(tiny_pair[0]), str(tiny_pair[1]))


def sampled(rule: str, draw: str) -> Sampling:
    return Sampling(TOKENS, **DRAWS[draw][0], **RULES[rule])


def of(pair: Pair, prompt: Sequence[int], sampling: Sampling) -> list[int]:
    return plain(pair.target, prompt, sampling, pair.tokenizer.stop_ids)[0]


@pytest.mark.parametrize("draw", DRAWS)
def test_text_with_drafts_is_the_text_of_the_rule(tiny: Pair, tiny_server: str, draw: str) -> None:
    """All rules beside one another, without drafts, with good ones, and with ones that are wrong
    or run on too long; every rule gives another text than none.
    """
    prompt, coupling = tiny.tokenizer.encode("again and again and again"), DRAWS[draw][1]
    jobs, expected = [], []
    for name in RULES:
        how = sampled(name, draw)
        truth = of(tiny, prompt, how)
        drafts = adversary("any", truth, 1, prompt, how, 60)
        jobs += [(tiny.drafter(), prompt, how, drafting(n, coupling)) for n in (0, 40)]
        jobs.append((drafts, prompt, how, drafting(60)))
        expected.append(truth)
    assert expected[0] not in expected[1:], "a rule does nothing"
    assert answers(tiny_server, tiny.hello, jobs) == [text for text in expected for _ in range(3)]


@pytest.mark.parametrize("rule", ["frequency", "all"])
def test_the_rest_of_an_answer_counts_what_was_said(
    tiny: Pair, tiny_server: str, rule: str
) -> None:
    """In the prompt of the rest its tokens are output still: else the text would be another."""
    prompt, how = tiny.tokenizer.encode("on and on"), sampled(rule, "coupled")
    whole = of(tiny, prompt, how)
    jobs, expected = [], []
    for said in (1, 9, TOKENS - 1):
        rest = replace(how, max_tokens=TOKENS - said, output_tokens=said)
        for budget in (0, 40):
            jobs.append((tiny.drafter(), prompt + whole[:said], rest, drafting(budget)))
            expected.append(whole[said:])
    forgotten = replace(sampled("frequency", "coupled"), max_tokens=TOKENS - 9)
    jobs.append((tiny.drafter(), prompt + whole[:9], forgotten, drafting(0)))
    *got, other = answers(tiny_server, tiny.hello, jobs)
    assert got == expected
    if rule == "frequency":
        assert other != whole[9:], "what is output makes no difference"


def test_drafts_follow_the_rule(tiny: Pair, tiny_server: str, monkeypatch) -> None:
    """The draft's logits are changed as the target's are, along the draft's own path as well."""
    bias = tuple((token, 9.0) for token in range(40, 60))
    how = Sampling(TOKENS, frequency_penalty=2.0, logit_bias=bias)
    prompt = tiny.tokenizer.encode("follow")
    job = (tiny.drafter(), prompt, how, drafting(32))
    (followed,) = asyncio.run(all_rounds(tiny_server, tiny.hello, [job]))
    monkeypatch.setattr(loop, "edits_of", lambda sampling: None)
    (ignored,) = asyncio.run(all_rounds(tiny_server, tiny.hello, [job]))
    assert [t for round_ in followed for t in round_.tokens] == of(tiny, prompt, how)
    assert len(followed) < 0.8 * len(ignored)


@pytest.mark.parametrize("draw", ["greedy", "uncoupled"])
def test_log_probabilities_are_the_models_own(tiny: Pair, tiny_server: str, draw: str) -> None:
    """Before rule, temperature and top-p; for the drafted and for the target's own tokens; of as
    many likeliest tokens as each request asked for; and the text stays as it was.
    """
    prompt = tiny.tokenizer.encode("what do you think?")
    jobs, expected = [], []
    for rule, n in (("none", 0), ("all", 3), ("bias", 20), ("frequency", None)):
        how = replace(sampled(rule, draw), logprobs=n)
        truth = (n, *plain(tiny.target, prompt, how, tiny.tokenizer.stop_ids))
        for budget in (0, 40):
            jobs.append((tiny.drafter(), prompt, how, drafting(budget, DRAWS[draw][1])))
            expected.append(truth)
    rounds = asyncio.run(all_rounds(tiny_server, tiny.hello, jobs))
    for (n, text, thought), answer in zip(expected, rounds, strict=True):
        assert [token for round_ in answer for token in round_.tokens] == text
        if n is None:
            assert all(round_.logprobs is None for round_ in answer)
            continue
        listed = [one for round_ in answer for one in told(round_)]
        assert [one.token for one in listed] == text
        for one, logs in zip(listed, thought, strict=True):
            assert one.logprob == pytest.approx(float(logs[one.token]), abs=1e-4)
            order = logs.sort(descending=True, stable=True)
            assert [token for token, _ in one.top] == order.indices[:n].tolist()
            values = [value for _, value in one.top]
            assert values == pytest.approx(order.values[:n].tolist(), abs=1e-4)


def test_an_answer_has_them_beside_its_tokens(
    tiny_pair: tuple[Path, Path], tiny: Pair, tiny_server: str
) -> None:
    """However a stop string cuts a round, and pieces say which tokens they show."""
    config = EdgeConfig(server=tiny_server, draft=str(tiny_pair[1]), max_tokens=TOKENS, raw=True)
    with Edge(config) as edge:
        whole = edge.generate("aside", logprobs=1)
        text = whole.text
        cut = edge.generate("aside", logprobs=1, stop=text[9:11])
        assert cut.text == text[: text.index(text[9:11])]
        plainly = edge.generate("aside")
        assert (plainly.text, plainly.logprobs) == (text, [])
    for answer in (whole, cut):
        assert [one.token for one in answer.logprobs] == answer.tokens
        assert all(len(one.top) == 1 for one in answer.logprobs)
        # greedy: the likeliest token is the one that was said
        assert all(one.top[0] == (one.token, one.logprob) for one in answer.logprobs)
    assert len(cut.tokens) < len(whole.tokens)
    pieces = list(whole)
    assert pieces[-1].end <= len(whole.tokens)
    assert whole.statistics.accepted_nodes > 0
    assert whole.statistics.accepted_nodes <= whole.statistics.drafted_nodes


def test_real_text_of_the_embedded_pair_by_a_rule() -> None:
    """SmolLM2 and its draft: 49,152 tokens, and a draft that drafts by the rule."""
    try:
        target_path()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    pair = Pair("smollm2", "smollm2-draft", kv_tokens=512)
    prompt = pair.tokenizer.chat_prompt([{"role": "user", "content": "List three fruits."}])
    jobs, expected = [], []
    for draw in ("greedy", "coupled"):
        bias = ((28, 2.0), (30, -100.0))
        how = replace(sampled("all", draw), max_tokens=20, logit_bias=bias)
        jobs.append((pair.drafter(), prompt, how, drafting(32)))
        expected.append(of(pair, prompt, how))
    with running_server("--model", "smollm2", "--port", "0", "--no-pipeline") as address:
        rounds = asyncio.run(all_rounds(address, pair.hello, jobs))
    assert [[t for round_ in answer for t in round_.tokens] for answer in rounds] == expected
    assert sum(map(len, rounds)) < 0.9 * sum(map(len, expected)), "the draft is of no use"
