#!/usr/bin/env bash
# transformers 5.24.0 with gguf 0.19.0: from_pretrained(folder, gguf_file=...) of a "llama" file keeps the
# base of the rotary positions and drops their scaling: the metadata rope.scaling.* (linear, YaRN) as well as
# the tensor rope_freqs.weight, in which llama.cpp's converter puts the factors of Llama 3.1 and later. The
# model is made with plain positions, without a warning, and other logits from the second token on, so it is
# no reference for another reader of the file. llama.cpp applies both. The same weights in a file without a
# scaling come back as they were written.
#
# Seen (written: as loaded; whether the logits of the first and of the second token are the written model's):
#   default: default; True, True
#   linear: default; True, False
#   yarn: default; True, False
#   llama3: default; True, False
# Exits non-zero where this no longer holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
"$pip" install -q 'torch==2.13.0+cpu' 2>/dev/null || "$pip" install -q 'torch>=2.9'
"$pip" install -q transformers==5.24.0 gguf==0.19.0 accelerate==1.15.0
cd "$folder"
HF_HUB_OFFLINE=1 TQDM_DISABLE=1 "$folder/venv/bin/python" - <<'PYTHON'
import gguf
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

HEADS, HEAD, WIDTH, CONTEXT, BASE = 2, 16, 32, 512, 10000.0
YARN = {"factor": 4.0, "original_max_position_embeddings": 128}
SCALINGS = {
    "default": {},
    "linear": {"factor": 4.0},
    "yarn": YARN,
    "llama3": {**YARN, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
}


def model_of(kind):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5, initializer_range=0.5, tie_word_embeddings=False,
        rope_parameters={"rope_type": kind, "rope_theta": BASE, **SCALINGS[kind]},
    )
    return LlamaForCausalLM(config).eval()


def write(model, kind):
    """As llama.cpp's converter does: its names, and the rows of queries and keys in its order."""
    writer = gguf.GGUFWriter("model.gguf", "llama")
    writer.add_name("tiny")
    writer.add_vocab_size(64)
    writer.add_context_length(CONTEXT)
    writer.add_block_count(1)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(BASE)
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(4.0)
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(128)
    if kind == "llama3":
        plain = BASE ** (-torch.arange(0, HEAD, 2) / HEAD)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq).numpy())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    for name, weight in model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = weight.view(HEADS, 2, HEAD // 2, WIDTH).transpose(1, 2).reshape(weight.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


seen = {}
for kind in SCALINGS:
    model = model_of(kind)
    write(model, kind)
    loaded = AutoModelForCausalLM.from_pretrained(".", gguf_file="model.gguf", dtype=torch.float32).eval()
    with torch.no_grad():
        wanted, got = (one(torch.tensor([[5, 7]])).logits[0] for one in (model, loaded))
    same = [torch.allclose(*rows, atol=1e-4) for rows in zip(wanted, got, strict=True)]
    seen[kind] = loaded.config.rope_parameters["rope_type"], *same
    print(f"{kind}: {seen[kind][0]}; {same[0]}, {same[1]}")
assert seen == {kind: ("default", True, kind == "default") for kind in SCALINGS}, "it has changed"
PYTHON
