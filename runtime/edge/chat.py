"""The terminal: a streamed answer with the drafted tokens coloured, a conversation, statistics."""

from collections.abc import Callable
from itertools import chain

from rich.style import Style

from runtime.config import ConfigError
from runtime.console import Terminal, waiting
from runtime.edge.answer import Answer
from runtime.edge.client import Edge
from runtime.edge.net.link import ServerError
from runtime.edge.statistics import Statistics
from runtime.wire.messages import ErrorCode

DRAFTED = Style(color="green")
HELP = "/reset forgets the conversation, /stats shows the last answer's figures, /quit leaves"


def stream_answer(answer: Answer, console: Terminal) -> None:
    """Print an answer as it arrives. Ctrl-C ends the answer, not the edge."""
    try:
        pieces = iter(answer)
        with waiting(console, lambda: reading(answer.statistics)):
            first = next(pieces, None)
        for piece in () if first is None else chain([first], pieces):
            console.stream(piece, DRAFTED if piece.drafted else None)
    except KeyboardInterrupt:
        console.stream(" [stopped]", Style(dim=True))
    except (ServerError, ConfigError):
        console.print()  # its sentence begins a new line
        raise
    console.print()


def reading(stats: Statistics) -> str:
    """How far the server has read a prompt; nothing of one that it has read, or not begun."""
    if not 0 < stats.read_tokens < stats.prompt_tokens:
        return ""
    share = stats.read_tokens / stats.prompt_tokens
    return f"reading the prompt: {stats.read_tokens} of {stats.prompt_tokens} tokens, {share:.0%}"


def chat(edge: Edge, console: Terminal, read_line: Callable[[str], str] = input) -> None:
    """Several turns until /quit or the end of input.

    Raises ConfigError where no turn could be asked, ServerError when the link breaks.
    """
    # a template that refuses whatever is said is told before anything is typed
    edge.encode("Hello")
    messages: list[dict[str, str]] = []
    last: Statistics | None = None
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
                if last is None:
                    console.print("nothing has been answered yet", style="dim")
                else:
                    print_statistics(last, console)
            case _ if line.startswith("/"):
                console.print(HELP, style="dim", soft_wrap=True)
            case _:
                said = [*messages, {"role": "user", "content": line}]
                if (answer := _answer(edge, said, console)) is not None:
                    messages = [*said, {"role": "assistant", "content": answer.text}]
                    last = answer.statistics


def _answer(edge: Edge, messages: list[dict[str, str]], console: Terminal) -> Answer | None:
    """The printed answer to the last message, None if it was refused."""
    try:
        answer = edge.generate(messages)
        stream_answer(answer, console)
    except (ServerError, ConfigError) as error:
        if not edge.connected:
            raise
        advice = ""
        if getattr(error, "code", None) is ErrorCode.LIMIT and len(messages) > 1:
            advice = "; /reset forgets the conversation"
        console.print(f"{error}{advice}", style="red", soft_wrap=True)
        return None
    if edge.config.stats:
        print_statistics(answer.statistics, console)
    return answer


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
