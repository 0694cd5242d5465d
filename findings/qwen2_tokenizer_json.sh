#!/usr/bin/env bash
# transformers 5.24.0 with tokenizers 0.23.3: in a folder whose config.json says "qwen2", AutoTokenizer
# takes vocabulary and merges of tokenizer.json but not its normalizer and its pre-tokenizer: Qwen2's
# own are put in their place, even where tokenizer_config.json names PreTrainedTokenizerFast. The same
# file beside "llama" is read as it is written, and so it is by PreTrainedTokenizerFast. In a folder
# with a qwen2 config.json and no tokenizer at all, AutoTokenizer makes one of a single token.
# Seen:
#   llama  AutoTokenizer            ['he', 'Ġ', '12']
#   llama  PreTrainedTokenizerFast  ['he', 'Ġ', '12']
#   qwen2  AutoTokenizer            ['H', 'E', 'Ġ', '1', '2']
#   qwen2  PreTrainedTokenizerFast  ['he', 'Ġ', '12']
#          tokenizers               ['he', 'Ġ', '12']
#   no tokenizer files: Qwen2Tokenizer of 1 token, []
# Exits non-zero where this no longer holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.24.0 tokenizers==0.23.3
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import json
import pathlib

import tokenizers
import transformers
from tokenizers import models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

transformers.logging.set_verbosity_error()
print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)

alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
merges = [("1", "2"), ("h", "e")]
vocabulary = {token: i for i, token in enumerate(alphabet + ["12", "he"])}
backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
backend.normalizer = normalizers.Lowercase()
backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)

text, seen = "HE 12", {}
for model_type in ("llama", "qwen2"):
    folder = pathlib.Path(model_type)
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    loaders = {"AutoTokenizer": AutoTokenizer, "PreTrainedTokenizerFast": PreTrainedTokenizerFast}
    for name, loader in loaders.items():
        tokens = loader.from_pretrained(folder).tokenize(text)
        print(f"{model_type:6} {name:24} {tokens}")
        seen[model_type, name] = tokens
written = backend.encode(text).tokens
print(f"{'':6} {'tokenizers':24} {written}")

empty = pathlib.Path("empty")
empty.mkdir()
(empty / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
nothing = AutoTokenizer.from_pretrained(empty)
print("no tokenizer files:", type(nothing).__name__, "of", len(nothing), "token,", nothing.encode(text))

assert written == ["he", "Ġ", "12"]
assert seen["llama", "AutoTokenizer"] == seen["qwen2", "PreTrainedTokenizerFast"] == written
assert seen["qwen2", "AutoTokenizer"] == ["H", "E", "Ġ", "1", "2"]
assert len(nothing) == 1 and nothing.encode(text) == []
PYTHON
