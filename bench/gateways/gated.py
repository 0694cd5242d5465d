"""`xpass` between gateways: each offers at its own rate, a gate drops what is too much.

    session ─ wants ─▶ gateway ─ offers, at the rate of its feedback ─▶ gate ─ queue ─▶ window
       ▲                 │  ▲                                           │ full: dropped
       └──── credit ─────┘  └──────────── granted or lost ──────────────┘

The gate passes on the offer at its head as soon as the server's window has a place for it, and
knows neither users nor gateways. A gateway goes round its own users and knows no other gateway.
What is simplified is so in favour of `xpass`: an offer names its session, so that it gets the place
that its round trip needs and no credit comes to a gateway without use for it; capacity is known.

Knows no clock; the time is an argument.
Source: ExpressPass (arXiv:1610.04688): a gateway is its receiver, the accelerator the link.
"""

import heapq
import itertools
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from bench.gateways.feedback import Feedback
from runtime.server.policy.credits import Credits
from runtime.server.policy.window import Place
from runtime.server.request import Request

JITTER = 0.1  # of the time between two offers, as in the paper


@dataclass
class Gateway:
    """Who wants what behind one gateway, and what became of its offers in this period.

    rtt_s       to the gate and back
    period_s    from one feedback to the next
    per_user    it offers as often as one flow for each of its users
    is_greedy   it offers at the same rate whatever it loses
    """

    rtt_s: float
    feedback: Feedback
    period_s: float
    per_user: bool = False
    is_greedy: bool = False
    requests: Counter[Hashable] = field(default_factory=Counter)  # of each user
    wanting: dict[Hashable, deque[Request]] = field(default_factory=dict)  # users in turn
    offers: int = 0
    granted: int = 0
    lost: int = 0
    next_offer_s: float = 0.0
    is_offering: bool = False  # its next offer has a time

    @property
    def flows(self) -> int:
        return max(len(self.requests), 1) if self.per_user else 1

    def take_next(self) -> Request:
        """The first request of the user whose turn it is, who goes behind the others."""
        user = next(iter(self.wanting))
        requests = self.wanting.pop(user)
        request = requests.popleft()
        if requests:
            self.wanting[user] = requests
        return request

    def update(self) -> None:
        """The period is over."""
        if (self.granted or self.lost) and not self.is_greedy:
            self.feedback.update(self.granted / self.flows, self.lost / self.flows, self.period_s)
        self.granted = self.lost = 0


class Gated(Credits):
    """Credits by a gate of `gate_offers` places; `gateway_of` says behind which one a user is."""

    def __init__(
        self,
        gateways: Sequence[Gateway],
        gateway_of: Callable[[Hashable], int],
        gate_offers: int,
        seed: int = 0,
    ) -> None:
        super().__init__(size=0)
        self.gateways = gateways
        self._gateway_of, self._gate_offers = gateway_of, gate_offers
        self._rng = random.Random(seed)
        self._gate: deque[Request] = deque()
        self._told: list[Request] = []  # that want a credit; no gateway knows yet
        self._waiting: set[Request] = set()  # that want one, whoever knows
        self._events: list[tuple[float, int, Callable[..., None], Gateway, Request | None]] = []
        self._order = itertools.count()

    def opened(self, request: Request) -> None:
        super().opened(request)
        self._gateway(request).requests[request.user] += 1

    def closed(self, request: Request) -> None:
        super().closed(request)
        gateway = self._gateway(request)
        gateway.requests[request.user] -= 1
        gateway.requests += Counter()  # without users that have none
        self._waiting.discard(request)

    def want(self, request: Request) -> None:
        self._waiting.add(request)
        self._told.append(request)

    def give(self, now_s: float, place_of: Callable[[Request], Place]) -> list[Request]:
        self.window.expire(now_s)
        if not self._events:  # the first time
            for gateway in self.gateways:
                self._at(now_s + gateway.period_s, self._update, gateway)
        for request in self._told:
            gateway = self._gateway(request)
            self._at(now_s + gateway.rtt_s / 2, self._want, gateway, request)
        self._told.clear()
        given = self._pass_on(now_s, place_of)
        while self._events[0][0] <= now_s:
            at_s, _, happen, gateway, about = heapq.heappop(self._events)
            happen(at_s, gateway, about)
            given += self._pass_on(now_s, place_of)
        return given

    @property
    def wanted(self) -> bool:
        return bool(self._waiting)

    @property
    def wake_s(self) -> float:
        return min(self.window.expires_s, self._events[0][0]) if self.wanted else math.inf

    def _arrive(self, now_s: float, gateway: Gateway, request: Request) -> None:
        if len(self._gate) < self._gate_offers:
            self._gate.append(request)
        else:
            self._at(now_s + gateway.rtt_s / 2, self._lost, gateway, request)

    def _pass_on(self, now_s: float, place_of: Callable[[Request], Place]) -> list[Request]:
        given: list[Request] = []
        while self._gate:
            request = self._gate[0]
            if request in self._waiting:  # it has not ended meanwhile
                if not self.window.has(place := place_of(request)):
                    break
                self._waiting.remove(request)
                self.window.take(request, place)
                gateway = self._gateway(request)
                self._at(now_s + gateway.rtt_s / 2, self._granted, gateway)
                given.append(request)
            self._gate.popleft()
        return given

    def _want(self, now_s: float, gateway: Gateway, request: Request) -> None:
        if request in self._waiting:
            gateway.wanting.setdefault(request.user, deque()).append(request)
            self._offer_next(now_s, gateway)

    def _granted(self, now_s: float, gateway: Gateway, _: None) -> None:
        gateway.granted += 1

    def _lost(self, now_s: float, gateway: Gateway, request: Request) -> None:
        """The gate has dropped its offer: it is its user's first again."""
        gateway.lost += 1
        if request in self._waiting:
            gateway.wanting.setdefault(request.user, deque()).appendleft(request)
            self._offer_next(now_s, gateway)

    def _offer_next(self, now_s: float, gateway: Gateway) -> None:
        if gateway.wanting and not gateway.is_offering:
            gateway.is_offering = True
            self._at(max(now_s, gateway.next_offer_s), self._offer, gateway)

    def _offer(self, now_s: float, gateway: Gateway, _: None) -> None:
        self._at(now_s + gateway.rtt_s / 2, self._arrive, gateway, gateway.take_next())
        gap_s = 1 / (gateway.feedback.per_s * gateway.flows)
        gateway.next_offer_s = now_s + gap_s * self._rng.uniform(1 - JITTER, 1 + JITTER)
        gateway.offers += 1
        gateway.is_offering = False
        self._offer_next(now_s, gateway)

    def _update(self, now_s: float, gateway: Gateway, _: None) -> None:
        gateway.update()
        self._at(now_s + gateway.period_s, self._update, gateway)

    def _gateway(self, request: Request) -> Gateway:
        return self.gateways[self._gateway_of(request.user)]

    def _at(
        self,
        time_s: float,
        happen: Callable[..., None],
        gateway: Gateway,
        request: Request | None = None,
    ) -> None:
        heapq.heappush(self._events, (time_s, next(self._order), happen, gateway, request))
