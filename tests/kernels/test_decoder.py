"""What one call of all layers refuses; its results are compared in tests/model/test_decoder.py."""

import dataclasses

import pytest
import torch

import specedge_kernels as kernels
from specedge_kernels import (
    Decoder,
    DecoderLayer,
    PackedLinear,
    PackedRouter,
    QuantizedWeight,
    StoredWeight,
)
from tests.kernels.cases import int32
from tests.kernels.quantized_cases import random_stored

H, INNER, HQ, HK, D = 12, 20, 4, 2, 6
COS, SIN = torch.ones(40, D), torch.zeros(40, D)


def packed(inputs, outputs, bias=False):
    generator = torch.Generator().manual_seed(outputs)
    weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    return PackedLinear(kernels.pack_linear(weight), outputs, torch.ones(outputs) if bias else None)


def layer(window=-1):
    return DecoderLayer(
        attention_norm=torch.ones(H),
        qkv=packed(H, (HQ + 2 * HK) * D, bias=True),
        qk_norm=torch.ones(HQ + HK, D),
        output=packed(HQ * D, H),
        mlp_norm=torch.ones(H),
        gate_up=packed(H, 2 * INNER),
        down=packed(INNER, H),
        window=window,
    )


EMBEDDING, NORM, HEAD = torch.rand(30, H), torch.ones(H), packed(H, 30)


def decoder(*layers, embedding=EMBEDDING):
    layers = layers or [layer(), layer(4)]
    return Decoder(embedding, layers, NORM, HEAD, HQ, HK, COS, SIN, 1e-5)


def step():
    """A chain of three rows after a prefix of five, in a cache of NaN."""
    return {
        "tokens": torch.tensor([0, 29, 7]),
        "positions": torch.tensor([5, 6, 7]),
        "slots": torch.tensor([5, 6, 7]),
        "page_table": int32([[0, 1]]),
        "prefix_lens": int32([5]),
        "n_nodes": int32([3]),
        "offsets": int32([0, 3]),
        "ancestors": torch.tensor([[1], [3], [7]]),
        "depth": int32([0, 1, 2]),
        "kv": torch.full((2, 2, 4, 4, HK, D), float("nan")),
        "wanted": torch.tensor([2]),
    }


