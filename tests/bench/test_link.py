"""The emulated link: when bytes arrive by arithmetic, and that they arrive whole and in order."""

import random
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from math import inf

import pytest

from runtime.bench.link import Conditions, Pipe, emulated_link
from tests.ports import reserved_port

TIMEOUT_S = 60


def test_a_chunk_takes_its_own_length_and_half_the_round_trip() -> None:
    up, down = Conditions(rtt_s=0.014, up_bytes_per_s=1000, down_bytes_per_s=4000).pipes()
    assert up.arrival_s(10.0, 100) == pytest.approx(10.0 + 0.1 + 0.007)
    assert down.arrival_s(10.0, 100) == pytest.approx(10.0 + 0.025 + 0.007)


def test_chunks_queue_behind_each_other_and_an_idle_link_forgets() -> None:
    pipe = Pipe(delay_s=0.5, bytes_per_s=100)
    assert pipe.arrival_s(0.0, 100) == pytest.approx(1.5)
    assert pipe.arrival_s(0.2, 50) == pytest.approx(2.0), "it left when the first one had"
    assert pipe.arrival_s(10.0, 50) == pytest.approx(11.0), "idle time is not saved up"


def test_no_rate_is_no_delay() -> None:
    pipe = Pipe(delay_s=0.25)
    assert pipe.arrival_s(1.0, 10**9) == pytest.approx(1.25)


def test_jitter_stays_in_its_bounds_and_never_reorders() -> None:
    pipe = Pipe(delay_s=0.01, jitter_s=0.02)
    sent = [0.1 * i for i in range(500)]
    late = [pipe.arrival_s(now_s, 100) - now_s for now_s in sent]
    assert all(0.01 <= delay_s <= 0.03 + 1e-9 for delay_s in late)
    assert max(late) - min(late) > 0.015
    close = Pipe(delay_s=0.01, jitter_s=0.02)
    arrivals = [close.arrival_s(0.001 * i, 100) for i in range(500)]
    assert all(a < b for a, b in pairwise(arrivals))


@pytest.mark.parametrize(
    "wrong",
    [{"rtt_s": -1.0}, {"rtt_s": inf}, {"jitter_s": -0.1}, {"up_bytes_per_s": 0.0}],
)
def test_impossible_conditions_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Conditions(**wrong)


@contextmanager
def echo_server() -> Iterator[str]:
    """Sends every byte back; ends a connection when its peer has ended it."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as pool:

        def echo(connection: socket.socket) -> None:
            with connection:
                while data := connection.recv(4096):
                    connection.sendall(data)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                pool.submit(echo, connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def exchange(address: str, seed: int) -> bool:
    """Send random bytes in random chunks, end, and compare everything that comes back."""
    chance = random.Random(seed)
    data = chance.randbytes(chance.randrange(1, 300_000))
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:

        def send() -> None:
            at = 0
            while at < len(data):
                size = chance.choice([1, 113, 5000, 60_000])
                connection.sendall(data[at : at + size])
                at += size
            connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        received = bytearray()
        while chunk := connection.recv(65536):
            received += chunk
        sender.join()
    return bytes(received) == data


@pytest.mark.parametrize(
    "conditions",
    [
        Conditions(),
        Conditions(rtt_s=0.02, jitter_s=0.01),
        Conditions(rtt_s=0.005, up_bytes_per_s=2e6, down_bytes_per_s=4e6),
    ],
)
def test_bytes_arrive_whole_in_order_and_to_the_end(conditions: Conditions) -> None:
    """Several connections at once; the last bytes follow an end that the sender has declared."""
    with (
        echo_server() as server,
        emulated_link(server, conditions) as address,
        ThreadPoolExecutor(4) as pool,
    ):
        assert all(pool.map(exchange, [address] * 4, range(4)))


def test_a_link_to_nobody_ends_the_connection() -> None:
    with reserved_port() as nobody, emulated_link(f"127.0.0.1:{nobody}", Conditions()) as address:
        host, port = address.split(":")
        with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
            assert connection.recv(1) == b""
