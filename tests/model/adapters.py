"""Adapters made by hand as peft and llama.cpp save them, and what they mean: W + s B A."""

import json
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from runtime.model.gguf import _LAYER_NAMES

Pairs = dict[str, tuple[Tensor, Tensor]]  # A [R, K] and B [M, R] by module
EVERYTHING = tuple(
    [f"self_attn.{part}_proj" for part in "qkvo"]
    + [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
)


def random_pairs(
    model: torch.nn.Module,
    parts: Sequence[str],
    rank: Mapping[str, int] | int,
    seed: int,
    size: float = 0.3,
) -> Pairs:
    """Pairs for every module whose name ends with one of the parts; rank by the last part."""
    generator, pairs = torch.Generator().manual_seed(seed), {}
    for name, module in model.named_modules():
        if not name.endswith(tuple(parts)) or "experts" in name:
            continue
        r = rank if isinstance(rank, int) else rank[name.split(".")[-1]]
        weight = module.weight.T if isinstance(module, Conv1D) else module.weight
        outputs, inputs = weight.shape
        a = torch.randn(r, inputs, generator=generator) * size
        pairs[name] = a, torch.randn(outputs, r, generator=generator) * size
    return pairs


def save_folder(folder: Path, pairs: Pairs, **fields: Any) -> Path:
    """As peft's save_pretrained does."""
    folder.mkdir(parents=True, exist_ok=True)
    targets = sorted({name.split(".")[-1] for name in pairs})
    first = next(iter(pairs.values()))[0] if pairs else torch.empty(1)
    config = {"peft_type": "LORA", "r": len(first), "lora_alpha": 8, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps({**config, **fields}))
    tensors = {}
    for name, (a, b) in pairs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@torch.no_grad()
def merged(model: torch.nn.Module, pairs: Pairs, scale: Mapping[str, float] | float) -> Any:
    """The model with W + s B A in place of W; scale by module."""
    whole = deepcopy(model)
    for name, (a, b) in pairs.items():
        s = scale if isinstance(scale, float | int) else scale[name]
        module, added = whole.get_submodule(name), s * (b.double() @ a.double()).float()
        module.weight += added.T if isinstance(module, Conv1D) else added
    return whole


def by_alpha(pairs: Pairs, alpha: float, root: bool = False) -> dict[str, float]:
    """The factors of one alpha for all modules, by rank or by its root."""
    return {name: alpha / (math.sqrt(len(a)) if root else len(a)) for name, (a, _) in pairs.items()}


def save_gguf(
    path: Path, pairs: Pairs, head_dim: int, architecture: str = "llama", **metadata: Any
) -> Path:
    """As llama.cpp's convert_lora_to_gguf.py does: the rows of llama's queries and keys paired."""
    from gguf import GGUFWriter

    names = {theirs: ours for ours, theirs in _LAYER_NAMES.items()}
    writer = GGUFWriter(path, architecture)
    fields = {"general.type": "adapter", "adapter.type": "lora", **metadata}
    for key, value in fields.items():
        if value is not None:
            (writer.add_string if isinstance(value, str) else writer.add_float32)(key, value)
    for module, (a, b) in pairs.items():
        _, _, layer, part = module.split(".", 3)
        stem = f"blk.{layer}.{names[part]}.weight"
        if architecture == "llama" and part.endswith(("q_proj", "k_proj")):
            b = b.view(-1, 2, head_dim // 2, b.shape[1]).transpose(1, 2).reshape(b.shape)
        writer.add_tensor(f"{stem}.lora_a", a.numpy())
        writer.add_tensor(f"{stem}.lora_b", b.contiguous().numpy())
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file):
        write()
    writer.write_tensors_to_file()
    writer.close()
    return path
