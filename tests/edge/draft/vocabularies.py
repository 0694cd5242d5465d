"""Small vocabularies that spell texts differently, for drafts of another family than the target."""

import random

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from tests.conftest import CHAT_TEMPLATE

ROWS = 272
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("a", "b"), ("c", "d"), ("ab", "cd"), ("e", "e"), ("1", "2"), ("Ã", "©")]
SPECIAL = ("<|end|>", "<|start|>")
ORDER = random.Random(5).sample(range(256), 256)  # of the bytes, where they are shuffled


def byte_pairs(
    symbols: list[str], merges: list[tuple[str, str]], special: tuple[str, ...]
) -> PreTrainedTokenizerFast:
    """Byte-level pairs; ids follow the order of the symbols, then merges, then special tokens."""
    ids = {symbol: index for index, symbol in enumerate([*symbols, *map("".join, merges)])}
    backend = Backend(models.BPE(ids, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=special[0], chat_template=CHAT_TEMPLATE
    )


def sentence_pieces(pieces: list[str]) -> PreTrainedTokenizerFast:
    """Pieces with a mark for a blank and tokens for bytes, as Llama 2 and Gemma have them."""
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    ids = {piece: index for index, piece in enumerate(["<unk>", "<s>", "</s>", *alphabet, *pieces])}
    backend = Backend(models.BPE(ids, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def target() -> PreTrainedTokenizerFast:
    return byte_pairs(BYTES, MERGES, SPECIAL)


def drafts() -> dict[str, PreTrainedTokenizerFast]:
    """By name. "permuted" needs a model whose first rows are in `ORDER`."""
    return {
        "permuted": byte_pairs([BYTES[i] for i in ORDER], MERGES, SPECIAL),
        "bytes": byte_pairs(BYTES, [], ("<|start|>", "<s>")),
        "longer": byte_pairs(BYTES, [*MERGES, ("abcd", "ee"), ("Ġ", "t")], ("</s>",)),
        "pieces": sentence_pieces(["▁", "e", "t", "é", "a", "b"]),
    }
