"""What happens now, told to everyone who watches, as server-sent events.

A watcher that does not keep up misses the oldest of what it has not had; nobody waits for it.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.responses import PlainTextResponse, Response, StreamingResponse

MOST_WATCHERS = 16
KEPT_EVENTS = 256  # of one watcher
NOW_S = 0.5  # between two events that say how things stand; they also tell that we are there


class _Watcher:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.more = asyncio.Event()
        self.events: deque[str] = deque(maxlen=KEPT_EVENTS)

    async def wait(self, until_s: float) -> bool:
        """Whether there are events before a time of time.monotonic()."""
        try:
            await asyncio.wait_for(self.more.wait(), max(until_s - time.monotonic(), 0.0))
        except asyncio.TimeoutError:
            return False
        self.more.clear()
        return True


class Feed:
    """Events to all watchers, from any thread."""

    def __init__(self, now: Callable[[], Mapping[str, Any]]) -> None:
        """now: how things stand, for the events "now"; asked on the loop of the one who watches."""
        self._now = now
        self._watchers: list[_Watcher] = []

    @property
    def watched(self) -> bool:
        """Whether anybody looks; what nobody sees need not be made."""
        return bool(self._watchers)

    def tell(self, kind: str, fields: Mapping[str, Any]) -> None:
        """One event, by name, with fields that JSON can say."""
        event = _event(kind, fields)
        for watcher in [*self._watchers]:
            watcher.events.append(event)
            try:
                watcher.loop.call_soon_threadsafe(watcher.more.set)
            except RuntimeError:  # its loop has ended, and it has not said so
                self._watchers.remove(watcher)

    def response(self) -> Response:
        """The stream for one more watcher."""
        if len(self._watchers) >= MOST_WATCHERS:
            return PlainTextResponse("as many pages as can be served are watching\n", 503)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._stream(), 200, headers, "text/event-stream")

    async def _stream(self) -> AsyncIterator[str]:
        watcher = _Watcher()
        self._watchers.append(watcher)
        try:
            while True:
                yield _event("now", self._now())
                next_s = time.monotonic() + NOW_S
                while await watcher.wait(next_s):
                    while watcher.events:
                        yield watcher.events.popleft()
        finally:
            if watcher in self._watchers:
                self._watchers.remove(watcher)


def _event(kind: str, fields: Mapping[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(fields)}\n\n"
