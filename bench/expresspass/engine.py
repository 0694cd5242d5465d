"""The simulator as a function: a scenario in, what came of it out. Compiled when first used."""

import hashlib
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.expresspass.network import Network

SOURCES = Path(__file__).parent / "engine"
BUILDS = Path(__file__).parents[2] / "build" / "expresspass"
# Fused multiply-adds only where they are written out: the same result on every machine.
FLAGS = ("-std=c++20", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror")
PS_PER_S = 10**12
PS_PER_US = 10**6


@dataclass(frozen=True)
class Flow:
    """So many bytes of payload from a time on, along ports; `n_bytes` -1: without end."""

    start_ps: int
    n_bytes: int
    path: Sequence[int]


@dataclass(frozen=True)
class Run:
    """What is simulated; start rate and weight are ExpressPass's alone."""

    network: Network
    flows: Sequence[Flow]  # in the order of their start
    until_ps: int = 10**18
    measure_from_ps: int = 0
    sample_every_ps: int = 0
    start_rate: float = 1 / 16
    start_weight: float = 1 / 16
    seed: int = 1


@dataclass(frozen=True)
class PortResult:
    """One direction of a link; bytes and queues since measure_from_ps, packets of the whole run."""

    sent_bytes: int
    sent_credits: int
    longest_bytes: int
    byte_ps: int  # bytes waiting, over time
    dropped: int
    dropped_credits: int
    marked: int


@dataclass(frozen=True)
class FlowResult:
    finished_ps: int  # -1: never
    delivered_bytes: int
    credits: int
    wasted_credits: int
    resent: int


@dataclass(frozen=True)
class Sample:
    """By flow: bytes that have come so far, and the rate (a share) or window (packets) allowed."""

    time_ps: int
    delivered_bytes: Sequence[int]
    allowed: Sequence[float]


@dataclass(frozen=True)
class Counts:
    """Of the whole run; packets of every kind, credits and acknowledgements too."""

    end_ps: int
    events: int
    arrivals: int  # of packets at nodes: the packet events
    made: int
    received: int
    dropped: int
    dropped_credits: int
    in_flight: int


@dataclass(frozen=True)
class Result:
    counts: Counts
    cpu_s: float  # that the simulation took of one core
    ports: list[PortResult]
    flows: list[FlowResult]
    samples: list[Sample]

    def utilisation(self, run: Run, port: int) -> float:
        """Share of the link's time that data took, since measure_from_ps."""
        elapsed_ps = self.counts.end_ps - run.measure_from_ps
        return self.ports[port].sent_bytes * run.network.ports[port].ps_per_byte / elapsed_ps


def simulate(run: Run) -> Result:
    """Raises ValueError without a compiler, or if the engine refuses the scenario."""
    program = simulator()
    start_s = _children_s()
    done = subprocess.run(
        [program], input=_scenario(run), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError(done.stderr.strip() or f"the simulator ended with {done.returncode}")
    return _result(done.stdout, _children_s() - start_s)


@cache
def simulator() -> Path:
    """The compiled engine; one build for each state of its sources, kept beside other builds."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        raise ValueError("bench.expresspass needs a C++20 compiler: install one, or name it in CXX")
    files = sorted(SOURCES.glob("*"))
    content = b"".join(path.read_bytes() for path in files) + " ".join(FLAGS).encode()
    target = BUILDS / hashlib.sha256(content).hexdigest()[:16]
    if not target.exists():
        BUILDS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILDS) as folder:
            fresh = Path(folder) / "simulator"
            command = [compiler, *FLAGS, str(SOURCES / "main.cpp"), "-o", str(fresh)]
            built = subprocess.run(command, capture_output=True, text=True, check=False)
            if built.returncode:
                raise ValueError(f"{compiler} cannot compile the engine:\n{built.stderr}")
            fresh.replace(target)  # whole or not at all, whoever else builds it
    return target


def _children_s() -> float:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime


def _scenario(run: Run) -> str:
    lines = [
        f"{run.network.transport} {run.start_rate} {run.start_weight} {run.seed} {run.until_ps}"
        f" {run.measure_from_ps} {run.sample_every_ps}"
    ]
    for port in run.network.ports:
        lines.append(
            f"port {port.ps_per_byte} {port.delay_ps} {port.queue_bytes} {port.mark_bytes}"
            f" {port.phantom_bytes}"
        )
    for flow in run.flows:
        path = " ".join(map(str, flow.path))
        lines.append(f"flow {flow.start_ps} {flow.n_bytes} {len(flow.path)} {path}")
    return "\n".join(lines)


def _result(text: str, cpu_s: float) -> Result:
    ports, flows, samples, counts = [], [], [], [0] * 8
    for line in text.splitlines():
        kind, *values = line.split()
        if kind == "port":
            ports.append(PortResult(*map(int, values)))
        elif kind == "flow":
            flows.append(FlowResult(*map(int, values)))
        elif kind == "sample":
            delivered, allowed = values[1::2], values[2::2]
            samples.append(Sample(int(values[0]), [*map(int, delivered)], [*map(float, allowed)]))
        else:
            counts = [*map(int, values)]
    return Result(Counts(*counts), cpu_s, ports, flows, samples)
