"""python -m tests.native [--fuzz] SECONDS: new cases on every instruction set, until time is up.

They are random; with --fuzz and clang++, coverage guides them. A random finding is a seed; what
libFuzzer found lies in --findings, to be run again as `python -m tests.native --replay FILE...`.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from subprocess import CompletedProcess

from tests.native.build import HERE, ISAS, NoSanitizer, build, build_fuzzer, run, runs

CASES = 2_000  # of one process
CORPUS = HERE / "corpus"
LIMITS = ("-max_len=512", "-len_control=0", "-timeout=20", "-detect_leaks=0")


def main() -> int:
    options = _options()
    cases = _guided if options.fuzz else _replayed if options.replay else _random
    with tempfile.TemporaryDirectory() as folder:
        try:
            driver = (build_fuzzer if options.fuzz else build)(Path(folder))
        except NoSanitizer as reason:
            print(f"native: nothing was run: {reason}")
            return 0
        for isa in filter(lambda isa: runs(driver, isa), ISAS):
            outcome = cases(driver, isa, options)
            if outcome.returncode:
                print(outcome.stderr, file=sys.stderr)
                return 1
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.native", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("seconds", nargs="?", type=float)
    what.add_argument("--replay", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--fuzz", action="store_true", help="let coverage guide the cases")
    parser.add_argument("--findings", type=Path, default=Path("."))
    return parser.parse_args()


def _random(driver: Path, isa: str, options: argparse.Namespace) -> CompletedProcess[str]:
    start, count, seed = time.monotonic(), 0, time.time_ns()
    while True:
        outcome = run(driver, isa, seed + count, CASES)
        count += CASES
        took_s = time.monotonic() - start
        if outcome.returncode or took_s >= options.seconds / len(ISAS):
            print(f"native, {isa}: {count} cases, {count / took_s:.0f}/s")
            return outcome


def _guided(driver: Path, isa: str, options: argparse.Namespace) -> CompletedProcess[str]:
    """On from the kept cases and those of earlier runs."""
    new = options.findings / "native"
    new.mkdir(parents=True, exist_ok=True)
    time_limit = f"-max_total_time={max(1, round(options.seconds / len(ISAS)))}"
    outcome = run(driver, isa, time_limit, *LIMITS, f"-artifact_prefix={new}/", new, CORPUS)
    for line in outcome.stderr.splitlines():
        if "DONE" in line:
            print(f"native, {isa}, guided: {line}")
    return outcome


def _replayed(driver: Path, isa: str, options: argparse.Namespace) -> CompletedProcess[str]:
    outcome = run(driver, isa, "replay", *options.replay)
    print(outcome.stdout, end="")
    return outcome


if __name__ == "__main__":
    sys.exit(main())
