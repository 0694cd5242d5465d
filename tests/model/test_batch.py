"""The arrays of a pass, against loops that write them down one node after another."""

import random

import numpy as np
import pytest
import torch

from runtime.model.batch import BatchSize, Joined, TreeRequest, take_drawn
from tests.model.tiny import path_to

PAGE_SIZE = 4


def random_request(rng: random.Random) -> TreeRequest:
    """A chain or a tree, of which the first nodes may be cached."""
    n_nodes, prefix = rng.randint(1, 90), rng.randint(0, 40)
    is_chain = rng.random() < 0.4
    parents = [node - 1 if is_chain else rng.randint(-1, node - 1) for node in range(n_nodes)]
    n_new = rng.choice([n_nodes, rng.randint(1, n_nodes)])
    tokens = [rng.randrange(1000) for _ in range(n_new)]
    pages = rng.sample(range(500), -(-(prefix + n_nodes) // PAGE_SIZE) + rng.randint(0, 2))
    rows = rng.sample(range(n_new), rng.randint(0, n_new))
    adapter = rng.choice([-1, -1, 0, 2])
    return TreeRequest(tokens, parents, prefix, pages, rows, adapter=adapter)


def written_down(requests: list[TreeRequest], size: BatchSize) -> dict[str, list]:
    """What `Joined.fill` says that it writes."""
    spare = TreeRequest(
        [0] * (size.rows - sum(len(r.tokens) for r in requests)),
        range(-1, size.rows - sum(len(r.tokens) for r in requests) - 1),
        *(0, [0] * size.pages, ()),
    )
    empty = TreeRequest((), (), 0, (), ())
    everyone = [*requests, spare, *[empty] * size.requests][: size.requests]
    columns: dict[str, list] = {name: [] for name in ("tokens", "slots", "positions", "depth")}
    columns |= {"logit_rows": [], "ancestors": [], "offsets": [0]}
    columns |= {f"adapted{what}": [] for what in ("_rows", "_sets", "_wanted_rows", "_wanted_sets")}
    for request in everyone:
        first_row = len(columns["tokens"])
        for row, token in enumerate(request.tokens):
            node = len(request.parents) - len(request.tokens) + row
            place = request.prefix_len + node
            slot = request.pages[place // PAGE_SIZE] * PAGE_SIZE + place % PAGE_SIZE
            columns["tokens"].append(token)
            columns["slots"].append(-1 if request is spare else slot)
            path = path_to(request.parents, node)
            columns["depth"].append(len(path) - 1)
            columns["positions"].append(request.prefix_len + len(path) - 1)
            bits = sum(1 << one for one in path)
            words = [bits >> 64 * word & (1 << 64) - 1 for word in range(size.words)]
            columns["ancestors"].append([word - (word >> 63 << 64) for word in words])
        if request.adapter >= 0:
            first, new, rows = len(columns["logit_rows"]), len(request.tokens), request.logit_rows
            columns["adapted_rows"] += range(first_row, first_row + new)
            columns["adapted_sets"] += [[request.adapter]] * new
            columns["adapted_wanted_rows"] += range(first, first + len(rows))
            columns["adapted_wanted_sets"] += [[request.adapter]] * len(rows)
        columns["logit_rows"] += [first_row + row for row in request.logit_rows]
        columns["offsets"].append(first_row + len(request.tokens))
    columns["logit_rows"] += [0] * (size.logits - len(columns["logit_rows"]))
    columns["drawn"] = [-1] * size.rows  # no row has a token of the step before
    columns["prefix_lens"] = [request.prefix_len for request in everyone]
    columns["n_nodes"] = [len(request.parents) for request in everyone]
    return columns


@pytest.mark.parametrize("seed", range(4))
def test_every_array_is_what_loops_write(seed):
    rng = random.Random(seed)
    for _ in range(30):
        requests = [random_request(rng) for _ in range(rng.randint(1, 6))]
        joined = Joined(requests, PAGE_SIZE)
        exact = joined.size()
        spare_rows = rng.choice([0, rng.randint(1, 20)])
        size = BatchSize(
            *(exact.rows + spare_rows, exact.requests + bool(spare_rows) + rng.randint(0, 2)),
            exact.pages + 12,
            *(exact.words, exact.logits + spare_rows, exact.adapted, exact.adapted_logits),
        )
        layout = size.layout()
        arrays = layout.arrays(np.full(layout.n_bytes, 0xB3, np.uint8))
        joined.fill(arrays)
        expected = written_down(requests, size)
        table = arrays.pop("page_table")
        assert {name: array.tolist() for name, array in arrays.items()} == expected
        for row, request in zip(table, requests, strict=False):
            used = -(-request.n_tokens // PAGE_SIZE)
            assert row[:used].tolist() == list(request.pages[:used])
        assert not table[len(requests) :].any()


@pytest.mark.parametrize("seed", range(4))
def test_the_least_size(seed):
    rng = random.Random(seed)
    requests = [random_request(rng) for _ in range(rng.randint(1, 6))]
    trees = [r for r in requests if list(r.parents) != list(range(-1, len(r.parents) - 1))]
    largest = max((len(r.parents) for r in trees), default=0)
    assert Joined(requests, PAGE_SIZE).size() == BatchSize(
        rows=sum(len(r.tokens) for r in requests),
        requests=len(requests),
        pages=max(-(-r.n_tokens // PAGE_SIZE) for r in requests),
        words=1 if largest <= 64 else 2,
        logits=sum(len(r.logit_rows) for r in requests),
        adapted=sum(len(r.tokens) for r in requests if r.adapter >= 0),
        adapted_logits=sum(len(r.logit_rows) for r in requests if r.adapter >= 0),
    )


@pytest.mark.parametrize("seed", range(4))
def test_right_requests_are_let_through_and_one_wrong_number_is_found(seed):
    rng = random.Random(seed)
    for _ in range(40):
        requests = [random_request(rng) for _ in range(rng.randint(1, 5))]
        Joined(requests, PAGE_SIZE).check(1000, 400, 500, 3)
        wrong = rng.randrange(len(requests))
        requests[wrong] = spoilt(requests[wrong], rng)
        with pytest.raises(ValueError, match=r"expected|cannot hold|longer"):
            Joined(requests, PAGE_SIZE).check(1000, 400, 500, 3)


def spoilt(request: TreeRequest, rng: random.Random) -> TreeRequest:
    """The request with one number out of its range."""
    tokens, parents, pages = list(request.tokens), list(request.parents), list(request.pages)
    prefix_len, rows = request.prefix_len, list(request.logit_rows)
    adapter = request.adapter
    match rng.randrange(8):
        case 0:
            tokens[rng.randrange(len(tokens))] = rng.choice([-1, 1000, 2**40])
        case 1:
            node = rng.randrange(len(parents))
            parents[node] = rng.choice([-2, node, node + 1])
        case 2:
            pages[rng.randrange(len(pages))] = rng.choice([-1, 500])
        case 3:
            rows.append(rng.choice([-1, len(tokens)]))
        case 4:
            prefix_len = -1 - prefix_len
        case 5:
            del pages[-(-request.n_tokens // PAGE_SIZE) - 1 :]
        case 6:
            tokens += [0] * (1 + len(parents) - len(tokens))
        case 7:
            adapter = rng.choice([-2, 3])
    return TreeRequest(tokens, parents, prefix_len, pages, rows, adapter=adapter)


def test_numpy_numbers_are_taken_too():
    request = TreeRequest(np.array([3, 4]), np.array([-1, 0]), 0, np.array([1]), np.array([1]))
    assert Joined([request], PAGE_SIZE).size().rows == 2


def test_rows_take_what_was_drawn_and_0_of_a_draw_that_failed():
    drawn = torch.tensor([7, -1, 9])
    which, own = torch.tensor([-1, 2, 0, 1, -1]), torch.tensor([1, 2, 3, 4, 5])
    arrays = {"drawn": which, "tokens": own}
    take_drawn(arrays, drawn)
    assert own.tolist() == [1, 9, 7, 0, 5]
    assert drawn.tolist() == [7, -1, 9], "the step before still needs it"
