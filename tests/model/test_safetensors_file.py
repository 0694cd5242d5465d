"""Safetensors files against the library of that name, and files that lie."""

import json
import random
import struct
from contextlib import suppress

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from runtime.model.config import ModelError
from runtime.model.safetensors_file import DTYPES, tensors_of

TENSORS = {
    "a": torch.arange(12).view(3, 4).float(), "b": torch.tensor(3.5).bfloat16(),
    "c": torch.zeros(0, 5), "d": torch.tensor([True, False]), "e": torch.arange(5).to(torch.int8),
    "f": torch.randn(2, 3, 4).to(torch.float8_e4m3fn), "g": torch.arange(7),
    "ü": torch.ones(1).half(),
}  # fmt: skip


def write(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype, shape, first, last):
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def test_every_tensor_is_what_was_saved(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    found = tensors_of(path)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        got = found[name].read()
        assert got.dtype == tensor.dtype
        assert got.shape == tensor.shape
        assert torch.equal(got.view(torch.uint8) if got.dim() else got,
                           tensor.view(torch.uint8) if tensor.dim() else tensor)  # fmt: skip
    assert torch.equal(found["a"].read_rows(1, 3), TENSORS["a"][1:3])
    assert torch.equal(found["c"].read_rows(0, 0), TENSORS["c"])


def test_every_type_is_read_as_the_library_reads_it(tmp_path):
    for name, dtype in DTYPES.items():
        data = bytes(random.Random(name).randbytes(16)) if name != "BOOL" else b"\0\1" * 8
        count = 16 // dtype.itemsize
        path = write(tmp_path / "x", {"t": entry(name, [count], 0, 16)}, data)
        with safe_open(path, "pt") as theirs:
            want = theirs.get_tensor("t")
        got = tensors_of(path)["t"].read()
        assert got.dtype == want.dtype
        assert torch.equal(got.view(torch.uint8), want.view(torch.uint8))


GOOD = entry("F32", [2, 2], 0, 16)
LIES = {
    "empty": (b"", None),
    "no object": ([GOOD], "its header is no JSON object"),
    "not JSON": (b"{'t'}", "is not a safetensors file"),
    "nested": (b"[" * 100_000, "is not a safetensors file"),
    "a million digits": (b'{"t": 1' + b"0" * 10**6 + b"}", "is not a safetensors file"),
    "no place": ({"t": {"dtype": "F32", "shape": [4]}}, "does not say where tensor t lies"),
    "no entry": ({"t": 5}, "does not say where tensor t lies"),
    "shape is a number": ({"t": {**GOOD, "shape": 4}}, "does not say where tensor t lies"),
    "negative": ({"t": entry("F32", [-2, -2], 0, 16)}, "tensor t has sizes that are none"),
    "fraction": ({"t": entry("F32", [2.0, 2], 0, 16)}, "tensor t has sizes that are none"),
    "true": ({"t": entry("F32", [True, 4], 0, 16)}, "tensor t has sizes that are none"),
    "type is a list": ({"t": entry(["F32"], [2, 2], 0, 16)}, "tensor t has sizes that are none"),
    "too large": ({"t": entry("F32", [2**40, 2**40], 0, 16)}, r"1099511627776\], has 16 bytes"),
    "too small": ({"t": entry("F32", [1], 0, 16)}, r"tensor t, F32 \[1\], has 16 bytes"),
    "backwards": ({"t": entry("F32", [0], 16, 0)}, "has -16 bytes"),
    "beyond the end": ({"t": entry("F32", [2, 4], 0, 32)}, "its tensors end at byte .* of"),
    "a gap": ({"t": entry("F32", [2], 8, 16)}, "does not begin where the one before it ends"),
    "overlap": ({"t": GOOD, "u": entry("F32", [2], 8, 16)}, "tensor u does not begin where"),
    "left over": ({"t": entry("F32", [2], 0, 8)}, "its tensors end at byte .* of"),
    "twice": (
        b'{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"t":{"dtype":"F32","shape":[3],"data_offsets":[4,16]}}',
        "tensor t does not begin where",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_files_that_lie_are_sentences(lie, tmp_path):
    header, sentence = LIES[lie]
    path = write(tmp_path / "model.safetensors", header, bytes(16))
    with pytest.raises(SafetensorError):
        safe_open(path, "pt")
    with pytest.raises(ModelError, match=sentence or "is not a safetensors file: its header of 0"):
        tensors_of(path)


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**63, 2**64 - 1])
def test_headers_of_other_lengths_are_not_read(length, tmp_path):
    path = write(tmp_path / "model.safetensors", {"t": GOOD}, bytes(16), length)
    with pytest.raises(ModelError, match=f"its header of {length} bytes does not fit"):
        tensors_of(path)


def test_any_spoilt_byte_is_a_sentence_or_another_file(tmp_path):
    """Whatever stands there: what is read lies in the file, and nothing else is raised."""
    path, rng = tmp_path / "model.safetensors", random.Random(5)
    save_file(TENSORS, path)
    whole = path.read_bytes()
    for _ in range(600):
        spoilt = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            spoilt[rng.randrange(len(spoilt) - 200)] = rng.randrange(256)
        path.write_bytes(spoilt[: rng.choice([len(spoilt), rng.randrange(len(spoilt))])])
        with suppress(ModelError):
            for tensor in tensors_of(path).values():
                assert tensor.offset + tensor.n_bytes <= len(spoilt)
                assert tensor.dtype not in DTYPES or tensor.read().nbytes == tensor.n_bytes


def test_a_file_that_changes_is_a_sentence(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    tensor = tensors_of(path)["g"]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelError, match="was changed while it was read; try again"):
        tensor.read()
    path.unlink()
    with pytest.raises(ModelError, match="cannot be read any more: No such file"):
        tensor.read()


def test_a_type_that_torch_lacks_is_named(tmp_path):
    path = write(tmp_path / "x", {"t": entry("F4", [32], 0, 16)}, bytes(16))
    with pytest.raises(ModelError, match="tensor t is stored as F4, which is not read"):
        tensors_of(path)["t"].read()
