"""A model that two processes share gives the bits of one, at the least cost."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import LlamaConfig, LlamaForCausalLM

from runtime.model.checkpoint import open_checkpoint
from runtime.model.config import ModelError
from runtime.model.parallel_weights import CheckpointPart
from runtime.model.weights import load
from tests.model import gguf_files, tiny
from tests.model.adapters import EVERYTHING, random_pairs, save_folder
from tests.model.gguf_files import Sizes
from tests.model.rank import opened, passes
from tests.model.test_quantised_models import MIXED, blocks

SIZE = 2
ADAPTED = {
    "llama-biases": EVERYTHING,
    "qwen2-moe": ("q_proj", "v_proj", "o_proj", "shared_expert.down_proj"),
}
LARGE = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 2001, "num_hidden_layers": 3}


def mixed_file(folder):
    sizes = Sizes(n_layers=2, n_heads=4, n_kv_heads=2, head_dim=64, hidden_size=256, mlp=512)
    case = gguf_files.base("llama", sizes, np.random.default_rng(1))
    for name, values in [*case.tensors.items()]:
        part = name.split(".")[-2]
        if part in MIXED:
            case.kinds[name] = Kind(MIXED[part])
            case.blocks[name] = blocks(MIXED[part], *values.shape, len(name))
    return gguf_files.write(case, folder / "mixed.gguf")


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """(model, how its weights run, an adapter) of every kind of layer and of weights."""
    folder = tmp_path_factory.mktemp("ranks")
    found = [(str(mixed_file(folder)), "stored", None)]
    for name, weights in {
        "llama-biases": "stored",
        "llama-tied": "bfloat16",
        "qwen3": "stored",
        "qwen3-biases": "q4_0",
        "qwen2-window": "stored",
        "qwen2-moe": "stored",
        "mixtral": "q8_0",
    }.items():
        theirs = tiny.huggingface_model(name)
        path = tiny.save(theirs, folder / name)
        found.append((str(path), weights, None))
        if name in ADAPTED:
            pairs = random_pairs(theirs, ADAPTED[name], 5, seed=1)
            adapter = save_folder(folder / f"{name}-adapter", pairs)
            found.append((str(path), weights, str(adapter)))
    large = LlamaConfig(
        **LARGE, num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=False
    )
    LlamaForCausalLM(large).save_pretrained(folder / "large")
    (folder / "cases.json").write_text(json.dumps(found))
    return folder, found


@pytest.fixture(scope="module")
def ranks(cases):
    """The folder in which two ranks have left what came of the cases."""
    folder, _ = cases
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(SIZE)]
    command = [sys.executable, "-m", *launcher, "-m", "tests.model.rank", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return folder


def test_two_ranks_give_the_bits_of_one_process(cases, ranks):
    for number, (path, weights, adapter) in enumerate(cases[1]):
        engine = opened(path, weights, adapter)
        expected = torch.cat([*passes(engine, len(engine.model.adapters) - 1)])
        got = torch.from_numpy(np.load(ranks / f"{number}.npy"))
        assert torch.equal(got, expected), (path, weights, adapter)


def test_a_rank_reads_and_holds_its_share(ranks):
    file_bytes = (ranks / "large/model.safetensors").stat().st_size
    for rank in range(SIZE):
        figures = json.loads((ranks / f"rank{rank}.json").read_text())
        most = file_bytes * (1 / SIZE + 0.1)
        # beside the weights, the tables of positions, and the rest of a large page
        assert figures["held"] < most + 2 * 2304 * 32 * 4 + (2 << 20)
        assert figures["read"] < most


def test_no_byte_goes_between_ranks_that_need_not(ranks):
    """Of a step of 64 rows, to each other rank: outputs of four products a layer, and who draws."""
    config = load(ranks / "large").config
    inner = config.n_heads * config.head_dim + config.intermediate_size + 2 * config.hidden_size
    per_row = config.n_layers * inner // SIZE + config.hidden_size  # its row of the embedding
    least = (SIZE - 1) * 64 * 4 * (per_row + 3)  # the greatest logit, a score and a token
    for rank in range(SIZE):
        figures = json.loads((ranks / f"rank{rank}.json").read_text())
        assert figures["told"] == least
        assert least <= figures["sent"] < 1.05 * least


@pytest.mark.parametrize(
    ("name", "size", "sentence"),
    [
        ("llama", 3, "3 ranks cannot share 4 query heads over 2 key/value heads .* 2, 4$"),
        ("llama", 8, "8 ranks cannot share 4 query heads"),
        ("llama-wide-heads", 4, None),
        ("qwen3", 4, None),
        ("qwen2-moe", 4, None),
    ],
)
def test_who_can_share_a_model(tmp_path, name, size, sentence):
    whole = open_checkpoint(tiny.save(tiny.huggingface_model(name), tmp_path))
    if sentence:
        with pytest.raises(ModelError, match=sentence):
            CheckpointPart(whole, 0, size)
        return
    parts = [CheckpointPart(whole, rank, size) for rank in range(size)]
    for tensor, shape in whole.shapes.items():
        rows = [one.stored(tensor) for one in parts]
        assert [one.shapes[tensor] for one in parts] == [tuple(one.shape) for one in rows]
        if shape[0] == sum(len(one) for one in rows):
            assert torch.equal(torch.cat(rows), whole.stored(tensor))
