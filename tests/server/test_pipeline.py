"""Grants: who drafts, how much and how long, under random events and in known situations."""

import math
import random
from collections.abc import Hashable

import pytest

from runtime.server.credits import POLICIES, Credits, Place, RoundRobin
from runtime.server.pipeline import Grant, Pipeline
from runtime.wire.messages import Turn

STEP_S, RTT_S = 0.1, 0.02


def memory_bound(pipeline: Pipeline) -> None:
    """Let it know a machine on which rows cost nothing."""
    for rows in (1, 10, 40, 200):
        for _ in range(4):
            pipeline.cost.observe(rows, 0, STEP_S)


class Server:
    """Calls a pipeline as the server's loop does; one step at a time."""

    def __init__(self, pipeline: Pipeline):
        self.pipeline, self.now_s = pipeline, 0.0

    def step(self, drafted: dict[Hashable, int], accepted: dict[Hashable, int], step_s: float):
        """Verify these trees, by their nodes; the grants that follow, credits included."""
        rows = len(drafted) + sum(drafted.values())
        self.pipeline.step_started(drafted, rows, 0, self.now_s)
        grants = dict(self.pipeline.credits_due(self.now_s))
        self.now_s += step_s
        tokens = len(drafted) + sum(accepted.values())
        self.pipeline.step_ended(len(drafted), rows, 0, tokens, step_s, self.now_s)
        for key in drafted:
            grants[key] = self.pipeline.after_verdict(key, accepted.get(key, 0), self.now_s)
        grants.update(self.pipeline.credits_due(self.now_s))
        return grants

    def answer(self, key: Hashable, nodes: int, draft_s: float, wait_s: float = RTT_S) -> None:
        """The tree comes after a round trip and the drafting."""
        self.now_s += wait_s + draft_s
        self.pipeline.draft_arrived(key, nodes, draft_s, self.now_s)


def one_edge(max_nodes: int = 32, credits: Credits | None = None, batch: int = 4) -> Server:
    pipeline = Pipeline(batch, 512, credits or Credits())
    memory_bound(pipeline)
    pipeline.opened("a", max_nodes, RTT_S, 0.0)
    return Server(pipeline)


def test_an_edge_without_a_draft_model_is_never_asked() -> None:
    server = one_edge(max_nodes=0)
    for _ in range(100):
        assert server.step({"a": 0}, {}, STEP_S)["a"] == Grant(Turn.SERVER)


def test_nothing_is_asked_before_plain_decoding_is_known() -> None:
    pipeline = Pipeline(4, 512, Credits())
    pipeline.opened("a", 32, RTT_S, 0.0)
    pipeline.step_started(["a"], 1, 50, 0.0)
    pipeline.step_ended(1, 1, 50, 1, 0.2, 0.2)
    assert pipeline.after_verdict("a", 0, 0.2).turn is Turn.SERVER


def test_on_a_memory_bound_machine_every_node_is_welcome() -> None:
    assert one_edge().step({"a": 0}, {}, STEP_S)["a"].max_nodes == 32


def test_where_rows_cost_time_only_likely_nodes_are() -> None:
    pipeline = Pipeline(4, 512, Credits())
    for rows in (1, 10, 40, 200):
        for _ in range(4):
            pipeline.cost.observe(rows, 0, 0.02 + 0.002 * rows)
    pipeline.opened("a", 255, 0.001, 0.0)
    server = Server(pipeline)
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
        pipeline.opened(key, 255, RTT_S, 0.0)
    grants = server.step(dict.fromkeys(range(8), 0), {}, STEP_S)
    assert all(0 < (1 + grant.max_nodes) * 8 <= 80 for grant in grants.values())


def test_a_lone_edge_chooses_for_itself() -> None:
    server = one_edge()
    for _ in range(20):
        grant = server.step({"a": 32}, {"a": 3}, STEP_S)["a"]
        assert grant.turn is Turn.EDGE
        assert grant.draft_s == pytest.approx(0.0)
        assert grant.late_s > STEP_S
        server.answer("a", 32, 0.03)
    assert grant.late_s == math.inf  # it has proven itself


