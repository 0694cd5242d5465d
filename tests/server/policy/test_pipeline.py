"""Grants: who drafts, how much and how long, under random events and in known situations."""

import math
import random
from collections.abc import Hashable
from dataclasses import replace

import pytest

from runtime.server.policy.credits import POLICIES, Credits, RoundRobin
from runtime.server.policy.edge_profile import EdgeProfile
from runtime.server.policy.estimators import Mean
from runtime.server.policy.pipeline import Grant, Pipeline
from runtime.server.policy.trial import SLACK_TOKENS
from runtime.server.policy.window import Place
from runtime.server.request import Phase, Request
from runtime.tree import Tree
from runtime.wire.messages import Open, Turn

STEP_S, RTT_S = 0.1, 0.02


def memory_bound(pipeline: Pipeline) -> None:
    """Let it know a machine on which rows cost nothing."""
    for rows in (1, 10, 40, 200):
        for _ in range(4):
            pipeline.load.cost.observe(rows, 0, STEP_S)


class Server:
    """Calls a pipeline as the server's loop does; one step at a time. Requests go by their keys."""

    def __init__(self, pipeline: Pipeline):
        self.pipeline, self.now_s = pipeline, 0.0
        self.requests: dict[Hashable, Request] = {}

    def open(
        self, key: Hashable, max_nodes: int = 32, rtt_s: float | None = RTT_S, user: Hashable = ""
    ) -> None:
        """A request whose prompt has come."""
        edge = EdgeProfile(max_nodes) if rtt_s is None else EdgeProfile(max_nodes, Mean(rtt_s))
        params = Open(1, 0, 0.0, 1.0, 0.0, 0, 1, 1, ())
        request = Request(key, params, 1 << 62, [0], user=user, admitted=True, edge=edge)
        self.requests[key] = request
        self.pipeline.opened(request, self.now_s)

    def close(self, key: Hashable) -> None:
        """The request has gone, in whatever phase."""
        self.pipeline.closed(self.requests.pop(key))
        self.pipeline.check(self.requests.values())

    def start(self, drafted: dict[Hashable, int]) -> dict[Hashable, Grant]:
        """Begin a step with these trees, by their nodes; a draft that has not come does first."""
        for key, nodes in drafted.items():
            request = self.requests[key]
            if nodes and request.draft is None:
                self.arrive(key, nodes, 0.0)
            elif request.draft is None:
                request.line_up(Tree(), self.now_s)
            request.enter_step(0, verify=True)
        verified = [self.requests[key] for key in drafted]
        self.pipeline.step_started(verified, self.rows(drafted), 0, self.now_s)
        return self.credits_due(self.now_s)

    def end(self, drafted: dict[Hashable, int], tokens: int, step_s: float) -> None:
        """The step with these trees is over; no verdict has been told."""
        self.now_s += step_s
        rows = self.rows(drafted)
        self.pipeline.step_ended(len(drafted), rows, 0, tokens, step_s, self.now_s)

    def verdict(self, key: Hashable, accepted: int = 0) -> Grant:
        request = self.requests[key]
        request.leave_step()
        request.advance([0] * accepted, 0)
        return self.pipeline.after_verdict(request, range(1, accepted + 1), self.now_s)

    def step(self, drafted: dict[Hashable, int], accepted: dict[Hashable, int], step_s: float):
        """Verify these trees, by their nodes; the grants that follow, credits included."""
        grants = self.start(drafted)
        self.end(drafted, len(drafted) + sum(accepted.values()), step_s)
        for key in drafted:
            grants[key] = self.verdict(key, accepted.get(key, 0))
        grants.update(self.credits_due(self.now_s))
        self.pipeline.check(self.requests.values())
        return grants

    def credits_due(self, now_s: float) -> dict[Hashable, Grant]:
        return {request.key: grant for request, grant in self.pipeline.credits_due(now_s)}

    def answer(self, key: Hashable, nodes: int, draft_s: float, wait_s: float = RTT_S) -> None:
        """The tree comes after a round trip and the drafting."""
        self.now_s += wait_s + draft_s
        self.arrive(key, nodes, draft_s)

    def arrive(self, key: Hashable, nodes: int, draft_s: float) -> None:
        request = self.requests[key]
        request.line_up(Tree((0,) * nodes, tuple(range(nodes))), self.now_s)
        self.pipeline.draft_arrived(request, draft_s, self.now_s)

    @staticmethod
    def rows(drafted: dict[Hashable, int]) -> int:
        return len(drafted) + sum(drafted.values())


