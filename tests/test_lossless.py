"""The claim itself: text through server and edges equals plain decoding, token for token.

The oracle is a plain loop in this process: one token per forward pass of one request, its token
drawn by the reference sampler in torch. The server is another process; what reaches it over
loopback are trees of every kind, good and bad, from one or several edges at once.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from runtime.config import parse_address
from runtime.edge.draft.batcher import Batcher, Drafts
from runtime.edge.draft.drafter import Drafter
from runtime.edge.draft.lookup_drafter import LookupDrafter
from runtime.edge.draft.speculation import Noise, Proactive, Speculation, TreeShape
from runtime.edge.draft.suffixes import Earlier
from runtime.edge.loop import Drafting, Round, generate, rounds
from runtime.edge.net.link import Link
from runtime.model.batch import NO_ADAPTER
from runtime.model.engine import Engine, TreeRequest
from runtime.model.open import open_engine
from runtime.model.tokenizer import Tokenizer
from runtime.sampling import Sampling
from runtime.tree import OrderedTree
from runtime.wire import messages as wire
from specedge_kernels import reference

pytestmark = pytest.mark.usefixtures("eager")

SAMPLINGS = {
    "greedy": Sampling(max_tokens=60),
    "T0.3": Sampling(max_tokens=60, temperature=0.3, seed=1),
    "T1": Sampling(max_tokens=60, temperature=1.0, seed=2),
    "T1.5": Sampling(max_tokens=60, temperature=1.5, seed=3),
    "T1 top-p": Sampling(max_tokens=60, temperature=1.0, top_p=0.8, seed=4),
    "T1.5 top-k": Sampling(max_tokens=60, temperature=1.5, top_k=5, seed=5),
    "T1 min-p": Sampling(max_tokens=60, temperature=1.0, min_p=0.1, seed=6),
    "T0.3 all": Sampling(max_tokens=60, temperature=0.3, top_k=20, top_p=0.9, min_p=0.02, seed=7),
}
BUDGETS = (1, 8, 32, 63, 200)


def plain_decoding(engine: Engine, prompt: Sequence[int], sampling: Sampling) -> list[int]:
    """One token per pass, drawn by the reference in torch, not by the op that the server uses."""
    context, cached, pages = list(prompt), 0, engine.kv.allocate(engine.kv.n_free)
    name, names = sampling.adapter, engine.model.adapters
    adapter = NO_ADAPTER if name is None else names.index(name)
    while len(context) < len(prompt) + sampling.max_tokens:
        new = context[cached:]
        last, parents = len(new) - 1, range(-1, len(new) - 1)
        request = TreeRequest(new, parents, cached, pages, (last,), adapter=adapter)
        (token,) = reference.target_tokens(
            engine.forward([request]),
            torch.tensor([sampling.temperature]),
            torch.tensor([sampling.top_k]),
            torch.tensor([sampling.top_p]),
            torch.tensor([sampling.min_p]),
            torch.tensor([sampling.seed]),
            torch.tensor([len(context)]),
        ).tolist()
        cached = len(context)
        context.append(token)
        if token in sampling.stop_ids:
            break
    engine.kv.free(pages)
    return context[len(prompt) :]


class Adversary(Speculation):
    """Sends trees of one shape whose tokens are random, wrong, or right for a while."""

    def prepare(self, form: str, truth: list[int], vocabulary: int, seed: int) -> None:
        self._form, self._truth, self._vocabulary = form, truth, vocabulary
        self._random, self._n_prompt = random.Random(seed), len(self.context)

    def frontier(self, max_nodes: int) -> list[int]:
        return []

    def frontier_ahead(self) -> list[int]:
        return []

    def send(self, max_nodes: int) -> OrderedTree:
        nodes = min(max_nodes, self.shape.max_budget)
        max_depth = self.limit - len(self.context) - 1
        done = len(self.context) - self._n_prompt  # tokens of the answer so far
        tokens: list[int] = []
        parents: list[int] = []
        depth, on_truth, used = [0], [True], set()
        for _ in range(nodes):
            parent = self._parent(len(tokens))
            if depth[parent] >= max_depth:
                continue
            position = done + depth[parent]
            right = self._truth[position] if position < len(self._truth) else 0
            token = right if self._random.random() < 0.4 else self._random.randrange(50)
            if self._form == "wrong" and token == right:
                token = (right + 1) % self._vocabulary
            if (parent, token) in used:
                continue
            used.add((parent, token))
            tokens.append(token)
            parents.append(parent)
            depth.append(depth[parent] + 1)
            on_truth.append(on_truth[parent] and token == right)
        self.sent = OrderedTree(tuple(tokens), tuple(parents), tuple(range(len(tokens))))
        return self.sent

    def _parent(self, nodes: int) -> int:
        match self._form:
            case "chain":
                return nodes
            case "star":
                return 0
            case _:
                return self._random.randint(0, nodes)


def adversary(
    form: str, truth: list[int], seed: int, prompt: Sequence[int], sampling: Sampling, budget: int
) -> Adversary:
    limit = min(len(prompt) + sampling.max_tokens, 1024)
    shape = TreeShape(budget, 1, 1, 1)
    result = Adversary(list(prompt), limit, shape, Proactive.OFF, Noise(), 260)
    result.prepare(form, truth, 256, seed)
    return result


# (who drafts, prompt, ...)
Job = tuple[Drafts | Adversary, Sequence[int], Sampling, Drafting]


async def all_rounds(address: str, hello: wire.Hello, jobs: list[Job]) -> list[list[Round]]:
    """The rounds of each job; every job is an edge of its own, all at the same time."""

    async def edge(
        source: Drafter | Adversary, prompt: Sequence[int], sampling: Sampling, how: Drafting
    ) -> list[Round]:
        link = await Link.open(*parse_address(address), hello)
        if isinstance(source, Adversary):
            batcher = Batcher(NoDrafter())
            going = rounds(link, batcher, sampling, source)
        else:
            batcher = Batcher(source)
            going = generate(link, batcher, prompt, sampling, how)
        answer = [round_ async for round_ in going]
        await batcher.close()
        await link.close()
        return answer

    return await asyncio.gather(*(edge(*job) for job in jobs))


def answers(address: str, hello: wire.Hello, jobs: list[Job]) -> list[list[int]]:
    """The tokens of each job."""
    answers = asyncio.run(all_rounds(address, hello, jobs))
    return [[token for round_ in answer for token in round_.tokens] for answer in answers]


class NoDrafter:
    """An adversary never asks for a pass."""

    def finish(self, speculation: Speculation) -> None:
        pass


class Pair:
    """A target for the oracle, a draft for each edge, and the greeting of both."""

    def __init__(
        self,
        target: str,
        draft: str,
        kv_tokens: int = 1024,
        weights: str = "stored",
        kv_dtype: str = "same",
    ):
        self._draft, self._kv_tokens, self._weights = draft, kv_tokens, weights
        self._kv_dtype = kv_dtype
        self.target = self._engine(target)
        self.tokenizer = Tokenizer.load(target)
        self.hello = wire.Hello(
            wire.VERSION, self.tokenizer.vocabulary_size, self.tokenizer.vocabulary_hash(), "test"
        )

    def drafter(self) -> Drafter:
        return Drafter(self._engine(self._draft))

    def plain_text(self, prompt: Sequence[int], sampling: Sampling) -> list[int]:
        """What a server of the target must answer: its own stop ids count as well."""
        stop_ids = (*sampling.stop_ids, *self.tokenizer.stop_ids)
        return plain_decoding(self.target, prompt, replace(sampling, stop_ids=stop_ids))

    def _engine(self, name: str) -> Engine:
        return open_engine(
            name, self._weights, "cpu", lambda model: self._kv_tokens, 16, kv_dtype=self._kv_dtype
        )


@pytest.fixture(scope="module")
def tiny(tiny_pair: tuple[Path, Path]) -> Pair:
    return Pair(str(tiny_pair[0]), str(tiny_pair[1]))


def drafting(
    budget: int, coupling: bool = True, proactive: Proactive = Proactive.MULTI
) -> Drafting:
    return Drafting(TreeShape(budget, 8, 6, 4), coupling, proactive)


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_every_budget_gives_the_plain_text(
    tiny: Pair, tiny_server: str, sampling: Sampling
) -> None:
    """All budgets at once: the batch is ragged, and every edge's text is the same."""
    prompt = tiny.tokenizer.encode("A prompt that is longer than one chunk of the server's.")
    expected = tiny.plain_text(prompt, sampling)
    jobs = [(tiny.drafter(), prompt, sampling, drafting(budget)) for budget in (0, *BUDGETS)]
    got = answers(tiny_server, tiny.hello, jobs)
    assert got == [expected] * len(jobs)


