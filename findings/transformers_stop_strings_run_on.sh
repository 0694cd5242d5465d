#!/usr/bin/env bash
# transformers 5.24.0: generate(stop_strings=...) does not always end at a stop string when tokens are drafted
# (prompt_lookup_num_tokens here, which is documented to change the speed alone). Stopping is looked at once a
# verification, and StopStringCriteria asks whether the text ends with the string: one that lies among the accepted
# tokens with more of them behind it is passed over, not only for that round but for good. Stop tokens (eos) are cut
# off by a check of their own, other criteria are not.
#
# Seen (a model that goes through the alphabet of ten letters, asked to stop at "d" and for 20 tokens at most):
#   plain decoding: 'bcd'
#   with 4 tokens drafted: 'bcdefghijabcdefghija'
#   with 4 tokens drafted and the token of "d" as eos: 'bcd'
# Exits non-zero where this no longer holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
"$pip" install -q 'torch==2.13.0+cpu' 2>/dev/null || "$pip" install -q 'torch>=2.9'
"$pip" install -q transformers==5.24.0 tokenizers==0.23.3
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

transformers.logging.set_verbosity_error()
LETTERS = "abcdefghij"
backend = Tokenizer(models.WordLevel({c: i for i, c in enumerate(LETTERS)}, unk_token="a"))
backend.pre_tokenizer, backend.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)

config = LlamaConfig(
    vocab_size=10, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
    num_key_value_heads=1, tie_word_embeddings=False, pad_token_id=0, bos_token_id=None, eos_token_id=None,
)
model = LlamaForCausalLM(config).eval()
with torch.no_grad():
    for parameter in model.model.layers.parameters():
        parameter.zero_()
    model.model.embed_tokens.weight.copy_(torch.eye(10, 16))
    model.lm_head.weight.copy_(torch.eye(10, 16).roll(1, 0))  # the next letter is the likeliest one

prompt = tokenizer("abcdefghija", return_tensors="pt")
stop = {"stop_strings": ["d"], "tokenizer": tokenizer}
ways = {
    "plain decoding": stop,
    "with 4 tokens drafted": {**stop, "prompt_lookup_num_tokens": 4},
    'with 4 tokens drafted and the token of "d" as eos': {"eos_token_id": 3, "prompt_lookup_num_tokens": 4},
}
seen = []
for name, options in ways.items():
    answer = model.generate(**prompt, do_sample=False, max_new_tokens=20, **options)[0, 11:]
    seen.append(tokenizer.decode(answer))
    print(f"{name}: {seen[-1]!r}")
assert seen == ["bcd", "bcdefghijabcdefghija", "bcd"], "it has changed"
PYTHON
