"""How the embedded draft is made: prompts, the target's answers to them, what is trained on."""

import gzip
import json
import random
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime.embedded import target_path
from runtime.embedded.training.answers import write_answers
from runtime.embedded.training.corpus import Corpus, read_corpus
from runtime.embedded.training.export import EMBEDDING
from runtime.embedded.training.llama import Llama, Shape, Weights
from runtime.embedded.training.prompts import all_prompts, main, read_prompts
from runtime.embedded.training.score import K, Scores, score_corpus
from runtime.embedded.training.train import Recipe, Run, draft_shape, train, weights_of_draft
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


def test_files_of_several_forms_become_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = "Der Bauer fährt am Montag mit dem Zug in die Stadt zurück."
    files = {
        "sums.jsonl": json.dumps({"question": "What is two and two?", "answer": "4"}),
        "tasks.json": json.dumps(
            [{"instruction": "Shout.", "input": "hello"}, {"instruction": "Sing.", "input": ""}]
        ),
        "german.conllu": f"# sent_id = 1\n# text = {sentence}\n1\tDer\tder\n\n# text = Ja.\n",
        "seen.jsonl": json.dumps({"turns": ["Who wrote the old book on the kitchen table here?"]}),
        "asked.jsonl": "\n".join(
            json.dumps({"prompt": text})
            for text in (
                "Tell me: who wrote the OLD book, on the kitchen table?",
                "Who wrote the old book on the table in the kitchen?",
            )
        ),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    out, *given = [tmp_path / n for n in ("out.jsonl", *(files.keys() - {"seen.jsonl"}))]
    arguments = ["prompts", "--avoid", str(tmp_path / "seen.jsonl"), "--out", str(out)]
    monkeypatch.setattr("sys.argv", [*arguments, "--prompts", *map(str, given)])
    main()
    found = {(line["source"], line["prompt"]) for line in read_prompts(out)}
    mine = {(source, prompt) for source, prompt in found if source in files}
    (translation,) = (prompt for source, prompt in mine if source == "german.conllu")
    assert sentence in translation
    assert mine - {("german.conllu", translation)} == {
        ("sums.jsonl", "What is two and two?"),
        ("tasks.json", "Shout.\n\nhello"),
        ("tasks.json", "Sing."),
        ("asked.jsonl", "Who wrote the old book on the table in the kitchen?"),
    }


def test_an_object_without_a_prompt_is_named(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text('{"prompt": "Say yes."}\n{"answer": "yes"}\n')
    with pytest.raises(ValueError, match=r"odd\.jsonl, object 2: no prompt"):
        read_prompts(path)


def corpus_of(path: Path, kinds: list[bool], sizes: range = range(2, 10)) -> Corpus:
    """Conversations over nine tokens, from outside or not, prompt and answer of random sizes."""
    rng = random.Random(1)
    with gzip.open(path, "wt") as lines:
        for outside in kinds:
            prompt = [7, *rng.choices(range(9), k=rng.choice(sizes))]
            answer = rng.choices(range(9), k=rng.choice(sizes))
            fields = {"prompt": prompt, "answer": answer, "temperature": 0.0, "outside": outside}
            lines.write(json.dumps(fields) + "\n")
    return read_corpus(path)


def random_weights(shape: Shape, tokens: int, head: int) -> Weights:
    C, mlp = shape.hidden, shape.mlp
    at = "model.layers.0."
    sizes = {
        EMBEDDING: (tokens, C),
        "model.norm.weight": (C,),
        "lm_head.weight": (head, C),
        at + "input_layernorm.weight": (C,),
        at + "post_attention_layernorm.weight": (C,),
        **{at + f"self_attn.{name}_proj.weight": (C, C) for name in "qkvo"},
        **{at + f"mlp.{name}_proj.weight": (mlp, C) for name in ("gate", "up")},
        at + "mlp.down_proj.weight": (C, mlp),
    }
    return {name: torch.randn(size) / C**0.25 for name, size in sizes.items()}


def random_run(corpus: Corpus, recipe: Recipe) -> Run:
    shape = Shape(layers=1, hidden=16, mlp=24, heads=2, kv_heads=2, head_dim=8)
    weights = random_weights(shape, tokens=9, head=5)
    rng = np.random.default_rng(3)
    ids = np.argsort(rng.random((corpus.positions, 9)))[:, :4].astype(np.uint16)
    probs = -np.sort(-rng.dirichlet(np.ones(4) / 4, corpus.positions)).astype(np.float16)
    scores = Scores(ids, probs, np.zeros((corpus.positions, 16), np.float16))
    draft = Llama(shape, weights, torch.float32)
    return Run(draft, torch.tensor([0, 2, 3, 5, 8]), corpus, scores, recipe)


def test_the_loss_is_that_of_each_position_by_its_weight(tmp_path: Path) -> None:
    """One softmax a position in float64; of a prompt from outside only the answer counts."""
    torch.manual_seed(2)
    corpus = corpus_of(tmp_path / "text.jsonl.gz", [True, False, True])
    run = random_run(corpus, Recipe(argmax_share=0.2, prompt_weight=0.5))
    slots = run.slot_of().tolist()
    total = weights = 0.0
    for index, conversation in enumerate(corpus.conversations):
        hidden = run.draft.hidden(torch.tensor(corpus.prefix), torch.tensor([corpus.inputs(index)]))
        logs = (hidden[0].double() @ run.draft.weights["lm_head.weight"].double().T).log_softmax(-1)
        for place, log in enumerate(logs.tolist()):
            weight = 1.0
            if place < corpus.answer_offset(index):
                weight = 0.0 if conversation.outside else 0.5
            row = corpus.starts[index] + place
            label = 0.8 * run.scores.probs[row].astype(float)
            label[0] += 0.2
            for token, mass in zip(run.scores.ids[row], label, strict=True):
                total -= weight * mass * log[slots[token]] if slots[token] >= 0 else 0.0
            weights += weight
    loss, positions = run.batch_loss([0, 1, 2], run.slot_of())
    assert positions == corpus.positions
    assert float(loss) == pytest.approx(total / weights, rel=5e-3)  # the head is bf16


def test_scores_are_the_targets_likeliest_tokens_where_something_is_learned(tmp_path: Path) -> None:
    """One softmax a position in float64; prompts from outside stay empty."""
    torch.manual_seed(6)
    corpus = corpus_of(tmp_path / "text.jsonl.gz", [True, False, True])
    shape = Shape(layers=1, hidden=16, mlp=24, heads=2, kv_heads=2, head_dim=8)
    target = Llama(shape, random_weights(shape, tokens=128 * K, head=1), torch.float32)
    embedding = 4 * target.weights[EMBEDDING].bfloat16()
    target.weights[EMBEDDING] = embedding
    scores = score_corpus(target, corpus, tmp_path / "scores")
    for index, conversation in enumerate(corpus.conversations):
        ids = torch.tensor([corpus.inputs(index)])
        hidden = target.hidden(torch.tensor(corpus.prefix), ids)[0].double()
        wanted = (hidden @ embedding.double().T).softmax(-1).topk(K)
        for place in range(len(hidden)):
            row = corpus.starts[index] + place
            if conversation.outside and place < corpus.answer_offset(index):
                assert not scores.probs[row].any()
            else:
                assert scores.ids[row, 0] == wanted.indices[place, 0]
                assert scores.probs[row] == pytest.approx(wanted.values[place].numpy(), rel=0.1)


def test_an_epoch_has_all_answers_from_outside_and_the_wanted_share_of_own(tmp_path: Path) -> None:
    outside, own = list(range(8)), list(range(8, 28))
    corpus = corpus_of(tmp_path / "text.jsonl.gz", 8 * [True] + 20 * [False])
    for share, count in ((None, 20), (0.5, 4), (9.0, 20), (0.0, 0)):
        run = random_run(corpus, Recipe(own_share=share, batch_tokens=40))
        epoch = sorted(chain.from_iterable(run.epoch(outside + own, random.Random(4))))
        assert epoch[:8] == outside
        assert len(epoch) == len(set(epoch)) == 8 + count
    assert sorted(chain.from_iterable(run.epoch(own, random.Random(4)))) == own


def test_the_batches_of_a_step_do_what_one_batch_of_all_does(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "text.jsonl.gz", [True, True], sizes=range(5, 6))
    steps = []
    for tokens, count in ((1000, 1), (1, 2)):
        torch.manual_seed(5)
        recipe = Recipe(
            epochs=1.0, batch_tokens=tokens, batches_per_step=count, learning_rate=5.0, warmup=0.5
        )
        run = random_run(corpus, recipe)
        before = {name: weight.clone() for name, weight in run.draft.weights.items()}
        train(run, [0, 1], lambda: None)
        steps.append({n: (w - before[n]).flatten() for n, w in run.draft.weights.items()})
    for name, step in steps[0].items():
        same = torch.cosine_similarity(step, steps[1][name], dim=0)
        assert float(step.norm()) == 0 if name == EMBEDDING else same > 0.99, (name, same)


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