def one_edge(max_nodes: int = 32, credits: Credits | None = None, batch: int = 4) -> Server:
    pipeline = Pipeline(batch, 512, credits or Credits())
    memory_bound(pipeline)
    server = Server(pipeline)
    server.open("a", max_nodes)
    return server


def test_an_edge_without_a_draft_model_is_never_asked() -> None:
    server = one_edge(max_nodes=0)
    for _ in range(100):
        assert server.step({"a": 0}, {}, STEP_S)["a"] == Grant(Turn.SERVER)


def test_nothing_is_asked_before_plain_decoding_is_known() -> None:
    pipeline = Pipeline(4, 512, Credits())
    server = Server(pipeline)
    server.open("a")
    server.start({"a": 0})
    pipeline.step_ended(1, 1, 50, 1, 0.2, 0.2)  # with fifty rows of the prompt
    assert server.verdict("a").turn is Turn.SERVER


def test_on_a_memory_bound_machine_every_node_is_welcome() -> None:
    assert one_edge().step({"a": 0}, {}, STEP_S)["a"].max_nodes == 32


def test_where_rows_cost_time_only_likely_nodes_are() -> None:
    pipeline = Pipeline(4, 512, Credits())
    for rows in (1, 10, 40, 200):
        for _ in range(4):
            pipeline.load.cost.observe(rows, 0, 0.02 + 0.002 * rows)
    server = Server(pipeline)
    server.open("a", 255, 0.001)
    rate_per_s = 1 / 0.022
    grant = server.step({"a": 0}, {}, 0.022)["a"]
    # the n-th node's chance under the prior is 1/(2n); the rate is that of one token a step
    brute = sum(1 / (2 * rank) >= 0.002 * rate_per_s for rank in range(1, 256))
    assert grant.max_nodes == pytest.approx(brute, abs=1)
    assert 2 <= grant.max_nodes <= 10


def test_a_full_step_is_shared_fairly() -> None:
    pipeline = Pipeline(8, 80, Credits())
    memory_bound(pipeline)
    server = Server(pipeline)
    for key in range(8):
        server.open(key, 255)
    grants = server.step(dict.fromkeys(range(8), 0), {}, STEP_S)
    assert all(0 < (1 + grant.max_nodes) * 8 <= 80 for grant in grants.values())


def test_a_lone_edge_chooses_for_itself() -> None:
    server = one_edge()
    for _ in range(20):
        grant = server.step({"a": 32}, {"a": 3}, STEP_S)["a"]
        assert grant.turn is Turn.EDGE
        assert grant.free_s == 0, "a rounding error would say that another step follows"
        assert grant.late_s > STEP_S
        server.answer("a", 32, 0.03)
    assert grant.late_s == math.inf  # it has proven itself


def test_an_edge_may_draft_while_the_others_are_verified() -> None:
    pipeline = Pipeline(1, 512, Credits())
    memory_bound(pipeline)
    server = Server(pipeline)
    for key in "ab":
        server.open(key)
    verifying, waiting = "a", "b"
    server.start({"a": 0})
    for number in range(30):
        server.end({verifying: 32 if number > 1 else 0}, 4, STEP_S)
        grant = server.verdict(verifying, 3)
        # the other one's tree is ready and takes one step; this one must be here when it ends
        assert grant.turn is Turn.EDGE
        if number > 2:
            assert grant.free_s == pytest.approx(STEP_S - RTT_S, abs=0.005)
        server.start({waiting: 32 if number else 0})
        began_s = server.now_s
        server.answer(verifying, 32, grant.free_s or 0.05)
        server.now_s = began_s
        verifying, waiting = waiting, verifying


