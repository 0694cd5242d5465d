"""The day as a picture: who is there by hour, and how full replicas are beside what that means."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from bench.internet.day import HOURS, Kept
from bench.internet.replica import ANSWERS, QUANTILES, Curve
from bench.internet.world import HOUR_S


def draw(path: Path, kept: Kept, ours: Curve, title: str) -> None:
    """Write a PNG. Raises OSError."""
    figure, (by_hour, by_answers) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    hours = np.arange(HOURS)
    by_hour.plot(hours, kept.online, color="tab:grey", label="edges in a session")
    by_hour.plot(hours, kept.active / HOUR_S, color="tab:blue", label="answers at once")
    by_hour.set(xlabel="hour of the day where the replicas are", ylabel="mean over the hour")
    by_hour.set_ylim(bottom=0)
    by_hour.legend()
    share = kept.answers / kept.answers.sum()
    by_answers.bar(np.arange(len(share)), share, width=1.0, color="tab:blue", alpha=0.5)
    by_answers.set(xlabel="answers at once on a replica", ylabel="share of the replicas' time")
    paces = by_answers.twinx()
    p99 = [1e3 * np.interp(0.99, QUANTILES, row) for row in ours.paces]
    paces.plot(ANSWERS, p99, "o-", color="tab:red")
    paces.set_ylabel("p99 of a token over 64 in a row, ms", color="tab:red")
    paces.set_ylim(bottom=0)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
