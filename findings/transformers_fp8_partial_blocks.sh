#!/usr/bin/env bash
# transformers 5.24.0: a block-wise FP8 checkpoint (weight_block_size [128, 128]) whose matrices are no
# multiple of 128 has one scale for each partial block at the end, ceil(192 / 128) = 2 a side. With
# dequantize=True transformers takes the blocks to be 192 / 2 = 96 wide instead, and gives most of the
# weights beyond the 96th row or column the scale of another block, without a warning. A matrix of 320 x 192
# (3 x 2 scales) is an error, "not divisible by scale grid", instead. Matrices of 256 x 256 are right.
# Seen (largest error relative to the largest weight):
#   256: 0.00
#   192: 499.00
# Exits non-zero where this no longer holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0 accelerate==1.15.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, LlamaConfig, LlamaForCausalLM


def largest_error(size: int) -> float:
    """Of the weights of a model whose projections are all size x size, in blocks of 128 x 128."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=size, intermediate_size=size, num_hidden_layers=1,
        num_attention_heads=size // 64, num_key_value_heads=size // 64, tie_word_embeddings=False,
    )
    stored, meant = {}, {}
    block = torch.arange(size) // 128
    for name, weight in LlamaForCausalLM(config).float().state_dict().items():
        stored[name] = weight
        if "proj.weight" in name:
            scales = torch.tensor([0.001, 0.03, 0.5, 0.02]).view(2, 2)
            wide = scales[block][:, block]
            stored[name] = (weight / wide).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scales
            meant[name] = stored[name].float() * wide
    folder = pathlib.Path(f"model-{size}")
    folder.mkdir()
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    fields = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    described = {**config.to_dict(), "quantization_config": fields}
    (folder / "config.json").write_text(json.dumps(described))
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=FineGrainedFP8Config(dequantize=True), dtype=torch.float32
    )
    got = model.state_dict()
    return max(float((got[n] - meant[n]).abs().max() / meant[n].abs().max()) for n in meant)


errors = {size: largest_error(size) for size in (256, 192)}
for size, error in errors.items():
    print(f"{size}: {error:.2f}")
sys.exit(not (errors[256] < 0.01 and errors[192] > 0.5))
PYTHON
