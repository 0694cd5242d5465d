"""python -m bench.lookup_replay: drafts without a model by counts, on a clock of our own.

The target's own texts are asked for once. Then the real drafter and the server's real policy go
through them again, in the simulation of bench/scheduler.py: what the target says is known, and a
step takes what its rows take on that accelerator. So the same figures come out on any machine,
however busy. Speeds are plain decoding's time by that with drafts, behind the first token: above 1
drafts pay. "fresh" is a new edge for every answer, which the server does not know yet; "one edge"
answers all questions, one after another. Edges send Offers; "asked" is one that only drafts when
the server asks it for that, as before a server knew Offers.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from bench.harness import option_parser, report, whole_number
from bench.lookup import HOSTILE, hostile
from bench.scheduler import CPU_POINTS
from runtime.bench.attempt import attempt
from runtime.bench.prompts import SHIPPED, read_questions
from runtime.bench.simulation import Accelerator, Device, Simulation, Trip
from runtime.config import NO_MODEL, EdgeConfig
from runtime.demo import server_process
from runtime.edge.client import Edge
from runtime.edge.draft.lookup_drafter import LookupDrafter
from runtime.edge.draft.offering import Offering, ahead
from runtime.edge.draft.speculation import Noise, Pass, Proactive, Speculation, TreeShape
from runtime.edge.draft.suffixes import Earlier
from runtime.server.policy.credits import RoundRobin
from runtime.server.policy.edge_profile import EdgeProfile
from runtime.server.policy.estimators import Mean
from runtime.server.policy.pipeline import Grant
from runtime.tree import Tree
from runtime.wire.messages import Offer

ACCELERATORS = {  # rows and seconds of a step
    "SmolLM2, one core, float32": Accelerator(CPU_POINTS, 32),
    "SmolLM2, one core, Q5_1": Accelerator(((1, 0.0095), (2, 0.0112), (5, 0.013), (9, 0.017)), 32),
    "rows cost nothing": Accelerator(((1, 0.03),), 32),
}
RTTS_S = (0.0006, 0.015)
LOOKING_UP_S = 0.0004
MOST_TOKENS = EdgeConfig().earlier_tokens
SHAPE = TreeShape(max_budget=32, max_n_beams=6, max_beam_len=6, max_branch_width=6)
FOREVER_S = 1e9
COLUMNS = ("step", "round trip", "edges", "asked", "nothing", "nodes", "accepted")
WAYS = (("asked", True, False), ("fresh", True, True), ("one edge", False, True))


@dataclass(frozen=True)
class Text:
    """What was asked and what the target says, in its tokens."""

    task: str
    prompt: Sequence[int]
    answer: Sequence[int]


@dataclass
class Counts:
    """Of answers; times are those of the simulation."""

    asked: int = 0  # rounds in which the edge had the turn
    nothing: int = 0  # of these, without a draft
    nodes: int = 0
    accepted: int = 0
    plain_s: float = 0.0
    drafted_s: float = 0.0

    def add(self, other: "Counts") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def speed(self) -> float:
        return self.plain_s / self.drafted_s


@dataclass
class Reader(Trip):
    """An edge that drafts by lookup for a text that is known."""

    drafter: LookupDrafter = field(default_factory=lambda: LookupDrafter(Earlier(MOST_TOKENS)))
    known: Text = Text("", (), ())
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        context, limit = list(self.known.prompt), len(self.known.prompt) + len(self.known.answer)
        self.at_once, self.pace.pass_s = True, 0.0
        self.speculation = Speculation(context, limit, SHAPE, Proactive.MULTI, Noise(), sys.maxsize)
        self.path: list[int] = []
        self._offering, self._taken = Offering(at_once=True), Tree()
        self._told_s: float | None = None  # when a verdict came after which the server decodes on

    def text(self, last: int, tokens: int) -> Sequence[int]:
        """Of the prompt its last token, and then what the target has said."""
        if last < 0:
            return self.known.prompt[-1:]
        return self.known.answer[self.tokens - tokens : self.tokens]

    def draft(self, grant: Grant, granted_s: float) -> None:
        self._grow(grant.max_nodes)
        self.nodes = len(self.speculation.send(grant.max_nodes))
        self.sent_s = self.used_s = granted_s + LOOKING_UP_S
        self.counts.add(Counts(asked=1, nothing=not self.nodes, nodes=self.nodes))

    def offer(self) -> Offer | None:
        """As `Exchange.offer`."""
        self._grow(SHAPE.max_budget)
        while frontier := self.speculation.frontier_to_offer():
            self.drafter.run([Pass(self.speculation, frontier)])
        self.sent_s = self.received_s + LOOKING_UP_S
        steps = ahead(LOOKING_UP_S + self.device.rtt_s, self.pace.round_s)
        tree = self._offering.next(self.speculation, steps)
        if tree is None:
            return None
        base = len(self.speculation.context) - len(self.known.prompt) + 1
        return Offer(1, base, tree.tokens, tree.parents)

    def take(self, tree: Tree) -> None:
        super().take(tree)
        self._taken = tree
        if self.plain:
            self.counts.add(Counts(nodes=len(tree)))

    def _grow(self, max_nodes: int) -> None:
        while frontier := self.speculation.frontier(max_nodes):
            self.drafter.run([Pass(self.speculation, frontier)])

    def luck(self, quality: float, rng: Random) -> list[int]:
        """Ranks of the nodes of its draft, or offer, that the text goes through."""
        tree = self._taken if self.plain else self.speculation.sent
        self.path = []
        edges = zip(tree.parents, tree.tokens, strict=True)
        ways = {edge: node for node, edge in enumerate(edges, 1)}
        for token in self.known.answer[self.tokens : -1]:
            node = ways.get((self.path[-1] if self.path else 0, token))
            if node is None:
                break
            self.path.append(node)
        self.counts.accepted += len(self.path)
        return tree.ranks(self.path)

    def answered(self, accepted: int, step_s: float, now_s: float) -> None:
        super().answered(accepted, step_s, now_s)
        if self.plain:
            if self._told_s is not None:
                self.pace.saw_round(self.received_s - self._told_s)
            self._told_s = self.received_s
            for token in self.text(0, accepted + 1):
                self.speculation.commit(0, token)
            return
        self._told_s = None
        while frontier := self.speculation.frontier_ahead():
            self.drafter.run([Pass(self.speculation, frontier)])
        bonus = self.known.answer[self.tokens - 1]
        self.speculation.commit(self.path[-1] if self.path else 0, bonus)


class OneText(Simulation):
    """Ends with the answer of its only edge."""

    def _verdict(self, number: int, ranks: Sequence[int], step_s: float) -> None:
        trip = self.trips[number]
        assert isinstance(trip, Reader)
        if trip.tokens + len(ranks) + 1 < len(trip.known.answer):
            super()._verdict(number, ranks, step_s)
        else:
            trip.answered(len(ranks), step_s, self._now_s)
            self._events.clear()


def main() -> int:
    parser = option_parser("bench.lookup_replay", __doc__)
    parser.add_argument("--prompts", type=Path, default=SHIPPED, metavar="FILE")
    parser.add_argument("--per-task", type=whole_number, default=2)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--max-tokens", type=whole_number, default=128)
    options = parser.parse_args()
    texts = read_texts(options.model, options.prompts, options.per_task, options.max_tokens)
    tasks = [*dict.fromkeys(text.task for text in texts)]
    rows, numbers = [], {}
    for name, accelerator in ACCELERATORS.items():
        for rtt_s in RTTS_S:
            for edges, fresh, offers in WAYS:
                counts = replay(texts, accelerator, rtt_s, fresh, offers)
                total = Counts()
                for count in counts.values():
                    total.add(count)
                speeds = [*(counts[task].speed for task in tasks), total.speed]
                told = (total.asked, total.nothing, total.nodes, total.accepted)
                where = (name, f"{rtt_s * 1e3:g} ms", edges)
                rows.append((*where, *map(str, told), *(f"{speed:.3f}" for speed in speeds)))
                numbers[", ".join(where)] = total.speed
    report("drafts by lookup", (*COLUMNS, *tasks, "all"), rows, numbers, options.json)
    return 0


def read_texts(model: str, prompts: Path, per_task: int, max_tokens: int) -> list[Text]:
    """The target's answers, plainly decoded."""
    texts = []
    with server_process("--model", model, "--port", "0") as (address, _):
        config = EdgeConfig(
            server=address, draft=NO_MODEL, tokenizer=model, max_tokens=max_tokens, max_budget=0
        )
        with Edge(config) as edge:
            for question in [*read_questions(prompts, per_task), *hostile(per_task)]:
                hot = {"temperature": 1.5, "seed": 7} if question.task == HOSTILE else {}
                answer = edge.generate(question.text, **hot)
                if answer.text:
                    prompt = edge.encode(question.text)
                    texts.append(Text(question.task, prompt, answer.tokens))
    return texts


