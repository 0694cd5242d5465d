"""What differs between systems, as this one does it."""

import asyncio
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import config, system
from runtime.config import EdgeConfig, prepare_threads
from runtime.system import (
    cpu_quota,
    free_memory_bytes,
    raise_descriptor_limit,
    unacknowledged_bytes,
    whole_cores,
)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    return root


V2, V1 = "sys/fs/cgroup/{}cpu.max", "sys/fs/cgroup/cpu/{}cpu.cfs_{}_us"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", V2.format(""): "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", V2.format(""): "max 100000\n"}, None),
        # the tightest of the groups around it counts; a container sees the root alone
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                V2.format("a/b/"): "400000 100000\n",
                V2.format("a/"): "200000 100000\n",
                V2.format(""): "max 100000\n",
            },
            2.0,
        ),
        ({"proc/self/cgroup": "0::/../host/x\n", V2.format(""): "50000 100000\n"}, 0.5),
        (
            {
                "proc/self/cgroup": "5:memory:/\n4:cpu,cpuacct:/docker/1\n",
                V1.format("", "quota"): "300000\n",
                V1.format("", "period"): "100000\n",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                V1.format("", "quota"): "-1\n",
                V1.format("", "period"): "100000\n",
            },
            None,
        ),
        ({"proc/self/cgroup": "0::/\n", V2.format(""): "100000 0\n"}, None),
        ({"proc/self/cgroup": "nonsense\n", V2.format(""): "1 1\n"}, None),
    ],
)
def test_the_share_of_the_cpus(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert cpu_quota(write(tmp_path, files)) == quota


@pytest.mark.parametrize(
    ("quota", "options", "given", "threads"),
    [
        (None, {}, {}, "15"),
        (4.0, {}, {}, "3"),
        (1.5, {}, {}, "1"),
        (0.2, {}, {}, "1"),
        (1e6, {}, {}, "15"),
        (1.0, {"threads": 3}, {}, "3"),
        (1.0, {}, {"OMP_NUM_THREADS": "2"}, "2"),
    ],
)
def test_threads_leave_one_of_the_cpus_that_there_are_to_the_loop(
    monkeypatch: pytest.MonkeyPatch,
    quota: float | None,
    options: dict[str, int],
    given: dict[str, str],
    threads: str | None,
) -> None:
    monkeypatch.setattr(config, "cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    env = dict(given)
    prepare_threads(EdgeConfig(**options), env)
    assert env.get("OMP_NUM_THREADS") == threads


def test_the_descriptor_limit_is_raised_as_far_as_it_may_be() -> None:
    body = (
        "import resource\nfrom runtime.system import raise_descriptor_limit\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 50))\n"
        "print(raise_descriptor_limit(45), raise_descriptor_limit(90), raise_descriptor_limit(9))\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, check=True)
    assert done.stdout == "45 50 9\n(50, 50)\n"
    assert raise_descriptor_limit(8) == 8
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 8


def test_a_signal_reaches_the_event_loop() -> None:
    async def scenario() -> None:
        stopped = asyncio.Event()
        system.on_stop(asyncio.get_running_loop(), stopped.set)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(stopped.wait(), 60)

    asyncio.run(scenario())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
def test_what_a_peer_does_not_read_is_unacknowledged() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()) as sender:
        receiver, _ = listener.accept()
        sender.setblocking(False)
        assert unacknowledged_bytes(sender.fileno()) == 0
        sent = 0
        with receiver:
            with contextlib.suppress(BlockingIOError):
                while True:
                    sent += sender.send(bytes(65536))
            assert 0 < unacknowledged_bytes(sender.fileno()) <= sent
    assert unacknowledged_bytes(sender.fileno()) == 0, "it is closed"


@pytest.mark.parametrize(("quota", "cores"), [(None, 6), (2.7, 2), (0.4, 1), (9.0, 6)])
def test_cores_are_those_it_may_run_on_and_no_more_than_its_quota(monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    monkeypatch.setattr(system, "cpu_quota", lambda: quota)
    assert whole_cores() == cores


MEMORY = {"proc/meminfo": "MemTotal:  2000 kB\nMemFree:    1 kB\nMemAvailable:    1000 kB\n"}
LIMITED = {"proc/self/cgroup": "0::/a\n"}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        (MEMORY, 1000 * 1024),
        ({"proc/meminfo": "MemTotal: 2000 kB\n"}, None),
        (
            MEMORY
            | LIMITED
            | {
                "sys/fs/cgroup/a/memory.max": "5000\n",
                "sys/fs/cgroup/a/memory.current": "4000\n",
                "sys/fs/cgroup/a/memory.stat": "anon 2500\ninactive_file 1500\n",
            },
            2500,
        ),
        (
            MEMORY
            | LIMITED
            | {
                "sys/fs/cgroup/a/memory.max": "max\n",
                "sys/fs/cgroup/a/memory.current": "4000\n",
                "sys/fs/cgroup/memory.max": "3000\n",
                "sys/fs/cgroup/memory.current": "4000\n",
            },
            0,
        ),
        (
            MEMORY
            | {
                "proc/self/cgroup": "9:memory:/x\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "7000\n",
                "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "1000\n",
            },
            6000,
        ),
    ],
)
def test_free_memory_is_what_system_and_cgroups_leave(
    tmp_path: Path, files: dict[str, str], free: int | None
) -> None:
    assert free_memory_bytes(write(tmp_path, files)) == free
