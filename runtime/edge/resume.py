"""An answer over as many links as it takes: nothing is lost, and nothing comes twice.

The text is a function of weights, prompt, parameters and seed, so the rest of an answer is the
answer to the prompt with all tokens accepted so far. A token is accepted when its verdict has come.
Nothing has to be fenced: the old request has died with its link. See docs/protocol.md, section 9.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Literal

from runtime.edge.draft.batcher import Batcher
from runtime.edge.loop import Drafting, Round, generate
from runtime.edge.net.link import ServerError
from runtime.edge.net.uplink import PASSING, Retries, Uplink
from runtime.sampling import Sampling
from runtime.wire import messages as wire

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass
class Transcript:
    """A prompt and what has come of its answer: all that it takes to go on."""

    prompt: list[int]
    sampling: Sampling
    accepted: list[int] = field(default_factory=list)
    stop: tuple[str, ...] = ()  # the text ends before the first of these; the server has no text
    finish: FinishReason | None = None  # once it has ended; of a stop token, `accepted` is without

    @property
    def rest(self) -> tuple[list[int], Sampling]:
        """The prompt and the parameters of what is still to come."""
        said = len(self.accepted)
        left = replace(
            self.sampling, max_tokens=self.sampling.max_tokens - said, output_tokens=said
        )
        return [*self.prompt, *self.accepted], left


async def resuming(
    uplink: Uplink,
    batcher: Batcher,
    transcript: Transcript,
    drafting: Drafting,
    reconnect_s: float,
    tell: Callable[[ServerError], None] = lambda error: None,
    on_reading: Callable[[wire.Reading], None] = lambda reading: None,
) -> AsyncGenerator[Round, None]:
    """`loop.generate` until the text ends, adding to `transcript.accepted` as it goes.

    When the link breaks, or a server refuses the rest for a reason that will pass, it tries again
    for `reconnect_s` seconds; `tell` hears when that begins. Raises ServerError.
    """
    retries = Retries(reconnect_s)
    while True:
        try:
            link = await uplink.link()
            going = generate(link, batcher, *transcript.rest, drafting, on_reading)
            async with aclosing(going) as rounds:
                async for round_ in rounds:
                    transcript.accepted += round_.tokens
                    retries.succeeded()
                    yield round_
            return
        except ServerError as error:
            resumed = retries.begun or bool(transcript.accepted)
            if error.code is not None and not (resumed and error.code in PASSING):
                raise
            if reconnect_s and not retries.begun:
                tell(error)
            await retries.wait(error)
