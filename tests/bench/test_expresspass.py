"""The packet simulation against networks that can be solved by hand, and what must always hold."""

import random
from collections import Counter
from dataclasses import asdict, replace
from itertools import pairwise

import pytest

from bench.expresspass import engine
from bench.expresspass.completion import by_size
from bench.expresspass.convergence import first_near
from bench.expresspass.engine import PS_PER_US, Flow, Result, Run, simulate
from bench.expresspass.network import (
    CREDIT_BYTES,
    DATA_SHARE,
    FRAME_BYTES,
    PAYLOAD_BYTES,
    TRANSPORTS,
    FatTree,
    Network,
    dumbbell,
    multi_bottleneck,
    parking_lot,
    star,
)
from bench.expresspass.sharing import jain, rates, steady
from bench.expresspass.workloads import WORKLOADS, on_fat_tree

WINDOWED = TRANSPORTS[1:]
BYTE_PS, DELAY_PS = 800, 10 * PS_PER_US  # of links of 10 Gbit/s
FRAME_PS, CREDIT_PS = FRAME_BYTES * BYTE_PS, CREDIT_BYTES * BYTE_PS
SHAPES = (dumbbell, parking_lot, multi_bottleneck, star)


def alone(transport: str, n_bytes: int, **options: float) -> int:
    """When a flow ends that has two hosts and a switch to itself, in ps."""
    network = Network(transport)
    flows = [Flow(0, n_bytes, star(network, 1, 10, DELAY_PS)[0])]
    result = simulate(Run(network, flows, **options))
    assert result.flows[0].delivered_bytes == n_bytes
    assert result.counts.in_flight == result.counts.dropped == 0
    return result.flows[0].finished_ps


@pytest.mark.parametrize("transport", WINDOWED)
@pytest.mark.parametrize("n_bytes", [1, 6, 7, 1000, PAYLOAD_BYTES])
def test_a_packet_needs_a_handshake_and_its_own_way(transport: str, n_bytes: int) -> None:
    frame = max(CREDIT_BYTES, n_bytes + FRAME_BYTES - PAYLOAD_BYTES)
    assert alone(transport, n_bytes) == 6 * DELAY_PS + 2 * BYTE_PS * (2 * CREDIT_BYTES + frame)


@pytest.mark.parametrize("transport", WINDOWED)
def test_the_second_window_is_twice_the_first(transport: str) -> None:
    first_ps = 4 * DELAY_PS + 4 * CREDIT_PS  # when the first window is sent
    rtt_ps = 4 * DELAY_PS + 2 * (FRAME_PS + CREDIT_PS)
    way_ps = 2 * (DELAY_PS + FRAME_PS)
    assert alone(transport, 10 * PAYLOAD_BYTES) == first_ps + 9 * FRAME_PS + way_ps
    # Each of the acknowledgements, a frame apart, lets two packets go: the host's link is full.
    assert alone(transport, 30 * PAYLOAD_BYTES) == first_ps + rtt_ps + 19 * FRAME_PS + way_ps


@pytest.mark.parametrize("n_bytes", [1, 1000, PAYLOAD_BYTES])
def test_a_packet_needs_a_request_a_credit_and_its_own_way(n_bytes: int) -> None:
    frame = max(CREDIT_BYTES, n_bytes + FRAME_BYTES - PAYLOAD_BYTES)
    took_ps = alone("expresspass", n_bytes)
    credit, rest = divmod(
        took_ps - 6 * DELAY_PS - 2 * BYTE_PS * (CREDIT_BYTES + frame), 2 * BYTE_PS
    )
    assert rest == 0
    assert 76 <= credit <= 92


def test_credits_come_at_the_start_rate_and_then_faster() -> None:
    first_ps, two_ps = (alone("expresspass", n * PAYLOAD_BYTES, start_rate=0.01) for n in (1, 2))
    gap_ps = (FRAME_PS + CREDIT_PS) / 0.01
    assert 0.89 * gap_ps < two_ps - first_ps < 1.11 * gap_ps  # a jitter of a tenth, and of sizes
    many_ps = alone("expresspass", 500 * PAYLOAD_BYTES, start_rate=0.01)
    assert 500 * FRAME_PS / DATA_SHARE < many_ps < 1.5 * 500 * FRAME_PS / DATA_SHARE + 4 * gap_ps


def test_credits_leave_data_its_share_of_a_link() -> None:
    """1,538 of 1,622 bytes, however many flows ask for more."""
    for flows in (1, 2, 30):
        run, result = long_flows("expresspass", flows, start_rate=1.0)
        used = result.utilisation(run, 0)
        assert 0.9 < used <= DATA_SHARE + 0.002
        assert result.ports[0].longest_bytes <= 4 * FRAME_BYTES


