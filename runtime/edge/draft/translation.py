"""Between the vocabulary of a draft model and another one, that of its target.

A piece that both have, byte for byte, goes over as it is, and so does a control token that both
spell alike; what only one of them has is spelled out, and encoded anew by the other. The draft's
tokens are called by **names** here: a piece of both by the target's id, so that the target's noise
for it is known, and any other by a number beyond all ids of the target.
Source: token-level intersection and string-level matching of arXiv:2502.05202, piece by piece.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from runtime.edge.draft.drafter import Names
from runtime.edge.draft.pieces import LONGEST_PIECE_BYTES, Pieces, whole_characters


@dataclass(frozen=True)
class Said:
    """What a line of drafted tokens says in the target's tokens.

    tokens   of the words that are over
    word     bytes of the last one, which may go on
    """

    tokens: tuple[int, ...] = ()
    word: bytes = b""


class Translation:
    """Both ways between two vocabularies."""

    def __init__(self, target: Pieces, draft: Pieces):
        self._target, self._draft = target, draft
        self._others = len(target.spelled)  # names from here on are no ids of the target
        spelled = {spelling: index for index, spelling in target.control.items()}
        self._control = {  # of both: the target's id -> the draft's
            spelled[spelling]: index
            for index, spelling in draft.control.items()
            if spelling in spelled
        }
        shared = {index: token for token, index in self._control.items()}
        drafted = set(shared)
        for index, piece in enumerate(draft.spelled):
            if piece is None or draft.of_bytes(piece) != index:
                continue  # it is no text, or another token that spells the same goes before it
            if len(piece) <= LONGEST_PIECE_BYTES:
                drafted.add(index)
            if (token := target.of_bytes(piece)) is not None:
                shared[index] = token
        count = len(draft.spelled)
        self.names = Names(
            [shared.get(index, self._others + index) for index in range(count)], drafted
        )
        self.shared, self.rows = len(shared), count

    def opening(self) -> list[int]:
        """Names of what the draft wants in front of every text."""
        return [self.names.of[index] for index in self._draft.opening()]

    def is_control(self, name: int) -> bool:
        """Whether it is a control token of both."""
        return name in self._control

    def spelled(self, name: int) -> bytes:
        """Bytes of a piece of the draft; none for a control token."""
        index = self.names.own_id(name)
        return self._draft.spelled[index] or b""

    def read(self, tail: Iterable[int], tokens: Iterable[int]) -> list[int]:
        """Names for the end of a text, which has been read as `tail`, and these tokens behind it.

        Control tokens that the draft lacks are read as what they are spelled like.
        """
        names: list[int] = []
        text = bytearray().join(map(self.spelled, tail))
        for token in tokens:
            if token in self._control:
                names += self._encode(text)
                names.append(token)
                text.clear()
            else:
                text += self._said_by_target(token)
        return names + self._encode(text)

    def follow(self, said: Said, name: int) -> Said:
        """What is said when one more token is drafted."""
        if name in self._control:
            return Said((*said.tokens, *self._target.encode(said.word), name))
        piece = self.spelled(name)
        if said.word and piece[:1].isspace() and not said.word[-1:].isspace():
            return Said((*said.tokens, *self._target.encode(said.word)), piece)
        return Said(said.tokens, said.word + piece)

    def tokens(self, said: Said) -> tuple[int, ...]:
        """The target's tokens for it, as far as its characters are whole."""
        return (*said.tokens, *self._target.encode(whole_characters(said.word)))

    def _encode(self, text: bytearray) -> list[int]:
        if not text:
            return []
        return [self.names.of[index] for index in self._draft.encode(bytes(text))]

    def _said_by_target(self, token: int) -> bytes:
        if not 0 <= token < len(self._target.spelled):
            return b""
        return self._target.spelled[token] or self._target.control.get(token, "").encode()
