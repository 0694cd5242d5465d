"""rich's console for text that others wrote: no markup in it, and nothing that a terminal obeys."""

from typing import Any

from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style

from runtime.terminal import inert


class Terminal(Console):
    """Prints strings as they are, with control characters made visible."""

    def __init__(self, **options: Any):
        super().__init__(highlight=False, markup=False, emoji=False, **options)

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
