"""The vocabulary of a GGUF file: its tokens, what each is for, and which end an answer.

Read as llama.cpp reads it (src/llama-vocab.cpp), whose defaults and corrections count where a
file is silent or wrong. Splits no text and knows nothing of tensors.
"""

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any

from runtime.model import pretokenizers
from runtime.model.gguf_config import Metadata
from runtime.model.pretokenizers import PreTokenizer

BYTE_PAIRS, SENTENCE_PIECES = "gpt2", "llama"  # the values of tokenizer.ggml.model


class Kind(IntEnum):
    """What a token is for; the values of tokenizer.ggml.token_type."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# tokens that are found in a text before it is split
SPECIAL = (Kind.UNKNOWN, Kind.CONTROL, Kind.USER_DEFINED)

# ids of a file that names none or one that is no token of it
_DEFAULT_IDS = {
    BYTE_PAIRS: {"bos": 11, "eos": 11},
    SENTENCE_PIECES: {"bos": 1, "eos": 2, "unknown": 0},
}
# roles that a token has by its text, when the file names no token for them
_TURN_END = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>",
    "<EOT>", "_<EOT>", "[EOT]", "<\uff5cend▁of▁sentence\uff5c>", "<end_of_utterance>",
)  # fmt: skip
_ROLES_BY_TEXT = {
    "eot": _TURN_END,
    "eom": ("<|eom_id|>",),
    "fim_pre": (
        "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<\uff5cfim▁begin\uff5c>", "<PRE>",
        "▁<PRE>", "<|code_prefix|>", "<|prefix|>", "<|plamo:fim_prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<\uff5cfim▁hole\uff5c>", "<SUF>",
        "▁<SUF>", "<|code_suffix|>", "<|suffix|>", "<|plamo:fim_suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<\uff5cfim▁end\uff5c>", "<MID>",
        "▁<MID>", "<|code_middle|>", "<|middle|>", "<|plamo:fim_middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>", "<|plamo:file_separator|>"),
}  # fmt: skip
_OLD_NAMES = {"fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"}
_STOP_ROLES = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
# tokens that end an answer whatever the file calls them
_STOP_TEXTS = (
    *_TURN_END, "<|eom_id|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "</s>", "[EOS]",
    "<eos>", "<turn|>", "<|tool_response>", "[e~[", "<|ifm|im_end|>",
)  # fmt: skip
_NAMED_ROLES = ("bos", "eos", "unknown", "seperator", "padding", "mask")
# pre-tokenizer names whose mask token takes the space before it
_MASKED = ("jina-v2-de", "jina-v2-es", "jina-v2-code")
_ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


class Vocabulary:
    """What a file says of its tokens.

    tokens: the text of every id. ids: the id of every text. kinds, scores: one for each token.
    roles: the ids of "bos", "eos", "unknown", "padding" and the like, where there are any.
    pre_tokenizer: None for sentence pieces. stop_ids: what ends an answer. strips_before,
    strips_after: special tokens that swallow white space beside them.

    Raises ValueError for fields that make no vocabulary.
    """

    def __init__(self, metadata: Metadata):
        self._metadata = metadata
        self.model = self._known_model()
        self.tokens = self._known_tokens()
        self.ids = _each_once(self.tokens)
        self.scores = self._for_each_token("scores", 0.0)
        self.kinds = self._for_each_token("token_type", Kind.NORMAL)
        self.pre_tokenizer = self._known_pre_tokenizer()
        self.merges = self._known_merges()
        self.roles = self._given_roles()
        self._add_roles_by_text()
        self.stop_ids = self._known_stop_ids()
        self.adds_bos, self.adds_eos = self._adds("bos"), self._adds("eos")
        self.adds_space = self.pre_tokenizer is None and self._flag("add_space_prefix", True)
        self.strips_before, self.strips_after = self._known_strips()

    def _known_model(self) -> str:
        model = self._field("model")
        if model not in (BYTE_PAIRS, SENTENCE_PIECES):
            raise ValueError(
                f"metadata field tokenizer.ggml.model is {model!r:.80}; "
                "expected 'gpt2' (byte pairs) or 'llama' (sentence pieces)"
            )
        return str(model)

    def _known_tokens(self) -> list[str]:
        tokens = self._strings("tokens", None)
        if not tokens:
            raise ValueError("metadata field tokenizer.ggml.tokens is empty")
        return [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]

    def _known_pre_tokenizer(self) -> PreTokenizer | None:
        """Sentence pieces have none, whatever the field says."""
        if self.model == SENTENCE_PIECES:
            return None
        name = self._field("pre", pretokenizers.UNNAMED)
        if not isinstance(name, str):
            raise ValueError(f"metadata field tokenizer.ggml.pre is {name!r:.80}; expected a name")
        return pretokenizers.named(name)

    def _known_merges(self) -> list[str]:
        """In order of rank, each two parts with a space between."""
        if self.model == SENTENCE_PIECES:
            return []
        merges = self._strings("merges", [] if self._field("pre") == "kimi-k2" else None)
        for merge in merges:
            if " " not in merge[1:]:
                raise ValueError(f"merge {merge!r:.80} is not two parts with a space between")
        return merges

    def _given_roles(self) -> dict[str, int]:
        roles = {
            role: index
            for role, index in _DEFAULT_IDS[self.model].items()
            if index < len(self.tokens)
        }
        if self.pre_tokenizer is not None and not self.pre_tokenizer.has_bos:
            roles.pop("bos", None)
        fields = [(role, role) for role in (*_NAMED_ROLES, *_ROLES_BY_TEXT)]
        for role, field in [*fields, *_OLD_NAMES.items()]:
            index = self._field(f"{field}_token_id", -1)
            if not isinstance(index, int):
                raise ValueError(
                    f"metadata field tokenizer.ggml.{field}_token_id is {index!r:.80}; "
                    "expected a token's number"
                )
            if 0 <= index < len(self.tokens):
                roles[role] = index
        return roles

    def _add_roles_by_text(self) -> None:
        """A token that stands for no text is one of control, whatever the file calls it."""
        for role, texts in _ROLES_BY_TEXT.items():
            found = sorted(self.ids[text] for text in texts if text in self.ids)
            if role not in self.roles and found:
                self.roles[role] = found[0]
                self.kinds[found[0]] = Kind.CONTROL

    def _known_stop_ids(self) -> frozenset[int]:
        by_text = {self.ids[text] for text in _STOP_TEXTS if text in self.ids}
        for index in by_text:
            self.kinds[index] = Kind.CONTROL
        for text in _ALWAYS_SHOWN:
            if text in self.ids:
                self.kinds[self.ids[text]] = Kind.USER_DEFINED
        stop_ids = by_text | {self.roles[role] for role in _STOP_ROLES if role in self.roles}
        for text, kind in self._no_stops({self.tokens[index] for index in stop_ids}):
            stop_ids.discard(self.ids[text])
            self.kinds[self.ids[text]] = kind
        return frozenset(stop_ids)

    @staticmethod
    def _no_stops(stops: set[str]) -> Iterator[tuple[str, Kind]]:
        """Texts that end an answer elsewhere, but not beside the others of their vocabulary."""
        calls = stops & {"<|call|>", "<|calls|>"}
        if "<|end|>" in stops and calls and stops & {"<|return|>", "<|flush|>"}:
            yield "<|end|>", Kind.USER_DEFINED
        if "</s>" in stops and stops & {"<|tool_response>", "<|plamo:eos|>"}:
            yield "</s>", Kind.NORMAL

    def _adds(self, role: str) -> bool:
        """Whether a text gets the token at its begin or end."""
        cut, adds = self.pre_tokenizer, False
        if role == "bos":
            adds = cut is None or cut.adds_bos
        adds = self._flag(f"add_{role}_token", adds)
        adds = adds or (role == "bos" and cut is not None and cut.must_add_bos)
        if adds and role not in self.roles:
            raise ValueError(f"every text is to get a token {role}, but no such token is named")
        return adds

    def _known_strips(self) -> tuple[frozenset[int], frozenset[int]]:
        """Of the models that have such tokens; no field says so."""
        none, name = frozenset[int](), str(self._metadata.get("general.name", "")).lower()
        if self._field("pre") in _MASKED:
            return frozenset(self.ids[text] for text in self.ids.keys() & {"<mask>"}), none
        if "phi-3" in name or "phi3" in name:
            kept = {self.ids.get(text) for text in ("<unk>", "<s>", "<|endoftext|>")}
            return none, frozenset(index for index in self.ids_of(*SPECIAL) if index not in kept)
        return none, none

    def ids_of(self, *kinds: Kind) -> Iterator[int]:
        """The ids of the tokens of these kinds."""
        return (index for index, kind in enumerate(self.kinds) if kind in kinds)

    def _field(self, name: str, default: Any = None) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{name}", default)

    def _flag(self, name: str, default: bool) -> bool:
        value = self._field(name, default)
        if not isinstance(value, bool):
            raise ValueError(
                f"metadata field tokenizer.ggml.{name} is {value!r:.80}; expected true or false"
            )
        return value

    def _strings(self, name: str, default: list[str] | None) -> list[str]:
        values = self._field(name, default)
        if not isinstance(values, list) or not all(isinstance(text, str) for text in values[:1]):
            raise ValueError(f"metadata field tokenizer.ggml.{name} is no list of texts")
        return values

    def _for_each_token(self, name: str, default: float) -> list[Any]:
        values = self._field(name)
        if values is None:
            return [default] * len(self.tokens)
        if not isinstance(values, list) or not all(
            isinstance(number, int | float) for number in values[:1]
        ):
            raise ValueError(f"metadata field tokenizer.ggml.{name} is no list of numbers")
        if len(values) < len(self.tokens):
            raise ValueError(
                f"metadata field tokenizer.ggml.{name} has {len(values)} entries; "
                f"expected one for each of {len(self.tokens)} tokens"
            )
        return values[: len(self.tokens)]


def stop_ids(metadata: Metadata) -> set[int]:
    """The tokens that end an answer of this model. Raises ValueError where it has no vocabulary."""
    return set(Vocabulary(metadata).stop_ids)


def _each_once(tokens: Sequence[str]) -> dict[str, int]:
    ids = {token: index for index, token in enumerate(tokens)}
    if len(ids) < len(tokens):
        index = next(index for index, token in enumerate(tokens) if ids[token] != index)
        token = tokens[index]
        raise ValueError(f"tokens {index} and {ids[token]} are both {token!r:.80}")
    return ids
