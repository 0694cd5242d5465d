"""The other ops, each at the sizes of a verification step: B requests with trees of T nodes."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

import specedge_kernels as ours
from bench.kernels import fused
from bench.kernels.case import Case, Work, far_from, unlike
from bench.kernels.step import PAGE_TOKENS, Step, normal, step_of, triton_ways
from bench.kernels.trees import make_trees
from specedge_kernels import reference

CHECKED_ROWS = 8
DRAFT_K = 8
TOP_LOGPROBS = 5
LARGE_VOCABULARY = 151936  # Qwen's
TEXT_TOKENS, BIASES = 500, 16


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    step = step_of(device, quick)
    yield from cases_of(step, device)
    if step.vocabulary < LARGE_VOCABULARY and not quick:
        yield from draws_of(replace(step, vocabulary=LARGE_VOCABULARY), device)


def draws_of(step: Step, device: torch.device) -> Iterator[Case]:
    """Of the target's tokens, and what may come before."""
    for mask in (0.0, 0.5):
        yield target_tokens(step, device, "greedy", temperature=0.0, top_p=1.0, mask=mask)
        yield target_tokens(step, device, "sampled", temperature=0.8, top_p=1.0, mask=mask)
        yield target_tokens(step, device, "top-p 0.9", temperature=0.8, top_p=0.9, mask=mask)
    yield edit_logits(step, device)


def cases_of(step: Step, device: torch.device) -> Iterator[Case]:
    yield from draws_of(step, device)
    makers = (token_logprobs, verify, build_tree, draft_topk)
    yield from (make(step, device) for make in makers)
    for name, append in (("ours", ours.append_kv), *triton_ways("append_kv", device)):
        yield append_kv(step, device, name, append)
    for name, compact in (("ours", ours.compact_kv), *triton_ways("compact_kv", device)):
        yield compact_kv(step, device, name, compact)
    yield from fused.cases_of(step, device)


def target_tokens(
    step: Step, device: torch.device, kind: str, temperature: float, top_p: float, mask: float
) -> Case:
    """`mask`: the share of random tokens that every row forbids, 0 for no mask."""

    def prepare(seed: int) -> Work:
        logits = normal(step.rows, step.vocabulary, device=device, seed=seed) * 3
        n = step.rows
        rows = (
            torch.full((n,), temperature),
            torch.zeros(n, dtype=torch.int32),
            torch.full((n,), top_p),
            torch.zeros(n),
            *noise_keys(n, seed),
        )
        rows = tuple(row.to(device) for row in rows)
        masks = masks_of(step.vocabulary, n, mask, device, seed) if mask else ()

        def check() -> str:
            some = torch.linspace(0, n - 1, CHECKED_ROWS).long().to(device)
            sample = [tensor[some].cpu() for tensor in (logits, *rows)]
            if masks:
                sample += [masks[0].cpu(), masks[1][some].cpu()]
            got = ours.target_tokens(logits, *rows, *masks)[some]
            return unlike((reference.target_tokens(*sample),), (got,))

        return Work(lambda: ours.target_tokens(logits, *rows, *masks), check)

    shape = f"{kind}{' masked' if mask else ''} N{step.rows} V{step.vocabulary}"
    return Case("target_tokens", "ours", shape, step.rows * step.vocabulary * 4, 0, prepare)


