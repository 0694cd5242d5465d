"""How often the embedded draft's first choice is the target's, by task.

The target answers the first turn of each question greedily; counted is every token of its answers.
Prompt lookup takes no part: this is what the draft alone has learned.

    python -m bench.agreement --prompts specbench.jsonl --per-task 6

`--draft` is a file that runtime.embedded.training made. The distance is
the total variation between the two distributions at temperature 1.
"""

import argparse
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch

from bench.harness import option_parser, report, whole_number
from runtime.bench.attempt import attempt
from runtime.bench.prompts import Question, read_questions
from runtime.embedded import DRAFT_WEIGHTS, target_path
from runtime.embedded.training.answers import write_answers
from runtime.embedded.training.corpus import Corpus, read_corpus
from runtime.embedded.training.evaluate import Agreement, agreement
from runtime.embedded.training.export import EMBEDDING, load_draft
from runtime.embedded.training.llama import Llama, read_gguf
from runtime.embedded.training.score import score_corpus
from runtime.embedded.training.train import draft_shape
from runtime.model.tokenizer import Tokenizer

CONTEXT_TOKENS = 2048
COLUMNS = ("task", "answers", "positions", "top-1", "top-4", "distance")


def main() -> None:
    options = parse_options()
    questions = read_questions(options.prompts, options.per_task)
    with TemporaryDirectory() as folder:
        answers = Path(folder, "answers.jsonl.gz")
        texts = [question.text for question in questions]
        write_answers(
            texts,
            answers,
            most_tokens=options.max_tokens,
            temperatures=(0.0,),
            most_prompt_tokens=CONTEXT_TOKENS - options.max_tokens,
        )
        corpus = read_corpus(answers)
        tasks = by_task(questions, corpus) | {"all": list(range(len(corpus.conversations)))}
        found = measure(options.draft, corpus, tasks, Path(folder))
    report(
        f"agreement of the draft with greedy texts of the target, {options.max_tokens} tokens each",
        COLUMNS,
        [row(task, len(tasks[task]), measured) for task, measured in found.items()],
        {"top1": found["all"].top1, "top4": found["all"].top4, "distance": found["all"].distance},
        options.json,
    )


def by_task(questions: list[Question], corpus: Corpus) -> dict[str, list[int]]:
    """The conversations of each task; answers end in an order of their own."""
    tokenizer = Tokenizer.load("smollm2")
    place = {c.prompt: index for index, c in enumerate(corpus.conversations)}
    tasks: dict[str, list[int]] = {}
    for question in questions:
        prompt = tokenizer.chat_prompt([{"role": "user", "content": question.text}])
        if (index := place.get(tuple(prompt))) is not None:  # it was not too long
            tasks.setdefault(question.task, []).append(index)
    return tasks


def measure(
    file: Path, corpus: Corpus, tasks: dict[str, list[int]], scratch: Path
) -> dict[str, Agreement]:
    """The agreement of a draft on disk with the corpus, by task."""
    shape, target = read_gguf(target_path())
    embedding = target[EMBEDDING]
    scores = score_corpus(Llama(shape, target), corpus, scratch)
    weights, head_ids = load_draft(file)
    weights[EMBEDDING] = embedding
    draft = Llama(draft_shape(shape, weights), weights, torch.float32)
    return {
        task: agreement(draft, head_ids, corpus, scores, indices, embedding.float())
        for task, indices in tasks.items()
    }


def row(task: str, answers: int, measured: Agreement) -> tuple[object, ...]:
    shares = (f"{100 * share:.1f} %" for share in (measured.top1, measured.top4))
    return (task, answers, measured.positions, *shares, f"{measured.distance:.3f}")


def parse_options() -> argparse.Namespace:
    parser = option_parser("bench.agreement", __doc__)
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE")
    parser.add_argument("--per-task", type=whole_number, default=6, help="prompts of each task")
    parser.add_argument("--max-tokens", type=whole_number, default=96)
    parser.add_argument("--draft", type=Path, default=DRAFT_WEIGHTS, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(attempt("bench.agreement", main))
