"""python -m tests.model.differential SECONDS [--seed N]: new random GGUF files against llama.cpp.

The cases of the tests with other seeds, as many as the time allows, half of it for tensors and keys
and half for tokenizers. A failure names its seed.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

from tests.model import test_gguf_differential, tokenizer_cases
from tests.model.llama_cpp_vocab import LlamaCpp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float, help="how long to go on")
    parser.add_argument("--seed", type=int, default=10_000, help="the first one")
    options = parser.parse_args()
    vocabularies = LlamaCpp()
    comparisons = {
        "tensors and keys": test_gguf_differential.compare,
        "tokenizers": partial(tokenizer_cases.compare, llama_cpp=vocabularies),
    }
    for what, compare in comparisons.items():
        count = _compare_for(options.seconds / 2, options.seed, compare)
        print(f"{what}: {count} files, none differs")
    vocabularies.close()


def _compare_for(seconds: float, seed: int, compare: Callable[[int], None]) -> int:
    """How many files were compared. Raises AssertionError at the first that differs."""
    end_s, count = time.monotonic() + seconds, 0
    while time.monotonic() < end_s:
        compare(seed + count)
        count += 1
    return count


if __name__ == "__main__":
    main()
