"""Which options may differ from answer to answer, and the config of one answer made from them."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypedDict

from runtime.config import ConfigError, EdgeConfig
from runtime.constraint import Constraint


class RequestOptions(TypedDict, total=False):
    """Options of one answer; what is left out is as in the edge's config. See `EdgeConfig`."""

    adapter: str | None
    """The name of an adapter of the server's that answers; None for the model as it is."""
    system: str | None
    """A message in front of the conversation."""
    raw: bool
    """The prompt as it is, without the chat template."""
    chat_template: str
    """"draft" for the draft's own, or a file; "" is the target's."""
    enable_thinking: bool | None
    """For chat templates that have this switch; None leaves it to them."""
    tools: Sequence[Mapping[str, Any]] | None
    """Functions that the chat template tells the model of, as OpenAI's API has them."""
    spelled: Sequence[str]
    """Control tokens that are part of the text, such as "[TOOL_CALLS]"."""
    stop: str | Sequence[str]
    """The text ends before the first of these."""
    max_tokens: int
    """The longest answer."""
    timeout_s: float
    """The longest time that the whole answer may take; 0 for any time."""
    temperature: float
    """0 is greedy; above it tokens are sampled."""
    top_k: int
    """Sample among the k likeliest tokens; 0 is all."""
    top_p: float
    """Sample among the likeliest tokens that have this probability together; 0 is greedy."""
    min_p: float
    """Drop tokens below this share of the likeliest one's probability."""
    seed: int
    """The same seed and the same prompt give the same text."""
    frequency_penalty: float
    """Taken off a token's logit for each time that the answer has it; from -2 to 2."""
    presence_penalty: float
    """Taken off the logit of each token that the answer has; from -2 to 2."""
    repetition_penalty: float
    """Divides the logits of tokens that prompt or answer have, multiplies negative ones."""
    logit_bias: Mapping[int, float]
    """Added to the logits of these token ids, at most 1,024 of them; from -100 to 100."""
    logprobs: int | None
    """0 for each token's log-probability, n (up to 20) for those of the n likeliest besides."""
    constraint: Constraint | None
    """What the answer must be: JSON of a schema, a regular expression, a grammar."""
    max_budget: int
    """Nodes of a draft tree; 0 is plain decoding."""
    max_n_beams: int
    """Nodes expanded in one pass of the draft model."""
    max_beam_len: int
    """Passes of the draft model for a tree."""
    max_branch_width: int
    """Children considered for a node."""
    proactive: str
    """"off", "single" or "multi": what is drafted while a tree is verified."""
    coupling: bool
    """Draft with the server's noise."""
    reconnect_s: float
    """How long a lost server is looked for; 0 gives up at once."""


def of_request(config: EdgeConfig, options: Mapping[str, Any]) -> EdgeConfig:
    """The config of one answer. Raises ConfigError for what it cannot have, by name."""
    known = list(RequestOptions.__annotations__)
    for name in options:
        if name in known:
            continue
        if any(item.name == name for item in fields(config)):
            raise ConfigError(
                f"{name}= is the same for all answers of an edge; give it to its EdgeConfig"
            )
        near = difflib.get_close_matches(name, known, n=1)
        instead = f"did you mean {near[0]}=?" if near else f"there are {', '.join(known)}"
        raise ConfigError(f"an answer has no option {name}=; {instead}")
    return replace(config, **options)
