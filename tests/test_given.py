"""What a model thinks of an answer that is given to it token by token.

The oracle is transformers' own model, run once over the whole text.
"""

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from runtime.constraint import Constraint
from runtime.edge.draft.speculation import TreeShape
from runtime.edge.loop import Drafting, Round
from runtime.edge.net.link import ServerError
from runtime.sampling import Sampling
from runtime.wire import messages as wire
from tests.test_lossless import Job, Pair, all_rounds

PROMPT = [256, 72, 101]
STOP = 257  # the target's own
RNG = random.Random(5)
# longer than the largest tree, and not what the model would say; a stop token among them
ANSWER = [RNG.randrange(260) for _ in range(300)] + [STOP] + [RNG.randrange(260) for _ in range(40)]


@pytest.fixture(scope="module")
def tiny(tiny_pair: tuple[Path, Path]) -> Pair:
    return Pair(str(tiny_pair[0]), str(tiny_pair[1]))


def given(answer: list[int]) -> Constraint:
    return Constraint("tokens", " ".join(map(str, answer)))


def ask(address: str, pair: Pair, version: int, jobs: list[Job]) -> list[list[Round]]:
    return asyncio.run(all_rounds(address, replace(pair.hello, version=version), jobs))


def job(pair: Pair, answer: list[int], budget: int = 0, said: int = 0, **options: object) -> Job:
    sampling = Sampling(len(answer) - said, constraint=given(answer), output_tokens=said, **options)
    prompt = [*PROMPT, *answer[:said]]
    return pair.drafter(), prompt, sampling, Drafting(TreeShape(budget, 8, 6, 4))


@torch.inference_mode()
def truth(folder: Path, answer: list[int]) -> torch.Tensor:
    """Log-probabilities [answer, V] of what may stand in each place."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    logits = model(torch.tensor([[*PROMPT, *answer]])).logits[0, len(PROMPT) - 1 : -1]
    return logits.log_softmax(-1)


@pytest.mark.parametrize("version", [wire.VERSION, wire.OFFERS_VERSION])
def test_each_token_has_the_log_probability_that_transformers_has(
    tiny: Pair, tiny_pair: tuple[Path, Path], tiny_server: str, version: int
) -> None:
    """However it would be drawn, whoever drafts, and where an answer goes on after a resume."""
    jobs = [
        job(tiny, ANSWER, logprobs=2),
        job(tiny, ANSWER, logprobs=2, temperature=1.5, seed=3, top_k=1, stop_ids=(ANSWER[7],)),
        job(tiny, ANSWER, budget=8, logprobs=2),
        job(tiny, ANSWER, said=20, logprobs=2),
    ]
    expected = truth(tiny_pair[0], ANSWER)
    likeliest = expected.topk(2)
    for (_, _, sampling, _), turns in zip(jobs, ask(tiny_server, tiny, version, jobs), strict=True):
        said = sampling.output_tokens
        assert [token for turn in turns for token in turn.tokens] == ANSWER[said:]
        assert turns[-1].verdict.finish is wire.Finish.LENGTH
        told = [one for turn in turns if turn.logprobs for one in turn.logprobs.logprobs]
        own = expected[range(len(ANSWER)), ANSWER][said:]
        assert torch.allclose(torch.tensor(told), own, atol=1e-4)
        top = [one for turn in turns if turn.logprobs for one in turn.logprobs.top_logprobs]
        assert torch.allclose(torch.tensor(top), likeliest.values[said:].flatten(), atol=1e-4)


def test_many_tokens_are_read_in_a_step(tiny: Pair, tiny_server: str) -> None:
    """By an edge that can hear of them: 341 tokens in two trees of 255 nodes, after a first one."""
    (turns,) = ask(tiny_server, tiny, wire.OFFERS_VERSION, [job(tiny, ANSWER, logprobs=0)])
    assert sum(turn.verdict.turn is not wire.Turn.MORE for turn in turns) == 3


def test_it_ends_with_its_last_token(tiny: Pair, tiny_server: str) -> None:
    """Wherever max_tokens would end it."""
    drafter, prompt, sampling, how = job(tiny, [5, STOP, 6])
    jobs: list[Job] = [(drafter, prompt, replace(sampling, max_tokens=50), how)]
    (turns,) = ask(tiny_server, tiny, wire.OFFERS_VERSION, jobs)
    assert [token for turn in turns for token in turn.tokens] == [5, STOP, 6]
    assert turns[-1].verdict.finish is wire.Finish.LENGTH


@pytest.mark.parametrize(
    ("text", "said", "sentence"),
    [
        ("1 2 x", 0, "'x' is no id"),
        ("1  2", 0, "'' is no id"),
        ("-1", 0, "'-1' is no id"),
        ("1 260", 0, "only ids below 260"),
        ("5 6", 1, "does not begin with the tokens"),
        ("72", 1, "already"),
    ],
)
def test_what_is_no_such_answer_is_refused(
    tiny: Pair, tiny_server: str, text: str, said: int, sentence: str
) -> None:
    sampling = Sampling(9, constraint=Constraint("tokens", text), output_tokens=said)
    asked: Job = (tiny.drafter(), [256, 72], sampling, Drafting(TreeShape(0, 1, 1, 1)))
    with pytest.raises(ServerError, match=sentence) as refused:
        ask(tiny_server, tiny, wire.VERSION, [asked])
    assert refused.value.code is wire.ErrorCode.CONSTRAINT
