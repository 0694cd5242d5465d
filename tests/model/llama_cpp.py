"""Logits by llama.cpp, which the GGUF loader is held against.

It runs in a process of its own, because llama.cpp aborts on some of the files it refuses.
"""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.llama_cpp import ContextParams, Library, fill, logits

ROOT = Path(__file__).parents[2]


class LlamaCpp:
    """llama.cpp in its process, which is started again after an abort."""

    def __init__(self) -> None:
        self._worker: subprocess.Popen[bytes] | None = None

    def logits(
        self, path: Path, tokens: Sequence[int], adapter: Path | None = None
    ) -> np.ndarray | str:
        """float32 [len(tokens), V] after every token, or why the file does not load."""
        if self._worker is None:
            self._worker = _start()
        request, answer = self._worker.stdin, self._worker.stdout
        assert request is not None
        assert answer is not None
        asked = {"path": str(path), "tokens": list(tokens), "adapter": adapter and str(adapter)}
        request.write(json.dumps(asked).encode() + b"\n")
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

    def close(self) -> None:
        """End the process, if there is one."""
        if self._worker is not None:
            self._worker.communicate()
            self._worker = None


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.model.llama_cpp"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
    )


FLASH_ATTENTION_DISABLED, F32 = 0, 0


def logits_of(
    library: Library, path: str, tokens: list[int], adapter: str | None
) -> np.ndarray | str:
    """F32 keys and values and no flash attention: no rounding."""
    call, params = library.call, library.call.llama_model_default_params()
    params.use_extra_bufts = False
    model = library.load(path, params)
    if not model:
        return " / ".join(library.errors)
    context = library.context(model, exact(library, len(tokens)))
    if not context:
        call.llama_model_free(model)
        return " / ".join(library.errors)
    if adapter is not None:
        add_adapter(library, model, context, adapter)
    batch = call.llama_batch_init(len(tokens), 0, 1)
    fill(batch, tokens, 0, all_logits=True)
    assert call.llama_decode(context, batch) == 0, library.errors
    rows = logits(library, context, len(tokens), library.vocab_size(model)).copy()
    call.llama_batch_free(batch)
    call.llama_free(context)
    call.llama_model_free(model)
    return rows


def add_adapter(library: Library, model: Any, context: Any, path: str) -> None:
    """At the scale that the file says; it is freed with the model."""
    call, pointer = library.call, ctypes.c_void_p
    call.llama_adapter_lora_init.restype = pointer
    call.llama_adapter_lora_init.argtypes = [pointer, ctypes.c_char_p]
    adapter = call.llama_adapter_lora_init(model, path.encode())
    assert adapter, library.errors
    call.llama_set_adapters_lora.argtypes = [pointer, pointer, ctypes.c_size_t, pointer]
    given = (pointer * 1)(adapter), 1, (ctypes.c_float * 1)(1.0)
    assert call.llama_set_adapters_lora(context, *given) == 0, library.errors


def exact(library: Library, n_tokens: int) -> ContextParams:
    params = library.context_params()
    params.n_ctx = params.n_batch = params.n_ubatch = n_tokens
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = F32
    params.flash_attn_type = FLASH_ATTENTION_DISABLED
    return params


def serve() -> None:
    """One request a line; the answer is a line, and then the logits."""
    library = Library()
    for line in sys.stdin:
        rows = logits_of(library, **json.loads(line))
        refused = isinstance(rows, str)
        head = {"refused": rows} if refused else {"vocab_size": rows.shape[1]}
        sys.stdout.buffer.write(json.dumps(head).encode() + b"\n")
        sys.stdout.buffer.write(b"" if refused else rows.tobytes())
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve()
