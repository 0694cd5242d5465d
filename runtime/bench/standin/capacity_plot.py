"""Capacity curves as a plot: clients that a server carries by the objective, a panel a pair."""

import json
from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from runtime.bench.captions import save
from runtime.bench.standin.capacity import METHODS

STYLES = ("s--", "v-.", "o-")  # of the methods, whose curves may lie on one another

Curves = Mapping[tuple[str, str, str], Mapping[float, int]]  # pair, task, method: ms, clients


def read(path: Path) -> Curves:
    """What `capacity --json` has written; of figures found twice, the last.

    Raises ValueError for a line that is none, OSError for the file.
    """
    curves: dict[tuple[str, str, str], dict[float, int]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            key = (str(row["pair"]), str(row["task"]), str(row["method"]))
            curves.setdefault(key, {})[float(row["objective_ms"])] = int(row["clients"])
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: expected a capacity") from error
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
        points = sorted(curves.get((pair, task, method), {}).items())
        axes.plot(*zip(*points, strict=True), style, label=method, markersize=8, alpha=0.8)
    axes.set(xlabel="p99 objective, ms a token", title=f"{pair}, {task}")
    axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