def long_flows(transport: str, count: int, **options: float) -> tuple[Run, Result]:
    """Hosts of 40 Gbit/s over a link of 10: from 20 to 60 ms."""
    network = Network(transport)
    flows = [Flow(0, -1, path) for path in dumbbell(network, count, 10, DELAY_PS, times=4)]
    times = {"measure_from_ps": 20_000 * PS_PER_US, "sample_every_ps": 61 * PS_PER_US}
    run = Run(network, flows, 60_000 * PS_PER_US, **times, **options)
    return run, simulate(run)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_queue_of_dctcp_is_what_its_paper_derives(count: int) -> None:
    """Section 3.3: at most K + N packets, and never empty where K > C·RTT/7."""
    run, result = long_flows("dctcp", count)
    assert abs(result.ports[0].longest_bytes / FRAME_BYTES - (65 + count)) <= 2
    assert result.utilisation(run, 0) > 0.999
    assert result.counts.dropped == 0


def test_dctcp_takes_half_of_alpha_from_a_window() -> None:
    """Alpha settles where a window gains as much in a sawtooth as it then loses."""
    _, result = long_flows("dctcp", 1)
    windows = [sample.allowed[0] for sample in result.samples if sample.time_ps > 3 * 10**10]
    most, least = max(windows), min(windows)
    # Equation 9: alpha is about the square root of 2/W, and half of it of W is lost at once.
    assert abs((most - least) / most / ((2 / most) ** 0.5 / 2) - 1) < 0.2


def test_phantom_queues_keep_a_twentieth_of_the_link_free() -> None:
    run, result = long_flows("hull", 4)
    assert 0.85 < result.utilisation(run, 0) <= 0.951
    assert result.ports[0].byte_ps / (40_000 * PS_PER_US) < 10 * FRAME_BYTES


def test_dx_adds_a_packet_or_takes_the_share_of_the_queueing_delay() -> None:
    run, result = long_flows("dx", 1)
    windows = [sample.allowed[0] for sample in result.samples if sample.time_ps > 2 * 10**10]
    changes = {round(after - before, 6) for before, after in pairwise(windows)}
    assert {change for change in changes if change > 0} == {1}
    # One flow, whose window was W with no queue and W + n with n frames of it: it falls by n.
    falls = [-change for change in changes if change < 0]
    assert falls
    assert max(falls) < 6
    assert result.utilisation(run, 0) > 0.97


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_two_flows_share_a_link(transport: str) -> None:
    network = Network(transport)
    _, result = steady(network, dumbbell(network, 2, 10, DELAY_PS))
    assert jain(rates(result)) > 0.97


def random_run(transport: str, seed: int) -> Run:
    """Some shape, some flows along its paths, with queues as short as a switch may have."""
    dice = random.Random(seed)
    network = Network(transport)
    paths = dice.choice(SHAPES)(network, dice.randint(1, 12), dice.choice([10, 40]), PS_PER_US)
    starts = sorted(dice.randrange(300 * PS_PER_US) for _ in range(40))
    sizes = [round(10 ** dice.uniform(0, 5.5)) for _ in starts]
    flows = [
        Flow(start, size, dice.choice(paths)) for start, size in zip(starts, sizes, strict=True)
    ]
    return Run(network, flows, seed=seed, start_rate=dice.uniform(0.01, 1), start_weight=0.5)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_no_packet_comes_from_nowhere_and_none_is_forgotten(transport: str) -> None:
    for seed in range(12):
        run = random_run(transport, seed)
        for until_ps in (50 * PS_PER_US, run.until_ps):
            result = simulate(replace(run, until_ps=until_ps))
            counts = result.counts
            gone = counts.received + counts.dropped + counts.dropped_credits
            assert counts.made == gone + counts.in_flight
        assert counts.in_flight == 0
        assert [flow.delivered_bytes for flow in result.flows] == [f.n_bytes for f in run.flows]
        assert all(
            ended.finished_ps >= flow.start_ps + ideal(run.network, flow)
            for flow, ended in zip(run.flows, result.flows, strict=True)
        )


def ideal(network: Network, flow: Flow) -> int:
    """The delays of the links and the payload's time on the slowest, which no flow can beat."""
    ports = [network.ports[port] for port in flow.path]
    return sum(port.delay_ps for port in ports) + flow.n_bytes * max(p.ps_per_byte for p in ports)


def test_expresspass_loses_no_data_whatever_the_flows() -> None:
    for seed in range(60):
        assert simulate(random_run("expresspass", seed)).counts.dropped == 0
    network = Network("expresspass")
    burst = [Flow(0, 20_000, path) for path in star(network, 300, 10, PS_PER_US)]
    assert simulate(Run(network, burst, start_rate=1.0)).counts.dropped == 0


