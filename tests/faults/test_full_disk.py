"""A disk that fills: it is said once, and everything else goes on."""

import asyncio
import shlex
import subprocess
import sys
from pathlib import Path

from runtime.edge.net.link import Link
from runtime.sampling import Sampling
from tests.faults.rig import Rig
from tests.server.process import server_process


def test_an_answer_outlives_its_resume_file(
    tiny_pair: tuple[Path, Path], tiny_server: str, tmp_path: Path
) -> None:
    """A limit of 1024 bytes a file stands for the disk."""
    options = ["--server", tiny_server, "--draft", str(tiny_pair[1]), "--prompt", "Once upon"]
    command = [sys.executable, "-m", "runtime.edge", *options, "--max-tokens", "300"]
    whole = subprocess.run(command, capture_output=True, text=True, check=True)
    file = tmp_path / "answer.json"
    line = shlex.join([*command, "--resume-file", str(file)])
    done = subprocess.run(["sh", "-c", f"ulimit -f 2; exec {line}"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, whole.stdout)
    warnings = [line for line in done.stderr.splitlines() if "WARNING" in line]
    (warning,) = warnings
    assert warning.startswith("WARNING the answer is kept no longer; it goes on")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_server_outlives_its_trace(tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    async def ask(address: tuple[str, int]) -> int:
        link = await Link.open(*address, Rig(tiny_pair[0]).hello)
        request = link.request([1, 2, 3], Sampling(5), max_nodes=0)
        tokens = 0
        while not request.finished:
            tokens += len([await request.verdict()])
        await link.close()
        return tokens

    options = ["--model", str(tiny_pair[0]), "--threads", "1", "--trace", "/dev/full"]
    with server_process(tmp_path / "log", *options) as server:
        assert [asyncio.run(ask(server.address)) for _ in range(2)] == [5, 5]
    log = (tmp_path / "log").read_text()
    expected = 'WARNING the trace ends here reason="No space left on device"\n'
    assert log == expected
