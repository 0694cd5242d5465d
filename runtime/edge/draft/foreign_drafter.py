"""Drafts by a model of another vocabulary than the target's.

The model has a **shadow** of each request: the same text in its own tokens, and a tree of them
under it. After each pass what the lines of that tree say is written into the request's own tree in
the target's tokens. A word that the model spells in three pieces may be one token there, so a line
counts for the word that it has reached, and no more for its beginning, as soon as that is known.
"""

import math
import sys
from collections.abc import Sequence

from runtime.edge.draft.drafter import Drafter, common_prefix
from runtime.edge.draft.speculation import MAX_EXPANDED, Pass, Proactive, Speculation
from runtime.edge.draft.translation import Said, Translation
from runtime.tree import ROOT

READ_AGAIN = 16  # tokens at the end of a text that may be other ones once it goes on
MOST_UNFINISHED = 3  # tokens of a line that have not made a character yet


class Shadow(Speculation):
    """A request's text in the tokens of the draft model, by their names."""

    def __init__(self, own: Speculation, translation: Translation):
        self._own, self._translation = own, translation
        self._read = len(own.context)  # tokens of the target that have been read
        super().__init__(
            self._first_reading(),
            sys.maxsize,
            own.shape,
            Proactive.OFF,
            own.noise,
            sys.maxsize,
        )

    def _first_reading(self) -> list[int]:
        opening = self._translation.opening()
        text = self._translation.read((), self._own.context)
        if text[: len(opening)] != opening:  # a chat template may write it itself
            text = [*opening, *text]
        return text or [self._translation.names.of[0]]  # a model reads one token at least

    def position(self, path: Sequence[int]) -> int:
        said = Said()
        for name in path:
            said = self._translation.follow(said, name)
        return len(self._own.context) + len(self._translation.tokens(said))

    def read_on(self) -> None:
        """Take in what the target has said, and keep what of the tree is below it.

        The last word may be cut into other tokens now that it goes on: then it is read again.
        """
        new = self._own.context[self._read :]
        if not new:
            return
        self._read = len(self._own.context)
        begin = self._last_word()
        names = self._translation.read(self.context[begin:], new)
        same = common_prefix(self.context[begin:], names)
        if begin + same < len(self.context):
            self._cut(begin + same)
        self._walk(names[same:])

    def _last_word(self) -> int:
        """Where in the context the text begins that is read again."""
        translation = self._translation
        begin = len(self.context)
        for place in range(begin - 1, max(begin - READ_AGAIN, 0), -1):
            name = self.context[place]
            if translation.is_control(name):
                break
            if translation.spelled(name)[:1].isspace():
                return place
        return begin

    def _walk(self, names: Sequence[int]) -> None:
        """Go on with the text, along the tree as far as it has the same."""
        chain: list[int] = []
        for name in names:
            child = self.tree.child(chain[-1] if chain else ROOT, name)
            if child is None:
                break
            chain.append(child)
        is_drafted = len(chain) == len(names) > 0 and chain[-1] in self.tree.expanded
        self._go_on(names, chain, chain[-1] if is_drafted else None)
        if not len(self.tree):  # what follows the last token is to be found out
            self._uncache(len(self.context) - 1)

    def _cut(self, length: int) -> None:
        """Forget all of the text but its first tokens."""
        self._uncache(length)
        self.tree = self._new_tree()
        self.suffixes.cut(length)
        del self.context[length:]

    def _uncache(self, length: int) -> None:
        self.cached = min(self.cached, length)
        self.places = self.places[: max(self.cached - self.moved_from, 0)]

    def lines(self) -> list[tuple[int, ...]]:
        """What each node's line says in the target's tokens."""
        said = [Said()]
        for node in self.tree.nodes:
            parent, name = self.tree.parents[node], self.tree.tokens[node]
            said.append(self._translation.follow(said[parent], name))
        return [self._translation.tokens(said[node]) for node in self.tree.nodes]

    def shares(self) -> list[float]:
        """How likely the text ends a line just there, or goes on with what is in no line."""
        chances = [math.exp(score) for score in self.tree.scores]
        shares = list(chances)
        for node in self.tree.nodes:
            shares[self.tree.parents[node]] -= chances[node]
        return [max(share, 0.0) for share in shares[1:]]

    def next_nodes(self) -> list[int]:
        """The best nodes that have not been expanded, for the next pass."""
        return self.tree.frontier(self.shape.max_n_beams, self.tree.nodes)[
            : MAX_EXPANDED - len(self.tree.expanded)
        ]


