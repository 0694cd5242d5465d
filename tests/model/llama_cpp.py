"""Logits by llama.cpp, which the GGUF loader is held against.

xllamacpp serves text only, but its library exports llama.cpp's C interface, which is called here.
It runs in a process of its own, because llama.cpp aborts on some of the files it refuses.
"""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

VERSION = "2026.10.11549"  # the layouts below are those of this one
ROOT = Path(__file__).parents[2]


class LlamaCpp:
    """llama.cpp in its process, which is started again after an abort."""

    def __init__(self) -> None:
        self._worker: subprocess.Popen[bytes] | None = None

    def logits(self, path: Path, tokens: Sequence[int]) -> np.ndarray | str:
        """float32 [len(tokens), V] after every token, or why the file does not load."""
        if self._worker is None:
            self._worker = _start()
        request, answer = self._worker.stdin, self._worker.stdout
        assert request is not None
        assert answer is not None
        request.write(json.dumps({"path": str(path), "tokens": list(tokens)}).encode() + b"\n")
        request.flush()
        line = answer.readline()
        if not line:
            self._worker.wait()
            self._worker = None
            return "aborted"
        reply = json.loads(line)
        if "refused" in reply:
            return str(reply["refused"])
        count = len(tokens) * reply["vocab_size"]
        return np.frombuffer(answer.read(4 * count), np.float32).reshape(len(tokens), -1)


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.model.llama_cpp"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
    )


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
LOG_ERROR, FLASH_ATTENTION_DISABLED, F32 = 4, 0, 0


class Library:
    """The functions that are needed. F32 keys and values and no flash attention: no rounding."""

    def __init__(self) -> None:
        import xllamacpp

        assert xllamacpp.__version__ == VERSION, "another llama.cpp: compare include/llama.h"
        self.call = library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
        library.llama_model_default_params.restype = ModelParams
        library.llama_context_default_params.restype = ContextParams
        library.llama_batch_init.restype = Batch
        library.llama_get_logits.restype = ctypes.POINTER(ctypes.c_float)
        for name in ("model_load_from_file", "init_from_model", "model_get_vocab"):
            getattr(library, f"llama_{name}").restype = ctypes.c_void_p
        self.errors: list[str] = []
        self._log = LogCallback(self._keep_errors)
        library.llama_log_set(self._log, None)
        library.llama_backend_init()

    def _keep_errors(self, level: int, text: bytes, _user_data: object) -> None:
        if level == LOG_ERROR:
            self.errors.append(text.decode(errors="replace").strip())

    def load(self, path: str) -> ctypes.c_void_p:
        params = self.call.llama_model_default_params()
        params.use_extra_bufts = False
        return ctypes.c_void_p(self.call.llama_model_load_from_file(path.encode(), params))

    def context(self, model: ctypes.c_void_p, n_tokens: int) -> ctypes.c_void_p:
        params = self.call.llama_context_default_params()
        assert (params.n_batch, params.type_k, params.defrag_thold) == (2048, 1, -1.0), "layout"
        params.n_ctx = params.n_batch = params.n_ubatch = n_tokens
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = F32
        params.flash_attn_type = FLASH_ATTENTION_DISABLED
        return ctypes.c_void_p(self.call.llama_init_from_model(model, params))

    def logits(self, path: str, tokens: list[int]) -> np.ndarray | str:
        self.errors.clear()
        model = self.load(path)
        if not model:
            return " / ".join(self.errors)
        context = self.context(model, len(tokens))
        if not context:
            self.call.llama_model_free(model)
            return " / ".join(self.errors)
        vocab = ctypes.c_void_p(self.call.llama_model_get_vocab(model))
        vocab_size = self.call.llama_vocab_n_tokens(vocab)
        batch = self.call.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index], batch.pos[index] = token, index
            batch.n_seq_id[index], batch.seq_id[index][0], batch.logits[index] = 1, 0, 1
        assert self.call.llama_decode(context, batch) == 0, self.errors
        rows = np.ctypeslib.as_array(
            self.call.llama_get_logits(context), (len(tokens), vocab_size)
        ).copy()
        self.call.llama_batch_free(batch)
        self.call.llama_free(context)
        self.call.llama_model_free(model)
        return rows


def serve() -> None:
    """One request a line; the answer is a line, and then the logits."""
    library = Library()
    for line in sys.stdin:
        logits = library.logits(**json.loads(line))
        refused = isinstance(logits, str)
        head = {"refused": logits} if refused else {"vocab_size": logits.shape[1]}
        sys.stdout.buffer.write(json.dumps(head).encode() + b"\n")
        sys.stdout.buffer.write(b"" if refused else logits.tobytes())
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve()
