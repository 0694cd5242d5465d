#!/usr/bin/env bash
# transformers 5.24.0 with tokenizers 0.23.3 and gguf 0.19.0: AutoTokenizer.from_pretrained(folder,
# gguf_file=...) knows some twenty names of tokenizer.ggml.pre, the field that says how a byte-level
# vocabulary cuts a text into words. Any other name is read as gpt-2 without a word, though
# llama.cpp knows it as another cut, and so are a name that does not exist, which llama.cpp refuses,
# and no name at all, which there is a cut of its own. So one file has other ids in the two (for the
# text below, llama.cpp has 'a' 'ĠĠ' '1' 'Ġ(' under smollm and deepseek-llm, which take digits apart,
# and 'a' 'Ġ' 'Ġ' '1' 'Ġ' '(' without a name).
# Seen:
#   llama-bpe     ['a', 'Ġ', 'Ġ', '1', 'Ġ(']
#   gpt-2         ['a', 'Ġ', 'Ġ1', 'Ġ(']
#   smollm        ['a', 'Ġ', 'Ġ1', 'Ġ(']
#   deepseek-llm  ['a', 'Ġ', 'Ġ1', 'Ġ(']
#   no-such-name  ['a', 'Ġ', 'Ġ1', 'Ġ(']
#   none          ['a', 'Ġ', 'Ġ1', 'Ġ(']
# Exits non-zero where this no longer holds. transformers wants torch for it, any build will do.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
"$pip" install -q 'torch==2.13.0+cpu' 2>/dev/null || "$pip" install -q 'torch>=2.9'
"$pip" install -q transformers==5.24.0 tokenizers==0.23.3 gguf==0.19.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import gguf
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

transformers.logging.set_verbosity_error()
tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ĠĠ", "Ġ1", "Ġ(", "<|endoftext|>"]
seen = {}
for name in ("llama-bpe", "gpt-2", "smollm", "deepseek-llm", "no-such-name", None):
    writer = gguf.GGUFWriter("model.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    if name is not None:
        writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 1) + [3])
    writer.add_token_merges(["Ġ Ġ", "Ġ 1", "Ġ ("])
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    seen[name] = AutoTokenizer.from_pretrained(".", gguf_file="model.gguf").tokenize("a  1 (")
    print(f"{name or 'none':13} {seen[name]}")

assert seen.pop("llama-bpe") == ["a", "Ġ", "Ġ", "1", "Ġ("]
assert set(map(tuple, seen.values())) == {("a", "Ġ", "Ġ1", "Ġ(")}
PYTHON
