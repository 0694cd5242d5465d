"""What front and replica have in common: a task of another event loop, which Ray looks after."""

import asyncio
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


async def first(opened: "Future[Result]", serving: "Future[None]") -> Result:
    """What it has opened; raises what it ended with before."""
    either = asyncio.wrap_future(opened), asyncio.wrap_future(serving)
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    still_there(serving)
    return opened.result()


def still_there(serving: "Future[None]") -> None:
    """Raises what it ended with, or that it did."""
    if serving.done():
        serving.result()
        raise RuntimeError("it has been stopped")
