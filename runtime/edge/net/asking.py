"""The messages that ask for an answer, made of how it is to be drawn."""

from runtime.sampling import Sampling
from runtime.wire import messages as wire


def before_prompt(
    sampling: Sampling, number: int, prompt_tokens: int, max_nodes: int
) -> list[wire.Message]:
    """All that comes before the prompt. Raises ValueError."""
    said: list[wire.Message] = [opening(sampling, number, prompt_tokens, max_nodes)]
    bias = sorted((index, float(value)) for index, value in sampling.logit_bias if value)
    penalties = (
        sampling.frequency_penalty,
        sampling.presence_penalty,
        sampling.repetition_penalty,
    )
    if bias or penalties != (0, 0, 1):
        ids, values = tuple(index for index, _ in bias), tuple(value for _, value in bias)
        said.append(wire.Rule(number, *penalties, ids, values))
    if sampling.constraint is not None:
        kind = wire.ConstraintKind[sampling.constraint.kind.upper()]
        said.append(wire.Constraint(number, kind, sampling.constraint.text))
    if sampling.adapter is not None:
        said.append(wire.Adapter(number, sampling.adapter))
    return said


def opening(sampling: Sampling, number: int, prompt_tokens: int, max_nodes: int) -> wire.Open:
    """The message that asks for an answer drawn so. Raises ValueError."""
    return wire.Open(
        request=number,
        seed=sampling.seed,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_tokens,
        prompt_tokens=prompt_tokens,
        stop_ids=sampling.stop_ids,
        max_nodes=max_nodes,
        output_tokens=sampling.output_tokens,
        logprobs=0 if sampling.logprobs is None else 1 + sampling.logprobs,
    )
