"""PNG plots of an evaluation, after the paper's figures 8, 10 and 11, and a timeline."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from runtime.bench.evaluation import Row, find
from runtime.bench.modes import SERVER_ONLY
from runtime.bench.records import Run, Span
from runtime.bench.report import layer_split_ms

TIMELINE_S = 1.0


def write_plots(folder: Path, rows: Sequence[Row], timeline: Run | None) -> list[Path]:
    """The plots that these rows have something for; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [_save(folder / "throughput.png", lambda axes: throughput(axes, rows))]
    if len(by_rtt(rows)) > 1:
        written.append(_save(folder / "rtt.png", lambda axes: latency_by_rtt(axes, rows)))
    if any(row.case.depth for row in rows):
        written.append(_save(folder / "depth.png", lambda axes: throughput_by_depth(axes, rows)))
    if timeline is not None:
        written.append(_save(folder / "pipeline.png", lambda axes: pipeline(axes, timeline)))
    return written


def _save(path: Path, draw: Callable[[Axes], None]) -> Path:
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    draw(axes)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def throughput(axes: Axes, rows: Sequence[Row]) -> None:
    """Tokens per second of each mode, with the range over the repetitions."""
    shown = [row for row in rows if row.case.depth is None]
    names = [f"{row.case.mode}\nx {row.case.clients}" for row in shown]
    if len(by_rtt(rows)) > 1:
        names = [f"{name}\n{row.case.rtt_ms:g} ms" for name, row in zip(names, shown, strict=True)]
    spreads = [row.spread("tokens_per_s") for row in shown]
    errors = [[m - low for m, low, _ in spreads], [high - m for m, _, high in spreads]]
    axes.bar(range(len(shown)), [m for m, _, _ in spreads], yerr=errors, capsize=4)
    axes.set_xticks(range(len(shown)), names, fontsize=7)
    axes.set_ylabel("server throughput, tokens/s")


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
    axes.set(xlabel="round trip, ms", ylabel="inter-token latency, ms", ylim=(0, None))
    axes.legend()


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
    axes.legend()


def pipeline(axes: Axes, run: Run) -> None:
    """A second from the middle of a run: which request's trees the server verifies, who drafts."""
    begin_s = (run.start_s + run.end_s) / 2
    visible = [s for s in run.steps if begin_s <= s.start_s < begin_s + TIMELINE_S]
    requests = sorted({name for step in visible for name in step.nodes})
    for number, name in enumerate(requests):
        spans = [(step.start_s, step.end_s) for step in visible if name in step.nodes]
        _bars(axes, spans, begin_s, 0, f"C{number}")
    for client in range(run.clients):
        spans = [s for a in run.answers if a.client == client for s in a.passes]
        spans = [s for s in spans if begin_s <= s[0] < begin_s + TIMELINE_S]
        _bars(axes, spans, begin_s, client + 1, "lightgray")
    names = ["server verifies", *(f"edge {client + 1} drafts" for client in range(run.clients))]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("ms")


def _bars(axes: Axes, spans: Sequence[Span], begin_s: float, row: int, color: str) -> None:
    bars = [(1e3 * (start_s - begin_s), 1e3 * (end_s - start_s)) for start_s, end_s in spans]
    axes.broken_barh(bars, (row - 0.4, 0.8), facecolors=color, edgecolor="white", linewidth=0.5)
