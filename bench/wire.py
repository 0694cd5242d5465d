"""Bytes and processor time of a round on the wire: one Draft up, one Verdict down.

The information bound counts uniform token ids and every ordered tree shape as equally likely
(Catalan numbers). Python's own time only: no socket is opened.
"""

from __future__ import annotations

import math
import random

from bench.harness import Timing, measure, option_parser, report
from runtime.wire.frames import HEADER, decode_body, decode_header, encode_frame
from runtime.wire.messages import (
    Draft,
    Finish,
    Message,
    Verdict,
)

VOCABULARIES = {"SmolLM2": 49_152, "Qwen3": 151_936}
NODES = (8, 16, 32, 63, 200)
COLUMNS = ("message", "vocabulary", "bytes", "bound", "encode (median [quartiles])", "decode")


def random_draft(nodes: int, vocabulary_size: int, rng: random.Random) -> Draft:
    """A tree whose parents are drawn evenly among the nodes before."""
    tokens = tuple(rng.sample(range(vocabulary_size), nodes))
    parents = tuple(rng.randint(0, node) for node in range(nodes))
    return Draft(1, 17, 1000, tokens, parents)


def draft_bound_bytes(nodes: int, vocabulary_size: int) -> int:
    """Least bytes for the ids and the shape of a tree."""
    shapes = math.comb(2 * nodes, nodes) // (nodes + 1)
    return math.ceil((nodes * math.log2(vocabulary_size) + math.log2(shapes)) / 8)


def verdict_bound_bytes(nodes: int, vocabulary_size: int) -> int:
    """Least bytes for a node and a token id."""
    return math.ceil(math.log2((nodes + 1) * vocabulary_size) / 8)


def measure_codec(message: Message, vocabulary_size: int) -> tuple[int, Timing, Timing]:
    """Frame bytes, encode time and decode time; asserts first that the message comes back."""
    frame = encode_frame(message, 7, vocabulary_size)

    def decode() -> Message:
        return decode_body(decode_header(frame), frame[HEADER.size :], vocabulary_size)

    assert decode() == message, f"{type(message).__name__} does not come back from its bytes"
    return len(frame), measure(lambda: encode_frame(message, 7, vocabulary_size)), measure(decode)


def main() -> None:
    options = option_parser("bench.wire", __doc__).parse_args()
    rng = random.Random(0)
    rows: list[tuple[object, ...]] = []
    numbers: dict[str, float] = {}
    for name, size in VOCABULARIES.items():
        # The keys of the JSON are those of the smaller vocabulary.
        suffix = "" if size == 49_152 else f"_{name.lower()}"
        for nodes in NODES:
            length, encode, decode = measure_codec(random_draft(nodes, size, rng), size)
            bound = draft_bound_bytes(nodes, size)
            rows.append((f"Draft, {nodes} nodes", name, length, bound, encode, decode))
            numbers[f"draft_bytes_{nodes}{suffix}"] = length
            numbers[f"draft_bound_bytes_{nodes}{suffix}"] = bound
            numbers[f"draft_encode_us_{nodes}{suffix}"] = round(encode.median_us, 2)
            numbers[f"draft_decode_us_{nodes}{suffix}"] = round(decode.median_us, 2)
        verdict = Verdict(1, 17, 20, size - 1, Finish.NONE, queue_ms=3, verify_ms=41)
        length, encode, decode = measure_codec(verdict, size)
        bound = verdict_bound_bytes(32, size)
        rows.append(("Verdict of 32 nodes", name, length, bound, encode, decode))
        numbers[f"verdict_bytes_32{suffix}"] = length
        numbers[f"verdict_bound_bytes_32{suffix}"] = bound
        numbers[f"verdict_encode_us{suffix}"] = round(encode.median_us, 2)
        numbers[f"verdict_decode_us{suffix}"] = round(decode.median_us, 2)
    report("STF/1: bytes and codec time of a round", COLUMNS, rows, numbers, options.json)


if __name__ == "__main__":
    main()
