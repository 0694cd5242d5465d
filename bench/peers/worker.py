"""One engine in a process of its own: a question a line in, its seconds and what to check out.

Seconds are the processor's own for one thread, so that other work on the machine counts for less;
for several threads they are the clock's.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.models import MODELS, Model
from runtime.bench.machine import resident_bytes


def main() -> None:
    """The first line is {"engine": name, "path": GGUF file, "threads": number}."""
    setup = json.loads(sys.stdin.readline())
    engine, threads = MODELS[setup["engine"]], setup["threads"]
    engine.imports()
    imported_bytes = resident_bytes()
    model = engine(Path(setup["path"]), threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    print(json.dumps({"version": model.version}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if question["do"] == "resident":
            answer = {"imports": imported_bytes, "all": resident_bytes()}
        else:
            answer = DO[question.pop("do")](model, clock, **question)
        print(json.dumps(answer), flush=True)


def read(model: Model, clock, ids: list[int], following: list[int]) -> Mapping[str, Any]:
    """A prompt from its beginning, with the logits after it."""
    model.cut(0)
    start_s = clock()
    logits = model.step(ids, all_logits=False)
    return {"s": clock() - start_s, "logprobs": logprobs(logits, following)}


def decode(model: Model, clock, length: int, first: int, count: int) -> Mapping[str, Any]:
    """Plain greedy decoding behind the first `length` tokens of the text, and `first`."""
    model.cut(length)
    token, ids = first, []
    start_s = clock()
    for _ in range(count):
        token = int(model.step([token]).argmax())
        ids.append(token)
    return {"s": clock() - start_s, "ids": ids}


def rows(
    model: Model, clock, length: int, ids: list[int], following: list[int], repeats: int
) -> Mapping[str, Any]:
    """A step of len(ids) rows behind the first `length` tokens; the median of a few."""
    took_s = []
    for _ in range(repeats):
        model.cut(length)
        start_s = clock()
        logits = model.step(ids)
        took_s.append(clock() - start_s)
    return {"s": float(np.median(took_s)), "logprobs": logprobs(logits, following)}


def gaps(model: Model, clock, length: int, first: int, chosen: list[int]) -> Mapping[str, Any]:
    """How much likelier than each chosen token, in nats, this model's own choice would be."""
    model.cut(length)
    logits = model.step([first, *chosen[:-1]])
    return {"gaps": (logits.max(-1) - logits[range(len(chosen)), chosen]).tolist()}


def logprobs(logits: np.ndarray, following: list[int]) -> list[float]:
    """Log-probability, in nats, of the token that follows each row."""
    exact = logits.astype(np.float64)
    top = exact.max(-1)
    norm = top + np.log(np.exp(exact - top[:, None]).sum(-1))
    return (exact[range(len(following)), following] - norm).tolist()


DO = {"read": read, "decode": decode, "rows": rows, "gaps": gaps}

if __name__ == "__main__":
    main()
