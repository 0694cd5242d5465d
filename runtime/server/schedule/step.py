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

    def __post_init__(self) -> None:
        self.start = self.request.cached
        self.nodes = 0 if self.follows or not self.verify else self.request.nodes


@dataclass
class Step:
    """One forward pass of the target: the trees of some requests, and chunks of prompts."""

    work: Sequence[Work]
    start_s: float = 0.0
    end_s: float = 0.0
    drafted: dict[Request, int] = field(init=False)  # nodes under the root, where it verifies
    chunk_rows: int = field(init=False)
    accepted: dict[Request, int] = field(default_factory=dict)  # of the nodes, by the verdicts

    def __post_init__(self) -> None:
        self.drafted = {work.request: work.nodes for work in self.work if work.verify}
        self.chunk_rows = sum([work.chunk for work in self.work])

    @property
    def rows(self) -> int:
        """Rows of the forward pass in trees, their roots included."""
        return len(self.drafted) + sum(self.drafted.values())

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end_s - self.start_s

    @property
    def tokens(self) -> int:
        """Tokens that its verdicts gave."""
        return len(self.accepted) + sum(self.accepted.values())

    def line(self) -> str:
        """Itself as JSON; a request is named by its edge's address and its own number."""
        requests = []
        for request, nodes in self.drafted.items():
            peer, number = request.key
            requests.append([peer.peer_name, number, nodes, self.accepted.get(request)])
        record = {
            "start_s": round(self.start_s, 6),
            "end_s": round(self.end_s, 6),
            "rows": self.rows,
            "chunk_rows": self.chunk_rows,
            "requests": requests,
        }
        return json.dumps(record)
