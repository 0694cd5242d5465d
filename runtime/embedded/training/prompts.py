"""Prompts of many kinds for the target to answer, out of public files of several forms.

    python -m runtime.embedded.training.prompts --prompts FILE... --avoid FILE --out prompts.jsonl

A file is JSON lines or one JSON list, gzipped or not, of objects with `prompt`, `question`, or
`instruction` and perhaps `input`; their `source`, or else the file's name, is their kind. Sentences
of a German treebank (.conllu) become translations. Summaries are asked of the passages that are
found; word problems and more German are put together here. The kinds take turns, so that any first
part of the result is a fair sample. Knows no model.
"""

import gzip
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path

from runtime.arguments import Parser
from runtime.embedded.training.composed import german, word_problem

MOST_CHARACTERS = 1700
PASSAGE_CHARACTERS = range(350, 1400)
SENTENCE_CHARACTERS = range(40, 320)  # of a German sentence
OF_EACH = 300  # prompts of each kind that is made here
SHARED_WORDS = 8  # in a row, with a text to avoid
LISTS_OF_FACTS = {"wiki_bio", "wiqa"}  # kinds without passages

SUMMARIES = (
    *3 * ("Summarize: {}",),
    "Summarize the following text: {}",
    "Give a short summary of this: {}",
    "{}\n\nSummarize the text above in a few sentences.",
)
TRANSLATIONS = (
    *3 * ("Translate German to English: {}",),
    "Translate this into English: {}",
    "What does this mean in English? {}",
)


def all_prompts(own: dict[str, list[str]], seed: int = 0) -> Iterator[tuple[str, str]]:
    """Kind and text of each prompt, the kinds in turn; `own` has the texts of some kinds."""
    rng = random.Random(seed)
    kinds = {
        kind: [text for text in dict.fromkeys(texts) if len(text) <= MOST_CHARACTERS]
        for kind, texts in own.items()
    }
    found = sorted(
        {p for kind, texts in own.items() if kind not in LISTS_OF_FACTS for p in passages(texts)}
    )
    chosen = rng.sample(found, min(OF_EACH, len(found)))
    made = {
        "summary": [rng.choice(SUMMARIES).format(passage) for passage in chosen],
        "sums": [word_problem(rng) for _ in range(OF_EACH)],
        "translation": [rng.choice(TRANSLATIONS).format(german(rng)) for _ in range(OF_EACH)],
    }
    for kind, texts in made.items():
        kinds[kind] = kinds.get(kind, []) + texts
    for texts in kinds.values():
        rng.shuffle(texts)
    for together in zip_longest(*kinds.values()):
        for kind, text in zip(kinds, together, strict=True):
            if text is not None:
                yield kind, text


def passages(texts: Iterable[str]) -> Iterator[str]:
    """Paragraphs of some sentences; of a long one the sentences that come first."""
    for text in texts:
        for paragraph in re.split(r"\n\s*\n", text):
            whole = paragraph.strip()
            if len(whole) >= PASSAGE_CHARACTERS.stop:
                whole = whole[: PASSAGE_CHARACTERS.stop - 1].rpartition(".")[0] + "."
            if len(whole) in PASSAGE_CHARACTERS and whole.count(".") >= 4:
                yield whole


def read_prompts(path: Path) -> list[dict[str, str]]:
    """`source` and `prompt` of each of a file's lines or objects.

    Raises ValueError with file and number where one has none of the fields that make a prompt.
    """
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    if path.suffix == ".conllu":
        return list(_sentences(path, text))
    whole = text.lstrip().startswith("[")
    objects = json.loads(text) if whole else map(json.loads, filter(None, text.split("\n")))
    return [
        {"source": fields.get("source", path.name), "prompt": _prompt(fields, path, number)}
        for number, fields in enumerate(objects, 1)
    ]


def _prompt(fields: dict[str, str], path: Path, number: int) -> str:
    for name in ("prompt", "question", "instruction"):
        if name in fields:
            more = fields.get("input") if name == "instruction" else None
            return f"{fields[name]}\n\n{more}" if more else fields[name]
    raise ValueError(f"{path}, object {number}: no prompt, question or instruction is in it.")


def _sentences(path: Path, text: str) -> Iterator[dict[str, str]]:
    rng = random.Random(0)
    for line in text.split("\n"):
        sentence = line.removeprefix("# text = ")
        if sentence != line and len(sentence) in SENTENCE_CHARACTERS:
            prompt = rng.choice(TRANSLATIONS).format(sentence)
            yield {"source": path.name, "prompt": prompt}


def word_runs(text: str) -> set[str]:
    """Every SHARED_WORDS words in a row, and a shorter text whole, without case and marks."""
    words = re.findall(r"\w+", text.lower())
    ends = range(min(len(words), SHARED_WORDS), len(words) + 1)
    return {" ".join(words[max(0, end - SHARED_WORDS) : end]) for end in ends}


def read_avoided(path: Path) -> set[str]:
    """The runs of words of an evaluation's questions: JSON lines with `turns`."""
    lines = filter(None, path.read_text(encoding="utf-8").split("\n"))
    return {run for line in lines for turn in json.loads(line)["turns"] for run in word_runs(turn)}


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--prompts", type=Path, nargs="+", required=True, help="files of prompts, see above")
    add("--avoid", type=Path, help="questions kept for evaluation: leave out what shares words")
    add("--out", type=Path, required=True)
    add("--seed", type=int, default=0)
    options = parser.parse_args()
    own: dict[str, list[str]] = defaultdict(list)
    try:
        avoided = read_avoided(options.avoid) if options.avoid else set()
        for path in options.prompts:
            for line in read_prompts(path):
                if not avoided & word_runs(line["prompt"]):
                    own[line["source"]].append(line["prompt"])
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from None
    with options.out.open("w", encoding="utf-8") as out:
        for kind, text in all_prompts(own, options.seed):
            out.write(json.dumps({"source": kind, "prompt": text}) + "\n")


if __name__ == "__main__":
    main()
