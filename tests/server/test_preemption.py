"""A KV pool at a quarter of the demand: whatever is preempted, shared or cancelled, text is plain.

Scheduler and verifier with a real, tiny model, without sockets. The oracle computes the whole
context anew for every token, so it knows no cache, no pages and no trees.
"""

import logging
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime.grammar.grammars import Grammars
from runtime.grammar.tokens import Tokens
from runtime.model.engine import Engine, TreeRequest
from runtime.model.open import open_engine
from runtime.model.text_stream import BYTE_OF
from runtime.model.tokenizer import Tokenizer
from runtime.server.guide import Guide
from runtime.server.model_thread import make
from runtime.server.request import Request
from runtime.server.schedule.scheduler import Limits, Scheduler
from runtime.server.schedule.spill import Spill
from runtime.server.verify.verifier import Outcome, Verified, verify_batch
from runtime.tree import Tree
from runtime.wire.messages import Open, Rule, Turn
from specedge_kernels import reference

PAGE_TOKENS = 8
MAX_NODES = 15
OUTPUT_TOKENS = 40
# a letter of the alphabet's first half and one of its second, in turns
IN_TURNS = "([a-m][n-z]){40}"
BYTES = [BYTE_OF[letter] for letter in sorted(BYTE_OF)]  # of the tiny models' tokens
PREFIXES = [[(31 * text + i) % 250 for i in range(30)] for text in range(3)]


# parameters, rule, whether it is constrained, prompt
Asked = tuple[Open, Rule | None, bool, list[int]]


def requests(dice: random.Random, count: int) -> list[Asked]:
    """Prompts that share their beginnings, greedy and sampled, some by a rule, some constrained."""
    result: list[Asked] = []
    for number in range(count):
        ending = [dice.randrange(250) for _ in range(dice.randint(1, 10))]
        prompt = dice.choice(PREFIXES)[: dice.choice([9, 30, 30])] + ending
        temperature = dice.choice([0.0, 0.7, 1.0])
        params = Open(1, number, temperature, 1.0, 0.0, 0, OUTPUT_TOKENS, len(prompt), ())
        rule = Rule(1, 0.5, 0.25, 1.5, (7, 99), (1.5, -9.0)) if number % 3 == 0 else None
        result.append((params, rule, number % 4 == 1, prompt))
    return result


def plain(
    engine: Engine, params: Open, rule: Rule | None, in_turns: bool, prompt: list[int]
) -> list[int]:
    context, pages = list(prompt), engine.kv.allocate(engine.kv.n_free)
    for _ in range(params.max_tokens):
        last = len(context) - 1
        request = TreeRequest(context, range(-1, last), 0, pages, (last,))
        row = engine.forward([request]).numpy().copy()
        changed(row[0], rule, prompt, context[len(prompt) :])
        if in_turns:
            halves = (range(ord("a"), ord("n")), range(ord("n"), ord("z") + 1))
            letters = halves[(len(context) - len(prompt)) % 2]
            row[0, [token for token, byte in enumerate(BYTES) if byte not in letters]] = -np.inf
            row[0, len(BYTES) :] = -np.inf
        (token,) = reference.target_tokens(
            torch.from_numpy(row),
            torch.tensor([params.temperature]),
            torch.tensor([params.top_k]),
            torch.tensor([params.top_p]),
            torch.tensor([params.min_p]),
            torch.tensor([params.seed]),
            torch.tensor([len(context)]),
        ).tolist()
        context.append(token)
    engine.kv.free(pages)
    return context


def changed(row: np.ndarray, rule: Rule | None, prompt: list[int], output: list[int]) -> None:
    """Logits [V] f32 as a rule changes them, token by token."""
    if rule is None:
        return
    for token, bias in zip(rule.bias_ids, rule.bias_values, strict=True):
        row[token] += np.float32(bias)
    for token in {*prompt, *output}:
        factor = np.float32(rule.repetition_penalty)
        row[token] = row[token] / factor if row[token] > 0 else row[token] * factor
    for token in {*output}:
        row[token] -= np.float32(rule.frequency_penalty) * np.float32(output.count(token))
        row[token] -= np.float32(rule.presence_penalty)


def draft(dice: random.Random, text: list[int], request: Request) -> Tree:
    """A random tree whose tokens are often the right ones for their depth."""
    parents: list[int] = []
    depths = [0]
    for _ in range(dice.randint(0, MAX_NODES)):
        parent = dice.choice([len(parents), dice.randrange(len(depths))])
        if depths[parent] + 1 < request.remaining:
            parents.append(parent)
            depths.append(depths[parent] + 1)
    right = [text[request.root + depth] for depth in depths[1:]]
    return Tree(tuple(dice.choice([t, t, t, (t + 1) % 250]) for t in right), tuple(parents))


