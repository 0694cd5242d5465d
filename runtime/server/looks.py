"""How replicas are: each is looked at twice a second, by /ready and /metrics or by its port."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from http.client import HTTPConnection, HTTPException

from prometheus_client.parser import text_string_to_metric_families

from runtime.server.router import Replica, Router
from runtime.wire.places import listens

LOOK_S = 0.5  # between two looks at a replica
ANSWER_S = 1.0  # that a replica has to answer one
MAX_PAGE_BYTES = 1 << 22
EDGES = "specedge:edges_connected"


@asynccontextmanager
async def watching(router: Router) -> AsyncIterator[None]:
    """Look at all replicas again and again while the context lasts, and once before."""
    # a thread each, so that one that does not answer delays no look at another
    threads = ThreadPoolExecutor(len(router.replicas), thread_name_prefix="replica")
    loop = asyncio.get_running_loop()

    async def look(replica: Replica) -> None:
        edges, pages = replica.address.edges, replica.address.pages
        if pages is None:
            replica.told(await listens(*edges, ANSWER_S), 0)
        else:
            replica.told(*await loop.run_in_executor(threads, _look, *pages))

    async def watch(replica: Replica) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await look(replica)

    await asyncio.gather(*map(look, router.replicas))
    watches = [asyncio.ensure_future(watch(replica)) for replica in router.replicas]
    try:
        yield
    finally:
        for one in watches:
            one.cancel()
        threads.shutdown(wait=False, cancel_futures=True)


def _look(host: str, port: int) -> tuple[str, int]:
    """Why a replica with these pages takes no edges, or nothing, and how many it has. Blocks."""
    try:
        return _read(host, port)
    except (OSError, HTTPException, ValueError) as error:
        return str(error) or type(error).__name__, 0


def _read(host: str, port: int) -> tuple[str, int]:
    """What /ready says, and /metrics. Raises OSError, HTTPException or ValueError."""
    connection = HTTPConnection(host, port, timeout=ANSWER_S)
    try:
        connection.request("GET", "/ready")
        answer = connection.getresponse()
        reason = answer.read(MAX_PAGE_BYTES).decode(errors="replace").strip()
        if answer.status != 200:
            return f"{answer.status}: {reason[:200]}", 0
        connection.request("GET", "/metrics")
        page = connection.getresponse().read(MAX_PAGE_BYTES).decode()
    finally:
        connection.close()
    for family in text_string_to_metric_families(_lines_of(page, EDGES)):
        for sample in family.samples:
            return "", int(sample.value)
    raise ValueError(f"its /metrics has no {EDGES}: is it a server of SpecEdge?")


def _lines_of(page: str, name: str) -> str:
    """Its lines of one family: the others need not be understood, 2 times a second."""
    return "".join(f"{line}\n" for line in page.splitlines() if line.startswith(f"{name} "))
