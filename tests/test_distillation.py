"""How the embedded draft is made: prompts, the target's answers to them, what is trained on."""

import gzip
import json
import random
from pathlib import Path

import pytest
import torch

from runtime.embedded import target_path
from runtime.embedded.training.answers import write_answers
from runtime.embedded.training.corpus import read_corpus
from runtime.embedded.training.export import EMBEDDING
from runtime.embedded.training.llama import Llama, Shape
from runtime.embedded.training.prompts import all_prompts, read_prompts
from runtime.embedded.training.score import Scores
from runtime.embedded.training.train import Recipe, Run, draft_shape, weights_of_draft
from runtime.model.engine import Engine, TreeRequest
from runtime.model.open import open_engine
from runtime.model.tokenizer import Tokenizer

QUESTIONS = ("What is the capital of France?", "Name three colours.", "Say yes.", "Who are you?")
PASSAGE = 30 * "The tide comes in twice a day. "


def plain_greedy(engine: Engine, prompt: list[int], count: int, stop_ids: set[int]) -> list[int]:
    """Decoding of one text alone, the whole of it in every pass."""
    pages = engine.kv.allocate(engine.kv.pages_for(len(prompt) + count))
    text, answer = list(prompt), list[int]()
    while len(answer) < count and not stop_ids & set(answer):
        rows = TreeRequest(text, range(-1, len(text) - 1), 0, pages, (len(text) - 1,))
        answer.append(int(engine.forward([rows]).argmax()))
        text = [*prompt, *answer]
    engine.kv.free(pages)
    return answer


def test_answers_are_plain_and_none_is_given_twice(tmp_path: Path) -> None:
    try:
        target_path()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    out = tmp_path / "text.jsonl.gz"
    write_answers(QUESTIONS[:2], out, most_tokens=8)
    write_answers((*QUESTIONS, "word " * 5000), out, most_tokens=8)
    conversations = read_corpus(out).conversations
    assert len(conversations) == len(QUESTIONS)
    assert all(conversation.outside for conversation in conversations)
    engine, tokenizer = (
        open_engine("smollm2", "stored", "cpu", lambda _: 512, 16),
        Tokenizer.load("smollm2"),
    )
    prompts = [tokenizer.chat_prompt([{"role": "user", "content": text}]) for text in QUESTIONS]
    assert {c.prompt for c in conversations} == {tuple(prompt) for prompt in prompts}
    greedy = [c for c in conversations if c.temperature == 0]
    assert len(greedy) == len(QUESTIONS) / 2
    for one in greedy:
        expected = plain_greedy(engine, list(one.prompt), 8, set(tokenizer.stop_ids))
        assert list(one.answer) == expected


def test_kinds_take_turns_and_a_seed_gives_the_same_prompts(tmp_path: Path) -> None:
    lines = [
        {"source": kind, "prompt": f"{kind} {i}\n\n{PASSAGE}"} for kind in "ab" for i in range(3)
    ]
    path = tmp_path / "own.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    assert read_prompts(path) == lines
    own = {kind: [line["prompt"] for line in lines if line["source"] == kind] for kind in "ab"}
    prompts = list(all_prompts(own, seed=3))
    assert prompts == list(all_prompts(own, seed=3))
    assert [kind for kind, _ in prompts[:5]] == ["a", "b", "summary", "sums", "translation"]
    assert {text for kind, text in prompts if kind in own} == {line["prompt"] for line in lines}
    assert all("{" not in text for _, text in prompts)
    assert all(PASSAGE.strip() in text for kind, text in prompts if kind == "summary")


def test_of_a_prompt_from_outside_only_the_answer_counts(tmp_path: Path) -> None:
    rng, path = random.Random(1), tmp_path / "text.jsonl.gz"
    with gzip.open(path, "wt") as lines:
        for outside in (True, False):
            prompt, answer = ([7, *rng.choices(range(9), k=n)] for n in (5, 4))
            fields = {"prompt": prompt, "answer": answer, "temperature": 0.0, "outside": outside}
            lines.write(json.dumps(fields) + "\n")
    corpus = read_corpus(path)
    run = Run(
        Llama(Shape(1), {}),
        torch.arange(3),
        corpus,
        Scores(*3 * [torch.zeros(0).numpy()]),
        Recipe(),
    )
    for index, of_prompt in enumerate((0.0, 0.5)):
        before = corpus.answer_offset(index)
        weights = run._position_weights([index]).tolist()
        assert weights == before * [of_prompt] + 5 * [1.0]


def test_a_wider_head_keeps_the_rows_that_it_had() -> None:
    embedding = torch.randn(10, 4).to(torch.bfloat16)
    draft = {
        "model.layers.0.x.weight": torch.zeros(2, 2),
        "model.layers.1.x.weight": torch.zeros(2, 2),
    }
    old = torch.tensor([1, 4, 8])
    draft["lm_head.weight"] = torch.randn(3, 4)
    wide = weights_of_draft(draft, old, embedding, torch.tensor([1, 2, 8, 9]))
    assert torch.equal(wide["lm_head.weight"][[0, 2]], draft["lm_head.weight"][[0, 2]])
    assert torch.equal(wide["lm_head.weight"][[1, 3]], embedding[[2, 9]].float())
    assert wide[EMBEDDING] is embedding
    assert draft_shape(Shape(30), wide).layers == 2
