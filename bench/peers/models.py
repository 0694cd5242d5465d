"""The same model in three engines, behind the same three verbs.

A text is read, stepped on by rows that follow each other, and cut back. Each engine runs as it does
when nobody tells it otherwise, but for threads and room; each is imported where it is used, so that
a process has one of them.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

CONTEXT_TOKENS, PAGE_TOKENS = 1024, 16


class Model(Protocol):
    """A loaded model and one text."""

    @staticmethod
    def imports() -> None:
        """Everything that is imported to run a model, whose memory is not the model's."""
        ...

    def step(self, ids: Sequence[int], all_logits: bool = True) -> np.ndarray:
        """Put ids behind the text; float32 logits [len(ids) or 1, V], valid until the next step."""
        ...

    def cut(self, length: int) -> None:
        """Forget the text from here on."""
        ...

    @property
    def version(self) -> str:
        """Of the engine, with what it says of the instructions it uses."""
        ...


class SpecEdge:
    """Our engine, as the server and the edge use it."""

    @staticmethod
    def imports() -> None:
        import gguf  # noqa: F401

        import runtime.model.open  # noqa: F401

    def __init__(self, path: Path, threads: int) -> None:
        import torch

        from runtime.model.open import open_engine

        torch.set_num_threads(threads)
        self._engine = open_engine(
            str(path), "stored", "cpu", lambda model: CONTEXT_TOKENS, PAGE_TOKENS
        )
        self._pages = self._engine.kv.allocate(CONTEXT_TOKENS // PAGE_TOKENS)
        self._length = 0

    def step(self, ids: Sequence[int], all_logits: bool = True) -> np.ndarray:
        from runtime.model.engine import TreeRequest

        count, parents = len(ids), range(-1, len(ids) - 1)
        wanted = range(0 if all_logits else count - 1, count)
        request = TreeRequest(ids, parents, self._length, self._pages, wanted)
        self._length += count
        return self._engine.forward([request]).numpy()

    def cut(self, length: int) -> None:
        self._length = length

    @property
    def version(self) -> str:
        from importlib.metadata import version

        from specedge_kernels import _cpu

        return f"{version('specedge')} ({_cpu.isa()})"


class LlamaCpp:
    """llama.cpp with the settings it has by itself: repacked weights, flash attention, F16 keys."""

    @staticmethod
    def imports() -> None:
        import bench.llama_cpp

        bench.llama_cpp.Library()

    def __init__(self, path: Path, threads: int) -> None:
        from bench.llama_cpp import Library

        self._library = library = Library()
        model = library.load(str(path), library.call.llama_model_default_params())
        params = library.context_params()
        params.n_ctx, params.n_batch = CONTEXT_TOKENS, CONTEXT_TOKENS
        params.n_threads = params.n_threads_batch = threads
        self._context = library.context(model, params) if model else model
        if not self._context:
            raise ValueError(f"llama.cpp does not run {path}: {' / '.join(library.errors)}")
        self._memory = ctypes.c_void_p(library.call.llama_get_memory(self._context))
        self._vocab_size = library.vocab_size(model)
        self._batch = library.call.llama_batch_init(CONTEXT_TOKENS, 0, 1)
        self._length = 0

    def step(self, ids: Sequence[int], all_logits: bool = True) -> np.ndarray:
        from bench.llama_cpp import fill, logits

        fill(self._batch, ids, self._length, all_logits)
        status = self._library.call.llama_decode(self._context, self._batch)
        assert status == 0, self._library.errors
        self._length += len(ids)
        rows = len(ids) if all_logits else 1
        return logits(self._library, self._context, rows, self._vocab_size)

    def cut(self, length: int) -> None:
        self._length = length
        self._library.call.llama_memory_seq_rm(self._memory, 0, length, -1)

    @property
    def version(self) -> str:
        from bench.llama_cpp import VERSION

        said = self._library.call.llama_print_system_info().decode()
        features = [part.split("=")[0].strip() for part in said.split(":", 1)[-1].split("|")]
        return f"xllamacpp {VERSION} ({' '.join(filter(None, features))})"


class Transformers:
    """transformers' llama in float32 over the dequantised weights: the judge of the texts."""

    @staticmethod
    def imports() -> None:
        import transformers.models.llama.modeling_llama  # noqa: F401

    def __init__(self, path: Path, threads: int) -> None:
        import warnings

        import torch
        from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

        from runtime.model.gguf import GgufFile

        # the name that the cache has in all versions
        warnings.filterwarnings("ignore", "`past_key_values` is deprecated", FutureWarning)
        torch.set_num_threads(threads)
        file = GgufFile(path)
        config = LlamaConfig(**_shape(file))
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
        weights = {name: file.read(name).float() for name in file.shapes}
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
        model.load_state_dict(weights, assign=True)
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
        self._model, self._cache = model.eval(), DynamicCache()

    def step(self, ids: Sequence[int], all_logits: bool = True) -> np.ndarray:
        import torch

        with torch.inference_mode():
            kept = 0 if all_logits else 1  # 0 is all of them
            out = self._model(
                torch.tensor([list(ids)]), past_key_values=self._cache, logits_to_keep=kept
            )
        return out.logits[0].numpy()

    def cut(self, length: int) -> None:
        if length == 0:
            self._cache = type(self._cache)()
        elif surplus := self._cache.get_seq_length() - length:
            self._cache.crop(-surplus)

    @property
    def version(self) -> str:
        import torch
        import transformers

        return f"{transformers.__version__} (torch {torch.__version__})"


def _shape(file) -> dict[str, object]:
    """What transformers calls the numbers of a llama."""
    config = file.config
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_context,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tied_embedding,
    }


MODELS = {"specedge": SpecEdge, "llama.cpp": LlamaCpp, "transformers": Transformers}
