"""What one thread puts into a ring comes out at another."""

import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.faults.amounts import amount
from tests.native.build import Toolchain
from tests.stack.build import HERE, STACK

# The sanitiser knows no memory order but C++'s: what only x86 keeps in order is a race to it. It
# takes no notice of fences, on which only bells rest here.
RACES = ("-O1", "-g1", "-fsanitize=thread", "-Wno-tsan")


@pytest.fixture(scope="module", params=["plain", "races"])
def program(
    of_all_workers: Callable[[str], AbstractContextManager[Path]], request: pytest.FixtureRequest
) -> Path:
    """The two threads of ring.cpp."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        pytest.skip("there is no C++ compiler here")
    flags = ("-std=c++20", f"-I{STACK}", *(RACES if request.param == "races" else ("-O2",)))
    with of_all_workers(f"ring-{request.param}") as folder:
        program = folder / "ring"
        if not program.exists():
            can_link = Toolchain(compiler, flags).links(folder, "int main() {}")
            if not can_link or subprocess.run([folder / "probe"], check=False).returncode:
                pytest.skip(f"{compiler}'s thread sanitiser does not run here")
            sources = HERE / "ring.cpp", STACK / "messages.cpp"
            subprocess.run([compiler, *flags, *sources, "-o", program, "-pthread"], check=True)
    return program


def test_pieces_are_copied_whole_in_order_and_from_their_own_place(program: Path) -> None:
    done = subprocess.run([program], capture_output=True, text=True, timeout=180, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_byte_comes_out_once_and_in_order(
    program: Path, request: pytest.FixtureRequest
) -> None:
    for seed in amount(request.config, "schedules", default=3):
        command = [program, str(seed), "1000"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, f"seed {seed}: {done.stderr[-4000:]}"
        assert done.stdout == "1000 bursts\n"
