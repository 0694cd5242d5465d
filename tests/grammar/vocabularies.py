"""Small vocabularies whose every token is in sight."""

from collections.abc import Sequence

from runtime.grammar.grammars import Grammars
from runtime.grammar.tokens import Tokens


class Toy:
    """A tokenizer of these texts; token 0 is the stop token, token 1 another control token."""

    def __init__(self, texts: Sequence[str | bytes], drops_space: bool = False):
        spelled = [text.encode() if isinstance(text, str) else text for text in texts]
        self.texts: list[bytes | None] = [None, None, *spelled]
        self.stop_ids, self._drops_space = frozenset([0]), drops_space
        self.token_bytes = self

    def get(self, index: int, first: bool) -> bytes | None:
        text = self.texts[index] if index < len(self.texts) else None
        return text.removeprefix(b" ") if text and first and self._drops_space else text

    def token(self, index: int) -> str:
        return ["</s>", "<tool>", *map(repr, self.texts[2:])][index : index + 1][0:1][0]

    @property
    def ids(self) -> range:
        """The ids of what is text."""
        return range(2, len(self.texts))

    def grammars(self) -> Grammars:
        return Grammars(lambda: Tokens(self, len(self.texts)))  # type: ignore[arg-type]
