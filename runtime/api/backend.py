"""What the HTTP API stands on: one model that can be asked, and who may ask it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from runtime.edge.answer import AsyncAnswer
    from runtime.edge.options import RequestOptions
    from runtime.edge.prompts import Prompt
    from runtime.model.tokenizer import Tokenizer


class Backend(Protocol):
    """One model and whatever writes its answers.

    Where `unready` gives a reason, the other members need not work.
    """

    @property
    def model(self) -> str:
        """The target's name, as clients ask for it."""

    @property
    def adapters(self) -> Sequence[str]:
        """Names of the target's adapters, which clients may ask for as well."""

    @property
    def max_context(self) -> int:
        """Tokens of prompt and answer together."""

    @property
    def rtt_s(self) -> float:
        """Of the way to the server and back, as far as is known."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Its ids are the target's."""

    @property
    def chat_template(self) -> str | None:
        """The Jinja source by which `encode` writes conversations, None where there is none."""

    def unready(self) -> str:
        """Why no request can be taken now, as a sentence; empty if one can."""

    def encode(self, prompt: Prompt, **options: Unpack[RequestOptions]) -> list[int]:
        """Token ids of a prompt; called in threads. Raises ValueError for what cannot be asked."""

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a text; with `special`, and the model's own first token where it wants one.

        Called in threads. Raises ValueError for what is no text.
        """

    def check_room(self, answers: int) -> None:
        """Raises ServerError where the server does not allow so many more at once."""

    def generate(self, prompt: Sequence[int], **options: Unpack[RequestOptions]) -> AsyncAnswer:
        """The answer to a prompt of token ids, as it is written.

        Raises ValueError for what cannot be asked; ServerError here, or from the answer.
        """


class UnknownKey(Exception):
    """The API key is nobody's, or there is none where one is needed."""


# from the API key of a request, None without one; raises UnknownKey
BackendOf = Callable[[str | None], Awaitable[Backend]]
