"""What does not come: edges that are silent, and those that owe something for too long.

Also who waits in line is told from time to time where it stands.
"""

import asyncio
import itertools
import math
from dataclasses import dataclass, field

from runtime.server.edges import Edges
from runtime.server.policy.estimators import Rate
from runtime.server.pulse import LOOK_S
from runtime.server.request import Phase
from runtime.wire import messages as wire
from runtime.wire.tcp import FramedProtocol

# A draft model may take minutes for a long prompt; meanwhile its edge answers Pings.
DRAFTING_SILENCES = 10
TELL_LOOKS = 5  # between two words to those who wait in line


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
            self.look()
            if count % TELL_LOOKS == 0:
                self.tell_line()

    def look(self) -> None:
        """End what edges hold that are silent, or that owe something for too long."""
        silence_s, pulses = self.silence_s, self.edges.pulses
        for peer in {request.key[0]: None for request in self.edges.requests.values()}:
            pulses[peer].look(peer.bytes_received)
            if pulses[peer].silent_s >= silence_s:
                sentence = f"nothing has come from this edge for {silence_s:g} s"
                peer.refuse(wire.ErrorCode.TIMEOUT, sentence)
            elif not pulses[peer].has_drafted:
                self.edges.ask(peer)
        for request in [*self.edges.requests.values()]:
            request.look(LOOK_S)
            is_reading = request.phase is Phase.READING
            most_s = silence_s if is_reading else DRAFTING_SILENCES * silence_s
            if request.owed_s >= most_s:
                what = "the rest of its prompt" if is_reading else "its draft"
                sentence = f"{what} has not come for {most_s:g} s"
                peer, number = request.key
                self.edges.refuse(peer, number, wire.ErrorCode.TIMEOUT, sentence)
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
