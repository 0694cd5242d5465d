"""Where a front sends edges: a hash that holds, a bound on the load, and who is looked at how."""

import asyncio
import random
import socket
import time
from collections import Counter
from collections.abc import Callable
from threading import Event
from typing import Any

import pytest

from runtime.config import ConfigError, ReplicaAddress, ServerConfig
from runtime.server import looks
from runtime.server.looks import watching
from runtime.server.router import ALWAYS_ROOM, OVERLOAD, Router
from tests.ports import reserved_port
from tests.server.replica_pages import replica_pages

NAMES = [f"replica-{index}.example:8400" for index in range(7)]


def router(names: list[str] = NAMES) -> Router:
    """One whose replicas are all ready and empty."""
    made = Router([ReplicaAddress.parse(name) for name in names])
    for replica in made.replicas:
        replica.told("", 0)
    return made


def home(made: Router, key: str) -> str:
    """Where a key is sent while everyone has room."""
    replica = made.choose(key)
    assert replica is not None
    replica.sent -= 1
    return replica.address.name


def sent(made: Router, key: str) -> str:
    """Where a key is sent now, which counts."""
    replica = made.choose(key)
    assert replica is not None
    return replica.address.name


@pytest.mark.parametrize("seed", range(5))
def test_only_the_users_of_a_replica_that_went_or_came_move(seed: int) -> None:
    rng = random.Random(seed)
    keys = [f"user-{rng.getrandbits(40)}" for _ in range(400)]
    before = {key: home(router(), key) for key in keys}
    names = rng.sample(NAMES, len(NAMES))  # every front agrees, whatever its order
    gone = names.pop()
    for key, was in before.items():
        now = home(router(names), key)
        assert now == was if was != gone else now != gone
    share = Counter(before.values())
    assert max(share.values()) < 2.0 * len(keys) / len(NAMES)
    assert set(share) == set(NAMES)


def test_an_unready_replica_is_as_one_that_is_not_there() -> None:
    half = router()
    for replica in half.replicas[:3]:
        replica.told("503: draining", 0)
    for index in range(100):
        assert home(half, str(index)) == home(router(NAMES[3:]), str(index))
    assert half.unready == ""
    for replica in half.replicas:
        replica.told("503: draining", 0)
    assert half.choose("anyone") is None
    assert f"{NAMES[6]}: 503: draining" in half.unready


@pytest.mark.parametrize("seed", range(5))
def test_no_replica_has_more_than_its_bound_of_whatever_users(seed: int) -> None:
    rng = random.Random(seed)
    made, load = router(), Counter[str]()
    users = [f"user-{index}" for index in range(rng.choice([1, 3, 50]))]
    for count in range(1, 1500):
        chosen = sent(made, rng.choice(users))
        load[chosen] += 1
        assert load[chosen] <= max(ALWAYS_ROOM, OVERLOAD * count / len(NAMES) + 1)
        if rng.random() < 0.01:  # what was sent has arrived, and is told
            for replica in made.replicas:
                replica.told("", load[replica.address.name])


def test_a_few_edges_of_one_user_stay_together() -> None:
    made = router()
    assert len({sent(made, "one") for _ in range(ALWAYS_ROOM)}) == 1
    assert sent(made, "one") != home(router(), "one")


def test_a_replica_has_a_quarter_more_than_the_mean_of_all_and_no_more() -> None:
    made = router(NAMES[:2])
    for replica in made.replicas:
        replica.told("", 40)
    favourite = home(made, "one")
    # 80 are connected: the n-th more makes 80 + n, of which it may have 1.25 halves
    gained = 0
    while sent(made, "one") == favourite:
        gained += 1
    assert gained == next(n for n in range(1000) if 40 + n >= 1.25 * (80 + n + 1) / 2)


def test_what_becomes_of_a_replica_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    (replica,) = router(NAMES[:1]).replicas
    for unready in ("", "503: draining", "nothing listens there", "", ""):
        replica.told(unready, 0)
    said = "edges are sent to a replica"
    assert caplog.messages == [said, "no edge is sent to a replica", said]


def test_names_and_keys_do_not_run_into_one_another() -> None:
    chosen = {home(router(["a:1", "a:11"]), key) for key in ("1x", "x", "1", "11x", "2", "3", "4")}
    assert chosen == {"a:1", "a:11"}


def look_at(text: str, then: Callable[[Router], None]) -> None:
    async def scenario() -> None:
        made = Router([ReplicaAddress.parse(text)])
        async with watching(made):
            then(made)

    asyncio.run(scenario())


def seen(text: str) -> tuple[str, int]:
    told: list[tuple[str, int]] = []
    look_at(text, lambda made: told.append((made.replicas[0].unready, made.replicas[0].edges)))
    return told[0]


def test_a_replica_is_as_its_pages_say() -> None:
    with replica_pages() as pages:
        pages.metrics = "# HELP x y\nother 3\nspecedge:edges_connected 41.0\nother{} nonsense\n"
        assert seen(f"127.0.0.1:9={pages.address}") == ("", 41)
        pages.unready = "draining\n"
        assert seen(f"127.0.0.1:9={pages.address}") == ("503: draining", 0)
        pages.unready, pages.metrics = "", "up 1\n"
        assert "is it a server of SpecEdge" in seen(f"127.0.0.1:9={pages.address}")[0]


