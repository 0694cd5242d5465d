"""The draft's file: int8 rows with one fp32 scale each, norms in fp32, and the head's token ids.

Knows the format and nothing of training.
"""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from runtime.embedded.training.llama import Shape, Weights

EMBEDDING = "model.embed_tokens.weight"


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 [rows, columns] and fp32 scales [rows] of an fp32 matrix."""
    scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
    return (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def pack(weights: Weights, head_ids: Tensor) -> Weights:
    """The tensors of the draft's file for fp32 weights, without the target's embedding."""
    out = {"head_ids": head_ids.to(torch.int32)}
    for name, weight in weights.items():
        if name == EMBEDDING:
            continue
        weight = weight.detach().float().contiguous()
        if weight.dim() == 1:
            out[name] = weight
        else:
            out[name], out[f"{name}.scale"] = quantize_rows(weight)
    return out


def unpack(packed: Weights) -> tuple[Weights, Tensor]:
    """fp32 weights and head ids from the tensors of a draft's file."""
    weights = {
        name: value.float() * packed[f"{name}.scale"][:, None] if value.dim() == 2 else value
        for name, value in packed.items()
        if name != "head_ids" and not name.endswith(".scale")
    }
    return weights, packed["head_ids"].long()


def save_draft(folder: Path, weights: Weights, head_ids: Tensor, shape: Shape) -> None:
    """Write draft.safetensors and draft_config.json; a reader never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    draft, config = folder / "draft.safetensors", folder / "draft_config.json"
    save_file(pack(weights, head_ids), f"{draft}.part", {"format": "pt"})
    os.chmod(f"{draft}.part", 0o644)  # safetensors makes files that only their owner can read
    os.replace(f"{draft}.part", draft)
    Path(f"{config}.part").write_text(
        json.dumps(draft_config(shape, len(head_ids)), indent=2) + "\n"
    )
    os.replace(f"{config}.part", config)


def load_draft(path: Path) -> tuple[Weights, Tensor]:
    """fp32 weights and head ids from a draft's file; the embedding is the caller's to add."""
    return unpack(load_file(path))


def draft_config(shape: Shape, head_tokens: int) -> dict[str, object]:
    """A Hugging Face style llama config, with the one field that is ours at the end."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": shape.rope_theta,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_tokens": head_tokens,
    }
