"""How replicas are: each is looked at twice a second, by /ready and /metrics or by its port.

Nothing that a replica answers is believed unseen: its pages have a longest length, a look a longest
time, whatever comes meanwhile, and a number of edges is one that edges can have.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from runtime.server.router import Replica, Router
from runtime.wire.places import NEXT_ADDRESS_S, listens, reason_of

LOOK_S = 0.5  # between two looks at a replica
ANSWER_S = 1.0  # that a look may take
MAX_PAGE_BYTES = 1 << 20
MAX_REASON_CHARACTERS = 200
MAX_EDGES = 1 << 20  # as --max-connections
EDGES = "specedge:edges_connected"
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?!\d)")
_EDGES = re.compile(rf"^{EDGES} (\S+)".encode(), re.MULTILINE)


@asynccontextmanager
async def watching(router: Router) -> AsyncIterator[None]:
    """Look at all replicas again and again while the context lasts, and once before."""

    async def watch(replica: Replica) -> None:
        while True:
            if replica.unready:
                # a look given up leaves a thread behind that asks for the name: not one a look
                await _name_known(*(replica.address.pages or replica.address.edges))
            await asyncio.sleep(LOOK_S)
            await _look(replica)

    await asyncio.gather(*map(_look, router.replicas))
    watches = [asyncio.ensure_future(watch(replica)) for replica in router.replicas]
    try:
        yield
    finally:
        for one in watches:
            one.cancel()


async def _look(replica: Replica) -> None:
    edges, pages = replica.address.edges, replica.address.pages
    if pages is None:
        replica.told(await listens(*edges, ANSWER_S), 0)
        return
    try:
        replica.told("", await asyncio.wait_for(_edges(*pages), ANSWER_S))
    except asyncio.TimeoutError:
        replica.told(f"its pages have not been answered within {ANSWER_S:g} s", 0)
    except (OSError, ValueError) as error:
        replica.told(reason_of(error)[:MAX_REASON_CHARACTERS], 0)


async def _name_known(host: str, port: int) -> None:
    """Wait until the system has looked the name up, with whatever outcome."""
    with suppress(OSError, UnicodeError):
        await asyncio.get_running_loop().getaddrinfo(host, port)


async def _edges(host: str, port: int) -> int:
    """How many are connected to the replica with these pages, if it takes more.

    Raises OSError, or ValueError with the reason why it takes none.
    """
    status, reason = await _page(host, port, "/ready")
    if status != 200:
        raise ValueError(f"{status}: {reason.decode(errors='replace').strip()}")
    _, page = await _page(host, port, "/metrics")
    if (line := _EDGES.search(page)) is None:
        raise ValueError(f"its /metrics has no {EDGES}: is it a server of SpecEdge?")
    edges = float(line[1])
    if not 0 <= edges <= MAX_EDGES:  # nor is NaN
        raise ValueError(f"its /metrics tells of {edges:g} edges")
    return int(edges)


async def _page(host: str, port: int, path: str) -> tuple[int, bytes]:
    """The status of a page, and what is on it. Raises OSError or ValueError."""
    reader, writer = await asyncio.open_connection(host, port, happy_eyeballs_delay=NEXT_ADDRESS_S)
    try:
        # of HTTP/1.0, so that the answer is whole where the connection ends
        writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        answer = bytearray()
        while chunk := await reader.read(MAX_PAGE_BYTES):
            answer += chunk
            if len(answer) > MAX_PAGE_BYTES:
                raise ValueError(f"its {path} has more than {MAX_PAGE_BYTES} bytes")
    finally:
        writer.transport.abort()
    head, _, page = answer.partition(b"\r\n\r\n")
    if (status := _STATUS.match(head)) is None:
        raise ValueError(f"its {path} is no answer of HTTP")
    return int(status[1]), bytes(page)
