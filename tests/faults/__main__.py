"""python -m tests.faults: every named fault, and as many random schedules and kills as wanted.

Runs the tests of this folder and of the network stack, and ends with figures. The seeds of a
failure are in its name:
`--first-seed N --schedules 1` runs schedule N alone.
"""

import argparse
import statistics
import sys
from collections import defaultdict

import pytest

from tests.faults.amounts import ASKED, Amounts


class Torture:
    """A pytest plugin: says how many cases there are, and sums up what they report."""

    def __init__(self, amounts: Amounts) -> None:
        self._amounts = amounts
        self._figures: dict[str, list[float]] = defaultdict(list)

    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[ASKED] = self._amounts

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            for name, value in report.user_properties:
                self._figures[name].append(float(value))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for name, values in self._figures.items():
            middle, longest = statistics.median(values), max(values)
            terminalreporter.line(
                f"{name}: median {middle:.3f}, longest {longest:.3f}, {len(values)} identical texts"
            )


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__)
    parser.add_argument("--schedules", type=int, default=200)
    parser.add_argument("--kills", type=int, default=50, help="of servers, and as many of edges")
    parser.add_argument("--first-seed", type=int, default=0)
    options = parser.parse_args()
    amounts = Amounts(options.schedules, options.kills, options.first_seed)
    return pytest.main(["-q", "tests/faults", "tests/stack"], plugins=[Torture(amounts)])


if __name__ == "__main__":
    sys.exit(main())
