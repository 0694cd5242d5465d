"""Text to token ids and back, at the edge: a thin page over transformers' tokenizers and GGUF's.

Knows text and ids, chat templates and stop tokens; nothing of tensors, models or requests.
transformers is imported when the tokenizer of a folder is loaded.
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from runtime.model.chat_template import rendered
from runtime.model.config import ModelError
from runtime.model.folder_tokenizer import folder_tokenizer
from runtime.model.gguf_tokenizer import gguf_tokenizer
from runtime.model.json_file import read_json
from runtime.model.literal_text import Spellings, encoded_in_parts
from runtime.model.locate import locate
from runtime.model.portable_template import portable
from runtime.model.text_stream import Showing, Spelled, Spelling, TextStream, TokenBytes
from runtime.model.vocabulary_hash import MAX_ROWS, VocabularyHashes

log = logging.getLogger(__name__)

MAX_STOP_IDS = 4096
MAX_REASON = 300  # characters of what a template says about a conversation


class Tokenizer:
    """The tokenizer of one model."""

    def __init__(self, tokenizer: Any, stop_ids: Iterable[int], unused_ids: Iterable[int] = ()):
        self._tokenizer = tokenizer
        self.stop_ids, self.unused_ids = frozenset(stop_ids), frozenset(unused_ids)

    @classmethod
    def load(cls, name: str | Path) -> "Tokenizer":
        """The tokenizer of a model folder, a .gguf file, a hub id or an embedded model.

        Raises ModelError where there is none.
        """
        path = locate(name, weights=False)
        if path.is_file():
            of_file = gguf_tokenizer(path)
            return cls(of_file, of_file.stop_ids, of_file.unused_ids)
        tokenizer, stop_ids = folder_tokenizer(path), _generation_stop_ids(path)
        if tokenizer.eos_token_id is not None:
            stop_ids.add(tokenizer.eos_token_id)
        stop_ids.intersection_update(tokenizer.get_vocab().values())
        return cls(tokenizer, stop_ids)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a plain text, with the model's own first token where it wants one.

        Without `special` those of the text alone. Raises ValueError for a lone surrogate, which is
        no text.
        """
        return self._ids(text, add_special_tokens=special)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; control tokens have none, bytes that are no UTF-8 become U+FFFD.

        What `TextStream` makes of the same ids, in whatever pieces.
        """
        stream = TextStream(self)
        return stream.push(ids) + stream.finish()

    @cached_property
    def token_bytes(self) -> Spelling:
        """What each token adds to a text; a tokenizer may know it itself."""
        own: Spelling | None = getattr(self._tokenizer, "token_bytes", None)
        return own or TokenBytes(self._tokenizer.backend_tokenizer)

    def control_ids(self, texts: Iterable[str]) -> frozenset[int]:
        """The control tokens that are spelled as one of these texts; no text has them."""
        spelled = self._control_ids
        return frozenset(spelled[text] for text in texts if text in spelled)

    @cached_property
    def _control_ids(self) -> Mapping[str, int]:
        """By their spelling."""
        return {self.token(index): index for index in self.token_bytes.control}

    def showing(self, texts: Iterable[str]) -> Spelled:
        """This tokenizer for a `TextStream` whose text has the control tokens spelled so."""
        shown = {index: self.token(index).encode() for index in self.control_ids(texts)}
        return Showing(self.token_bytes, shown)

    @cached_property
    def _control_spellings(self) -> Spellings:
        return Spellings(self._control_ids)

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the model's own chat template, the default one of several."""
        template: str | dict[str, str] | None = self._tokenizer.chat_template
        return template.get("default") if isinstance(template, dict) else template

    @property
    def special_tokens(self) -> dict[str, str]:
        """Names of the tokens that have a part of their own, such as "eos_token", and which."""
        named = self._tokenizer.special_tokens_map
        return {name: token for name, token in named.items() if isinstance(token, str)}

    @property
    def portable_template(self) -> str | None:
        """The chat template with its special tokens written into it, None where there is none."""
        source = self.chat_template
        return portable(source, self._tokenizer.special_tokens_map) if source else None

    def chat_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        template: str | None = None,
        enable_thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Token ids of a conversation through a chat template, ready for the answer.

        messages: {"role": ..., "content": ...} each, where content is a text, a list of parts
        {"type": "text", "text": ...}, which become lines, or None; a control token that they spell
        remains text. template: Jinja source in place of the model's own; enable_thinking: for
        templates with this variable, None leaves it to them; tools: as OpenAI's API has them, for
        templates that know tools. Raises ModelError where there is no template, or it is broken,
        does not know the variable or refuses the conversation, ValueError for messages that are
        none.
        """
        source = self._own_template() if template is None else template
        switches = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        if switches and not re.search(r"\benable_thinking\b", source):
            raise ModelError(
                f"enable_thinking= is {enable_thinking}, and the chat template has no switch for "
                "thinking; leave it out"
            )
        plain = [_plain(message) for message in messages]
        try:
            given, mark = self._control_spellings.marked({"messages": plain, "tools": tools})
            variables = {**self._tokenizer.special_tokens_map, **switches}
            text = rendered(source, given["messages"], variables, given["tools"])
        # A template is a program of somebody else's, which can fail as any program can.
        except Exception as error:
            raise ModelError(_template_failure(error)) from error
        # the template writes the first token itself
        return encoded_in_parts(text, mark, partial(self._ids, add_special_tokens=False))

    def _own_template(self) -> str:
        if self.chat_template is not None:
            return self.chat_template
        named = self._tokenizer.chat_template
        lack = f"only chat templates named {', '.join(named)}" if named else "no chat template"
        raise ModelError(
            f"the model has {lack}; give one with --chat-template FILE, or send a prompt as it is: "
            "with --raw, or to /v1/completions"
        )

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError("the text is not valid Unicode: it has a lone surrogate") from error
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def token(self, index: int) -> str:
        """How the vocabulary spells an id, empty where it has none."""
        return self._tokenizer.convert_ids_to_tokens(index) or ""

    @property
    def vocabulary_size(self) -> int:
        """One more than the highest id that is listed. A model may have more rows, or fewer."""
        return max(self._tokenizer.get_vocab().values(), default=-1) + 1

    def vocabulary_hash(self, rows: int = MAX_ROWS) -> bytes:
        """16 bytes that differ where an id below `rows` stands for another token."""
        return self.hashes.below(rows)

    @cached_property
    def hashes(self) -> VocabularyHashes:
        """Of the whole vocabulary, which they outlive."""
        return VocabularyHashes(self._tokenizer.get_vocab(), self.unused_ids)


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose content is one text, which all templates know. Raises ValueError."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ValueError("a message has a role, such as user, and a content")
    content = message.get("content")
    parts = content if isinstance(content, list | tuple) else [{"text": content or ""}]
    found = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    texts = [text for text in found if isinstance(text, str)]
    if len(texts) < len(found):
        raise ValueError("the content of a message is a text, or parts of type text")
    return {**message, "content": "\n".join(texts)}


def _template_failure(error: Exception) -> str:
    from jinja2.exceptions import TemplateSyntaxError

    told, failure = str(error), "refuses this conversation"
    if isinstance(error, TemplateSyntaxError):
        told, failure = str(error.message), f"is broken: line {error.lineno}"
    reason = " ".join(told.split())[:MAX_REASON] or type(error).__name__
    return f"the chat template {failure}: {reason}"


def _generation_stop_ids(path: Path) -> set[int]:
    """The end tokens that a folder's generation_config.json and config.json name, together.

    transformers hears the first file alone where there is one; but people mend either, and a text
    that ends at a token its model calls an end is never a wrong one. What cannot be read is told
    in the log. Raises ModelError.
    """
    stop_ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        try:
            fields = read_json(path / name)
        except FileNotFoundError:
            continue
        except ModelError as error:
            log.warning("%s; an answer does not end at the tokens that it names as ends", error)
            continue
        for part in (fields, fields.get("text_config") if isinstance(fields, dict) else None):
            named = part.get("eos_token_id") if isinstance(part, dict) else None
            ids = named if isinstance(named, list) else [named]
            if len(ids) > MAX_STOP_IDS:
                raise ModelError(
                    f"{path / name}: eos_token_id names {len(ids)} tokens; expected at most "
                    f"{MAX_STOP_IDS}"
                )
            for index in ids:
                if type(index) is int:  # true and false are ints in Python
                    stop_ids.add(index)
                elif index is not None:
                    told = f"{path / name}: eos_token_id names {index!r}"[:MAX_REASON]
                    log.warning("%s, which is no token's number; it ends no answer", told)
    return stop_ids
