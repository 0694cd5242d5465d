"""What an operator is told at the start: commands that work as printed, and what may pass."""

import http.server
import os
import re
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from runtime.arguments import parse
from runtime.config import ConfigError, EdgeConfig, ServerConfig
from runtime.console import Terminal
from runtime.option_files import read_token
from runtime.server.__main__ import main
from runtime.server.start import _announce, start
from runtime.server.users import load_users
from runtime.wire.tls import load_certificate
from tests.certificates import self_signed


def test_the_token_of_a_new_user_is_all_of_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in --add-user bob > token."""
    users, token = tmp_path / "users.toml", tmp_path / "token"
    start(ServerConfig(users=str(users), add_user="bob"))
    shown = capsys.readouterr()
    token.write_text(shown.out, encoding="utf-8")
    token.chmod(0o600)
    assert load_users(users) == {"bob": read_token(token).encode()}
    assert shown.err.startswith("added bob to ")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds 0 characters; a token has 32 or more"),
        ("abc\n", "holds 3 characters"),
        (f"added bob to users.toml:\n{'0' * 64}\n", "holds 2 lines; expected a token"),
    ],
)
def test_a_file_that_holds_no_token_is_refused_before_a_server_counts_it(
    tmp_path: Path, text: str, says: str
) -> None:
    path = tmp_path / "token"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=says):
        read_token(path)


def test_what_a_log_is_told_is_not_broken_into_lines(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = tmp_path / ("x" * 100)
    folder.symlink_to(tiny_pair[0])
    command = [sys.executable, "-m", "runtime.server", "--model", str(folder), "--http", ""]
    server = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    ready = server.stdout.readline()
    server.terminate()
    server.communicate(timeout=60)
    assert ready.startswith(f"{folder} ready on cpu: ")
    assert ready.endswith(" MiB)\n")


@pytest.mark.parametrize("model", ["smollm2", "/models/Qwen[8]B"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "fd99::1", "::", "0.0.0.0"])
def test_the_command_for_edges_is_one(
    host: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ServerConfig(host="127.0.0.1", model=model)
    _announce(config, Terminal(width=40), None, host, 8651)
    *before, command = capsys.readouterr().out.splitlines()
    options = command.split()[3:]
    assert command.startswith("python -m runtime.edge --server ")
    edge = parse(EdgeConfig, options, {}, "edge")
    assert edge.chat
    if host not in ("::", "0.0.0.0"):
        assert edge.server == (f"[{host}]:8651" if ":" in host else f"{host}:8651")
    if model == "smollm2":
        assert edge.draft == EdgeConfig.draft
    else:
        assert edge.draft == "DRAFT"
        assert f"DRAFT below: a small model with the vocabulary of {model}" in before


@pytest.mark.parametrize("days", [2, -1])
def test_a_certificate_that_has_expired_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], days: int
) -> None:
    self_signed(tmp_path, "server", days=days)
    certificate = load_certificate(tmp_path / "server.pem", tmp_path / "server.key")
    _announce(ServerConfig(), Terminal(), certificate, "127.0.0.1", 8651)
    *before, command = capsys.readouterr().out.splitlines()
    assert certificate.pin in command
    sentence = f"WARNING: {certificate.file}: certificate has expired; whoever does not pin it "
    assert before == ([f"{sentence}refuses it"] if days < 0 else [])


def test_an_address_that_is_not_up_yet_has_a_status_that_systemd_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start(ServerConfig(users=str(tmp_path / "users"), add_user="bob"))
    options = ["--users", str(tmp_path / "users"), "--host", "192.0.2.1", "--http", ""]
    monkeypatch.setattr(sys, "argv", ["server", *options])
    assert main() == 75
    assert "this machine does not have this address" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["server", "--port", "0", "--http", "192.0.2.1:0"])
    assert main() == 75
    monkeypatch.setattr(sys, "argv", ["server", *options, "--host", "no such host"])
    assert main() == 2


def test_a_hub_that_is_away_may_come_back(tmp_path: Path) -> None:
    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if "gone" in self.path:
                self.close_connection = True
                return
            self.send_response(503 if "busy" in self.path else 404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    body = (
        "from runtime.model.locate import HubAway, locate\n"
        "for name in ('some/gone', 'some/busy', 'some/missing'):\n"
        "    try:\n        locate(name)\n"
        "    except ValueError as error:\n        print(type(error) is HubAway, error)"
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}"}
        environment |= {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "-c", body]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        hub.shutdown()
    told = [line.split()[:2] for line in done.stdout.splitlines()]
    assert told == [["True", "some/gone"], ["True", "some/busy"], ["False", "some/missing"]], done


def test_descriptors_that_run_out_are_told_once_a_minute(tmp_path: Path) -> None:
    """A server for few descriptors, and more sockets than it can accept."""
    shell = f'ulimit -n 16; exec "{sys.executable}" -m runtime.server "$@"'
    options = ["--redirect", "127.0.0.1:1", "--port", "0", "--http", "", "--threads", "1"]
    log = tmp_path / "log"
    with log.open("w") as errors, ExitStack() as stack:
        process = subprocess.Popen(
            ["sh", "-c", shell, "sh", *options], stdout=subprocess.PIPE, stderr=errors, text=True
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        line = next(line for line in process.stdout if "--server" in line)
        port = int(re.search(r":(\d+)", line)[1])
        edges = [stack.enter_context(socket.create_connection(("127.0.0.1", port)))]
        while "cannot accept" not in log.read_text():
            assert process.poll() is None
            if len(edges) < 90:
                edges.append(stack.enter_context(socket.create_connection(("127.0.0.1", port))))
        # asyncio tries again after a second
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
    lines = log.read_text().splitlines()
    assert sum("cannot accept" in line for line in lines) == 1
    assert not [line for line in lines if "Traceback" in line]
    assert any(line.startswith("WARNING few descriptors limit=16") for line in lines)


def test_the_version_is_told_without_torch() -> None:
    body = "import runpy, sys\nsys.argv = ['x', '--version']\n" + (
        "try:\n    runpy.run_module('runtime.{}', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    for program in ("server", "edge"):
        command = [sys.executable, "-c", body.format(program)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert re.fullmatch(r"specedge \d+\.\d+\.\d+\n", done.stdout)
