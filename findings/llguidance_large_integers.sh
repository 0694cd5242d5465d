#!/bin/sh
# llguidance 1.9.1: a "const" or an "enum" with a whole number that is no double, as ids of 18 digits are, holds the
# answer to another number: the nearest double. JSON Schema compares numbers as numbers, and jsonschema refuses the one
# answer that llguidance allows. Lowest bounds of integers are rounded likewise, and end at 2**63 - 1.
#
# Seen:
#   {"const": 175928847299117063}: 175928847299117063 False, 175928847299117056 True
#   {"enum": [175928847299117063]}: 175928847299117063 False, 175928847299117056 True
#   {"type": "integer", "minimum": 9007199254740993}: 9007199254740993 True, 9007199254740992 True
#   valid, says jsonschema, of what is allowed: False, False, False
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet llguidance==1.9.1 jsonschema==4.25.1
"$folder/venv/bin/python" - <<'PYTHON'
import json

import jsonschema
from llguidance import LLMatcher, LLTokenizer

tokenizer = LLTokenizer("byte")


def allows(schema, text):
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(json.dumps(schema)))
    assert not matcher.is_error(), matcher.get_error()
    tokens = tokenizer.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


cases = [
    ({"const": 175928847299117063}, 175928847299117063, 175928847299117056, [False, True]),
    ({"enum": [175928847299117063]}, 175928847299117063, 175928847299117056, [False, True]),
    ({"type": "integer", "minimum": 9007199254740993}, 9007199254740993, 9007199254740992, [True, True]),
]
valid = []
for schema, own, other, expected in cases:
    seen = [allows(schema, str(value)) for value in (own, other)]
    print(f"{json.dumps(schema)}: {own} {seen[0]}, {other} {seen[1]}")
    assert seen == expected, "it has changed"
    valid.append(jsonschema.Draft202012Validator(schema).is_valid(other))
print("valid, says jsonschema, of what is allowed:", ", ".join(map(str, valid)))
assert valid == [False] * 3
PYTHON
