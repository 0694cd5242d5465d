#!/bin/sh
# tokenizers 0.23.3: under a ByteLevel decoder an added token that has a letter of U+00A1 to U+0143
# does not come back. The decoder takes the letters of an added token for GPT-2's alphabet of bytes,
# though added tokens are matched and stored as plain text. So "naïve" is one token, found in the
# text, and is decoded as "na" U+FFFD "ve"; "日本" is decoded as it is, because one of its characters
# is not in that alphabet and then the whole token is taken as text.
#
# Seen: decode(encode('naïve')) = 'na\ufffdve'; decode(encode('日本')) = '日本'
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
assert tokenizer.decode(tokenizer.encode("naïve").ids) == "naïve", "without added tokens"

tokenizer.add_tokens(["naïve", "日本"])
seen = {}
for text in ("naïve", "日本"):
    ids = tokenizer.encode(text).ids
    assert len(ids) == 1, "the added token is found in the text"
    seen[text] = tokenizer.decode(ids)
    print(f"decode(encode({text!r})) = {ascii(seen[text]) if text == 'naïve' else repr(seen[text])}")
assert seen == {"naïve": "na\ufffdve", "日本": "日本"}, seen
PYTHON
