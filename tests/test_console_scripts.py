"""The programs under the names that an installation gives them."""

import subprocess
import sys
import sysconfig
from importlib.metadata import distribution, version
from pathlib import Path

import pytest

from runtime import embedded

SCRIPTS = {
    entry.name: entry.value
    for entry in distribution("specedge").entry_points
    if entry.group == "console_scripts"
}
FOLDER = Path(sysconfig.get_path("scripts"))


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(params=sorted(SCRIPTS))
def script(request: pytest.FixtureRequest) -> str:
    return request.param


def test_these_are_installed() -> None:
    names = ("server", "edge", "doctor", "bench", "stack")
    assert sorted(SCRIPTS) == sorted(f"specedge-{name}" for name in names)


def test_a_usage_line_says_how_it_was_called(script: str) -> None:
    module = script.replace("specedge-", "runtime.")
    for command, name in (
        ([str(FOLDER / script)], script),
        ([sys.executable, "-m", module], f"python -m {module}"),
    ):
        done = run(*command, "--help")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"usage: {name} ")
        assert "python -m" not in done.stdout.removeprefix(f"usage: {name}")


def test_each_says_its_version(script: str) -> None:
    done = run(str(FOLDER / script), "--version")
    assert (done.returncode, done.stdout) == (0, f"specedge {version('specedge')}\n")


def test_a_mistake_is_told_by_the_same_name(script: str) -> None:
    done = run(str(FOLDER / script), "--no-such-option")
    assert done.returncode == 2
    assert f"{script}: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_tells_the_edge_s_command_as_it_was_called_itself() -> None:
    try:
        embedded.target_path()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    command = [str(FOLDER / "specedge-server"), "--port", "0", "--threads", "1"]
    command += ["--http", "", "--kv-tokens", "2048"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = next(line for line in server.stdout if "--server" in line)
            words = line.split()
            assert words[0] == "specedge-edge"
            assert words[-1] == "--chat"
            asked = ["--prompt", "Why?", "--max-tokens", "2", "--threads", "1"]
            done = run(str(FOLDER / words[0]), *words[1:-1], *asked)
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip()
        finally:
            server.terminate()
            server.communicate()
    assert server.returncode == 0
