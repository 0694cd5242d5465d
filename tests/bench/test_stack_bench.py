"""Every part of bench.stack runs and checks what it carries; its figures do not matter here."""

import json

import pytest

pytest.importorskip("runtime.stack._stack", reason="the stack is for Linux alone")

from bench.stack import hosts, pairs
from bench.stack.__main__ import numbers
from bench.stack.load import Figures
from bench.stack.table import Claim, Effort


def test_turns_alternate_and_medians_are_told() -> None:
    order: list[str] = []

    def run(name: str, values: list[float]) -> Figures:
        order.append(name)
        return {"value": values.pop(0)}

    first, second = [3.0, 1.0, 8.0], [6.0, 50.0, 4.0]
    runs = [lambda: run("first", first), lambda: run("second", second)]
    one, other = Effort(1.0, 3).in_turns(runs)
    assert order == ["first", "second"] * 3
    assert (one["value"], other["value"]) == (3.0, 6.0)
    assert other.over(one, "value") == 2.0  # of 2, 50 and 0.5
    assert one.over(other, "value") == 0.5


def test_a_claim_says_whether_it_holds() -> None:
    assert str(Claim("two of it", "1.9", False)) == "  MISSED: two of it: 1.9"
    assert str(Claim("two of it", "2.1", True)) == "  holds: two of it: 2.1"
    assert str(Claim("two of it", "2.1")) == "  beside: two of it: 2.1"


@pytest.mark.long
@pytest.mark.parametrize(
    "part", [pairs.rings, pairs.round_trips, pairs.stream, hosts.users, hosts.sockets, hosts.idle]
)
def test_a_part_runs(part: object) -> None:
    table = part(Effort(0.05, 1))
    assert table.rows
    assert table.claims
    assert all(len(row) == len(table.columns) for row in table.rows)
    json.dumps(numbers(table))
