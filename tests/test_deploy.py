"""What is in deploy/ and docs/ agrees with the code: options, metrics, files, and the drain."""

import configparser
import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import promql_parser
import pytest
import yaml
from prometheus_client.samples import Sample

from runtime.arguments import parse
from runtime.config import ConfigError, EdgeConfig, ServerConfig
from runtime.option_files import read_secret
from runtime.options import flag
from runtime.server.door import Door
from runtime.server.metrics import Metrics
from runtime.server.policy.credits import RoundRobin
from runtime.server.policy.pipeline import Pipeline
from runtime.server.router import Router
from runtime.server.schedule.choose import Limits
from runtime.server.schedule.scheduler import Scheduler
from runtime.stack.__main__ import StackConfig
from runtime.wire.messages import ErrorCode
from tests.ports import reserved_port

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "specedge.service"
OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
OF_TORCHRUN = {
    *("--standalone", "--nproc-per-node", "--nnodes", "--node-rank"),
    *("--master-addr", "--master-port", "--shutdown-timeout"),
}
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    """Of a server that has done nothing yet, and a front's of its replicas."""
    limits = Limits(1, 1, 1, 2, 1, 1, page_size=16, n_pages=1)
    made = Metrics()
    made.watch(
        Door(ServerConfig(), None, router=Router([])),
        Scheduler(limits, lambda n: [], lambda pages: None),
        Pipeline(1, 2, RoundRobin()),
    )
    return made


def unit() -> configparser.SectionProxy:
    """[Service], the last value where a key comes several times."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read_string(UNIT.read_text(encoding="utf-8").replace("\\\n", " "))
    return parser["Service"]


def server_options(command: list[str]) -> ServerConfig:
    """The config that a command line makes, of a server that is started as it says."""
    return parse(ServerConfig, command, {}, "server")


def test_the_unit_starts_a_server_and_outlives_its_drain() -> None:
    service = unit()
    python, dash_m, module, *options = shlex.split(service["ExecStart"])
    assert (Path(python).name, dash_m, module) == ("python", "-m", "runtime.server")
    assert options[:2] == ["--config", "/etc/specedge/server.toml"]
    config = server_options(["--config", str(DEPLOY / "server.toml"), *options[2:]])
    handed = re.findall(r"LoadCredential=(.+):/etc/specedge/\1\n", UNIT.read_text())
    paths = (config.users, config.tls_certificate, config.tls_key)
    assert [f"${{CREDENTIALS_DIRECTORY}}/{name}" for name in handed] == [*paths]
    assert service["KillSignal"] == "SIGTERM"
    assert int(service["TimeoutStopSec"]) > config.drain_s
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == "2"
    assert "StartLimitIntervalSec=0\n" in UNIT.read_text(), "what passes is tried until it has"
    for hardening in ("DynamicUser", "NoNewPrivileges", "PrivateTmp", "ProtectHome"):
        assert service[hardening] == "yes"


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    text = UNIT.read_text(encoding="utf-8").replace("/opt/specedge/bin/python", sys.executable)
    (tmp_path / UNIT.name).write_text(text, encoding="utf-8")
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / UNIT.name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def test_the_image_copies_what_is_there_and_drops_its_rights() -> None:
    lines = instructions()
    copied = [arguments.split() for name, arguments in lines if name == "COPY"]
    sources = {source for part in copied if "--from" not in part[0] for source in part[:-1]}
    assert sources >= {"pyproject.toml", "CMakeLists.txt", "csrc", "specedge_kernels", "runtime"}
    assert all((ROOT / source).exists() for source in sources)
    names = [name for name, _ in lines]
    last_stage = dict(lines[len(names) - names[::-1].index("FROM") :])
    assert last_stage["USER"] not in ("root", "0")
    assert (
        f"useradd --system --uid 10001 --create-home --home-dir {last_stage['WORKDIR']}"
        in (last_stage["RUN"])
    )
    assert names.index("USER") > max(n for n, name in enumerate(names) if name in ("RUN", "COPY"))


def test_the_image_starts_a_server_and_asks_whether_it_is_ready() -> None:
    lines = dict(instructions())
    assert json.loads(lines["ENTRYPOINT"]) == ["python", "-m", "runtime.server"]
    options = json.loads(lines["CMD"])
    assert options[:2] == ["--config", "/etc/specedge/server.toml"]
    config = server_options(["--config", str(DEPLOY / "server.toml"), *options[2:]])
    assert lines["EXPOSE"] == str(config.port)
    assert f"http://{config.http}/ready" in lines["HEALTHCHECK"]
    probe = json.loads(lines["HEALTHCHECK"].split("CMD ")[1])
    with reserved_port() as port:
        assert asked(probe, config.http, port).returncode != 0
        with http.server.HTTPServer(("127.0.0.1", 0), Ready) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            # a proxy at which nobody listens is not asked
            done = asked(probe, config.http, server.server_port, f"http://127.0.0.1:{port}")
            server.shutdown()
        assert done.returncode == 0, done.stderr
    assert lines["STOPSIGNAL"] == "SIGTERM"


class Ready(http.server.BaseHTTPRequestHandler):
    """Answers 200 to /ready alone."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/ready" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def asked(
    probe: list[str], address: str, port: int, proxy: str = ""
) -> "subprocess.CompletedProcess[str]":
    """The health check, at another port."""
    code = probe[-1].replace(address, f"127.0.0.1:{port}")
    environment = {**os.environ, "http_proxy": proxy, "no_proxy": ""}
    command = [sys.executable, *probe[1:-1], code]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_every_expression_of_the_dashboard_names_a_metric(metrics: Metrics) -> None:
    known = {
        family.name + suffix
        for family in metrics.registry.collect()
        for suffix in SUFFIXES[family.type]
    }
    board = json.loads((DEPLOY / "grafana.json").read_text(encoding="utf-8"))
    targets = [target for panel in board["panels"] for target in panel.get("targets", ())]
    assert len(targets) > 30
    used = set()
    for target in targets:
        names = re.findall(r"\b(?:specedge:|process_)\w+", target["expr"])
        assert names, target["expr"]
        assert target["expr"].count("(") == target["expr"].count(")")
        used |= set(names)
    for variable in board["templating"]["list"]:
        used |= set(re.findall(r"specedge:\w+", json.dumps(variable)))
    assert used <= known, used - known
    ours = {name for name in known if name.startswith("specedge:")}
    bare = re.compile("_(bucket|sum|count)$")
    assert {bare.sub("", name) for name in ours} <= {bare.sub("", name) for name in used}