def test_a_step_is_finite_and_writes_its_rows_only():
    arguments = step()
    arguments["kv"][:, :, :1] = 0.5
    arguments["kv"][:, :, 1, :1] = 0.5
    out = decoder()(**arguments)
    assert out.shape == (1, H)
    assert out.isfinite().all()
    written = arguments["kv"].isfinite().all(-1).all(-1)  # [L, 2, P, S]
    assert torch.equal(written.flatten(2).sum(-1), torch.full((2, 2), 8))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tokens", int32([1, 2, 3]), "tokens: expected a contiguous int64"),
        ("tokens", torch.tensor([1, 30, 3]), r"tokens in 0 \.\. 29, got 30 at row 1"),
        ("tokens", torch.tensor([1, 3, -1]), r"tokens in 0 \.\. 29, got -1 at row 2"),
        ("tokens", torch.ones(3, device="meta"), "expected tensors on cpu, got meta"),
        ("positions", torch.ones(3), "positions: expected a contiguous int64"),
        ("slots", torch.ones(2).long(), r"slots: expected .* shape \[3\]"),
        ("page_table", int32([0, 1]), "page_table: expected"),
        ("offsets", int32([0, 1, 3]), r"offsets: expected .* shape \[2\]"),
        ("n_nodes", torch.ones(1).long(), "n_nodes: expected a contiguous int32"),
        ("ancestors", torch.ones(2, 1).long(), r"ancestors: expected .* shape \[3, any\]"),
        ("depth", int32([0]), r"depth: expected .* shape \[3\]"),
        ("kv", torch.ones(3, 2, 4, 4, HK, D), r"kv: expected a cache \[2, 2, P, S, 2, 6\]"),
        ("kv", torch.ones(2, 2, 4, 4, HK, D).double(), "kv: expected a cache"),
        ("kv", torch.ones(2, 2, 4, 4, D, HK).transpose(4, 5), "kv: expected a cache"),
        ("kv", torch.ones(2, 2, 4, 0, HK, D), "kv: expected a cache"),
        ("wanted", int32([0]), "wanted: expected a contiguous int64"),
        ("wanted", torch.tensor([0, 3]), r"wanted rows in 0 \.\. 2, got 3 at index 1"),
        ("wanted", torch.tensor([-1]), r"wanted rows in 0 \.\. 2, got -1 at index 0"),
        ("positions", torch.tensor([5, 6, 40]), r"positions in 0 \.\. 39, got 40 at row 2"),
        ("slots", torch.tensor([5, 5, 7]), "expected distinct slots, got 5 again at row 1"),
        ("slots", torch.tensor([5, 6, 16]), "expected slots below 16, got 16 at row 2"),
        ("page_table", int32([[0, 4]]), r"page ids in 0 \.\. 3, got 4"),
        ("prefix_lens", int32([-1]), "prefix length of 0 or more, got -1"),
        ("n_nodes", int32([2]), "at least as many nodes as its 3 rows, got 2"),
        ("offsets", int32([0, 2]), "the last offset to be the number of rows 3, got 2"),
        ("depth", int32([0, 2, 2]), r"expected a depth in 0 \.\. 1 for node 1, got 2"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_written(name, value, message):
    arguments = step()
    arguments[name] = value
    with pytest.raises(ValueError, match=message):
        decoder()(**arguments)
    if name != "kv":
        assert arguments["kv"].isnan().all()


def test_pages_before_the_window_are_not_read():
    arguments = step()
    arguments["page_table"][0, 0] = 99
    arguments["kv"][:, :, 1, :1] = 0.5
    assert decoder(layer(2), layer(2))(**arguments).isfinite().all()
    with pytest.raises(ValueError, match=r"page ids in 0 \.\. 3, got 99"):
        decoder(layer(2), layer())(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_norm": torch.ones(H).half()}, "attention_norm: expected"),
        ({"mlp_norm": torch.ones(H - 1)}, r"mlp_norm: expected .* shape \[12\]"),
        ({"qk_norm": torch.ones(HQ, D)}, r"qk_norm: expected .* shape \[6, 6\]"),
        ({"qkv": packed(H, HQ * D)}, "qkv: expected 48 outputs, got 24"),
        ({"output": packed(H, H)}, r"output: expected .* shape \[1, 24, 64\]"),
        ({"gate_up": packed(H, INNER)}, "gate_up: expected 40 outputs, got 20"),
        ({"down": packed(INNER + 1, H)}, "gate_up: expected 42 outputs, got 40"),
        ({"down": packed(INNER, H + 1)}, "down: expected 12 outputs, got 13"),
        (
            {"down": dataclasses.replace(packed(INNER, H), bias=torch.ones(3))},
            r"bias of down: expected .* shape \[12\]",
        ),
    ],
)
def test_misshaped_weights_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        decoder(layer(), dataclasses.replace(layer(), **change))


def test_impossible_models_are_named():
    good = {
        "embedding": EMBEDDING,
        "layers": [layer()],
        "norm": NORM,
        "head": HEAD,
        "n_heads": HQ,
        "n_kv_heads": HK,
        "cos": COS,
        "sin": SIN,
        "eps": 1e-5,
    }
    odd = torch.ones(40, 5)
    for change, message in (
        ({"layers": []}, "layers: expected at least one"),
        ({"n_heads": 3}, "n_heads: expected a multiple of 2, got 3"),
        ({"n_kv_heads": 0}, r"n_kv_heads: expected 1 \.\. 4, got 0"),
        ({"sin": SIN[:9]}, r"sin: expected .* shape \[40, 6\]"),
        ({"cos": odd, "sin": odd}, "cos: expected an even D, got 5"),
        ({"embedding": EMBEDDING[:, :7].contiguous()}, r"embedding: expected .* shape \[any, 12\]"),
        ({"norm": NORM.double()}, "norm: expected a contiguous float32"),
        ({"head": packed(H + 1, 30)}, r"head: expected .* shape \[1, 12, 64\]"),
        ({"embedding": EMBEDDING.to("meta")}, "expected tensors on cpu, got meta"),
        ({"embedding": EMBEDDING.tolist()}, "decoder: expected a tensor, got list"),
        ({"norm": torch.ones(H, requires_grad=True)}, "decoder has no gradient"),
        ({"eps": float("nan")}, "eps: expected 0 or more, and a finite float32, got nan"),
        ({"layers": [layer(-5)]}, "window: expected -1 or more, got -5"),
    ):
        with pytest.raises(ValueError, match=message):
            Decoder(**good | change)