def test_a_prompt_is_in_line_once() -> None:
    """One that decodes plainly comes again after every step; a prompt does not."""
    server = one_edge(batch=1)
    server.open("b")
    grant = server.step({"a": 0}, {}, STEP_S)["a"]
    assert grant.free_s == pytest.approx(STEP_S - RTT_S)
    assert grant.late_s > STEP_S, "then the server has nothing to begin with"


def test_nobody_waits_for_a_tree_while_others_wait_for_credits() -> None:
    pipeline = Pipeline(1, 512, RoundRobin())
    memory_bound(pipeline)
    server = Server(pipeline)
    for key in "abc":
        server.open(key, user=key)
    server.step(dict.fromkeys("abc", 0), {}, STEP_S)
    server.answer("a", 32, 0.01)
    (grant,) = [g for g in server.step({"a": 32}, {}, STEP_S).values() if g.turn is Turn.EDGE]
    assert grant.late_s == 0.0


def test_nobody_waits_for_the_first_of_several_verdicts() -> None:
    """The others' trees are expected no later, though nothing is known of them yet."""
    pipeline = Pipeline(4, 512, Credits())
    memory_bound(pipeline)
    server = Server(pipeline)
    for key in "ab":
        server.open(key)
    first, second = server.step({"a": 0, "b": 0}, {}, STEP_S).values()
    assert first.late_s == 0.0
    assert 0.0 < second.late_s < STEP_S


def test_a_draft_risks_no_more_than_what_is_left_of_the_slack() -> None:
    pipeline = Pipeline(4, 512, Credits())
    for rows in (1, 10, 40, 200):
        for _ in range(4):
            pipeline.load.cost.observe(rows, 0, 0.1 + 0.001 * rows)
    server, plain_s = Server(pipeline), 0.101
    server.open("a", 255)
    edge = server.requests["a"].edge
    granted = []
    grant = server.step({"a": 0}, {}, plain_s)["a"]
    while grant.turn is Turn.EDGE:  # nothing is ever accepted
        slack_s = edge.trial.slack_tokens * plain_s
        server.answer("a", grant.max_nodes, min(grant.free_s + grant.late_s, 0.1))
        step_s = 0.101 + 0.001 * grant.max_nodes
        granted.append(grant.max_nodes)
        round_s = server.now_s + step_s - edge.verdict_s
        assert round_s - plain_s <= slack_s + 0.005
        grant = server.step({"a": grant.max_nodes}, {}, step_s)["a"]
    assert len(granted) > 1
    assert granted == sorted(granted, reverse=True), "the less it has, the less it risks"


def test_without_the_pipeline_no_time_is_told() -> None:
    pipeline = Pipeline(1, 512, Credits(), pipelined=False)
    memory_bound(pipeline)
    server = Server(pipeline)
    for key in "ab":
        server.open(key, 17)
        assert server.step({key: 0}, {}, STEP_S)[key] == Grant(Turn.EDGE, 17, 0.0, math.inf)


def test_an_edge_that_never_helps_soon_decodes_plainly() -> None:
    server = one_edge()
    turns = []
    for _ in range(200):
        grant = server.step({"a": 32 if turns and turns[-1] is Turn.EDGE else 0}, {}, STEP_S)["a"]
        turns.append(grant.turn)
        if grant.turn is Turn.EDGE:
            server.answer("a", 32, 0.03)
    assert turns[0] is Turn.EDGE
    assert turns.count(Turn.EDGE) < 25


