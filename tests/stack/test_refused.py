"""What the system refuses the daemon, or a guest, ends one connection with a word, or waits."""

import asyncio
import errno
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from runtime.stack import ports
from runtime.stack.attachment import Event, to_bytes
from runtime.wire.tls import load_certificate, trust
from tests.certificates import self_signed
from tests.faults.rig import until
from tests.ports import reserved_port
from tests.stack.daemon import Daemon, daemon
from tests.stack.test_ports import HOST, Echo, Guest, Kind

# While the file REFUSE is there, nothing more can be watched than the number in it.
SHIM = """
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>

int epoll_ctl(int epoll, int op, int descriptor, struct epoll_event* event) {
  static int watched;
  FILE* file = op == EPOLL_CTL_ADD ? fopen(getenv("REFUSE"), "re") : NULL;
  if (file) {
    const int most = fgetc(file) - '0';
    fclose(file);
    if (watched++ >= most) {
      errno = ENOSPC;
      return -1;
    }
  } else {
    watched = 0;
  }
  int (*real)(int, int, int, struct epoll_event*) = dlsym(RTLD_NEXT, "epoll_ctl");
  return real(epoll, op, descriptor, event);
}
"""


class Refusing:
    """An environment, for programs in which nothing can be watched while that is said."""

    def __init__(self, shim: Path, file: Path) -> None:
        self._file = file
        self.environment = {"LD_PRELOAD": str(shim), "REFUSE": str(file)}

    def after(self, most: int) -> None:
        """From now on, but for so many."""
        whole = self._file.with_suffix(".new")
        whole.write_text(str(most))
        whole.rename(self._file)

    def no_more(self) -> None:
        self._file.unlink()


@pytest.fixture
def refusing(
    of_all_workers: Callable[[str], AbstractContextManager[Path]], tmp_path: Path
) -> Refusing:
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        pytest.skip("there is no C compiler here")
    with of_all_workers("stack-refused") as folder:
        shim = folder / "refused.so"
        if not shim.exists():
            (folder / "refused.c").write_text(SHIM)
            command = [compiler, "-D_GNU_SOURCE", "-shared", "-fPIC", folder / "refused.c", "-ldl"]
            subprocess.run([*command, "-o", shim], check=True)
    return Refusing(shim, tmp_path / "refuse")


@pytest.mark.parametrize("most", [0, 1], ids=["its socket", "its bell"])
def test_a_guest_that_cannot_be_watched_is_told_so(refusing: Refusing, most: int) -> None:
    with daemon(environment=refusing.environment) as running:
        before = running.open_files()
        refusing.after(most)
        with pytest.raises(RuntimeError, match="cannot be watched: No space left"):
            Guest(running.path)
        refusing.no_more()
        asyncio.run(until(lambda: running.open_files() == before))
        guest = Guest(running.path)
        assert running.status()["guests"] == 1
        guest.detach()


def heard(guest: Guest) -> Event:
    """The next event of a guest."""
    while not (events := guest.poll()):
        assert select.select([guest.fileno()], [], [], 60.0)[0], "nothing is told"
    return events[0]


def test_a_connection_that_cannot_be_watched_is_refused(refusing: Refusing) -> None:
    with (
        socket.create_server((HOST, 0)) as server,
        daemon(environment=refusing.environment) as running,
    ):
        guest, port = Guest(running.path), server.getsockname()[1]
        refusing.after(0)
        slot = guest.connect(to_bytes(HOST), port, "")
        assert heard(guest) == (Kind.CLOSED, slot, errno.ENOSPC)
        refusing.no_more()
        slot = guest.connect(to_bytes(HOST), port, "")
        assert heard(guest)[:2] == (Kind.CONNECTED, slot)
        guest.detach()


def test_a_port_that_cannot_be_watched_is_refused(refusing: Refusing) -> None:
    async def scenario(path: str) -> None:
        refused = await ports.listen(path, HOST, 0, Echo)
        refusing.after(0)
        with pytest.raises(OSError, match="No space left"):
            await refused.start_serving()
        refused.close()
        refusing.no_more()

    with daemon(environment=refusing.environment) as running:
        asyncio.run(scenario(running.path))


