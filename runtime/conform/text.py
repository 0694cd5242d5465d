"""Cases 501 and on: which tokens come. The answer without drafts is what all others are held to."""

import random
from collections.abc import Sequence
from typing import Any

from runtime.conform.peer import Failed, Request, Skipped, Visitor, plain_answer
from runtime.wire import messages as wire

TOKENS = 32
SAMPLED: dict[str, Any] = {"temperature": 1.0, "seed": 11, "max_tokens": TOKENS}
RULE = wire.Rule(1, 0.75, 0.5, 1.25, (65, 66), (1.5, -2.0))
GREEDY: dict[str, Any] = {"max_tokens": TOKENS}


async def rounds_count_by_one(visitor: Visitor) -> None:
    """§5.5 Every Verdict counts one more, whoever had the turn."""
    peer = await visitor.admitted()
    for number, nodes in enumerate((0, 32), start=1):
        await peer.open(number, max_nodes=nodes, **GREEDY).rest()  # a Request checks every round


async def greedy_twice(visitor: Visitor) -> None:
    """§6 At temperature 0 the same prompt has the same answer."""
    await _same(visitor, GREEDY, GREEDY)


async def greedy_with_another_seed(visitor: Visitor) -> None:
    """§6 At temperature 0 the seed plays no part."""
    await _same(visitor, GREEDY, GREEDY | {"seed": 2**63})


async def sampled_twice(visitor: Visitor) -> None:
    """§6 The same seed has the same answer."""
    await _same(visitor, SAMPLED, SAMPLED)


async def sampled_among_one(visitor: Visitor) -> None:
    """§6 With top_k 1 every token is the likeliest, at any temperature."""
    await _same(visitor, GREEDY, SAMPLED | {"top_k": 1})


async def sampled_with_another_seed(visitor: Visitor) -> None:
    """§6 At a high temperature another seed has another answer."""
    options = SAMPLED | {"temperature": 100.0}
    if await plain_answer(visitor, **options) == await plain_answer(
        visitor, **(options | {"seed": 12})
    ):
        raise Failed(f"{TOKENS} tokens are the same with two seeds")


async def drafts_of_nothing(visitor: Visitor) -> None:
    """§6 With Drafts without nodes the answer is the same."""
    for options in (GREEDY, SAMPLED):
        request = (await visitor.admitted()).open(**options)
        _equal(await request.rest(), await plain_answer(visitor, **options))
        request.needs_turn()


async def right_drafts(visitor: Visitor) -> None:
    """§5.5 A drafted path of the right tokens is accepted whole, and the right bonus follows."""
    for options in (GREEDY, SAMPLED):
        truth = await plain_answer(visitor, **options)
        request = (await visitor.admitted()).open(**options)
        await request.turn(nodes=2)
        drafted = _coming(request, truth)
        request.draft(drafted)
        verdict = await request.verdict()
        if verdict.node != len(drafted):
            raise Failed(f"of {len(drafted)} right tokens {verdict.node} are accepted")
        _equal(await request.rest(), truth)


async def wrong_drafts(visitor: Visitor) -> None:
    """§5.5 Of wrong tokens none is accepted, and the answer is the same."""
    for options in (GREEDY, SAMPLED):
        truth = await plain_answer(visitor, **options)
        request = (await visitor.admitted()).open(**options)
        await request.turn(nodes=2)
        wrong = (truth[len(request.answer)] + 1) % request.peer.vocabulary_size
        request.draft([wrong] * 2)
        if (await request.verdict()).node:
            raise Failed("a wrong token is accepted")
        _equal(await request.rest(), truth)


async def half_right_drafts(visitor: Visitor) -> None:
    """§5.5 A path is accepted up to its first wrong token."""
    truth = await plain_answer(visitor, **SAMPLED)
    request = (await visitor.admitted()).open(**SAMPLED)
    await request.turn(nodes=3)
    done, size = len(request.answer), request.peer.vocabulary_size
    request.draft([truth[done], (truth[done + 1] + 1) % size, truth[done + 2]])
    verdict = await request.verdict()
    if (verdict.node, verdict.bonus) != (1, truth[done + 1]):
        raise Failed(f"node {verdict.node} and bonus {verdict.bonus} are the Verdict")
    _equal(await request.rest(), truth)


async def the_right_one_of_many_siblings(visitor: Visitor) -> None:
    """§5.5 The walk finds the right child wherever it stands."""
    truth = await plain_answer(visitor, **SAMPLED)
    request = (await visitor.admitted()).open(**SAMPLED)
    nodes = min(await request.turn(nodes=3), 8)
    right, size = truth[len(request.answer)], request.peer.vocabulary_size
    siblings = [(right + 1 + index) % size for index in range(nodes - 1)] + [right]
    request.draft(siblings, [0] * nodes)
    if (await request.verdict()).node != nodes:
        raise Failed("another child than the right one is accepted")
    _equal(await request.rest(), truth)


