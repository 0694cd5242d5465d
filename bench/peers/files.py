"""GGUF files for the bench: a model in another format, and a Hugging Face checkpoint as GGUF.

Formats are written by gguf's quantiser; those that it can only read, by llama.cpp's.
"""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quant_shape_to_byte_shape, quantize

from bench.llama_cpp import Library
from runtime.model.formats import floats

# Rows of a length that is no multiple of a format's block get what llama.cpp's own tool gives them.
NARROWER = {
    Kind.Q4_K: Kind.Q5_0,
    Kind.Q5_K: Kind.Q5_1,
    Kind.Q6_K: Kind.Q8_0,
    Kind.IQ4_XS: Kind.IQ4_NL,
}
FORMATS = {
    kind.name.lower(): kind
    for kind in (
        *(Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.F16, Kind.BF16),
        *NARROWER,
        *(Kind.IQ4_NL, Kind.MXFP4),
    )
}


def write_as(kind: Kind, source: Path, path: Path) -> str:
    """The model of `source` with all its matrices in another format; what they are in then.

    Each is dequantised first: what the source has lost stays lost.
    """
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, _value(reader, "general.architecture"))
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kinds = field.types
            sub_type = kinds[-1] if kinds[0] is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kinds[0], sub_type)
    counts: dict[str, int] = {}
    for tensor in reader.tensors:
        values, stored = tensor.data, tensor.tensor_type
        if len(tensor.shape) == 2:
            stored = fitting(kind, int(tensor.shape[0]))
            values = quantized(dequantize(tensor.data, tensor.tensor_type), stored)
            counts[stored.name] = counts.get(stored.name, 0) + 1
        writer.add_tensor(tensor.name, values, raw_dtype=stored)
    _finish(writer)
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def write_checkpoint(checkpoint, like: Path, path: Path, kind: Kind) -> None:
    """A llama checkpoint with untied head as GGUF, with the tokenizer of the file `like`.

    A head of fewer tokens than the vocabulary gets rows of zeros for the others: logits of 0.
    """
    config, reader = checkpoint.config, gguf.GGUFReader(like)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    for field in reader.fields.values():
        if field.name.startswith("tokenizer."):
            kinds = field.types
            sub_type = kinds[-1] if kinds[0] is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kinds[0], sub_type)
    for name, values in _llama_tensors(checkpoint):
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
    _finish(writer)


def _llama_tensors(checkpoint) -> Iterator[tuple[str, np.ndarray]]:
    """float32 tensors under llama.cpp's names, in its order of rotated dimensions."""
    config = checkpoint.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.n_layers)
    for name in checkpoint.shapes:
        if name == "head_ids":
            continue
        values = floats(checkpoint.stored(name), torch.float32).numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            halves = values.reshape(-1, 2, config.head_dim // 2, values.shape[1])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        if name == "lm_head.weight" and len(values) != config.vocab_size:
            head = np.zeros((config.vocab_size, values.shape[1]), np.float32)
            head[checkpoint.stored("head_ids").numpy()] = values
            values = head
        stem, suffix = name.rsplit(".", 1)
        yield f"{names.get_name(stem)}.{suffix}", np.ascontiguousarray(values)


def fitting(kind: Kind, inputs: int) -> Kind:
    """The format, or the one that takes its place for rows of this length."""
    block = gguf.GGML_QUANT_SIZES[kind][0]
    return kind if inputs % block == 0 else NARROWER[kind]


def quantized(values: np.ndarray, kind: Kind) -> np.ndarray:
    """float32 [rows, inputs] -> bytes [rows, bytes of a row], or float16 as it is."""
    if kind == Kind.F16:
        return values.astype(np.float16)
    try:
        return quantize(values, kind)
    except NotImplementedError:
        return _by_llama_cpp(values, kind)


def _by_llama_cpp(values: np.ndarray, kind: Kind) -> np.ndarray:
    values = np.ascontiguousarray(values, np.float32)
    blocks = np.empty(quant_shape_to_byte_shape(values.shape, kind), np.uint8)
    written = Library().call.ggml_quantize_chunk(
        *(int(kind), values.ctypes.data_as(ctypes.c_void_p)),
        *(blocks.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(0)),
        *(ctypes.c_int64(values.shape[0]), ctypes.c_int64(values.shape[1]), None),
    )
    assert written == blocks.nbytes, f"{written} bytes of {kind.name}, not {blocks.nbytes}"
    return blocks


def _value(reader: gguf.GGUFReader, name: str) -> str:
    return str(reader.fields[name].contents())


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
