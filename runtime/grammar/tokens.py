"""A vocabulary as llguidance takes it: the bytes of each token, and which of them are no text."""

from collections.abc import Sequence

import numpy as np
from llguidance import LLTokenizer, TokenizerWrapper

from runtime.model.tokenizer import Tokenizer


class Tokens:
    """The tokens of a tokenizer, for a model with so many rows.

    size      rows of the model's embedding; what the tokenizer does not know is never allowed
    words     of a mask: 32-bit words that hold a bit for each row
    stop_ids  what a whole answer ends with

    Stop tokens and control tokens have no text: no string, comment or expression allows them.
    Raises ValueError where the model has no stop token.
    """

    def __init__(self, tokenizer: Tokenizer, size: int):
        self.size, self.words = size, -(-size // 32)
        self.stop_ids = frozenset(index for index in tokenizer.stop_ids if 0 <= index < size)
        if not self.stop_ids:
            raise ValueError(
                "the model names no stop token, with which a constrained answer could end"
            )
        spelling = tokenizer.token_bytes
        texts = [spelling.get(index, first=False) for index in range(size)]
        self.llguidance = _made(tokenizer, texts, self.stop_ids)
        begins = [index for index, text in enumerate(texts) if text and text[:1] == b" "]
        firsts = {index: spelling.get(index, first=True) for index in begins}
        twins = {text: index for index, text in enumerate(texts) if index not in self.stop_ids}
        altered = [index for index, text in firsts.items() if text != texts[index]]
        # Sentence pieces lose the space that they begin a text with: there they are spelled as
        # other tokens are, with whose bits they are allowed. -1 where there is no such token.
        self._altered = np.array(altered, np.int64)
        self._twins = np.array([twins.get(firsts[index], -1) for index in altered], np.int64)
        self._twin_of: dict[int, int] = dict(zip(altered, self._twins.tolist(), strict=True))

    def as_first(self, token: int) -> int:
        """The token that is spelled everywhere as this one is in front of the text."""
        return self._twin_of.get(token, token)

    def spell_first(self, mask: np.ndarray) -> None:
        """Make a mask [words] that of the text's first token, in place."""
        if not len(self._altered):
            return
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
        bits[self._altered] = np.where(self._twins < 0, 0, bits[self._twins])
        mask[:] = np.packbits(bits, bitorder="little").view(np.int32)


def _made(
    tokenizer: Tokenizer, texts: Sequence[bytes | None], stop_ids: frozenset[int]
) -> LLTokenizer:
    """llguidance's tokenizer of these texts; None for what is no part of a text."""
    spelled = _Spelled(sorted(stop_ids)[0])
    for index, text in enumerate(texts):
        if text is None or index in stop_ids:
            name = tokenizer.token(index).encode()
            spelled.tokens.append(name)
            # a row without a name is no token at all
            spelled.special_token_ids += [index] if name else []
        else:
            spelled.tokens.append(text)
    made = LLTokenizer(TokenizerWrapper(spelled), eos_token=sorted(stop_ids), slices=None)
    spelled.tokens.clear()  # llguidance has copied them, and keeps the rest for as long as it lives
    return made


class _Spelled:
    """What llguidance asks of a tokenizer. It never has it split a text: nothing is forced."""

    def __init__(self, eos_token_id: int):
        self.eos_token_id, self.bos_token_id = eos_token_id, None
        self.tokens: list[bytes] = []
        self.special_token_ids: list[int] = []

    def __call__(self, text: bytes | str) -> list[int]:
        return []
