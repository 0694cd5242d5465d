"""Capacity curves as a plot: clients that a server carries by the objective, a panel a pair."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from runtime.bench.captions import save
from runtime.bench.results import take_lines
from runtime.bench.standin.capacity import METHODS

STYLES = ("s--", "v-.", "o-")  # of the methods, whose curves may lie on one another

Curves = Mapping[tuple[str, str, str], Mapping[float, int]]  # pair, task, method: ms, clients


def read(path: Path) -> Curves:
    """What `capacity --json` has written; of figures found twice, the last.

    Raises ValueError for a line that is none, OSError for the file.
    """
    curves: dict[tuple[str, str, str], dict[float, int]] = {}

    def take(row: Any) -> None:
        method = METHODS[METHODS.index(row["method"])]
        curve = curves.setdefault((str(row["pair"]), str(row["task"]), method), {})
        curve[float(row["objective_ms"])] = int(row["clients"])

    take_lines(path, take, "a capacity")
    return curves


def write(curves: Curves, folder: Path) -> list[Path]:
    """A PNG with one panel for each pair and task. Raises ValueError if there is none, OSError."""
    rows = list(dict.fromkeys((pair, task) for pair, task, _ in curves))
    if not rows:
        raise ValueError("there is no capacity to draw")
    size = (4 * len(rows) + 1, 4)
    figure, panels = plt.subplots(1, len(rows), figsize=size, squeeze=False, layout="constrained")
    for axes, row in zip(panels[0], rows, strict=True):
        panel(axes, *row, curves)
    panels[0][0].set_ylabel("clients that a server carries")
    panels[0][-1].legend(fontsize=8)
    title = "Clients within a latency objective, simulated"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    caption = (
        "Simulated: the server's policies and the edges' rules in reckoned time, stand-in models; "
        "a step costs by its rows what the paper's tables 1, 3 and 7 say. 99 % of all stretches of "
        "64 tokens keep the objective."
    )
    save(figure, folder / "capacity.png", caption)
    return [folder / "capacity.png"]


def panel(axes: Axes, pair: str, task: str, curves: Curves) -> None:
    """A line a method."""
    for method, style in zip(METHODS, STYLES, strict=True):
        curve = curves.get((pair, task, method), {})
        objectives = sorted(curve)
        axes.plot(
            objectives,
            [curve[ms] for ms in objectives],
            style,
            label=method,
            markersize=8,
            alpha=0.8,
        )
    axes.set(xlabel="p99 objective, ms a token", title=f"{pair}, {task}")
    axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
