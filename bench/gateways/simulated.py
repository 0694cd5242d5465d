"""Scenarios by the simulation of the server's pipeline, which here gives credits at any time."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from bench.gateways.gated import Gated
from bench.gateways.scenarios import LEAVES_S, Site
from bench.gateways.schemes import Scheme, gateway_of
from bench.scheduler import CROWD_STEP_S
from runtime.bench.simulation import Accelerator, Device, Record, Simulation
from runtime.server.policy.credits import Credits
from runtime.server.policy.pipeline import Grant


class WithGateways(Simulation):
    """Sessions behind the gateway `leaves` end at LEAVES_S, when they may draft again."""

    def __init__(
        self,
        accelerator: Accelerator,
        devices: Sequence[Device],
        credits: Credits,
        seed: int,
        leaves: Collection[int] = (),
    ) -> None:
        super().__init__(accelerator, devices, credits, seed=seed)
        self._leaves = leaves
        self._wakes_s = math.inf

    def _draft(self, number: int, draft_s: float) -> None:
        super()._draft(number, draft_s)
        self._send_credits()

    def _send_credits(self) -> None:
        """As the server: when something has happened, and when the policy wants to be woken."""
        super()._send_credits()
        if (wake_s := self.pipeline.wake_s) < self._wakes_s:
            self._wakes_s = wake_s
            self._at(wake_s, self._wake, wake_s)

    def _wake(self, due_s: float) -> None:
        if due_s == self._wakes_s:
            self._wakes_s = math.inf
            self._send_credits()

    def _edge_drafts(self, number: int, grant: Grant, granted_s: float) -> None:
        gateway = gateway_of(self.trips[number].device.user)
        if gateway in self._leaves and self._now_s > LEAVES_S:
            self.pipeline.closed(self.requests[number])
            self._at(self._now_s, self._send_credits)  # its place is free
        else:
            super()._edge_drafts(number, grant, granted_s)


@dataclass
class Simulated:
    """Runs scenarios with one scheme and one draw."""

    scheme: Scheme
    edges: int
    seconds: float
    near_s: float
    seed: int
    _offers_per_s: float = field(default=0.0, init=False)

    def run(
        self, site: Site, devices: Sequence[Device], seconds: float, warm_up_s: float
    ) -> Record:
        accelerator = Accelerator(((1, CROWD_STEP_S),), site.batch, noise=0.02)
        per_s = site.batch / CROWD_STEP_S
        credits = self.scheme.credits(site.rtts_s, site.greedy, per_s, self.seed)
        leaves = () if site.leaves is None else (site.leaves,)
        simulation = WithGateways(accelerator, devices, credits, self.seed, leaves)
        record = simulation.run(seconds, warm_up_s)
        offers = sum(g.offers for g in credits.gateways) if isinstance(credits, Gated) else 0
        self._offers_per_s = offers / seconds
        return record

    @property
    def offers_per_s(self) -> float:
        return self._offers_per_s
