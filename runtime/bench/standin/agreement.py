"""Which tokens a stand-in draft proposes, and how often they are what its stand-in target says.

The text is one circle through all tokens: the target's token after t is t + 1. So a node's place in
the text is its token, and both models are tables. What the draft thinks comes after t:

    confidence  a number per token: normal, alike for tokens of one text, and a little for
                neighbours
    candidates  K tokens whose probabilities follow from the confidence: the first has the logistic
                of it; the others have a part of what it leaves, which is the greater the more
                confident the draft is, and share it by a power of their place
    rank        where among them the target's token is, if it is: drawn from these probabilities,
                made sharper by an exponent, with numbers that are as alike as the confidences: a
                draft is right or wrong for a while

The other candidates are tokens of about the same confidence: a wrong branch of a difficult passage
is difficult as well. Parameters other than the confidence's mean and spread are fitted to the
embedded pair (`bench/standin_fit.py`), and those two to a row of the paper (`calibration.py`).
"""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
TOKENS = 2048  # of the vocabulary, and of the circle
CANDIDATES = 16
TEXT_TOKENS = 256  # of one answer


@dataclass(frozen=True)
class Process:
    """Parameters of the process.

    mean, deviation  of the confidence, in logits of the first candidate's probability
    text             share of the variance of confidence and luck that all of a text have in common
    memory           correlation of what is left of it for neighbours
    covered          by the other candidates of what the first leaves, in logits: at confidence
                     0, and how much more for each unit of confidence
    tail             exponent of the place of a candidate after the first
    sharpness        exponent of the draft's probabilities that gives those of the ranks
    likeness         correlation of a wrong candidate's confidence with that of the right one
    """

    mean: float
    deviation: float
    text: float
    memory: float
    covered: tuple[float, float]
    tail: float
    sharpness: float
    likeness: float


@dataclass(frozen=True)
class Agreement:
    """The draft's candidates after each token, best first, and their log-probabilities.

    candidates [TOKENS, CANDIDATES] i64, scores [TOKENS, CANDIDATES] f64
    """

    candidates: Array
    scores: Array

    @classmethod
    def of(cls, process: Process, seed: int) -> "Agreement":
        """The same for the same process and seed."""
        dice = np.random.default_rng(seed)
        normal, luck = (_alike(dice, process.text, process.memory) for _ in range(2))
        confidence = process.mean + process.deviation * normal
        scores = _scores(confidence, process.covered, process.tail)
        candidates = _others(dice, normal, process.likeness)
        ranks = _ranks(luck, scores, process.sharpness)
        listed = np.flatnonzero(ranks < CANDIDATES)
        candidates[listed, ranks[listed]] = (listed + 1) % TOKENS
        return cls(candidates, scores)


def _alike(dice: np.random.Generator, text: float, memory: float) -> Array:
    """[TOKENS] standard normal numbers, alike within texts and between neighbours."""
    fresh = dice.standard_normal(TOKENS)
    own = np.empty(TOKENS)
    own[0] = fresh[0]
    for i in range(1, TOKENS):
        own[i] = memory * own[i - 1] + np.sqrt(1 - memory**2) * fresh[i]
    common = np.repeat(dice.standard_normal(TOKENS // TEXT_TOKENS), TEXT_TOKENS)
    mixed: Array = np.sqrt(text) * common + np.sqrt(1 - text) * own
    return mixed


def log_logistic(x: Array) -> Array:
    y: Array = -np.logaddexp(0, -x)
    return y


def _scores(confidence: Array, covered: tuple[float, float], tail: float) -> Array:
    """Log-probabilities of the candidates, best first."""
    share = log_logistic(covered[0] + covered[1] * confidence)
    weights = np.arange(1.0, CANDIDATES) ** -tail
    others = log_logistic(-confidence) + share
    further = others[:, None] + np.log(weights / weights.sum())
    scores: Array = np.column_stack((log_logistic(confidence), further))
    scores.sort(axis=1)
    falling: Array = scores[:, ::-1].copy()
    return falling


def rank_weights(scores: Array, sharpness: float) -> Array:
    """How likely the target's token is each of the candidates [N, K]; what is left is no other."""
    among = np.exp(sharpness * (scores - scores[:, :1]))
    covered = np.exp(scores).sum(axis=1, keepdims=True).clip(max=1.0)
    weights: Array = covered * among / among.sum(axis=1, keepdims=True)
    return weights


def _ranks(luck: Array, scores: Array, sharpness: float) -> Array:
    """[TOKENS] places of the target's token; CANDIDATES where it is not among them."""
    level = np.array([NormalDist().cdf(number) for number in luck])
    ends = np.cumsum(rank_weights(scores, sharpness), axis=1)
    places: Array = (ends <= level[:, None]).sum(axis=1)
    return places


def _others(dice: np.random.Generator, normal: Array, likeness: float) -> Array:
    """[TOKENS, CANDIDATES] tokens whose confidence is about that of the token they would follow."""
    order = np.argsort(normal)  # tokens by rising confidence
    noise = dice.standard_normal((TOKENS, CANDIDATES))
    wanted = likeness * normal[:, None] + np.sqrt(1 - likeness**2) * noise
    places = np.searchsorted(normal[order], wanted).clip(0, TOKENS - 1)
    tokens: Array = order[places]
    # a wrong candidate is not the right token, nor another candidate
    for row, right in zip(tokens, (np.arange(TOKENS) + 1) % TOKENS, strict=True):
        taken = {int(right)}
        for column, token in enumerate(row.tolist()):
            while token in taken:
                token = int(dice.integers(TOKENS))
            taken.add(token)
            row[column] = token
    return tokens