def replay(
    texts: Sequence[Text], accelerator: Accelerator, rtt_s: float, fresh: bool, offers: bool
) -> dict[str, Counts]:
    """What drafting for the texts was worth, by task."""
    counts: dict[str, Counts] = {}
    drafter, edge = LookupDrafter(Earlier(MOST_TOKENS)), _stranger(rtt_s, offers)
    for text in texts:
        if fresh:
            drafter, edge = LookupDrafter(Earlier(MOST_TOKENS)), _stranger(rtt_s, offers)
        device = Device(rtt_s, LOOKING_UP_S)
        trip = Reader(device, makes_offers=offers, drafter=drafter, known=text)
        edge = written(trip, accelerator, edge.at_next_request(SHAPE.max_budget))
        drafter.finish(trip.speculation)
        first_s, last_s = trip.verdicts[0][0], trip.verdicts[-1][0]
        plain_s = (len(text.answer) - trip.verdicts[0][1]) * accelerator.step_s(1)
        trip.counts.add(Counts(plain_s=plain_s, drafted_s=last_s - first_s))
        counts.setdefault(text.task, Counts()).add(trip.counts)
    return counts


def written(trip: Reader, accelerator: Accelerator, edge: EdgeProfile) -> EdgeProfile:
    """Let an edge write its answer; what the server knows of it then."""
    simulation = OneText(accelerator, [trip.device], RoundRobin(), trip=lambda _: trip)
    simulation.requests[0].edge = edge
    simulation.run(FOREVER_S)
    return edge


def _stranger(rtt_s: float, offers: bool) -> EdgeProfile:
    """An edge of which a Ping has told how far away it is, and nothing else is known."""
    edge = EdgeProfile.of_offers() if offers else EdgeProfile()
    edge.max_nodes, edge.rtt_s = SHAPE.max_budget, Mean(rtt_s)
    return edge


if __name__ == "__main__":
    sys.exit(attempt("bench.lookup_replay", main))
