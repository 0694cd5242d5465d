"""Users share what may be sent, not their connections. By counts: no time is measured."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO

import pytest

from tests.faults.rig import until
from tests.stack.daemon import Daemon, daemon

RATE = 1_000_000  # so that none has sent all it has before its process runs again
# Sends on so many connections as fast as it may, until it is ended; says when none takes more.
FLOOD = """
import sys
from runtime.stack._stack import Guest, Kind
path, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
guest, frame, full = Guest(path), bytes(16384), set()
slots = [guest.connect(bytes(10) + b"\\xff\\xff\\x7f\\0\\0\\1", port, "") for _ in range(count)]
while True:
    for event in guest.poll():
        if event[0] in (Kind.CONNECTED, Kind.WRITABLE):
            while guest.send_frame(event[1], frame) == len(frame):
                pass
            full.add(event[1])
            if len(full) == count:
                print(flush=True)
                count = 0
"""


@contextmanager
def flood(running: Daemon, port: int, count: int) -> Iterator[tuple[str, IO[bytes]]]:
    """The name of the user that sends, and what it says."""
    command = [sys.executable, "-c", FLOOD, running.path, str(port), str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            user = next(iter(running.status()["sent_bytes"])).split("/")[0] + f"/{process.pid}"
            yield user, process.stdout
        finally:
            process.kill()


class Sink(asyncio.Protocol):
    """Takes what comes."""


async def sent(running: Daemon, port: int, counts: tuple[int, ...], least: int) -> list[int]:
    """What guests with so many connections each sent, once all are full: `least` in all."""
    with ExitStack() as stack:
        floods = [stack.enter_context(flood(running, port, count)) for count in counts]
        for _, said in floods:
            assert await asyncio.to_thread(said.readline)

        def now() -> list[int]:
            return [running.status()["sent_bytes"][user] for user, _ in floods]

        before = now()
        await until(lambda: sum(now()) - sum(before) >= least)
        return [after - first for after, first in zip(now(), before, strict=True)]


@pytest.mark.parametrize("counts", [(8, 24), (2, 40)])
def test_users_share_alike_however_many_connections_they_have(counts: tuple[int, int]) -> None:
    async def scenario() -> None:
        listener = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        with daemon("--rate", str(RATE), "--share-by", "process") as running:
            few, many = await sent(running, port, counts, RATE)
            assert 0.47 < few / (few + many) < 0.53
        listener.close()

    asyncio.run(scenario())


def test_a_user_has_no_more_than_its_rate() -> None:
    """What is left goes to nobody: a tenth each."""
    rate = 200_000

    async def scenario() -> None:
        listener = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        limits = ("--rate", str(10 * rate), "--user-rate", str(rate), "--share-by", "process")
        with daemon(*limits) as running:
            start_s = asyncio.get_running_loop().time()
            few, many = await sent(running, port, (2, 6), rate)
            took_s = asyncio.get_running_loop().time() - start_s
            # at most what two buckets gave in all that time, and a frame or so each
            assert few + many <= 2 * rate * (took_s + 0.1) + 4 * 65_600
            assert 0.45 < few / (few + many) < 0.55
        listener.close()

    asyncio.run(scenario())