class ForeignDrafter:
    """One for all requests of an edge, in place of the `Drafter` that it runs."""

    vocabulary_size = sys.maxsize  # it reads whatever the target says

    def __init__(self, drafter: Drafter, translation: Translation):
        self._drafter, self._translation = drafter, translation
        self._shadows: dict[int, Shadow] = {}  # of the running requests, by their speculation's id

    def run(self, passes: Sequence[Pass]) -> list[bool]:
        """One pass of the model for all whose shadows need one."""
        wanted = [self._wanted(one) for one in passes]
        ran = iter(self._drafter.run([one for one in wanted if one is not None and one.frontier]))
        result = []
        for one, shadows in zip(passes, wanted, strict=True):
            has_room = shadows is not None and (not shadows.frontier or next(ran))
            if has_room:
                self._write(one.speculation)
            result.append(has_room)
        return result

    def finish(self, speculation: Speculation) -> None:
        """End a request; the KV of its text stays until the pages are needed."""
        shadow = self._shadows.pop(id(speculation), None)
        if shadow is not None:
            self._drafter.finish(shadow)
        speculation.forget_cache()

    def _wanted(self, one: Pass) -> Pass | None:
        """The shadow's pass, with no nodes where none is needed; None if there is no more to do."""
        own = one.speculation
        shadow = self._shadows.get(id(own)) or Shadow(own, self._translation)
        self._shadows[id(own)] = shadow
        shadow.read_on()
        if shadow.cached < len(shadow.context):
            return Pass(shadow, [ROOT])
        if one.is_text and any(shadow.lines()):  # drafted ahead
            return Pass(shadow, [])
        nodes = shadow.next_nodes()
        return Pass(shadow, nodes) if nodes else None

    def _write(self, own: Speculation) -> None:
        """What the shadow has drafted, in the target's tokens; `own` has no cache of its own."""
        shadow = self._shadows[id(own)]
        own.places, own.cached = [], len(own.context)
        if shadow.cached < len(shadow.context):
            own.cached -= 1  # there is more text to read
            return
        write_lines(own, shadow)
        if not len(own.tree) and 0 < max(shadow.tree.depths) <= MOST_UNFINISHED:
            own.cached -= 1


def write_lines(own: Speculation, shadow: Shadow) -> None:
    """Bring the request's tree up to date: nodes stay what they are, their chances change."""
    tree, most = own.tree, max(own.limit - len(own.context) - 1, 0)
    known = {(tree.parents[node], tree.tokens[node]): node for node in tree.nodes}
    chances = [0.0] * len(tree.tokens)
    unfinished, expanded = set(), set(shadow.tree.expanded)
    for node, line, share in zip(shadow.tree.nodes, shadow.lines(), shadow.shares(), strict=True):
        place = ROOT
        for token in line[:most]:
            if token >= own.vocabulary_size:
                break
            below = known.setdefault((place, token), len(tree.tokens))
            if below == len(tree.tokens):
                tree.add_children(place, [(token, 0.0)])
                chances.append(0.0)
            chances[below] += share
            place = below
        if node not in expanded:
            unfinished.add(place)
    for node in tree.nodes:
        score = math.log(chances[node]) if chances[node] > 0 else -math.inf
        tree.scores[node] = min(score, tree.scores[tree.parents[node]])
    done = unfinished.union(tree.expanded)
    tree.expanded += [node for node in tree.nodes if node not in done]
