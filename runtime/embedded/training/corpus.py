"""Conversations of token ids: reading, the held-out split, batches of similar length.

Knows no model. A conversation is seen from the first token that is not common to all of them.
"""

import gzip
import hashlib
import json
import random
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

HELD_OUT_PERCENT = 3


@dataclass(frozen=True)
class Conversation:
    """Token ids of one question and its answer; temperature is the one the answer was made at.

    A prompt from outside is not the target's own text, and only what it answered is learned.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    temperature: float
    outside: bool = False

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.prompt + self.answer

    @property
    def held_out(self) -> bool:
        """Chosen by the prompt alone, so that no prompt is on both sides of the split."""
        digest = hashlib.sha256(json.dumps(self.prompt).encode()).digest()
        return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


@dataclass(frozen=True)
class Corpus:
    """Conversations and the places of their scored positions in one flat table.

    A scored position is an input token after the common prefix with a known next token; those of
    conversation i fill rows starts[i] to starts[i + 1] of every table made by `score`.
    """

    conversations: tuple[Conversation, ...]
    prefix: tuple[int, ...]
    starts: tuple[int, ...]

    @property
    def positions(self) -> int:
        return self.starts[-1]

    def inputs(self, index: int) -> tuple[int, ...]:
        return self.conversations[index].tokens[len(self.prefix) : -1]

    def labels(self, index: int) -> tuple[int, ...]:
        return self.conversations[index].tokens[len(self.prefix) + 1 :]

    def answer_offset(self, index: int) -> int:
        """How many scored positions of a conversation predict a token of its prompt."""
        return len(self.conversations[index].prompt) - len(self.prefix) - 1

    def first_learned(self, index: int) -> int:
        """The first of them that is learned: a prompt from outside is not the target's text."""
        return self.answer_offset(index) if self.conversations[index].outside else 0


def read_corpus(path: Path) -> Corpus:
    """Read gzipped JSON lines: `prompt`, `answer` (token ids), `temperature`, maybe `outside`."""
    conversations = []
    with gzip.open(path, "rt") as lines:
        for line in lines:
            fields = json.loads(line)
            prompt, answer = tuple(fields["prompt"]), tuple(fields["answer"])
            outside = fields.get("outside", False)
            conversations.append(Conversation(prompt, answer, fields["temperature"], outside))
    prefix = _common_prefix([c.prompt for c in conversations])
    sizes = (len(c.tokens) - len(prefix) - 1 for c in conversations)
    return Corpus(tuple(conversations), prefix, tuple(accumulate(sizes, initial=0)))


def _common_prefix(prompts: list[tuple[int, ...]]) -> tuple[int, ...]:
    # Whatever the smallest and the largest in order share, all share.
    first, last = min(prompts), max(prompts)
    for size, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return first[:size]
    return first


def frequent_tokens(corpus: Corpus, indices: list[int], count: int) -> list[int]:
    """The `count` tokens seen most often in the answers of the given conversations, sorted."""
    seen: dict[int, int] = {}
    for index in indices:
        for token in corpus.conversations[index].answer:
            seen[token] = seen.get(token, 0) + 1
    return sorted(sorted(seen, key=lambda token: (-seen[token], token))[:count])


def batches(corpus: Corpus, indices: list[int], tokens: int, rng: random.Random) -> list[list[int]]:
    """The conversations in random order, in batches of at most `tokens` padded positions.

    Conversations are sorted by length with a little noise, so that a batch holds equals and little
    is padding, yet batches differ between epochs.
    """
    order = sorted(indices, key=lambda i: len(corpus.inputs(i)) + rng.random() * 4)
    out: list[list[int]] = [[]]
    longest = 0
    for index in order:
        longest = max(longest, len(corpus.inputs(index)))
        if out[-1] and longest * (len(out[-1]) + 1) > tokens:
            out.append([])
            longest = len(corpus.inputs(index))
        out[-1].append(index)
    rng.shuffle(out)
    return out
