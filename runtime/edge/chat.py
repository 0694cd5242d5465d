"""The terminal: a streamed answer with the drafted tokens coloured, a conversation, statistics."""

from collections.abc import Callable, Iterator

from rich.console import Console
from rich.control import strip_control_codes
from rich.segment import Segment, Segments
from rich.style import Style
from rich.text import Text

from runtime.edge.client import Edge, Piece, Prompt
from runtime.edge.link import ServerError
from runtime.edge.statistics import Statistics

DRAFTED = Style(color="green")
HELP = "/reset forgets the conversation, /stats shows the last answer's figures, /quit leaves"


def stream_answer(edge: Edge, prompt: Prompt, console: Console) -> str:
    """Print the answer to a prompt, as `stream_pieces` does."""
    return stream_pieces(edge.generate(prompt), console)


def stream_pieces(pieces: Iterator[Piece], console: Console) -> str:
    """Print an answer as it arrives and return it whole. Ctrl-C ends the answer, not the edge."""
    answer = ""
    try:
        for piece in pieces:
            answer += piece.text
            # as it is: what a tab comes to must not depend on where a piece begins
            text = Segment(strip_control_codes(piece.text), DRAFTED if piece.drafted else None)
            console.print(Segments([text]), end="", soft_wrap=True)
    except KeyboardInterrupt:
        pieces.close()
        console.print(Text(" [stopped]", "dim"), end="")
    finally:
        console.print()  # an error's line begins a new one
    return answer


def chat(edge: Edge, console: Console, read_line: Callable[[str], str] = input) -> None:
    """Several turns until /quit or the end of input. Raises ServerError when the link breaks."""
    messages: list[dict[str, str]] = []
    console.print(Text(HELP, "dim"), soft_wrap=True)
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
                console.print(Text(HELP, "dim"), soft_wrap=True)
            case _:
                messages.append({"role": "user", "content": line})
                messages = _answer(edge, messages, console)


def _answer(edge: Edge, messages: list[dict[str, str]], console: Console) -> list[dict[str, str]]:
    """The conversation with the answer to its last message, or without it if it was refused."""
    try:
        answer = stream_answer(edge, messages, console)
    except ServerError as error:
        if not edge.connected:
            raise
        console.print(Text(f"{error}", "red"))
        return messages[:-1]
    if edge.config.stats:
        print_statistics(edge.statistics, console)
    return [*messages, {"role": "assistant", "content": answer}]


def print_statistics(stats: Statistics, console: Console) -> None:
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
    console.print(Text(line, "dim"), soft_wrap=True)
