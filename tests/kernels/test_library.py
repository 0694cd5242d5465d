import pytest
import torch

import specedge_kernels as kernels
from specedge_kernels import library
from tests.kernels.cases import int32, make_batch, make_caches, offsets_of, parents_of
from tests.kernels.edits import make_edit
from tests.kernels.quantized_cases import random_stored


def arguments(op):
    """A small valid call of each op."""
    generator = torch.Generator().manual_seed(0)
    batch = make_batch([[-1, 0, 0], parents_of("random", 9, generator)], [5, 20], 16, generator)
    k_cache, v_cache = make_caches(batch, 1, 16, torch.float32, generator)
    rows = int(batch.offsets[-1])
    k = torch.randn(rows, 1, 16)
    tokens, zeros = torch.arange(rows), torch.zeros(rows)
    whole = zeros, torch.zeros(rows, dtype=torch.int32), zeros + 1, zeros
    calls = {
        "build_tree": (int32([-1, 0, 1, -1]), offsets_of([3, 1]), 1),
        "tree_attention": (torch.randn(rows, 2, 16), k_cache, v_cache, *batch.tables),
        "append_kv": (k, k + 1, k_cache, v_cache, tokens),
        "rope_append_kv": (
            torch.randn(rows, 4, 16),
            torch.randn(3, 16),
            *torch.randn(2, 8, 16),
            tokens % 8,
            k_cache,
            v_cache,
            tokens,
        ),
        "compact_kv": (
            torch.randn(2, 2, 4, 16, 1, 8),
            int32([3, 1])[None],
            int32([4]),
            int32([0, 2, 20])[None],
            int32([3]),
        ),
        "verify": (tokens, batch.ancestors, batch.offsets, tokens + 1, 9),
        "target_tokens": (
            *(torch.randn(rows, 40), *whole, tokens, tokens),
            *(torch.full((2, 2), 77, dtype=torch.int32), int32([1, -1] * rows)[:rows]),
        ),
        "edit_logits": tuple(make_edit([2, 5], 40, 0).arguments().values()),
        "token_logprobs": (torch.randn(rows, 40), tokens, 3),
        "draft_topk": (torch.randn(rows, 40), 3, zeros + 1, tokens, tokens, torch.arange(40) * 2),
        "rms_norm": (torch.randn(3, 20), torch.randn(20), 1e-6, torch.randn(3, 20)),
        "silu_mul": (torch.randn(3, 20),),
        "linear": (torch.randn(3, 20), torch.randn(2, 20, 64), 100),
        "pack_quantized": (random_stored(12, 13, 256), 12),
        "dequantize": (random_stored(3, 13, 96), 3),
        "quantized_linear": quantized_arguments(),
        "route": (torch.randn(3, 12), 2, "sigmoid", True, 2.5, torch.randn(12), 4, 2, 2),
        "grouped_linear": (
            torch.randn(3, 20),
            torch.randn(4, 2, 20, 64),
            100,
            int32([[0, 3], [-1, 1], [3, 0]]),
            torch.randn(4, 100),
        ),
        "grouped_quantized_linear": grouped_arguments(),
        "weighted_sum": (torch.randn(6, 20), torch.rand(3, 2)),
    }
    attending = {"scale": 0.25, "sinks": torch.randn(2)}
    return calls[op], attending if op == "tree_attention" else {}


def public_arguments(op):
    """The same call of the public function."""
    args, options = arguments(op)
    if op == "route":
        names = ("scoring", "normalise", "scale", "bias", "n_groups", "top_groups", "group_best")
        args, options = args[:2], dict(zip(names, args[2:], strict=True))
    return args, options


def quantized_arguments():
    parts = [kernels.pack_quantized(random_stored(kind, 13, 256), kind) for kind in (12, 14)]
    both = kernels.QuantizedWeight.concatenated(parts)
    return torch.randn(3, 256), both.packed, list(both.kinds), list(both.sizes), False


def grouped_arguments():
    stored = [random_stored(8, 13, 64, seed=e) for e in range(4)]
    sets = kernels.QuantizedWeight.stacked([kernels.pack_quantized(s, 8) for s in stored])
    quantized = sets.packed, list(sets.kinds), list(sets.sizes)
    return torch.randn(3, 64), *quantized, int32([[0], [-1], [3]]), None, False


OPS = sorted(library.OPS)


@pytest.mark.parametrize("op", OPS)
def test_opcheck(op):
    args, options = arguments(op)
    torch.library.opcheck(getattr(torch.ops.specedge, op).default, args, options)


@pytest.mark.parametrize("op", [op for op in OPS if "quantized" not in op])
def test_traces_as_one_graph(op):
    args, options = public_arguments(op)
    copies = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
    function = getattr(kernels, op)
    want = function(*args, **options)
    got = torch.compile(function, fullgraph=True, backend="aot_eager")(*copies, **options)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(copies, list(args), rtol=0, atol=0, equal_nan=True)


def test_a_quantized_weight_traces_as_one_graph():
    stored, x = random_stored(14, 13, 256), torch.randn(3, 256)

    def product(stored, x):
        weight = kernels.pack_quantized(stored, 14)
        return kernels.quantized_linear(x, weight)

    got = torch.compile(product, fullgraph=True, backend="aot_eager")(stored, x)
    assert torch.equal(got, product(stored, x))
    weight = kernels.pack_quantized(stored, 14)
    compiled = torch.compile(kernels.quantized_linear, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, weight), got)


def test_a_device_without_an_implementation_is_named(monkeypatch):
    monkeypatch.setitem(library.DEVICES, "linear", ["meta", "cuda", "xpu"])
    with pytest.raises(
        ValueError, match="linear has no implementation for cpu; it runs on cuda and xpu"
    ):
        kernels.linear(torch.ones(1, 4), torch.ones(1, 4, 64), 64)


def test_tensors_on_two_devices_are_refused():
    with pytest.raises(ValueError, match="linear: expected all tensors on cpu, got one on meta"):
        kernels.linear(torch.ones(1, 4), torch.ones(1, 4, 64, device="meta"), 64)


def test_shapes_without_data():
    out = kernels.linear(torch.ones(3, 4, device="meta"), torch.ones(2, 4, 64, device="meta"), 100)
    assert out.shape == (3, 100)