@pytest.mark.parametrize("name", ["greedy", "T1", "T0.3 all"])
def test_every_way_of_drafting_ahead_gives_the_plain_text(
    tiny: Pair, tiny_server: str, name: str
) -> None:
    """Each mode at two budgets, all at once: verdicts come late enough to draft ahead."""
    prompt = tiny.tokenizer.encode("What comes next is known before it is said.")
    expected = tiny.plain_text(prompt, SAMPLINGS[name])
    jobs = [
        (tiny.drafter(), prompt, SAMPLINGS[name], drafting(budget, proactive=proactive))
        for proactive in Proactive
        for budget in (4, 32)
    ]
    assert answers(tiny_server, tiny.hello, jobs) == [expected] * len(jobs)


@pytest.mark.parametrize("name", ["greedy", "T1", "T0.3 all"])
def test_a_draft_without_a_model_gives_the_plain_text(
    tiny: Pair, tiny_server: str, name: str
) -> None:
    """Asked twice, so that the second time everything has been read before."""
    prompt = tiny.tokenizer.encode("over and over and over and over again and over and")
    expected = tiny.plain_text(prompt, SAMPLINGS[name])
    drafter = LookupDrafter(Earlier(1 << 18))
    for budget in (32, 4):
        job = (drafter, prompt, SAMPLINGS[name], drafting(budget))
        assert answers(tiny_server, tiny.hello, [job]) == [expected]


