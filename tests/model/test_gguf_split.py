"""Models in several GGUF files, as llama.cpp's tools and the gguf package split them."""

import shutil

import gguf
import numpy as np
import pytest

from runtime.model import weights
from runtime.model.gguf import GgufFile, Metadata
from runtime.model.gguf_header import Header, read_header
from runtime.model.gguf_split import parts_of
from runtime.model.weights import ModelError
from tests.model import gguf_files
from tests.model.gguf_files import part

COUNT = 4


def split_model(folder, seed=1):
    """The first of COUNT parts of a model of 21 tensors."""
    case = gguf_files.base("qwen2", gguf_files.Sizes(), np.random.default_rng(seed))
    case.split_tensors = 6
    return gguf_files.write(case, folder / "model.gguf")


@pytest.fixture
def first(tmp_path):
    return split_model(tmp_path)


def beside(first, number):
    return first.with_name(first.name.replace("00001", f"{number:05d}"))


def test_all_parts_are_read_and_the_first_tells_of_the_model(first):
    checkpoint = GgufFile(first)
    expected = {
        tensor.name: tensor.data
        for number in range(1, COUNT + 1)
        for tensor in gguf.GGUFReader(beside(first, number)).tensors
    }
    assert len(checkpoint.shapes) == len(expected) == 21
    for ours, theirs in ("lm_head", "output"), ("model.layers.1.mlp.down_proj", "blk.1.ffn_down"):
        read = checkpoint.read(f"{ours}.weight").numpy()
        assert np.array_equal(read, expected[f"{theirs}.weight"])
    assert Metadata(first).get("qwen2.block_count") == 2


def test_a_first_part_without_tensors(tmp_path):
    writer = gguf.GGUFWriter(
        tmp_path / "model.gguf", "llama", split_max_tensors=3, small_first_shard=True
    )
    case = gguf_files.base("llama", gguf_files.Sizes(), np.random.default_rng(1))
    for key, value in case.fields.items():
        writer.add_key_value(f"llama.{key}", value, gguf_files.value_type(value))
    for name, values in case.tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    first = part(tmp_path / "model.gguf", 1, 8)
    assert gguf.GGUFReader(first).tensors == []
    assert weights.load(first).config.n_layers == 2


def test_parts_are_found_from_the_link_that_was_given(first, tmp_path):
    """A download cache keeps files elsewhere, under names of its own, and links to them."""
    cache, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    cache.mkdir(), snapshot.mkdir()
    for number in range(1, COUNT + 1):
        name = beside(first, number).name
        beside(first, number).rename(cache / str(number))
        (snapshot / name).symlink_to(cache / str(number))
    assert weights.load(snapshot / first.name).config.n_layers == 2


def test_another_part_than_the_first(first):
    for read in GgufFile, Metadata:
        with pytest.raises(ModelError, match=r"00003-of-00004.gguf is part 3 of 4 .* first part"):
            read(beside(first, 3))


def test_a_missing_part(first):
    beside(first, 3).unlink()
    with pytest.raises(ModelError, match=r"model-00003-of-00004.gguf is missing: part 3 of 4"):
        GgufFile(first)


def test_a_name_from_which_the_others_cannot_be_found(first):
    renamed = first.rename(first.with_name("renamed.gguf"))
    with pytest.raises(ModelError, match=r"first of 4 parts.* must end in -00001-of-00004.gguf"):
        GgufFile(renamed)


def test_parts_that_were_swapped(first):
    shutil.copy(beside(first, 2), beside(first, 3))
    with pytest.raises(ModelError, match=r"00003-of-00004.gguf: split.no is 1; expected 2"):
        GgufFile(first)


def test_a_part_of_a_model_that_was_split_otherwise(first):
    content = beside(first, 2).read_bytes()
    for key, kind, width in (b"split.count", 2, 2), (b"split.tensors.count", 5, 4):
        at = content.index(key) + len(key)
        assert content[at : at + 4] == kind.to_bytes(4, "little")
        changed = content[: at + 4] + (9).to_bytes(width, "little") + content[at + 4 + width :]
        beside(first, 2).write_bytes(changed)
        with pytest.raises(ModelError, match=rf"00002-of-00004.gguf: {key.decode()} is 9; expect"):
            GgufFile(first)


def test_a_part_of_another_model(first, tmp_path):
    (tmp_path / "other").mkdir()
    other = gguf_files.base("qwen3", gguf_files.Sizes(), np.random.default_rng(1))
    other.split_tensors = 7
    shutil.copy(beside(gguf_files.write(other, tmp_path / "other/model.gguf"), 2), beside(first, 2))
    with pytest.raises(ModelError, match=r"00002-of-00004.gguf: split.tensors.count is 25; exp"):
        GgufFile(first)


def test_tensors_that_are_missing_or_there_twice(first):
    whole = {number: beside(first, number).read_bytes() for number in (1, 2)}
    names = [tensor.name.encode() for tensor in gguf.GGUFReader(first).tensors]
    theirs = gguf.GGUFReader(beside(first, 2)).tensors[0].name.encode()
    same_length = next(name for name in names if len(name) == len(theirs))
    beside(first, 2).write_bytes(whole[2].replace(theirs, same_length))
    with pytest.raises(ModelError, match="its parts hold a tensor twice"):
        GgufFile(first)
    beside(first, 2).write_bytes(whole[2])
    for number in range(1, COUNT + 1):
        content = beside(first, number).read_bytes()
        at = content.index(b"split.tensors.count") + 19 + 4
        beside(first, number).write_bytes(content[:at] + bytes([22]) + content[at + 1 :])
    with pytest.raises(ModelError, match=r"hold 21 tensors; split.tensors.count is 22"):
        GgufFile(first)


def test_an_alignment_that_only_the_first_part_names(first):
    """The gguf package aligns the others too, llama.cpp's tool does not: no guess is right."""
    header = read_header(first)
    header.metadata["general.alignment"] = 64
    with pytest.raises(ModelError, match=r"00002-of-00004.gguf: general.alignment is 32; expec"):
        parts_of(first, header)


@pytest.mark.parametrize("count", ["4", -1, 2**16])
def test_a_count_that_is_none(first, count):
    with pytest.raises(ModelError, match=r"split.count is .*; expected a number of parts"):
        parts_of(first, Header({"split.count": count}, (), 0))