def test_an_edge_may_draft_while_the_others_are_verified() -> None:
    pipeline = Pipeline(1, 512, Credits())
    memory_bound(pipeline)
    for key in "ab":
        pipeline.opened(key, 32, RTT_S, 0.0)
    server = Server(pipeline)
    verifying, waiting = "a", "b"
    for number in range(30):
        grant = server.step({verifying: 32 if number > 1 else 0}, {verifying: 3}, STEP_S)[verifying]
        # the other one's tree is ready and takes one step; this one must be here when it ends
        assert grant.turn is Turn.EDGE
        if number > 2:
            assert grant.draft_s == pytest.approx(STEP_S - RTT_S, abs=0.005)
        pipeline.step_started([waiting], 33, 0, server.now_s)
        draft_s = grant.draft_s or 0.05
        pipeline.draft_arrived(verifying, 32, draft_s, server.now_s + RTT_S + draft_s)
        verifying, waiting = waiting, verifying


def test_a_prompt_is_in_line_once() -> None:
    """One that decodes plainly comes again after every step; a prompt does not."""
    server = one_edge(batch=1)
    server.pipeline.opened("b", 32, RTT_S, 0.0)
    grant = server.step({"a": 0}, {}, STEP_S)["a"]
    assert grant.draft_s == pytest.approx(STEP_S - RTT_S)
    assert grant.late_s > STEP_S, "then the server has nothing to begin with"


def test_nobody_waits_for_a_tree_while_others_wait_for_credits() -> None:
    pipeline = Pipeline(1, 512, RoundRobin())
    memory_bound(pipeline)
    server = Server(pipeline)
    for key in "abc":
        pipeline.opened(key, 32, RTT_S, 0.0, user=key)
    server.step(dict.fromkeys("abc", 0), {}, STEP_S)
    server.answer("a", 32, 0.01)
    (grant,) = [g for g in server.step({"a": 32}, {}, STEP_S).values() if g.turn is Turn.EDGE]
    assert grant.late_s == 0.0


def test_nobody_waits_for_the_first_of_several_verdicts() -> None:
    """The others' trees are expected no later, though nothing is known of them yet."""
    pipeline = Pipeline(4, 512, Credits())
    memory_bound(pipeline)
    for key in "ab":
        pipeline.opened(key, 32, RTT_S, 0.0)
    first, second = Server(pipeline).step({"a": 0, "b": 0}, {}, STEP_S).values()
    assert first.late_s == 0.0
    assert 0.0 < second.late_s < STEP_S


def test_a_draft_risks_no_more_than_what_is_left_of_the_slack() -> None:
    pipeline = Pipeline(4, 512, Credits())
    for rows in (1, 10, 40, 200):
        for _ in range(4):
            pipeline.cost.observe(rows, 0, 0.1 + 0.001 * rows)
    pipeline.opened("a", 255, RTT_S, 0.0)
    server, edge, plain_s = Server(pipeline), pipeline._edges["a"], 0.101
    granted = []
    grant = server.step({"a": 0}, {}, plain_s)["a"]
    while grant.turn is Turn.EDGE:  # nothing is ever accepted
        slack_s = edge.trial.slack_tokens * plain_s
        server.answer("a", grant.max_nodes, min(grant.draft_s + grant.late_s, 0.1))
        step_s = 0.101 + 0.001 * grant.max_nodes
        granted.append(grant.max_nodes)
        round_s = server.now_s + step_s - edge.verdict_s
        assert round_s - plain_s <= slack_s + 0.005
        grant = server.step({"a": grant.max_nodes}, {}, step_s)["a"]
    assert len(set(granted)) > 1, "the less it has, the less it risks"


def test_without_the_pipeline_no_time_is_told() -> None:
    pipeline = Pipeline(1, 512, Credits(), pipelined=False)
    memory_bound(pipeline)
    server = Server(pipeline)
    for key in "ab":
        pipeline.opened(key, 17, RTT_S, 0.0)
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
    server.pipeline.opened("b", 32, RTT_S, server.now_s)
    grant = server.step({"b": 0}, {}, STEP_S)["b"]
    while grant.turn is Turn.EDGE:  # its drafts are never accepted
        server.answer("b", 32, 0.03)
        grant = server.step({"b": 32}, {}, STEP_S)["b"]
    for nodes in (0, 32, 32):
        grant = server.step({"a": nodes, "b": 0}, {"a": min(nodes, 3)}, STEP_S)["a"]
        server.answer("a", 32, grant.draft_s or 0.03)
    assert grant.draft_s == pytest.approx(STEP_S - RTT_S, abs=0.005)


