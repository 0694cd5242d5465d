"""A second of a run: whose connection is whose, against runs that are made with that known."""

import dataclasses
import json
import random

import pytest

from runtime.bench.records import Answer, Run, Step
from runtime.bench.timeline import Timeline, clients_by_peer, second


def a_run(dice: random.Random, clients: int, together: bool = False) -> tuple[Run, dict[str, int]]:
    """Clients whose trees take turns, or share steps by two; the connections' names say nothing."""
    names = [f"10.0.0.1:{port}" for port in dice.sample(range(1024, 60000), clients)]
    arrivals: dict[int, list[tuple[float, int]]] = {client: [] for client in range(clients)}
    steps, now_s = [], 0.0
    for turn in range(60):
        whose = {turn % clients, (turn + dice.randrange(clients)) % clients if together else 0}
        whose = whose if together else {turn % clients}
        end_s = now_s + 0.09
        steps.append(Step(now_s, end_s, nodes={f"{names[c]}/{turn}": 32 for c in whose}))
        for client in whose:
            arrivals[client].append((end_s + dice.uniform(0.007, 0.02), turn))
        now_s = end_s + 0.001
    answers = tuple(
        Answer(client, (), 0.0, tuple(arrivals[client]), 1, client, passes=((2.0, 2.5), (3.1, 9.9)))
        for client in dice.sample(range(clients), clients)
    )
    run = Run("specedge", clients, clients, 0.0, now_s, answers, tuple(steps))
    return run, {name: client for client, name in enumerate(names)}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("together", [False, True])
def test_connections_are_those_of_their_clients(seed: int, together: bool) -> None:
    dice = random.Random(seed)
    run, known = a_run(dice, dice.randrange(2, 6), together)
    assert clients_by_peer(run) == known


def test_a_second_has_what_touches_it() -> None:
    """From 2.73 s on; a pass before it and one that is still going on at its end."""
    run, known = a_run(random.Random(1), 2)
    found = second(run)
    begin_s = run.end_s / 2
    assert found.verified == tuple(
        (round((s.start_s - begin_s) * 1e3, 2), round((s.end_s - begin_s) * 1e3, 2), (client,))
        for s in run.steps
        for name, client in known.items()
        if begin_s < s.end_s and s.start_s < begin_s + 1 and next(iter(s.nodes)).startswith(name)
    )
    assert 10 <= len(found.verified) <= 12
    assert [len(spans) for spans in found.drafted] == [1, 1]
    assert Timeline.read(json.loads(json.dumps(dataclasses.asdict(found)))) == found
