"""A timeline as a plot: a colour an edge, and for the server that of whose tree it verifies."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from runtime.bench.captions import save
from runtime.bench.timeline import SECOND_S, Timeline

HEIGHT = 0.7  # of a row's bars


def write(timeline: Timeline, path: Path, title: str, caption: str) -> None:
    """A PNG. Raises OSError."""
    clients = len(timeline.drafted)
    figure, axes = plt.subplots(figsize=(10, 1.7 + 0.55 * clients), layout="constrained")
    draw(axes, timeline)
    shown = [Patch(color=f"C{client}", label=f"edge {client + 1}") for client in range(clients)]
    figure.legend(handles=shown, loc="outside right upper", fontsize=8)
    axes.set_title(title, fontsize=10, loc="left")
    save(figure, path, caption)


def draw(axes: Axes, timeline: Timeline) -> None:
    """The server's row above, then a row an edge."""
    clients = len(timeline.drafted)
    for start_ms, end_ms, whose in timeline.verified:
        for place, client in enumerate(whose):
            height = HEIGHT / len(whose)
            bar = (start_ms, end_ms - start_ms)
            _bars(axes, [bar], -HEIGHT / 2 + place * height, height, client)
    for client, spans in enumerate(timeline.drafted):
        bars = [(start_ms, end_ms - start_ms) for start_ms, end_ms in spans]
        _bars(axes, bars, client + 1 - HEIGHT / 2, HEIGHT, client)
    names = ["server verifies", *(f"edge {client + 1} drafts" for client in range(clients))]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1e3 * SECOND_S)
    axes.set_xlabel("time, ms")


def _bars(
    axes: Axes, bars: list[tuple[float, float]], bottom: float, height: float, client: int
) -> None:
    place = (bottom, height)
    axes.broken_barh(bars, place, facecolors=f"C{client}", edgecolor="white", linewidth=0.6)
