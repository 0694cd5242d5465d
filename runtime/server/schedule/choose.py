"""Which rows the next verification step holds: trees of many requests, and chunks of prompts.

A step holds at most `max_batch` trees of at most `max_step_nodes` rows together and, besides, up to
`chunk_tokens` rows of prompts: neither can crowd out the other, and both bound the step's time.
Pure policy: no clock, no model, and no pages.
Source: chunked prefill after Sarathi (2308.16369).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from runtime.server.request import Request
from runtime.server.schedule.step import Work


@dataclass(frozen=True)
class Limits:
    """Capacity of the server; nodes and chunks are counted in rows of the forward pass."""

    max_requests: int
    max_waiting: int
    max_batch: int
    max_step_nodes: int
    max_nodes: int
    chunk_tokens: int
    page_size: int
    n_pages: int
    max_user_running: int = 65535  # of max_requests; without more users no limit of its own

    def pages_for(self, n_tokens: int) -> int:
        """Pages that n_tokens tokens need."""
        return -(-n_tokens // self.page_size)


def choose(
    ready: Iterable[Request],
    prompts: Sequence[Request],
    limits: Limits,
    following: Sequence[Request] = (),
) -> list[Work]:
    """Trees first: they are one step away from giving text. Then prompts.

    `ready` comes oldest draft first, `prompts` oldest admission first. A tree that does not fit is
    verified in a later step, when those before it are done and all others are younger. `following`
    decode plainly and are in the step before: they stand in line behind those who are ready.
    """
    trees, rows = limits.max_batch, limits.max_step_nodes
    batch = []
    for request in ready:
        if not trees or not rows:
            break
        nodes = 1 + request.nodes
        if nodes <= rows:
            trees, rows = trees - 1, rows - nodes
            batch.append(Work(request, 0, verify=True))
    for request in following[: min(trees, rows)]:
        trees, rows = trees - 1, rows - 1
        batch.append(Work(request, 0, verify=True, follows=True))
    for request, chunk in _chunks(prompts, limits.chunk_tokens):
        nodes = 1 + request.nodes
        complete = request.is_verifiable and chunk == request.uncached
        verify = complete and trees > 0 and nodes <= rows
        if verify:
            trees, rows = trees - 1, rows - nodes
        if chunk or verify:
            batch.append(Work(request, chunk, verify))
    return batch


def cuts(ready: Iterable[Request], max_batch: int, max_rows: int) -> list[tuple[Request, int]]:
    """Offers of which the next step takes fewer nodes, and how many, so that all have a place.

    Trees that were asked for come whole, or later: their edges wait for them. Who decodes plainly
    loses more by a missed step than by the least likely nodes of an offer. `ready` comes oldest
    first.
    """
    first = list(islice(ready, max_batch))
    offers, rows = [request for request in first if request.may_be_cut], max_rows
    if not offers:
        return []
    for request in first:
        if not request.may_be_cut and 1 + request.nodes <= rows:
            rows -= 1 + request.nodes
    most = _most([1 + request.nodes for request in offers], rows)
    return [(request, most - 1) for request in offers if 0 < most <= request.nodes]


def _most(wanted: Sequence[int], rows: int) -> int:
    """What each may have at most of so many rows: who wants less leaves the others more."""
    for place, count in enumerate(sorted(wanted)):
        most = rows // (len(wanted) - place)
        if count > most:
            return most
        rows -= count
    return max(wanted, default=0)


def _chunks(prompts: Sequence[Request], rows: int) -> list[tuple[Request, int]]:
    """Tokens of each prompt for one step: half to the oldest, the rest to the shortest first.

    So a long prompt delays short ones little, and no number of short ones stops it. A preempted
    request is a prompt too, whether its edge has sent a draft or not.
    """
    if not prompts:
        return []
    oldest, *others = prompts
    half = min(oldest.uncached, -(-rows // 2))
    rest = rows - half
    chunks = []
    for request in sorted(others, key=lambda request: request.uncached):
        chunks.append((request, min(request.uncached, rest)))
        rest -= chunks[-1][1]
    return [(oldest, min(oldest.uncached, half + rest)), *chunks]