def test_beside_one_that_decodes_plainly_there_are_slots() -> None:
    server = one_edge()
    server.open("b")
    grant = server.step({"b": 0}, {}, STEP_S)["b"]
    while grant.turn is Turn.EDGE:  # its drafts are never accepted
        server.answer("b", 32, 0.03)
        grant = server.step({"b": 32}, {}, STEP_S)["b"]
    for nodes in (0, 32, 32):
        grant = server.step({"a": nodes, "b": 0}, {"a": min(nodes, 3)}, STEP_S)["a"]
        server.answer("a", 32, grant.free_s or 0.03)
    assert grant.free_s == pytest.approx(STEP_S - RTT_S, abs=0.005)


def test_the_round_trip_is_measured_without_the_drafting() -> None:
    server = one_edge()
    for number in range(60):
        server.step({"a": 32}, {"a": 3}, STEP_S)
        server.answer("a", 32, draft_s=0.01 + 0.002 * (number % 7), wait_s=0.033)
    assert server.requests["a"].edge.rtt_s.value == pytest.approx(0.033, rel=0.02)


def test_who_gets_no_credit_waits_until_a_batch_is_taken() -> None:
    pipeline = Pipeline(1, 512, RoundRobin())
    memory_bound(pipeline)
    server = Server(pipeline)
    for key in "abc":
        server.open(key, user=key)
    turns = [grant.turn for grant in server.step(dict.fromkeys("abc", 0), {}, STEP_S).values()]
    assert pipeline.credits.window.size == 1
    assert turns == [Turn.EDGE, Turn.WAIT, Turn.WAIT]
    server.answer("a", 32, 0.01)
    grants = server.step({"a": 32}, {"a": 2}, STEP_S)
    assert grants["b"].turn is Turn.EDGE
    assert grants["a"].turn is Turn.WAIT


def test_who_leaves_before_hearing_of_its_credit_leaves_it_to_the_next() -> None:
    pipeline = Pipeline(1, 512, RoundRobin())
    memory_bound(pipeline)
    server = Server(pipeline)
    for key in "abc":
        server.open(key, user=key)
    server.step(dict.fromkeys("abc", 0), {}, STEP_S)
    server.answer("a", 32, 0.01)
    server.start({"a": 32})
    server.end({"a": 32}, 3, STEP_S)
    assert server.verdict("a", 2).turn is Turn.WAIT
    server.close("b")
    assert list(server.credits_due(server.now_s)) == ["c"]


def test_a_silent_edge_does_not_stop_the_others() -> None:
    pipeline = Pipeline(1, 512, RoundRobin())
    memory_bound(pipeline)
    server = Server(pipeline)
    for key in "ab":
        server.open(key, user=key)
        server.step({key: 0}, {}, STEP_S)
    assert math.isfinite(pipeline.wake_s)
    assert server.credits_due(pipeline.wake_s - 0.001) == {}
    ((key, grant),) = server.credits_due(pipeline.wake_s + 0.001).items()
    assert (key, grant.turn) == ("b", Turn.EDGE)


def test_a_place_is_in_the_step_that_a_tree_can_reach() -> None:
    """Against counting the starts of full steps one after another."""
    for seed in range(60):
        dice = random.Random(seed)
        batch, rtt_s, at = dice.randint(1, 5), dice.uniform(0.0, 0.5), dice.uniform(0.0, STEP_S)
        pipeline = Pipeline(batch, 512, RoundRobin())
        memory_bound(pipeline)
        server = Server(pipeline)
        server.open("a")
        server.step({"a": 4}, {}, STEP_S)
        server.open("b", rtt_s=rtt_s)
        if busy := dice.random() < 0.7:
            server.start({"b": 32})
        starts_s = [2 * STEP_S if busy else STEP_S + at]
        while starts_s[-1] < STEP_S + at + rtt_s:
            starts_s.append(starts_s[-1] + STEP_S)
        begun = 2 if busy else 1
        place = pipeline._place(server.requests["b"], STEP_S + at)
        assert place == Place(begun + len(starts_s), len(starts_s), batch)
        assert place.places == len(starts_s) * batch


