"""GGUF files with experts: logits as llama.cpp's."""

from importlib.util import find_spec

import numpy as np
import pytest

from runtime.model import weights
from runtime.model.config import ModelError
from tests.model import gguf_files, tiny
from tests.model.gguf_files import VOCAB, Kind, Sizes
from tests.model.llama_cpp import LlamaCpp

N_EXPERTS, N_CHOSEN = 4, 2
SIZES = Sizes(head_dim=64, hidden_size=256, mlp=256)
EXACT, ROUNDED = 1e-4, 0.2  # as in test_gguf_differential

needs_llama_cpp = pytest.mark.skipif(
    find_spec("xllamacpp") is None, reason="llama.cpp, the judge, is missing"
)


@pytest.fixture(scope="module")
def llama_cpp():
    return LlamaCpp()


def case_of(architecture, inner, kinds=None, **fields):
    """A small model of the architecture whose layers have experts of `inner` numbers."""
    like = {"qwen2moe": "qwen2", "qwen3moe": "qwen3"}.get(architecture, architecture)
    case = gguf_files.base(like, SIZES, np.random.default_rng(inner))
    case.architecture = architecture
    case.fields |= {"expert_count": N_EXPERTS, "expert_used_count": N_CHOSEN, **fields}
    hidden = SIZES.hidden_size
    for layer in case.layers(""):
        for part in ("gate", "up", "down"):
            del case.tensors[f"{layer}ffn_{part}.weight"]
        shapes = {
            "gate_inp": (N_EXPERTS, hidden),
            "gate_exps": (N_EXPERTS, inner, hidden),
            "up_exps": (N_EXPERTS, inner, hidden),
            "down_exps": (N_EXPERTS, hidden, inner),
        }
        if architecture == "qwen2moe":
            shared = fields["expert_shared_feed_forward_length"]
            shapes |= {"gate_inp_shexp": (hidden,), "down_shexp": (hidden, shared)}
            shapes |= {f"{part}_shexp": (shared, hidden) for part in ("gate", "up")}
        for part, shape in shapes.items():
            name = f"{layer}ffn_{part}.weight"
            case.tensors[name] = case.normal(*shape, scale=2 / shape[-1] ** 0.5)
            if kinds and part in kinds:
                case.kinds[name] = kinds[part]
    return case


MIXED = {"gate_exps": Kind.Q4_0, "up_exps": Kind.Q5_1, "down_exps": Kind.Q8_0}
CASES = {
    "llama": (("llama", SIZES.mlp), EXACT),
    "llama-quantised": (("llama", SIZES.mlp, MIXED), ROUNDED),
    "qwen2moe": (("qwen2moe", 96), EXACT),
    "qwen3moe": (("qwen3moe", 96), EXACT),
    "qwen3moe-mixed": (("qwen3moe", 96, MIXED), ROUNDED),
}
LENGTHS = {
    "qwen2moe": {"expert_feed_forward_length": 96, "expert_shared_feed_forward_length": 160},
    "qwen3moe": {"expert_feed_forward_length": 96},
}


@needs_llama_cpp
@pytest.mark.parametrize("name", CASES)
def test_files_with_experts_are_read_as_llama_cpp_reads_them(name, tmp_path, llama_cpp):
    arguments, tolerance = CASES[name]
    case = case_of(*arguments, **LENGTHS.get(arguments[0], {}))
    path = gguf_files.write(case, tmp_path / "model.gguf")
    tokens = np.random.default_rng(0).integers(0, VOCAB, 30).tolist()
    engine = tiny.engine_of(weights.load(path, activations="exact"))
    ours = engine.forward([tiny.chain(tokens, 0, engine.kv.allocate(8))]).numpy()
    theirs = llama_cpp.logits(path, tokens)
    assert not isinstance(theirs, str), theirs
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert error < tolerance


def test_experts_are_packed_as_they_are_stored(tmp_path):
    case = case_of("qwen3moe", 96, MIXED, **LENGTHS["qwen3moe"])
    model = weights.load(gguf_files.write(case, tmp_path / "model.gguf"))
    experts = model.layers[1].mlp.experts
    assert experts.gate_up.weight.kinds == (2, 7)
    assert experts.down.weight.kinds == (8,)
    assert experts.gate_up.weight.packed.shape[0] == N_EXPERTS


@pytest.mark.parametrize(
    ("architecture", "fields", "sentence"),
    [
        ("qwen2", {}, "qwen2.expert_count is 4; expected none of them"),
        ("llama", {"expert_used_count": 5}, "5 of 4 experts cannot be chosen"),
        ("llama", {"expert_count": 2**20}, "n_experts is 1048576; expected 1 .. 65536"),
        ("llama", {"expert_group_count": 2}, "expert_group_count is above 1"),
        ("llama", {"expert_count": 5}, "mlp.gate.weight has shape .4, 256.; expected .5, 256."),
    ],
)
def test_other_experts_are_refused(architecture, fields, sentence, tmp_path):
    case = case_of(architecture, SIZES.mlp, **fields)
    with pytest.raises(ModelError, match=sentence):
        weights.load(gguf_files.write(case, tmp_path / "model.gguf"))
