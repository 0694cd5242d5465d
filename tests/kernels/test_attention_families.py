"""Everything that families of models ask of tree attention, all of it together."""

import pytest
import torch

import specedge_kernels as kernels
from specedge_kernels import reference
from tests.kernels.cases import linearised, make_batch, make_caches, parents_of
from tests.kernels.families import Family, draw, expected


def attend(family: Family) -> tuple[torch.Tensor, torch.Tensor]:
    arguments = (family.q, *family.caches, *family.batch.tables)
    return kernels.tree_attention(*arguments, **family.options, return_lse=True)


@pytest.mark.parametrize("seed", range(40))
def test_any_mixture_equals_float64(seed):
    family = draw(seed)
    (out, lse), (want, want_lse) = attend(family), expected(family)
    assert (out - want).norm() <= 2e-6 * want.norm()
    torch.testing.assert_close(lse.double(), want_lse, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_the_specification_equals_the_oracle(seed):
    family = draw(seed, prefix=20)
    arguments = (family.q.double(), *family.caches, *family.batch.tables)
    out, lse = reference.tree_attention(*arguments, **family.options, return_lse=True)
    want, want_lse = expected(family)
    torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_any_row_has_the_bits_of_plain_decoding(seed):
    family = draw(seed)
    together, generator = attend(family), torch.Generator().manual_seed(seed)
    first = 0
    for b, n in enumerate(family.batch.offsets.diff().tolist()):
        for index in {0, n // 2, n - 1} if n else ():
            node = int(family.batch.n_nodes[b]) - n + index
            alone, moved = linearised(family.batch, family.caches, b, node, generator, 32)
            row = first + index
            decoded = attend(Family([], alone, family.q[row : row + 1], moved, family.options))
            for got, want in zip(together, decoded, strict=True):
                assert torch.equal(got[row], want[0]), (b, node)
        first += n


def test_absorbed_latent_attention_equals_the_expanded_one():
    """DeepSeek-V2 (arXiv:2405.04434) section 2.1: keys and values are products of one latent."""
    generator = torch.Generator().manual_seed(2)
    heads, latent, rotary, nope, value = 4, 512, 64, 128, 128
    parents = parents_of("random", 20, generator)
    batch = make_batch([parents], [50], 16, generator)
    stored = make_caches(batch, 1, latent + rotary, torch.float32, generator)[0]
    up_keys = torch.randn(heads, nope, latent, generator=generator) / latent**0.5
    up_values = torch.randn(heads, value, latent, generator=generator) / latent**0.5
    q_nope = torch.randn(20, heads, nope, generator=generator)
    q_rotary = torch.randn(20, heads, rotary, generator=generator)

    absorbed = torch.cat((torch.einsum("nhi,hil->nhl", q_nope, up_keys), q_rotary), -1)
    options = {"scale": (nope + rotary) ** -0.5, "k_scale": 1.0, "v_scale": 1.0}
    family = Family([parents], batch, absorbed, (stored, stored[..., :latent]), options)
    mixed = torch.einsum("nhl,hvl->nhv", attend(family)[0], up_values)

    latents, turned = stored[..., :latent], stored[..., latent:]
    keys = torch.einsum("psxl,hil->pshi", latents, up_keys)
    keys = torch.cat((keys, turned.expand(-1, -1, heads, -1)), -1)
    values = torch.einsum("psxl,hvl->pshv", latents, up_values)
    expanded = torch.cat((q_nope, q_rotary), -1)
    want, _ = expected(Family([parents], batch, expanded, (keys, values), options))
    assert (mixed - want).norm() <= 1e-5 * want.norm()
