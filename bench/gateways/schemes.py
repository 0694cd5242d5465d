"""The policies that are compared, made for gateways at given distances."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from bench.gateways.feedback import Feedback
from bench.gateways.gated import Gated, Gateway
from bench.scheduler import CROWD_BATCH, CROWD_STEP_S
from runtime.server.policy.credits import Credits, RoundRobin

CAPACITY_PER_S = CROWD_BATCH / CROWD_STEP_S


@dataclass(frozen=True)
class Scheme:
    """`xpass` of these parameters; without offers at the gate, `drr` of the server."""

    name: str
    gate_offers: int = 0
    period_s: float = 0.1
    per_user: bool = False

    def credits(
        self,
        rtts_s: Sequence[float],
        greedy: int | None = None,
        per_s: float = CAPACITY_PER_S,
        seed: int = 0,
    ) -> Credits:
        """For gateways so far from the server, which verifies `per_s` trees a second.

        The gateway number `greedy` offers at twice capacity whatever it loses.
        """
        if not self.gate_offers:
            return RoundRobin()
        gateways = [
            Gateway(rtt_s, Feedback(per_s / 2, per_s), max(self.period_s, rtt_s), self.per_user)
            for rtt_s in rtts_s
        ]
        if greedy is not None:
            rate = Feedback(2 * per_s, per_s)
            gateways[greedy] = Gateway(rtts_s[greedy], rate, self.period_s, is_greedy=True)
        return Gated(gateways, gateway_of, self.gate_offers, seed)


def gateway_of(user: Hashable) -> int:
    """Users are called NUMBER OF THEIR GATEWAY-NAME."""
    return int(str(user).partition("-")[0])


DRR = Scheme("drr")
XPASS = Scheme("xpass", gate_offers=8)
BEST = Scheme("xpass, best", gate_offers=16, per_user=True)
SCHEMES = (DRR, XPASS, Scheme("xpass, users", gate_offers=8, per_user=True), BEST)