@pytest.mark.parametrize("edges", [1, 2, 8])
def test_concurrent_edges(tiny: Pair, tiny_server: str, edges: int) -> None:
    """Edges with other prompts, parameters and budgets do not touch each other."""
    jobs, expected = [], []
    for edge, sampling in zip(range(edges), SAMPLINGS.values(), strict=False):
        prompt = tiny.tokenizer.encode(f"edge {edge} " * (1 + 3 * edge))
        sampling = replace(sampling, seed=100 + edge, max_tokens=30 + 5 * edge)
        jobs.append((tiny.drafter(), prompt, sampling, drafting(BUDGETS[edge % 5], edge % 2 == 0)))
        expected.append(tiny.plain_text(prompt, sampling))
    assert answers(tiny_server, tiny.hello, jobs) == expected


@pytest.mark.parametrize("name", ["greedy", "T1", "T0.3 all"])
def test_adversarial_drafts(tiny: Pair, tiny_server: str, name: str) -> None:
    """Random trees, wrong drafts, chains and stars, each at several budgets, all in one batch."""
    prompt = tiny.tokenizer.encode("hostile")
    expected = tiny.plain_text(prompt, SAMPLINGS[name])
    jobs = [
        (
            adversary(form, expected, seed, prompt, SAMPLINGS[name], budget),
            prompt,
            SAMPLINGS[name],
            drafting(budget),
        )
        for seed, form in enumerate(("random", "wrong", "chain", "star"))
        for budget in (1, 32, 200)
    ]
    assert answers(tiny_server, tiny.hello, jobs) == [expected] * len(jobs)


