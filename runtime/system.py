"""What operating systems do differently: every call that one of them lacks is made here.

Elsewhere the same is meant by other means, or nothing: each function says what. Knows nothing of
servers and edges.
"""

from __future__ import annotations

import os
import re
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # options are read before anything heavy is imported
    import asyncio

# What a shell calls the end of a program that SIGPIPE stopped, on systems without signals too.
BROKEN_PIPE_STATUS = 128 + 13

# mallopt's names for two sizes: from which on memory has pages of its own, and what is free at the
# heap's end before it is given back
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGE_PAGE = 2 << 20


def others_may_read(status: os.stat_result) -> bool:
    """Whether a file is not its owner's alone.

    A group may read it if its owner is not this user: so systemd and Kubernetes hand a secret of
    root to a service that is not root. On Windows, where a file's mode says nothing, never.
    """
    if sys.platform == "win32":
        return False
    is_own = status.st_uid == os.geteuid()
    return bool(status.st_mode & (stat.S_IRWXO | (stat.S_IRWXG if is_own else 0)))


def on_stop(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """Run this in the event loop at each SIGTERM, SIGINT or, on Windows, Ctrl-Break.

    Signals belong to the main thread: a loop in another one hears none.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if sys.platform == "win32":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGBREAK):
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(callback))
    else:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, callback)


def on_hangup(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """Run this in the event loop at each SIGHUP, as an operator's `reload` sends it.

    Windows has no such signal, and a loop that is not the main thread's hears none.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        return
    loop.add_signal_handler(signal.SIGHUP, callback)


def ignore_hangup() -> None:
    """SIGHUP, which would end this process, does nothing until something is done at it."""
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def lock_alone(path: Path) -> int:
    """A descriptor that holds this file until it is closed, or the process ends.

    Raises BlockingIOError if another holds it, OSError where it cannot be opened. On Windows it
    keeps nobody out.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
    return descriptor


def raise_descriptor_limit(wanted: int) -> int:
    """Let this process open `wanted` files and sockets, as far as it may; how many it can open."""
    if sys.platform == "win32":
        return wanted  # there is no such limit
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    new = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with suppress(OSError, ValueError):  # macOS names a limit that it does not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (new, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs that this process may use in the long run by its cgroups; None for all there are."""
    quotas = [*_quotas_v2(root), *_quotas_v1(root)]
    return min(quotas, default=None)


def whole_cores() -> int:
    """Whole cores that this process may use in the long run, at least one."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return max(1, int(min(cores, cpu_quota() or cores)))


def processor() -> str:
    """The processor's name, or at least what it is compatible with."""
    import platform

    for line in _read(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def free_memory_bytes(root: Path = Path("/")) -> int | None:
    """Memory that this process may still take without swapping; None where it is not known.

    What the system can give up at once, such as cached files, counts as free. In a cgroup with a
    limit it is what that leaves, if less.
    """
    found = re.search(r"^MemAvailable: +(\d+) kB$", _read(root / "proc/meminfo"), re.MULTILINE)
    if found is None:
        return None
    return max(min([int(found[1]) * 1024, *_left_v2(root), *_left_v1(root)]), 0)


def _left_v2(root: Path) -> list[int]:
    folder, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
    return [left for group in _groups(root, "") for left in _left(folder / group, *names)]


def _left_v1(root: Path) -> list[int]:
    folder = root / "sys/fs/cgroup/memory"
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return [left for group in _groups(root, "memory") for left in _left(folder / group, *names)]


def _left(folder: Path, most_name: str, used_name: str, cached_name: str) -> list[int]:
    most, used = _read(folder / most_name), _read(folder / used_name)
    if not (most.isdecimal() and used.isdecimal()):
        return []
    stat = _read(folder / "memory.stat")
    cached = re.search(rf"^{cached_name} (\d+)$", stat, re.MULTILINE)
    return [int(most) - int(used) + (int(cached[1]) if cached else 0)]


def _quotas_v2(root: Path) -> list[float]:
    quotas = []
    for group in _groups(root, ""):
        quota, _, period = _read(root / "sys/fs/cgroup" / group / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period):
            quotas.append(int(quota) / int(period))
    return quotas


def _quotas_v1(root: Path) -> list[float]:
    quotas = []
    for group in _groups(root, "cpu"):
        folder = root / "sys/fs/cgroup/cpu" / group
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period):
            quotas.append(int(quota) / int(period))
    return quotas


def _groups(root: Path, controller: str) -> list[Path]:
    """The group of this process under a controller, and all that it lies in, down to the root.

    In a container the line names a folder of the host: only the root is there then.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, *rest = line.split(":", 2)
        if len(rest) == 2 and controller in rest[0].split(","):
            group = Path(rest[1].lstrip("/"))
            return [group, *group.parents] if group != Path() else [group]
    return []


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def memory_on_large_pages(n_bytes: int) -> memoryview:
    """Zeros at a multiple of 2 MiB, on pages of 2 MiB as far as the system has them.

    What is read from end to end goes through one entry of the page tables where it took 512, which
    a virtual machine looks up twice. No page is taken before something is written to it.
    """
    import mmap

    if sys.platform != "linux":
        return memoryview(mmap.mmap(-1, n_bytes))
    import ctypes

    room = mmap.mmap(-1, n_bytes + _LARGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        room.madvise(mmap.MADV_HUGEPAGE)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(room)) % _LARGE_PAGE
    return memoryview(room)[start : start + n_bytes]


@contextmanager
def freed_memory_given_back() -> Iterator[None]:
    """While it lasts, a MiB or more that is freed is at once the system's, where glibc is the heap.

    That would keep it, in gaps between what stays. Afterwards it keeps up to what it always comes
    to keep, 32 MiB: memory that a step takes and frees again should not be cleared each time.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(_MMAP_THRESHOLD, 1 << 17)
    try:
        yield
    finally:
        mallopt(_MMAP_THRESHOLD, 32 << 20)
        mallopt(_TRIM_THRESHOLD, 64 << 20)


def unacknowledged_bytes(descriptor: int) -> int:
    """Bytes of a TCP socket that the other end's system has not confirmed; 0 if unknown."""
    if not sys.platform.startswith("linux"):
        return 0
    import fcntl
    import termios

    try:
        answer = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):  # it is closed
        return 0
    return int.from_bytes(answer, sys.byteorder)
