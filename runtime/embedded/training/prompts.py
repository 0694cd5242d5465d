"""Prompts of many kinds for the target to answer: a file's own, and summaries, sums, translations.

    python -m runtime.embedded.training.prompts --prompts FILE.jsonl.gz --out prompts.jsonl

The file's lines have `source` (a kind) and `prompt`. Summaries are asked of its passages; word
problems and German sentences are put together here, so no text of others is needed for them. The
kinds take turns, so that any first part of the result is a fair sample. Knows no model.
"""

import argparse
import gzip
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

MOST_CHARACTERS = 1700
PASSAGE_CHARACTERS = range(350, 1400)
OF_EACH = 300
LISTS_OF_FACTS = {"wiki_bio", "wiqa"}  # kinds without passages

SUMMARIES = (
    "Summarize: {}",
    "Summarize the following text: {}",
    "Give a short summary of this: {}",
    "{}\n\nSummarize the text above in a few sentences.",
)
NAMES = (
    "Anna",
    "Ben",
    "Carla",
    "David",
    "Emma",
    "Frank",
    "Grace",
    "Henry",
    "Irene",
    "Jack",
    "Kate",
)
THINGS = (
    "apples",
    "books",
    "pencils",
    "marbles",
    "stickers",
    "cookies",
    "eggs",
    "oranges",
    "cards",
)
SUMS = (
    "{a} has {m} {t}. {b} gives {a} {n} more, and {a} then loses {k} of them. "
    "How many {t} does {a} have now?",
    "{a} buys {k} boxes of {t}. Each box holds {n} {t} and costs ${m}. "
    "How many {t} does {a} have, and how much does {a} pay?",
    "A shop sells {t} for ${k} each and {u} for ${j} each. {a} buys {n} {t} and {k} {u} and pays "
    "with a $500 bill. How much change does {a} get?",
    "{a} reads {n} pages a day for {k} days. The book has {m}00 pages. How many pages are left?",
    "{a} works {k} hours a day, {j} days a week, and earns ${n} an hour. "
    "How much does {a} earn in {k} weeks?",
    "{a} is {k} years older than {b}. In {j} years, their ages will add up to {m}. "
    "How old is {b} now?",
    "A train travels at {m} miles per hour for {k} hours and then at {n} miles per hour for {j} "
    "hours. How far does it travel in total?",
    "{a} bakes {m} {t}. {a} gives {n}% of them to {b} and eats {k}. How many {t} are left?",
    "There are {m} students in a class. One third of them play football, and {k} of the others "
    "play chess. How many students play neither?",
    "{a} has twice as many {t} as {b}. Together they have {m} {t}. How many has each of them?",
    "A garden is {n} meters long and {k} meters wide. A fence costs ${j} per meter. "
    "How much does it cost to fence the garden?",
)
TRANSLATIONS = (
    *3 * ("Translate German to English: {}",),
    "Translate this into English: {}",
    "What does this mean in English? {}",
)
WHO = (
    "Der Präsident",
    "Der Bürgermeister von Hamburg",
    "Die Regierung in Wien",
    "Ein Sprecher der Polizei",
    "Die Direktorin des Museums",
    "Der Trainer der Mannschaft",
    "Das Unternehmen aus München",
    "Eine Lehrerin aus Leipzig",
    "Die Europäische Kommission",
    "Ein Forscher der Universität Zürich",
)
WHEN = (
    *("am Montag", "gestern Abend", "in der vergangenen Woche", "am frühen Morgen"),
    *("im Sommer 2015", "vor drei Jahren", "nach der Sitzung", "am Ende des Monats"),
)
SAID = (
    "hat {when} angekündigt, {what}",
    "sagte {when}, {what}",
    "hat {when} im Parlament erklärt, {what}",
    "hofft {when} nicht mehr darauf, {what}",
)
WHAT = (
    "dass die Preise für Strom weiter steigen werden",
    "dass im nächsten Jahr eine neue Brücke gebaut wird",
    "dass niemand verletzt worden ist",
    "dass mehr als zweitausend Menschen ihre Arbeit verlieren",
    "dass das Spiel wegen des Regens verschoben werden muss",
    "dass die Zahl der Touristen deutlich gesunken ist",
    "dass eine Lösung bis zum Herbst gefunden werden soll",
    "dass die alte Kirche wieder geöffnet ist",
)
BESIDES = (
    "Viele Bürger sind darüber verärgert.",
    "Die Kosten betragen etwa {m} Millionen Euro.",
    "In der Stadt leben rund {m}.000 Einwohner.",
    "Die Opposition kritisierte den Plan scharf.",
    "Damit liegt die Mannschaft auf Platz {k} der Tabelle.",
    "Unsere Ferienwohnung liegt nur {n} Minuten vom Strand entfernt.",
    "Die Wohnung hat drei Zimmer, eine kleine Küche und einen Balkon mit Blick auf den Fluss.",
    "Der Arzt riet ihm, weniger zu arbeiten und mehr zu schlafen.",
    "Bitte lesen Sie die Anleitung, bevor Sie das Gerät benutzen.",
)


