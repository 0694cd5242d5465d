"""Findings for a person in a terminal."""

from collections.abc import Iterable

from rich.style import Style

from runtime.console import Terminal
from runtime.doctor.finding import Finding, State

STYLES = {State.OK: "green", State.WARNING: "bold yellow", State.FAULT: "bold red"}
WIDTH = max(len(state.value) for state in State) + 1
INDENT = 14  # of sentences, behind the longest topic


class Page:
    """A line for each finding, and one for what mends it."""

    def __init__(self) -> None:
        self._console = Terminal(soft_wrap=True)

    def add(self, finding: Finding) -> None:
        self._console.stream(f"{finding.state.value:<{WIDTH}} ", Style.parse(STYLES[finding.state]))
        self._console.print(f"{finding.topic:<{INDENT}}{finding.sentence}")
        if finding.mend:
            self._console.print(f"{'':<{WIDTH + 1 + INDENT}}→ {finding.mend}")

    def end(self, findings: Iterable[Finding]) -> None:
        """The last line: whether anything is to be mended."""
        to_mend = sum(finding.state is not State.OK for finding in findings)
        self._console.print("nothing to mend" if not to_mend else f"to mend: {to_mend}")
