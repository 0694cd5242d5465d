"""What `ablations` found as plots: a bar a cell, and the round trip as a curve. Simulated."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from runtime.bench.captions import save
from runtime.bench.results import take_lines
from runtime.bench.standin.grid import BASE, CELLS, GROUPS, Cell
from runtime.bench.standin.paper import MEAN_THROUGHPUT_RATIO

Found = Mapping[Cell, Mapping[tuple[str, str], float]]  # pair, task: ratio of the throughputs

TRIP = "round trip"
CAPTION = (
    "Simulated: the server's policies and the edges' trees and rules in reckoned time; stand-in "
    "models at the paper's times that agree as often as the paper's did on the server alone. "
    "Beside drafting on the server with the same number of trees a step; means of {rows} rows of "
    "Table 1, and the least and most of them."
)


def read(path: Path) -> Found:
    """What `ablations --json` has written; of figures found twice, the last.

    Raises ValueError for a line that is none, OSError for the file.
    """
    known = {(cell.group, cell.name): cell for cell in CELLS}
    found: dict[Cell, dict[tuple[str, str], float]] = {}

    def take(row: Any) -> None:
        ratios = found.setdefault(known[row["group"], row["cell"]], {})
        ratios[str(row["pair"]), str(row["task"])] = float(row["throughput_ratio"])

    take_lines(path, take, "a figure of an ablation")
    return found


def write(found: Found, folder: Path) -> list[Path]:
    """The PNGs that there is something for. Raises ValueError if there is nothing, OSError."""
    if BASE not in found:
        raise ValueError("there is nothing to draw yet")
    caption = CAPTION.format(rows=len(found[BASE]))
    written = [folder / "ablations.png"]
    write_bars([cell for cell in found if cell.group != TRIP], found, written[0], caption)
    trips = sorted((c for c in found if c.group in (TRIP, BASE.group)), key=lambda c: c.rtt_ms)
    if len(trips) > 1:
        written.append(folder / "round-trip.png")
        write_trips(trips, found, written[1], caption)
    return written


def write_bars(cells: Sequence[Cell], found: Found, path: Path, caption: str) -> None:
    """One below the other, a colour for each group."""
    figure, axes = plt.subplots(figsize=(8, 1.6 + 0.27 * len(cells)), layout="constrained")
    for place, cell in enumerate(cells):
        values = list(found[cell].values())
        mean = fmean(values)
        color = "black" if cell == BASE else f"C{GROUPS.index(cell.group)}"
        error = [[mean - min(values)], [max(values) - mean]]
        axes.barh(place, mean, 0.75, color=color, xerr=error, ecolor="0.6", capsize=2)
        axes.text(0.04, place, f"{mean:.2f}", color="white", fontsize=8, va="center")
    mean = fmean(found[BASE].values())
    axes.axvline(mean, color="black", linewidth=0.8, linestyle=":", label=f"all of it, {mean:.2f}")
    axes.axvline(1, color="black", linewidth=0.8)
    label = f"the paper's mean, {MEAN_THROUGHPUT_RATIO}"
    axes.axvline(MEAN_THROUGHPUT_RATIO, color="C3", linewidth=1, linestyle="--", label=label)
    axes.set_yticks(range(len(cells)), [f"{c.group}: {c.name}" for c in cells], fontsize=8)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel("server throughput / server-only's of the same batch")
    axes.set_title("What each part, link and edge is worth, simulated", fontsize=11, loc="left")
    axes.legend(fontsize=8, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path, caption)


def write_trips(cells: Sequence[Cell], found: Found, path: Path, caption: str) -> None:
    """The mean over the round trip, and the band of all rows."""
    rtts = [cell.rtt_ms for cell in cells]
    values = [list(found[cell].values()) for cell in cells]
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.fill_between(rtts, list(map(min, values)), list(map(max, values)), alpha=0.2)
    axes.plot(rtts, list(map(fmean, values)), "o-", label="SpecEdge, simulated: mean of the rows")
    label = "the paper, 14.07 ms"
    axes.plot([BASE.rtt_ms], [MEAN_THROUGHPUT_RATIO], "s", color="C3", label=label)
    axes.axhline(1, color="gray", linewidth=1, label="server-only, no network")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("round trip, ms")
    axes.set_ylabel("server throughput / server-only's")
    axes.set_title("Throughput by round trip, simulated", fontsize=11, loc="left")
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path, caption)
