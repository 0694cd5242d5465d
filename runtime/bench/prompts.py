"""What is asked: a few built-in prompts, or a file of Spec-Bench's form.

Such a file has one JSON object a line with `category` and `turns`; the first turn is used.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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


BUILT_IN = tuple(
    Question("built-in", text)
    for text in (
        "Explain in a few sentences why the sky is blue.",
        "What is the capital of France? Tell me three facts about it.",
        "Translate into French: The train to Lyon leaves at nine in the morning.",
        "A farmer has 17 sheep and buys 5 more. Each needs 3 kg of hay. How much hay is that?",
        "Write a short letter to a friend who has just moved to a new city.",
        "Summarise in one sentence: Bees visit flowers for nectar. On the way pollen sticks to "
        "them, and so they carry it from one flower to the next, which lets the plants bear fruit.",
        "List five things to pack for a weekend in the mountains.",
        "What is the difference between weather and climate?",
    )
)


def read_turns(path: Path) -> list[tuple[str, list[str]]]:
    """Category and turns of each line of a file; there is a first turn.

    Raises ValueError if a line cannot be read, OSError if the file cannot.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            category, turns = entry["category"], entry["turns"]
            texts = (category, turns[0], *turns)
            is_right = isinstance(turns, list) and all(isinstance(text, str) for text in texts)
        except (ValueError, LookupError, TypeError):
            is_right = False
        if not is_right:
            raise ValueError(f"{path}, line {number}: expected category and turns")
        found.append((category, turns))
    return found


def read_questions(path: Path, per_task: int, only: Sequence[str] = ()) -> list[Question]:
    """`per_task` questions of each task, or of some tasks, spread evenly over the file.

    Raises ValueError if a line cannot be read or no question is left, OSError for the file.
    """
    tasks: dict[str, list[Question]] = {}
    for category, turns in read_turns(path):
        task = "multi-turn" if category in MULTI_TURN else category
        tasks.setdefault(task, []).append(Question(task, turns[0]))
    chosen = [
        question
        for task, questions in tasks.items()
        if not only or task in only
        for question in questions[:: max(1, len(questions) // per_task)][:per_task]
    ]
    if not chosen:
        raise ValueError(f"{path} has no such questions; its tasks are {', '.join(tasks)}")
    return chosen