def test_a_replica_without_pages_is_ready_while_it_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        assert seen(address) == ("", 0)
    with reserved_port() as port:
        assert "nothing listens there" in seen(f"127.0.0.1:{port}")[0]
        assert "nothing listens there" in seen(f"127.0.0.1:9=127.0.0.1:{port}")[0]


def test_a_replica_that_does_not_answer_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "ANSWER_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        unready, _ = seen(f"a:1=127.0.0.1:{listener.getsockname()[1]}")
        assert "not been answered within 0.05 s" in unready


@pytest.mark.parametrize("number", ["Inf", "-Inf", "NaN", "-1", "1e308", "1e7", "0x1", "{", '"'])
def test_a_number_that_edges_cannot_have_is_not_believed(number: str) -> None:
    with replica_pages() as pages:
        pages.metrics = f"specedge:edges_connected {number}\n"
        unready, edges = seen(f"127.0.0.1:9={pages.address}")
        assert unready
        assert edges == 0


@pytest.mark.parametrize(
    ("head", "then", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x", "not been answered within"),  # slowly, for ever
        (b"HTTP/1.1 200 OK\r\n\r\n", bytes(1 << 16), "more than 1048576 bytes"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 999, "more than 1048576 bytes"),
        (b"", b"x" * 999, "more than 1048576 bytes"),
        (b"HTTP/1.1 503 No\r\n\r\n" + b"y" * 999, b"", "503: y"),
        (b"SSH-2.0-x" * 999, b"", "no answer of HTTP"),
        (b"", b"", "no answer of HTTP"),
    ],
)
def test_no_page_is_too_long_or_too_slow_for_a_look(
    head: bytes, then: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "ANSWER_S", 0.1 if len(then) == 1 else 30.0)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head)
        while then and not writer.is_closing():
            writer.write(then)
            await writer.drain()
            await asyncio.sleep(0.01 if len(then) == 1 else 0)
        writer.close()

    async def scenario() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            made = Router([ReplicaAddress.parse(f"a:1=127.0.0.1:{port}")])
            async with watching(made):
                assert reason in made.replicas[0].unready
                assert len(made.replicas[0].unready) <= 200

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_name_that_nobody_knows_in_time_takes_no_thread_a_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All names are looked up in the same few threads."""
    monkeypatch.setattr(looks, "LOOK_S", 0.001)
    monkeypatch.setattr(looks, "ANSWER_S", 0.1)
    over, system, asked = Event(), socket.getaddrinfo, []

    def slow(host: str, *arguments: Any, **options: Any) -> Any:
        if host == "slow.example":
            asked.append(host)
            assert over.wait(120)
            raise socket.gaierror(socket.EAI_AGAIN, "nobody knows")
        return system(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)

    async def scenario() -> None:
        with replica_pages() as pages:
            port = pages.address.partition(":")[2]
            replicas = "b:1=slow.example:1", f"a:1=localhost:{port}"
            made = Router([ReplicaAddress.parse(one) for one in replicas])
            try:
                async with watching(made):
                    # as long as ten looks at one that does not answer
                    enough_s = time.monotonic() + 1.0
                    while time.monotonic() < enough_s:
                        pages.unready = "" if pages.unready else "draining"
                        while bool(made.replicas[1].unready) != bool(pages.unready):
                            await asyncio.sleep(0.001)
                    assert made.replicas[0].unready
            finally:
                over.set()

    asyncio.run(asyncio.wait_for(scenario(), 120))
    assert len(asked) <= 3


def test_a_change_is_seen_by_a_later_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "LOOK_S", 0.01)

    async def scenario() -> None:
        with replica_pages() as pages:
            made = Router([ReplicaAddress.parse(f"a:1={pages.address}")])
            async with watching(made):
                assert made.unready == ""
                pages.unready = "draining"
                while not made.unready:
                    await asyncio.sleep(0)
                pages.unready = ""
                while made.unready:
                    await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(scenario(), 120))


@pytest.mark.parametrize(
    ("redirect", "message"),
    [
        ("a", "expected host:port"),
        ("a:1,", "expected host:port"),
        ("a:1=b", "expected host:port"),
        ("a:1=", "expected host:port"),
        ("a:1, a:1=b:2", "names a replica twice"),
        (f"{'a' * 300}:1", "no host that edges can ask"),
        ("a b:1", "expected host:port"),
        ("a\x1b:1=b:2", "expected host:port"),
    ],
)
def test_what_is_no_list_of_replicas_is_refused(redirect: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServerConfig(redirect=redirect)
    assert ServerConfig(redirect="a:1=b:2, [::1]:3").replicas == (
        ReplicaAddress("a:1", ("a", 1), ("b", 2)),
        ReplicaAddress("[::1]:3", ("::1", 3), None),
    )