def all_prompts(own: dict[str, list[str]], seed: int = 0) -> Iterator[tuple[str, str]]:
    """Kind and text of each prompt, the kinds in turn; `own` has the texts of some kinds."""
    rng = random.Random(seed)
    kinds = {
        kind: [text for text in texts if len(text) <= MOST_CHARACTERS]
        for kind, texts in own.items()
    }
    found = sorted(
        {p for kind, texts in own.items() if kind not in LISTS_OF_FACTS for p in passages(texts)}
    )
    chosen = rng.sample(found, min(OF_EACH, len(found)))
    kinds["summary"] = [rng.choice(SUMMARIES).format(passage) for passage in chosen]
    kinds["sums"] = [_sum(rng) for _ in range(OF_EACH)]
    kinds["translation"] = [rng.choice(TRANSLATIONS).format(_german(rng)) for _ in range(OF_EACH)]
    for texts in kinds.values():
        rng.shuffle(texts)
    for together in zip_longest(*kinds.values()):
        for kind, text in zip(kinds, together, strict=True):
            if text is not None:
                yield kind, text


def passages(texts: list[str]) -> Iterator[str]:
    """Paragraphs of some sentences."""
    for text in texts:
        for paragraph in re.split(r"\n\s*\n", text):
            if len(paragraph.strip()) in PASSAGE_CHARACTERS and paragraph.count(".") >= 4:
                yield paragraph.strip()


def _numbers(rng: random.Random) -> dict[str, int]:
    return {
        "j": rng.randint(2, 6),
        "k": rng.randint(2, 9),
        "n": rng.randint(10, 40),
        "m": 3 * rng.randint(15, 60),
    }


def _sum(rng: random.Random) -> str:
    a, b = rng.sample(NAMES, 2)
    t, u = rng.sample(THINGS, 2)
    return rng.choice(SUMS).format(a=a, b=b, t=t, u=u, **_numbers(rng))


def _german(rng: random.Random) -> str:
    said = rng.choice(SAID).format(when=rng.choice(WHEN), what=rng.choice(WHAT))
    besides = rng.choice(BESIDES).format(**_numbers(rng))
    return rng.choice(
        (f"{rng.choice(WHO)} {said}.", besides, f"{rng.choice(WHO)} {said}. {besides}")
    )


def read_prompts(path: Path) -> list[dict[str, str]]:
    """The lines of a JSON Lines file, gzipped or not, each with `source` and `prompt`."""
    raw = path.read_bytes()
    text = gzip.decompress(raw) if path.suffix == ".gz" else raw
    return [json.loads(line) for line in text.decode().split("\n") if line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=Path, required=True, help="JSON lines: source, prompt")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    own: dict[str, list[str]] = defaultdict(list)
    for line in read_prompts(options.prompts):
        own[line["source"]].append(line["prompt"])
    with options.out.open("w", encoding="utf-8") as out:
        for kind, text in all_prompts(own, options.seed):
            out.write(json.dumps({"source": kind, "prompt": text}) + "\n")


if __name__ == "__main__":
    main()
