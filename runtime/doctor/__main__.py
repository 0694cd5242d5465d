"""python -m runtime.doctor [HOST:PORT]: what is well here and with a server, and how to mend it."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from runtime.arguments import parse
from runtime.config import NO_MODEL, ConfigError, EdgeConfig, prepare_threads
from runtime.logs import configure
from runtime.options import option
from runtime.terminal import called, end_on_sigterm, fail, inert, leave, run

if TYPE_CHECKING:
    from runtime.doctor.finding import Finding


@dataclass(frozen=True)
class DoctorConfig(EdgeConfig):
    """The doctor: says what this machine can do and, of a server at HOST:PORT, how fast it would
    answer. Takes the options of an edge, and means the same by them.
    """

    server: str = option("", "host:port of a server; without one only this machine is looked at")
    model: str = option("", "a target to be served here, looked at in place of the draft")
    json: bool = option(False, "print one JSON object")


def main() -> int:
    """Exit status: 0 where all is well, 1 after a warning, 2 after a fault or a wrong option."""
    program = called("runtime.doctor")
    try:
        arguments = _with_server(sys.argv[1:])
        config = parse(DoctorConfig, arguments, os.environ, f"{program} [HOST:PORT]")
    except ConfigError as error:
        return fail("runtime.doctor", error)
    configure(config.log_level, config.log_format)
    prepare_threads(config, os.environ)
    end_on_sigterm()
    return asyncio.run(_tell(config))


def _with_server(arguments: Sequence[str]) -> list[str]:
    """The address that may come first, as the option that it is."""
    if arguments and not arguments[0].startswith("-"):
        return ["--server", *arguments]
    return list(arguments)


async def _tell(config: DoctorConfig) -> int:
    """Print what is found, as it is found; the exit status."""
    from runtime.doctor.finding import exit_status
    from runtime.doctor.page import Page

    findings: list[Finding] = []
    page = None if config.json else Page()
    async for finding in _look(config):
        findings.append(finding)
        if page:
            page.add(finding)
    status = exit_status(findings)
    if page:
        page.end(findings)
    else:
        told = {"status": status, "findings": [finding.to_json() for finding in findings]}
        print(inert(json.dumps(told, indent=2)))
    return status


async def _look(config: DoctorConfig) -> "AsyncIterator[Finding]":
    from runtime.doctor import fit, machine, server

    for finding in machine.look():
        yield finding
    if config.model:
        yield fit.look("model", config.model, config)
    elif config.draft != NO_MODEL:
        yield fit.look("draft", config.draft, config)
    if config.server:
        async for finding in server.look(config):
            yield finding


def program() -> NoReturn:
    """The whole program, as a console script calls it."""
    leave(run("runtime.doctor", main))


if __name__ == "__main__":
    program()
