"""Whether a model fits into the memory there is: its weights as they run, and its KV cache.

Reads the model's description and the sizes of its tensors, not the tensors.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from runtime.config import EdgeConfig
from runtime.doctor.finding import Finding, fault, ok
from runtime.edge.loading import CONTEXT_TOKENS
from runtime.model.checkpoint import open_checkpoint
from runtime.model.config import KVShape, ModelError, Unsupported
from runtime.model.folder import EMBEDDING
from runtime.model.formats import FLOATS, KINDS
from runtime.model.kv_cache import bytes_per_token
from runtime.model.locate import locate
from runtime.model.open import CPU_KV_TOKENS, GPU_SHARE, KV_DTYPES, device_of, found_gpus
from runtime.model.weights import STORED, expected_shapes
from runtime.system import free_memory_bytes
from specedge_kernels.quantized import FORMS

MIB = 2**20
SMALLER = "take a smaller model, fewer --kv-tokens, or fewer bits: --weights, --kv-dtype"


@dataclass(frozen=True)
class Need:
    """Memory that a model takes, in bytes."""

    weights_bytes: int
    token_bytes: int  # of keys and values
    tokens: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.tokens * self.token_bytes


def look(topic: str, name: str, config: EdgeConfig) -> Finding:
    """Of the model `name`, as a server's "model" or an edge's "draft"."""
    try:
        device = device_of(config.device, found_gpus())
    except ModelError as error:
        return fault(topic, str(error), "name another one with --device, or leave it out")
    on_gpu = device.type == "cuda"
    free_bytes = _free_gpu_bytes(device) if on_gpu else free_memory_bytes()
    try:
        model = described(name)
        need = needed(model, config.weights, config.kv_dtype, on_gpu)
    except ModelError as error:
        return fault(topic, str(error), f"name another one with --{topic}")
    if topic == "draft":
        tokens = min(model.max_context, CONTEXT_TOKENS)
    else:
        tokens = tokens_that_fit(need, free_bytes) if on_gpu and free_bytes else CPU_KV_TOKENS
    return told(topic, name, replace(need, tokens=tokens), free_bytes)


def _free_gpu_bytes(device: torch.device) -> int | None:
    """None where it cannot be used, of which the machine's own finding tells."""
    try:
        return torch.cuda.mem_get_info(device)[0]
    except RuntimeError:
        return None


class Sizes(Protocol):
    """Of tensors by name."""

    def n_bytes(self, name: str) -> int:
        """In the files."""

    def running_bytes(self, name: str) -> int:
        """On a CPU."""


@dataclass(frozen=True)
class Model:
    """One that is not loaded."""

    shapes: Mapping[str, tuple[int, ...]]
    sizes: Sizes
    kv_shapes: tuple[KVShape, ...]
    max_context: int
    embedding: str


def described(name: str) -> Model:
    """Whatever runs it, our own code or transformers' modules. Raises ModelError."""
    try:
        checkpoint = open_checkpoint(name)
    except Unsupported:
        from runtime.model.backend.load import describe

        of_folder = describe(locate(name))
        sizes = of_folder.weights
        return Model(sizes.shapes, sizes, *of_folder[1:])
    shapes = expected_shapes(checkpoint.config)
    if missing := [name for name in shapes if name not in checkpoint.shapes]:
        raise ModelError(f"tensor {missing[0]} is missing")
    config = checkpoint.config
    return Model(shapes, checkpoint, config.kv_shapes, config.max_context, EMBEDDING)


def needed(model: Model, weights: str, kv_dtype: str, on_gpu: bool) -> Need:
    """Of a model with one token."""
    shapes = model.shapes
    dtype = _computed(model, weights) if on_gpu else torch.float32
    if weights in KINDS:
        total = sum(_packed_bytes(shape, KINDS[weights]) for shape in shapes.values())
    elif weights == STORED and not on_gpu:
        total = sum(map(model.sizes.running_bytes, shapes))
    elif weights == STORED:
        total = sum(_gpu_bytes(model, name, dtype) for name in shapes)
    else:
        itemsize = FLOATS.get(weights, dtype).itemsize
        total = itemsize * sum(math.prod(shape) for shape in shapes.values())
    stored = dtype if kv_dtype == "same" else KV_DTYPES[kv_dtype]
    return Need(total, bytes_per_token(model.kv_shapes, stored), 1)


def tokens_that_fit(need: Need, free_bytes: int) -> int:
    """What `--kv-tokens auto` makes of a GPU's free memory, with the weights in it."""
    left_bytes = max(free_bytes - need.weights_bytes, 0)
    return max(int(GPU_SHARE * left_bytes) // need.token_bytes, 1)


def told(topic: str, name: str, need: Need, free_bytes: int | None) -> Finding:
    weights, kv = need.weights_bytes, need.tokens * need.token_bytes
    sentence = (
        f"{name}: {weights / MIB:.0f} MiB of weights, {kv / MIB:.0f} MiB of keys and values for "
        f"{need.tokens} tokens"
    )
    figures = {"weights_bytes": weights, "kv_bytes": kv, "free_bytes": free_bytes}
    if free_bytes is not None and need.total_bytes > free_bytes:
        sentence += f"; only {free_bytes / MIB:.0f} MiB are free"
        return fault(topic, sentence, SMALLER, **figures)
    return ok(topic, sentence, **figures)


def _computed(model: Model, weights: str) -> torch.dtype:
    """The type in which a GPU has the weights: as stored, bfloat16 if they are quantised."""
    n_weights = math.prod(model.shapes[model.embedding])
    is_float32 = model.sizes.n_bytes(model.embedding) == 4 * n_weights
    return FLOATS.get(weights, torch.float32 if is_float32 else torch.bfloat16)


def _gpu_bytes(model: Model, name: str, dtype: torch.dtype) -> int:
    """Of a tensor as it is stored: what is quantised as on a CPU, floats of one type.

    An embedding is floats, but where it is the head too.
    """
    n_weights, n_bytes = math.prod(model.shapes[name]), model.sizes.running_bytes(name)
    is_quantised = n_bytes < 2 * n_weights and name != model.embedding
    return n_bytes if is_quantised else dtype.itemsize * n_weights


def _packed_bytes(shape: tuple[int, ...], kind: int) -> int:
    """Of a matrix that is quantised; vectors stay float32."""
    if len(shape) < 2:
        return 4 * math.prod(shape)
    *outputs, inputs = shape  # of experts, all outputs
    return FORMS[kind].packed_bytes(math.prod(outputs), inputs)
