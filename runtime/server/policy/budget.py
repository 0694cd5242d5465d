"""How many nodes an edge may draft: what is worth its price, as far as it may be risked.

**Worth.** A drafted node costs everybody the time of one row, and gives a token if it is accepted.
Say the server gives 400 tokens a second and one row more makes a step 1 ms longer: the row costs
0.4 tokens, so nodes are worth drafting down to a chance of 0.4. Where rows are free (a step that
waits for memory), all are. This is the condition for the largest ratio of tokens to time, with the
ratio that is reached as the price (Dinkelbach, 1967).

**Risk.** A round with a draft may take longer than it gains. How much longer is bounded by the
request's trial (trial.py); a number of nodes that could take more than that is halved until it
fits. None left means plain decoding.

Pure functions over what is known of the load and of one edge.
"""

import math

from runtime.server.policy.edge_profile import KNOWN, EdgeProfile
from runtime.server.policy.estimators import Acceptance
from runtime.server.policy.load import Load

KNOWN_ROUNDS = 4  # with a draft, before it is judged whether they only lose
MISSED_STEPS = 2  # by a request that does not follow its own


def nodes_to_grant(edge: EdgeProfile, load: Load) -> int:
    """Nodes of the next draft; 0 is to decode plainly."""
    nodes = worthwhile_nodes(edge.acceptance, min(edge.max_nodes, load.fair_nodes), load)
    if nodes == 0 or not load.cost.known:
        return 0
    plain_s, usual_s = load.plain_s, round_s(edge, load, nodes)
    drafted_s = edge.round_s.value if edge.round_s.count else usual_s
    expected = edge.acceptance.accepted(min(nodes, math.ceil(edge.sent_nodes.value or nodes)))
    edge.trial.expect((1 + expected) * plain_s / drafted_s)
    most_s, most_nodes = edge.trial.most_tokens * plain_s, nodes
    while nodes and usual_s > most_s:
        nodes //= 2
        usual_s = round_s(edge, load, nodes, nodes / most_nodes)
    return nodes


def does_better_unasked(edge: EdgeProfile, load: Load) -> bool:
    """Whether an edge's tokens come sooner by its offers than by drafts that it is asked for.

    An offer was made a step earlier, so it is shorter by what has been decoded since; but with it
    the request is in every step, and waits for no edge. Where several requests run, steps follow
    each other anyway, and a tree that is asked for waits until one is over: then offers win, unless
    a step has no place for all requests. One that is alone goes by what both have given; where it
    has not been asked of late, its offers tell what it would have sent.
    """
    if not edge.makes_offers or not load.cost.known or load.is_oversubscribed:
        return False
    if edge.gained.count < KNOWN:
        return True
    if load.requests > 1:
        return not edge.rests
    step_s = load.steps_for_all * load.step_with_s(round(edge.taken.value))
    if edge.round_s.count >= KNOWN_ROUNDS:
        asked = edge.acceptance.accepted(math.ceil(edge.sent_nodes.value))
        asked_s = edge.round_s.value
    elif edge.asked:
        return False
    else:
        asked, asked_s = edge.foreseen.value, round_s(edge, load, edge.max_nodes)
    return (1 + edge.gained.value) * asked_s >= (1 + asked) * step_s


def nodes_to_take(edge: EdgeProfile, load: Load, misses_steps: bool) -> int:
    """Nodes of an offer that a step takes along. Nobody waits for them: they cost their rows.

    Where steps are chosen ahead, a request whose offer is taken along is not in the step chosen
    before its verdict, nor in the one after: it `misses_steps` that others keep the model busy
    with, and the offer has to bring more than these would have.
    """
    most = min(edge.max_nodes, load.max_step_nodes - 1)  # a step divides its rows among all
    nodes = worthwhile_nodes(edge.offers, most, load)
    if misses_steps and edge.offers.accepted(nodes) < MISSED_STEPS:
        return 0
    while nodes and load.step_with_s(nodes) > edge.trial.most_risked_tokens * load.plain_s:
        nodes //= 2
    return nodes


def worthwhile_nodes(acceptance: Acceptance, max_nodes: int, load: Load) -> int:
    """Nodes whose expected tokens are worth the time that their rows take from everybody.

    At most `max_nodes` of them. The first rows may cost more than those after them: in a mixture of
    experts they wake most of the experts, which the others then find awake. So what is not worth it
    by itself may be the way to what is.
    """
    nodes, gain = 0, 0.0  # tokens beyond the price of the rows
    start, paid = 0.0, 0.0
    for rows, price in load.prices:
        end = min(max_nodes, rows)
        worth = acceptance.best_below(price) if price > 0 else math.inf
        here = int(min(end, worth))
        if here > start:
            here_gain = acceptance.accepted(here) - paid - price * (here - start)
            if here_gain > gain:
                nodes, gain = here, here_gain
        if end == max_nodes:
            break
        start, paid = end, paid + price * (end - start)
    return nodes


def only_loses(edge: EdgeProfile, load: Load) -> bool:
    """Whether both lose by the drafts of this edge, it and the server, as far as is known.

    The edge, if its tokens come later than if all decoded plainly. The server, if what is accepted
    is worth less than the rows of the draft and the plain tokens that the request goes without
    meanwhile, each of which costs a row. So a request that may be slower than plain decoding, since
    an objective leaves it that, is so only for others' good.
    """
    if edge.round_s.count < KNOWN_ROUNDS or not load.cost.known:
        return False
    nodes, round_s = math.ceil(edge.sent_nodes.value), edge.round_s.value
    accepted = edge.acceptance.accepted(nodes)
    missed = max(round_s / load.plain_s - 1, 0.0)
    is_slower = (1 + accepted) * load.all_plain_s < round_s
    return is_slower and accepted < load.price(nodes) + missed * (1 - load.price(1))


def most_draft_s(edge: EdgeProfile, load: Load, nodes: int) -> float:
    """How long a draft may take before the round takes longer than is risked."""
    return edge.trial.most_tokens * load.plain_s - load.step_with_s(nodes) - edge.rtt_s.value


def round_s(edge: EdgeProfile, load: Load, nodes: int, share: float = 1.0) -> float:
    """Time of a round with a tree that takes a share of the usual time to draft."""
    step_s = load.step_with_s(nodes)
    draft_s = share * edge.draft_s.value
    return max(step_s + edge.rtt_s.value + draft_s, load.steps_for_all * step_s)
