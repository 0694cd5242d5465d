"""Each alert of deploy/alerts.yaml comes in the trouble that it is for, and no other then.

The pages are those that servers would show, minute by minute; promtool, Prometheus' own, says what
the rules make of them.
"""

import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest

from runtime.config import ReplicaAddress, ServerConfig
from runtime.server.door import Door
from runtime.server.metrics import Metrics
from runtime.server.policy.credits import RoundRobin
from runtime.server.policy.pipeline import Pipeline
from runtime.server.router import Router
from runtime.server.schedule.choose import Limits
from runtime.server.schedule.scheduler import Scheduler
from runtime.wire.messages import ErrorCode, Finish
from runtime.wire.tls import Certificate

RULES = Path(__file__).parent.parent / "deploy/alerts.yaml"
Page = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Instance:
    """What one server, or front, shows; a trouble of its own comes to every minute."""

    def __init__(self, name: str) -> None:
        self.name, self.answers = name, True
        limits = Limits(4, 8, 4, 64, 8, 16, page_size=16, n_pages=64)
        self.scheduler = Scheduler(limits, lambda n: [], lambda pages: None)
        self.router = Router([ReplicaAddress.parse("a:1"), ReplicaAddress.parse("b:1")])
        for replica in self.router.replicas:
            replica.told("", 2)
        self.metrics = Metrics()
        door = Door(ServerConfig(), None, router=self.router)
        self.metrics.watch(door, self.scheduler, Pipeline(4, 64, RoundRobin()))
        self.metrics.certified(certificate(expires_s=1e9))
        self.instead: dict[str, float | str] = {"process_open_fds": 60, "process_max_fds": 1024}

    def quiet_minute(self) -> None:
        """A healthy one, with a little of every trouble."""
        for _ in range(40):
            self.metrics.opened()
            self.answer(first_token_s=0.6)
        self.answer(first_token_s=9.0)
        self.token(2.0)
        for code in (ErrorCode.BUSY, ErrorCode.DRAINING):
            self.metrics.refused(code)
        self.hang_up(ErrorCode.AUTHENTICATION)
        self.scheduler.preemptions += 1

    def answer(self, first_token_s: float, tokens: int = 10) -> None:
        """One whole answer."""
        request: Any = SimpleNamespace(
            ready_s=0.0, opened_s=0.0, verdict_s=None, finish=Finish.NONE, is_given=False
        )
        self.metrics.verdict(request, 0, 0, first_token_s)
        for _ in range(tokens):
            self.token(0.05)

    def token(self, after_s: float) -> None:
        request: Any = SimpleNamespace(
            ready_s=0.0, opened_s=0.0, verdict_s=1.0, finish=Finish.NONE, is_given=False
        )
        self.metrics.verdict(request, 0, 0, 1.0 + after_s)

    def hang_up(self, code: ErrorCode) -> None:
        """A connection ends with an Error."""
        peer: Any = SimpleNamespace(bytes_received=1, bytes_sent=1, ended_with=code)
        self.metrics.edge_left(peer)

    def page(self) -> Page:
        """By name and labels; those of the scrape among them."""
        target = {"instance": self.name, "job": "specedge"}
        page: Page = {("up", tuple(target.items())): float(self.answers)}
        if not self.answers:
            return page
        for family in self.metrics.registry.collect():
            for sample in family.samples:
                labels = {**sample.labels, **target}
                if "version" in labels and "version" in self.instead:
                    labels["version"] = str(self.instead["version"])
                value = float(self.instead.get(sample.name, sample.value))
                page[sample.name, tuple(labels.items())] = value
        return page


def certificate(expires_s: float) -> Certificate:
    return Certificate(ssl.create_default_context(), b"", Path(), Path(), "", expires_s)


def gone(it: Instance) -> None:
    it.answers = False


def fails(it: Instance) -> None:
    it.metrics.refused(ErrorCode.INTERNAL)


def refuses(it: Instance) -> None:
    for _ in range(10):
        it.metrics.opened()
        it.metrics.refused(ErrorCode.BUSY)


def writes_slowly(it: Instance) -> None:
    for _ in range(60):
        it.token(0.45)


def begins_slowly(it: Instance) -> None:
    for _ in range(10):
        it.answer(first_token_s=9.0)


