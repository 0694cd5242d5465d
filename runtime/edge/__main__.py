"""python -m runtime.edge: ask a server one question, or chat with it, drafting on this machine."""

import logging
import os
import sys

from runtime.config import ConfigError, EdgeConfig, parse, prepare_threads


def main() -> int:
    """Exit status: 0 when the text ended, 2 when something has to be mended by the user."""
    try:
        config = parse(EdgeConfig, sys.argv[1:], os.environ, "python -m runtime.edge")
        if not config.chat and config.prompt is None:
            raise ConfigError('nothing to do: give --prompt "a question" or --chat')
    except ConfigError as error:
        return _fail(error)
    logging.basicConfig(level=config.log_level.upper(), format="%(levelname)s %(message)s")
    prepare_threads(config, os.environ)
    return _run(config)


def _run(config: EdgeConfig) -> int:
    from rich.console import Console

    from runtime.edge.chat import chat, print_statistics, stream_answer
    from runtime.edge.client import Edge
    from runtime.edge.loop import ServerError
    from runtime.model.weights import ModelError

    console = Console(highlight=False)
    try:
        with Edge(config) as edge:
            if config.chat:
                chat(edge, console)
            else:
                stream_answer(edge, config.prompt, console)
                if config.stats:
                    print_statistics(edge.statistics, Console(stderr=True, highlight=False))
    except (ConfigError, ModelError, ServerError) as error:
        return _fail(error)
    except KeyboardInterrupt:
        return 130
    return 0


def _fail(error: Exception) -> int:
    print(f"runtime.edge: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
