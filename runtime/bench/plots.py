"""PNG plots of an evaluation, after the paper's figures 8, 10, 11 and 13; models are real ones."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from runtime.bench import timeline_plot
from runtime.bench.captions import save
from runtime.bench.evaluation import Row, find
from runtime.bench.modes import SERVER_ONLY
from runtime.bench.records import Run
from runtime.bench.report import layer_split_ms
from runtime.bench.timeline import second

SPECEDGE = ("specedge", "shared-steps")  # one tree a step, in turns, and both edges in every step


def write_plots(
    folder: Path, rows: Sequence[Row], timeline: Run | None, caption: str
) -> list[Path]:
    """The plots that these rows have something for; returns the files. Raises OSError.

    The caption says what they were measured with.
    """
    drawn = {"throughput.png": throughput}
    if len(by_rtt(rows)) > 1:
        drawn["rtt.png"] = latency_by_rtt
    if any(row.case.depth for row in rows):
        drawn["depth.png"] = throughput_by_depth
    for name, draw in drawn.items():
        figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
        draw(axes, rows)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        save(figure, folder / name, caption)
    if timeline is not None:
        title = f"One second of {timeline.mode}, real models: whose tree the server verifies"
        timeline_plot.write(second(timeline), folder / "timeline.png", title, caption)
    return [folder / name for name in (*drawn, *(["timeline.png"] if timeline else []))]


def throughput(axes: Axes, rows: Sequence[Row]) -> None:
    """Tokens per second of each mode, with the range over the repetitions."""
    shown = [row for row in rows if row.case.depth is None]
    names = [f"{row.case.mode}\nx {row.case.clients}" for row in shown]
    if len(by_rtt(rows)) > 1:
        names = [f"{name}\n{row.case.rtt_ms:g} ms" for name, row in zip(names, shown, strict=True)]
    spreads = [row.spread("tokens_per_s") for row in shown]
    errors = [[m - low for m, low, _ in spreads], [high - m for m, _, high in spreads]]
    colors = ["C0" if row.case.mode in SPECEDGE else "lightgray" for row in shown]
    bars = axes.bar(
        range(len(shown)), [m for m, _, _ in spreads], yerr=errors, capsize=4, color=colors
    )
    axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=3)
    axes.set_xticks(range(len(shown)), names, fontsize=7)
    axes.set_ylabel("server throughput, tokens/s")
    axes.set_title("Throughput by mode and clients, real models", fontsize=10, loc="left")


def by_rtt(rows: Sequence[Row]) -> dict[float, Row]:
    """SpecEdge's rows by round trip in ms."""
    ours = [row for row in rows if row.case.mode == "specedge" and row.case.depth is None]
    return {row.case.rtt_ms: row for row in ours}


def latency_by_rtt(axes: Axes, rows: Sequence[Row]) -> None:
    """Inter-token latency over the round trip, with the baseline and the simulated layer split."""
    ours = sorted(by_rtt(rows).items())
    rtts = [rtt_ms for rtt_ms, _ in ours]
    axes.plot(rtts, [row.median().inter_token_ms for _, row in ours], "o-", label="specedge")
    if (base := find(rows, SERVER_ONLY)) is not None:
        axes.axhline(base.median().inter_token_ms, color="gray", label=f"{SERVER_ONLY}, no network")
    split = sorted(layer_split_ms(rows).items())
    axes.plot(*zip(*split, strict=True), "s:", label="layer split (simulated)")
    axes.set(xlabel="round trip, ms", ylabel="inter-token latency, ms")
    axes.set_title("Latency by round trip, real models", fontsize=10, loc="left")
    axes.legend(fontsize=8)


def throughput_by_depth(axes: Axes, rows: Sequence[Row]) -> None:
    """Throughput by a fixed number of passes, for each round trip; dashed: not fixed."""
    fixed = [row for row in rows if row.case.depth]
    for rtt_ms in sorted({row.case.rtt_ms for row in fixed}):
        points = sorted(
            (r.case.depth, r.median().tokens_per_s) for r in fixed if r.case.rtt_ms == rtt_ms
        )
        (line,) = axes.plot(*zip(*points, strict=True), "o-", label=f"RTT {rtt_ms:g} ms")
        if (chosen := by_rtt(rows).get(rtt_ms)) is not None:
            axes.axhline(chosen.median().tokens_per_s, color=line.get_color(), linestyle="--")
    axes.set(xlabel="passes of the draft model", ylabel="server throughput, tokens/s")
    axes.set_title("Throughput by depth of trees, real models", fontsize=10, loc="left")
    axes.legend(fontsize=8, title="dashed: the policy chooses", title_fontsize=8)
