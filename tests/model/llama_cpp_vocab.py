"""Ids, texts and stops by llama.cpp, which the tokenizers of GGUF files are held against.

It runs in a process of its own, because llama.cpp aborts on some of the files it refuses.
"""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.llama_cpp import Library

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Reading:
    """What llama.cpp makes of a file.

    ids: of every text, with the first and last token that the file wants, special tokens found.
    pieces: the bytes of every token, None for those that are no part of a text.
    """

    ids: list[list[int]]
    pieces: list[bytes]
    stop_ids: set[int]


class LlamaCpp:
    """llama.cpp in its process, which is started again after an abort."""

    def __init__(self) -> None:
        self._worker: subprocess.Popen[str] | None = None

    def read(self, path: Path, texts: Sequence[str]) -> Reading | str:
        """What it makes of the file and the texts, or why it does not load the file."""
        if self._worker is None:
            self._worker = subprocess.Popen(
                [sys.executable, "-m", "tests.model.llama_cpp_vocab"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=ROOT,
                env={**os.environ, "GGML_NO_BACKTRACE": "1"},
            )
        request, answer = self._worker.stdin, self._worker.stdout
        assert request is not None
        assert answer is not None
        request.write(json.dumps({"path": str(path), "texts": list(texts)}) + "\n")
        request.flush()
        line = answer.readline()
        if not line:
            self._worker.communicate()
            self._worker = None
            return "aborted"
        reply = json.loads(line)
        if "refused" in reply:
            return str(reply["refused"])
        pieces = [bytes.fromhex(piece) for piece in reply["pieces"]]
        return Reading(reply["ids"], pieces, set(reply["stop_ids"]))

    def close(self) -> None:
        if self._worker is not None:
            self._worker.communicate()


MAX_PIECE = 1 << 12


class Reader:
    """Reads files; one process does nothing else."""

    def __init__(self) -> None:
        self._library = Library()
        self._call = self._library.call

    def read(self, path: str, texts: list[str]) -> dict[str, Any]:
        params = self._call.llama_model_default_params()
        params.vocab_only = True
        model = self._library.load(path, params)
        if not model:
            return {"refused": " / ".join(self._library.errors)}
        vocab = ctypes.c_void_p(self._call.llama_model_get_vocab(model))
        count = range(self._call.llama_vocab_n_tokens(vocab))
        reply = {
            "ids": [self._ids(vocab, text.encode()) for text in texts],
            "pieces": [self._piece(vocab, index).hex() for index in count],
            "stop_ids": [i for i in count if self._call.llama_vocab_is_eog(vocab, i)],
        }
        self._call.llama_model_free(model)
        return reply

    def _ids(self, vocab: ctypes.c_void_p, text: bytes) -> list[int]:
        room = 2 * len(text) + 16
        ids = (ctypes.c_int32 * room)()
        found = self._call.llama_tokenize(vocab, text, len(text), ids, room, True, True)
        return ids[:found]

    def _piece(self, vocab: ctypes.c_void_p, index: int) -> bytes:
        piece = ctypes.create_string_buffer(MAX_PIECE)
        size = self._call.llama_token_to_piece(vocab, index, piece, MAX_PIECE, 0, False)
        return piece.raw[:size]


def serve() -> None:
    """One request a line, and one answer."""
    reader = Reader()
    for line in sys.stdin:
        print(json.dumps(reader.read(**json.loads(line))), flush=True)


if __name__ == "__main__":
    serve()
