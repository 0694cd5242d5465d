"""python -m runtime.edge: ask a server one question, or chat with it, drafting on this machine."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from signal import SIG_IGN, SIGINT, SIGTERM, getsignal, signal
from typing import TYPE_CHECKING, NoReturn

from runtime.arguments import parse
from runtime.config import ConfigError, EdgeConfig, prepare_threads
from runtime.logs import configure
from runtime.terminal import Terminated, called, end_on_sigterm, fail, importing, leave, run

if TYPE_CHECKING:
    from runtime.console import Terminal
    from runtime.edge.client import Edge


def main() -> int:
    """Exit status: 0 when the text ended, 2 when something has to be mended by the user."""
    try:
        config = parse(EdgeConfig, sys.argv[1:], os.environ, called("runtime.edge"))
        if not (config.chat or config.serve or config.resume_file) and config.prompt is None:
            raise ConfigError('nothing to do: give --prompt "a question", --chat or --serve')
    except ConfigError as error:
        return fail("runtime.edge", error)
    configure(config.log_level, config.log_format)
    prepare_threads(config, os.environ)
    end_on_sigterm()
    return _run(config)


def _run(config: EdgeConfig) -> int:
    with importing():
        from runtime.console import Terminal, loading_bar
        from runtime.edge.chat import chat, print_statistics, stream_answer
        from runtime.edge.client import Edge
        from runtime.edge.loading import make_drafter
    console, errors = Terminal(), Terminal(stderr=True)
    dim = partial(errors.print, style="dim")
    try:
        # Not on standard output, which has the text and nothing else.
        if config.serve:
            _serve(config, console)
            return 0
        with ExitStack() as stack:
            with loading_bar(errors, config.draft) as progress:
                making = partial(make_drafter, progress=progress)
                edge = stack.enter_context(Edge(config, lambda error: dim("reconnecting…"), making))
            if config.chat:
                with _endpoint(edge, console):
                    chat(edge, console)
            else:
                answer = edge.resume() if config.prompt is None else edge.generate(config.prompt)
                stream_answer(answer, console)
                if config.stats:
                    print_statistics(answer.statistics, errors)
    except (ConfigError, ConnectionError, TimeoutError) as error:
        return fail("runtime.edge", error)
    except ValueError as error:
        from runtime.model.config import ModelError  # it brings torch: not to be waited for above

        if not isinstance(error, ModelError):
            raise
        return fail("runtime.edge", error)
    return 0


def _serve(config: EdgeConfig, console: Terminal) -> None:
    """Answer HTTP requests until a signal."""
    with importing():
        import asyncio

        from runtime.api.of_edge import serve

    heard: list[int] = []

    async def until_stopped() -> None:
        loop, serving = asyncio.get_running_loop(), asyncio.current_task()
        assert serving is not None
        cancel = serving.cancel

        def stop(number: int, frame: object) -> None:
            heard.append(number)
            if not loop.is_closed():
                loop.call_soon_threadsafe(cancel)

        # Raised wherever they come, as elsewhere, they would be taken for exceptions of the app.
        for number in (SIGINT, SIGTERM):
            if getsignal(number) is not SIG_IGN:
                signal(number, stop)
        await serve(config, lambda url: console.print(url, soft_wrap=True))

    try:
        asyncio.run(until_stopped())
    except asyncio.CancelledError:
        raise (KeyboardInterrupt if heard[:1] == [SIGINT] else Terminated) from None


def _endpoint(edge: Edge, console: Terminal) -> AbstractContextManager[None]:
    """Others may ask the edge of a chat as well, unless --http is empty."""
    if not edge.config.http:
        return nullcontext()
    from runtime.api.of_edge import beside

    return beside(edge, lambda told: console.print(told, style="dim", soft_wrap=True))


def program() -> NoReturn:
    """The whole program, as a console script calls it."""
    # at once: a thread that is still loading a model is not waited for
    leave(run("runtime.edge", main))


if __name__ == "__main__":
    program()
