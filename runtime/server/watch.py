"""What does not come: edges that are silent, and those that owe something for too long.

Also who waits in line is told from time to time where it stands.
"""

import asyncio
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from runtime.server.edges import Edges
from runtime.server.policy.estimators import Rate
from runtime.server.pulse import LOOK_S
from runtime.server.request import Phase, Request
from runtime.wire import messages as wire
from runtime.wire.tcp import FramedProtocol

# A draft model may take minutes for a long prompt; meanwhile its edge answers Pings.
DRAFTING_SILENCES = 10
TELL_LOOKS = 5  # between two words to those who wait in line
AT_ONCE = 16  # edges that are looked at before verdicts and messages have their turn again


@dataclass
class Watch:
    """Looks at all edges every LOOK_S seconds."""

    edges: Edges
    silence_s: float
    _leaving: Rate = field(default_factory=Rate)  # requests that give a place free

    async def forever(self) -> None:
        """Until cancelled."""
        for count in itertools.count(1):
            await asyncio.sleep(LOOK_S)
            await self.look()
            if count % TELL_LOOKS == 0:
                self.tell_line()

    async def look(self) -> None:
        """End what edges hold that are silent, or that owe something for too long."""
        for looked, (peer, requests) in enumerate(self._by_edge(), start=1):
            self._look_at(peer, requests)
            if looked % AT_ONCE == 0:
                await asyncio.sleep(0)
        self._count_places()

    def _by_edge(self) -> list[tuple[FramedProtocol, list[Request]]]:
        """Edges that have requests, and those."""
        requests: dict[FramedProtocol, list[Request]] = {}
        for (peer, _), request in self.edges.requests.items():
            if (mine := requests.get(peer)) is None:
                requests[peer] = [request]
            else:
                mine.append(request)
        return list(requests.items())

    def _look_at(self, peer: FramedProtocol, requests: Sequence[Request]) -> None:
        """One edge with requests, of which some may have ended since; it may have gone itself."""
        if (pulse := self.edges.pulses.get(peer)) is None:
            return
        pulse.look(peer.bytes_received)
        if pulse.silent_s >= self.silence_s:
            sentence = f"nothing has come from this edge for {self.silence_s:g} s"
            peer.refuse(wire.ErrorCode.TIMEOUT, sentence)
        elif pulse.is_to_be_asked(self.silence_s):
            self.edges.ask(peer)
        for request in requests:
            if not request.ended:
                self._look_after(request)

    def _look_after(self, request: Request) -> None:
        request.look(LOOK_S)
        if not request.owed_s:
            return
        is_reading = request.phase is Phase.READING
        most_s = self.silence_s if is_reading else DRAFTING_SILENCES * self.silence_s
        if request.owed_s >= most_s:
            what = "the rest of its prompt" if is_reading else "its draft"
            sentence = f"{what} has not come for {most_s:g} s"
            peer, number = request.key
            self.edges.refuse(peer, number, wire.ErrorCode.TIMEOUT, sentence)

    def _count_places(self) -> None:
        self._leaving.observe(self.edges.left, LOOK_S)
        self.edges.left = 0

    def tell_line(self) -> None:
        """Tell edges whose requests wait for a place where they stand, and for how long."""
        places: dict[FramedProtocol, list[int]] = {}
        for place, request in enumerate(self.edges.scheduler.waiting, start=1):
            places.setdefault(request.key[0], []).append(place)
        for peer, mine in places.items():
            sentence = f"{len(mine)} of your requests wait, the first as number {mine[0]} in line"
            if self._leaving.per_s:
                sentence += f": about {math.ceil(mine[0] / self._leaving.per_s)} s"
            peer.send(wire.Error(0, wire.ErrorCode.BUSY, fatal=False, sentence=sentence))
