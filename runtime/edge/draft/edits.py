"""What the target's logits are changed by, as an edge knows it. No tensors: see `shift`."""

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.history import History


@dataclass(frozen=True)
class Edits:
    """Biases by token id, then the penalties, as the target applies them."""

    frequency: float = 0.0
    presence: float = 0.0
    repetition: float = 1.0
    bias: tuple[tuple[int, float], ...] = ()

    @property
    def change_something(self) -> bool:
        return self != Edits()

    def history(self, prompt: Sequence[int], output_tokens: int) -> History | None:
        """Of a text whose last tokens are output, as far as these look at it."""
        output = prompt[len(prompt) - output_tokens :]
        if self.repetition != 1:
            return History(prompt, output)
        return History((), output) if self.frequency or self.presence else None
