#!/usr/bin/env bash
# transformers 5.24.0: an attention function that is registered with AttentionInterface is told the window of
# a sliding layer by the argument sliding_window. Mistral and Mixtral pass it. Phi-3.5-MoE and Qwen2-MoE, whose
# configurations have a window too, do not: there the window is in the mask alone, and a function that makes
# no use of a dense mask (as flash attention) sees all of the text, without an error or a warning.
# Seen (sliding_window as the function is told it, for a configured window of 8):
#   mistral: [8]
#   mixtral: [8]
#   phimoe: [None]
#   qwen2_moe: [None]
# Exits non-zero where this no longer holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
)

told = []


def attention(module, query, key, value, attention_mask, **options):
    told.append(options.get("sliding_window"))
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    return out.transpose(1, 2), None


AttentionInterface.register("ours", attention)
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
    "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0,
}
seen = {}
for family in ("mistral", "mixtral", "phimoe", "qwen2_moe"):
    config = AutoConfig.for_model(family, **SIZES)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="ours").eval()
    told.clear()
    with torch.no_grad():
        model(torch.arange(20)[None])
    seen[family] = list(told)
    print(f"{family}: {told}")
sys.exit(seen != {"mistral": [8], "mixtral": [8], "phimoe": [None], "qwen2_moe": [None]})
PYTHON
