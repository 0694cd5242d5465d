#!/usr/bin/env bash
# transformers 5.24.0, Llama 4: layers without rotary positions scale their queries by the position ("attention
# temperature", floor_scale positions a step). The position is counted in rows of the batch, not taken from
# position_ids: a prompt with padding on its left, whose mask and position_ids say so, is scaled as if the
# padding were text, and its logits are others than alone. Without the temperature they are the same. With the
# published floor_scale of 8192 it shows where a row and its position lie on different sides of a multiple.
# Seen (largest difference of the last logits, padded and alone, floor_scale 4):
#   temperature on: 0.1288, off: 0.0000033
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
from transformers import Llama4ForCausalLM, Llama4TextConfig


def difference(tuned: bool) -> float:
    torch.manual_seed(0)
    config = Llama4TextConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, intermediate_size_mlp=64,
        num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        num_local_experts=2, num_experts_per_tok=1, no_rope_layers=[1, 0, 1, 0],
        attn_temperature_tuning=tuned, floor_scale=4, attn_scale=0.5, attention_chunk_size=64,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.2,
    )
    model = Llama4ForCausalLM._from_config(config, attn_implementation="eager").eval()
    prompt, pad = torch.randint(3, 64, (1, 10)), 9
    padded = torch.cat((torch.zeros(1, pad, dtype=torch.long), prompt), dim=1)
    mask = (torch.arange(pad + 10) >= pad).long()[None]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        alone = model(prompt).logits[0, -1]
        beside = model(padded, attention_mask=mask, position_ids=positions).logits[0, -1]
    return float((alone - beside).abs().max())


on, off = difference(True), difference(False)
print(f"temperature on: {on:.4f}, off: {off:.7f}")
sys.exit(not (on > 1e-3 and off < 1e-5))
PYTHON
