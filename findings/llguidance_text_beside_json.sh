#!/bin/sh
# llguidance 1.9.1: of two alternatives, a text and a JSON schema, that begin with the same character,
# only the text is ever allowed. `start: text | json` is not the union of the two: at "{" the lexer
# settles for the text, and what the schema alone allows is refused behind it. The grammar compiles
# without a warning. As alternatives of one schema ("anyOf") both are allowed.
#
# Seen: '{"x": 1}' is allowed by the schema: True, by the text or the schema: False,
#       by one schema with both: True
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet llguidance==1.9.1
"$folder/venv/bin/python" - <<'PYTHON'
import json

from llguidance import LLMatcher, LLTokenizer

tokenizer = LLTokenizer("byte")
schema = {
    "type": "object",
    "properties": {"x": {"const": 1}},
    "required": ["x"],
    "additionalProperties": False,
}
called = {**schema, "properties": {"name": {"const": "f"}}, "required": ["name"]}
text = json.dumps('{"name": "f"}')


def is_allowed(answer, start):
    grammar = LLMatcher.grammar_from_lark(f"start: {start}")
    assert LLMatcher.validate_grammar_with_warnings(grammar, tokenizer) == (False, [])
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    tokens = tokenizer.tokenize_str(answer)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


JSON = f"%json {json.dumps(schema)}"
BOTH = f"%json {json.dumps({'anyOf': [called, schema]})}"
assert is_allowed('{"name": "f"}', f"{text} | {JSON}")
seen = [is_allowed('{"x": 1}', start) for start in (JSON, f"{text} | {JSON}", BOTH)]
print(
    f"'{{\"x\": 1}}' is allowed by the schema: {seen[0]}, by the text or the schema: {seen[1]}, "
    f"by one schema with both: {seen[2]}"
)
assert seen == [True, False, True], seen
PYTHON
