"""One request that goes wrong ends alone: the texts of its batch mates are those of plain decoding.

The oracle is transformers, one token a time, from a model that never saw the other requests.
"""

import asyncio
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from runtime.config import parse_address
from runtime.edge.net.link import Link, ServerError
from runtime.model.engine import Engine, Rows, TreeRequest
from runtime.model.open import open_engine
from runtime.model.staging import Parcel
from runtime.model.tokenizer import Tokenizer
from runtime.sampling import Sampling
from runtime.server.request import NO_NODES, Request
from runtime.server.schedule.step import Work
from runtime.server.verify.verifier import Failed, Outcome, Verified, verify_batch
from runtime.tree import Tree
from runtime.wire import messages as wire
from tests.processes import running_server

REQUESTS, TOKENS, PAGES = 8, 20, 6
POISON = 255  # a token that no text of the target has
NOBODYS_TOKEN = 10_000  # that the model does not have


def plain_text(model: LlamaForCausalLM, prompt: Sequence[int], count: int) -> list[int]:
    context = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            context.append(int(model(torch.tensor([context])).logits[0, -1].argmax()))
    return context[len(prompt) :]


def prompt_of(number: int) -> list[int]:
    return [(37 * number + 11 * i) % 250 for i in range(5 + 3 * number)]


def draft(truth: Sequence[int], most_depth: int, dice: random.Random) -> Tree:
    """Two chains under the root: one right for a while, one random."""
    depth = dice.randint(0, most_depth)
    right = [*truth[: dice.randint(0, depth)], *(dice.randrange(250) for _ in range(depth))]
    wrong = [(right[0] + 1) % 250, 7, 8][:most_depth] if depth else []
    parents = [*range(depth), 0, depth + 1, depth + 2]
    return Tree((*right[:depth], *wrong), tuple(parents[: depth + len(wrong)]))


class Fragile(Engine):
    """Fails where its `faulty` request takes part, at one point of the step or another."""

    faulty: Request | None = None
    point = ""

    def run(self, rows: Rows, parcel: Parcel, drawn: Tensor | None = None) -> Tensor:
        logits, requests = super().run(rows, parcel, drawn), rows.joined.requests
        if self._is_there("pass", requests):
            raise RuntimeError("the pass of this request is broken")
        if self._is_there("logits", requests):
            ends = torch.tensor([len(request.logit_rows) for request in requests]).cumsum(0)
            mine = [request.pages is self.faulty.pages for request in requests].index(True)
            logits = logits.clone()
            logits[ends[mine] - len(requests[mine].logit_rows) : ends[mine]] = float("nan")
        return logits

    def compact_verified(
        self, page_table: Tensor, prefix_lens: Tensor, path: Tensor, accepted_lens: Tensor
    ) -> None:
        super().compact_verified(page_table, prefix_lens, path, accepted_lens)
        if self.point == "compaction" and self.faulty.pages[0] in page_table[:, 0]:
            raise RuntimeError("the compaction of this request is broken")

    def _is_there(self, point: str, requests: Sequence[TreeRequest]) -> bool:
        return self.point == point and any(r.pages is self.faulty.pages for r in requests)


@pytest.fixture(scope="module")
def oracle(tiny_pair: tuple[Path, Path]) -> list[list[int]]:
    model = LlamaForCausalLM.from_pretrained(tiny_pair[0])
    return [plain_text(model, prompt_of(number), TOKENS) for number in range(REQUESTS)]


@pytest.fixture
def engine(tiny_pair: tuple[Path, Path]) -> Fragile:
    kv_tokens = REQUESTS * PAGES * 16
    opened = open_engine(str(tiny_pair[0]), "float32", "cpu", lambda model: kv_tokens, 16)
    return Fragile(opened.model, opened.kv)


def request(engine: Engine, number: int) -> Request:
    prompt = prompt_of(number)
    params = wire.Open(number + 1, 0, 0.0, 1.0, 0.0, 0, TOKENS, len(prompt), ())
    pages = engine.kv.allocate(PAGES)
    return Request(number, params, len(prompt) + TOKENS, prompt, pages=pages)


def step(
    engine: Engine, live: list[Request], oracle: list[list[int]], dice: random.Random
) -> list[Outcome]:
    """Draft for all, verify them in one batch, and apply the verdicts as the loop does."""
    for s in live:
        told = len(s.context) - s.params.prompt_tokens
        first = NO_NODES if not s.round else draft(oracle[s.key][told:], s.remaining - 1, dice)
        s.draft = first
    outcomes = verify_batch(engine, [Work(s, s.uncached, True) for s in live])
    for outcome in outcomes:
        if isinstance(outcome, Verified):
            outcome.commit()
    return outcomes


def poison(engine: Fragile, victim: Request, fault: str) -> None:
    if fault == "page":
        engine.kv.pools[0][:, :, victim.pages[0]] = float("nan")
    elif fault == "token":
        victim.context[-1] = NOBODYS_TOKEN
    else:
        engine.faulty, engine.point = victim, fault