def test_a_stop_token_inside_an_accepted_path_ends_the_text(tiny: Pair, tiny_server: str) -> None:
    """Stop tokens chosen from the middle of the text, so that good drafts run past them, and the
    target's own, which ends a text although no request names it.
    """
    prompt = tiny.tokenizer.encode("stop")
    (own,) = tiny.tokenizer.stop_ids
    seeded = (replace(SAMPLINGS["T1"], seed=seed) for seed in range(100))
    texts = ((sampling, tiny.plain_text(prompt, sampling)) for sampling in seeded)
    how, whole = next((how, text) for how, text in texts if text[-1] == own and len(text) > 10)
    samplings = [replace(how, stop_ids=(token,)) for token in whole[:10:3]]
    jobs = [(tiny.drafter(), prompt, sampling, drafting(32)) for sampling in samplings]
    jobs += [(tiny.drafter(), prompt, how, drafting(budget)) for budget in (0, 32)]
    expected = [whole[: whole.index(sampling.stop_ids[0]) + 1] for sampling in samplings]
    assert answers(tiny_server, tiny.hello, jobs) == [*expected, whole, whole]


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 7])
def test_the_last_token_is_the_last(tiny: Pair, tiny_server: str, max_tokens: int) -> None:
    sampling = replace(SAMPLINGS["greedy"], max_tokens=max_tokens)
    prompt = tiny.tokenizer.encode("short")
    expected = tiny.plain_text(prompt, sampling)
    jobs = [(tiny.drafter(), prompt, sampling, drafting(budget)) for budget in (0, 8, 63)]
    assert answers(tiny_server, tiny.hello, jobs) == [expected] * 3


def test_the_context_ends_where_the_model_ends(tiny: Pair, tiny_server: str) -> None:
    """The tiny target has 1,024 positions: trees get shallow, and the text stops at the last."""
    prompt = tiny.tokenizer.encode("x" * 1000)
    sampling = replace(SAMPLINGS["T1"], max_tokens=500)
    expected = tiny.plain_text(prompt, replace(sampling, max_tokens=24))
    adversaries = [adversary(f, expected, 1, prompt, sampling, 200) for f in ("star", "any")]
    jobs = [(who, prompt, sampling, drafting(200)) for who in (tiny.drafter(), *adversaries)]
    assert answers(tiny_server, tiny.hello, jobs) == [expected] * 3
    assert len(prompt) + len(expected) == 1024


@pytest.mark.parametrize(("name", "coupling"), [("greedy", True), ("T1", True), ("T1", False)])
def test_drafts_are_worth_sending(tiny: Pair, tiny_server: str, name: str, coupling: bool) -> None:
    """Equal texts prove nothing if no draft is accepted; coupling is what helps above T = 0."""
    prompt = tiny.tokenizer.encode("worth it")
    job = (tiny.drafter(), prompt, SAMPLINGS[name], drafting(32, coupling))
    (rounds,) = asyncio.run(all_rounds(tiny_server, tiny.hello, [job]))
    assert sum(len(round_.tokens) for round_ in rounds) == 60
    assert len(rounds) <= (36 if coupling else 58)


def test_greedy_text_equals_transformers(tiny_pair, tiny: Pair, tiny_server: str) -> None:
    """An oracle with no code of ours in it."""
    from transformers import LlamaForCausalLM

    prompt = tiny.tokenizer.encode("independent")
    model = LlamaForCausalLM.from_pretrained(tiny_pair[0], dtype=torch.float32)
    generated = model.generate(torch.tensor([prompt]), max_new_tokens=60, do_sample=False)
    job = (tiny.drafter(), prompt, SAMPLINGS["greedy"], drafting(32))
    (got,) = answers(tiny_server, tiny.hello, [job])
    assert got == generated[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "float8_e4m3"])