def test_every_alert_can_be_read_and_names_what_there_is(metrics: Metrics) -> None:
    """By the grammar of Prometheus; labels have values that the code gives them."""
    known = {
        family.name + suffix
        for family in metrics.registry.collect()
        for suffix in SUFFIXES[family.type]
    }
    (group,) = yaml.safe_load((DEPLOY / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    values = {
        "code": {code.name.lower() for code in ErrorCode},
        "of": {sample.labels["of"] for sample in samples_of(metrics, "specedge:limit")},
    }
    assert len(group["rules"]) >= 10
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]
        for selector in selectors(promql_parser.parse(rule["expr"])):
            assert selector.name in {*known, "up", "process_open_fds", "process_max_fds"}, rule
            for matcher in selector.matchers.matchers:
                if matcher.name in values:
                    assert set(matcher.value.split("|")) <= values[matcher.name], rule


def selectors(node: object) -> Iterator[promql_parser.VectorSelector]:
    """Every series that an expression asks for."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for part in ("lhs", "rhs", "expr", "vector_selector", "param"):
        yield from selectors(child) if (child := getattr(node, part, None)) is not None else ()
    for argument in getattr(node, "args", None) or ():
        yield from selectors(argument)


def samples_of(metrics: Metrics, name: str) -> list[Sample]:
    return [s for family in metrics.registry.collect() for s in family.samples if s.name == name]


def test_the_table_of_metrics_is_the_code(metrics: Metrics) -> None:
    table = OPERATIONS.split("<!-- metrics -->")[1].split("<!-- end -->")[0]
    rows = dict(re.findall(r"^\| `(\w+)(?:\{[\w,]+\})?` (\| \w+ \| .*) \|$", table, flags=re.M))
    assert rows == {
        family.name.removeprefix("specedge:") + ("_total" if family.type == "counter" else ""): (
            f"| {family.type} | {family.documentation}"
        )
        for family in metrics.registry.collect()
        if family.name.startswith("specedge:")
    }


def test_the_options_and_links_of_the_pages_exist() -> None:
    programs = (ServerConfig, EdgeConfig, StackConfig)
    flags = {flag(item.name) for config in programs for item in fields(config)}
    for page in (ROOT / "docs/operations.md", ROOT / "SECURITY.md"):
        text = page.read_text(encoding="utf-8")
        for option in re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", without_shell(text)):
            known = flags | {"--help", "--config", "--build-arg"} | OF_TORCHRUN
            assert option.replace("--no-", "--", 1) in known, f"{page.name}: {option}"
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def without_shell(text: str) -> str:
    """The text without blocks whose commands are not ours."""
    blocks = re.split(r"```", text)
    return "".join(b for n, b in enumerate(blocks) if n % 2 == 0 or "runtime." in b)


def test_the_limits_that_the_page_tells_are_the_defaults() -> None:
    limits = OPERATIONS.split("## Limits")[1]
    config = ServerConfig()
    for cells in re.findall(r"^\| [^|]* \| ([^|]*) \| (`--[^|]*`) \|$", limits, flags=re.M):
        values, options = (re.split(r"[;,] ", cell) for cell in cells)
        if "model's" in cells[0]:
            assert config.max_context == 0
            continue
        for value, option in zip(values, options, strict=True):
            name = option.strip("`").removeprefix("--").replace("-", "_")
            assert float(value.removesuffix(" s")) == getattr(config, name), option


def test_a_secret_that_root_hands_to_a_service_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd shows a credential as root's with mode 0440; our own file must be ours alone."""
    path = tmp_path / "users.toml"
    path.write_text("secret", encoding="utf-8")
    path.chmod(0o440)
    with pytest.raises(ConfigError, match="others may read"):
        read_secret(path)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    assert read_secret(path) == "secret"
    path.chmod(0o444)
    with pytest.raises(ConfigError, match="others may read"):
        read_secret(path)
