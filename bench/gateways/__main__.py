"""python -m bench.gateways: see the package's docstring."""

import argparse
import statistics
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace

import bench.gateways
from bench.gateways.daemons import NAMES, Measured, gateways
from bench.gateways.scenarios import MEASURED, RTT_S, SCENARIOS
from bench.gateways.schemes import SCHEMES, Scheme
from bench.gateways.simulated import Simulated
from bench.harness import option_parser, report
from bench.scheduler import Figure
from runtime.bench.attempt import attempt

SECONDS, NEAR_S = 40.0, 0.004
MEASURED_SECONDS = 16.0
LEAST_EDGES = 100


def main() -> None:
    """Print the report."""
    options = parse_options()
    columns = measured() if options.daemons else simulated(options.edges, options.draws)
    numbers = {
        f"{name}: {figure.scenario}: {figure.name}": round(figure.value, 5)
        for name, figures in columns.items()
        for figure in figures
    }
    rows = [
        (figures[0].scenario, figures[0].name, figures[0].goal, *map(shown, figures))
        for figures in zip(*columns.values(), strict=True)
    ]
    draws = 1 if options.daemons else options.draws
    title = f"gateways, means of {draws} draws (!: in one of them the goal was missed)"
    report(title, ("scenario", "figure", "goal", *columns), rows, numbers, options.json)


def simulated(edges: int, draws: int) -> dict[str, list[Figure]]:
    """Every scheme's figures, by its name."""

    def drawn(scheme: Scheme) -> Iterator[Figure]:
        for scenario in SCENARIOS:
            settings = (Simulated(scheme, edges, SECONDS, NEAR_S, seed) for seed in range(draws))
            yield from means(scenario(setting) for setting in settings)

    return {scheme.name: list(drawn(scheme)) for scheme in SCHEMES}


def means(draws: Iterable[Iterator[Figure]]) -> Iterator[Figure]:
    for figures in zip(*draws, strict=True):
        met = None if figures[0].met is None else all(figure.met for figure in figures)
        value = statistics.mean(figure.value for figure in figures)
        yield replace(figures[0], value=value, met=met)


def measured() -> dict[str, list[Figure]]:
    """The same by real gateways, and beside each what the simulation says of it."""
    columns: dict[str, list[Figure]] = {}
    with gateways(2, RTT_S) as ways:
        for scheme in NAMES:
            real = Measured(scheme, ways, MEASURED_SECONDS)
            foreseen = Simulated(scheme, 0, MEASURED_SECONDS, RTT_S, seed=0)
            for name, setting in ((scheme.name, real), (f"{scheme.name}, simulated", foreseen)):
                columns[name] = [figure for scenario in MEASURED for figure in scenario(setting)]
    return columns


def shown(figure: Figure) -> str:
    return f"{figure.value:.4g}" + (" !" if figure.met is False else "")


def parse_options() -> argparse.Namespace:
    parser = option_parser("bench.gateways", bench.gateways.__doc__)
    parser.add_argument("--edges", type=int, default=1000, help="of the crowd")
    parser.add_argument("--draws", type=int, default=3, help="of every scenario")
    parser.add_argument("--daemons", action="store_true", help="measure with real ones, as root")
    options = parser.parse_args()
    if options.edges < LEAST_EDGES:
        parser.error(f"--edges is {options.edges}; a crowd has {LEAST_EDGES} at least")
    if options.draws < 1:
        parser.error("--draws must be 1 or more")
    return options


if __name__ == "__main__":
    sys.exit(attempt("bench.gateways", main))
