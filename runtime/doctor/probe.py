"""Short answers, asked with drafts and without, and what they say of longer ones."""

import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

from runtime.doctor.prediction import Drafted, Prediction
from runtime.edge.draft.batcher import Batcher
from runtime.edge.draft.speculation import TreeShape
from runtime.edge.loop import Drafting, Round, generate
from runtime.edge.net.link import Link
from runtime.sampling import Sampling

LONGEST_S = 4.0  # of one answer: a slow server is asked for fewer tokens
LEAST_ROUNDS = 4  # that say anything


@dataclass(frozen=True)
class Probe:
    """The rounds of an answer, and when its first and its last came."""

    rounds: Sequence[Round]
    first_s: float
    last_s: float

    @property
    def per_s(self) -> float:
        """Tokens a second after those of the first round."""
        tokens = sum(len(round_.tokens) for round_ in self.rounds[1:])
        return tokens / max(self.last_s - self.first_s, 1e-9)


async def ask(
    link: Link, batcher: Batcher, prompt: Sequence[int], sampling: Sampling, drafting: Drafting
) -> Probe:
    """One answer, or as much of it as comes in time. Raises ServerError."""
    rounds: list[Round] = []
    first_s = last_s = 0.0
    async with aclosing(generate(link, batcher, prompt, sampling, drafting)) as answer:
        async for round_ in answer:
            last_s = time.monotonic()
            first_s = first_s or last_s
            rounds.append(round_)
            if last_s - first_s > LONGEST_S and len(rounds) > LEAST_ROUNDS:
                break
    return Probe(rounds, first_s, last_s)


async def predict(
    link: Link,
    batcher: Batcher,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    drafting: Drafting,
    rtt_s: float,
) -> Prediction | None:
    """From an answer to each prompt with drafts, and to the first without.

    None where answers end before anything can be measured. Raises ServerError.
    """
    rounds: list[Round] = []
    for prompt in prompts:
        rounds += (await ask(link, batcher, prompt, sampling, drafting)).rounds[1:]
    drafted = [round_ for round_ in rounds if round_.commit.sent]
    undrafted = Drafting(TreeShape(0, 1, 1, 1))
    plain = await ask(link, batcher, prompts[0], sampling, undrafted)
    if len(plain.rounds) < LEAST_ROUNDS:
        return None
    if len(drafted) < LEAST_ROUNDS:
        return Prediction(rtt_s, plain.per_s, None)
    plain_share = 1 - len(drafted) / len(rounds)
    means = Drafted.of(drafted, batcher.pace.pass_s)
    return Prediction(rtt_s, plain.per_s, means, plain_share)
