"""python -m runtime.demo: a server and an edge on this machine, and a proof of equality.

Starts `python -m runtime.server` as a user would, streams an answer through an edge with drafted
tokens coloured, then lets the same server decode the same prompt plainly and compares the ids.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.terminal import fail, inert, run

DEFAULT_PROMPT = "Explain in a few sentences why the sky is blue."


def main() -> int:
    """Exit status: 0 when both texts are equal, 1 when they differ, 2 when it could not run."""
    parser = argparse.ArgumentParser(prog="python -m runtime.demo", description=__doc__)
    parser.add_argument("--prompt", default=DEFAULT_PROMPT)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--temperature", type=float, default=0.0)
    # A CPU verifies 8 nodes for little more than one; from there on it is bound by arithmetic.
    parser.add_argument("--max-budget", type=int, default=8)
    arguments = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    try:
        # Left to itself the server decodes plainly where drafting does not pay, as often on a
        # machine that has to play both parts; here it is to be seen.
        options = ("--model", "smollm2", "--port", "0", "--no-pipeline")
        with running_server(*options) as address:
            return 0 if _compare(address, arguments) else 1
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


def _compare(address: str, arguments: argparse.Namespace) -> bool:
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
        max_budget=arguments.max_budget,
        max_beam_len=4,
        proactive="off",  # it would take the cores that verify
    )
    with Edge(config) as edge:
        asked = (inert(arguments.prompt), "bold")
        console.print(Text.assemble(asked, "   (", ("green", "green"), " was drafted)\n"))
        drafted = edge.generate(arguments.prompt)
        stream_answer(drafted, console)
        plain = edge.generate(arguments.prompt, max_budget=0)
        for _ in plain:
            pass
    console.print()
    for name, stats in (("with drafts", drafted.statistics), ("plain decoding", plain.statistics)):
        console.print(
            f"{name:15} {stats.tokens_per_second:5.1f} tokens/s, "
            f"{stats.server_ms_per_token:5.1f} ms of the server per token"
        )
    statistics, is_plain = drafted.statistics, drafted.tokens == plain.tokens
    console.print(f"tokens per verification: {statistics.tokens_per_verification:.2f}")
    console.print(f"bytes per round: {statistics.bytes_per_round:.0f}")
    console.print(f"identical to plain decoding: {'yes' if is_plain else 'NO'}")
    return is_plain


if __name__ == "__main__":
    sys.exit(run("runtime.demo", main))
