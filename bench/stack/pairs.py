"""Two processes of one host: elements through a ring, messages and answers, bytes."""

from bench.stack.load import Figures, ask, daemon
from bench.stack.table import Claim, Effort, Table

BATCHES = (1, 4, 16, 64, 256)
RINGS = ("bare", "bare-asking", "in-place", "by-frame")
SIZES = (64, 1024, 4096, 16384, 65536)
KINDS = ("tcp", "unix", "eventfd", "shm-sleeping", "shm", "shm-polling", "flag")
KEPT, FASTER, POLLING_US, SLEEPING = 0.8, 4.0, 0.5, 1.2


def rings(effort: Effort) -> Table:
    """Frames of 32 bytes a second by batch size: a bare ring, and two guests with all checks."""
    rows: list[tuple[object, ...]] = []
    of_bare, of_asking = [], []
    with daemon() as running:

        def run(kind: str, batch: int) -> Figures:
            return ask("rings", running.path, kind, batch, effort.seconds / 4)

        for batch in BATCHES:
            found = effort.in_turns([lambda kind=kind, n=batch: run(kind, n) for kind in RINGS])
            bare, asking, in_place, _ = found
            of_bare.append(in_place.over(bare, "frames_per_s"))
            of_asking.append(in_place.over(asking, "frames_per_s"))
            rates = [f"{runs['frames_per_s'] / 1e6:.1f}" for runs in found]
            rows.append((batch, *rates, f"{of_bare[-1]:.2f}", f"{of_asking[-1]:.2f}"))
    least = min(of_bare)
    claims = [
        Claim(f"two guests keep {KEPT:g} of a bare ring", f"{least:.2f}", least >= KEPT),
        Claim("of one that asks for its lines ahead", f"{min(of_asking):.2f}"),
    ]
    columns = (
        "batch", "bare ring, M/s", "one that asks ahead", "guests, in place", "a call a frame",
        "of the bare ring", "of the asking one",
    )  # fmt: skip
    return Table("rings", "frames of 32 bytes through a ring", columns, rows, claims)


def round_trips(effort: Effort) -> Table:
    """A message of 32 bytes and its answer: sleeping, after a short look, and polling."""
    with daemon() as running:
        found = dict(
            zip(
                KINDS,
                effort.in_turns(
                    [
                        lambda kind=kind: ask("round_trips", running.path, kind, effort.seconds / 4)
                        for kind in KINDS
                    ]
                ),
                strict=True,
            )
        )
    rows = [
        (kind, *(f"{runs[name]:.2f}" for name in ("round_trip_us", "p99_us", "cpu_us")))
        for kind, runs in found.items()
    ]
    polling, least = (found[kind]["round_trip_us"] for kind in ("shm-polling", "flag"))
    times = found["shm"].over(found["eventfd"], "round_trip_us")
    claims = [
        Claim(f"polling, at most {POLLING_US} us", f"{polling:.2f} us", polling <= POLLING_US),
        Claim("the least possible, a flag alone and back", f"{least:.2f} us"),
        Claim(
            f"20 us of looking, then asleep: at most {SLEEPING} of an eventfd's time",
            f"{times:.2f}",
            times <= SLEEPING,
        ),
    ]
    columns = ("between two processes", "median, us", "p99, us", "CPU of the asking side, us")
    return Table("round_trips", "a message and its answer", columns, rows, claims)


def stream(effort: Effort) -> Table:
    """Bytes a second by message size, and what they cost both sides."""
    rows: list[tuple[object, ...]] = []
    faster = 0.0
    kinds = ("tcp", "unix", "shm")
    with daemon() as running:

        def run(kind: str, size: int) -> Figures:
            told = ask("stream", running.path, kind, size, effort.seconds / 2)
            cost = told["sender_cpu_ns_per_byte"] + told["receiver_cpu_ns_per_byte"]
            return {**told, "cpu_ns_per_byte": cost}

        for size in SIZES:
            found = effort.in_turns([lambda kind=kind, n=size: run(kind, n) for kind in kinds])
            tcp, _, shm = found
            faster = shm.over(tcp, "bytes_per_s")
            cheaper = tcp.over(shm, "cpu_ns_per_byte")
            cells = [
                f"{runs['bytes_per_s'] / 1e9:.2f} ({runs['cpu_ns_per_byte']:.3f})" for runs in found
            ]
            rows.append((size, *cells, f"{faster:.1f}", f"{cheaper:.1f}"))
    claims = [
        Claim(f"64 KiB at {FASTER:g} times TCP's rate or more", f"{faster:.1f}", faster >= FASTER),
    ]
    columns = ("bytes", *(f"{kind}, GB/s (ns/byte)" for kind in kinds), "rate", "CPU")
    title = "bytes between two processes; rate and CPU: shm's gain over TCP"
    return Table("stream", title, columns, rows, claims)