class Server:
    """The server's loop without sockets; edges draft, vanish and come back at random."""

    def __init__(
        self,
        engine: Engine,
        limits: Limits,
        texts: list[list[int]],
        begin: Callable[[int], Request],
        seed: int,
    ):
        self.scheduler = Scheduler(limits, engine.kv.allocate, engine.kv.free, Spill(8))
        self.finished: dict[object, list[int]] = {}
        self._engine, self._texts, self._dice = engine, texts, random.Random(seed)
        self._begin = begin

    def run(self, requests: list[Request]) -> None:
        """Until every request has ended; one that is cancelled while a step runs begins anew."""
        scheduler, left = self.scheduler, list(requests)
        while left or scheduler.running or scheduler.waiting:
            if left and self._dice.random() < 0.5:
                scheduler.submit(left.pop())
            self._draft()
            batch = scheduler.next_batch()
            if batch and self._dice.random() < 0.1:
                gone = self._dice.choice(batch).request
                scheduler.remove(gone)
                left.append(self._begin(gone.key))
            make(scheduler.spill.transfers, self._engine.kv)
            outcomes = verify_batch(self._engine, batch) if batch else []
            if batch:
                scheduler.step_ended()
            for outcome in outcomes:
                self._deliver(outcome)
            scheduler.check()

    def _draft(self) -> None:
        """Some of the edges that have the turn send a tree, preempted or not."""
        for request in [*self.scheduler.running, *self.scheduler.waiting]:
            if request.draft is None and self._dice.random() < 0.7:
                request.line_up(draft(self._dice, self._texts[request.key], request), 0.0)
                self.scheduler.drafted(request)

    def _deliver(self, outcome: Outcome) -> None:
        request = outcome.request
        if request.ended:
            return
        match outcome:
            case Verified():
                outcome.commit()
                self.scheduler.verified(request)
                request.told(Turn.EDGE)
            case _:
                raise AssertionError(outcome)
        if request.finish:
            self.finished[request.key] = request.context
            self.scheduler.remove(request)


@pytest.fixture
def guide(tiny_pair: tuple[Path, Path]) -> Iterator[Callable[[], Guide]]:
    """Makes one for IN_TURNS."""
    grammars = Grammars(lambda: Tokens(Tokenizer.load(tiny_pair[0]), 260))
    with ThreadPoolExecutor(2) as threads:
        yield lambda: Guide(grammars.matcher("regex", IN_TURNS), threads)


@pytest.mark.parametrize(
    ("weights", "seed"), [("float32", 0), ("float32", 1), ("bfloat16", 3), ("q5_0", 4), ("q4_1", 5)]
)
def test_every_text_is_plain(
    tiny_pair: tuple[Path, Path],
    guide: Callable[[], Guide],
    caplog: pytest.LogCaptureFixture,
    weights: str,
    seed: int,
) -> None:
    work = requests(random.Random(seed), 16)
    demand = sum(len(prompt) + OUTPUT_TOKENS + MAX_NODES for *_, prompt in work)
    engine = open_engine(str(tiny_pair[0]), weights, "cpu", lambda model: demand // 4, PAGE_TOKENS)
    texts = [plain(engine, *one) for one in work]
    limits = Limits(
        max_requests=16,
        max_waiting=16,
        max_batch=8,
        max_step_nodes=64,
        max_nodes=MAX_NODES,
        chunk_tokens=16,
        page_size=PAGE_TOKENS,
        n_pages=engine.kv.n_pages,
    )

    def begin(key: int) -> Request:
        params, rule, in_turns, prompt = work[key]
        limit = params.prompt_tokens + params.max_tokens
        guiding = guide() if in_turns else None
        request = Request(key, params, limit, context=[], rule=rule, guide=guiding)
        assert request.read(tuple(prompt))
        return request

    server = Server(engine, limits, texts, begin, seed)
    with caplog.at_level(logging.ERROR):
        server.run([begin(key) for key in range(16)])
    assert [server.finished[key] for key in range(16)] == texts
    ours = [record for record in caplog.records if record.name.startswith("runtime")]
    assert not ours, "a step failed and was run again request by request"
    scheduler = server.scheduler
    assert scheduler.preemptions > 0
    assert scheduler.hit_tokens > 0
    assert scheduler.cache.evictions > scheduler.spill.hits > 0
    assert scheduler.next_batch() == []
    assert scheduler.cache.room() == engine.kv.n_pages
    scheduler.check()
