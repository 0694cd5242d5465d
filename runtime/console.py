"""rich's console for text that others wrote: no markup in it, and nothing that a terminal obeys.

What moves while a person waits is shown on a terminal, and nowhere else.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style

from runtime.terminal import inert

USUAL_WIDTH = 80


class Terminal(Console):
    """Prints strings as they are, with control characters made visible."""

    def __init__(self, **options: Any):
        super().__init__(highlight=False, markup=False, emoji=False, **options)
        if self.width < 1:  # COLUMNS=0 means that it is not known; in no column nothing is shown
            self.width = USUAL_WIDTH

    def print(self, *objects: Any, **options: Any) -> None:
        """Console.print, for strings from anywhere."""
        shown = (inert(item) if isinstance(item, str) else item for item in objects)
        super().print(*shown, **options)

    def stream(self, text: str, style: Style | None = None) -> None:
        """A piece of a text, in whose line others follow."""
        # as it is: what a tab comes to must not depend on where a piece begins
        super().print(Segments([Segment(inert(text), style)]), end="", soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """Nobody reads on: for the program to end, not for the console."""
        raise


@contextmanager
def loading_bar(console: Terminal, name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar while a model is being loaded; gives what is told of bytes, done and in all."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    is_seen = console.is_terminal and not console.quiet
    with Progress(*columns, console=console, disable=not is_seen, transient=True) as bar:
        task = bar.add_task(inert(f"loading {name}"), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def waiting(console: Terminal, told: Callable[[], str]) -> Iterator[None]:
    """A line that says, several times a second, what there is to say; gone at the end."""
    from rich.live import Live
    from rich.text import Text

    if not console.is_terminal or console.quiet:
        yield
        return

    def line() -> Text:
        return Text(inert(told()), style="dim", no_wrap=True, overflow="ellipsis")

    with Live(get_renderable=line, console=console, transient=True, refresh_per_second=4):
        yield


@contextmanager
def saying(console: Terminal) -> Iterator[Callable[[str], None]]:
    """As `waiting`, for who knows when there is something new to say: gives what says it."""
    said = [""]
    with waiting(console, lambda: said[-1]):
        yield said.append
