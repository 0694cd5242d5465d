"""llama.cpp's C interface, which xllamacpp's library exports: layouts, and the calls in use.

xllamacpp itself serves text only. llama.cpp aborts on some of the files it refuses, so whoever
reads doubtful files does it in a process of its own.
"""

import ctypes
from collections.abc import Sequence

import numpy as np

VERSION = "2026.10.11549"  # the layouts below are those of this one


class ModelParams(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("devices", "tensor_buft_overrides")),
        *((name, ctypes.c_int) for name in ("n_gpu_layers", "split_mode", "load_mode")),
        *((name, ctypes.c_int) for name in ("lazy_mode", "main_gpu")),
        *((name, ctypes.c_void_p) for name in ("tensor_split", "progress_callback")),
        *((name, ctypes.c_void_p) for name in ("progress_user_data", "kv_overrides")),
        *((name, ctypes.c_bool) for name in ("vocab_only", "check_tensors", "use_extra_bufts")),
        *((name, ctypes.c_bool) for name in ("no_host", "no_alloc", "load_mtp")),
    )


class ContextParams(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max")),
        *((name, ctypes.c_uint32) for name in ("n_rs_seq", "n_outputs_max", "n_outputs_max_seq")),
        *((name, ctypes.c_int32) for name in ("n_threads", "n_threads_batch", "ctx_type")),
        *((name, ctypes.c_int) for name in ("rope_scaling_type", "pooling_type")),
        *((name, ctypes.c_int) for name in ("attention_type", "flash_attn_type")),
        *((name, ctypes.c_float) for name in ("rope_freq_base", "rope_freq_scale")),
        *((name, ctypes.c_float) for name in ("yarn_ext_factor", "yarn_attn_factor")),
        *((name, ctypes.c_float) for name in ("yarn_beta_fast", "yarn_beta_slow")),
        ("yarn_orig_ctx", ctypes.c_uint32),
        ("defrag_thold", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("cb_eval", "cb_eval_user_data")),
        *((name, ctypes.c_int) for name in ("type_k", "type_v")),
        ("moe_cache_size", ctypes.c_size_t),
        *((name, ctypes.c_void_p) for name in ("abort_callback", "abort_callback_data")),
        *((name, ctypes.c_bool) for name in ("embeddings", "offload_kqv", "no_perf", "op_offload")),
        *((name, ctypes.c_bool) for name in ("swa_full", "kv_unified")),
        ("samplers", ctypes.c_void_p),
        ("n_samplers", ctypes.c_size_t),
        ("ctx_other", ctypes.c_void_p),
    )


class Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
LOG_ERROR = 4


class Library:
    """The loaded library. `call` has its functions; `errors` is what it has complained about."""

    def __init__(self) -> None:
        import xllamacpp

        assert xllamacpp.__version__ == VERSION, "another llama.cpp: compare include/llama.h"
        self.call = library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
        library.llama_model_default_params.restype = ModelParams
        library.llama_context_default_params.restype = ContextParams
        library.llama_batch_init.restype = Batch
        library.llama_get_logits.restype = ctypes.POINTER(ctypes.c_float)
        library.llama_vocab_is_eog.restype = ctypes.c_bool
        library.llama_memory_seq_rm.restype = ctypes.c_bool
        library.llama_print_system_info.restype = ctypes.c_char_p
        library.ggml_quantize_chunk.restype = ctypes.c_size_t
        pointers = ("model_load_from_file", "init_from_model", "model_get_vocab", "get_memory")
        for name in pointers:
            getattr(library, f"llama_{name}").restype = ctypes.c_void_p
        self.errors: list[str] = []
        self._log = LogCallback(self._keep_errors)
        library.llama_log_set(self._log, None)
        library.llama_backend_init()

    def _keep_errors(self, level: int, text: bytes, _user_data: object) -> None:
        if level == LOG_ERROR:
            self.errors.append(text.decode(errors="replace").strip())

    def load(self, path: str, params: ModelParams) -> ctypes.c_void_p:
        """The model in a file; a null pointer, and `errors`, if it does not load."""
        self.errors.clear()
        return ctypes.c_void_p(self.call.llama_model_load_from_file(path.encode(), params))

    def context(self, model: ctypes.c_void_p, params: ContextParams) -> ctypes.c_void_p:
        """Room for texts of a loaded model; null, and `errors`, if it cannot be had."""
        return ctypes.c_void_p(self.call.llama_init_from_model(model, params))

    def context_params(self) -> ContextParams:
        """The library's own choices, after checking that they are where they should be."""
        params = self.call.llama_context_default_params()
        assert (params.n_batch, params.type_k, params.defrag_thold) == (2048, 1, -1.0), "layout"
        return params

    def vocab_size(self, model: ctypes.c_void_p) -> int:
        """Tokens of a loaded model."""
        vocab = ctypes.c_void_p(self.call.llama_model_get_vocab(model))
        return self.call.llama_vocab_n_tokens(vocab)


def fill(batch: Batch, tokens: Sequence[int], position: int, all_logits: bool) -> None:
    """Make the batch one text's tokens from a position on, wanting the last or all logits."""
    batch.n_tokens = len(tokens)
    for index, token in enumerate(tokens):
        batch.token[index], batch.pos[index] = token, position + index
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
        batch.logits[index] = all_logits or index == len(tokens) - 1


def logits(library: Library, context: ctypes.c_void_p, rows: int, vocab_size: int) -> np.ndarray:
    """float32 [rows, vocab_size] of the last batch; gone with the next one."""
    return np.ctypeslib.as_array(library.call.llama_get_logits(context), (rows, vocab_size))
