"""python -m runtime.conform HOST:PORT: does a live server keep to docs/protocol.md?"""

import argparse
import asyncio
import sys
from collections import Counter
from pathlib import Path

from runtime import terminal
from runtime.arguments import Parser, appendable, number
from runtime.config import ConfigError, parse_address
from runtime.conform.peer import Failed, Target, Visitor
from runtime.conform.run import Case, Outcome, Result, line, run, select, write_junit
from runtime.option_files import read_secret
from runtime.wire import messages as wire
from runtime.wire.tls import trust


def main() -> int:
    """Exit status: 0 when no case failed, 1 when one did, 2 when they cannot be run."""
    arguments = _parser().parse_intermixed_args()
    try:
        cases = select(arguments.cases)
        if arguments.list:
            for case in cases:
                print(f"{case.number} §{case.section:4} {case.name}: {case.demand}")
            return 0
        return asyncio.run(_conform(arguments, cases))
    except (ValueError, OSError, Failed) as error:
        return terminal.fail("runtime.conform", error)


async def _conform(arguments: argparse.Namespace, cases: list[Case]) -> int:
    target = _target(arguments)
    async with Visitor(target) as visitor:
        peer = await visitor.admitted()
        assert peer.welcome is not None, "admitted without a Welcome"
        print(f"{len(cases)} cases against {arguments.server}, which serves {peer.welcome.model}")
    results = await run(cases, target, lambda result: print(line(result), flush=True))
    if arguments.junit:
        write_junit(results, arguments.junit)
    return summarise(results)


def summarise(results: list[Result]) -> int:
    """Print the counts; the exit status."""
    count = Counter(result.outcome for result in results)
    print(
        f"{count[Outcome.PASSED]} passed, {count[Outcome.FAILED]} failed, "
        f"{count[Outcome.SKIPPED]} skipped in {sum(result.seconds for result in results):.0f} s"
    )
    return 1 if count[Outcome.FAILED] else 0


def _target(arguments: argparse.Namespace) -> Target:
    """Raises ConfigError, TLSError or ModelError."""
    if not arguments.server:
        raise ConfigError("which server? give its HOST:PORT")
    if bool(arguments.user) != bool(arguments.token_file):
        raise ConfigError("--user and --token-file belong together; give both or none")
    token = read_secret(arguments.token_file).strip() if arguments.token_file else ""
    # Only now, so that --help and --list answer at once.
    from runtime.model.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(arguments.draft)
    size, own_hash = tokenizer.vocabulary_size, tokenizer.vocabulary_hash
    hello = wire.Hello(wire.VERSION, size, own_hash(size), "runtime.conform", arguments.user)
    address = parse_address(arguments.server, "the server")
    known = token.encode(), trust(arguments.tls)
    return Target(*address, hello, own_hash, *known, arguments.wait_s)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m runtime.conform", description=__doc__)
    parser.add_argument("server", nargs="?", metavar="HOST:PORT")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="numbers or names; all if none")
    parser.add_argument("--list", action="store_true", help="show the cases and what they demand")
    parser.add_argument(
        "--junit", type=appendable, metavar="FILE", help="write the results as JUnit XML"
    )
    parser.add_argument("--draft", default="smollm2-draft", help="model with the vocabulary")
    parser.add_argument("--user", default="", help="name that the server knows")
    parser.add_argument("--token-file", type=Path, help="file with the user's token, chmod 600")
    parser.add_argument("--tls", default="", help="system, sha256:<hash>, or an authority's file")
    parser.add_argument(
        "--wait-s", type=number(float, 0.001), default=10.0, help="longest wait for an answer"
    )
    return parser


if __name__ == "__main__":
    sys.exit(terminal.run("runtime.conform", main))
