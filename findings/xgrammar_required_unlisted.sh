#!/usr/bin/env bash
# xgrammar 0.2.9: a name under "required" that is not listed under "properties" too (as where the values of
# all names are described by "additionalProperties") is not demanded. Beside an optional property it makes
# that one a required one instead: an answer with the optional name alone is whole, and one with the required
# name alone is refused. The schemas compile without a warning.
#
# Seen, for {"type": "object", "additionalProperties": {"type": "integer"}, "required": ["total"]}:
#   {}: allowed True, valid False
#   {"total": 1}: allowed True, valid True
# and with "properties": {"note": {"type": "integer"}} as well:
#   {"note": 1}: allowed True, valid False
#   {"total": 1}: allowed False, valid True
# ("valid" is what jsonschema 4.26.0 says.) Exits non-zero where this no longer holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
"$pip" install -q 'torch==2.13.0+cpu' 2>/dev/null || "$pip" install -q 'torch>=2.9'
"$pip" install -q xgrammar==0.2.9 jsonschema==4.26.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import json

import jsonschema
import xgrammar

STOP = 256
tokens = xgrammar.TokenizerInfo([bytes([byte]) for byte in range(STOP)] + [b"</s>"], stop_token_ids=[STOP])
compiler = xgrammar.GrammarCompiler(tokens)


def allowed(schema, text):
    matcher = xgrammar.GrammarMatcher(compiler.compile_json_schema(json.dumps(schema)))
    return matcher.accept_string(text) and matcher.accept_token(STOP)


def valid(schema, text):
    return jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))


NUMBER = {"type": "integer"}
totals = {"type": "object", "additionalProperties": NUMBER, "required": ["total"]}
noted = {**totals, "properties": {"note": NUMBER}}
seen = []
for schema, texts in ((totals, ("{}", '{"total": 1}')), (noted, ('{"note": 1}', '{"total": 1}'))):
    print(json.dumps(schema))
    for text in texts:
        seen.append((allowed(schema, text), valid(schema, text)))
        print(f"  {text}: allowed {seen[-1][0]}, valid {seen[-1][1]}")
assert seen == [(True, False), (True, True), (True, False), (False, True)], seen
PYTHON
