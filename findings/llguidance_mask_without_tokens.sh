#!/bin/sh
# llguidance 1.9.1: where the grammar wants a byte that no token has, the mask allows the stop token
# alone, although the text is not a whole one: an answer by such masks ends early and looks finished.
# fill_next_token_bitmask and compute_bitmask raise nothing; only is_error() tells, after the call.
# Vocabularies without all single bytes are common enough (sentence pieces without byte fallback).
#
# Seen, after "a" of `"a" "x" | "b"`: allowed: [0]; accepting: False; is_error: True
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet llguidance==1.9.1
"$folder/venv/bin/python" - <<'PYTHON'
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper


class Letters:
    eos_token_id, bos_token_id = 0, None
    tokens = [b"</s>", b"a", b"b"]
    special_token_ids = [0]

    def __call__(self, text):
        return [self.tokens.index(bytes([byte])) for byte in text.encode() if byte in b"ab"]


tokenizer = LLTokenizer(TokenizerWrapper(Letters()))
grammar = LLMatcher.grammar_from_lark('%llguidance {"no_forcing": true}\nstart: "a" "x" | "b"')
matcher = LLMatcher(tokenizer, grammar, log_level=0)
assert matcher.consume_token(1), "a"
accepting = matcher.is_accepting()
mask = int.from_bytes(matcher.compute_bitmask(), "little")
allowed, is_error = [token for token in range(3) if mask >> token & 1], matcher.is_error()
print(f"allowed: {allowed}; accepting: {accepting}; is_error: {is_error}")
assert (allowed, accepting, is_error) == ([0], False, True), (allowed, accepting, is_error)
PYTHON
