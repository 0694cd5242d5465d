"""The stand-in models' process fitted to the embedded pair, and how well it foretells real trees.

The pair answers prompts of Spec-Bench's form. On one half of them it is noted what the draft thinks
of each token of the answer, and that gives the parameters. On the other half trees of five shapes
are drafted over the answers, and what they gain is compared with what the process gains.

    python -m bench.standin_fit --prompts specbench.jsonl [--per-task 8] [--json]
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist

import numpy as np

from bench.acceptance import answer, open_model
from bench.harness import option_parser, report
from runtime.bench.attempt import attempt
from runtime.bench.prompts import read_questions
from runtime.bench.standin.agreement import CANDIDATES, Agreement, Process, rank_weights
from runtime.bench.standin.drafter import StandInDrafter
from runtime.bench.standin.gain import gains, gains_over
from runtime.edge.draft.drafter import Drafter
from runtime.edge.draft.speculation import Noise, Pass, Proactive, Speculation, TreeShape
from runtime.model.tokenizer import Tokenizer
from runtime.tree import ROOT, DraftTree
from runtime.wire.messages import Open

SHAPES = (
    TreeShape(8, 4, 3, 4),
    TreeShape(16, 4, 4, 6),
    TreeShape(32, 6, 4, 6),
    TreeShape(32, 6, 6, 6),
    TreeShape(64, 12, 8, 8),
)
WIDTH = 6  # first candidates whose own candidates are looked at
SEEDS = range(8)


@dataclass
class Observed:
    """What the draft thought along texts that are known: one row a token, texts in order.

    scores [N, CANDIDATES] log-probabilities, best first; ranks [N] the target's token among them;
    wrong: pairs of confidences, after the right candidate and after a wrong one beside it.
    """

    scores: np.ndarray
    ranks: np.ndarray
    wrong: np.ndarray
    ends: Sequence[int]  # of the texts, in rows


@dataclass(frozen=True)
class Text:
    """A prompt and the pair's answer."""

    prompt: Sequence[int]
    ids: Sequence[int]


def main() -> None:
    options = parse_options()
    texts, drafter = read_texts(options)
    process = fit(observe(drafter, texts[::2]))
    rows = []
    worst = 0.0
    for shape in SHAPES:
        real = [
            gain
            for text in texts[1::2]
            for gain in gains_over(drafter, text.prompt, text.ids, shape)
        ]
        foretold = [
            gain
            for seed in SEEDS
            for gain in gains(StandInDrafter(Agreement.of(process, seed), 0.0, []), shape)
        ]
        error = np.mean(foretold) / np.mean(real) - 1
        worst = max(worst, abs(error))
        name = f"{shape.max_budget} nodes, {shape.max_beam_len} passes"
        rows.append((name, len(real), spread(real), spread(foretold), f"{error:+.1%}"))
    report(
        f"tokens per verification of {options.draft} for {options.model}, greedy: {process}",
        ("tree", "verifications", "real", "foretold by the stand-in", "difference"),
        rows,
        {"worst_difference": float(worst), "texts": len(texts)},
        options.json,
    )


def spread(gained: Sequence[int]) -> str:
    return f"{np.mean(gained):.2f} ± {np.std(gained):.2f}"


def read_texts(options: argparse.Namespace) -> tuple[list[Text], Drafter]:
    """Greedy answers of the target, and the draft."""
    engine = open_model(options.model, "stored")
    drafter = Drafter(open_model(options.draft, "stored"))
    tokenizer = Tokenizer.load(options.model)
    texts = []
    for question in read_questions(options.prompts, options.per_task):
        prompt = tokenizer.chat_prompt([{"role": "user", "content": question.text}])
        if len(prompt) > options.longest:
            continue
        params = Open(
            request=1, seed=1, temperature=0.0, top_p=1.0, min_p=0.0, top_k=0,
            max_tokens=options.max_tokens, prompt_tokens=len(prompt),
            stop_ids=tuple(tokenizer.stop_ids),
        )  # fmt: skip
        ids, _, _ = answer(engine, drafter, prompt, params, TreeShape(32, 6, 6, 6))
        texts.append(Text(prompt, ids))
    return texts, drafter


def observe(drafter: Drafter, texts: Sequence[Text]) -> Observed:
    """Draft two passes after each token of the answers."""
    shape = TreeShape(255, WIDTH, 2, CANDIDATES)
    scores, ranks, wrong, ends = [], [], [], []
    for text in texts:
        for speculation, token in along(drafter, text, shape):
            tree = speculation.tree
            first = tree.children(ROOT)
            at = next((i for i, n in enumerate(first) if tree.tokens[n] == token), CANDIDATES)
            scores.append([tree.scores[n] for n in first])
            ranks.append(at)
            after = [confidence_after(tree, node) for node in first[:WIDTH]]
            if at < WIDTH and after[at] is not None:
                others = [x for i, x in enumerate(after) if i != at and x is not None]
                wrong += [(after[at], other) for other in others]
        ends.append(len(scores))
    return Observed(np.array(scores), np.array(ranks), np.array(wrong), ends)


