"""Users behind gateways, and what they should get of one server."""

import random
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from bench.gateways.schemes import gateway_of
from bench.scheduler import CROWD_BATCH, Figure, quantile, rounds_per_s
from runtime.bench.simulation import Device, Record

RTT_S = 0.03  # of a session, where nothing else is said
JOINS_S, LEAVES_S = 10.0, 10.0
LOOK_S = 0.5  # in which a share is counted


@dataclass(frozen=True)
class Site:
    """The gateways of a scenario: how far each is from the server and back, and what is odd."""

    rtts_s: Sequence[float]
    greedy: int | None = None  # which offers what it likes
    leaves: int | None = None  # whose sessions all end at LEAVES_S
    batch: int = CROWD_BATCH  # trees in a step


class Setting(Protocol):
    """Simulated, or real.

    edges       of the crowd
    seconds     of a run, of which the second half counts
    near_s      from a gateway to the server and back, where nothing else is said
    """

    edges: int
    seconds: float
    near_s: float

    def run(
        self, site: Site, devices: Sequence[Device], seconds: float, warm_up_s: float
    ) -> Record: ...

    @property
    def offers_per_s(self) -> float:
        """In the last run, of all gateways."""


def users(gateway: int, count: int, rtt_s: float = RTT_S) -> list[Device]:
    """Behind one gateway, with one session each."""
    return [Device(rtt_s, user=f"{gateway}-{number}", jitter=0.1) for number in range(count)]


def user(gateway: int, edges: int, joins_s: float = 0.0) -> list[Device]:
    """One behind a gateway, with many sessions."""
    return [Device(RTT_S, user=f"{gateway}-0", jitter=0.1, joins_s=joins_s)] * edges


def run(setting: Setting, devices: Sequence[Device], site: Site | None = None) -> Record:
    """Of the setting's length; the site has two gateways unless one is given."""
    site = site or Site((setting.near_s,) * 2)
    return setting.run(site, devices, setting.seconds, setting.seconds / 2)


def trees(record: Record, start_s: float = 0.0, end_s: float = 1e9) -> Counter[int]:
    """Verified between two times, by gateway."""
    counts = Counter[int]()
    for name, times_s in record.trees_by_user.items():
        counts[gateway_of(name)] += sum(start_s < time_s <= end_s for time_s in times_s)
    return counts


def share(counts: Counter[int], gateway: int) -> float:
    return counts[gateway] / max(counts.total(), 1)


def around(scenario: str, name: str, value: float, goal: float, within: float = 0.05) -> Figure:
    return Figure(scenario, name, value, f"{goal} +- {within}", abs(value - goal) <= within)


def used(scenario: str, record: Record, goal: float = 0.98) -> Figure:
    """Trees verified, of those that the steps had places for, had each begun as one ended."""
    places_per_s = CROWD_BATCH / statistics.mean(record.steps_s)
    value = len(record.ages_s) / record.elapsed_s / places_per_s
    return Figure(scenario, "share of capacity", value, f">= {goal}", value >= goal)


def crowd(setting: Setting) -> Iterator[Figure]:
    """Users near and far, half behind each gateway, who all ask at once."""
    rng, name = random.Random(1), f"{setting.edges} users"
    rtts_s = [rng.uniform(0.005, 0.1) for _ in range(setting.edges)]
    devices = [
        Device(rtt_s, user=f"{number % 2}-{number}", jitter=0.1)
        for number, rtt_s in enumerate(rtts_s)
    ]
    record = run(setting, devices)
    yield from of_all(name, record)
    age_s, most_s = quantile(record.ages_s, 0.99), 0.11 / 2 + 2 * statistics.mean(record.steps_s)
    yield Figure(name, "p99 age, of RTT/2 + 2 steps", age_s / most_s, "<= 1", age_s <= most_s)
    ratio = rounds_per_s(record, lambda device: device.rtt_s > 0.075) / rounds_per_s(
        record, lambda device: device.rtt_s < 0.03
    )
    yield Figure(name, "long / short RTT", ratio, "0.9-1.1", 0.9 <= ratio <= 1.1)
    served = [len(record.trees_by_user.get(device.user, ())) for device in devices]
    jain = sum(served) ** 2 / (len(served) * sum(count**2 for count in served))
    yield Figure(name, "Jain's index of users", jain)
    yield Figure(name, "offers a second", setting.offers_per_s)


def even(setting: Setting) -> Iterator[Figure]:
    """As many users behind each gateway, all as far away."""
    record = run(setting, [*users(0, 64), *users(1, 64)])
    yield from of_all("64 and 64 users", record)