async def any_drafts(visitor: Visitor) -> None:
    """§6 The answer does not depend on the drafts: trees drawn at random change nothing."""
    truth = await plain_answer(visitor, **SAMPLED)
    for seed in range(4):
        request, rng = (await visitor.admitted()).open(**SAMPLED), random.Random(seed)
        while not request.finish:
            if request.granted_nodes is not None:
                _draft_at_random(request, truth, rng)
            await request.advance()
        request.close()
        _equal(request.answer, truth)
        request.needs_turn()


async def a_prompt_that_ends_in_its_answer(visitor: Visitor) -> None:
    """§6 A prompt that ends with the first k tokens of an answer continues with token k + 1."""
    for options in (GREEDY, SAMPLED):
        peer = await visitor.admitted()
        prompt = peer.prompt(5)
        truth = await peer.open(1, prompt, **options).rest()
        for kept in (1, TOKENS // 2, TOKENS - 1):
            left = options | {"max_tokens": TOKENS - kept}
            rest = await peer.open(1, (*prompt, *truth[:kept]), **left).rest()
            _equal([*truth[:kept], *rest], truth)


async def a_stop_id(visitor: Visitor) -> None:
    """§5.5 The answer ends with the first stop id, told as the bonus, and finish 1."""
    truth = await plain_answer(visitor, **SAMPLED)
    stop = truth[_first_new(truth)]
    request = (await visitor.admitted()).open(stop_ids=(stop,), **SAMPLED)
    _equal(await request.rest(), truth[: truth.index(stop) + 1])
    _stopped(request, stop)


async def a_stop_id_in_a_draft(visitor: Visitor) -> None:
    """§5.5 An accepted path is cut at a stop id, which is told as the bonus."""
    truth = await plain_answer(visitor, **SAMPLED)
    stop = truth[_first_new(truth)]
    request = (await visitor.admitted()).open(stop_ids=(stop,), **SAMPLED)
    granted, due = await request.turn(nodes=1), truth.index(stop)
    while granted <= due - len(request.answer):
        request.draft()
        granted = await request.turn(nodes=1)
    before = due - len(request.answer)
    request.draft(_coming(request, truth, most=255))
    verdict = await request.verdict()
    if verdict.node != before:
        raise Failed(f"node {verdict.node} is accepted, {before} come before the stop id")
    _stopped(request, stop)
    request.close()
    _equal(request.answer, truth[: due + 1])


async def the_end_in_a_draft(visitor: Visitor) -> None:
    """§5.5 The last Verdict may accept all but the bonus, and says that the length is reached."""
    truth = await plain_answer(visitor, **(SAMPLED | {"max_tokens": 6}))
    request = (await visitor.admitted()).open(**(SAMPLED | {"max_tokens": 6}))
    while not request.finish:
        if request.granted_nodes is not None:
            request.draft(_coming(request, truth))
        await request.advance()
    request.close()
    _equal(request.answer, truth)
    request.needs_turn()
    if request.finish is not wire.Finish.LENGTH:
        raise Failed(f"the answer ends with {request.finish.name}")


async def nothing_after_the_end(visitor: Visitor) -> None:
    """§5.7 After a Verdict that finishes nothing comes for the request, not even a Close."""
    peer = await visitor.admitted()
    request = peer.open()
    await request.rest()
    await peer.is_alive()


async def a_short_and_a_long_neighbour(visitor: Visitor) -> None:
    """§6 The answer does not depend on other requests."""
    truth = await plain_answer(visitor, **SAMPLED)
    peer = await visitor.admitted()
    peer.open(2, peer.prompt(60, seed=3), max_nodes=0, **GREEDY)
    peer.open(3, peer.prompt(2, seed=4), max_nodes=0, max_tokens=3)
    _equal(await peer.open(1, **SAMPLED).rest(), truth)


async def drafts_under_a_rule(visitor: Visitor) -> None:
    """§6.1 With a Rule, too, the answer does not depend on the drafts, right or random."""
    for options in (GREEDY, SAMPLED):
        ruled = options | {"rule": RULE}
        truth = await plain_answer(visitor, **ruled)
        right, rng = (await visitor.admitted()).open(**ruled), random.Random(3)
        await right.turn(nodes=2)
        right.draft(_coming(right, truth))
        _equal(await right.rest(), truth)
        wrong = (await visitor.admitted()).open(**ruled)
        while not wrong.finish:
            if wrong.granted_nodes is not None:
                _draft_at_random(wrong, truth, rng)
            await wrong.advance()
        wrong.close()
        _equal(wrong.answer, truth)


async def a_bias_that_forces_a_token(visitor: Visitor) -> None:
    """§6.1 A token with a bias of 100 comes, and one with -100 does not."""
    truth = await plain_answer(visitor, **GREEDY)
    banned = wire.Rule(1, bias_ids=(truth[0],), bias_values=(-100.0,))
    if truth[0] in await plain_answer(visitor, rule=banned, **GREEDY):
        raise Failed("a token comes whose bias is -100")
    forced = wire.Rule(1, bias_ids=(65,), bias_values=(100.0,))
    if set(await plain_answer(visitor, rule=forced, **GREEDY)) != {65}:
        raise Failed("another token comes than the one whose bias is 100")


async def a_prompt_that_ends_in_its_answer_by_a_rule(visitor: Visitor) -> None:
    """§9 With output_tokens the rest of an answer counts what was said before."""
    for options in (GREEDY, SAMPLED):
        peer = await visitor.admitted()
        prompt = peer.prompt(5)
        truth = await peer.open(1, prompt, RULE, **options).rest()
        for kept in (1, TOKENS // 2, TOKENS - 1):
            left = options | {"max_tokens": TOKENS - kept, "output_tokens": kept}
            rest = await peer.open(1, (*prompt, *truth[:kept]), RULE, **left).rest()
            _equal([*truth[:kept], *rest], truth)


async def log_probabilities(visitor: Visitor) -> None:
    """§3.19 Logprobs come before every Verdict, drafted or not, and change no text."""
    truth = await plain_answer(visitor, **SAMPLED)
    for logprobs, nodes in ((1, 0), (4, 32), (21, 32)):
        request = (await visitor.admitted()).open(logprobs=logprobs, max_nodes=nodes, **SAMPLED)
        while not request.finish:  # a Request checks them
            if request.granted_nodes is not None:
                request.draft(_coming(request, truth))
            await request.advance()
        request.close()
        _equal(request.answer, truth)


async def an_answer_that_is_given(visitor: Visitor) -> None:
    """§6.1 With a Constraint of kind 4 the answer is its ids, whatever the model would say."""
    peer = await visitor.admitted()
    given = peer.prompt(9, seed=5)
    constraint = wire.Constraint(1, wire.ConstraintKind.TOKENS, " ".join(map(str, given)))
    asked: list[tuple[dict[str, Any], Sequence[int]]] = [
        (GREEDY, given),
        (SAMPLED | {"logprobs": 3, "stop_ids": given[3:4]}, given),
        (GREEDY | {"max_tokens": 4}, given[:4]),
    ]
    for number, (options, due) in enumerate(asked, start=1):
        request = peer.open(number, constraint=constraint, **options)
        _equal(await request.rest(), [*due])
        if request.finish is not wire.Finish.LENGTH:
            raise Failed(f"the given answer ends with {request.finish.name}, not LENGTH")
        if any(verdict.turn in (wire.Turn.EDGE, wire.Turn.WAIT) for verdict in request.verdicts):
            raise Failed("the edge is asked to draft an answer that is given")


async def given_tokens_that_are_none(visitor: Visitor) -> None:
    """§6.1 A Constraint of kind 4 that is no ids of the vocabulary is refused with CONSTRAINT."""
    peer = await visitor.admitted()
    texts = ("1 x", "1  2", "-1", f"1 {peer.vocabulary_size}")
    for number, text in enumerate(texts, start=1):
        constraint = wire.Constraint(1, wire.ConstraintKind.TOKENS, text)
        await peer.open(number, constraint=constraint).failed(wire.ErrorCode.CONSTRAINT)
    await peer.open(len(texts) + 1).rest()


def _coming(request: Request, truth: list[int], most: int = 8) -> list[int]:
    """As many of the tokens to come as a draft may have."""
    assert request.granted_nodes is not None, "drafts need the turn"
    done = len(request.answer)
    return truth[done : min(done + request.granted_nodes, done + most, len(truth) - 1)]


def _draft_at_random(request: Request, truth: list[int], rng: random.Random) -> None:
    """A tree of up to 12 nodes that are right about every second time."""
    room = len(truth) - len(request.answer) - 1
    depths, tree = [0], dict[tuple[int, int], None]()
    for _ in range(min(request.granted_nodes or 0, 12)):
        parent = rng.randrange(len(depths))
        if depths[parent] >= room:
            continue
        right = truth[len(request.answer) + depths[parent]]
        token = rng.choice((right, rng.randrange(request.peer.vocabulary_size)))
        if (parent, token) not in tree:
            tree[parent, token] = None
            depths.append(depths[parent] + 1)
    request.draft([token for _, token in tree], [parent for parent, _ in tree])


def _first_new(answer: list[int]) -> int:
    """Where a token comes for the first time, not at the beginning."""
    for index in range(4, len(answer)):
        if answer[index] not in answer[:index]:
            return index
    raise Skipped("the answer repeats its first tokens for ever")


def _stopped(request: Request, stop: int) -> None:
    last = request.verdicts[-1]
    if last.finish is not wire.Finish.STOP or last.bonus != stop:
        raise Failed(f"it ends with {last.finish.name} and token {last.bonus}, not {stop}")


async def _same(visitor: Visitor, first: dict[str, Any], second: dict[str, Any]) -> None:
    _equal(await plain_answer(visitor, **second), await plain_answer(visitor, **first))


def _equal(answer: list[int], truth: list[int]) -> None:
    if answer != truth:
        pairs = zip(answer, truth, strict=False)
        where = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(answer), len(truth)))
        raise Failed(f"the answer has {len(answer)} tokens, and differs from token {where + 1} on")
