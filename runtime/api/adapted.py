"""A model with one of its adapters, as a client of the API asks for it by a model's name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.api.backend import Backend
from runtime.api.errors import APIError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from runtime.edge.answer import AsyncAnswer
    from runtime.edge.options import RequestOptions
    from runtime.edge.prompts import Prompt
    from runtime.model.tokenizer import Tokenizer


@dataclass(frozen=True)
class Adapted:
    """The backend `whole`, whose answers have the adapter; `model` is what the client called it."""

    whole: Backend
    adapter: str
    model: str

    @property
    def adapters(self) -> Sequence[str]:
        """Names of the target's adapters."""
        return self.whole.adapters

    @property
    def max_context(self) -> int:
        """Tokens of prompt and answer together."""
        return self.whole.max_context

    @property
    def rtt_s(self) -> float:
        """Of the way to the server and back."""
        return self.whole.rtt_s

    @property
    def tokenizer(self) -> Tokenizer:
        """The target's, which adapters do not change."""
        return self.whole.tokenizer

    @property
    def chat_template(self) -> str | None:
        """The target's, too."""
        return self.whole.chat_template

    def unready(self) -> str:
        """Why no request can be taken now, as a sentence; empty if one can."""
        return self.whole.unready()

    def encode(self, prompt: Prompt, **options: Unpack[RequestOptions]) -> list[int]:
        """Token ids of a prompt. Raises ValueError."""
        return self.whole.encode(prompt, **options)

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a text. Raises ValueError."""
        return self.whole.tokenize(text, special)

    def check_room(self, answers: int) -> None:
        """Raises ServerError where the server does not allow so many more at once."""
        self.whole.check_room(answers)

    def generate(self, prompt: Sequence[int], **options: Unpack[RequestOptions]) -> AsyncAnswer:
        """The adapter's answer to a prompt of token ids. Raises ValueError or ServerError."""
        options["adapter"] = self.adapter
        return self.whole.generate(prompt, **options)


def asked_for(name: str | None, backend: Backend) -> Backend:
    """The model of that name: the target, NAME of an adapter, or TARGET:NAME. Raises APIError."""
    if not name or name == backend.model:
        return backend
    adapter = name.removeprefix(f"{backend.model}:")
    if adapter in backend.adapters:
        return Adapted(backend, adapter, name)
    has = f", with the adapters {', '.join(backend.adapters)}" if backend.adapters else ""
    raise APIError(
        404,
        f"there is no model {name!r} here; the model is {backend.model!r}{has}",
        param="model",
        code="model_not_found",
    )


def models_of(backend: Backend) -> Iterator[Backend]:
    """The target, and then itself with each of its adapters, which have their own names."""
    yield backend
    for name in backend.adapters:
        yield Adapted(backend, name, name)
