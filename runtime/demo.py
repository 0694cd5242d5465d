"""python -m runtime.demo: a server and an edge on this machine, and a proof of equality.

Starts `python -m runtime.server` as a user would, streams an answer through an edge with drafted
tokens coloured, then asks for it again with drafts and without, in turns, and compares the ids.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.arguments import Parser
from runtime.config import SPINS
from runtime.system import whole_cores
from runtime.terminal import fail, inert, run

if TYPE_CHECKING:
    from runtime.console import Terminal
    from runtime.edge.client import Edge
    from runtime.edge.options import RequestOptions

DEFAULT_PROMPT = "Explain in a few sentences why the sky is blue."
LEVEL = 0.03  # a difference that is none


def main() -> int:
    """Exit status: 0 when all texts are equal, 1 when one differs, 2 when it could not run."""
    parser = Parser(prog="python -m runtime.demo", description=__doc__)
    parser.add_argument("--prompt", default=DEFAULT_PROMPT)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=5, help="answers of each kind to compare")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds is {arguments.rounds}; expected 1 or more")
    cores = whole_cores()
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores // 2, 1)))
    try:
        with running_server("--model", "smollm2", "--port", "0") as address:
            # on one core, drafting ahead would take the verifier's time
            return 0 if _show(address, arguments, "multi" if cores > 1 else "off") else 1
    except (ValueError, ConnectionError) as error:  # a sentence about options, models or the server
        return fail("runtime.demo", error)


@contextmanager
def running_server(*options: str, module: str = "runtime.server") -> Iterator[str]:
    """A server process with these options; gives its host:port, and stops it with SIGTERM."""
    with server_process(*options, module=module) as (address, _):
        yield address


@contextmanager
def server_process(
    *options: str, module: str = "runtime.server"
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`running_server` with the process itself."""
    command = [sys.executable, "-m", module, *options]
    # any port, so that it can run beside a server that is there already
    environment = {"SPECEDGE_HTTP": "127.0.0.1:0", **os.environ}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"runtime\.edge --server (\S+)", line):
                yield found[1], process
                break
        else:
            raise ConnectionError("the server ended before it was ready; its message is above")
    finally:
        process.terminate()
        process.communicate()


@dataclass(frozen=True)
class Timed:
    """One answer, timed from its first token on."""

    tokens: list[int]
    tokens_per_s: float
    server_ms: float  # per token
    tokens_per_verification: float
    bytes_per_round: float


def _show(address: str, arguments: argparse.Namespace, proactive: str) -> bool:
    """Stream one answer, then compare; whether all texts are the same."""
    from rich.text import Text

    from runtime.config import EdgeConfig
    from runtime.console import Terminal
    from runtime.edge.chat import stream_answer
    from runtime.edge.client import Edge

    console = Terminal()
    config = EdgeConfig(
        server=address,
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        proactive=proactive,
        earlier_tokens=0,  # the same question is asked again, and its answer is not to be copied
    )
    with Edge(config) as edge:
        asked = (inert(arguments.prompt), "bold")
        console.print(Text.assemble(asked, "   (", ("green", "green"), " was drafted)\n"))
        streamed = edge.generate(arguments.prompt)
        stream_answer(streamed, console)
        drafted, plain = in_turns(edge, arguments.prompt, arguments.rounds)
    _print_table(console, drafted, plain)
    identical = all(answer.tokens == streamed.tokens for answer in (*drafted, *plain))
    console.print(f"identical to plain decoding: {'yes' if identical else 'NO'}")
    fast, level = (
        statistics.median(answer.tokens_per_s for answer in answers) for answers in (drafted, plain)
    )
    console.print(verdict(fast / level), soft_wrap=True)
    return identical


def in_turns(edge: "Edge", prompt: str, rounds: int) -> tuple[list[Timed], list[Timed]]:
    """Answers with drafts and without, in pairs; what else the machine does falls on both."""
    drafted: list[Timed] = []
    plain: list[Timed] = []
    for pair in range(rounds):
        for answers in (drafted, plain) if pair % 2 == 0 else (plain, drafted):
            answers.append(_ask(edge, prompt, {"max_budget": 0} if answers is plain else {}))
    return drafted, plain


def _ask(edge: "Edge", prompt: str, options: "RequestOptions") -> Timed:
    answer = edge.generate(prompt, **options)
    for _ in answer:
        pass
    stats = answer.statistics
    return Timed(
        answer.tokens,
        max(stats.tokens - 1, 1) / max(stats.seconds - stats.first_token_s, 1e-3),
        stats.server_ms_per_token,
        stats.tokens_per_verification,
        stats.bytes_per_round,
    )


def _print_table(console: "Terminal", drafted: list[Timed], plain: list[Timed]) -> None:
    """Medians, one line for each figure."""
    figures = {
        "tokens per second": ("tokens_per_s", ".1f"),
        "ms of the server per token": ("server_ms", ".1f"),
        "tokens per verification": ("tokens_per_verification", ".2f"),
        "bytes per round": ("bytes_per_round", ".0f"),
    }
    console.print(f"\n{f'medians of {len(plain)} answers':28}{'plain':>8}{'with drafts':>14}")
    for name, (field, form) in figures.items():
        without, with_ = (
            statistics.median(getattr(answer, field) for answer in answers)
            for answers in (plain, drafted)
        )
        console.print(f"{name:28}{without:8{form}}{with_:14{form}}")


def verdict(gain: float) -> str:
    """What to make of drafting here, `gain` times as fast as plain decoding."""
    if gain >= 1 + LEVEL:
        return (
            f"Drafting pays on this machine, though it plays both parts: {gain:.2f} times as fast."
        )
    if gain >= 1 - LEVEL:
        return (
            "Drafting does not pay on this machine, which plays both parts. The server measured "
            "that and decodes plainly: nothing is lost."
        )
    return (
        f"With drafts it was {1 - gain:.0%} slower this time: other work on this machine, or more "
        "tries of drafting than it was worth. The server decodes plainly where it does not pay."
    )


if __name__ == "__main__":
    sys.exit(run("runtime.demo", main))