def test_a_prompt_that_is_being_verified_is_not_ahead_of_the_next_step() -> None:
    """Nor is it in line: a tree that comes while it is verified can be in the next step."""
    server = one_edge(batch=2)
    pipeline = server.pipeline
    assert server.step({"a": 0}, {}, STEP_S)["a"].turn is Turn.EDGE
    for key in "bc":
        server.open(key)
    server.start({"b": 0, "c": 0})
    free_s, _ = pipeline._slot(server.requests["a"].edge, server.now_s)
    assert free_s == pytest.approx(STEP_S - RTT_S), "just before the prompts' step ends"


def test_where_there_is_a_line_the_verdicts_of_a_step_all_join_it_first() -> None:
    pipeline = Pipeline(2, 512, RoundRobin())
    memory_bound(pipeline)
    server = Server(pipeline)
    for key in "abcdefgh":
        server.open(key, user=key)
    grants = server.step(dict.fromkeys("abcdefgh", 0), {}, STEP_S)
    assert [key for key, grant in grants.items() if grant.turn is Turn.EDGE] == ["a", "b"]
    for key in "ab":
        server.answer(key, 32, 0.0, wait_s=0.0)
    assert list(server.start({"a": 32, "b": 32})) == ["c", "d"]
    server.end({"a": 32, "b": 32}, 2, STEP_S)
    server.close("c")  # who leaves makes room for the next in line, not for who is told first
    for key in "ab":
        assert server.verdict(key) == Grant(Turn.WAIT)
    assert next(iter(server.credits_due(server.now_s))) == "e"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(12))
def test_random_requests_are_always_granted_something_sane(policy: str, seed: int) -> None:
    rng = random.Random(seed)
    batch_size = rng.randint(1, 6)
    pipeline = Pipeline(batch_size, rng.choice([40, 512]), POLICIES[policy]())
    server, next_key, verdicts = Server(pipeline), 0, 0
    nodes: dict[Hashable, int] = {}
    for _ in range(300):
        if rng.random() < 0.1 or not server.requests:
            server.open(next_key, rng.choice([0, 4, 32, 255]), None, rng.choice("ab"))
            nodes[next_key] = 0
            next_key += 1
        if rng.random() < 0.04:
            server.close(rng.choice(sorted(server.requests)))
        for key in [key for key, request in server.requests.items() if request.is_drafting]:
            if rng.random() < 0.6:
                nodes[key] = rng.randint(0, nodes[key])
                server.arrive(key, nodes[key], rng.uniform(0, 0.05))
        ready = [k for k, r in server.requests.items() if r.draft is not None or r.is_plain]
        batch = {key: nodes[key] for key in ready[:batch_size]}
        grants: list[tuple[Hashable, Grant]] = []
        if batch:
            server.start(batch)
            if rng.random() < 0.1:  # one leaves while it is verified, or after
                gone = rng.choice(list(batch))
                server.close(gone)
                del batch[gone]
            server.end(batch, len(batch), 0.01 + 0.001 * server.rows(batch))
            grants = [(key, server.verdict(key, rng.randint(0, nodes[key]))) for key in batch]
            verdicts += len(batch)
        server.now_s += rng.choice([0.0, 0.01, 0.3])
        waiting = {key for key, r in server.requests.items() if r.turn is Turn.WAIT}
        due = server.credits_due(server.now_s)
        assert all(grant.turn is Turn.EDGE for grant in due.values())
        assert due.keys() <= waiting, "a credit for one that waits for none"
        for key, grant in [*grants, *due.items()]:
            assert 0 <= grant.max_nodes <= server.requests[key].edge.max_nodes
            assert 0.0 <= grant.free_s < 60.0
            assert grant.late_s >= 0.0
            assert (grant.max_nodes > 0) == (grant.turn is Turn.EDGE)
            nodes[key] = grant.max_nodes
        pipeline.check(server.requests.values())
    assert verdicts > 100
    for key in list(server.requests):
        server.close(key)
    assert len(pipeline.credits.window) == 0
    pipeline.check([])


