"""The terminal: a streamed answer with the drafted tokens coloured, a conversation, statistics."""

from collections.abc import Callable, Generator
from contextlib import closing

from rich.style import Style

from runtime.config import ConfigError
from runtime.console import Terminal
from runtime.edge.client import Edge, Piece, Prompt
from runtime.edge.net.link import ServerError
from runtime.edge.statistics import Statistics

DRAFTED = Style(color="green")
HELP = "/reset forgets the conversation, /stats shows the last answer's figures, /quit leaves"


def stream_answer(edge: Edge, prompt: Prompt, console: Terminal) -> str:
    """Print the answer to a prompt, as `stream_pieces` does."""
    return stream_pieces(edge.generate(prompt), console)


def stream_pieces(pieces: Generator[Piece, None, None], console: Terminal) -> str:
    """Print an answer as it arrives and return it whole. Ctrl-C ends the answer, not the edge."""
    answer = ""
    with closing(pieces):
        try:
            for piece in pieces:
                answer += piece.text
                console.stream(piece.text, DRAFTED if piece.drafted else None)
        except KeyboardInterrupt:
            console.stream(" [stopped]", Style(dim=True))
        except (ServerError, ConfigError):
            console.print()  # its sentence begins a new line
            raise
    console.print()
    return answer


def chat(edge: Edge, console: Terminal, read_line: Callable[[str], str] = input) -> None:
    """Several turns until /quit or the end of input.

    Raises ConfigError where no turn could be asked, ServerError when the link breaks.
    """
    # a template that refuses whatever is said is told before anything is typed
    edge.encode("Hello")
    messages: list[dict[str, str]] = []
    console.print(HELP, style="dim", soft_wrap=True)
    while True:
        try:
            line = read_line("> ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        match line:
            case "":
                continue
            case "/quit" | "/exit":
                return
            case "/reset":
                messages = []
            case "/stats":
                print_statistics(edge.statistics, console)
            case _ if line.startswith("/"):
                console.print(HELP, style="dim", soft_wrap=True)
            case _:
                messages.append({"role": "user", "content": line})
                messages = _answer(edge, messages, console)


def _answer(edge: Edge, messages: list[dict[str, str]], console: Terminal) -> list[dict[str, str]]:
    """The conversation with the answer to its last message, or without it if it was refused."""
    try:
        answer = stream_answer(edge, messages, console)
    except (ServerError, ConfigError) as error:
        if not edge.connected:
            raise
        console.print(f"{error}", style="red", soft_wrap=True)
        return messages[:-1]
    if edge.config.stats:
        print_statistics(edge.statistics, console)
    return [*messages, {"role": "assistant", "content": answer}]


def print_statistics(stats: Statistics, console: Terminal) -> None:
    """One line: speed, acceptance, bytes, and what drafting ahead was good for."""
    line = (
        f"{stats.tokens} tokens, {stats.tokens_per_second:.1f} tokens/s, "
        f"first after {stats.first_token_s * 1e3:.0f} ms · "
        f"{stats.tokens_per_verification:.2f} tokens per verification · "
        f"{stats.bytes_per_round:.0f} bytes per round"
    )
    if stats.rounds_ahead:
        line += (
            f" · ahead: {stats.hits} of {stats.rounds_ahead} verdicts foreseen, "
            f"{stats.reused_ahead} of {stats.expanded_ahead} nodes of use"
        )
    if stats.reconnects:
        line += f" · reconnections: {stats.reconnects}"
    console.print(line, style="dim", soft_wrap=True)
