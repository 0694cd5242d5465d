"""What happens now, told to everyone who watches, as server-sent events.

A watcher that does not keep up misses the oldest of what it has not had; nobody waits for it.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.responses import PlainTextResponse, Response, StreamingResponse

MOST_WATCHERS = 16
KEPT_EVENTS = 256  # of one watcher
ALIVE_S = 1.0  # between two signs of life, by which a page knows that this process is there


class _Watcher:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.more = asyncio.Event()
        self.events: deque[str] = deque(maxlen=KEPT_EVENTS)


class Feed:
    """Events to all watchers, from any thread."""

    def __init__(self) -> None:
        self._watchers: list[_Watcher] = []

    @property
    def watched(self) -> bool:
        """Whether anybody looks; what nobody sees need not be made."""
        return bool(self._watchers)

    def tell(self, kind: str, fields: Mapping[str, Any]) -> None:
        """One event, by name, with fields that JSON can say."""
        event = f"event: {kind}\ndata: {json.dumps(fields)}\n\n"
        for watcher in [*self._watchers]:
            watcher.events.append(event)
            try:
                watcher.loop.call_soon_threadsafe(watcher.more.set)
            except RuntimeError:  # its loop has ended
                self._watchers.remove(watcher)

    def answer(self, begin: Callable[[], Mapping[str, Any]]) -> Response:
        """The stream for one more watcher; `begin` gives what its first event, "begin", says."""
        if len(self._watchers) >= MOST_WATCHERS:
            return PlainTextResponse("too many pages are watching\n", status_code=503)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        stream = self._stream(f"event: begin\ndata: {json.dumps(begin())}\n\n")
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    async def _stream(self, first: str) -> AsyncIterator[str]:
        watcher = _Watcher()
        self._watchers.append(watcher)
        try:
            yield first
            while True:
                try:
                    await asyncio.wait_for(watcher.more.wait(), ALIVE_S)
                except asyncio.TimeoutError:
                    yield ": alive\n\n"
                watcher.more.clear()
                while watcher.events:
                    yield watcher.events.popleft()
        finally:
            if watcher in self._watchers:
                self._watchers.remove(watcher)
