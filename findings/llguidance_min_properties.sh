#!/bin/sh
# llguidance 1.9.1: an object that has to have "minProperties" members may have one name that often.
# A name that is not listed under "properties" is counted each time that it is written, while whoever
# reads the JSON keeps the last of them: '{"a":1,"a":1}' is a whole answer under {"minProperties": 2},
# and json.loads makes one member of it, which jsonschema refuses.
#
# Seen: accepted: True; members: 1
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet llguidance==1.9.1
"$folder/venv/bin/python" - <<'PYTHON'
import json

from llguidance import LLMatcher, LLTokenizer

schema = {"type": "object", "minProperties": 2, "additionalProperties": {"type": "integer"}}
tokenizer = LLTokenizer("byte")
matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(schema))
assert not matcher.is_error(), matcher.get_error()
text = '{"a":1,"a":1}'
assert matcher.consume_tokens(tokenizer.tokenize_str(text)), matcher.get_error()
accepted, members = matcher.is_accepting(), len(json.loads(text))
print(f"accepted: {accepted}; members: {members}")
assert accepted and members == 1, (accepted, members)
PYTHON
