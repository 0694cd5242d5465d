"""Small random GGUF files, written field by field and tensor by tensor with the gguf package."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType as ValueType
from gguf.quants import dequantize, quant_shape_to_byte_shape, quantize

ARCHITECTURES = ("llama", "qwen2", "qwen3")
VOCAB, CONTEXT = 48, 64


@dataclass(frozen=True)
class Sizes:
    n_layers: int = 2
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 16
    hidden_size: int = 64
    mlp: int = 96


@dataclass
class Case:
    """A file to be written. Fields without a dot in front get the architecture's prefix."""

    architecture: str
    sizes: Sizes
    random: np.random.Generator
    fields: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    kinds: dict[str, Kind] = field(default_factory=dict)
    blocks: dict[str, np.ndarray] = field(default_factory=dict)  # in place of a tensor's numbers
    split_tensors: int = 0  # of a part; 0 for one file
    patch: Callable[[bytes], bytes] = lambda content: content

    def normal(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        return self.random.normal(0, scale, shape).astype(np.float32)

    def layers(self, part: str) -> list[str]:
        return [f"blk.{layer}.{part}" for layer in range(self.sizes.n_layers)]

    def add_biases(self, part: str, size: int) -> None:
        for name in self.layers(f"{part}.bias"):
            self.tensors[name] = self.normal(size)


def base(architecture: str, sizes: Sizes, random: np.random.Generator) -> Case:
    case = Case(architecture, sizes, random)
    case.fields = {
        "vocab_size": VOCAB,
        "context_length": CONTEXT,
        "embedding_length": sizes.hidden_size,
        "block_count": sizes.n_layers,
        "feed_forward_length": sizes.mlp,
        "attention.head_count": sizes.n_heads,
        "attention.head_count_kv": sizes.n_kv_heads,
        "attention.key_length": sizes.head_dim,
        "attention.value_length": sizes.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
        ".tokenizer.ggml.model": "no_vocab",
    }
    wide, narrow = sizes.n_heads * sizes.head_dim, sizes.n_kv_heads * sizes.head_dim
    hidden, mlp = sizes.hidden_size, sizes.mlp
    parts = {
        "attn_q": (wide, hidden),
        "attn_k": (narrow, hidden),
        "attn_v": (narrow, hidden),
        "attn_output": (hidden, wide),
        "ffn_gate": (mlp, hidden),
        "ffn_up": (mlp, hidden),
        "ffn_down": (hidden, mlp),
        "attn_norm": (hidden,),
        "ffn_norm": (hidden,),
    }
    if architecture == "qwen3":
        parts |= {"attn_q_norm": (sizes.head_dim,), "attn_k_norm": (sizes.head_dim,)}
    shapes = {"token_embd.weight": (VOCAB, hidden), "output.weight": (VOCAB, hidden)}
    shapes |= {f"{name}.weight": parts[part] for part in parts for name in case.layers(part)}
    shapes["output_norm.weight"] = (hidden,)
    for name, shape in shapes.items():
        # so that attention looks at several tokens, and a rounded weight changes little
        scale = 0.3 if len(shape) == 1 else 2 / shape[1] ** 0.5
        case.tensors[name] = case.normal(*shape, scale=scale) + (len(shape) == 1)
    return case


def write(case: Case, path: Path) -> Path:
    """Writes the file, or its parts next to `path`; what is to be loaded."""
    writer = gguf.GGUFWriter(path, case.architecture, split_max_tensors=case.split_tensors)
    if case.split_tensors:
        # the writer aligns all parts, but says so in the first one only
        case.fields.pop(".general.alignment", None)
    for key, value in case.fields.items():
        name = key[1:] if key.startswith(".") else f"{case.architecture}.{key}"
        writer.add_key_value(name, value, value_type(value))
        if name == "general.alignment":
            writer.data_alignment = value
    for name, values in case.tensors.items():
        kind = case.kinds.get(name)
        if name in case.blocks:
            stored = case.blocks[name]
        else:
            rows = values.reshape(-1, values.shape[-1])
            stored = rows if kind is None else stored_as(kind, rows, case.random)
            stored = stored.reshape(*values.shape[:-1], -1)
        writer.add_tensor(name, np.ascontiguousarray(stored), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    first = path if len(writer.tensors) == 1 else part(path, 1, len(writer.tensors))
    first.write_bytes(case.patch(first.read_bytes()))
    return first


def part(path: Path, number: int, count: int) -> Path:
    return path.with_name(f"{path.stem}-{number:05d}-of-{count:05d}.gguf")


def value_type(value: Any) -> ValueType:
    kinds = {bool: ValueType.BOOL, int: ValueType.UINT32, float: ValueType.FLOAT32}
    return {**kinds, str: ValueType.STRING, list: ValueType.ARRAY}[type(value)]


def stored_as(kind: Kind, values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The values' blocks; random blocks of sane numbers for kinds that are only decoded here."""
    if kind == Kind.F16:
        return values.astype(np.float16)
    try:
        return quantize(values, kind)
    except NotImplementedError:
        rows, n_bytes = quant_shape_to_byte_shape(values.shape, kind)
        blocks = random.integers(0, 256, (40 * rows, n_bytes), np.uint8)
        with np.errstate(all="ignore"):
            decoded = dequantize(blocks, kind)
            good = np.isfinite(decoded).all(1) & (abs(decoded).max(1) < 1e4)
        assert good.sum() >= rows, f"too few sane blocks of {kind.name}"
        return blocks[good][:rows]
