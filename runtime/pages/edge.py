"""An edge's page: a chat, and the draft trees of its answers as they are sent and judged."""

from collections.abc import Callable, Mapping
from typing import Any

from starlette.responses import Response
from starlette.routing import BaseRoute

from runtime.edge.loop import Round
from runtime.pages import files
from runtime.pages.feed import Feed
from runtime.tree import ROOT

MOST_AHEAD = 32  # nodes grown ahead that are shown, the likeliest first


class EdgePage:
    """Tells its watchers of every round; `spell` gives a token's text."""

    def __init__(self, spell: Callable[[int], str], now: Callable[[], Mapping[str, Any]]) -> None:
        self._spell, self._feed = spell, Feed(now)

    def round(self, answer: int, round_: Round) -> None:
        """A round of the answer with this number is over."""
        if self._feed.watched:
            self._feed.tell("round", round_fields(answer, round_, self._spell))

    def routes(self) -> list[BaseRoute]:
        """The page and its files."""
        return files.routes("edge")

    def events(self) -> Response:
        """What /events answers; for whom is its caller's business."""
        return self._feed.response()


def round_fields(answer: int, round_: Round, spell: Callable[[int], str]) -> dict[str, Any]:
    """A round as the page draws it.

    round_trip_ms is what the way there and back took, None where no tree was sent.

    nodes    [text, parent, state] each; the parent is an index into them, -1 for the root
    state    "accepted", "rejected", "next" (grown ahead, and the beginning of the next tree) or
             "ahead" (grown ahead in vain)
    """
    commit, verdict = round_.commit, round_.verdict
    tree, sent = commit.grown, commit.sent
    path = sent.path(verdict.node)
    accepted = {sent.source[node - 1] for node in path}
    in_flight = set(sent.source)
    unsent = [node for node in tree.nodes if node not in in_flight]
    shown = [*sent.source, *tree.best_first(unsent)[:MOST_AHEAD]]
    end = sent.source[verdict.node - 1] if verdict.node else ROOT
    foreseen = tree.child(end, verdict.bonus) if commit.hit else None
    of_use = set() if foreseen is None else {foreseen, *tree.below(foreseen)}

    def state(node: int) -> str:
        if node in in_flight:
            return "accepted" if node in accepted else "rejected"
        return "next" if node in of_use else "ahead"

    index = {node: place for place, node in enumerate(shown)} | {ROOT: -1}
    nodes = [
        [spell(tree.tokens[node]), index[tree.parents[node]], state(node)]
        for node in shown
        if tree.parents[node] in index
    ]
    return {
        "answer": answer,
        "nodes": nodes,
        "tokens": len(commit.tokens),
        "bonus": spell(verdict.bonus),
        "verify_ms": verdict.verify_ms,
        "round_trip_ms": _round_trip_ms(round_),
        "ended": bool(verdict.finish),
    }


def _round_trip_ms(round_: Round) -> float | None:
    if round_.waited_s is None:
        return None
    at_server_ms = round_.verdict.queue_ms + round_.verdict.verify_ms
    return max(round_.waited_s * 1e3 - at_server_ms, 0.0)
