"""A server whose model several processes share, started by torchrun: rank 0 serves, others follow.

Only rank 0 has ports, a console and a log; what others have to say it tells, if it still can.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from runtime.config import ConfigError, ServerConfig
from runtime.console import Terminal
from runtime.model.parallel import LeaderTells, RankLost, Ranks
from runtime.server.verify.ranks import follow as follow_steps

if TYPE_CHECKING:
    from runtime.server.start import OpenTarget

LOOK_S = 0.25  # how often is looked whether a rank is lost


def join(config: ServerConfig, env: Mapping[str, str]) -> Ranks | None:
    """The ranks that torchrun started, once all are there; None where there is this one alone.

    Raises ConfigError for options that make no sense then, ModelError where ranks do not meet.
    """
    if "TORCHELASTIC_RUN_ID" not in env or env["WORLD_SIZE"] == "1":
        return None
    if config.replicas or config.add_user:
        option = "--redirect" if config.replicas else "--add-user"
        raise ConfigError(f"{option} takes no model that ranks could share; leave torchrun out")
    if config.spill_memory_gib:
        raise ConfigError("--spill-memory-gib is not for ranks that share a model; leave it out")
    return Ranks.join(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env["LOCAL_RANK"]))


def speaks(error: Exception, env: Mapping[str, str]) -> bool:
    """Whether this rank is the one to tell of an error.

    Rank 0 tells what all have met. Where a rank is lost it may be that one, so the next tells too.
    """
    rank = int(env.get("RANK", "0")) if "TORCHELASTIC_RUN_ID" in env else 0
    if isinstance(error, ConfigError | LeaderTells):
        return rank == 0
    return not isinstance(error, RankLost) or rank < 2


def follow(config: ServerConfig, ranks: Ranks, open_engine: "OpenTarget") -> None:
    """Be one of the other ranks until rank 0 stops. Raises RankLost, LeaderTells or ModelError."""
    engine = open_engine(config, Terminal(quiet=True))
    # rank 0 hears the same signals, and still needs this one to end its answers
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    ranks.begin(engine.model.device, config.rank_silence_s)
    follow_steps(engine, ranks.steps())


@asynccontextmanager
async def watching(ranks: Ranks | None) -> AsyncIterator[None]:
    """While the context lasts, a rank that is lost ends it with RankLost; its end ends them all."""
    if ranks is None:
        yield
        return
    serving = asyncio.current_task()
    assert serving is not None, "served by a task"
    looking = asyncio.ensure_future(_until_lost(ranks))
    looking.add_done_callback(lambda task: None if task.cancelled() else serving.cancel())
    try:
        yield
    except asyncio.CancelledError:
        if ranks.lost is not None:
            raise ranks.lost from None
        raise
    finally:
        looking.cancel()
        await asyncio.to_thread(ranks.stop)


async def _until_lost(ranks: Ranks) -> None:
    while ranks.lost is None:
        await asyncio.sleep(LOOK_S)
