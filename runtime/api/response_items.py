"""What an answer consists of at /v1/responses: reasoning, messages and calls, item by item.

Each is told of as it begins, grows and ends. Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from runtime.api.logprobs import MessageLogprobs
from runtime.api.tools.events import (
    Arguments,
    CallBegun,
    CallBroken,
    CallEnded,
    Content,
    Event,
    Thought,
)

Chunk = dict[str, Any]

# kind of item -> prefix of its ids, and what it and its one part have besides
PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
FIELDS: dict[str, dict[str, Any]] = {
    "message": {"role": "assistant"},
    "reasoning": {"summary": []},
}
PARTS: dict[str, dict[str, Any]] = {
    "message": {"type": "output_text", "annotations": [], "logprobs": []},
    "reasoning": {"type": "reasoning_text"},
}


class Items:
    """The items of one answer; the last of them may be open."""

    def __init__(self, logprobs: MessageLogprobs | None = None) -> None:
        """logprobs: of the answer's tokens, if they are wanted."""
        self._logprobs = logprobs
        self.items: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._index = -1  # of the last item; that of a broken call is not given again

    def take(self, events: Iterable[Event]) -> list[Chunk]:
        """What clients are told of these events."""
        return [chunk for event in events for chunk in self._take(event)]

    def close(self, status: str = "completed") -> list[Chunk]:
        """The open item has ended."""
        item, self._open = self._open, None
        if item is None:
            return []
        item["status"] = status
        ended = list[Chunk]()
        if item["type"] in PARTS:
            part = item["content"][0]
            logprobs = part.get("logprobs", [])
            ended.append(self._of_part("done", part, logprobs, text=part["text"]))
            ended.append(self._of_content("response.content_part.done", part=part))
        elif status == "completed":
            told = {"name": item["name"], "arguments": item["arguments"]}
            ended.append(self._of_item("response.function_call_arguments.done", item, **told))
        ended.append(self._about("response.output_item.done", item=item))
        return ended

    def _take(self, event: Event) -> list[Chunk]:
        match event:
            case Content():
                return self._say(event)
            case Thought():
                return self._grow("reasoning", event.text)
            case CallBegun():
                called = {"call_id": event.id, "name": event.name, "arguments": ""}
                return [*self.close(), self._begin("function_call", called)]
            case Arguments():
                assert self._open is not None, "a call has begun"
                self._open["arguments"] += event.text
                kind = "response.function_call_arguments.delta"
                return [self._of_item(kind, self._open, delta=event.text)]
            case CallEnded():
                return self.close()
            case CallBroken():
                # it is told of as incomplete, and no part of the whole
                chunks = self.close("incomplete")
                self.items.pop()
                return [*chunks, *self._say(event)]

    def _say(self, event: Content | CallBroken) -> list[Chunk]:
        begin, end = event.end - len(event.text), event.end
        logprobs = self._logprobs.of(begin, end) if self._logprobs else []
        return self._grow("message", event.text, logprobs)

    def _grow(
        self, kind: str, text: str, logprobs: Sequence[Mapping[str, Any]] = ()
    ) -> list[Chunk]:
        """More text of an item of this kind, which begins if it is not open."""
        chunks = list[Chunk]()
        if self._open is None or self._open["type"] != kind:
            chunks = [*self.close(), self._begin(kind, dict(FIELDS[kind], content=[]))]
            part = dict(PARTS[kind], text="")
            chunks.append(self._of_content("response.content_part.added", part=dict(part)))
            self.items[-1]["content"] = [part]
        part = self.items[-1]["content"][0]
        part["text"] += text
        if logprobs:
            part["logprobs"] = [*part["logprobs"], *logprobs]
        return [*chunks, self._of_part("delta", part, logprobs, delta=text)]

    def _begin(self, kind: str, fields: dict[str, Any]) -> Chunk:
        item = {"id": f"{PREFIXES[kind]}_{uuid4().hex}", "type": kind, "status": "in_progress"}
        self._open = {**item, **fields}
        self._index += 1
        self.items.append(self._open)
        return self._about("response.output_item.added", item=dict(self._open))

    def _about(self, kind: str, **fields: Any) -> Chunk:
        return {"type": kind, "output_index": self._index, **fields}

    def _of_item(self, kind: str, item: dict[str, Any], **fields: Any) -> Chunk:
        return self._about(kind, item_id=item["id"], **fields)

    def _of_content(self, kind: str, **fields: Any) -> Chunk:
        return self._about(kind, item_id=self.items[-1]["id"], content_index=0, **fields)

    def _of_part(
        self, what: str, part: dict[str, Any], logprobs: Sequence[Any], **fields: Any
    ) -> Chunk:
        if part["type"] == "output_text":
            fields["logprobs"] = logprobs
        return self._of_content(f"response.{part['type']}.{what}", **fields)
