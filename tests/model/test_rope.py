"""Frequencies, scalings and the turn itself against transformers' own."""

import pytest
import torch
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from runtime.model.config import from_huggingface
from runtime.model.rope import DividedScaling, Llama3Scaling, rope_tables, scaling_from
from tests.kernels.cases import rotate
from tests.model import tiny

ROPES = {
    "plain": {"rope_type": "default", "rope_theta": 5e5},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {**tiny.LLAMA3_ROPE, "original_max_position_embeddings": 256},
    "yarn": tiny.YARN_ROPE,
    "yarn-betas": {**tiny.YARN_ROPE, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
    "yarn-mscale": {**tiny.YARN_ROPE, "mscale": 0.7, "mscale_all_dim": 0.4},
    "yarn-attention": {**tiny.YARN_ROPE, "attention_factor": 0.5},
}


# fields beside the rope parameters
OUTSIDE = {"": {}, "outside": {"original_max_position_embeddings": 128}}


@pytest.mark.parametrize("outside", sorted(OUTSIDE))
@pytest.mark.parametrize("name", sorted(ROPES))
@pytest.mark.parametrize("head_dim", [16, 64])
def test_turns_queries_and_keys_as_transformers_does(name, head_dim, outside, generator):
    fields = {**tiny.SIZES, "head_dim": head_dim, "max_position_embeddings": 1024}
    fields |= OUTSIDE[outside]
    theirs = AutoConfig.for_model("llama", **fields, rope_parameters=dict(ROPES[name]))
    ours = from_huggingface(theirs)
    x = torch.randn(50, 3, head_dim, generator=generator)
    positions = torch.randint(0, 1024, (50,), generator=generator)

    cos, sin = LlamaRotaryEmbedding(theirs)(x, positions[None])
    expected, _ = apply_rotary_pos_emb(x.transpose(0, 1)[None], x[None].transpose(1, 2), cos, sin)
    cos, sin = rope_tables(head_dim, ours.rope_theta, ours.rope_scaling, ours.max_context)
    turned = rotate(x, cos[positions][:, None], sin[positions][:, None])
    torch.testing.assert_close(turned, expected[0].transpose(0, 1), rtol=0, atol=2e-4)


def test_divisors_stored_in_a_file_do_what_llama3_computes():
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 32)
    frequencies = 1e4 ** -(torch.arange(0, 16, 2) / 16)
    divisors = tuple((frequencies / scaling.apply(frequencies, 1e4)).tolist())
    ours = rope_tables(16, 1e4, DividedScaling(divisors), 100)
    expected = rope_tables(16, 1e4, scaling, 100)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="8 divisors, expected 4"):
        rope_tables(8, 1e4, DividedScaling(divisors), 100)


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "proportional"])
def test_other_scalings_are_refused(kind):
    with pytest.raises(ValueError, match=f"rope scaling '{kind}' is not supported; expected lin"):
        scaling_from({"rope_type": kind, "factor": 2.0}, 128)
    with pytest.raises(ValueError, match="partial_rotary_factor"):
        scaling_from({"rope_type": "default", "partial_rotary_factor": 0.5}, 128)