def test_a_coarser_cache_changes_the_text_but_not_the_equality(
    tiny_pair: tuple[Path, Path], tiny: Pair, kv_dtype: str
) -> None:
    """Keys and values are rounded when they are stored, whoever computes them and when."""
    from tests.processes import running_server

    pair = Pair(str(tiny_pair[0]), str(tiny_pair[1]), kv_dtype=kv_dtype)
    prompt = pair.tokenizer.encode("rounded " * 20)
    expected = pair.plain_text(prompt, SAMPLINGS["T1"])
    jobs = [(pair.drafter(), prompt, SAMPLINGS["T1"], drafting(n)) for n in (0, 8, 63)]
    options = ["--model", str(tiny_pair[0]), "--port", "0", "--threads", "1", "--no-pipeline"]
    with running_server(*options, "--kv-dtype", kv_dtype) as address:
        assert answers(address, pair.hello, jobs) == [expected] * 3
    if kv_dtype == "float8_e4m3":
        assert expected != tiny.plain_text(prompt, SAMPLINGS["T1"])


@pytest.mark.parametrize(
    ("weights", "chunk_tokens"),
    [
        ("q4_1", 5),
        pytest.param("q8_0", 32, marks=pytest.mark.long),
        pytest.param("q5_0", 24, marks=pytest.mark.long),
    ],
)
def test_quantised_weights_change_the_text_but_not_the_equality(
    tiny_pair: tuple[Path, Path], tiny: Pair, weights: str, chunk_tokens: int
) -> None:
    """Activations are rounded row by row, whatever shares the step: chunks of prompts, and trees.

    The pool is too small for all, so some are put back and read anew in other pieces.
    """
    from tests.processes import running_server

    pair = Pair(str(tiny_pair[0]), str(tiny_pair[1]), weights=weights)
    jobs, expected = [], []
    for edge, name in enumerate(["greedy", "T1", "greedy", "T0.3 all", "T1.5"]):
        prompt = pair.tokenizer.encode(f"quantised {edge} " * (5 + 3 * edge))
        sampling = replace(SAMPLINGS[name], max_tokens=25)
        jobs.append((pair.drafter(), prompt, sampling, drafting((16, 8, 0)[edge % 3])))
        expected.append(pair.plain_text(prompt, sampling))
    assert expected[0] != tiny.plain_text(jobs[0][1], jobs[0][2])
    options = ["--model", str(tiny_pair[0]), "--port", "0", "--threads", "1", "--no-pipeline"]
    limits = [
        "--kv-tokens",
        "640",
        "--max-nodes",
        "63",
        "--max-step-nodes",
        "90",
        "--chunk-tokens",
        str(chunk_tokens),
    ]
    with running_server(*options, *limits, "--weights", weights) as address:
        assert answers(address, pair.hello, jobs) == expected


@pytest.mark.parametrize("weights", ["stored", "bfloat16"])
@pytest.mark.parametrize("length", [20, pytest.param(60, marks=pytest.mark.long)])
def test_real_text_of_the_embedded_pair(weights: str, length: int) -> None:
    """SmolLM2 and its draft; in bfloat16 too the equality is exact, by the order of summation."""
    from runtime.embedded import target_path
    from tests.processes import running_server

    try:
        target_path()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    pair = Pair("smollm2", "smollm2-draft", kv_tokens=512, weights=weights)
    cases = [
        ("Why is the sky blue?", Sampling(length)),
        ("Écris un haïku sur la mer. 海 🌊", Sampling(length, temperature=1.0, seed=1)),
        ("List three fruits.", Sampling(length, temperature=1.5, top_p=0.9, seed=2)),
    ]
    jobs, expected = [], []
    for text, sampling in cases:
        prompt = pair.tokenizer.chat_prompt([{"role": "user", "content": text}])
        expected.append(pair.plain_text(prompt, sampling))
        jobs.append((pair.drafter(), prompt, sampling, drafting(32)))
    # without the pipeline the turn is always the edges', however slow this machine is today
    options = ["--model", "smollm2", "--port", "0", "--weights", weights, "--no-pipeline"]
    with running_server(*options) as address:
        rounds = asyncio.run(all_rounds(address, pair.hello, jobs))
    assert [[t for round_ in answer for t in round_.tokens] for answer in rounds] == expected
    assert sum(map(len, rounds)) < 0.8 * sum(map(len, expected)), "the draft is of no use"
