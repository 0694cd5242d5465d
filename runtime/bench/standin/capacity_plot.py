"""Capacity curves as a plot: clients that a server carries by the objective, a panel a pair."""

import json
from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from runtime.bench.standin.capacity import METHODS

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


def write(curves: Curves, path: Path) -> None:
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
    figure.suptitle(
        "Simulated, stand-in models, the paper's cost of a step by its rows", fontsize=10
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def panel(axes: Axes, pair: str, task: str, curves: Curves) -> None:
    """A line a method."""
    for method in METHODS:
        points = sorted(curves.get((pair, task, method), {}).items())
        axes.plot(*zip(*points, strict=True), "o-", label=method)
    axes.set(xlabel="p99 objective, ms a token", title=f"{pair}, {task}")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
