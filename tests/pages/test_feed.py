"""Events to those who watch: all of them, in order, and nobody is waited for."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.responses import StreamingResponse

from runtime.pages import feed as feeds
from runtime.pages.feed import KEPT_EVENTS, MOST_WATCHERS, Feed


def stream_of(feed: Feed) -> AsyncIterator[str]:
    response = feed.response()
    assert isinstance(response, StreamingResponse)
    assert response.media_type == "text/event-stream"
    return response.body_iterator  # type: ignore[return-value]


def read(event: str) -> tuple[str, Any]:
    first, second, *rest = event.split("\n")
    assert rest == ["", ""], "an event ends with an empty line"
    return first.removeprefix("event: "), json.loads(second.removeprefix("data: "))


def test_watchers_hear_what_is_told_from_any_thread() -> None:
    async def scenario() -> None:
        feed = Feed(lambda: {"open": 3})
        assert not feed.watched
        one, other = stream_of(feed), stream_of(feed)
        assert read(await anext(one)) == ("now", {"open": 3})
        await anext(other)
        teller = threading.Thread(
            target=lambda: [feed.tell("step", {"text": "a\nb", "n": n}) for n in range(5)]
        )
        teller.start()
        for stream in (one, other):
            got = []
            while len(got) < 5:
                kind, fields = read(await anext(stream))
                got += [fields] if kind == "step" else []
            assert got == [{"text": "a\nb", "n": n} for n in range(5)]
        teller.join()
        await one.aclose()  # type: ignore[attr-defined]
        assert feed.watched
        await other.aclose()  # type: ignore[attr-defined]
        assert not feed.watched

    asyncio.run(scenario())


def test_who_does_not_keep_up_misses_the_oldest() -> None:
    async def scenario() -> None:
        feed = Feed(dict)
        slow = stream_of(feed)
        await anext(slow)
        for number in range(KEPT_EVENTS + 10):
            feed.tell("step", {"n": number})
        assert read(await anext(slow)) == ("step", {"n": 10})
        await slow.aclose()  # type: ignore[attr-defined]

    asyncio.run(scenario())


def test_silence_is_broken_by_how_things_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "NOW_S", 0.0)

    async def scenario() -> None:
        feed = Feed(iter([{"n": 1}, {"n": 2}]).__next__)
        stream = stream_of(feed)
        assert read(await anext(stream)) == ("now", {"n": 1})
        assert read(await anext(stream)) == ("now", {"n": 2})
        await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(scenario())


def test_the_number_of_watchers_is_bounded() -> None:
    async def scenario() -> None:
        feed = Feed(dict)
        streams = [stream_of(feed) for _ in range(MOST_WATCHERS)]
        for stream in streams:
            await anext(stream)
        assert feed.response().status_code == 503
        await streams[0].aclose()  # type: ignore[attr-defined]
        assert feed.response().status_code == 200

    asyncio.run(scenario())
