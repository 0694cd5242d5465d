"""The server process as its edges meet it: refusals, dead edges, a drain."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.config import parse_address
from runtime.edge.net.link import Link, Request, ServerError
from runtime.model.tokenizer import Tokenizer
from runtime.sampling import Sampling
from runtime.tree import OrderedTree
from runtime.wire import messages as wire
from tests.ports import reserved_port

EMPTY = OrderedTree()


@pytest.fixture(scope="module")
def hello(tiny_pair: tuple[Path, Path]) -> wire.Hello:
    tokenizer = Tokenizer.load(str(tiny_pair[0]))
    return wire.Hello(1, tokenizer.vocabulary_size, tokenizer.vocabulary_hash(), "tiny")


async def finish(request: Request, base: int) -> list[int]:
    """Decode plainly to the end; the tokens from the next verdict on."""
    tokens: list[int] = []
    while True:
        verdict = await request.verdict()
        tokens.append(verdict.bonus)
        if request.finished:
            return tokens
        request.send(base + len(tokens), EMPTY)


async def decode(address: str, hello: wire.Hello, prompt: list[int], sampling: Sampling):
    link = await Link.open(*parse_address(address), hello)
    try:
        return await finish(link.request(prompt, sampling), len(prompt))
    finally:
        await link.close()


def test_another_vocabulary_is_refused_with_both_names(tiny_server: str, hello: wire.Hello) -> None:
    other = wire.Hello(1, hello.vocabulary_size, bytes(16), "some/draft")
    with pytest.raises(ServerError, match=r"'some/draft'.*target.*different vocabularies"):
        asyncio.run(Link.open(*parse_address(tiny_server), other))


def test_another_version_is_refused(tiny_server: str, hello: wire.Hello) -> None:
    other = wire.Hello(9, hello.vocabulary_size, hello.vocabulary_hash, "tiny")
    with pytest.raises(ServerError, match="version"):
        asyncio.run(Link.open(*parse_address(tiny_server), other))


def test_nobody_listens() -> None:
    hello = wire.Hello(1, 9, bytes(16), "tiny")
    with reserved_port() as port, pytest.raises(ServerError, match="nothing listens there"):
        asyncio.run(Link.open("127.0.0.1", port, hello))


def test_a_refused_request_leaves_the_others_alone(tiny_server: str, hello: wire.Hello) -> None:
    """Too long for the context, a draft in the wrong place, a tree too deep: one request each."""

    async def scenario() -> None:
        link = await Link.open(*parse_address(tiny_server), hello)
        good = link.request([1, 2, 3], Sampling(max_tokens=12))
        long = link.request([1] * 5000, Sampling(max_tokens=1))
        with pytest.raises(ServerError, match="the prompt has 5000 tokens"):
            await long.verdict()
        lost = link.request([4, 5], Sampling(max_tokens=5))
        await lost.verdict()
        lost.send(99, EMPTY)
        with pytest.raises(ServerError, match="drafts after 99 tokens"):
            await lost.verdict()
        deep = link.request([4, 5], Sampling(max_tokens=3))
        await deep.verdict()
        deep.send(3, OrderedTree((7, 7), (0, 1), (0, 1)))
        with pytest.raises(ServerError, match="draft at most 1 deep"):
            await deep.verdict()
        assert len(await finish(good, 3)) == 12
        await link.close()

    asyncio.run(scenario())


def test_the_pages_of_dead_edges_come_back(tiny_server: str, hello: wire.Hello) -> None:
    """Seven such requests fill the pool; forty edges die with one each, and all are admitted."""

    async def scenario() -> None:
        for life in range(40):
            link = await Link.open(*parse_address(tiny_server), hello)
            request = link.request([life + 1] * 500, Sampling(max_tokens=500))
            await request.verdict()
            if life % 2:
                await link.close()
            else:
                link._peer._transport.abort()

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_cancelled_requests_free_their_pages(tiny_server: str, hello: wire.Hello) -> None:
    """The same on one connection, cancelled before, between and after verdicts."""

    async def scenario() -> None:
        link = await Link.open(*parse_address(tiny_server), hello)
        for life in range(40):
            request = link.request([life + 1] * 500, Sampling(max_tokens=500))
            if life % 3:
                verdict = await request.verdict()
                if life % 3 == 2:
                    request.send(501, EMPTY)
                assert verdict.round == 0
            request.close()
        assert len(await finish(link.request([1], Sampling(max_tokens=4)), 1)) == 4
        await link.close()

    asyncio.run(asyncio.wait_for(scenario(), 120))


@pytest.fixture
def own_server(tiny_pair: tuple[Path, Path]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process that a test may kill, and its address."""
    command = [sys.executable, "-m", "runtime.server", "--model", str(tiny_pair[0]), "--port", "0"]
    command += ["--no-pipeline", "--credits", "open"]  # whoever drafts always has the turn
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = next(line for line in process.stdout if "--server" in line)
    yield process, line.split("--server ")[1].split()[0]
    process.kill()
    process.communicate()


def test_sigterm_lets_running_requests_end(own_server, hello: wire.Hello) -> None:
    process, address = own_server

    async def scenario() -> list[int]:
        link = await Link.open(*parse_address(address), hello)
        running = link.request([1, 2, 3], Sampling(max_tokens=30))
        first = await running.verdict()
        process.send_signal(signal.SIGTERM)
        # The signal is not ordered with what we send: ask until the server has seen it.
        while True:
            late = link.request([1], Sampling(max_tokens=1))
            try:
                await late.verdict()
            except ServerError as error:
                refusal = str(error)
                break
        assert "stopping" in refusal
        running.send(4, EMPTY)
        return [first.bonus, *await finish(running, 4)]

    tokens = asyncio.run(asyncio.wait_for(scenario(), 120))
    assert len(tokens) == 30
    assert process.wait(timeout=60) == 0


def test_a_second_sigterm_stops_at_once(own_server, hello: wire.Hello) -> None:
    process, address = own_server

    async def scenario() -> None:
        link = await Link.open(*parse_address(address), hello)
        request = link.request([1, 2, 3], Sampling(max_tokens=30))
        await request.verdict()
        process.send_signal(signal.SIGTERM)
        while link.alive:  # until the server has seen the first signal
            late = link.request([1], Sampling(max_tokens=1))
            try:
                await late.verdict()
            except ServerError:
                break
        process.send_signal(signal.SIGTERM)
        with pytest.raises(ServerError):
            await request.verdict()

    asyncio.run(asyncio.wait_for(scenario(), 120))
    assert process.wait(timeout=60) == 0
