"""What was measured as lines of a table and as numbers with names."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.peers.in_turns import ROWS, Engine
from bench.peers.served import Served

OURS, THEIRS = "specedge", "llama.cpp"
COLUMNS = (
    "file",
    "measured",
    "unit",
    "SpecEdge",
    "llama.cpp",
    "ratio",
    "transformers",
    "off, nats",
)


@dataclass(frozen=True)
class Line:
    """One measured thing. `off` is how far each engine is from the judge, where that is asked."""

    key: str
    what: str
    unit: str
    values: Mapping[str, float]  # by engine
    off: Mapping[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Ours by llama.cpp's; None where that is nothing."""
        return self.values[OURS] / self.values[THEIRS] if self.values[THEIRS] else None

    def numbers(self, suffix: str) -> dict[str, float]:
        """For --json: the ratio, and each engine's value."""
        unit = self.unit.replace("/", "_per_")
        named = {} if self.ratio is None else {f"{self.key}_ratio{suffix}": round(self.ratio, 4)}
        for engine, value in self.values.items():
            named[f"{self.key}_{unit}_{engine.replace('.', '_')}{suffix}"] = round(value, 4)
        return named

    def row(self, file: str) -> tuple[object, ...]:
        """For the table: file, name, unit, ours, theirs, ratio, the third one's, nats off."""
        third = [value for engine, value in self.values.items() if engine not in (OURS, THEIRS)]
        off = " / ".join(f"{self.off[engine]:.2f}" for engine in (OURS, THEIRS) if self.off)
        values = [_short(value) for value in (self.values[OURS], self.values[THEIRS])]
        thirds = [_short(value) for value in third] or ["-"]
        ratio = "-" if self.ratio is None else f"{self.ratio:.2f}"
        return (file, self.what, self.unit, *values, ratio, *thirds, off or "-")


def lines(engines: Mapping[str, Engine], prompt: int, count: int) -> list[Line]:
    """Everything that was measured of one file."""

    def of(key: str, unit: str, what: str, scale: float, inverse: bool) -> Line:
        seconds = {name: engine.measured[key].median_s for name, engine in engines.items()}
        values = {
            name: scale / second if inverse else scale * second for name, second in seconds.items()
        }
        off = {name: engine.measured[key].off for name, engine in engines.items()}
        return Line(key, what, unit, values, off)

    def memory(key: str, what: str, of_all: bool) -> Line:
        values = {
            name: (engine.resident_bytes - (0 if of_all else engine.import_bytes)) / 2**20
            for name, engine in engines.items()
        }
        return Line(key, what, "MiB", values)

    starts = {name: statistics.median(engine.start_s) for name, engine in engines.items()}
    return [
        of("decode", "tokens/s", f"decoding {count} tokens", count, inverse=True),
        *(of(f"rows{rows}", "ms", f"step of {rows} rows", 1e3, inverse=False) for rows in ROWS),
        of("prompt", "tokens/s", f"reading {prompt} tokens", prompt, inverse=True),
        memory("rss", "memory beyond imports", of_all=False),
        memory("rss_all", "memory in all", of_all=True),
        Line("startup", "start to first token", "s", starts),
    ]


def served_lines(served: Mapping[str, Served]) -> list[Line]:
    """Both servers: plain, and with the same draft."""

    def of(key: str, what: str, unit: str, ending: str, value) -> Line:
        return Line(
            key, what, unit, {name: value(served[name + ending]) for name in (OURS, THEIRS)}
        )

    draft = ", draft"
    return [
        of("served", "server, plain", "tokens/s", "", lambda one: one.median_tokens_per_s),
        of("drafted", "with the draft", "tokens/s", draft, lambda one: one.median_tokens_per_s),
        of(
            *("verification", "tokens per verification", "tokens", draft),
            lambda one: statistics.mean(one.tokens_per_verification),
        ),
        of(
            "server_rss",
            "server's memory in all",
            "MiB",
            "",
            lambda one: one.resident_bytes / 2**20,
        ),
        of("server_ready", "server ready", "s", "", lambda one: one.ready_s),
        of("different", "texts not plain", "texts", draft, lambda one: one.different),
    ]


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def report_of(file: str, suffix: str, found: Sequence[Line]) -> tuple[list, dict[str, float]]:
    """Rows and numbers."""
    numbers = {name: value for line in found for name, value in line.numbers(suffix).items()}
    return [line.row(file) for line in found], numbers
