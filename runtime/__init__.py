"""The SpecEdge runtime: the edge that drafts, the server that verifies, and what joins them.

    from runtime import Edge, EdgeConfig

    with Edge(EdgeConfig(server="127.0.0.1:8400")) as edge:
        for text in edge.generate("Why is the sky blue?", max_tokens=100):
            print(text, end="", flush=True)

`AsyncEdge` is the same for asyncio, and `Server` a server in this process, for notebooks and tests.
Everything is imported when it is first used.

Glossary, used alike everywhere:

edge          a program on a person's machine with a draft model; it has one connection
peer          the other end of a connection
user          who an edge proves to be; "" where a server asks nobody
request       one prompt and its answer; on a connection it has a number
text, context the accepted tokens of a request, prompt included; `base` counts them
root          the last accepted token; node 0 of every tree, never sent; its children have depth 1
tree, draft   drafted tokens under the root, nodes 1, 2, ... in which parents come first
chunk         the part of a prompt that one step prefills
step          one forward pass of the target on the server, and the drawing and walking after it
row           one token of a step: a node of a tree, root included, or one of a chunk
path          the nodes from the root to one; a verdict's: those that are the target's own tokens
bonus         the target's token after the path
verdict       what a step says to one request: its path and its bonus
finish        why a verdict is the last one
round         from one verdict to the next
state         what a connection, and each request of it, waits for on the wire (docs/protocol.md)
phase         what a request waits for on the server (docs/architecture.md)
turn          who moves next: the edge drafts, the edge waits for a credit, or the server goes on;
              nobody, where another verdict of the same step follows
plain         decoding without asking for drafts: the server has every turn
offer         a tree that an edge sends unasked then; what still fits the text is verified
grant         what an edge is told with the turn: how many nodes, and for how long
max_nodes     the most nodes: of a request (that its edge ever drafts; as an option `--max-budget`,
              as in the paper), of a grant, or of a tree that grows
free_s        how long drafting costs the server nothing: its tree comes just before its step
late_s        how much longer the server would wait for it
draft_s       how long an edge drafted, from its grant on
credit        permission to send one tree: a place in one step
slot          the step that a tree is drafted for; in kernels, a place of the KV cache
slack         what a request may still lose by drafting (server/policy/trial.py)
page          a fixed number of places in the KV cache; the unit in which it is lent
prefix cache  pages of verified text that a request with the same beginning shares
preempted     without pages again, for the sake of an older request; its text stays
proactive     drafted ahead of a verdict, in the hope of what it will say

Units are in names: `_s` and `_ms` are times, `_bytes`, `_tokens`, `_nodes` and `_rows` are counts.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.config import EdgeConfig, ServerConfig
    from runtime.constraint import Constraint
    from runtime.edge.answer import Answer, AsyncAnswer, TokenLogprob
    from runtime.edge.answer_text import Piece
    from runtime.edge.client import AsyncEdge, Edge
    from runtime.edge.net.link import ServerError
    from runtime.edge.options import RequestOptions
    from runtime.edge.statistics import Statistics
    from runtime.model.config import ModelError
    from runtime.serve import Server

__all__ = [
    "Answer",
    "AsyncAnswer",
    "AsyncEdge",
    "ConfigError",
    "Constraint",
    "Edge",
    "EdgeConfig",
    "ModelError",
    "Piece",
    "RequestOptions",
    "Server",
    "ServerConfig",
    "ServerError",
    "Statistics",
    "TokenLogprob",
]

_HOMES = {
    "runtime.config": ("EdgeConfig", "ServerConfig"),
    "runtime.options": ("ConfigError",),
    "runtime.constraint": ("Constraint",),
    "runtime.edge.answer": ("Answer", "AsyncAnswer", "TokenLogprob"),
    "runtime.edge.answer_text": ("Piece",),
    "runtime.edge.client": ("AsyncEdge", "Edge"),
    "runtime.edge.net.link": ("ServerError",),
    "runtime.edge.options": ("RequestOptions",),
    "runtime.edge.statistics": ("Statistics",),
    "runtime.model.config": ("ModelError",),
    "runtime.serve": ("Server",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
