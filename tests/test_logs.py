"""Log lines: one for each event, not to be forged, and with nothing in them that is secret."""

import json
import logging
import random
import subprocess
import sys
from collections import Counter
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

from runtime.logs import Bounded, JsonFormatter, TextFormatter, fields
from runtime.server.users import add_user

HOSTILE = 'a\nWARNING forged line\r\x1b[31m "quoted" \u2028 user=root'


def record(message: str, exc_info: object = None, **values: object) -> logging.LogRecord:
    made = logging.LogRecord("runtime.server.loop", logging.WARNING, "", 0, message, (), exc_info)
    made.__dict__.update(fields(**values))
    return made


def test_text_is_one_line_that_nobody_can_forge() -> None:
    line = TextFormatter().format(
        record("request refused", peer="[::1]:5", code="busy", request=7, reason=HOSTILE, user=None)
    )
    assert line.startswith("WARNING request refused peer=")
    assert "code=busy request=7 reason=" in line
    assert "user=None" not in line
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line
    assert json.loads(line.split("reason=")[1]) == HOSTILE


def test_json_is_one_object_a_line_with_the_fields() -> None:
    line = JsonFormatter().format(record("edge left", peer="10.0.0.7:5", reason=HOSTILE, tokens=3))
    assert len(line.splitlines()) == 1
    found = json.loads(line)
    assert datetime.fromisoformat(found.pop("time")).utcoffset().total_seconds() == 0
    assert found == {
        "level": "warning",
        "logger": "runtime.server.loop",
        "event": "edge left",
        "peer": "10.0.0.7:5",
        "reason": HOSTILE,
        "tokens": 3,
    }


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_a_library_cannot_forge_a_line_either(formatter: logging.Formatter) -> None:
    line = formatter.format(record("a warning\nERROR all users are admitted\n"))
    assert len(line.splitlines()) == 1
    assert "a warning" in line


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_logs_of_libraries_and_their_exceptions_fit_in(formatter: logging.Formatter) -> None:
    try:
        raise KeyError("missing")
    except KeyError:
        line = formatter.format(record("a step failed", sys.exc_info()))
    assert "a step failed" in line
    assert "KeyError: 'missing'" in line
    if isinstance(formatter, JsonFormatter):
        assert "Traceback" in json.loads(line)["exception"]


def test_warnings_of_one_event_are_told_once_a_second_with_a_count() -> None:
    """Whatever comes when: each is told, or counted with the next one that is."""
    drawn, now_s = random.Random(1), 0.0
    bounded = Bounded(lambda: now_s)
    told: dict[tuple[str, str], list[tuple[float, int]]] = {}
    came: Counter[tuple[str, str]] = Counter()
    for _ in range(5000):
        now_s += drawn.choice((0.0, 0.001, 0.1, 0.999, 1.0, 7.0))
        event = drawn.choice(("edge left", "request refused")), drawn.choice(("busy", "protocol"))
        one = record(event[0], code=event[1], peer=f"10.0.0.7:{drawn.randrange(65536)}")
        came[event] += 1
        if bounded.filter(one):
            about = one.__dict__["fields"]
            told.setdefault(event, []).append((now_s, about.get("others", 0)))
            assert about.get("others") != 0, "nothing is said of none"
    for lines in told.values():
        assert all(b - a >= 1 for (a, _), (b, _) in pairwise(lines))
    now_s += 1
    for event in came:
        one = record(event[0], code=event[1])
        assert bounded.filter(one)
        told[event].append((now_s, one.__dict__["fields"].get("others", 0)))
        assert sum(others + 1 for _, others in told[event]) == came[event] + 1


def test_what_is_no_warning_is_always_told_and_events_of_once_are_forgotten() -> None:
    now_s = 0.0
    bounded = Bounded(lambda: now_s)
    for _ in range(3):
        for level in (logging.INFO, logging.ERROR):
            one = record("a step failed")
            one.levelno = level
            assert bounded.filter(one)
    for number in range(1000):
        now_s += 0.1
        assert bounded.filter(record(f"a library's warning {number}"))
        assert len(bounded._told) <= 11


def test_a_whole_run_logs_no_token_and_no_text(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """Both ends at debug level; one edge with the right token, one with another's."""
    prompt = "a very private question"
    users, secrets = tmp_path / "users.toml", {}
    for name in ("alice", "bob"):
        secrets[name] = add_user(users, name)
        path = tmp_path / f"{name}.token"
        path.write_text(secrets[name], encoding="utf-8")
        path.chmod(0o600)

    def command(side: str, *options: str) -> list[str]:
        logs = ["--log-level", "debug", "--log-format", "json", "--threads", "1"]
        return [sys.executable, "-m", f"runtime.{side}", *logs, *options]

    def ask(address: str, user: str, token: str) -> subprocess.CompletedProcess[str]:
        options = ["--server", address, "--draft", str(tiny_pair[1]), "--prompt", prompt]
        options += ["--user", user, "--token-file", str(tmp_path / f"{token}.token")]
        done = command("edge", *options, "--max-tokens", "20", "--no-stats")
        return subprocess.run(done, capture_output=True, text=True, timeout=120)

    options = ["--model", str(tiny_pair[0]), "--port", "0", "--http", "", "--users", str(users)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command("server", *options), **pipes) as server:
        said = []
        for line in server.stdout:
            said.append(line)
            if "--server " in line:
                break
        address = said[-1].split("--server ")[1].split()[0]
        answered, refused = ask(address, "alice", "alice"), ask(address, "alice", "bob")
        server.terminate()
        logged = server.communicate()[1]
    assert answered.returncode == 0, answered.stderr
    assert refused.returncode == 2, refused.stderr
    assert server.returncode == 0
    assert "http" not in "".join(said), "the pages were not wanted"

    secret = [prompt, answered.stdout.strip(), *secrets.values()]
    for text in (logged, answered.stderr, refused.stderr):
        for word in secret:
            assert word not in text
            assert json.dumps(word)[1:-1] not in text
    events = [json.loads(line) for line in logged.splitlines()]
    ours = {event["event"]: event for event in events if event["logger"].startswith("runtime")}
    assert ours["edge admitted"]["user"] == "alice"
    ended = ours["request ended"]
    assert (ended["user"], ended["request"], ended["tokens"]) == ("alice", 1, 20)
    assert ended["peer"] == ours["edge admitted"]["peer"]
    left = [event for event in events if event["event"] == "edge left"]
    # each has looked before whether anybody listens, and said nothing
    left = [event for event in left if "user" in event or "code" in event]
    assert [event["level"] for event in left] == ["info", "warning"]
    assert left[1]["code"] == "authentication"
    assert ours["draining"]["requests"] == 0
    welcomed = [line for line in answered.stderr.splitlines() if '"welcomed"' in line]
    assert json.loads(welcomed[0])["server"] == address
