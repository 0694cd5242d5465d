"""python -m tests.native SECONDS: new random cases on every instruction set, until time is up."""

import sys
import tempfile
import time
from pathlib import Path

from tests.native.build import ISAS, build, run

CASES = 2_000  # of one process


def main(seconds: float) -> int:
    with tempfile.TemporaryDirectory() as folder:
        driver = build(Path(folder))
        seed = int(time.time()) * CASES
        for isa in ISAS:
            start, first = time.monotonic(), seed
            while time.monotonic() - start < seconds / len(ISAS):
                cases = run(driver, seed, CASES, isa)
                if cases.returncode:
                    print(cases.stderr, file=sys.stderr)
                    return 1
                seed += CASES
            rate = (seed - first) / (time.monotonic() - start)
            print(f"native, {isa}: {seed - first} cases, {rate:.0f}/s")
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
