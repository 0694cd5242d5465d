"""Where an answer stands in its grammar, and what each node of a tree may be followed by."""

from collections.abc import Sequence
from itertools import takewhile

import numpy as np
from llguidance import LLMatcher
from llguidance.numpy import fill_next_token_bitmask

from runtime.grammar.tokens import Tokens


class Matcher:
    """The grammar of one answer. Of one thread at a time.

    Every row of a mask is a function of the text before it alone: it allows the tokens with which
    a beginning of some allowed answer goes on, and the stop ids where the text is a whole one.
    """

    def __init__(self, compiled: LLMatcher, tokens: Tokens):
        """compiled: a matcher in front of the text, which is copied."""
        self._compiled, self._tokens = compiled, tokens
        self._at: LLMatcher = compiled.deep_copy()
        self._text: list[int] = []  # the answer so far
        self._path: list[int] = []  # drafted tokens behind it that `_at` has taken as well
        self._is_lost = False

    def advance(self, tokens: Sequence[int]) -> None:
        """Take more tokens into the answer; a stop id and what follows it are not of it.

        Raises ValueError where the grammar does not allow them, or cannot follow. All masks are
        empty then.
        """
        for token in tokens:
            if token in self._tokens.stop_ids:
                return
            if self._is_lost or not self._take(token):
                self._is_lost = True
                raise ValueError(
                    f"token {len(self._text)} of the answer is not one that its constraint allows"
                )
            self._text.append(self._path.pop())

    def masks(self, tokens: Sequence[int], parents: Sequence[int]) -> np.ndarray:
        """What may follow the answer, and each node of a tree drafted behind it.

        Node i is tokens[i - 1], below node parents[i - 1]; node 0 is the end of the answer.
        Returns [1 + nodes, words] int32: bit t % 32 of word t // 32 is that of token t. The row of
        a node that its parent's row does not allow is empty, as is one where the grammar asks for
        what no token spells, or has become too complex. Behind a stop id anything goes, for what
        is drawn there is not of the answer.
        """
        masks = np.zeros((1 + len(tokens), self._tokens.words), np.int32)
        if self._is_lost:
            return masks
        depths, children = [0], list[list[int]]([[] for _ in range(1 + len(tokens))])
        for node, parent in enumerate(parents, start=1):
            depths.append(depths[parent] + 1)
            children[parent].append(node)
        stack, ended = [0], set[int]()
        while stack:
            node = stack.pop()
            parent, token = (parents[node - 1], tokens[node - 1]) if node else (0, -1)
            if node and not is_allowed(masks[parent], token):
                continue
            self._return(depths[parent])
            if parent in ended or token in self._tokens.stop_ids:
                ended.add(node)
                masks[node] = -1
            elif node == 0 or self._take(token):
                self._fill(masks, node)
            stack.extend(reversed(children[node]))
        self._return(0)
        return masks

    def after(self, paths: Sequence[Sequence[int]]) -> np.ndarray:
        """What may follow each of these ways behind the answer: [paths, words] int32.

        Nothing follows a way that the grammar does not allow, or one with a stop id.
        """
        masks = np.zeros((len(paths), self._tokens.words), np.int32)
        for row, path in enumerate(paths):
            if self._is_lost or not self._tokens.stop_ids.isdisjoint(path):
                continue
            pairs = zip(path, self._path, strict=False)
            self._return(len([*takewhile(lambda pair: pair[0] == pair[1], pairs)]))
            if all(self._take(token) for token in path[len(self._path) :]):
                self._fill(masks, row)
        self._return(0)
        return masks

    def _fill(self, masks: np.ndarray, node: int) -> None:
        """The row of the node where the walk is."""
        fill_next_token_bitmask(self._at, masks, node)
        if self._at.is_error():  # then the row has the stop ids
            masks[node] = 0
            self._start_again()
        elif not self._text and not self._path:
            self._tokens.spell_first(masks[node])

    def _take(self, token: int) -> bool:
        """Go on by a token, which is put on the path; False where it cannot be."""
        first = not self._text and not self._path
        taken = self._tokens.as_first(token) if first else token
        if 0 <= taken < self._tokens.size and self._at.consume_token(taken):
            self._path.append(token)
            return True
        self._start_again()
        return False

    def _return(self, depth: int) -> None:
        """Go back to the node of the path at this depth."""
        if len(self._path) > depth:
            self._at.rollback(len(self._path) - depth)
            del self._path[depth:]

    def _start_again(self) -> None:
        """A matcher that has failed is of no more use: another, at the same place."""
        self._at = self._compiled.deep_copy()
        taken = [*self._text, *self._path]
        self._at.consume_tokens([self._tokens.as_first(token) for token in taken[:1]] + taken[1:])


def is_allowed(mask: np.ndarray, token: int) -> bool:
    """Whether a mask [words] has the bit of a token."""
    return bool(int(mask[token >> 5]) >> (token & 31) & 1)