def mixed(**change):
    """A layer of three experts, of which two are asked."""
    sets = [packed(H, 2 * INNER).weight] * 3, [packed(INNER, H).weight] * 3
    gate_up, down = (
        PackedLinear(torch.stack(weights), outputs)
        for weights, outputs in zip(sets, (2 * INNER, H), strict=True)
    )
    router = PackedRouter(packed(H, 3), 2, normalise=True)
    experts = {"gate_up": gate_up, "down": down, "router": router}
    return dataclasses.replace(layer(), **{**experts, **change})


def test_misshaped_experts_are_named():
    good, arguments = mixed(), step()
    arguments["kv"].fill_(0.5)
    assert decoder(good, layer())(**arguments).isfinite().all()
    for change, message in (
        ({"router": None}, r"gate_up: expected .* shape \[1, 12, 64\]"),
        ({"gate_up": packed(H, 2 * INNER)}, r"gate_up: expected .* shape \[3, 1, 12, 64\]"),
        ({"down": packed(INNER, H)}, r"down: expected .* shape \[3, 1, 20, 64\]"),
        (
            {"down": dataclasses.replace(good.down, bias=torch.ones(H))},
            "bias of down: expected none for sets",
        ),
        ({"router": PackedRouter(packed(H, 3), 4, normalise=True)}, r"k: expected 1 \.\. 3, got 4"),
        (
            {"router": PackedRouter(packed(H + 1, 3), 2, normalise=True)},
            r"router: expected .* shape \[1, 12, 64\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            decoder(layer(), mixed(**change))


@pytest.mark.parametrize("name", step())
def test_a_step_of_lists_is_refused(name):
    wrong = step()[name].tolist()
    with pytest.raises(ValueError, match="decoder: expected a tensor, got list"):
        decoder()(**step() | {name: wrong})


def test_logits_of_misshaped_states_are_refused():
    with pytest.raises(
        ValueError, match=r"hidden: expected .* shape \[any, 12\], got .* \[3, 11\]"
    ):
        decoder().logits(torch.ones(3, 11))
    assert decoder().logits(torch.ones(0, H)).shape == (0, 30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_tied_embedding_is_the_weights_of_the_head(dtype):
    weight = torch.randn(70, H).to(dtype)
    head = PackedLinear(kernels.pack_linear(weight), 70)
    arguments = step() | {"tokens": torch.tensor([69, 0, 64]), "wanted": None}
    arguments["kv"].fill_(0.5)
    rows = [
        Decoder(table, [layer()], NORM, head, HQ, HK, COS, SIN, 1e-5)(
            **arguments | {"kv": arguments["kv"][:1].clone()}
        )
        for table in (None, weight)
    ]
    assert torch.equal(*rows)


def quantized(inputs, outputs):
    return PackedLinear(kernels.pack_quantized(random_stored(8, outputs, inputs), 8), outputs)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (quantized(32, 30), r"head: expected 12 inputs, 30 outputs, got \(32, 30\)"),
        (dataclasses.replace(quantized(32, 30), out_features=31), r"head: expected 12 inputs, 31"),
        (
            PackedLinear(QuantizedWeight(torch.zeros(1).byte(), (8,), (30,), 32), 30),
            "packed: expected a contiguous uint8",
        ),
        (
            PackedLinear(QuantizedWeight(torch.zeros(1).byte(), (99,), (30,), 32), 30),
            "kind: expected one of",
        ),
    ],
)
def test_misshaped_quantised_weights_are_named(head, message):
    with pytest.raises(ValueError, match=message):
        Decoder(EMBEDDING, [layer()], NORM, head, HQ, HK, COS, SIN, 1e-5)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (StoredWeight(torch.zeros(30, 34).byte(), 8), "embedding: expected rows of 12, got 32"),
        (StoredWeight(torch.zeros(30, 33).byte(), 8), "rows of a multiple of 34 bytes, got 33"),
        (StoredWeight(torch.zeros(30, 34), 8), "stored: expected a contiguous uint8"),
        (StoredWeight(torch.zeros(30, 34).byte(), 10), r"kind: expected one of .*, got 10"),
    ],
)
def test_a_misshaped_quantised_embedding_is_named(table, message):
    with pytest.raises(ValueError, match=message):
        decoder(embedding=table)
