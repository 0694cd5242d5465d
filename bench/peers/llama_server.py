"""llama.cpp's own server in a process of its own, with its own speculative decoding if it may.

A question a line in: {"ids": prompt, "count": tokens}; the text and llama.cpp's own timing out.
"""

import json
import sys

from bench.peers.models import CONTEXT_TOKENS
from runtime.bench.machine import resident_bytes

ERRORS = 1  # are all that it logs


def main() -> None:
    """The first line is {"path": GGUF file, "threads": number, "draft": GGUF file or null}."""
    setup = json.loads(sys.stdin.readline())
    server = start(setup["path"], setup["threads"], setup["draft"])
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(complete(server, **json.loads(line))), flush=True)


def start(path: str, threads: int, draft: str | None):
    """A server on some port of loopback, which is not used."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.port = path, CONTEXT_TOKENS, 1, 0
    params.verbosity = ERRORS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    if draft is not None:
        params.speculative.types = [
            xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE
        ]
        params.speculative.draft.mparams.path = draft
        own = params.speculative.draft
        own.cpuparams.n_threads = own.cpuparams_batch.n_threads = threads
    return xllamacpp.Server(params)


def complete(server, ids: list[int], count: int) -> dict[str, object]:
    """At most `count` greedy tokens after the prompt, which is read anew each time."""
    question = {"prompt": ids, "n_predict": count, "temperature": 0, "cache_prompt": False}
    reply = server.handle_completions(question)
    answer = json.loads(reply) if isinstance(reply, str | bytes) else reply
    timings = answer["timings"]
    return {
        "text": answer["choices"][0]["text"],
        "tokens": timings["predicted_n"],
        "tokens_per_s": timings["predicted_per_second"],
        "accepted": timings.get("draft_n_accepted", 0),
        "resident": resident_bytes(),
    }


if __name__ == "__main__":
    main()
