"""The endpoint of an edge: that of python -m runtime.edge --serve, and beside --chat."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from runtime.api.app import application, key_of, to_look_after, told
from runtime.api.backend import Backend, BackendOf
from runtime.api.guard import Guard
from runtime.api.keys import Keys
from runtime.api.serving import serving
from runtime.background import Background
from runtime.config import EdgeConfig
from runtime.edge.client import AsyncEdge, Edge
from runtime.edge.net.link import ServerError
from runtime.option_files import read_token
from runtime.pages.edge import EdgePage

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from runtime.edge.answer import AsyncAnswer
    from runtime.edge.options import RequestOptions
    from runtime.edge.prompts import Prompt
    from runtime.model.tokenizer import Tokenizer

LOOK_S = 1.0  # between two looks whether the server is there


class EdgeBackend:
    """An edge, and why it cannot be asked."""

    def __init__(self, edge: AsyncEdge) -> None:
        self.edge = edge
        self._server = edge.config.server
        self._reason = f"the draft model is being loaded, and {self._server} greeted"

    @property
    def model(self) -> str:
        """The target's name."""
        return self.edge.model

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the server's adapters, as far as it has told them."""
        return self.edge.adapters

    @property
    def max_context(self) -> int:
        """Tokens of prompt and answer together."""
        return self.edge.max_context

    @property
    def rtt_s(self) -> float:
        """Of the way to the server and back."""
        return self.edge.rtt_s

    @property
    def tokenizer(self) -> Tokenizer:
        """The draft's; its ids are the target's."""
        return self.edge.tokenizer

    @property
    def chat_template(self) -> str | None:
        """The one that conversations are written by."""
        return self.edge.chat_template

    def unready(self) -> str:
        """Why no request can be taken now, as a sentence; empty if one can."""
        return "" if self.edge.connected else self._reason

    def encode(self, prompt: Prompt, **options: Unpack[RequestOptions]) -> list[int]:
        """Token ids of a prompt. Raises ConfigError."""
        return self.edge.encode(prompt, **options)

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a text. Raises ConfigError."""
        return self.edge.tokenize(text, special)

    def check_room(self, answers: int) -> None:
        """Raises ServerError where the server does not allow so many more at once."""
        self.edge.check_room(answers)

    def generate(self, prompt: Sequence[int], **options: Unpack[RequestOptions]) -> AsyncAnswer:
        """The answer to a prompt of token ids. Raises ConfigError or ServerError."""
        return self.edge.generate(prompt, **options)

    async def stay_connected(self) -> None:
        """Connect, and look for the server again whenever it is lost; until it is cancelled.

        Raises ConfigError or ModelError.
        """
        while True:
            try:
                await self.edge.connect()
            except ServerError as error:
                self._reason = str(error)
            else:
                self._reason = f"the connection to {self._server} is lost"
            await asyncio.sleep(LOOK_S)

    def spell(self, token: int) -> str:
        """The text of a token, for a person to see."""
        spelled = self.tokenizer.token_bytes.get(token, first=False)
        if spelled is None:
            return self.tokenizer.token(token)
        return spelled.decode("utf-8", "replace")

    def now(self) -> dict[str, Any]:
        """What the page's head says."""
        return {
            "connected": self.edge.connected,
            "server": self._server,
            "target": self.model if self.edge.connected else "",
            "draft": Path(self.edge.config.draft).name,
        }


@asynccontextmanager
async def endpoint(edge: AsyncEdge) -> AsyncIterator[tuple[str, EdgeBackend]]:
    """Serve an edge at its `http` while the context lasts, connected or not; gives the URL.

    Raises ConfigError where the key cannot be read, ConnectionError where the address cannot be
    had.
    """
    config = edge.config
    file = config.http_key_file
    keys = Keys({config.user: read_token(Path(file)).encode()}) if file else None
    backend = EdgeBackend(edge)

    async def backend_of(key: str | None) -> Backend:
        if keys is not None:
            keys.name_of(key)
        return backend

    app = application(
        backend_of, [*to_look_after(backend.unready), *_to_watch(backend, backend_of)]
    )
    guarded = Guard(app, config.origins, has_keys=keys is not None)
    async with serving(config.http, guarded) as url:
        yield url, backend


def _to_watch(backend: EdgeBackend, backend_of: BackendOf) -> list[BaseRoute]:
    """For people: the page, which anybody may have, and what it tells, for those with a key."""
    page = EdgePage(backend.spell, backend.now)
    backend.edge.watch(page.round)

    async def events(request: Request) -> Response:
        await backend_of(key_of(request))
        return page.events()

    return [*page.routes(), Route("/events", told(events))]


async def serve(config: EdgeConfig, tell: Callable[[str], None]) -> None:
    """Serve until it is cancelled; `tell` hears the URL.

    Raises ConfigError or ModelError for what the user can mend, ConnectionError where the address
    cannot be had.
    """
    edge = AsyncEdge(config)
    try:
        async with endpoint(edge) as (url, backend):
            tell(f"{url}/v1")
            await backend.stay_connected()
    finally:
        await edge.close()


@contextmanager
def beside(edge: Edge, tell: Callable[[str], None]) -> Iterator[None]:
    """Serve an edge that its program uses as well, while the context lasts.

    `tell` hears the URL, or why the address cannot be had: the program goes on without.
    """
    background, stack = Background(), AsyncExitStack()
    try:
        # an answer to others is not a line of this conversation
        other = AsyncEdge.of(edge)
        other.config = replace(edge.config, chat=False)
        opening = background.run(stack.enter_async_context(endpoint(other)))
        try:
            url, backend = opening.result()
        except ConnectionError as error:
            tell(str(error))
        else:
            tell(f"{url}/v1")
            background.run(backend.stay_connected())
        yield
    finally:  # however the program ends; first what is served, then the loop that it is served on
        background.run(stack.aclose()).result()
        background.stop()