@pytest.mark.parametrize("round_number", [1, 2, 3])
@pytest.mark.parametrize("fault", ["page", "logits", "token", "pass", "compaction"])
def test_seven_of_eight_go_on(
    engine: Fragile, oracle: list[list[int]], fault: str, round_number: int
) -> None:
    """Numbers that are no numbers, and exceptions before, in and after the pass."""
    dice = random.Random(fault + str(round_number))
    everyone = [request(engine, number) for number in range(REQUESTS)]
    victim, live = dice.choice(everyone), list(everyone)
    for number in range(TOKENS):
        if number == round_number:
            poison(engine, victim, fault)
        outcomes = step(engine, live, oracle, dice)
        failed = [o.request for o in outcomes if isinstance(o, Failed)]
        assert failed == ([victim] if number == round_number else [])
        live = [s for s in live if s not in failed and not s.finish]
    texts = [s.context[s.params.prompt_tokens :] for s in everyone]
    for number in set(range(REQUESTS)) - {victim.key}:
        assert texts[number] == oracle[number]


def test_the_pages_of_a_poisoned_request_serve_the_next(
    engine: Fragile, oracle: list[list[int]]
) -> None:
    """What is left in a page that was given back is never read, not even multiplied by nothing."""
    engine.kv.pools[0][:] = float("nan")
    dice, live = random.Random(3), [request(engine, number) for number in range(REQUESTS)]
    everyone = list(live)
    while live:
        step(engine, live, oracle, dice)
        live = [s for s in live if not s.finish]
    assert [s.context[s.params.prompt_tokens :] for s in everyone] == oracle


@pytest.fixture(scope="module")
def poisonable(
    tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, LlamaForCausalLM, wire.Hello]]:
    """A server process whose model has no numbers for one token, which it never says itself."""
    folder = tmp_path_factory.mktemp("poisonable")
    model = LlamaForCausalLM.from_pretrained(tiny_pair[0])
    with torch.no_grad():
        model.model.embed_tokens.weight[POISON] = float("nan")
        model.lm_head.weight[POISON] = model.lm_head.weight[0]  # of equals the lowest is drawn
    model.save_pretrained(folder)
    for file in tiny_pair[0].glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = Tokenizer.load(str(folder))
    hello = wire.Hello(1, tokenizer.vocabulary_size, tokenizer.vocabulary_hash(), "tiny")
    # a pool that the requests of a test fill: pages go from the poisoned to the others
    options = ["--model", str(folder), "--port", "0", "--threads", "1", "--kv-tokens", "1024"]
    limits = ["--max-nodes", "15", "--no-pipeline", "--credits", "open"]
    with running_server(*options, *limits) as address:
        yield address, model, hello


async def told(link: Link, prompt: list[int], truth: list[int], seed: int) -> list[int]:
    """The text of a request that drafts, the poisonous token included."""
    dice, text = random.Random(seed), list(prompt)
    request, tree = link.request(prompt, Sampling(len(truth))), Tree()
    while not request.finished:
        verdict = await request.verdict()
        path = [tree.tokens[node - 1] for node in tree.path(verdict.node)]
        text += [*path, verdict.bonus]
        known = len(text) - len(prompt)
        if not request.finished:
            tree = draft(truth[known:], min(len(truth) - known - 1, 3), dice)
            if len(tree):
                tree = Tree((*tree.tokens, POISON), (*tree.parents, 0))
            request.send(len(text), tree)
    return text[len(prompt) :]


def test_a_poisonous_prompt_fails_alone_on_a_server(poisonable) -> None:
    """Eight edges; one prompt after the other makes the model give no numbers. The others draft
    the poisonous token, share the beginning of that prompt, and get the pages it had."""
    address, model, hello = poisonable

    async def scenario() -> None:
        links = [await Link.open(*parse_address(address), hello) for _ in range(REQUESTS)]
        beginning = [(13 * i) % 250 for i in range(40)]
        for turn in range(4):
            bad = [*beginning[: 30 + turn], POISON, *beginning[:turn]]
            prompts = [[*beginning, turn, number] for number in range(REQUESTS - 1)]
            truths = [plain_text(model, prompt, TOKENS) for prompt in prompts]
            assert all(POISON not in truth for truth in truths)
            asked = links[0].request(bad, Sampling(TOKENS))
            texts = await asyncio.gather(
                *(told(*good, turn) for good in zip(links[1:], prompts, truths, strict=True))
            )
            with pytest.raises(ServerError, match="no valid probabilities") as failed:
                await asked.verdict()
            assert failed.value.code is wire.ErrorCode.INTERNAL
            assert texts == truths
        for link in links:
            await link.close()

    asyncio.run(asyncio.wait_for(scenario(), 120))
