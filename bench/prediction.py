"""python -m bench.prediction: what the doctor predicts of a server, and what answers then take.

A server whose steps take a stated time, behind links of stated round trips; for each the doctor's
prediction, then whole answers of an edge with drafts and without, in turns, to prompts that the
doctor did not ask. Two processes on two cores; speeds are those of all answers together.
"""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from bench.harness import option_parser, report
from runtime.bench.link import Conditions, emulated_link
from runtime.bench.prompts import SHIPPED, read_questions
from runtime.config import EdgeConfig
from runtime.demo import running_server
from runtime.doctor import server as doctor
from runtime.doctor.finding import Finding
from runtime.edge.client import Edge
from runtime.edge.statistics import Statistics

COLUMNS = ("round trip ms", "drafts", "predicted tokens/s", "measured", "lowest", "highest", "off")


def main() -> int:
    parser = option_parser("bench.prediction", __doc__)
    parser.add_argument("--verify-ms", type=float, default=60.0, help="a step takes at least so")
    parser.add_argument("--rtt-ms", type=float, nargs="+", default=[0.0, 10.0, 40.0])
    parser.add_argument("--answers", type=int, default=6, help="of each kind at each round trip")
    parser.add_argument("--max-tokens", type=int, default=64)
    options = parser.parse_args()
    rows: list[Sequence[object]] = []
    numbers: dict[str, float] = {}
    pace, model = str(options.verify_ms / 1e3), ("--model", "smollm2", "--threads", "1")
    with running_server(
        pace, *model, "--port", "0", module="runtime.bench.paced_server"
    ) as address:
        for rtt_ms in options.rtt_ms:
            with emulated_link(address, Conditions(rtt_s=rtt_ms / 1e3)) as far:
                predicted = asyncio.run(predict(EdgeConfig(server=far, threads=1)))
                measured = measure(far, options.answers, options.max_tokens)
            for name in ("drafted", "plain"):
                expected, got = predicted[f"{name}_tokens_per_s"], measured[name]
                rows.append(row(rtt_ms, name, expected, got))
                numbers[f"{name} at {rtt_ms:g} ms"] = expected / pooled(got) - 1
    report(f"steps of {options.verify_ms:g} ms", COLUMNS, rows, numbers, options.json)
    return 0


@dataclass(frozen=True)
class Speed:
    """Of one answer behind its first token."""

    tokens: int
    seconds: float

    @classmethod
    def of(cls, stats: Statistics) -> "Speed":
        return cls(stats.tokens - 1, stats.seconds - stats.first_token_s)

    @property
    def per_s(self) -> float:
        return self.tokens / self.seconds


def pooled(speeds: Sequence[Speed]) -> float:
    """Tokens a second of all answers together."""
    return sum(speed.tokens for speed in speeds) / sum(speed.seconds for speed in speeds)


async def predict(config: EdgeConfig) -> dict[str, float]:
    """The figures of the doctor's last finding."""
    findings: list[Finding] = [finding async for finding in doctor.look(config)]
    print(findings[-1].sentence, file=sys.stderr)
    return dict(findings[-1].figures)


def measure(server: str, answers: int, max_tokens: int) -> dict[str, list[Speed]]:
    """Of answers with drafts and without, in turns."""
    speeds: dict[str, list[Speed]] = {"drafted": [], "plain": []}
    first, *others = read_questions(SHIPPED, 2)
    with Edge(
        EdgeConfig(server=server, threads=1, max_tokens=max_tokens, earlier_tokens=0)
    ) as edge:
        "".join(edge.generate(first.text, max_tokens=8))  # what is slow the first time
        for question in others[:answers]:
            for name, most_nodes in (("drafted", edge.config.max_budget), ("plain", 0)):
                answer = edge.generate(question.text, max_budget=most_nodes)
                "".join(answer)
                speeds[name].append(Speed.of(answer.statistics))
    return speeds


def row(rtt_ms: float, name: str, expected: float, got: list[Speed]) -> Sequence[object]:
    together, each = pooled(got), [speed.per_s for speed in got]
    off = f"{100 * (expected / together - 1):+.0f} %"
    spread = (f"{together:.1f}", f"{min(each):.1f}", f"{max(each):.1f}")
    return (f"{rtt_ms:g}", name, f"{expected:.1f}", *spread, off)


if __name__ == "__main__":
    sys.exit(main())
