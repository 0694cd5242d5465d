"""What one verification step held, and the line of a trace that says so.

Knows no model and no socket; times are those of time.monotonic(), which all processes of one
machine share.
"""

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from runtime.server.step import Work


@dataclass
class Step:
    """One forward pass of the target: the trees of some sessions, and chunks of prompts."""

    start_s: float
    drafted: dict[Hashable, int]  # nodes under the root, of each session that is verified
    chunk_rows: int
    end_s: float = 0.0
    accepted: dict[Hashable, int] = field(default_factory=dict)  # of these, by the verdicts

    @classmethod
    def of(cls, batch: Sequence[Work], start_s: float) -> "Step":
        """The step that is about to run a batch."""
        drafted = {w.session.key: len(w.session.draft or ()) for w in batch if w.verify}
        return cls(start_s, drafted, sum(work.chunk for work in batch))

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
        """Itself as JSON; a session is named by its edge's address and its own number."""
        sessions = [
            [peer.peer_name, number, nodes, self.accepted.get((peer, number))]
            for (peer, number), nodes in self.drafted.items()
        ]
        record = {
            "start_s": round(self.start_s, 6),
            "end_s": round(self.end_s, 6),
            "rows": self.rows,
            "chunk_rows": self.chunk_rows,
            "sessions": sessions,
        }
        return json.dumps(record)
