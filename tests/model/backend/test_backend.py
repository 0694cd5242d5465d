"""transformers' modules over our cache and kernels: what is refused, and what stays the same."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from runtime.model.backend.fused import GatedMLP, RotaryAttention
from runtime.model.backend.load import load
from runtime.model.backend.matrix import Matrix
from runtime.model.backend.steady import UNSTEADY, Steady
from runtime.model.batch import TreeRequest
from runtime.model.config import ModelError, Unsupported
from runtime.model.formats import KINDS, floats, quantised
from runtime.model.open import open_engine, vocabulary_size
from runtime.model.transformer import Linear
from tests.model.tiny import SIZES, VOCAB, assert_close, chain, judge, random_tokens, random_tree

CPU = torch.device("cpu")
ENDS = {"eos_token_id": 1, "bos_token_id": 2}
PHI3 = {"model_type": "phi3", "pad_token_id": 0, **ENDS}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0],
    "original_max_position_embeddings": 24,
}


def saved(folder: Path, **fields: object) -> torch.nn.Module:
    """A random model of transformers, in the folder."""
    torch.manual_seed(3)
    config = AutoConfig.for_model(**{**SIZES, **fields})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
    model.save_pretrained(folder)
    return model


def rewritten(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    "name", ["llama-tied", "llama-biases", "llama-wide-heads", "qwen2-window", "qwen3-yarn"]
)
def test_own_families_have_the_same_bits_by_both(pairs, generator, name):
    """Their layers are plain enough to run in one call of the same kernels."""
    engines = [
        open_engine(str(pairs(name).folder), "float32", "cpu", lambda _: 64, 4, backend=backend)
        for backend in ("own", "transformers")
    ]
    assert type(engines[0].model) is not type(engines[1].model)
    assert engines[1].model.decoder is not None
    tokens, parents = random_tokens(20, generator), random_tree(12, generator)
    prompt = chain(tokens[:8], 0, range(8))
    tree = TreeRequest(tokens[8:], parents, 8, range(8), range(12))
    for request in (prompt, tree):
        own, theirs = (engine.forward([request]) for engine in engines)
        assert torch.equal(theirs, own)


def test_auto_takes_what_runs_the_model(tmp_path):
    saved(
        tmp_path,
        model_type="llama",
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    )
    with pytest.raises(Unsupported, match="rope scaling 'dynamic' is not supported"):
        open_engine(str(tmp_path), "stored", "cpu", lambda _: 64, 4, backend="own")
    engine = open_engine(str(tmp_path), "stored", "cpu", lambda _: 64, 4)
    assert engine.model.max_context == SIZES["max_position_embeddings"]
    assert vocabulary_size(str(tmp_path)) == engine.model.vocab_size == VOCAB


@torch.no_grad()
@pytest.mark.parametrize(
    ("fields", "turned"),
    [
        (
            {
                **{"model_type": "gpt_oss", "num_local_experts": 4, "head_dim": 32},
                **{"rope_parameters": {"rope_theta": 1e4}, "intermediate_size": 96},
            },
            ("gate_up_proj", "down_proj"),
        ),
        ({"model_type": "gpt2", **ENDS}, ("attn.weight", "fc.weight", "proj.weight")),
    ],
)
def test_weights_are_quantised_row_by_row(tmp_path, generator, fields, turned):
    """As whoever gives transformers the quantised values has it, where weights lie by inputs too:
    the experts of gpt-oss, and all of GPT-2."""
    theirs = saved(tmp_path, **fields)
    for name, parameter in theirs.named_parameters():
        rows = parameter.mT if name.endswith(turned) else parameter
        if name.endswith(("weight", "_proj")) and parameter.dim() > 1:
            flat = rows.reshape(-1, rows.shape[-1]).contiguous()
            rows.copy_(floats(quantised(flat, KINDS["q8_0"]), torch.float32).view(rows.shape))
    engine = open_engine(str(tmp_path), "q8_0", "cpu", lambda _: 64, 4, activations="exact")
    tokens = random_tokens(12, generator)
    assert_close(engine.forward([chain(tokens, 0, range(4))]), judge(theirs, tokens))


def test_gpt2_as_it_lies_on_the_hub(tmp_path, generator):
    """Its files have tensors of the body alone, and the masks of the code that wrote them."""
    theirs = saved(tmp_path, model_type="gpt2", tie_word_embeddings=True, **ENDS)
    tensors = {
        name.removeprefix("transformer."): tensor.clone()
        for name, tensor in theirs.state_dict().items()
        if name != "lm_head.weight"
    }
    for layer in range(SIZES["num_hidden_layers"]):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(64, 64).tril()[None, None]
    save_file(tensors, tmp_path / "model.safetensors")
    tokens = random_tokens(12, generator)
    engine = open_engine(str(tmp_path), "stored", "cpu", lambda _: 64, 4)
    assert_close(engine.forward([chain(tokens, 0, range(4))]), judge(theirs, tokens))


@pytest.mark.parametrize("longest", [24, 0])
def test_longrope_has_one_set_of_frequencies_for_all_texts(tmp_path, generator, longest):
    """The one for short texts where no longer ones will be asked for, else that for long ones."""
    theirs = saved(tmp_path, **PHI3, rope_parameters=LONGROPE)
    engine = open_engine(str(tmp_path), "stored", "cpu", lambda _: 64, 4, max_context=longest)
    tokens = random_tokens(longest or 40, generator)
    got = engine.forward([chain(tokens, 0, range(10))])
    assert engine.model.max_context == (longest or SIZES["max_position_embeddings"])
    assert_close(got, judge(theirs, tokens))


@pytest.mark.parametrize("factor", [2.0, 8.0])
def test_dynamic_positions_end_with_the_first_context(tmp_path, generator, factor):
    """Up to it nothing is scaled, and it does not matter what else was read before, or is beside
    it; longer texts, whose positions would turn with their length, are not taken."""
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": factor}
    theirs = saved(tmp_path, model_type="llama", rope_parameters=rope, max_position_embeddings=24)
    engine = open_engine(str(tmp_path), "stored", "cpu", lambda _: 64, 4, max_context=96)
    assert engine.model.max_context == 24
    longest, short = random_tokens(24, generator), random_tokens(9, generator)
    judged = [judge(theirs, tokens) for tokens in (longest, short)]
    beside = [chain(longest, 0, range(6)), chain(short, 0, range(6, 9))]
    for _ in range(2):
        assert_close(engine.forward(beside), torch.cat(judged))


@pytest.mark.parametrize(
    ("model_type", "attention", "mlp"),
    [
        ("gemma2", RotaryAttention, None),
        ("gemma3_text", RotaryAttention, None),
        ("granite", RotaryAttention, GatedMLP),
        ("olmo2", None, GatedMLP),
        ("phi3", None, None),
        ("cohere", None, GatedMLP),
    ],
)
def test_only_what_computes_the_same_is_replaced(tmp_path, generator, model_type, attention, mlp):
    theirs = saved(tmp_path, **{**PHI3, "model_type": model_type, "head_dim": 16})
    engine = open_engine(str(tmp_path), "stored", "cpu", lambda _: 64, 4)
    layer = engine.model.body.layers[0]
    kinds = [type(part.__dict__.get("forward")) for part in (layer.self_attn, layer.mlp)]
    for kind, expected in zip(kinds, (attention, mlp), strict=True):
        assert (kind is expected) if expected else kind not in (RotaryAttention, GatedMLP)
    assert engine.model.decoder is None, "none of these is so plain"
    tokens = random_tokens(12, generator)
    assert_close(engine.forward([chain(tokens, 0, range(4))]), judge(theirs, tokens))


@pytest.mark.parametrize("swapped", [("q_proj", "k_proj"), ("k_proj", "v_proj")])
def test_projections_that_change_places_are_noticed(tmp_path, generator, monkeypatch, swapped):
    """All have one shape here, so nothing but the numbers tells them apart."""
    from transformers.models.llama.modeling_llama import LlamaAttention

    honest = LlamaAttention.forward

    def forward(self, *args, **kwargs):
        one, other = (self._modules[name] for name in swapped)
        self._modules |= {swapped[0]: other, swapped[1]: one}
        try:
            return honest(self, *args, **kwargs)
        finally:
            self._modules |= {swapped[0]: one, swapped[1]: other}

    monkeypatch.setattr(LlamaAttention, "forward", forward)
    theirs = saved(tmp_path, model_type="llama", num_key_value_heads=4)
    engine = open_engine(str(tmp_path), "stored", "cpu", lambda _: 64, 4, backend="transformers")
    assert engine.model.decoder is None
    tokens = random_tokens(12, generator)
    assert_close(engine.forward([chain(tokens, 0, range(4))]), judge(theirs, tokens))


REFUSED = {
    "mamba": ({"model_type": "mamba"}, "a running state of the text"),
    "lfm2": ({"model_type": "lfm2", "layer_types": ["conv", "full_attention"]}, "layers of conv"),
    "diffllama": ({"model_type": "diffllama"}, "attends twice"),
    "bert": ({"model_type": "bert_japanese"}, "no causal language model of that type"),
    "code": ({"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}, "code of its own"),
    "deep": ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; expected 1 .. 1024"),
    "endless": ({"max_position_embeddings": 2**40}, "max_position_embeddings is"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_is_refused_in_a_sentence(tmp_path, name):
    fields, sentence = REFUSED[name]
    saved(tmp_path, model_type="llama")
    rewritten(tmp_path, **fields)
    with pytest.raises(ModelError, match=sentence) as told:
        load(tmp_path, "stored", CPU)
    assert "\n" not in str(told.value)


def test_a_context_of_millions_is_run_as_far_as_is_asked(tmp_path):
    """As Llama 4 Scout and MiniMax-Text state it."""
    saved(tmp_path, model_type="llama")
    rewritten(tmp_path, max_position_embeddings=10_485_760)
    assert load(tmp_path, "stored", CPU, max_context=64).max_context == 64


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"num_hidden_layers": 1}, "tensor model.layers.1.* is not part of this model"),
        ({"num_hidden_layers": 3}, r"tensor model.layers.2.* is missing; expected shape"),
        ({"intermediate_size": 96}, r"has shape \[.*100.*\]; expected \[.*96.*\]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, fields, sentence):
    saved(tmp_path, **PHI3)
    rewritten(tmp_path, **fields)
    with pytest.raises(ModelError, match=sentence):
        load(tmp_path, "stored", CPU)


def test_a_row_that_sees_its_batch_is_noticed(tmp_path, monkeypatch):
    """By any part of the model: here what an MLP makes of a row depends on the row before it."""
    from transformers.models.phi3.modeling_phi3 import Phi3MLP

    saved(tmp_path, **PHI3)
    honest = Phi3MLP.forward
    monkeypatch.setattr(Phi3MLP, "forward", lambda self, x: honest(self, x) + x.roll(1, 1))
    with pytest.raises(ModelError, match="sees more of a pass than attention shows it"):
        load(tmp_path, "stored", CPU)


def test_bits_that_depend_on_the_batch_are_noticed(tmp_path, monkeypatch):
    from transformers.models.phi3.modeling_phi3 import Phi3MLP

    saved(tmp_path, **PHI3)
    honest = Phi3MLP.forward
    nudged = lambda self, x: honest(self, x) * (1 + 1e-6 * (x.shape[1] > 1))  # noqa: E731
    monkeypatch.setattr(Phi3MLP, "forward", nudged)
    with pytest.raises(ModelError, match="in their last bits"):
        load(tmp_path, "stored", CPU)


def test_a_matrix_is_for_products_and_rows_alone(generator):
    weight = torch.randn(70, 24, generator=generator)
    matrix = Matrix.of((70, 24), torch.float32, CPU, Linear(weight))
    x, ids = torch.randn(2, 3, 24, generator=generator), torch.tensor([[3, 69], [0, 3]])
    torch.testing.assert_close(F.linear(x, matrix), F.linear(x, weight))
    assert torch.equal(F.embedding(ids, matrix), F.embedding(ids, weight))
    assert (matrix.shape, matrix.dtype) == (weight.shape, torch.float32)
    with pytest.raises(ModelError, match="in a way that is not supported"):
        x @ matrix.T


@pytest.mark.parametrize("function", sorted(UNSTEADY, key=str), ids=lambda f: f.__name__)
def test_functions_have_the_same_bits_wherever_a_number_lies(function, generator):
    x = torch.rand(7, 100, generator=generator) * 0.9
    with Steady():
        together = function(x)
        for row in range(len(x)):
            assert torch.equal(function(x[row : row + 1, :37]), together[row : row + 1, :37])
    torch.testing.assert_close(together, function(x))


@pytest.mark.parametrize(
    ("model_type", "wrong", "said"),
    [
        ("gptj", {"n_layer": 10**9}, "num_hidden_layers is 1000000000; expected 1 .. 1024"),
        ("gptj", {"vocab_size": 0}, "vocab_size is 0"),
        ("phi3", {"vocab_size": 10**30}, "vocab_size is 10"),
        ("phi3", {"num_attention_heads": -1}, "num_attention_heads is -1"),
        ("phi3", {"num_key_value_heads": 10**30}, "cannot be run"),
        ("gpt_oss", {"num_experts_per_tok": 9, "num_local_experts": 8}, "expected 1 .. 8"),
        ("deepseek_v3", {"num_experts_per_tok": -1}, "num_experts_per_tok is -1"),
    ],
)
def test_sizes_that_lie_are_told_in_a_sentence(model_type, wrong, said, tmp_path):
    """Before a module is made of them, and without the pages that torch has to say of some."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **wrong}))
    with pytest.raises(ModelError) as refused:
        load(tmp_path, "stored", CPU)
    assert said in str(refused.value)
    assert len(str(refused.value)) < 600
    if "vocab_size" in wrong:
        with pytest.raises(ModelError, match="vocab_size"):
            vocabulary_size(str(tmp_path))
