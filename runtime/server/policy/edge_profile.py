"""What a server learns of one edge, and of the drafts that come from it, while it answers.

Running estimates and the moments they are measured from. Knows no socket and no clock: times are
arguments, in seconds.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace

from runtime.server.policy.estimators import Acceptance, Mean
from runtime.server.policy.objective import Stretch
from runtime.server.policy.trial import Trial

RTT_S, DRAFT_S = 0.02, 0.05  # of an edge of which nothing is known yet
FIRST_HITS, NEXT_HITS = 0.1, 0.5  # of an edge that makes offers, likewise
# Counts of verdicts since an edge is asked for its drafts, or is not asked any more:
BEGINS = 2  # its offers are on their way in time
KNOWN = 8  # it is known what they bring
STALE = 512  # what it was like the other way is long ago
LEAST_GAIN = 0.1  # tokens that offers must add to a step for the edge to go on making them
AT_ONCE_S = 0.002  # takes an edge that has its tree and gets the credit for it
ASKED_SHARE = 0.02  # of a text's time, to ask an edge of which no offer has come what it drafts


@dataclass(slots=True)
class EdgeProfile:
    """Of the edge behind one request."""

    max_nodes: int = 0  # the most it ever drafts; 0 is plain decoding for ever
    rtt_s: Mean = field(default_factory=lambda: Mean(RTT_S))
    makes_offers: bool = False  # without being asked, while the server decodes plainly
    was_right: bool = False  # whether the last verdict accepted a node
    # share of verdicts that accept a node, after one that did not and after one that did
    hits: tuple[Mean, Mean] = field(default_factory=lambda: (Mean(FIRST_HITS), Mean(NEXT_HITS)))
    # while it is not asked: how likely what its offers have below the text that came meanwhile is
    # accepted, how many such nodes a step took along, and how many of these it accepted
    offers: Acceptance = field(default_factory=Acceptance)
    taken: Mean = field(default_factory=lambda: Mean(gain=1 / 16))
    gained: Mean = field(default_factory=lambda: Mean(gain=1 / 16))
    # of an offer, the tokens that it had right from where it began: what its edge would have sent
    # if it had been asked there
    foreseen: Mean = field(default_factory=lambda: Mean(gain=1 / 16))
    asked: bool = False  # for its next draft
    in_a_row: int = 0  # verdicts in which that has not changed
    # whether its last offer came as soon as it could after a verdict; None until one has come
    is_at_once: bool | None = None
    tells_rtt: bool = False  # whether the last round had a tree
    verdict_s: float = 0.0  # when its last verdict left
    grant_s: float = 0.0  # when its last verdict or credit left
    due_s: float = 0.0  # when its tree is expected
    nodes: int = 0  # in its last tree
    worth_nodes: int = 0  # that its next tree may have, as its last verdict found
    draft_s: Mean = field(default_factory=lambda: Mean(DRAFT_S, gain=0.25))  # from the verdict on
    sent_nodes: Mean = field(default_factory=lambda: Mean(gain=0.25))
    round_s: Mean = field(default_factory=lambda: Mean(gain=0.25))  # of rounds with a draft
    acceptance: Acceptance = field(default_factory=Acceptance)
    trial: Trial = field(default_factory=Trial)
    stretch: Stretch = field(default_factory=Stretch)  # of the answer, for the server's objective

    @classmethod
    def of_offers(cls) -> "EdgeProfile":
        """That of an edge that makes offers: it is taken to have at once what it has to send."""
        return cls(makes_offers=True, draft_s=Mean(AT_ONCE_S, gain=0.25))

    def at_next_request(self, max_nodes: int) -> "EdgeProfile":
        """What is known of the same edge when it begins another request: all but the moments.

        So what its drafts are worth here is found out once, and not in every answer. But where it
        has them at once, since it looks them up, each text has its own worth: what was a summary's
        would be lost by an answer that repeats nothing.
        """
        known = deepcopy(self)
        if self.makes_offers and not self.takes_time:
            known.forget()
            known.draft_s, fresh = deepcopy(self.draft_s), EdgeProfile()
            known.hits, known.foreseen, known.trial = fresh.hits, fresh.foreseen, fresh.trial
        return replace(
            known,
            max_nodes=max_nodes,
            in_a_row=0,
            tells_rtt=False,
            verdict_s=0.0,
            grant_s=0.0,
            due_s=0.0,
            nodes=0,
            worth_nodes=0,
            was_right=False,
            stretch=Stretch(),
        )

    def pinged(self, rtt_s: float) -> None:
        """Its last Pings took so long; that counts unless a tree has told it in the last round.

        Without this, what one late tree made of it would stay: no trees come any more to mend it.
        """
        if not self.tells_rtt:
            self.rtt_s = Mean(rtt_s)
        self.tells_rtt = False

    def is_worth_asking(self, plain_s: float) -> bool:
        """Whether to wait for its draft now, where one token of plain decoding takes `plain_s`.

        One that makes its offers at once, as it looks them up, has the same to offer unasked, only
        a step later: asking gains one token as often as it is right, and costs the way there and
        back. One whose offers come later has a model, and may be worth its time although its offers
        come too late. One that has offered nothing may be either: asking once tells, as soon as a
        round is short beside the text that has been decoded without asking.
        """
        if not self.makes_offers or self.takes_time:
            return True
        round_s = self.rtt_s.value + self.draft_s.value
        if self.rests and self.draft_s.count <= 1:
            if self.is_at_once is None:
                return round_s <= ASKED_SHARE * self.in_a_row * plain_s
            if not self.is_at_once:
                return True
        return round_s <= self.hits[self.was_right].value * plain_s

    def judged(self, accepted: bool) -> None:
        """A verdict accepted a node, or none."""
        self.hits[self.was_right].observe(accepted)
        self.was_right = accepted

    def offered(self, ranks: Sequence[int]) -> None:
        """A verdict accepted nodes of these ranks, of the `nodes` that it had offered unasked."""
        self.offers.observe(self.nodes, ranks)
        if self.in_a_row >= BEGINS:
            self.taken.observe(self.nodes)
            self.gained.observe(len(ranks))

    def offer_came(self, age_s: float) -> None:
        """One came so long after the verdict that it goes on from."""
        self.is_at_once = age_s <= self.rtt_s.value + AT_ONCE_S

    def decided(self, asked: bool) -> None:
        """It is asked for the next draft, or not."""
        self.in_a_row = self.in_a_row + 1 if asked is self.asked else 0
        self.asked = asked
        if self.in_a_row == STALE:
            self.in_a_row = BEGINS
            if asked:
                self.taken, self.gained = Mean(gain=1 / 16), Mean(gain=1 / 16)
            else:
                self.round_s = Mean(gain=0.25)

    @property
    def takes_time(self) -> bool:
        """Whether it is known to draft by passes of a model, and not at once."""
        return self.draft_s.count > 1 and self.draft_s.value > AT_ONCE_S

    @property
    def rests(self) -> bool:
        """Whether it has offered for a while, and nearly nothing of it was of use."""
        return self.gained.count >= KNOWN and self.gained.value < LEAST_GAIN

    def forget(self) -> None:
        """It is tried anew: a machine that was busy, a tree that came late and a text whose drafts
        were not worth their rows are of the past."""
        self.draft_s = Mean(min(self.draft_s.value, DRAFT_S), gain=0.25)
        self.round_s = Mean(gain=0.25)
        self.acceptance, self.offers = Acceptance(), Acceptance()
        self.taken, self.gained = Mean(gain=1 / 16), Mean(gain=1 / 16)

    def arrived(self, nodes: int, draft_s: float, now_s: float) -> None:
        """A tree of `nodes` drafted nodes has come, after `draft_s` at the edge."""
        self.nodes = nodes
        self.sent_nodes.observe(nodes)
        self.rtt_s.observe(max(now_s - self.grant_s - draft_s, 0.0))
        self.tells_rtt = True
        waited_s = self.grant_s - self.verdict_s
        if waited_s == 0 or draft_s > AT_ONCE_S:  # else it was drafted before the credit came
            self.draft_s.observe(waited_s + draft_s)

    def wanted_s(self, now_s: float) -> float:
        """How much longer it drafts, if it drafts as long as usual."""
        return max(self.draft_s.value - (now_s - self.verdict_s), 0.0)
