"""python -m tests.fuzz TARGET (--cases N | --seconds S): spoilt bytes at one of the doors.

With atheris (pip install 'specedge[fuzz]') and a time to spend, coverage guides the faults;
else they are random, and --cases with --seed gives the same ones each time. A finding is a
traceback; its bytes lie in --findings, to be run again as `python -m tests.fuzz TARGET FILE`.
"""

import argparse
import random
import resource
import sys
import time
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

# Far more than any target needs; beyond it an allocation fails, and that is a finding.
MEMORY_BYTES = 3 << 30
CASE_S = 20


def main() -> int:
    options = _options()
    guided = bool(find_spec("atheris")) and options.seconds and not options.files
    if guided:
        import atheris

        # an editable install's own loader cannot be instrumented
        sys.meta_path.insert(0, PathFinder)
        with atheris.instrument_imports(include=["runtime"]):
            from tests.fuzz.targets import CORPUS, TARGETS
        return _guided(atheris, TARGETS[options.target], CORPUS / options.target, options)
    from tests.fuzz.targets import CORPUS, TARGETS

    target, kept = TARGETS[options.target], sorted((CORPUS / options.target).iterdir())
    _limit_memory()
    seeds = [path.read_bytes() for path in options.files or kept]
    for seed in seeds:
        target(seed)
    return 0 if options.files else _random(target, seeds, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("target")
    parser.add_argument("files", nargs="*", type=Path, help="run these alone")
    parser.add_argument("--cases", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--findings", type=Path, default=Path("."))
    return parser.parse_args()


def _guided(atheris, target, corpus: Path, options: argparse.Namespace) -> int:
    """libFuzzer's own loop; it ends the process."""
    new = options.findings / options.target
    new.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_total_time={options.seconds}", f"-timeout={CASE_S}", "-rss_limit_mb=4096"]
    where = [f"-artifact_prefix={new}/", "-print_final_stats=1", str(new), str(corpus)]
    atheris.Setup([sys.argv[0], *limits, *where], target)
    atheris.Fuzz()
    return 0


def _random(target, seeds: list[bytes], options: argparse.Namespace) -> int:
    from tests.fuzz.mutate import mutate

    rng, start, cases = random.Random(options.seed), time.monotonic(), 0
    while cases < options.cases or time.monotonic() - start < options.seconds:
        data = mutate(rng.choice(seeds), seeds, rng)
        begun = time.monotonic()
        try:
            target(data)
            assert time.monotonic() - begun < CASE_S, f"one case took more than {CASE_S} s"
        except BaseException:
            finding = options.findings / f"{options.target}-{options.seed}-{cases}"
            finding.write_bytes(data)
            print(f"found: {finding}", file=sys.stderr)
            raise
        cases += 1
    took_s = time.monotonic() - start
    print(f"{options.target}: {cases} cases, {cases / took_s:.0f}/s")
    return 0


def _limit_memory() -> None:
    statm = Path("/proc/self/statm")
    if not statm.exists():  # not Linux
        return
    used = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES,) * 2)


if __name__ == "__main__":
    sys.exit(main())
