"""Where the answers of a row lie on the stand-ins' text."""

from runtime.bench.standin.agreement import TEXT_TOKENS, TOKENS

PROMPT_TOKENS = 32


def starts(answers: int) -> list[int]:
    """The first tokens of so many answers; from the ninth on they come again."""
    return [number * TEXT_TOKENS % TOKENS for number in range(answers)]


def prompt(first: int) -> list[int]:
    """What an answer that begins with `first` follows."""
    return [(first - PROMPT_TOKENS + i) % TOKENS for i in range(PROMPT_TOKENS)]


def answer(first: int, tokens: int) -> list[int]:
    return [(first + i) % TOKENS for i in range(tokens)]
