"""What masks, biases and penalties add to the target's draws, in the same turns.

Every row of logits has a mask of its own, which forbids half of the tokens at random, and a text of
500 distinct tokens with 16 biases; 16 rows are a tree. Each way is checked against the reference
first. The penalties are too small to change a logit, so that every turn draws from the same. With
one thread, seconds are that thread's own.

    python -m bench.draws [--rows 1 16 64] [--vocabulary 152064] [--threads 1] [--json]
"""

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch
from torch import Tensor

import specedge_kernels as ours
from bench.harness import measure_in_turns, option_parser, report, whole_number
from bench.kernels.case import unlike
from bench.kernels.ops import BIASES, TEXT_TOKENS, edits_of, masks_of, noise_keys
from bench.kernels.step import Step, normal
from specedge_kernels import instruction_set, reference

COLUMNS = ("draw", "rows", "plain", "masked", "edited", "both")
KINDS = {"greedy": (0.0, 1.0), "sampled": (0.8, 1.0), "top-p 0.9": (0.8, 0.9)}
TREE = 16
TURNS, TURN_S = 21, 0.004
CHECKED_ROWS = 4
TINY = 1e-9

Draw = Callable[[], Tensor]


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    rows: list[tuple[object, ...]] = []
    numbers: dict[str, float] = {}
    for n_rows in options.rows:
        ways = ways_of(n_rows, options.vocabulary)
        for kind in KINDS:
            took_s = seconds(ways(kind))
            plain_s = took_s[0]
            more = [f"{s / plain_s - 1:+.1%}" for s in took_s[1:]]
            rows.append((kind, n_rows, f"{plain_s * 1e6:.1f} us", *more))
            names = ("plain", "masked", "edited", "both")
            numbers |= {
                f"{kind}_{n_rows}_{name}_us": s * 1e6 for name, s in zip(names, took_s, strict=True)
            }
    title = (
        f"draws from {options.vocabulary} logits, {TEXT_TOKENS} tokens of a text and {BIASES} "
        f"biases; {options.threads} threads, {instruction_set()}"
    )
    report(title, COLUMNS, rows, numbers, options.json)


def ways_of(n_rows: int, vocabulary: int) -> Callable[[str], list[Draw]]:
    """Of a kind of draw: the plain draw, masked, edited, and both."""
    batch, device = -(-n_rows // TREE), torch.device("cpu")
    step = Step(batch, n_rows // batch, vocabulary, 1, 1, 64, torch.float32)
    logits = normal(step.rows, vocabulary, device=device, seed=0) * 3
    edits = edits_of(step, 0, repetition=1.0, frequency=TINY, presence=TINY, bias=TINY)
    masks = masks_of(vocabulary, step.rows, 0.5, device, 0)
    check_edits(logits, edits)

    def of_kind(kind: str) -> list[Draw]:
        temperature, top_p = KINDS[kind]
        n = step.rows
        limits = (torch.zeros(n, dtype=torch.int32), torch.full((n,), top_p), torch.zeros(n))
        draws = (torch.full((n,), temperature), *limits, *noise_keys(n, 0))
        check_draws(logits, draws, masks)

        def edited(*given: Tensor) -> Tensor:
            ours.edit_logits(logits, *edits)
            return ours.target_tokens(logits, *draws, *given)

        return [
            lambda: ours.target_tokens(logits, *draws),
            lambda: ours.target_tokens(logits, *draws, *masks),
            lambda: edited(),
            lambda: edited(*masks),
        ]

    return of_kind


def check_edits(logits: Tensor, edits: tuple[Tensor, ...]) -> None:
    want, got = logits.clone(), logits.clone()
    large = (*edits[:8], edits[8] / TINY, edits[9] + 0.1, *(e / TINY for e in edits[10:]))
    reference.edit_logits(want, *large)
    ours.edit_logits(got, *large)
    assert not unlike((want,), (got,))


def check_draws(logits: Tensor, draws: tuple[Tensor, ...], masks: tuple[Tensor, Tensor]) -> None:
    some = torch.linspace(0, len(logits) - 1, min(CHECKED_ROWS, len(logits))).long()
    sample = [tensor[some] for tensor in (logits, *draws)]
    for given in ((), (masks[0], masks[1][some])):
        want, got = (
            draw(*sample, *given) for draw in (reference.target_tokens, ours.target_tokens)
        )
        assert not unlike((want,), (got,))


def seconds(ways: list[Draw]) -> list[float]:
    """Of one call each, in turns of many."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start_s = time.perf_counter()
    ways[0]()
    times = max(1, int(TURN_S / (time.perf_counter() - start_s)))

    def many(way: Draw) -> Callable[[], None]:
        def run() -> None:
            for _ in range(times):
                way()

        return run

    took = measure_in_turns([many(way) for way in ways], TURNS, clock)
    return [timing.median_s / times for timing in took]


def parse_options() -> argparse.Namespace:
    parser = option_parser("bench.draws", __doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--vocabulary", type=whole_number, default=152_064)
    parser.add_argument("--threads", type=whole_number, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    main()
