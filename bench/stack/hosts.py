"""A host's connections to others by TCP: through the daemon, and without one."""

import os
import statistics
import time
from contextlib import ExitStack

from bench.stack.load import (
    ANY_RATE,
    Daemon,
    Figures,
    answer,
    ask,
    begin,
    daemon,
    first_figure,
    server,
)
from bench.stack.table import ABSTRACT, Claim, Effort, Table

GUESTS = (1, 2, 4, 8)
GUEST_RATE, GUEST_CONNECTIONS, BYTES = 1000.0, 4, 64
COALESCE_US = "400"
COUNTS = (1, 16, 256)
CONNECTIONS = (100, 1000, 10_000)
SHARED, COST, FAIR, IDLE = 0.5, 0.9, 0.03, 0.01


def sharing(effort: Effort) -> Table:
    """Processor time when guests share a daemon, against a daemon each, at the same load."""
    rows: list[tuple[object, ...]] = []
    share = together = 1.0
    for guests in GUESTS:
        one, coalescing, each = effort.in_turns(
            [
                lambda n=guests: _at_rate(n, 1, effort.seconds),
                lambda n=guests: _at_rate(n, 1, effort.seconds, "--coalesce-us", COALESCE_US),
                lambda n=guests: _at_rate(n, n, effort.seconds),
            ]
        )
        share, together = one.over(each, "daemons_us"), coalescing.over(each, "daemons_us")
        names = ("daemons_us", "all_us", "p50_us")
        cells = [f"{runs[name]:.0f}" for name in names for runs in (one, coalescing, each)]
        rows.append((guests, *cells, f"{share:.2f}", f"{together:.2f}"))
    most = f"at most {SHARED:g} of the CPU of as many"
    claims = [
        Claim(
            f"{GUESTS[-1]} guests over one daemon that looks every {COALESCE_US} us: {most}",
            f"{together:.2f}",
            together <= SHARED,
        ),
        Claim(f"over one that looks at once: {most}", f"{share:.2f}", share <= SHARED),
    ]
    pairs = ("daemon, us", "with guests", "median request")
    of_three = (word for name in pairs for word in (name, "coalescing", "each its own"))
    columns = ("guests", *of_three, "one of each", "coalescing")
    title = f"processor time a request, {GUEST_RATE:g} requests/s of each guest"
    return Table("sharing", title, columns, rows, claims)


def _at_rate(guests: int, daemons: int, seconds: float, *options: str) -> Figures:
    with ExitStack() as stack:
        running = [stack.enter_context(daemon(*options)) for _ in range(daemons)]
        there = stack.enter_context(server("echo_sockets"))
        started_s = sum(one.cpu_s() for one in running)  # which no request has caused
        asking = [
            begin(
                "guest_requests", running[i % daemons].path, there.port, GUEST_CONNECTIONS,
                seconds, BYTES, GUEST_RATE,
            )
            for i in range(guests)
        ]  # fmt: skip
        told = [answer(process) for process in asking]
        requests = sum(figures["requests"] for figures in told)
        daemons_s = sum(one.cpu_s() for one in running) - started_s
        guests_s = sum(figures["cpu_s"] for figures in told)
    return {
        "daemons_us": daemons_s / requests * 1e6,
        "all_us": (daemons_s + guests_s) / requests * 1e6,
        "p50_us": statistics.median(figures["p50_us"] for figures in told),
    }


def users(effort: Effort) -> Table:
    """Two users with 8 and 24 connections, each sending as much as it may."""
    rows: list[tuple[object, ...]] = []
    worst = 0.0
    for limit in ((), ("--rate", "200000000")):
        with ExitStack() as stack:
            running = stack.enter_context(daemon("--share-by", "process", *limit))
            there = stack.enter_context(server("sink"))
            floods = []
            for count in (8, 24):
                flood = begin("flood", running.path, there.port, count)
                stack.callback(flood.communicate)
                stack.callback(flood.kill)
                first_figure(flood)
                floods.append(f"{os.getuid()}/{flood.pid}")
            few, many = _sent(running, floods, effort.seconds * effort.turns)
        share = few / (few + many)
        worst = max(worst, abs(share - 0.5))
        name = f"{int(limit[1]) / 1e6:g} MB/s" if limit else "none"
        rows.append((name, f"{(few + many) / 1e6:.0f}", f"{share:.3f}", f"{1 - share:.3f}"))
    claims = [
        Claim("8 and 24 connections share 50/50 to 3 %", f"{worst:.1%} off", worst <= FAIR),
        Claim(f"fair sharing of a network whatever the flows ({ABSTRACT})", f"{worst:.1%} off"),
    ]
    columns = ("limit", "MB sent", "8 connections", "24 connections")
    return Table("users", "shares of two users", columns, rows, claims)