def along(drafter: Drafter, text: Text, shape: TreeShape) -> Iterator[tuple[Speculation, int]]:
    """A tree after each token of an answer, and the token that follows."""
    prompt, ids = text.prompt, text.ids
    limit = len(prompt) + len(ids) + 8
    size = drafter.vocabulary_size
    s = Speculation(list(prompt), limit, shape, Proactive.OFF, Noise(), size)
    for token, following in pairwise(ids):
        s.commit(0, token)
        for _ in range(shape.max_beam_len):
            if frontier := s.frontier(shape.max_budget):
                drafter.run([Pass(s, frontier)])
        yield s, following
        s.send(0)
    drafter.finish(s)


def confidence_after(tree: DraftTree, node: int) -> float | None:
    """Logit of the probability of the best candidate after a node, if it was expanded."""
    below = [tree.scores[child] for child in tree.children(node)]
    return logit(max(below) - tree.scores[node]) if below else None


def logit(log_probability: float) -> float:
    p = min(float(np.exp(log_probability)), 1 - 1e-6)
    return float(np.log(p / (1 - p)))


def fit(seen: Observed) -> Process:
    """Each parameter from what it is about."""
    confidence = np.array([logit(x) for x in seen.scores[:, 0]])
    mean, deviation = confidence.mean(), confidence.std()
    covered = fit_covered(seen.scores, confidence)
    tail = min(np.linspace(0.0, 3.0, 151), key=lambda t: tail_error(seen.scores, t))
    sharpness = max(np.linspace(0.3, 3.0, 136), key=lambda a: likelihood(seen, a))
    normal = (confidence - mean) / deviation, luck(seen, sharpness)
    text = np.mean([of_texts(numbers, seen.ends) for numbers in normal])
    neighbours = np.mean([of_neighbours(numbers, seen.ends) for numbers in normal])
    memory = max((neighbours - text) / (1 - text), 0.0)
    likeness = np.corrcoef(seen.wrong.T)[0, 1]
    first = (round(float(x), 3) for x in (mean, deviation, text, memory))
    last = (round(float(x), 3) for x in (tail, sharpness, likeness))
    return Process(*first, covered, *last)


def luck(seen: Observed, sharpness: float) -> np.ndarray:
    """Normal numbers that would have given the ranks."""
    weights = with_rest(seen, sharpness)
    before = np.cumsum(weights, axis=1) - weights
    rows = np.arange(len(weights))
    # anywhere within what the rank stands for
    where = np.random.default_rng(0).random(len(rows))
    level = before[rows, seen.ranks] + where * weights[rows, seen.ranks]
    normal = np.array([NormalDist().inv_cdf(x) for x in level.clip(1e-4, 1 - 1e-4)])
    return (normal - normal.mean()) / normal.std()


def of_texts(numbers: np.ndarray, ends: Sequence[int]) -> float:
    """The share of the variance that the means of texts have beyond chance."""
    parts = np.split(numbers, ends[:-1])
    chance = np.mean([1 / len(part) for part in parts])
    return max(float(np.var([part.mean() for part in parts]) - chance), 0.0)


def of_neighbours(numbers: np.ndarray, ends: Sequence[int]) -> float:
    """Correlation of a number and the next one of its text."""
    inside = np.setdiff1d(np.arange(len(numbers) - 1), np.array(ends) - 1)
    return float(np.mean(numbers[inside] * numbers[inside + 1]))


def fit_covered(scores: np.ndarray, confidence: np.ndarray) -> tuple[float, float]:
    """Logistic regression, by Newton's method, of what the candidates after the first cover."""
    p = np.exp(scores)
    weight = 1 - p[:, 0]
    part = (p[:, 1:].sum(axis=1) / weight.clip(1e-6)).clip(0, 1)
    x, line = np.column_stack((np.ones_like(confidence), confidence)), np.zeros(2)
    for _ in range(20):
        guess = 1 / (1 + np.exp(-x @ line))
        slope = x.T @ (weight * (part - guess))
        line = line + np.linalg.solve((x.T * (weight * guess * (1 - guess))) @ x, slope)
    return round(float(line[0]), 3), round(float(line[1]), 3)


def tail_error(scores: np.ndarray, tail: float) -> float:
    """Of the mean shares of the candidates after the first."""
    real = np.exp(scores[:, 1:]).mean(axis=0)
    modelled = np.arange(1.0, CANDIDATES) ** -tail
    return float(np.abs(real / real.sum() - modelled / modelled.sum()).sum())


def likelihood(seen: Observed, sharpness: float) -> float:
    """Mean log-probability of the ranks if the draft's probabilities are raised to this power."""
    weights = with_rest(seen, sharpness)
    return float(np.log(weights[np.arange(len(weights)), seen.ranks].clip(1e-6)).mean())


def with_rest(seen: Observed, sharpness: float) -> np.ndarray:
    """`rank_weights`, and what they leave for all other tokens [N, CANDIDATES + 1]."""
    weights = rank_weights(seen.scores, sharpness)
    return np.column_stack((weights, np.maximum(1 - weights.sum(axis=1), 1e-6)))


def parse_options() -> argparse.Namespace:
    parser = option_parser("bench.standin_fit", __doc__)
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE")
    parser.add_argument("--per-task", type=int, default=8)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--draft", default="smollm2-draft")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--longest", type=int, default=900, help="tokens of a prompt")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(attempt("bench.standin_fit", main))
