"""How fast one replica serves so many answers at once: its policy's own objects, step by step.

A run of `runtime.bench.simulation` for each of some numbers of answers, with the regions' round
trips among them; between these numbers a day interpolates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import numpy as np

from bench.internet.world import REGIONS
from runtime.bench.simulation import Accelerator, Device, Simulation
from runtime.bench.standin.calibration import name
from runtime.bench.standin.capacity import (
    JITTER,
    MOST_ROWS,
    NOISE,
    PASSES,
    SETTLE_S,
    stretch_means,
    target,
)
from runtime.bench.standin.paper import NODES, Row, step_points, times
from runtime.bench.standin.simulated import trips
from runtime.server.policy.credits import POLICIES

ANSWERS = (1, 8, 16, 32, 64, 96, 128, 192, 256)
COUNTED_S = 16.0
QUANTILES = np.linspace(0, 1, 201)


@dataclass(frozen=True)
class Curve:
    """What a replica does with each number of answers of `ANSWERS`.

    rates    [answers, regions] tokens a second of one answer
    busy     [answers] share of the time in steps
    ages     [answers, quantiles] s from when a tree leaves its edge until it is verified
    paces    [answers, quantiles] s a token, over 64 tokens in a row
    drafted  [answers] share of the verdicts that followed a draft
    """

    method: str
    rates: np.ndarray
    busy: np.ndarray
    ages: np.ndarray
    paces: np.ndarray
    drafted: np.ndarray

    def rate(self, answers: np.ndarray, region: np.ndarray) -> np.ndarray:
        """Tokens a second of answers [N], each on a replica with so many, of these regions [N]."""
        by_region = [np.interp(answers, ANSWERS, column) for column in self.rates.T]
        return np.choose(region, by_region)

    def p99(self, quantiles: np.ndarray, weights: np.ndarray) -> float:
        """Of a mixture: of `ages` or `paces`, by `weights` [most + 1] of each number of answers."""
        share = np.stack([np.interp(np.arange(len(weights)), ANSWERS, q) for q in quantiles.T])
        values, masses = share.ravel(), np.tile(weights, len(QUANTILES))
        order = np.argsort(values)
        passed = np.cumsum(masses[order])
        return float(values[order][np.searchsorted(passed, 0.99 * passed[-1])])

    def tokens_per_s(self, answers: int) -> float:
        """Of a replica with so many answers, of edges of the regions' shares."""
        shares = [region.share for region in REGIONS]
        rates = [np.interp(answers, ANSWERS, column) for column in self.rates.T]
        return answers * float(np.dot(shares, rates))

    def carried(self, pace_s: float, most: int) -> int:
        """The most answers at once whose p99 pace is no slower; 0 for none."""
        p99 = [np.interp(0.99, QUANTILES, paces) for paces in self.paces]
        counts = np.arange(1, most + 1)
        fit = counts[np.interp(counts, ANSWERS, p99) <= pace_s]
        return int(fit[-1]) if len(fit) else 0


def curve(row: Row, method: str, objective_s: float, seed: int) -> Curve:
    """Of "specedge", whose server knows the objective, or of "plain" decoding."""
    runs = [_run(row, method, answers, objective_s, seed) for answers in ANSWERS]
    rates, busy, ages, paces, drafted = (np.array(column) for column in zip(*runs, strict=True))
    return Curve(method, rates, busy, ages, paces, drafted)


def _run(
    row: Row, method: str, answers: int, objective_s: float, seed: int
) -> tuple[list[float], float, Sequence[float], Sequence[float], float]:
    accelerator = Accelerator(step_points(target(row)), 1 << 15, MOST_ROWS, NOISE)
    most_nodes = NODES if method == "specedge" else 0
    device = partial(
        Device,
        pass_s=times()[row.pair].edge_pass_ms * 1e-3,
        jitter=JITTER,
        max_nodes=most_nodes,
        max_passes=PASSES,
    )
    regions = [number % len(REGIONS) for number in range(max(answers, 1))]
    devices = [device(REGIONS[region].rtt_s, user=str(n)) for n, region in enumerate(regions)]
    simulation = Simulation(
        *(accelerator, devices, POLICIES["drr"]()),
        seed=seed,
        trip=trips([name(row)]),
        objective_s=objective_s if method == "specedge" else math.inf,
    )
    record = simulation.run(SETTLE_S + COUNTED_S, SETTLE_S)
    counted = [[one for one in trip.verdicts if one[0] > SETTLE_S] for trip in record.trips]
    tokens = [sum(count for _, count in trip) / COUNTED_S for trip in counted]
    mean = fmean(tokens)
    rates = [
        fmean([rate for rate, of in zip(tokens, regions, strict=True) if of == region] or [mean])
        for region in range(len(REGIONS))
    ]
    paces = [pace_s for trip in counted for pace_s in stretch_means(trip)]
    drafted = sum(map(len, record.trees_by_user.values())) / max(sum(map(len, counted)), 1)
    busy = record.busy_s / record.elapsed_s
    return rates, busy, _quantiles(record.ages_s), _quantiles(paces), min(drafted, 1.0)


def _quantiles(values: Sequence[float]) -> list[float]:
    return np.quantile(values, QUANTILES).tolist() if values else [0.0] * len(QUANTILES)
