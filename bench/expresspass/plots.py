"""PNG plots of what was found."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from bench.expresspass.table import Table


def write_plots(folder: Path, tables: Sequence[Table]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, plot in (item for table in tables for item in table.plots.items()):
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        for label, line in plot.lines.items():
            axes.plot(*zip(*line, strict=True), "-" if len(line) > 20 else "o-", label=label)
        few = max(map(len, plot.lines.values())) <= 20
        axes.set(xlabel=plot.x_label, ylabel=plot.y_label)
        axes.set_xscale("log" if few else "linear")
        axes.set_yscale("log" if plot.log_y else "linear")
        axes.legend()
        figure.savefig(folder / f"{name}.png", dpi=120)
        plt.close(figure)