def has_a_line(it: Instance) -> None:
    it.scheduler._line.extend([SimpleNamespace()] * (5 - len(it.scheduler.waiting)))


def preempts(it: Instance) -> None:
    it.scheduler.preemptions += 10


def is_tried_by_strangers(it: Instance) -> None:
    for _ in range(15):
        it.hang_up(ErrorCode.AUTHENTICATION)


def has_many_descriptors(it: Instance) -> None:
    it.instead["process_open_fds"] = 950


def is_of_another_version(it: Instance) -> None:
    it.instead["version"] = "9.9.9"


def leaves_a_replica_out(it: Instance) -> None:
    it.router.replicas[1].told("503: draining", 0)


def has_an_old_certificate(it: Instance) -> None:
    it.metrics.certified(certificate(expires_s=13 * 86400.0))


TROUBLES = {
    "SpecEdgeGone": gone,
    "SpecEdgeFails": fails,
    "SpecEdgeRefuses": refuses,
    "SpecEdgeSlowTokens": writes_slowly,
    "SpecEdgeSlowStart": begins_slowly,
    "SpecEdgeLine": has_a_line,
    "SpecEdgePages": preempts,
    "SpecEdgeWrongTokens": is_tried_by_strangers,
    "SpecEdgeDescriptors": has_many_descriptors,
    "SpecEdgeVersions": is_of_another_version,
    "SpecEdgeReplicaLeftOut": leaves_a_replica_out,
    "SpecEdgeCertificate": has_an_old_certificate,
}


def no_trouble(it: Instance) -> None:
    pass


@pytest.fixture(scope="module")
def promtool() -> str:
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("promtool is not installed (Debian has it in its package prometheus)")
    return path


def told_by(command: list[str], page: str = "") -> str:
    done = subprocess.run(command, input=page, capture_output=True, text=True, timeout=60)
    return f"{done.stdout}{done.stderr}" if done.returncode else ""


def rules() -> Iterator[Any]:
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
        yield from group["rules"]


def scraped(trouble: Callable[[Instance], None], minutes: int) -> list[Page]:
    """Two servers, of which the second gets into trouble after a quarter of an hour."""
    well, other = Instance("one:8402"), Instance("two:8402")
    pages = []
    for minute in range(minutes):
        well.quiet_minute()
        other.quiet_minute()
        if minute >= 15:
            trouble(other)
        pages.append({**well.page(), **other.page()})
    return pages


def as_test(pages: list[Page], expected: list[str]) -> dict[str, Any]:
    """For `promtool test rules`: which alerts there are at the end."""
    series = []
    for key in dict.fromkeys(key for page in pages for key in page):
        name, labels = key
        inner = ",".join(f'{label}="{value}"' for label, value in labels)
        values = " ".join(str(page.get(key, "_")) for page in pages)
        series.append({"series": f"{name}{{{inner}}}", "values": values})
    firing = {
        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": f"{len(pages) - 1}m",
        "exp_samples": [{"labels": f'{{alertname="{one}"}}', "value": 1} for one in expected],
    }
    return {"interval": "1m", "input_series": series, "promql_expr_test": [firing]}


@pytest.mark.parametrize("alert", [*TROUBLES, None])
def test_an_alert_comes_in_its_trouble_alone(
    alert: str | None, promtool: str, tmp_path: Path
) -> None:
    trouble = TROUBLES[alert] if alert else no_trouble
    pages = scraped(trouble, 80 if alert == "SpecEdgeVersions" else 40)
    test = as_test(pages, [alert] if alert else [])
    file = tmp_path / "test.yaml"
    file.write_text(
        yaml.safe_dump(
            {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}, width=10**9
        )
    )
    assert told_by([promtool, "test", "rules", str(file)]) == ""


def test_there_is_a_trouble_for_every_alert(promtool: str) -> None:
    assert [rule["alert"] for rule in rules()] == [*TROUBLES]
    assert told_by([promtool, "check", "rules", str(RULES)]) == ""


def test_prometheus_has_nothing_against_the_page(promtool: str) -> None:
    """But for names that are vLLM's, and have colons, which it thinks are for rules alone."""
    it = Instance("one:8402")
    it.quiet_minute()
    page = generate_latest(it.metrics.registry).decode()
    told = told_by([promtool, "check", "metrics"], page)
    rest = [line for line in told.splitlines() if "should not contain ':'" not in line]
    assert rest == []