def _sent(running: Daemon, names: list[str], seconds: float) -> list[int]:
    time.sleep(0.5)  # until both send at full speed
    before = running.status()["sent_bytes"]
    time.sleep(seconds)
    after = running.status()["sent_bytes"]
    return [after[name] - before[name] for name in names]


def sockets(effort: Effort) -> Table:
    """An echo server with sockets of its own, and one that is a guest: requests a second."""
    rows: list[tuple[object, ...]] = []
    share = 1.0
    with daemon() as running:
        for count in COUNTS:
            direct, guest = effort.in_turns(
                [
                    lambda n=count: _served(running, ("echo_sockets",), n, effort.seconds),
                    lambda n=count: _served(
                        running, ("echo_guest", running.path), n, effort.seconds
                    ),
                ]
            )
            share = guest.over(direct, "requests_per_s")
            names = ("requests_per_s", "p50_us", "cpu_us")
            cells = [f"{runs[name]:,.1f}" for name in names for runs in (direct, guest)]
            rows.append((count, *cells, f"{share:.2f}"))
    claims = [
        Claim(f"at least {COST:g} of direct sockets' requests", f"{share:.2f}", share >= COST)
    ]
    pairs = ("requests/s", "median, us", "server CPU, us")
    columns = ("connections", *(word for name in pairs for word in (name, "as guest")), "ratio")
    return Table("sockets", "requests of 64 bytes from elsewhere", columns, rows, claims)


def _served(running: Daemon, words: tuple[object, ...], count: int, seconds: float) -> Figures:
    """CPU of the server a request, the daemon's with it."""
    with server(*words) as there:
        before_s = there.cpu_s() + running.cpu_s()
        told = ask("requests", there.port, count, seconds, BYTES, ANY_RATE)
        used_s = there.cpu_s() + running.cpu_s() - before_s
    return {**told, "cpu_us": used_s / told["requests"] * 1e6}


def connections(effort: Effort) -> Table:
    """One guest with more and more connections, and the same load by all of them."""
    rows: list[tuple[object, ...]] = []
    for count in CONNECTIONS:
        with daemon() as running, server("echo_guest", running.path) as there:
            told = begin("requests", there.port, count, effort.seconds * 2, BYTES, 10_000.0)
            figures = answer(told)
            cpu_us = (running.cpu_s() + there.cpu_s()) / figures["requests"] * 1e6
        cells = (f"{figures['requests_per_s']:,.0f}", f"{figures['p50_us']:.0f}", f"{cpu_us:.1f}")
        rows.append((count, *cells))
    claims = [
        Claim("10,000 connections answer", f"{rows[-1][1]} requests/s of 10,000 asked"),
    ]
    columns = ("connections", "requests/s", "median, us", "daemon and guest CPU, us")
    title = "10,000 requests/s in all, by the number of connections"
    return Table("connections", title, columns, rows, claims)


def idle(effort: Effort) -> Table:
    """The daemon while nothing happens, with 1,000 connections and 8 guests."""
    with ExitStack() as stack:
        running = stack.enter_context(daemon())
        there = [stack.enter_context(server("echo_guest", running.path)) for _ in range(8)]
        seconds = effort.seconds * effort.turns
        asking = begin("requests", there[0].port, 1000, seconds + 2, BYTES, 0.001)
        stack.callback(asking.communicate)
        stack.callback(asking.kill)
        time.sleep(1)
        before_s = running.cpu_s()
        time.sleep(seconds)
        share = (running.cpu_s() - before_s) / seconds
    claims = [Claim("an idle daemon takes less than 1 % of a core", f"{share:.3%}", share < IDLE)]
    return Table(
        "idle", "8 guests, 1,000 connections, no requests", ("CPU",), [(f"{share:.3%}",)], claims
    )
