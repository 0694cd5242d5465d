"""Text to token ids and back, at the edge: a thin page over transformers' tokenizers.

Knows text and ids, chat templates and stop tokens; nothing of tensors, models or requests.
transformers is imported when a tokenizer is loaded.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from runtime.model.config import ModelError
from runtime.model.folder import read_json
from runtime.model.folder_tokenizer import folder_tokenizer
from runtime.model.gguf import Metadata
from runtime.model.locate import locate

HASH_BYTES = 16
MAX_STOP_IDS = 4096
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# byte-level vocabularies that are split as GPT-2's is, so that nothing else needs to be known
_GPT2_SPLITS = ("gpt-2", "smollm")
_CONTROL = 3  # GGUF's type of tokens that stand for no text
_USER_DEFINED = 4  # and of those always matched whole


class Tokenizer:
    """The tokenizer of one model."""

    def __init__(self, tokenizer: Any, stop_ids: Iterable[int]):
        self._tokenizer = tokenizer
        self.stop_ids = frozenset(stop_ids)

    @classmethod
    def load(cls, name: str | Path) -> "Tokenizer":
        """The tokenizer of a model folder, a .gguf file, a hub id or an embedded model.

        Raises ModelError where there is none.
        """
        path = locate(name)
        tokenizer = _from_gguf(path) if path.is_file() else folder_tokenizer(path)
        stop_ids = _generation_stop_ids(path)
        if tokenizer.eos_token_id is not None:
            stop_ids.add(tokenizer.eos_token_id)
        return cls(tokenizer, stop_ids.intersection(tokenizer.get_vocab().values()))

    def encode(self, text: str) -> list[int]:
        """Token ids of a plain text, with the model's own first token where it wants one."""
        return list(self._tokenizer.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; control tokens have none, bytes that are no UTF-8 become U+FFFD."""
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def chat_prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation through the model's chat template, ready for the answer.

        messages: {"role": ..., "content": ...} each. Raises ValueError where the model has no
        template, or the template refuses the conversation.
        """
        from jinja2.exceptions import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], add_generation_prompt=True, tokenize=False
            )
        except TemplateError as error:
            raise ValueError(f"the chat template refuses this conversation: {error}") from None
        # the template writes the first token itself
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    @property
    def vocabulary_size(self) -> int:
        """Tokens that the tokenizer knows; a model's embedding may have more rows."""
        return len(self._tokenizer)

    def vocabulary_hash(self) -> bytes:
        """16 bytes that differ where any id stands for another token."""
        return self._vocabulary_hash

    @cached_property
    def _vocabulary_hash(self) -> bytes:
        digest = hashlib.sha256()
        for token, index in sorted(self._tokenizer.get_vocab().items(), key=lambda item: item[1]):
            spelled = token.encode("utf-8", errors="surrogatepass")
            digest.update(index.to_bytes(4, "big") + len(spelled).to_bytes(4, "big") + spelled)
        return digest.digest()[:HASH_BYTES]


class TextStream:
    """Text of a growing list of ids, never a part of a character.

    The pushed pieces and the finish, joined, are the decoded whole. Decodes from the last place
    where characters were complete, so that a piece costs the same however long the text is.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        # ids already shown that the next ones are decoded with: some decoders drop a first space
        self._shown: list[int] = []
        self._pending: list[int] = []

    def push(self, ids: Sequence[int]) -> str:
        """The text that these ids complete; may be empty."""
        self._pending.extend(ids)
        text = self._pending_text()
        if text.endswith(REPLACEMENT) or not text:
            return ""
        self._shown, self._pending = self._pending, []
        return text

    def finish(self) -> str:
        """What is left at the end: bytes that never became a character."""
        text, self._shown, self._pending = self._pending_text(), self._pending, []
        return text

    def _pending_text(self) -> str:
        shown = self._tokenizer.decode(self._shown)
        return self._tokenizer.decode(self._shown + self._pending)[len(shown) :]


def _from_gguf(path: Path) -> Any:
    """Straight from the metadata where that is enough: transformers takes seconds for it."""
    metadata = Metadata(path)
    from transformers import AutoTokenizer

    try:
        if _is_plain_byte_level(metadata):
            return _byte_level(metadata)
        return AutoTokenizer.from_pretrained(
            path.parent, gguf_file=path.name, trust_remote_code=False
        )
    # the tokenizers library raises bare Exceptions
    except Exception as error:
        raise ModelError(f"{path} has no readable tokenizer: {error}") from error


def _is_plain_byte_level(metadata: Metadata) -> bool:
    return (
        metadata.get("tokenizer.ggml.model") == "gpt2"
        and metadata.get("tokenizer.ggml.pre") in _GPT2_SPLITS
        and not metadata.get("tokenizer.ggml.add_bos_token")
    )


def _byte_level(metadata: Metadata) -> Any:
    """A byte-level BPE tokenizer from a GGUF's lists of tokens and merges."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens: list[str] = metadata.get("tokenizer.ggml.tokens", [])
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges", [])]
    bpe = models.BPE({token: index for index, token in enumerate(tokens)}, merges)
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, metadata.get("tokenizer.ggml.token_type", ()), strict=False):
        if kind in (_CONTROL, _USER_DEFINED):
            special = kind == _CONTROL
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=special)])

    def named(role: str) -> str | None:
        index = metadata.get(f"tokenizer.ggml.{role}_token_id")
        return None if index is None else tokens[index]

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=named("bos"),
        eos_token=named("eos"),
        unk_token=named("unknown"),
        pad_token=named("padding"),
        chat_template=metadata.get("tokenizer.chat_template"),
    )


def _generation_stop_ids(path: Path) -> set[int]:
    """The end tokens that a folder's generation_config.json and config.json name, together.

    transformers hears the first file alone where there is one; but people mend either, and a text
    that ends at a token its model calls an end is never a wrong one. Raises ModelError.
    """
    stop_ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        try:
            fields = read_json(path / name)
        except (OSError, ValueError):
            continue
        for part in (fields, fields.get("text_config") if isinstance(fields, dict) else None):
            named = part.get("eos_token_id") if isinstance(part, dict) else None
            ids = named if isinstance(named, list) else [named]
            if len(ids) > MAX_STOP_IDS:
                raise ModelError(
                    f"{path / name}: eos_token_id names {len(ids)} tokens; expected at most "
                    f"{MAX_STOP_IDS}"
                )
            # true and false are ints in Python
            stop_ids.update(index for index in ids if type(index) is int and index >= 0)
    return stop_ids