@pytest.mark.parametrize("transport", WINDOWED)
def test_what_is_lost_is_sent_again(transport: str) -> None:
    network = Network(transport)
    paths = star(network, 20, 10, PS_PER_US)
    network.ports[1] = replace(network.ports[1], queue_bytes=6 * FRAME_BYTES)
    result = simulate(Run(network, [Flow(0, 100_000, path) for path in paths]))
    assert result.counts.dropped > 50
    assert {flow.delivered_bytes for flow in result.flows} == {100_000}
    assert sum(flow.resent for flow in result.flows) > 0  # after duplicates, before a timeout


def test_a_seed_decides_everything() -> None:
    def outcome(seed: int) -> dict[str, object]:
        return asdict(replace(simulate(replace(run, seed=seed)), cpu_s=0.0))

    run = random_run("expresspass", 3)
    assert outcome(1) == outcome(1)
    assert outcome(1) != outcome(2)


def test_the_paths_of_the_fat_tree_lead_from_host_to_host_and_use_every_core() -> None:
    tree, dice = FatTree(Network("dctcp")), random.Random(0)
    assert len(tree.hosts) == 192
    assert Counter(len(tree.path(0, sink, dice)) for sink in range(1, 192)) == {2: 5, 4: 18, 6: 168}
    cores = set()
    for _ in range(400):
        source, sink = dice.sample(range(192), 2)
        path = tree.path(source, sink, dice)
        assert (path[0], path[-1] ^ 1) == (tree.hosts[source], tree.hosts[sink])
        if len(path) > 2:
            assert path[1] in tree.up[source // 6]
            assert path[-2] ^ 1 in tree.up[sink // 6]
        if len(path) == 6:
            places = [
                (side, lane)
                for port, pod in ((path[2], source // 24), (path[3] ^ 1, sink // 24))
                for side, lanes in enumerate(tree.core[pod])
                for lane, link in enumerate(lanes)
                if link == port
            ]
            assert places[0] == places[1]
            cores.add(places[0])
    assert len(cores) == 8


def test_flows_have_the_published_sizes_and_fill_the_links() -> None:
    for workload in WORKLOADS:
        for (low, _), (high, share) in pairwise(workload.points):
            assert low <= workload.size(share) <= high
    tree = FatTree(Network("dctcp"))
    flows = on_fat_tree(tree, WORKLOADS[0], 20_000, 0.6, seed=5)
    wire_bits = 8 * FRAME_BYTES / PAYLOAD_BYTES
    up = sum(flow.n_bytes for flow in flows if len(flow.path) > 2) * wire_bits
    assert abs(up / (flows[-1].start_ps / 1e12) / (64 * 10e9) - 0.6) < 0.02


def ideal_ps(tree: FatTree, flow: Flow) -> int:
    """When the last byte can be there at the earliest, of a flow alone that need not ask first."""
    frames, rest = divmod(flow.n_bytes, PAYLOAD_BYTES)
    last = max(CREDIT_BYTES, FRAME_BYTES - PAYLOAD_BYTES + rest) if rest else FRAME_BYTES
    ports = [tree.network.ports[port] for port in flow.path]
    alone = sum(port.delay_ps + last * port.ps_per_byte for port in ports)
    return alone + (frames - (rest == 0)) * FRAME_BYTES * max(port.ps_per_byte for port in ports)


def test_small_flows_on_the_fat_tree_end_in_the_time_of_their_paths() -> None:
    for transport in TRANSPORTS:
        tree = FatTree(Network(transport))
        flows = on_fat_tree(tree, WORKLOADS[0], 300, 0.05, seed=2)
        result = simulate(Run(tree.network, flows))
        pairs = zip(flows, result.flows, strict=True)
        assert all(ended.finished_ps - f.start_ps > ideal_ps(tree, f) for f, ended in pairs)
        times = by_size(flows, result)
        assert sum(map(len, times.values())) == 300
        assert times["S"][len(times["S"]) // 2] < 120


def test_convergence_is_counted_from_the_first_round_trip() -> None:
    shares = [0.0, 0.45, 0.7, 0.41, 0.59, 0.5, 0.9]
    assert [first_near(shares, n) for n in (1, 2, 3, 4)] == [1, 3, 3, 7]


def test_what_cannot_be_simulated_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network("dctcp")
    path = star(network, 1, 10, DELAY_PS)[0]
    with pytest.raises(ValueError, match="cannot be read: a path"):
        simulate(Run(network, [Flow(0, 1, [99])]))
    with pytest.raises(ValueError, match="flows out of order"):
        simulate(Run(network, [Flow(5, 1, path), Flow(4, 1, path)]))
    with pytest.raises(ValueError, match="no transport tcp"):
        simulate(Run(replace(network, transport="tcp"), [Flow(0, 1, path)]))
    with pytest.raises(ValueError, match="whole picoseconds"):
        network.link(3, DELAY_PS)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="needs a C\\+\\+20 compiler"):
        engine.simulator.__wrapped__()
