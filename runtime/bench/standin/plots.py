"""The rows of Table 1 as a plot: what is gained over drafting on the server, beside the paper."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from runtime.bench.standin.paper import RTT_MS, TABLE_1, TASKS

Rows = Mapping[tuple[str, str, str], float]  # throughput ratio by mode, pair and task


def read(path: Path) -> Rows:
    """What `table --json` has written; of rows measured twice, the last.

    Raises ValueError for a line that is no such row, OSError for the file.
    """
    rows = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row: dict[str, Any] = json.loads(line)
            ours, theirs = (row[m]["tokens_per_s"] for m in ("specedge", "server_only"))
            rows[row["mode"], row["pair"], row["task"]] = float(ours) / float(theirs)
        except (ValueError, LookupError, TypeError, ZeroDivisionError) as error:
            raise ValueError(f"{path}, line {number}: expected a row of the table") from error
    return rows


def write(rows: Rows, path: Path) -> None:
    """A PNG with one panel for each pair that has rows. Raises ValueError if none has, OSError."""
    pairs = [p for p in dict.fromkeys(row.pair for row in TABLE_1) if any(p in k for k in rows)]
    if not pairs:
        raise ValueError("there is no row to draw")
    size = (4 * len(pairs) + 1, 4)
    figure, panels = plt.subplots(
        1, len(pairs), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axes, pair in zip(panels[0], pairs, strict=True):
        panel(axes, pair, rows)
    panels[0][0].set_ylabel("server throughput / server-only")
    panels[0][-1].legend(fontsize=8)
    figure.suptitle(
        f"Stand-in models at the paper's times, {RTT_MS} ms round trip, two edges", fontsize=10
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def panel(axes: Axes, pair: str, rows: Rows) -> None:
    """The paper's ratio of each task, and that of each mode."""
    stated = {row.task: row.throughput_ratio for row in TABLE_1 if row.pair == pair}
    modes = list(dict.fromkeys(mode for mode, _, _ in rows))
    series: list[tuple[str, Sequence[float], str]] = [
        ("paper", [stated[task] for task in TASKS], "lightgray"),
        *(
            (mode, [rows.get((mode, pair, task), 0.0) for task in TASKS], f"C{number}")
            for number, mode in enumerate(modes)
        ),
    ]
    width = 0.8 / len(series)
    for number, (name, heights, color) in enumerate(series):
        places = [x + (number + 0.5) * width - 0.4 for x in range(len(TASKS))]
        axes.bar(places, heights, width, label=name, color=color)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(TASKS)), TASKS, rotation=30, ha="right", fontsize=8)
    axes.set_title(pair, fontsize=10)
