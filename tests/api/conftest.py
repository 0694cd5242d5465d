"""The endpoint of an edge with the tiny pair, at a port of its own."""

from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from runtime.api.of_edge import EdgeBackend, endpoint
from runtime.background import Background
from runtime.config import EdgeConfig
from runtime.edge.client import AsyncEdge


@pytest.fixture(scope="session")
def edge_config(tiny_pair: tuple[Path, Path], tiny_server: str) -> EdgeConfig:
    return EdgeConfig(server=tiny_server, draft=str(tiny_pair[1]), http="127.0.0.1:0", threads=1)


@pytest.fixture(scope="session")
def served(edge_config: EdgeConfig) -> Iterator[tuple[str, EdgeBackend]]:
    """URL of an edge that is connected, and the edge."""
    background, stack = Background(), AsyncExitStack()

    async def begin() -> tuple[str, EdgeBackend]:
        edge = await stack.enter_async_context(AsyncEdge(edge_config))
        url, backend = await stack.enter_async_context(endpoint(edge))
        return url, backend

    try:
        yield background.run(begin()).result(60)
        background.run(stack.aclose()).result(60)
    finally:
        background.stop()


@pytest.fixture
def url(served: tuple[str, EdgeBackend]) -> str:
    return served[0]


@pytest.fixture
def edge(served: tuple[str, EdgeBackend]) -> EdgeBackend:
    return served[1]