def drafts_again(server: Server, rounds: int) -> bool:
    """Whether a request that decodes plainly is told to draft within so many verdicts."""
    for _ in range(rounds):
        server.requests["a"].edge.pinged(RTT_S)
        if server.step({"a": 0}, {}, STEP_S)["a"].turn is Turn.EDGE:
            return True
    return False


def test_drafting_resumes_after_a_first_round_trip_of_four_seconds() -> None:
    """An edge that was not there to answer; the next Ping tells how far away it is."""
    server = one_edge()
    server.requests["a"].edge.pinged(4.0)
    assert server.step({"a": 0}, {}, STEP_S)["a"].turn is Turn.SERVER
    assert drafts_again(server, rounds=1)


@pytest.mark.parametrize("draft_s", [0.0, 60.0])
def test_drafting_resumes_after_a_tree_that_came_a_minute_late(draft_s: float) -> None:
    """On the way or at the edge: it costs the slack, and is forgotten when that is there again."""
    server = one_edge()
    assert server.step({"a": 0}, {}, STEP_S)["a"].turn is Turn.EDGE
    server.now_s += 60.0
    server.arrive("a", 8, draft_s)
    assert server.step({"a": 8}, {}, STEP_S)["a"].turn is Turn.SERVER
    assert not drafts_again(server, rounds=60), "what it cost is made up for first"
    assert drafts_again(server, rounds=10)


def test_drafting_resumes_after_a_text_whose_drafts_were_worth_no_row() -> None:
    """Where rows cost time, an edge none of whose nodes is accepted would never be asked again."""
    pipeline = Pipeline(4, 512, Credits())
    for rows in (1, 10, 40, 200):
        for _ in range(4):
            pipeline.load.cost.observe(rows, 0, STEP_S * (0.9 + 0.1 * rows))
    server = Server(pipeline)
    server.open("a", rtt_s=0.001)
    grant, asked = server.step({"a": 0}, {}, STEP_S)["a"], 0
    while grant.turn is Turn.EDGE:
        asked += 1
        server.answer("a", grant.max_nodes, draft_s=0.001, wait_s=0.001)
        step_s = STEP_S * (1 + 0.1 * grant.max_nodes)
        grant = server.step({"a": grant.max_nodes}, {}, step_s)["a"]
    assert asked, "it was tried"
    assert not drafts_again(server, rounds=60)
    assert drafts_again(server, rounds=10)


def test_what_an_edge_has_shown_is_known_at_its_next_request_and_its_moments_are_not():
    edge = EdgeProfile(max_nodes=32)
    edge.arrived(nodes=8, draft_s=0.3, now_s=0.4)
    edge.verdict_s = edge.grant_s = edge.due_s = 5.0
    edge.trial.drafted(tokens=1, round_tokens=3.5)
    edge.acceptance.observe(8, [])
    later = edge.at_next_request(max_nodes=16)
    assert (later.max_nodes, later.nodes) == (16, 0)
    assert (later.verdict_s, later.grant_s, later.due_s) == (0.0, 0.0, 0.0)
    assert later.draft_s.value == edge.draft_s.value
    assert later.acceptance.accepted(32) == edge.acceptance.accepted(32)
    assert later.trial.slack_tokens == edge.trial.slack_tokens < SLACK_TOKENS
    # another request of the same edge, at the same time, learns for itself
    edge.trial.drafted(tokens=1, round_tokens=3.5)
    assert later.trial.slack_tokens > edge.trial.slack_tokens


def test_a_request_whose_prompt_is_on_the_way_is_in_no_count() -> None:
    server = Server(Pipeline(4, 128, RoundRobin()))
    server.open("read")
    half = Request("half", replace(server.requests["read"].params, prompt_tokens=2), 1 << 62, [0])
    assert half.phase is Phase.READING
    server.pipeline.check([*server.requests.values(), half])
    half.context.append(1)
    with pytest.raises(AssertionError, match="1 of 2"):
        server.pipeline.check([*server.requests.values(), half])
