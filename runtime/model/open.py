"""From the options a person gives to a ready engine: device, weights, paged KV."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType

import torch

from runtime.model.adapted import adapt
from runtime.model.adapter import base_of, load_adapter
from runtime.model.checkpoint import open_checkpoint
from runtime.model.config import ModelError, Unsupported
from runtime.model.engine import Engine, Model
from runtime.model.formats import FLOATS
from runtime.model.kv_cache import PagedKV, bytes_per_token
from runtime.model.locate import locate
from runtime.model.parallel import Ranks
from runtime.model.parallel_weights import CheckpointPart
from runtime.model.transformer import Transformer
from runtime.model.weights import Progress
from runtime.model.weights import load as load_own

CPU_KV_TOKENS = 32768  # whose memory is taken as it is written
GPU_SHARE = 0.85  # the rest is for a pass's own tensors and recorded passes
NO_ADAPTERS: Mapping[str, Path] = MappingProxyType({})
DEVICES = "expected auto, cpu, cuda or cuda:N"
KV_DTYPES = {**FLOATS, "float8_e4m3": torch.float8_e4m3fn}


def open_engine(
    name: str,
    weights: str,
    device: str,
    kv_tokens: Callable[[Model], int],
    page_size: int,
    progress: Progress = lambda done_bytes, total_bytes: None,
    kv_dtype: str = "same",
    activations: str = "rounded",
    backend: str = "auto",
    max_context: int = 0,
    batch_invariant: bool = True,
    adapters: Mapping[str, Path] = NO_ADAPTERS,
    ranks: Ranks | None = None,
) -> Engine:
    """Load a model and give it a KV pool of `kv_tokens(model)` tokens, as many as fit if that is 0.

    weights, activations and batch_invariant as for `weights.load`; kv_dtype "same" is the type that
    the model computes in; device is auto, cpu, cuda or cuda:N; backend is "own", "transformers" or
    "auto", which is own for the families it knows; max_context is the longest text that will be
    asked for, 0 for the model's: some models of transformers are set up for it; adapters are paths
    by name, as for `load_adapter`; ranks: with whom the model is shared, all of which open it
    alike. Raises ModelError with a sentence when the model, an adapter, the device or the memory
    cannot be had.
    """
    with nullcontext() if ranks is None else ranks.agreeing():
        options = weights, _device(device, ranks), progress, activations, batch_invariant
        model = _load(name, options, backend, max_context, ranks)
        if adapters:
            _adapt(model, name, adapters)
    stored = model.dtype if kv_dtype == "same" else KV_DTYPES[kv_dtype]
    n_tokens = kv_tokens(model) or _tokens_that_fit(model, stored)
    n_pages = -(-(n_tokens if ranks is None else ranks.least(n_tokens)) // page_size)
    try:
        kv = PagedKV(model.kv_shapes, n_pages, page_size, stored, model.device)
    except (RuntimeError, MemoryError, OSError) as error:
        raise ModelError(
            f"no memory for a KV cache of {n_pages * page_size} tokens; ask for fewer"
        ) from error
    return Engine(model, kv, ranks)


def _adapt(model: Model, name: str, adapters: Mapping[str, Path]) -> None:
    if not isinstance(model, Transformer):
        from runtime.model.backend.model import TransformersModel
        from runtime.model.backend.probe import probe_adapted

        assert isinstance(model, TransformersModel), "there is no third kind"
        adapt(model, [load_adapter(each, path, model.base) for each, path in adapters.items()])
        probe_adapted(model)
        return
    whole = open_checkpoint(name)
    base = base_of(whole.config)
    read = [load_adapter(each, path, base) for each, path in adapters.items()]
    if model.ranks is not None:
        part = CheckpointPart(whole, model.ranks.rank, model.ranks.size)
        read = [adapter.part(part.rows) for adapter in read]
    adapt(model, read)


def vocabulary_size(name: str) -> int:
    """Tokens of a model that is not loaded. Raises ModelError."""
    try:
        return open_checkpoint(name).config.vocab_size
    except Unsupported:
        from runtime.model.backend.skeleton import configuration

        size: int = configuration(locate(name)).get_text_config().vocab_size
        return size


def _load(
    name: str,
    options: tuple[str, torch.device, Progress, str, bool],
    backend: str,
    max_context: int,
    ranks: Ranks | None,
) -> Model:
    try:
        if backend != "transformers":
            return load_own(name, *options, ranks)
    except Unsupported:
        if backend == "own":
            raise
    if ranks is not None:
        raise ModelError(
            f"{name} is run by transformers' modules, which {ranks.size} ranks cannot share; start "
            "it without torchrun"
        )
    from runtime.model.backend.load import load as load_transformers

    folder = locate(name)
    if not folder.is_dir():
        raise ModelError(f"{folder} is a GGUF file, which --backend transformers does not read")
    return load_transformers(folder, *options, max_context)


def _tokens_that_fit(model: Model, dtype: torch.dtype) -> int:
    """Of a GPU what `GPU_SHARE` of its free memory holds, once the model is there."""
    if model.device.type != "cuda":
        return CPU_KV_TOKENS
    free_bytes, _ = torch.cuda.mem_get_info(model.device)
    return max(int(GPU_SHARE * free_bytes) // bytes_per_token(model.kv_shapes, dtype), 1)


def _device(name: str, ranks: Ranks | None) -> torch.device:
    gpus = found_gpus()
    device = device_of(name, gpus)
    if ranks is None or device.type == "cpu":
        return device
    if device.index is not None:
        raise ModelError(f"each of {ranks.size} ranks takes a GPU of its own; give --device cuda")
    if ranks.local_rank >= gpus:
        raise ModelError(f"there is no GPU for local rank {ranks.local_rank} here")
    torch.cuda.set_device(ranks.local_rank)
    return torch.device("cuda", ranks.local_rank)


def found_gpus() -> int:
    """How many GPUs torch can use here."""
    # it may count some whose driver it cannot use
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device_of(name: str, gpus: int) -> torch.device:
    """What auto, cpu, cuda or cuda:N stands for where there are so many GPUs. Raises ModelError."""
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"unknown device {name!r}; {DEVICES}") from error
    if device.type not in ("cpu", "cuda"):
        raise ModelError(f"device {name!r} is not supported; {DEVICES}")
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ModelError(f"device {name!r} was asked for; CUDA GPUs that torch finds here: {gpus}")
    return device