def test_the_round_trip_is_measured_without_the_drafting() -> None:
    server = one_edge()
    for number in range(60):
        server.step({"a": 32}, {"a": 3}, STEP_S)
        server.answer("a", 32, draft_s=0.01 + 0.002 * (number % 7), wait_s=0.033)
    assert server.pipeline._edges["a"].rtt_s.value == pytest.approx(0.033, rel=0.02)


def test_who_gets_no_credit_waits_until_a_batch_is_taken() -> None:
    pipeline = Pipeline(1, 512, RoundRobin())
    memory_bound(pipeline)
    server = Server(pipeline)
    for key in "abc":
        pipeline.opened(key, 32, RTT_S, 0.0, user=key)
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
        pipeline.opened(key, 32, RTT_S, 0.0, user=key)
    server.step(dict.fromkeys("abc", 0), {}, STEP_S)
    server.answer("a", 32, 0.01)
    pipeline.step_started(["a"], 33, 0, server.now_s)
    pipeline.step_ended(1, 33, 0, 3, STEP_S, server.now_s + STEP_S)
    assert pipeline.after_verdict("a", 2, server.now_s + STEP_S).turn is Turn.WAIT
    pipeline.closed("b")
    assert [key for key, _ in pipeline.credits_due(server.now_s + STEP_S)] == ["c"]


def test_a_silent_edge_does_not_stop_the_others() -> None:
    pipeline = Pipeline(1, 512, RoundRobin())
    memory_bound(pipeline)
    server = Server(pipeline)
    for key in "ab":
        pipeline.opened(key, 32, RTT_S, 0.0, user=key)
        server.step({key: 0}, {}, STEP_S)
    assert math.isfinite(pipeline.wake_s)
    assert pipeline.credits_due(pipeline.wake_s - 0.001) == []
    ((key, grant),) = pipeline.credits_due(pipeline.wake_s + 0.001)
    assert (key, grant.turn) == ("b", Turn.EDGE)


def test_a_place_is_in_the_step_that_a_tree_can_reach() -> None:
    """Against counting the starts of full steps one after another."""
    for seed in range(60):
        dice = random.Random(seed)
        batch, rtt_s, at = dice.randint(1, 5), dice.uniform(0.0, 0.5), dice.uniform(0.0, STEP_S)
        pipeline = Pipeline(batch, 512, RoundRobin())
        memory_bound(pipeline)
        pipeline.opened("a", 32, RTT_S, 0.0)
        Server(pipeline).step({"a": 4}, {}, STEP_S)
        pipeline.opened("b", 32, rtt_s, 0.0)
        if busy := dice.random() < 0.7:
            pipeline.step_started(["b"], 33, 0, STEP_S)
        starts_s = [2 * STEP_S if busy else STEP_S + at]
        while starts_s[-1] < STEP_S + at + rtt_s:
            starts_s.append(starts_s[-1] + STEP_S)
        begun = 2 if busy else 1
        place = pipeline._place("b", STEP_S + at)
        assert place == Place(begun + len(starts_s), len(starts_s), batch)
        assert place.places == len(starts_s) * batch


def test_a_prompt_that_is_being_verified_is_not_ahead_of_the_next_step() -> None:
    """Nor is it in line: a tree that comes while it is verified can be in the next step."""
    server = one_edge(batch=2)
    pipeline = server.pipeline
    assert server.step({"a": 0}, {}, STEP_S)["a"].turn is Turn.EDGE
    for key in "bc":
        pipeline.opened(key, 32, RTT_S, server.now_s)
    pipeline.step_started("bc", 2, 0, server.now_s)
    free_s, _ = pipeline._slot(pipeline._edges["a"], server.now_s)
    assert free_s == pytest.approx(STEP_S - RTT_S), "just before the prompts' step ends"


