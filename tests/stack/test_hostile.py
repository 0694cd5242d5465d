"""Guests that write nonsense or are killed harm nobody and leave nothing behind."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.faults.amounts import amount
from tests.faults.rig import until
from tests.stack.build import ENVIRONMENT, NoSanitizer, build, build_hostile
from tests.stack.daemon import MODULES, PROGRAM, SHAPE, daemon


@pytest.fixture(scope="module", params=["plain", pytest.param("sanitised", marks=pytest.mark.long)])
def programs(
    of_all_workers: Callable[[str], AbstractContextManager[Path]], request: pytest.FixtureRequest
) -> tuple[Path, Path]:
    """The daemon and the hostile guest."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        pytest.skip("there is no C++ compiler here")
    with of_all_workers(f"stack-{request.param}") as folder:
        made = (
            (PROGRAM if request.param == "plain" else folder / "specedge-stack"),
            folder / "hostile",
        )
        if made[1].exists():
            return made
        if request.param == "plain":
            return PROGRAM, build_hostile(folder, compiler)
        try:
            return build(folder, compiler)
        except NoSanitizer as reason:
            pytest.skip(str(reason))


def play(programs: tuple[Path, Path], module: str, how: str, seeds: range) -> None:
    program, hostile = programs
    with daemon("--module", module, *SHAPE, program=program, environment=ENVIRONMENT) as running:
        before = running.open_files()
        command = [hostile, running.path, str(seeds.start), str(len(seeds)), how]
        done = subprocess.run(
            command,
            env={**os.environ, **ENVIRONMENT},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        assert done.stdout == f"{len(seeds)} cases\n"
        asyncio.run(until(lambda: running.status()["guests"] == 0))
        status = running.status()
        assert (status["connections"], status["held_bytes"]) == (0, 0)
        # whoever asks for its status is connected for a moment, too
        asyncio.run(until(lambda: running.open_files() == before))


@pytest.mark.parametrize("module", MODULES)
def test_nonsense_ends_who_writes_it_alone(
    programs: tuple[Path, Path], module: str, request: pytest.FixtureRequest
) -> None:
    play(programs, module, "nonsense", amount(request.config, "schedules", default=120))


def test_of_guests_that_look_and_sleep_none_waits_in_vain(programs: tuple[Path, Path]) -> None:
    """Whoever looks is rung no bell; when it then sleeps, it must have seen what was shown."""
    play(programs, "shm", "talk", range(5, 15))


def test_what_a_poll_leaves_is_heard_by_the_next(programs: tuple[Path, Path]) -> None:
    """A guest that is awake looks again by itself; one that is not has its bell rung."""
    play(programs, "shm", "leave", range(2))


@pytest.mark.parametrize("module", MODULES)
def test_killed_guests_leave_nothing(
    programs: tuple[Path, Path], module: str, request: pytest.FixtureRequest
) -> None:
    """A thousand with `python -m tests.stack`."""
    play(programs, module, "kill", amount(request.config, "kills", default=8))
