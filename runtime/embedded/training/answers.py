"""The target's answers to prompts, many at a time, by the runtime's own engine.

A row that has ended gives its place to the next prompt. What is written is a conversation whose
prompt is not the target's own: only its answer is to be trained on. Knows nothing of drafts.
"""

import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import torch

from runtime.embedded.training.corpus import read_corpus
from runtime.model.engine import Engine, TreeRequest
from runtime.model.open import open_engine
from runtime.model.tokenizer import Tokenizer

ANSWER_TOKENS = 128
MOST_PROMPT_TOKENS = 1024  # longer ones are left out
TEMPERATURES = (0.0, 1.0)  # in turn
_ROWS, _KV_TOKENS, _PROMPT_TOKENS = 40, 20480, 512  # prompt tokens that join a pass


@dataclass(eq=False)
class _Row:
    """A conversation that is being written, and its place in the KV cache."""

    prompt: list[int]
    temperature: float
    pages: list[int]
    text: list[int]
    most_tokens: int  # of the answer
    cached: int = 0

    def rest(self) -> TreeRequest:
        """What the cache lacks, as a chain; the logits behind it are wanted."""
        new = self.text[self.cached :]
        return TreeRequest(new, range(-1, len(new) - 1), self.cached, self.pages, (len(new) - 1,))

    def line(self) -> str:
        answer = self.text[len(self.prompt) :]
        fields = {"prompt": self.prompt, "answer": answer, "temperature": self.temperature}
        return json.dumps(fields | {"outside": True}, separators=(",", ":")) + "\n"


def write_answers(
    prompts: Iterable[str],
    out: Path,
    seed: int = 0,
    most_tokens: int = ANSWER_TOKENS,
    temperatures: Sequence[float] = TEMPERATURES,
    most_prompt_tokens: int = MOST_PROMPT_TOKENS,
) -> None:
    """Add a conversation to `out` for each prompt that has none in it yet, as answers end.

    They are drawn at the temperatures in turn; at 0 they are greedy.
    """
    torch.manual_seed(seed)
    engine = open_engine("smollm2", "stored", "cpu", lambda model: _KV_TOKENS, 16)
    tokenizer = Tokenizer.load("smollm2")
    answered = {c.prompt for c in read_corpus(out).conversations} if out.exists() else set()
    texts = (tokenizer.chat_prompt([{"role": "user", "content": text}]) for text in prompts)
    turns = zip(texts, cycle(temperatures), strict=False)
    waiting = [
        (prompt, temperature)
        for prompt, temperature in turns
        if len(prompt) <= most_prompt_tokens and tuple(prompt) not in answered
    ][::-1]
    rows: list[_Row] = []
    while rows or waiting:
        rows += _admit(engine, waiting, _ROWS - len(rows), most_tokens)
        ended = _advance(engine, rows, frozenset(tokenizer.stop_ids))
        if ended:
            with gzip.open(out, "at") as lines:
                lines.writelines(row.line() for row in ended)
            print(f"{len(waiting)} prompts wait", flush=True)
        for row in ended:
            engine.kv.free(row.pages)
            rows.remove(row)


def _admit(
    engine: Engine, waiting: list[tuple[list[int], float]], places: int, most_tokens: int
) -> list[_Row]:
    """Take prompts from the end of `waiting`, as far as there is room."""
    admitted: list[_Row] = []
    tokens = 0
    while waiting and len(admitted) < places and tokens < _PROMPT_TOKENS:
        prompt, temperature = waiting[-1]
        pages = engine.kv.pages_for(len(prompt) + most_tokens)
        if pages > engine.kv.n_free:
            break
        waiting.pop()
        row = _Row(prompt, temperature, engine.kv.allocate(pages), list(prompt), most_tokens)
        admitted.append(row)
        tokens += len(prompt)
    return admitted


@torch.inference_mode()
def _advance(engine: Engine, rows: list[_Row], stop_ids: frozenset[int]) -> list[_Row]:
    """One more token for each; those that have ended with it."""
    logits = engine.forward([row.rest() for row in rows])
    ended = []
    for row, mine in zip(rows, logits, strict=True):
        row.cached = len(row.text)
        scores = mine / row.temperature if row.temperature else mine
        drawn = torch.multinomial(scores.softmax(-1), 1) if row.temperature else scores.argmax()
        row.text.append(int(drawn))
        if row.text[-1] in stop_ids or len(row.text) - len(row.prompt) == row.most_tokens:
            ended.append(row)
    return ended