def test_where_there_is_a_line_the_verdicts_of_a_step_all_join_it_first() -> None:
    pipeline = Pipeline(2, 512, RoundRobin())
    memory_bound(pipeline)
    server = Server(pipeline)
    for key in "abcdefgh":
        pipeline.opened(key, 32, RTT_S, 0.0, user=key)
    grants = server.step(dict.fromkeys("abcdefgh", 0), {}, STEP_S)
    assert [key for key, grant in grants.items() if grant.turn is Turn.EDGE] == ["a", "b"]
    for key in "ab":
        server.answer(key, 32, 0.0, wait_s=0.0)
    pipeline.step_started("ab", 66, 0, server.now_s)
    assert [key for key, _ in pipeline.credits_due(server.now_s)] == ["c", "d"]
    pipeline.step_ended(2, 66, 0, 2, STEP_S, server.now_s + STEP_S)
    pipeline.closed("c")  # who leaves makes room for the next in line, not for who is told first
    for key in "ab":
        assert pipeline.after_verdict(key, 0, server.now_s + STEP_S) == Grant(Turn.WAIT)
    assert pipeline.credits_due(server.now_s + STEP_S)[0][0] == "e"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(12))
def test_random_sessions_are_always_granted_something_sane(policy: str, seed: int) -> None:
    rng = random.Random(seed)
    pipeline = Pipeline(rng.randint(1, 6), rng.choice([40, 512]), POLICIES[policy]())
    state: dict[int, Turn | str] = {}  # a turn, "ready" or "sent"
    nodes: dict[int, int] = {}
    now_s, next_key, verdicts = 0.0, 0, 0
    for _ in range(300):
        if rng.random() < 0.1 or not state:
            pipeline.opened(next_key, rng.choice([0, 4, 32, 255]), None, now_s, rng.choice("ab"))
            state[next_key], nodes[next_key] = "ready", 0
            next_key += 1
        if rng.random() < 0.04:
            gone = rng.choice(sorted(state))
            pipeline.closed(gone)
            del state[gone]
        for key in [key for key, what in state.items() if what is Turn.EDGE]:
            if rng.random() < 0.6:
                nodes[key] = rng.randint(0, nodes[key])
                pipeline.draft_arrived(key, nodes[key], rng.uniform(0, 0.05), now_s)
                state[key] = "ready"
        batch = [key for key, what in state.items() if what == "ready"][: pipeline._max_batch]
        grants = []
        if batch:
            rows = len(batch) + sum(nodes[key] for key in batch)
            pipeline.step_started(batch, rows, 0, now_s)
            now_s += 0.01 + 0.001 * rows
            pipeline.step_ended(len(batch), rows, 0, len(batch), 0.01 + 0.001 * rows, now_s)
            for key in batch:
                grant = pipeline.after_verdict(key, rng.randint(0, nodes[key]), now_s)
                grants.append((key, grant))
                verdicts += 1
        now_s += rng.choice([0.0, 0.01, 0.3])
        due = pipeline.credits_due(now_s)
        assert all(grant.turn is Turn.EDGE for _, grant in due)
        assert all(state.get(k) is Turn.WAIT or (k, Grant(Turn.WAIT)) in grants for k, _ in due)
        for key, grant in [*grants, *due]:
            assert 0 <= grant.max_nodes <= pipeline._edges[key].max_nodes
            assert 0.0 <= grant.draft_s < 60.0
            assert grant.late_s >= 0.0
            assert (grant.max_nodes > 0) == (grant.turn is Turn.EDGE)
            state[key] = "ready" if grant.turn is Turn.SERVER else grant.turn
            nodes[key] = grant.max_nodes
        check_lines(pipeline, state)
    assert verdicts > 100
    for key in list(state):
        pipeline.closed(key)
    assert len(pipeline.credits.window) == 0
    check_lines(pipeline, {})


def check_lines(pipeline: Pipeline, state: dict[int, Turn | str]) -> None:
    """Who waits for what is what looking at every session gives."""
    ready = {key for key, what in state.items() if what == "ready"}
    edges = pipeline._edges
    plain = {key for key in ready if edges[key].turn is Turn.SERVER and edges[key].verdict_s > 0}
    assert pipeline._plain == plain
    assert pipeline._queued == ready - plain
    due_s = sorted(edges[key].due_s for key, what in state.items() if what is Turn.EDGE)
    assert pipeline._drafting.after(-math.inf) == due_s
