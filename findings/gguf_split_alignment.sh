#!/usr/bin/env bash
# gguf 0.19.0 (PyPI): a model written in parts with an alignment of its own cannot be read back.
#
# GGUFWriter(..., split_max_tensors=1) with add_custom_alignment(4096) pads the data of every part
# to 4096 bytes, but writes general.alignment into the first part only. Readers take the alignment
# from the file at hand, 32 where it is not named: the package's own GGUFReader, and llama.cpp. They
# look for the data of the other parts too early and return the padding, without an error.
#
# Seen: part 1 gives 1.0 .. 8.0 as written; part 2 gives eight zeros for the same numbers.
# Exits with 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet gguf==0.19.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import gguf
import numpy as np

written = np.arange(1, 9, dtype=np.float32)
writer = gguf.GGUFWriter("model.gguf", "llama", split_max_tensors=1)
writer.add_custom_alignment(4096)
writer.add_tensor("first.weight", written)
writer.add_tensor("second.weight", written)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

for number in (1, 2):
    reader = gguf.GGUFReader(f"model-0000{number}-of-00002.gguf")
    read = reader.tensors[0].data
    print(f"part {number}: alignment {reader.alignment}, {reader.tensors[0].name} = {read}")
    expected = written if number == 1 else np.zeros(8)
    assert np.array_equal(read, expected), "the behaviour has changed"
PYTHON
