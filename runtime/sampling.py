"""How an answer is drawn, as a request asks for it. Knows no model and no message."""

from dataclasses import dataclass, replace

from runtime.constraint import Constraint


@dataclass(frozen=True)
class Sampling:
    """How the target's tokens are drawn. Temperature 0 is greedy.

    The last `output_tokens` of the prompt are the beginning of the answer. `logprobs` is None for
    none, or how many likeliest tokens are told of besides each token's own.
    """

    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stop_ids: tuple[int, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    constraint: Constraint | None = None
    adapter: str | None = None
    output_tokens: int = 0

    def known_to(self, vocabulary_size: int) -> "Sampling":
        """The same without stop ids and biases of tokens that a target lacks: it cannot say them"""
        stop_ids = tuple(index for index in self.stop_ids if index < vocabulary_size)
        bias = tuple((index, value) for index, value in self.logit_bias if index < vocabulary_size)
        return replace(self, stop_ids=stop_ids, logit_bias=bias)
