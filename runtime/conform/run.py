"""The cases by number, run one after another, and their results as text and as JUnit's XML.

A case is a public coroutine of one of the modules below; its docstring is the section of
docs/protocol.md and what that demands. Numbers follow the order in the file, so new cases go to its
end.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

from runtime.conform import drafts, ends, framing, handshake, requests, text
from runtime.conform.peer import Failed, Skipped, Target, Visitor

MODULES = {100: handshake, 200: framing, 300: requests, 400: drafts, 500: text, 600: ends}
CASE_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Case:
    """One demand, and the coroutine that returns if the server meets it."""

    number: int
    check: Callable[[Visitor], Awaitable[None]]

    @property
    def name(self) -> str:
        return self.check.__name__

    @property
    def section(self) -> str:
        """Where the page demands it."""
        return self._doc.partition(" ")[0].removeprefix("§")

    @property
    def demand(self) -> str:
        """A sentence."""
        return " ".join(self._doc.partition(" ")[2].split())

    @property
    def _doc(self) -> str:
        return self.check.__doc__ or ""


class Outcome(Enum):
    """How a case ended."""

    PASSED = "ok"
    FAILED = "FAILED"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Result:
    """A case that was run; `reason` says why it did not pass."""

    case: Case
    outcome: Outcome
    reason: str
    seconds: float


def all_cases() -> list[Case]:
    """Every case, by number."""
    return [case for first, module in MODULES.items() for case in _cases_of(first, module)]


def select(wanted: Sequence[str]) -> list[Case]:
    """Those with these numbers or names, all if none is given. Raises ValueError."""
    cases = all_cases()
    known = {key: case for case in cases for key in (f"{case.number}", case.name)}
    for key in wanted:
        if key not in known:
            raise ValueError(f"there is no case {key}; --list shows all")
    return [known[key] for key in wanted] or cases


async def run(
    cases: Sequence[Case], target: Target, tell: Callable[[Result], None]
) -> list[Result]:
    """Run cases in order; `tell` hears of each as it ends."""
    results = []
    for case in cases:
        results.append(await _run_case(case, target))
        tell(results[-1])
    return results


async def _run_case(case: Case, target: Target) -> Result:
    started_s = time.monotonic()
    outcome, reason = Outcome.PASSED, ""
    try:
        async with Visitor(target) as visitor:
            await asyncio.wait_for(case.check(visitor), CASE_TIMEOUT_S)
    except Skipped as skipped:
        outcome, reason = Outcome.SKIPPED, str(skipped)
    except (Failed, OSError) as failure:
        outcome, reason = Outcome.FAILED, str(failure)
    except asyncio.TimeoutError:
        outcome, reason = Outcome.FAILED, f"it does not end within {CASE_TIMEOUT_S:g} s"
    return Result(case, outcome, reason, time.monotonic() - started_s)


def line(result: Result) -> str:
    """A result for the terminal."""
    case = result.case
    head = f"{case.number} {result.outcome.value:7} §{case.section:4} {case.name}: {case.demand}"
    return f"{head}\n            {result.reason}" if result.reason else head


def junit(results: Sequence[Result]) -> bytes:
    """Results in the XML that test servers read."""
    count = {outcome: sum(r.outcome is outcome for r in results) for outcome in Outcome}
    suite = ElementTree.Element(
        "testsuite",
        name="STF/1",
        tests=f"{len(results)}",
        failures=f"{count[Outcome.FAILED]}",
        skipped=f"{count[Outcome.SKIPPED]}",
        time=f"{sum(result.seconds for result in results):.3f}",
    )
    for result in results:
        name, group = f"{result.case.number} {result.case.name}", f"section {result.case.section}"
        time_s = f"{result.seconds:.3f}"
        case = ElementTree.SubElement(suite, "testcase", name=name, classname=group, time=time_s)
        if result.outcome is Outcome.FAILED:
            failure = ElementTree.SubElement(case, "failure", message=result.reason)
            failure.text = result.case.demand
        elif result.outcome is Outcome.SKIPPED:
            ElementTree.SubElement(case, "skipped", message=result.reason)
    xml: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return xml


def write_junit(results: Sequence[Result], path: Path) -> None:
    """Raises OSError."""
    path.write_bytes(junit(results))


def _cases_of(first: int, module: ModuleType) -> Iterator[Case]:
    checks = [
        value
        for name, value in vars(module).items()
        if inspect.iscoroutinefunction(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    ]
    for number, check in enumerate(checks, start=first + 1):
        yield Case(number, check)
