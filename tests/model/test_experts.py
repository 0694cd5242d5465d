import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.model import weights
from runtime.model.config import ExpertsConfig, ModelError
from runtime.model.experts import Experts, GroupedLinear, MixtureOfExperts, Router, SharedExpert
from runtime.model.transformer import GatedMlp, Linear
from specedge_kernels import pack_quantized
from tests.kernels.quantized_cases import random_stored

ROWS, HIDDEN, INNER, N_EXPERTS, N_CHOSEN = 9, 32, 24, 5, 2


def clamped(gate_up):
    """gpt-oss: gates and ups take turns."""
    gate, up = gate_up[:, ::2].clamp(max=7), gate_up[:, 1::2].clamp(-7, 7)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


@pytest.mark.parametrize("gate", ["silu", "gpt-oss"])
def test_a_mixture_is_the_weighted_sum_of_the_chosen_experts(gate):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    first, second = normal(N_EXPERTS, 2 * INNER, HIDDEN) / 4, normal(N_EXPERTS, HIDDEN, INNER) / 4
    first_bias, second_bias = normal(N_EXPERTS, 2 * INNER), normal(N_EXPERTS, HIDDEN)
    router, x = normal(N_EXPERTS, HIDDEN), normal(ROWS, HIDDEN)
    shared, shared_gate = (normal(2 * INNER, HIDDEN), normal(HIDDEN, INNER)), normal(1, HIDDEN)
    options = {} if gate == "silu" else {"gate": clamped}
    mixture = MixtureOfExperts(
        Router(Linear(router), N_CHOSEN, normalise=True, scale=1.5),
        Experts(GroupedLinear(first, first_bias), GroupedLinear(second, second_bias), **options),
        SharedExpert(GatedMlp(*map(Linear, shared)), Linear(shared_gate)),
    )

    def silu(gate_up):
        gate, up = gate_up.chunk(2, dim=1)
        return torch.nn.functional.silu(gate) * up

    between = silu if gate == "silu" else clamped
    x64 = x.double()
    want = between_shared = silu(x64 @ shared[0].double().T) @ shared[1].double().T
    want = between_shared * torch.sigmoid(x64 @ shared_gate.double().T)
    top = (x64 @ router.double().T).topk(N_CHOSEN)
    for row in range(ROWS):
        for e, weight in zip(top.indices[row], top.values[row].softmax(-1), strict=True):
            inner = between(x64[row : row + 1] @ first[e].double().T + first_bias[e])
            want[row] += 1.5 * weight * (inner @ second[e].double().T + second_bias[e])[0]
    got = mixture(x)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)
    assert torch.equal(mixture(x[3:4]), got[3:4])


def test_sets_are_all_floats_or_all_quantised():
    quantised = pack_quantized(random_stored(8, 8, 32), 8)
    with pytest.raises(ValueError, match="all floats or all quantised, got both"):
        GroupedLinear([torch.zeros(8, 32), quantised])


@pytest.mark.parametrize("kind", ["bfloat16", "q8_0", "q4_0"])
def test_gates_stay_floats_whatever_the_experts_are(pairs, kind):
    model = weights.load(pairs("qwen2-moe").folder, kind)
    mixture = model.layers[0].mlp
    assert mixture.router.linear.weight.dtype == torch.float32
    assert mixture.shared.gate.weight.dtype == torch.float32
    if kind == "bfloat16":
        assert mixture.experts.gate_up.weight.dtype == torch.bfloat16
    else:
        assert mixture.experts.gate_up.weight.kinds == ({"q8_0": 8, "q4_0": 2}[kind],)


def test_a_layer_may_be_without_experts(pairs):
    mlps = [layer.mlp for layer in pairs("qwen2-moe-normalised").ours.layers]
    assert [isinstance(mlp, GatedMlp) for mlp in mlps] == [True, False, True, True]


def test_a_missing_expert_is_named(pairs, tmp_path):
    folder = pairs("mixtral").folder
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.block_sparse_moe.experts.3.w3.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ModelError, match=r"layers.1.mlp.experts.3.up_proj.weight is missing"):
        weights.load(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"n_experts": 0}, "n_experts is 0; expected 1"),
        ({"n_experts": 2**17}, "n_experts is 131072; expected 1"),
        ({"n_chosen": 9}, "9 of 8 experts cannot be chosen"),
        ({"intermediate_size": None}, "intermediate_size is None"),
        ({"shared_size": 0}, "shared_size is 0"),
    ],
)
def test_impossible_numbers_are_refused(wrong, sentence):
    good = {"n_experts": 8, "n_chosen": 2, "intermediate_size": 16, "normalise": True}
    with pytest.raises(ValueError, match=sentence):
        ExpertsConfig(**{**good, **wrong})
