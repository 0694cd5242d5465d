"""Word problems and German sentences put together from parts, so that no text of others is needed.

Knows neither files nor models.
"""

import random

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


def _numbers(rng: random.Random) -> dict[str, int]:
    return {
        "j": rng.randint(2, 6),
        "k": rng.randint(2, 9),
        "n": rng.randint(10, 40),
        "m": 3 * rng.randint(15, 60),
    }


def word_problem(rng: random.Random) -> str:
    """A question of primary school, its numbers drawn."""
    a, b = rng.sample(NAMES, 2)
    t, u = rng.sample(THINGS, 2)
    return rng.choice(SUMS).format(a=a, b=b, t=t, u=u, **_numbers(rng))


def german(rng: random.Random) -> str:
    """One or two sentences as a newspaper might print them."""
    said = rng.choice(SAID).format(when=rng.choice(WHEN), what=rng.choice(WHAT))
    besides = rng.choice(BESIDES).format(**_numbers(rng))
    return rng.choice(
        (f"{rng.choice(WHO)} {said}.", besides, f"{rng.choice(WHO)} {said}. {besides}")
    )
