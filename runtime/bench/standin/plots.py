"""The rows of Table 1 as a plot: what is gained over drafting on the server, beside the paper.

And a second of the last row that was measured, edge by edge.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from runtime.bench import timeline_plot
from runtime.bench.captions import save
from runtime.bench.results import take_lines
from runtime.bench.standin.paper import EDGES, NODES, TABLE_1, TASKS, times
from runtime.bench.timeline import Timeline

Key = tuple[str, str, str]  # mode, pair and task
PAPER = "the paper"
ROWS = {(row.pair, row.task) for row in TABLE_1}


@dataclass
class Found:
    """What a file of `table --json` holds; of rows measured twice, the last."""

    ratios: dict[Key, float] = field(default_factory=dict)  # of the throughputs
    timelines: dict[Key, Timeline] = field(default_factory=dict)
    rtt_ms: float = 0.0

    def take(self, row: Mapping[str, Any]) -> None:
        """One more. Raises ValueError, LookupError, TypeError or ArithmeticError if it is none."""
        ours, theirs = (row[method]["tokens_per_s"] for method in ("specedge", "server_only"))
        key = str(row["mode"]), str(row["pair"]), str(row["task"])
        if key[1:] not in ROWS:
            raise ValueError("the paper's table has no such row")
        self.ratios[key] = float(ours) / float(theirs)
        self.timelines.pop(key, None)  # the last that is measured is the last here
        self.timelines[key] = Timeline.read(row["second"])
        self.rtt_ms = float(row["rtt_ms"])


def read(path: Path) -> Found:
    """Raises ValueError for a line that is no row of the table, OSError for the file."""
    found = Found()
    take_lines(path, found.take, "a row of the table")
    return found


def write(found: Found, folder: Path) -> list[Path]:
    """Two PNGs. Raises ValueError if there is no row, OSError."""
    pairs = [pair for pair in times() if any(pair == key[1] for key in found.ratios)]
    if not pairs:
        raise ValueError("there is no row to draw")
    write_ratios(found, pairs, folder / "table.png")
    (mode, pair, task), timeline = list(found.timelines.items())[-1]
    known = times()[pair]
    title = f"One second of {mode}, stand-in models {pair}, {task}: whose tree the server verifies"
    caption = (
        f"Real server, edges and wire; a verification takes {known.verify_ms:.1f} ms, a draft pass "
        f"{known.edge_pass_ms:.1f} ms, the round trip {found.rtt_ms:g} ms; one tree of {NODES} "
        "nodes a step. Passes go on while a tree is away: they draft ahead of its verdict."
    )
    timeline_plot.write(timeline, folder / "timeline.png", title, caption)
    return [folder / "table.png", folder / "timeline.png"]


def write_ratios(found: Found, pairs: Sequence[str], path: Path) -> None:
    """A panel a pair."""
    figure, panels = plt.subplots(
        1, len(pairs), figsize=(4 * len(pairs) + 1, 4.2), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axes, pair in zip(panels[0], pairs, strict=True):
        panel(axes, pair, found.ratios)
    panels[0][0].set_ylabel("server throughput / server-only's")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside right center")
    title = "Table 1 with stand-in models, beside drafting on the server"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    caption = (
        f"Real server, {EDGES} edges and wire, {found.rtt_ms:g} ms round trip; the models are "
        "stand-ins whose passes take the paper's times and which agree as often as the paper's "
        "did on the server alone. Gray: what arXiv:2505.17052, Table 1, reports."
    )
    save(figure, path, caption)


def panel(axes: Axes, pair: str, ratios: Mapping[Key, float]) -> None:
    """The paper's ratio of each task, and that of each mode; lines at the means."""
    stated = {row.task: row.throughput_ratio for row in TABLE_1 if row.pair == pair}
    series = [(PAPER, stated, "silver")]
    for number, mode in enumerate(dict.fromkeys(mode for mode, _, _ in ratios)):
        mine = {task: ratios[mode, pair, task] for task in TASKS if (mode, pair, task) in ratios}
        series.append((mode, mine, f"C{number}"))
    width = 0.84 / len(series)
    for number, (name, heights, color) in enumerate(series):
        places = [TASKS.index(task) + (number + 0.5) * width - 0.42 for task in heights]
        bars = axes.bar(places, heights.values(), width, label=name, color=color)
        axes.bar_label(bars, fmt="%.2f", fontsize=6, padding=1)
        if heights:
            mean = fmean(heights.values())
            axes.axhline(mean, color=color, linewidth=0.8, linestyle="--", zorder=0)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(TASKS)), TASKS, rotation=30, ha="right", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{pair} (dashed: means)", fontsize=10)