def of_all(name: str, record: Record) -> Iterator[Figure]:
    """What every two equal gateways should have."""
    yield used(name, record)
    full = record.longest_queue / record.largest_window
    yield Figure(name, "longest queue, of the window", full, "<= 1", full <= 1)
    yield around(name, "share of a gateway", share(trees(record), 0), 0.5)


def newcomer(setting: Setting) -> Iterator[Figure]:
    """A second gateway joins while the first one fills the server."""
    name, until_s = "a gateway joins", JOINS_S + 6
    devices = [*user(0, 64), *user(1, 64, JOINS_S)]
    record = setting.run(Site((setting.near_s,) * 2), devices, until_s, JOINS_S / 2)
    first_s = min(trip.verdicts[0][0] for trip in record.trips[64:]) - JOINS_S
    yield Figure(name, "first token after, ms", 1e3 * first_s, "<= 500", first_s <= 0.5)
    later = trees(record, JOINS_S + 2, JOINS_S + 3)
    yield around(name, "share after 2 s", share(later, 1), 0.5, 0.1)
    settled_s = settled(record, JOINS_S, until_s)
    yield Figure(name, "share stays 0.4-0.6 after, s", settled_s, "<= 2", settled_s <= 2)


def settled(record: Record, start_s: float, until_s: float) -> float:
    """Seconds until the second gateway's share is between 0.4 and 0.6, to stay there."""
    settled_s, step_s = start_s, 0.1
    for number in range(round((until_s - start_s - LOOK_S) / step_s) + 1):
        from_s = start_s + number * step_s
        if not 0.4 <= share(trees(record, from_s, from_s + LOOK_S), 1) <= 0.6:
            settled_s = from_s + LOOK_S
    return settled_s - start_s


def unequal(setting: Setting) -> Iterator[Figure]:
    """Three times as many users behind one gateway; they are worth as much as the others."""
    record = run(setting, [*users(0, 96), *users(1, 32)])
    yield around("96 and 32 users", "share of the 96", share(trees(record), 0), 0.75)


def sessions(setting: Setting) -> Iterator[Figure]:
    """One user behind each gateway, with more sessions behind one."""
    record = run(setting, [*user(0, 96), *user(1, 32)])
    yield around("a user's 96 and 32 sessions", "share of the 96", share(trees(record), 0), 0.5)


def far(setting: Setting) -> Iterator[Figure]:
    """One gateway is far from the server, and users as far behind both."""
    devices = [*users(0, 64, rtt_s=0.09), *users(1, 64, rtt_s=0.09)]
    record = run(setting, devices, Site((setting.near_s, 0.08)))
    yield around("gateways 4 and 80 ms away", "share of the near", share(trees(record), 0), 0.5)


def many(setting: Setting) -> Iterator[Figure]:
    """Eight gateways."""
    devices = [device for gateway in range(8) for device in users(gateway, 32)]
    record = run(setting, devices, Site((setting.near_s,) * 8))
    counts, name = trees(record), "8 gateways of 32 users"
    yield used(name, record)
    least = 8 * min(share(counts, gateway) for gateway in range(8))
    yield Figure(name, "the least, of an equal share", least, ">= 0.9", least >= 0.9)


def leaving(setting: Setting) -> Iterator[Figure]:
    """One of two gateways goes: its rate is free for the other."""
    site, devices = Site((setting.near_s,) * 2, leaves=1), [*users(0, 64), *users(1, 64)]
    yield used("2 s after a gateway left", setting.run(site, devices, LEAVES_S + 2, LEAVES_S), 0.95)


def greedy(setting: Setting) -> Iterator[Figure]:
    """A gateway offers twice what the server can take, and does not listen."""
    site = Site((setting.near_s,) * 2, greedy=1)
    counts = trees(run(setting, [*users(0, 64), *users(1, 64)], site))
    yield around("a greedy gateway", "share of the other", share(counts, 0), 0.5)


def few(setting: Setting) -> Iterator[Figure]:
    """Two sessions of a server that takes a tree at a time: what the way to the gate costs."""
    record = run(setting, [*users(0, 1), *users(1, 1)], Site((0.02, 0.02), batch=1))
    yield Figure("2 users, batch 1, 20 ms away", "tokens/s", record.tokens / record.elapsed_s)


SCENARIOS = (crowd, even, newcomer, unequal, sessions, far, many, leaving, greedy, few)
MEASURED = (even, newcomer, unequal)  # with daemons
