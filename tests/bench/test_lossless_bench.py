"""The comparison with everything on: equal texts pass, and a text that differs is found.

The oracles: transformers for the plain texts; for what a wrong server says, the plain loop of
test_lossless with the wrong model.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from bench.both_ways import PAGE_TOKENS, plain_texts, scarce_tokens
from bench.lossless import Comparison, Difference, difference, main, read_prompts
from runtime.sampling import Sampling
from tests.test_lossless import Pair, plain_decoding

TURNS = [[f"Question {i}?", f"Really {i}?"] for i in range(3)] + [["What?"], ["Why?"], ["How?"]]
MAX_TOKENS = 60


@pytest.fixture(scope="module")
def pair(tiny_pair: tuple[Path, Path]) -> Pair:
    return Pair(str(tiny_pair[0]), str(tiny_pair[1]))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "questions.jsonl"
    path.write_text(
        "\n".join(json.dumps({"category": "qa", "turns": turns}) for turns in TURNS),
        encoding="utf-8",
    )
    return path


def command(prompts: Path, tiny_pair: tuple[Path, Path], *more: str) -> list[str]:
    """The bench with a pool in which no two texts fit beside each other; `more` before its --."""
    models = ["--model", str(tiny_pair[0]), "--draft", str(tiny_pair[1]), "--device", "cpu"]
    sizes = ["--max-tokens", str(MAX_TOKENS), "--max-budget", "8", "--edges", "4"]
    # without the pipeline every edge drafts: what is tested does not depend on speed
    server = ["--", "--threads", "1", "--kv-tokens", "128", "--no-pipeline", "--credits", "open"]
    return ["--prompts", str(prompts), *models, *sizes, *more, *server]


def chat_ids(pair: Pair, texts: Sequence[str]) -> list[list[int]]:
    return [pair.tokenizer.chat_prompt([{"role": "user", "content": text}]) for text in texts]


def test_with_everything_on_the_texts_are_equal(
    prompts: Path, tiny_pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--count", "9", "--temperature", "0", "1", "--json")
    assert main(command(prompts, tiny_pair, *options)) == 0
    printed = capsys.readouterr()
    figures = json.loads(printed.out)
    for t in (0, 1):
        assert figures[f"T = {t}: prompts"] == 9
        assert figures[f"T = {t}: texts that differ"] == 0
        assert figures[f"T = {t}: tokens compared"] == figures[f"T = {t}: tokens"]
        assert figures[f"T = {t}: preemptions"] > 0
        assert figures[f"T = {t}: with a tree"] > 0.5
    assert figures["T = 0: tokens"] == 9 * MAX_TOKENS, "greedy text of this model has no end"
    assert not printed.err


def test_the_text_of_another_model_is_found_where_it_begins(
    pair: Pair,
    prompts: Path,
    tiny_pair: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = ["--model", str(tiny_pair[1])]
    assert main([*command(prompts, tiny_pair, "--count", "4"), *wrong]) == 1
    sampling = Sampling(MAX_TOKENS)
    expected = []
    for number, prompt in enumerate(chat_ids(pair, read_prompts(prompts, 4))):
        right = plain_decoding(pair.target, prompt, sampling)
        other = plain_decoding(pair.drafter().engine, prompt, sampling)
        places = (i for i in range(MAX_TOKENS) if right[i] != other[i])
        expected += [(number, i, right[i], other[i]) for i in [*places][:1]]
    printed = capsys.readouterr()
    line = r"T = 0, prompt (\d+): token (\d+) is (\d+) plainly, (\d+) with everything on"
    found = [tuple(map(int, match)) for match in re.findall(line, printed.err)]
    assert found == expected
    assert found, "the two models agree on everything: no test"
    rows = [row.split() for row in printed.out.splitlines()]
    assert rows[-1][:5] == [
        "0",
        "4",
        str(4 * MAX_TOKENS),
        str(len(found)),
        str(sum(position + 1 for _, position, *_ in found) + (4 - len(found)) * MAX_TOKENS),
    ]


@pytest.mark.parametrize("batch", [1, 4])
def test_plain_texts_are_those_of_transformers(
    pair: Pair, tiny_pair: tuple[Path, Path], batch: int
) -> None:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tiny_pair[0])
    asked = chat_ids(pair, ["One", "A longer question than that", "x" * 90, "", "Two"])
    texts = plain_texts(pair.target, [(prompt, Sampling(40)) for prompt in asked], batch)
    for prompt, text in zip(asked, texts, strict=True):
        ids = torch.tensor([prompt])
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False
        )
        assert text == whole[0, len(prompt) :].tolist()


def test_sampled_plain_texts_end_at_a_stop_token_and_free_their_pages(pair: Pair) -> None:
    """As many answers at a time as the pool has room for: pages must come back for the rest."""
    stops = tuple(range(0, 256, 9))
    questions = [
        (prompt, Sampling(40, temperature=1.2, seed=seed, stop_ids=stops))
        for seed, prompt in enumerate(chat_ids(pair, ["Tell me."] * 30))
    ]
    n_free = pair.target.kv.n_free
    texts = plain_texts(pair.target, questions, 8)
    assert pair.target.kv.n_free == n_free
    assert texts == [plain_decoding(pair.target, *question) for question in questions]
    assert len({len(text) for text in texts}) > 5
    assert all(text[-1] in stops or len(text) == 40 for text in texts)


@pytest.mark.parametrize(
    ("plain", "other", "found"),
    [
        ([1, 2, 3], [1, 2, 3], None),
        ([], [], None),
        ([1, 2, 3], [1, 9, 3], Difference(7, 1, 2, 9)),
        ([1, 2, 3], [9, 9, 9], Difference(7, 0, 1, 9)),
        ([1, 2, 3], [1, 2], Difference(7, 2, 3, None)),
        ([1, 2], [1, 2, 0], Difference(7, 2, None, 0)),
        ([], [5], Difference(7, 0, None, 5)),
    ],
)
def test_where_texts_part(plain: list[int], other: list[int], found: Difference | None) -> None:
    assert difference(7, plain, other) == found


def test_tokens_are_compared_up_to_the_first_that_differs() -> None:
    plain = [[1, 2, 3, 4], [5, 6, 7], [8]]
    made = Comparison(0.5, plain, [[1, 2, 3, 4], [5, 0, 7], [8, 9]], {})
    assert made.differences == [Difference(1, 1, 6, 0), Difference(2, 1, None, 9)]
    assert made.numbers() == {
        "prompts": 3,
        "tokens": 8,
        "texts that differ": 2,
        "tokens compared": 4 + 2 + 1,
    }
    assert [*made.complaints()][-1] == "T = 0.5: one token in 4 differs"
    assert [*Comparison(0.5, plain, plain, {}).complaints()] == []


def test_prompts_are_spread_over_the_file_and_then_over_the_later_turns(prompts: Path) -> None:
    first, later = [turns[0] for turns in TURNS], [turns[1] for turns in TURNS[:3]]
    assert read_prompts(prompts, 3) == first[::2]
    assert read_prompts(prompts, 6) == first
    assert read_prompts(prompts, 7) == [*first, later[0]]
    assert read_prompts(prompts, 100) == first + later
    assert read_prompts(prompts, 0) == []


@pytest.mark.parametrize(
    "text",
    [
        *("no JSON", "[1]", '{"turns": ["Why?"]}', '{"category": "qa"}'),
        *(f'{{"category": "qa", "turns": {turns}}}' for turns in ("[]", '"Why?"', "[1]", "7")),
    ],
)
def test_another_file_is_refused_in_a_sentence(
    text: str, tiny_pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(text, encoding="utf-8")
    assert main(command(path, tiny_pair)) == 2
    assert "line 1: expected category and turns" in capsys.readouterr().err
    path.unlink()
    assert main(command(path, tiny_pair)) == 2
    assert "No such file" in capsys.readouterr().err


def test_the_pool_is_short_but_holds_the_longest_text() -> None:
    short = [([0] * 20, Sampling(80))] * 9
    assert scarce_tokens(short, edges=8, max_nodes=8) == 8 * 100 // 2
    long = [*short, ([0] * 920, Sampling(80))]
    assert scarce_tokens(long, edges=8, max_nodes=8) == 1000 + 8 + PAGE_TOKENS
