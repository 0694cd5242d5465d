"""What is asked: a file of Spec-Bench's form; a small one of our own is here.

Such a file has one JSON object a line with `category` and `turns`; the first turn is used.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SHIPPED = Path(__file__).with_name("prompts.jsonl")  # two prompts of each task
TASKS = ("multi-turn", "translation", "summarization", "qa", "math_reasoning", "rag")
# Spec-Bench names the eight kinds of its first task one by one.
MULTI_TURN = {
    "writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities",
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A prompt and the task it belongs to."""

    task: str
    text: str


def read_turns(path: Path) -> list[tuple[str, list[str]]]:
    """Category and turns of each line of a file; there is a first turn.

    Raises ValueError if a line cannot be read, OSError if the file cannot.
    """
    found = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # a text may hold other line ends
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            category, turns = entry["category"], entry["turns"]
            texts = (category, turns[0], *turns)
            is_right = isinstance(turns, list) and all(isinstance(t, str) and t for t in texts)
        except (ValueError, LookupError, TypeError, RecursionError):
            is_right = False
        if not is_right:
            example = '{"category": "qa", "turns": ["a question"]}'
            raise ValueError(f"{path}, line {number}: expected category and turns, as in {example}")
        found.append((category, turns))
    return found


def task_of(category: str) -> str:
    """Which of Spec-Bench's tasks a category belongs to; others are tasks of their own."""
    return "multi-turn" if category in MULTI_TURN else category


def read_questions(path: Path, per_task: int, only: Sequence[str] = ()) -> list[Question]:
    """`per_task` questions of each task, or of some tasks, spread evenly over the file.

    Raises ValueError if a line cannot be read or no question is left, OSError for the file.
    """
    tasks: dict[str, list[Question]] = {}
    for category, turns in read_turns(path):
        task = task_of(category)
        tasks.setdefault(task, []).append(Question(task, turns[0]))
    chosen = [
        question
        for task, questions in tasks.items()
        if not only or task in only
        for question in questions[:: max(1, len(questions) // per_task)][:per_task]
    ]
    if not tasks:
        raise ValueError(f"{path} holds no question")
    if not chosen:
        raise ValueError(f"{path} has no such questions; its tasks are {', '.join(tasks)}")
    return chosen


FORM = f"""\
A file of prompts has one JSON object a line: its category, and what is said in turn, of which the
first text is asked. This is a line: {{"category": "qa", "turns": ["What is a comet?"]}}
The tasks are {", ".join(TASKS)}; of the first one, the
categories are {", ".join(sorted(MULTI_TURN))}.

The paper's prompts are Spec-Bench's, 80 of each task: data/spec_bench/question.jsonl of
https://github.com/hemingkx/Spec-Bench (Apache-2.0). A small file comes with the bench:
{SHIPPED}
"""


def described(path: Path) -> str:
    """What a file holds, if every line is right. Raises ValueError for one that is not, OSError."""
    counts = Counter(task_of(category) for category, _ in read_turns(path))
    held = ", ".join(f"{count} {task}" for task, count in counts.items())
    return f"{path}: every line is right: {counts.total()} prompts: {held}"
