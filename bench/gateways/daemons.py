"""Scenarios with real gateways: specedge-stack in a network namespace each, before a stub server.

A namespace is joined to this host by veth, and its daemon emulates the distance. Edges are this
process's and attach to their gateway's daemon; the server listens on this host. Needs root.
"""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.credits import Edge, Real, greeting
from bench.gateways.scenarios import RTT_S, Site
from bench.gateways.schemes import DRR, XPASS, Scheme, gateway_of
from bench.scheduler import CROWD_BATCH, CROWD_STEP_S
from bench.stub_edges import StubServer
from runtime.bench.simulation import Accelerator, Device, Record
from runtime.edge.net.link import Link
from runtime.server.policy.credits import Credits


def gated() -> Credits:
    """`xpass` for the two gateways here, as the server's --credits names it."""
    return XPASS.credits((RTT_S, RTT_S))


SUBNETS = 1 << 15  # of four addresses each; runs on one host take different ones
NAMES = {DRR: "drr", XPASS: f"{__name__}:{gated.__name__}"}


@dataclass(frozen=True)
class Gateway:
    """A daemon's socket, and where the server is for it."""

    socket: str
    server: str


@contextmanager
def gateways(count: int, rtt_s: float) -> Iterator[list[Gateway]]:
    """They end well, or the bench fails. Raises ValueError without root."""
    if os.geteuid():
        raise ValueError("network namespaces need root: run this with sudo, or in a container")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        yield [
            stack.enter_context(gateway(number, rtt_s, folder / f"{number}"))
            for number in range(count)
        ]


@contextmanager
def gateway(number: int, rtt_s: float, socket: Path) -> Iterator[Gateway]:
    """Has a network of its own among those that are kept for benchmarks (RFC 2544)."""
    namespace, link = f"specedge-{os.getpid()}-{number}", f"se{os.getpid()}-{number}"
    subnets = IPv4Network("198.18.0.0/15").subnets(new_prefix=30)
    subnet = next(islice(subnets, (2 * os.getpid() + number) % SUBNETS, None))
    ours, theirs = map(str, subnet.hosts())
    ip(f"netns add {namespace}")
    try:
        ip(f"link add {link} type veth peer name server netns {namespace}")
        ip(f"addr add {ours}/30 dev {link}")
        ip(f"link set {link} up")
        ip(f"-n {namespace} addr add {theirs}/30 dev server")
        ip(f"-n {namespace} link set server up")
        with daemon(namespace, rtt_s, socket):
            yield Gateway(str(socket), ours)
    finally:
        ip(f"netns delete {namespace}")


@contextmanager
def daemon(namespace: str, rtt_s: float, socket: Path) -> Iterator[None]:
    from runtime.stack import _stack

    program = Path(_stack.__file__).with_name("specedge-stack")
    emulated = ("--module", "emulated", "--delay-ms", f"{rtt_s / 2 * 1e3}")
    command = ["ip", "netns", "exec", namespace, program, "--socket", socket, *emulated]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert str(socket) in process.stdout.readline(), "the daemon did not start"
            yield
            process.terminate()
            assert process.wait(30) == 0, "the daemon did not end well"
        finally:
            process.kill()


def ip(command: str) -> None:
    """Raises ValueError with what `ip` says."""
    try:
        subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", "") or str(error)
        raise ValueError(f"ip {command}: {reason.strip()}") from None


@dataclass(frozen=True)
class Behind(Real):
    """Edges that connect by their gateways."""

    gateways: Sequence[Gateway] = ()

    async def connect(self, server: StubServer, edge: Edge) -> Link:
        user = edge.trip.device.user
        through = self.gateways[gateway_of(user)]
        port = server.address[1]
        return await Link.open(through.server, port, *greeting(user), through.socket)

    def _server_options(
        self, accelerator: Accelerator, devices: Sequence[Device], folder: Path
    ) -> list[str]:
        return [*super()._server_options(accelerator, devices, folder), "--host", "0.0.0.0"]


@dataclass
class Measured:
    """Runs scenarios with one scheme by real gateways."""

    scheme: Scheme
    gateways: Sequence[Gateway]
    seconds: float
    near_s: float = RTT_S
    edges: int = 0
    offers_per_s: float = 0.0  # the server says nothing of them

    def run(
        self, site: Site, devices: Sequence[Device], seconds: float, warm_up_s: float
    ) -> Record:
        accelerator = Accelerator(((1, CROWD_STEP_S),), CROWD_BATCH)
        policy = NAMES[self.scheme]
        real = Behind(policy, len(devices), seconds, 1, gateways=self.gateways)
        return real.run(accelerator, devices, seconds)