def test_who_comes_and_cannot_be_watched_is_hung_up_on_and_the_next_comes_in(
    refusing: Refusing,
) -> None:
    async def scenario(path: str) -> None:
        listener = await ports.listen(path, HOST, 0, Echo)
        await listener.start_serving()
        place = listener.sockets[0].getsockname()
        refusing.after(0)
        reader, writer = await asyncio.open_connection(*place)
        assert await reader.read() == b""
        writer.close()
        refusing.no_more()
        reader, writer = await asyncio.open_connection(*place)
        writer.write(b"a word")
        assert await reader.readexactly(6) == b"a word"
        writer.close()
        listener.close()

    with daemon("--module", "tcp", environment=refusing.environment) as running:
        asyncio.run(asyncio.wait_for(scenario(running.path), 60))


# Two guests of one process, and what the one that connects hears.
GUESTS = """
import os, select, sys
from runtime.stack._stack import Guest, Kind
host = bytes(10) + b"\\xff\\xff\\x7f\\0\\0\\1"
server, edge = Guest(sys.argv[1]), Guest(sys.argv[1])

def next_of(guest):
    while not (events := guest.poll()):
        assert select.select([server.fileno(), edge.fileno()], [], [], 60.0)[0]
        for other in {server, edge} - {guest}:
            other.poll()
    return events[0]

server.listen(host, 0, "")
kind, slot, *_ = opened = next_of(server)
server.accept(slot)
next_of(server)
with open(os.environ["REFUSE"], "w") as file:
    file.write("0")
edge.connect(host, opened[2], "")
print(next_of(edge)[0] == Kind.CLOSED)
"""


def test_a_memory_whose_bell_cannot_be_watched_is_no_connection(refusing: Refusing) -> None:
    """It would come about, and nothing that is sent by it would ever be heard."""
    with daemon() as running:
        done = subprocess.run(
            [sys.executable, "-c", GUESTS, running.path],
            env={**os.environ, **refusing.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stdout == "True\n", done.stderr


def switches(running: Daemon) -> int:
    """How often the daemon has gone to sleep."""
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    return int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])


def test_a_guest_that_comes_while_no_descriptor_is_free_is_let_in_when_one_is() -> None:
    async def scenario(running: Daemon) -> None:
        pid, files = running.process.pid, resource.RLIMIT_NOFILE
        _, most = resource.prlimit(pid, files)
        resource.prlimit(pid, files, (running.open_files(), most))
        before = switches(running)
        with ThreadPoolExecutor() as pool:
            coming = pool.submit(Guest, running.path)
            await until(lambda: switches(running) > before)  # it has looked who is there
            assert not coming.done()
            resource.prlimit(pid, files, (most, most))
            (await asyncio.wrap_future(coming)).detach()

    with daemon() as running:
        asyncio.run(scenario(running))


def test_terms_wait_for_a_daemon_that_is_behind(tmp_path: Path) -> None:
    """It would find a connection without its terms, or go on with a port's old certificate."""
    self_signed(tmp_path, "own")
    known = trust(load_certificate(tmp_path / "own.pem", tmp_path / "own.key").pin)
    assert known is not None
    with daemon() as running, reserved_port() as closed:
        guest, pid = Guest(running.path), running.process.pid
        command = ["sh", "-c", f"read line; kill -CONT {pid}"]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as later:
            running.process.send_signal(signal.SIGSTOP)
            assert later.stdin is not None
            later.stdin.write(b"now\n")
            later.stdin.flush()
            for _ in range(8):  # more than a socket holds
                guest.renew(1, "x" * 50_000)  # of another slot
            guest.connect(to_bytes(HOST), closed, known.terms("localhost"))
        kind, _, status = heard(guest)
        assert kind == Kind.CLOSED
        assert status == errno.ECONNREFUSED, "not its terms"
        guest.detach()