def masks_of(
    vocabulary: int, rows: int, share: float, device: torch.device, seed: int
) -> tuple[Tensor, Tensor]:
    """A mask for each row."""
    words = -(-vocabulary // 32)
    allowed = torch.rand(rows, words, 32, generator=torch.manual_seed(seed)) >= share
    mask = (allowed.long() << torch.arange(32)).sum(-1).to(torch.int32)
    return mask.to(device), torch.arange(rows, dtype=torch.int32, device=device)


def edit_logits(step: Step, device: torch.device) -> Case:
    """Texts of up to 500 distinct tokens, and 16 biases."""
    n_text, n_bias = min(TEXT_TOKENS, step.vocabulary), min(BIASES, step.vocabulary)

    def prepare(seed: int) -> Work:
        logits = normal(step.rows, step.vocabulary, device=device, seed=seed) * 3
        arguments = edits_of(step, seed, repetition=1.1, frequency=0.2, presence=0.1, bias=1.0)
        there = [argument.to(device) for argument in arguments]

        def check() -> str:
            expected = logits.cpu().clone()
            reference.edit_logits(expected, *arguments)
            got = logits.clone()
            ours.edit_logits(got, *there)
            return unlike((expected,), (got,))

        return Work(lambda: ours.edit_logits(logits, *there), check)

    shape = f"{n_text} tokens N{step.rows} V{step.vocabulary}"
    return Case("edit_logits", "ours", shape, step.rows * (n_text + n_bias) * 8, 0, prepare)


def edits_of(
    step: Step, seed: int, repetition: float, frequency: float, presence: float, bias: float
) -> tuple[Tensor, ...]:
    """The arguments of `edit_logits` behind the logits, of random texts."""
    generator = torch.manual_seed(seed)
    trees = make_trees(step.batch, step.nodes, seed)
    tokens = torch.randint(step.vocabulary, (step.rows,), generator=generator)

    def lists(most: int) -> tuple[Tensor, Tensor]:
        n = min(most, step.vocabulary)
        chosen = [torch.randperm(step.vocabulary, generator=generator)[:n].sort().values]
        offsets = torch.arange(step.batch + 1, dtype=torch.int32) * n
        return offsets, torch.cat(chosen * step.batch)

    text, biases = lists(TEXT_TOKENS), lists(BIASES)
    return (
        *(tokens, trees.ancestors, trees.offsets),
        *(*text, torch.ones(len(text[1]), dtype=torch.int32)),
        *(*biases, torch.full((len(biases[1]),), bias)),
        *(torch.full((step.batch,), number) for number in (repetition, frequency, presence)),
    )


def token_logprobs(step: Step, device: torch.device) -> Case:
    def prepare(seed: int) -> Work:
        logits = normal(step.batch, step.vocabulary, device=device, seed=seed) * 3
        tokens = torch.arange(step.batch, device=device)

        def check() -> str:
            want = reference.token_logprobs(logits.cpu(), tokens.cpu(), TOP_LOGPROBS)
            got = ours.token_logprobs(logits, tokens, TOP_LOGPROBS)
            return unlike((want[1],), (got[1],)) or far_from(want[2], got[2], 1e-5)

        return Work(lambda: ours.token_logprobs(logits, tokens, TOP_LOGPROBS), check)

    shape = f"n{TOP_LOGPROBS} N{step.batch} V{step.vocabulary}"
    return Case("token_logprobs", "ours", shape, step.batch * step.vocabulary * 4, 0, prepare)


def draft_topk(step: Step, device: torch.device) -> Case:
    def prepare(seed: int) -> Work:
        logits = normal(step.batch, step.vocabulary, device=device, seed=seed) * 3
        arguments = (torch.full((step.batch,), 0.8), *noise_keys(step.batch, seed))
        rows = tuple(argument.to(device) for argument in arguments)

        def check() -> str:
            sample = (tensor.cpu() for tensor in rows)
            ids, logprobs = reference.draft_topk(logits.cpu(), DRAFT_K, *sample)
            got_ids, got_logprobs = ours.draft_topk(logits, DRAFT_K, *rows)
            return unlike((ids,), (got_ids,)) or far_from(logprobs, got_logprobs, 1e-5)

        return Work(lambda: ours.draft_topk(logits, DRAFT_K, *rows), check)

    shape = f"k{DRAFT_K} N{step.batch} V{step.vocabulary}"
    return Case("draft_topk", "ours", shape, step.batch * step.vocabulary * 4, 0, prepare)


def verify(step: Step, device: torch.device) -> Case:
    def prepare(seed: int) -> Work:
        trees = make_trees(step.batch, step.nodes, seed)
        # A small alphabet, so that some nodes match.
        tokens, target = torch.randint(
            3, (2, step.rows), generator=torch.manual_seed(seed), dtype=torch.int64
        )
        arguments = (tokens, trees.ancestors, trees.offsets, target)
        there = [argument.to(device) for argument in arguments]
        expected = lambda: reference.verify(*arguments, step.nodes)  # noqa: E731
        return exact(lambda: ours.verify(*there, step.nodes), expected)

    words = -(-step.nodes // 64)
    n_bytes = step.rows * (16 + 8 * words) + step.batch * (4 * step.nodes + 16)
    return Case("verify", "ours", step.trees_shape(), n_bytes, 0, prepare)


def build_tree(step: Step, device: torch.device) -> Case:
    words = -(-step.nodes // 64)

    def prepare(seed: int) -> Work:
        trees = make_trees(step.batch, step.nodes, seed)
        parents, offsets = trees.parents.to(device), trees.offsets.to(device)
        call = lambda: ours.build_tree(parents, offsets, words)  # noqa: E731
        return exact(call, lambda: (trees.ancestors, trees.depth))

    n_bytes = step.rows * (8 + 8 * words) + step.batch * 4
    return Case("build_tree", "ours", step.trees_shape(), n_bytes, 0, prepare)


def append_kv(step: Step, device: torch.device, way: str, append: Callable[..., None]) -> Case:
    pages = 4 * -(-step.rows // PAGE_TOKENS)

    def prepare(seed: int) -> Work:
        token = (step.heads, step.dim)
        like = {"device": device, "seed": seed, "dtype": step.dtype}
        k, v = normal(2, step.rows, *token, **like)
        k_cache, v_cache = normal(2, pages, PAGE_TOKENS, *token, **like)
        shuffled = torch.randperm(pages * PAGE_TOKENS, generator=torch.manual_seed(seed))
        slots = shuffled[: step.rows].to(device)

        def check() -> str:
            expected = [k_cache.cpu().clone(), v_cache.cpu().clone()]
            reference.append_kv(k.cpu(), v.cpu(), *expected, slots.cpu())
            append(k, v, k_cache, v_cache, slots)
            return unlike(tuple(expected), (k_cache, v_cache))

        return Work(lambda: append(k, v, k_cache, v_cache, slots), check)

    n_bytes = 2 * step.rows * step.token_bytes
    return Case("append_kv", way, step.trees_shape(), n_bytes, 0, prepare)


def compact_kv(step: Step, device: torch.device, way: str, compact: Callable[..., None]) -> Case:
    accepted = step.nodes // 4
    prefix, width = 2 * PAGE_TOKENS - 3, 2 + -(-step.nodes // PAGE_TOKENS)
    # Every fourth node is accepted; the root is in its place already.
    path = torch.arange(0, step.nodes, 4, dtype=torch.int32).repeat(step.batch, 1)

    def prepare(seed: int) -> Work:
        sizes = (step.layers, 2, step.batch * width, PAGE_TOKENS, step.heads, step.dim)
        kv = normal(*sizes, device=device, seed=seed, dtype=step.dtype)
        pages = torch.randperm(step.batch * width, generator=torch.manual_seed(seed))
        tables = (
            pages.view(step.batch, width).int(),
            torch.full((step.batch,), prefix, dtype=torch.int32),
            path,
            torch.full((step.batch,), accepted, dtype=torch.int32),
        )
        there = [table.to(device) for table in tables]

        def check() -> str:
            expected = kv.cpu().clone()
            reference.compact_kv(expected, *tables)
            compact(kv, *there)
            return unlike((expected,), (kv,))

        return Work(lambda: compact(kv, *there), check)

    shape = f"{step.layers} layers B{step.batch} {accepted} of {step.nodes}"
    n_bytes = 2 * step.layers * step.batch * (accepted - 1) * step.token_bytes
    return Case("compact_kv", way, shape, n_bytes, 0, prepare)


def exact(
    call: Callable[[], tuple[Tensor, ...]], expected: Callable[[], tuple[Tensor, ...]]
) -> Work:
    return Work(call, lambda: unlike(expected(), call()))


def noise_keys(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Seeds and positions of the noise."""
    return torch.full((n,), seed, dtype=torch.int64), torch.arange(n)
