"""The SpecEdge runtime: the edge that drafts, the server that verifies, and what joins them.

    from runtime import Edge, EdgeConfig

    with Edge(EdgeConfig(server="127.0.0.1:8400")) as edge:
        for text in edge.generate("Why is the sky blue?", max_tokens=100):
            print(text, end="", flush=True)

`AsyncEdge` is the same for asyncio, and `Server` a server in this process, for notebooks and tests.
Everything is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.config import ConfigError, EdgeConfig, ServerConfig
    from runtime.edge.answer import Answer, AsyncAnswer
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
    "Edge",
    "EdgeConfig",
    "ModelError",
    "Piece",
    "RequestOptions",
    "Server",
    "ServerConfig",
    "ServerError",
    "Statistics",
]

_HOMES = {
    "runtime.config": ("ConfigError", "EdgeConfig", "ServerConfig"),
    "runtime.edge.answer": ("Answer", "AsyncAnswer"),
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
