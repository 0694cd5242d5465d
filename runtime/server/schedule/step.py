"""What one verification step holds, and the line of a trace that says so.

Knows no model and no socket; times are those of time.monotonic(), which all processes of one
machine share.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from runtime.server.request import Request


@dataclass(slots=True)
class Work:
    """A request's part in a step: prefill `chunk` tokens, then verify root and draft if told to.

    With `follows` it decodes plainly and its verdict is owed by the step before: the root is the
    token that will be drawn there, and there is no draft.
    """

    request: Request
    chunk: int
    verify: bool
    follows: bool = False
    start: int = field(init=False)  # the first token that it prefills
    nodes: int = field(init=False)  # drafted ones that it verifies
    accepted: int | None = field(default=None, init=False)  # of these, once there is a verdict

    def __post_init__(self) -> None:
        self.start = self.request.cached
        self.nodes = 0 if self.follows or not self.verify else self.request.nodes


@dataclass
class Step:
    """One forward pass of the target: the trees of some requests, and chunks of prompts."""

    work: Sequence[Work]
    start_s: float = 0.0
    end_s: float = 0.0
    verified: Sequence[Work] = field(init=False)  # whose trees it verifies
    chunk_rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.verified = [work for work in self.work if work.verify]
        self.chunk_rows = sum([work.chunk for work in self.work])

    @property
    def rows(self) -> int:
        """Rows of the forward pass in trees, their roots included."""
        return len(self.verified) + sum([work.nodes for work in self.verified])

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end_s - self.start_s

    @property
    def tokens(self) -> int:
        """Tokens that its verdicts gave."""
        return sum([1 + work.accepted for work in self.verified if work.accepted is not None])

    def line(self) -> str:
        """Itself as JSON; a request is named by its edge's address and its own number."""
        requests = []
        for work in self.verified:
            peer, number = work.request.key
            requests.append([peer.peer_name, number, work.nodes, work.accepted])
        record = {
            "start_s": round(self.start_s, 6),
            "end_s": round(self.end_s, 6),
            "rows": self.rows,
            "chunk_rows": self.chunk_rows,
            "requests": requests,
        }
        return json.dumps(record)
