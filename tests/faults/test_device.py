"""A device that fails: a server that cannot verify anything any more says so and ends."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from torch import Tensor

from runtime.config import parse_address
from runtime.edge.net.link import Link, ServerError
from runtime.model.engine import Rows
from runtime.model.staging import Parcel
from runtime.model.tokenizer import Tokenizer
from runtime.sampling import Sampling
from runtime.server.verdicts import DEVICE_FAILURES
from runtime.terminal import TRY_AGAIN_STATUS
from runtime.wire import messages as wire
from tests.faults.rig import Rig, until

POISON = 77


async def to_the_end(link: Link) -> None:
    request = link.request([1, 2, 3], Sampling(100), max_nodes=0)
    while not (await request.verdict()).finish:
        pass


def test_requests_that_fail_by_themselves_never_end_the_server(
    tiny_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, with nobody else there, many more than a device may."""

    async def scenario() -> None:
        rig = Rig(tiny_pair[0])
        await rig.start()
        engine = rig.server.engine
        whole = engine.run

        def run(rows: Rows, parcel: Parcel, drawn: Tensor | None = None) -> Tensor:
            if any(POISON in request.tokens for request in rows.joined.requests):
                raise RuntimeError("this prompt breaks it")
            return whole(rows, parcel, drawn)

        monkeypatch.setattr(engine, "run", run)
        link = await Link.open("127.0.0.1", rig.port, rig.hello)
        for _ in range(3 * DEVICE_FAILURES):
            with pytest.raises(ServerError, match="this prompt breaks it") as failed:
                await link.request([1, 2, POISON], Sampling(3), max_nodes=0).verdict()
            assert failed.value.code is wire.ErrorCode.INTERNAL
        good = link.request([1, 2, 3], Sampling(3), max_nodes=0)
        assert [(await good.verdict()).finish for _ in range(3)][-1]
        await link.close()
        await until(rig.holds_nothing)
        await rig.kill()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_failures_of_the_device_count_only_in_a_row(
    tiny_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails whatever it is given, works again, and so on, never often enough to be given up."""

    async def scenario() -> None:
        rig, fails = Rig(tiny_pair[0]), False
        await rig.start()
        engine = rig.server.engine
        whole = engine.run

        def run(rows: Rows, parcel: Parcel, drawn: Tensor | None = None) -> Tensor:
            if fails:
                raise RuntimeError("out of memory")
            return whole(rows, parcel, drawn)

        monkeypatch.setattr(engine, "run", run)
        link = await Link.open("127.0.0.1", rig.port, rig.hello)
        for _ in range(DEVICE_FAILURES):
            fails = True
            for _ in range(DEVICE_FAILURES - 1):
                with pytest.raises(ServerError, match="out of memory"):
                    await link.request([1, 2, 3], Sampling(1), max_nodes=0).verdict()
            fails = False
            assert (await link.request([1, 2, 3], Sampling(1), max_nodes=0).verdict()).finish
        await link.close()
        await until(rig.holds_nothing)
        await rig.kill()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_server_whose_device_fails_every_step_ends_and_says_why(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """The first requests are told; then the connection ends, so that edges look for a server."""
    tokenizer = Tokenizer.load(str(tiny_pair[0]))
    hello = wire.Hello(1, tokenizer.vocabulary_size, tokenizer.vocabulary_hash(), "tiny")
    command = [sys.executable, "-m", "tests.faults.broken_device", "30", "--threads", "1"]
    command += ["--model", str(tiny_pair[0]), "--port", "0", "--http", ""]

    async def scenario(address: str) -> list[ServerError]:
        link, told = await Link.open(*parse_address(address), hello), list[ServerError]()
        while link.alive:
            with pytest.raises(ServerError) as failed:
                await to_the_end(link)
            told.append(failed.value)
        await link.close()
        return told

    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        line = next(line for line in server.stdout if "--server" in line)
        address = line.split("--server ")[1].split()[0]
        told = asyncio.run(asyncio.wait_for(scenario(address), 60))
        server.communicate(timeout=60)
    assert server.returncode == TRY_AGAIN_STATUS
    codes = [error.code for error in told]
    first, rest = codes[:DEVICE_FAILURES], codes[DEVICE_FAILURES:]
    assert first == [wire.ErrorCode.INTERNAL] * DEVICE_FAILURES
    assert set(rest) <= {wire.ErrorCode.DRAINING, None}, "nothing new is taken"
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith(f"runtime.server: the device failed {DEVICE_FAILURES} times in a row; ")
    assert last.endswith("an illegal memory access was encountered")
