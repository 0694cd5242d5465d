"""Which of several replicas an edge is sent to.

The name of an edge's user decides, by a hash that all fronts share, in which order its replicas are
tried: it comes back to the one whose prefix cache knows its texts (users never share pages, so the
user is all that two texts must have in common), and where a replica comes or goes only its own
users move. The first that is ready and has room takes the edge.

Sources: rendezvous hashing (Thaler and Ravishankar, 1998), with bounded loads as in Mirrokni et al.
(arXiv:1608.01350).
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from runtime.config import ReplicaAddress
from runtime.logs import fields

log = logging.getLogger(__name__)

OVERLOAD = 1.25  # edges that a replica may have, as a multiple of the mean
ALWAYS_ROOM = 8  # edges that it may have in any case: few are never spread for their own sake


@dataclass(eq=False)
class Replica:
    """What is known of one replica, as of the last look."""

    address: ReplicaAddress
    unready: str = "nobody has looked yet"  # why no edge is sent there; empty if edges are
    edges: int = 0  # that were connected then
    sent: int = 0  # sent there since

    def told(self, unready: str, edges: int) -> None:
        """A look is over."""
        if bool(unready) != bool(self.unready):
            what = "no edge is sent to a replica" if unready else "edges are sent to a replica"
            log.info(what, extra=fields(replica=self.address.name, reason=unready or None))
        self.unready, self.edges, self.sent = unready, edges, 0


class Router:
    """Pure policy over what was seen of the replicas: knows no clock and no socket.

    Replicas may come and go at any time in `replicas`.
    """

    def __init__(self, addresses: Sequence[ReplicaAddress]):
        self.replicas = [Replica(address) for address in addresses]

    @property
    def unready(self) -> str:
        """Why no edge can be sent on; empty if it can."""
        if any(not replica.unready for replica in self.replicas):
            return ""
        known = [f"{one.address.name}: {one.unready}" for one in self.replicas]
        reasons = "; ".join(known) or "none is known"
        return f"no replica takes edges ({reasons})"

    def choose(self, key: str) -> Replica | None:
        """The replica for one more edge with this key; it counts as sent. None: none is ready."""
        ready = [replica for replica in self.replicas if not replica.unready]
        if not ready:
            return None
        load = {replica: replica.edges + replica.sent for replica in ready}
        most = max(ALWAYS_ROOM, math.ceil(OVERLOAD * (sum(load.values()) + 1) / len(ready)))
        free = [replica for replica in ready if load[replica] < most]
        chosen = max(free, key=lambda replica: _score(replica.address.name, key))
        chosen.sent += 1
        return chosen


def _score(name: str, key: str) -> bytes:
    """A number of a replica and a key; both may be any text, so the name's length comes first."""
    return blake2b(f"{len(name)} {name}{key}".encode(), digest_size=8).digest()
