"""Wrong arguments at every op of the public page. `test_hostile` runs this file in a process of
its own, because what it looks for ends a process.
"""

import random

import pytest
import torch

import specedge_kernels as kernels
from specedge_kernels import library, reference
from tests.kernels.cases import int32
from tests.kernels.quantized_cases import random_stored

INT32, INT64 = torch.iinfo(torch.int32), torch.iinfo(torch.int64)
HOSTILE = (INT64.min, INT32.min, -65, -2, -1, 0, 1, 2, 5, 63, 64, 1000, INT32.max, INT64.max)
PARENTS = int32([-1, 0, 0, 2, -1, 0])  # a tree of four nodes, and one of two
OFFSETS = int32([0, 4, 6])
WRITTEN = (
    *("k_cache", "v_cache", "kv", "x", "logits"),
    *("tokens", "parents", "scores", "depths", "slots", "found"),
)
# the first dimension of these belongs to no other argument
FREE_ROWS = {
    *(("compact_kv", "kv"), ("linear", "x"), ("silu_mul", "gate_up")),
    *(("target_tokens", "mask"), ("route", "logits")),
    *(("pack_quantized", "stored"), ("dequantize", "stored"), ("quantized_linear", "x")),
}
ANY_TYPE = {("compact_kv", "kv")}
ANY_STRIDES = {"k_cache", "v_cache", "kv"}


def cache():
    return torch.randn(6, 4, 2, 8)


def trees():
    ancestors, depth = reference.build_tree(PARENTS, OFFSETS, 1)
    tables = {"page_table": int32([[5, 1, 0], [2, 4, 3]]), "prefix_lens": int32([3, 6])}
    sizes = {"n_nodes": int32([4, 2]), "offsets": OFFSETS.clone()}
    return tables | sizes | {"ancestors": ancestors, "depth": depth}


def rows_of_draws(rows):
    return {
        "temperature": torch.full((rows,), 0.8),
        "top_k": int32([5] * rows),
        "top_p": torch.full((rows,), 0.9),
        "min_p": torch.full((rows,), 0.01),
        "seed": torch.arange(rows),
        "position": torch.arange(rows),
    }


def masks():
    """For two rows of 40 logits, the second of which may be anything."""
    return {"mask": int32([[-1, -1], [7, 0], [-9, 3]]), "mask_row": int32([2, -1])}


def edit_arguments():
    trees = {
        "tokens": torch.tensor([9, 7, 7, 9, 0, 3]),
        "ancestors": reference.build_tree(PARENTS, OFFSETS, 1)[0],
        "offsets": OFFSETS.clone(),
    }
    text = {"text_offsets": int32([0, 2, 3]), "text_tokens": torch.tensor([7, 9, 0, -5])}
    text |= {"text_counts": int32([0, 2, 1, -5])}
    bias = {"bias_offsets": int32([0, 1, 3]), "bias_tokens": torch.tensor([3, 0, 39])}
    bias |= {"bias_values": torch.tensor([1.0, -100.0, 100.0])}
    numbers = {"repetition": torch.tensor([1.3, 1.0]), "frequency": torch.tensor([0.5, 0.0])}
    numbers |= {"presence": torch.tensor([0.0, -2.0])}
    return {"logits": torch.randn(6, 40)} | trees | text | bias | numbers


def draft_arguments():
    draws = {name: rows_of_draws(2)[name] for name in ("temperature", "seed", "position")}
    return {"logits": torch.randn(2, 40), "k": 3, "token_ids": torch.arange(40)} | draws


def rope_arguments():
    tables = {"cos": torch.randn(9, 8), "sin": torch.randn(9, 8)}
    caches = {"k_cache": cache(), "v_cache": cache()}
    places = {"positions": torch.tensor([0, 8, 3]), "slots": torch.tensor([4, 23, -1])}
    return {"qkv": torch.randn(3, 8, 8), "qk_norm": torch.randn(6, 8)} | tables | caches | places


def grouped_weight():
    stored = [random_stored(8, 9, 64, seed=e) for e in range(3)]
    return kernels.QuantizedWeight.stacked([kernels.pack_quantized(s, 8) for s in stored])


# op -> a good call's arguments, made anew each time
CALLS = {
    "build_tree": lambda: {"parents": PARENTS.clone(), "offsets": OFFSETS.clone(), "words": 1},
    "tree_attention": lambda: {
        "q": torch.randn(6, 4, 8),
        "k_cache": cache(),
        "v_cache": cache(),
        **trees(),
        "scale": 0.3,
        "sinks": torch.randn(4),
    },
    "append_kv": lambda: {
        "k": torch.randn(3, 2, 8),
        "v": torch.randn(3, 2, 8),
        "k_cache": cache(),
        "v_cache": cache(),
        "slots": torch.tensor([4, 23, -1]),
    },
    "rope_append_kv": rope_arguments,
    "compact_kv": lambda: {
        "kv": torch.randn(2, 2, 6, 4, 2, 8),
        "page_table": int32([[5, 1, 0], [2, 4, 3]]),
        "prefix_lens": int32([3, 6]),
        "path": int32([[0, 2, 3], [1, 3, -1]]),
        "accepted_lens": int32([3, 2]),
    },
    "verify": lambda: {
        "tokens": torch.tensor([0, 7, 8, 9, 0, 3]),
        "ancestors": trees()["ancestors"],
        "offsets": OFFSETS.clone(),
        "target": torch.tensor([8, 0, 9, 4, 3, 6]),
        "max_path": 3,
    },
    "target_tokens": lambda: {"logits": torch.randn(2, 40), **rows_of_draws(2), **masks()},
    "edit_logits": edit_arguments,
    "token_logprobs": lambda: {
        "logits": torch.randn(2, 40),
        "tokens": torch.tensor([39, -1]),
        "n": 3,
    },
    "draft_topk": draft_arguments,
    "linear": lambda: {
        "x": torch.randn(3, 5),
        "weight": reference.pack_linear(torch.randn(70, 5)),
        "out_features": 70,
    },
    "rms_norm": lambda: {
        "x": torch.randn(3, 8),
        "weight": torch.randn(8),
        "eps": 1e-6,
        "delta": torch.randn(3, 8),
    },
    "silu_mul": lambda: {"gate_up": torch.randn(3, 8)},
    "pack_quantized": lambda: {"stored": random_stored(14, 9, 256), "kind": 14},
    "dequantize": lambda: {"stored": random_stored(39, 9, 96), "kind": 39},
    "quantized_linear": lambda: {
        "x": torch.randn(3, 256),
        "weight": kernels.pack_quantized(random_stored(12, 9, 256), 12),
    },
    "route": lambda: {
        "logits": torch.randn(3, 8),
        "k": 2,
        "scale": 2.5,
        "bias": torch.randn(8),
        "n_groups": 4,
        "top_groups": 2,
        "group_best": 2,
    },
    "grouped_linear": lambda: {
        "x": torch.randn(3, 5),
        "weight": torch.stack([reference.pack_linear(w) for w in torch.randn(4, 70, 5)]),
        "out_features": 70,
        "groups": int32([[0, 3], [-1, 1], [3, 3]]),
        "bias": torch.randn(4, 70),
    },
    "grouped_quantized_linear": lambda: {
        "x": torch.randn(3, 64),
        "weight": grouped_weight(),
        "groups": int32([[0, 2], [-1, 1], [2, 2]]),
        "bias": torch.randn(3, 9),
    },
    "weighted_sum": lambda: {"y": torch.randn(6, 8), "weights": torch.rand(3, 2)},
}
TENSORS = [
    (op, name)
    for op, make in CALLS.items()
    for name, value in make().items()
    if isinstance(value, torch.Tensor)
]
OPTIONAL = {"sinks", "qk_norm", "token_ids", "delta", "mask", "mask_row", "bias"}
REAL = {"scale", "softcap", "k_scale", "v_scale", "eps"}
SCALED = ("tree_attention", "append_kv", "rope_append_kv")
NUMBERS = [
    (op, name)
    for op, make in CALLS.items()
    for name, value in make().items()
    if type(value) in (int, float)
]
NUMBERS += [(op, name) for op in SCALED for name in ("k_scale", "v_scale")]
NUMBERS += [("tree_attention", "softcap"), ("tree_attention", "window"), ("rope_append_kv", "eps")]
TABLES = [pair for pair in TENSORS if not CALLS[pair[0]]()[pair[1]].is_floating_point()]


def written(arguments):
    """The bytes of what the op may write to."""
    given = [arguments.get(name) for name in WRITTEN]
    tensors = [t for t in given if isinstance(t, torch.Tensor) and is_plain(t)]
    return [bytes(tensor.contiguous().flatten().view(torch.uint8).numpy()) for tensor in tensors]


def is_plain(tensor):
    return tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_neg()


def refuse(op, arguments, message=None):
    before = written(arguments)
    with pytest.raises(ValueError, match=message):
        getattr(kernels, op)(**arguments)
    assert written(arguments) == before, "written to, then refused"


def test_every_op_is_here():
    assert set(CALLS) == set(library.OPS)
    assert set(CALLS) < set(kernels.__all__)


@pytest.mark.parametrize("op", CALLS)
def test_the_good_call_is_good(op):
    getattr(kernels, op)(**CALLS[op]())


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_wrong_metadata_is_refused(op, name):
    good = CALLS[op]()[name]
    wrong = [good[None], good[0], good.new_zeros(())]
    if (op, name) not in ANY_TYPE:
        types = (torch.complex64, torch.int16, torch.float64)
        wrong += [good.to(dtype) for dtype in types if dtype != good.dtype]
    if (op, name) not in FREE_ROWS:
        wrong += [torch.cat((good, good[:1])), good[:-1]]
    if good.dim() > 1 or name not in ANY_STRIDES:
        wrong.append(torch.stack((good, good), -1)[..., 0])
    for tensor in wrong:
        refuse(op, {**CALLS[op](), name: tensor})


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_what_is_no_tensor_is_refused(op, name):
    for wrong in (CALLS[op]()[name].tolist(), None, 3, "x"):
        if wrong is None and name in OPTIONAL:
            continue
        refuse(
            op, {**CALLS[op](), name: wrong}, f"{op}: expected a tensor, got {type(wrong).__name__}"
        )


@pytest.mark.parametrize(
    ("op", "name"), [pair for pair in TENSORS if CALLS[pair[0]]()[pair[1]].is_floating_point()]
)
def test_a_tensor_that_gradients_are_wanted_for_is_refused(op, name):
    """backward() would leave them None."""
    tensor = CALLS[op]()[name].requires_grad_()
    with pytest.raises(ValueError, match=f"{op} has no gradient"):
        getattr(kernels, op)(**{**CALLS[op](), name: tensor})
    with torch.no_grad():
        getattr(kernels, op)(**{**CALLS[op](), name: tensor})


@pytest.mark.parametrize(("op", "name"), NUMBERS)
def test_what_is_no_number_is_refused(op, name):
    for wrong in (float("nan"), float("inf"), -float("inf"), "3", None, [1], 1.5):
        if wrong == 1.5 and name in REAL:
            continue
        refuse(op, {**CALLS[op](), name: wrong}, f"{name}: expected")


@pytest.mark.parametrize(("op", "name"), NUMBERS)
def test_numbers_that_no_machine_type_holds_are_refused(op, name):
    for wrong in (10**400, -(10**400), 1e39 if name in REAL else 2**63):
        refuse(op, {**CALLS[op](), name: wrong}, f"{name}: expected")


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_a_tensor_that_is_not_plain_is_refused(op, name):
    good = CALLS[op]()[name]
    peculiar = [good.to_sparse(), torch.nested.nested_tensor([good])]
    peculiar += [torch._neg_view(good)] if good.dtype != torch.uint8 else []
    for wrong in peculiar:
        refuse(op, {**CALLS[op](), name: wrong}, f"{op}: expected a plain dense tensor, got one")


@pytest.mark.parametrize(
    ("op", "flag"),
    [
        *(("route", "normalise"), ("quantized_linear", "exact")),
        *(("grouped_quantized_linear", "exact"), ("tree_attention", "return_lse")),
    ],
)
def test_a_flag_is_true_or_false(op, flag):
    for wrong in ("no", 1, None):
        refuse(op, {**CALLS[op](), flag: wrong}, f"{flag}: expected True or False, got")


def test_no_weights_are_no_weight():
    for together in (kernels.QuantizedWeight.stacked, kernels.QuantizedWeight.concatenated):
        with pytest.raises(ValueError, match=r"expected at least one .*, got none"):
            together([])


def test_packing_wants_a_tensor_without_gradients():
    with pytest.raises(ValueError, match="pack_linear: expected a tensor, got list"):
        kernels.pack_linear([[1.0]])
    with pytest.raises(ValueError, match="pack_linear has no gradient"):
        kernels.pack_linear(torch.ones(1, 1, requires_grad=True))
    with pytest.raises(
        ValueError, match="weight: expected what pack_quantized returns, got Tensor"
    ):
        kernels.quantized_linear(torch.ones(1, 256), torch.ones(256, 1))


@pytest.mark.parametrize(
    ("op", "name", "where", "value", "message"),
    [
        ("build_tree", "parents", 0, 0, "request 0: expected the parent of node 0 to be -1"),
        ("build_tree", "parents", 3, 3, "parent of node 3 to be -1 or an earlier node, got 3"),
        ("build_tree", "parents", 5, -2, "request 1: expected the parent of node 1"),
        ("build_tree", "offsets", 0, 1, "offsets to start at 0, got 1"),
        ("build_tree", "offsets", 1, 7, "offsets not to decrease, got 7 then 6"),
        ("build_tree", "offsets", 2, 5, "last offset to be the number of rows 6, got 5"),
        ("tree_attention", "page_table", (0, 1), 6, r"page ids in 0 \.\. 5, got 6 at index 1"),
        ("tree_attention", "page_table", (1, 0), -1, "request 1: expected page ids"),
        ("tree_attention", "prefix_lens", 0, -1, "a prefix length of 0 or more, got -1"),
        ("tree_attention", "prefix_lens", 1, 11, "pages for 13 tokens, got a page table of 3"),
        ("tree_attention", "prefix_lens", 1, INT32.max, "expected at most 2147483647 tokens"),
        ("tree_attention", "n_nodes", 0, 3, "at least as many nodes as its 4 rows, got 3"),
        ("tree_attention", "n_nodes", 0, INT32.max, "request 0: expected"),
        ("tree_attention", "offsets", 1, -1, "offsets not to decrease"),
        ("tree_attention", "ancestors", (3, 0), 0, "mask of node 3 to hold the node itself"),
        ("tree_attention", "ancestors", (3, 0), -1, "expected 3 nodes in the mask of node 3"),
        ("tree_attention", "sinks", 3, float("nan"), "finite or -inf, got nan for head 3"),
        ("tree_attention", "depth", 3, -1, r"a depth in 0 \.\. 3 for node 3, got -1"),
        ("tree_attention", "depth", 5, 2, r"a depth in 0 \.\. 1 for node 1, got 2"),
        ("append_kv", "slots", 0, 24, "expected slots below 24, got 24 at row 0"),
        ("append_kv", "slots", 0, INT64.max, "expected slots below 24"),
        ("append_kv", "slots", 0, 23, "expected distinct slots, got 23 again at row 1"),
        ("rope_append_kv", "slots", 0, 23, "expected distinct slots, got 23 again at row 1"),
        ("rope_append_kv", "positions", 2, 9, r"positions in 0 \.\. 8, got 9 at row 2"),
        ("rope_append_kv", "positions", 0, -1, "positions"),
        ("compact_kv", "page_table", (1, 2), 99, r"page ids in 0 \.\. 5, got 99"),
        ("compact_kv", "page_table", (1, 1), 1, "pages of its own, got 1 again"),
        ("compact_kv", "prefix_lens", 0, INT32.max, "expected pages for"),
        ("compact_kv", "path", (0, 2), INT32.max, "expected pages for"),
        ("compact_kv", "path", (0, 1), 0, "expected path nodes to increase"),
        ("compact_kv", "accepted_lens", 1, 3, "path nodes to increase"),
        ("compact_kv", "accepted_lens", 0, 4, r"an accepted length in 0 \.\. 3, got 4"),
        ("compact_kv", "accepted_lens", 0, -1, "an accepted length"),
        ("grouped_linear", "groups", (0, 1), 4, r"groups in -1 \.\. 3, got 4 at index 1"),
        ("grouped_linear", "groups", (2, 0), -2, "expected groups in -1"),
        ("grouped_quantized_linear", "groups", (2, 1), INT32.max, "got 2147483647 at index 5"),
        ("grouped_quantized_linear", "groups", (1, 0), INT32.min, "expected groups in -1"),
        ("target_tokens", "mask_row", 1, 3, r"row 1: expected a mask row in -1 \.\. 2, got 3"),
        ("target_tokens", "mask_row", 0, -2, "row 0: expected a mask row"),
        ("edit_logits", "text_offsets", 1, 4, "offsets not to decrease, got 4 then 3"),
        ("edit_logits", "text_offsets", 2, 5, "expected at most 4 text tokens, got 5"),
        ("edit_logits", "text_offsets", 2, INT32.max, "expected at most 4 text tokens"),
        ("edit_logits", "bias_offsets", 2, INT32.min, "offsets not to decrease"),
        ("edit_logits", "text_tokens", 1, 7, r"request 0: expected text tokens in rising order"),
        ("edit_logits", "text_tokens", 1, 40, r"in rising order in 0 \.\. 39, got 40 at index 1"),
        ("edit_logits", "text_tokens", 2, -1, "request 1: expected text tokens"),
        ("edit_logits", "text_tokens", 1, INT64.max, "request 0: expected text tokens"),
        ("edit_logits", "bias_tokens", 2, 0, "request 1: expected bias tokens in rising order"),
        ("edit_logits", "text_counts", 1, -1, "counts of 0 or more, got -1 at index 1"),
        ("edit_logits", "bias_values", 1, float("nan"), "biases that are numbers, got nan"),
        ("edit_logits", "tokens", 1, 40, r"tokens in 0 \.\. 39, got 40 at node 1"),
        ("edit_logits", "tokens", 5, -1, "request 1: expected tokens"),
        ("edit_logits", "repetition", 0, 0.0, "request 0: expected a repetition penalty of more"),
        ("edit_logits", "repetition", 1, float("nan"), "request 1: expected a repetition penalty"),
        ("edit_logits", "frequency", 1, float("inf"), "request 1: expected penalties that are"),
        ("edit_logits", "presence", 0, float("nan"), "request 0: expected penalties that are"),
        ("edit_logits", "offsets", 2, 5, "last offset to be the number of rows 6, got 5"),
        ("token_logprobs", "tokens", 0, 40, r"row 0: expected a token in -1 \.\. 39, got 40"),
        ("token_logprobs", "tokens", 1, -2, "row 1: expected a token"),
        ("verify", "ancestors", (2, 0), 0, "mask of node 2 to hold the node itself"),
        ("verify", "offsets", 1, 9, "offsets not to decrease"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_and_nothing_is_written(op, name, where, value, message):
    arguments = CALLS[op]()
    arguments[name][where] = value
    refuse(op, arguments, message)


@pytest.mark.parametrize(
    ("op", "name", "value", "message"),
    [
        ("build_tree", "words", 0, "words: expected 1 or more, got 0"),
        ("verify", "max_path", -1, "max_path: expected 0 or more, got -1"),
        ("verify", "max_path", 2, "expected an accepted path of at most 2 nodes, got 3"),
        ("draft_topk", "k", 0, r"k: expected 1 \.\. 40, got 0"),
        ("draft_topk", "k", 41, r"k: expected 1 \.\. 40, got 41"),
        ("token_logprobs", "n", -1, r"n: expected 0 \.\. 40, got -1"),
        ("token_logprobs", "n", 41, r"n: expected 0 \.\. 40, got 41"),
        ("linear", "out_features", -5, "out_features: expected 0 or more, got -5"),
        ("linear", "out_features", 129, "weight: expected"),
        ("tree_attention", "q", torch.zeros(6, 0, 8), "q: expected a multiple of 2 heads, got 0"),
        ("tree_attention", "q", torch.zeros(6, 3, 8), "q: expected a multiple of 2 heads, got 3"),
        ("tree_attention", "window", -5, "window: expected -1 or more, got -5"),
        ("tree_attention", "scale", float("nan"), "scale: expected a finite float32, got nan"),
        ("tree_attention", "softcap", -1.0, "softcap: expected 0 or more"),
        ("rms_norm", "eps", -1e-6, "eps: expected 0 or more"),
        ("tree_attention", "k_scale", 0.0, "k_scale: expected more than 0"),
        ("append_kv", "v_scale", float("nan"), "v_scale: expected more than 0"),
        ("append_kv", "k_scale", torch.tensor([1.0, -1]), "k_scale of more than 0, and finite"),
        ("append_kv", "v_scale", torch.ones(3), r"v_scale: expected .* shape \[2\]"),
        ("rope_append_kv", "v_scale", torch.tensor([torch.nan, 1]), "a v_scale of more than 0"),
        ("append_kv", "k_cache", torch.zeros(6, 0, 2, 8), "k_cache: expected"),
        ("append_kv", "v_cache", torch.zeros(6, 4, 1, 8).expand(6, 4, 2, 8), "no stride of 0"),
        ("rope_append_kv", "k_cache", torch.zeros(1, 4, 2, 8).expand(6, 4, 2, 8), "no stride of 0"),
        ("compact_kv", "kv", torch.zeros(1, 2, 6, 4, 2, 8).expand(2, 2, 6, 4, 2, 8), "of 0"),
        ("compact_kv", "kv", torch.zeros(2, 2, 6, 0, 2, 8), "pages of at least one token"),
        ("target_tokens", "logits", torch.zeros(2, 0), "at least one token"),
        ("pack_quantized", "kind", 1, r"kind: expected one of 2 \(Q4_0\)"),
        ("pack_quantized", "kind", -1, r"kind: expected one of 2 \(Q4_0\)"),
        ("pack_quantized", "kind", 12, "stored: expected rows of a multiple of 144 bytes, got 210"),
        ("dequantize", "kind", INT64.max, r"kind: expected one of 2 \(Q4_0\)"),
        ("dequantize", "kind", 8, "stored: expected rows of a multiple of 34 bytes, got 51"),
    ],
)
def test_a_wrong_argument_is_named(op, name, value, message):
    refuse(op, CALLS[op]() | {name: value}, message)


@pytest.mark.parametrize(
    ("kinds", "sizes", "inputs", "message"),
    [
        ((12,), (17,), 256, "packed: expected"),
        ((12,), (INT64.max,), 256, "packed: expected"),
        ((12,), (-1,), 256, "sizes: expected 0 or more"),
        ((12, 12), (17, -8), 256, "sizes: expected 0 or more"),
        ((13,), (9,), 256, "packed: expected"),
        ((99,), (9,), 256, "kind: expected one of"),
        ((12,), (9,), 255, "x: expected"),
        ((12,), (9,), -256, "x: expected"),
        ((12, 12), (9,), 256, "kinds and sizes"),
    ],
)
def test_a_packed_weight_is_what_it_says(kinds, sizes, inputs, message):
    packed = CALLS["quantized_linear"]()["weight"].packed
    weight = kernels.QuantizedWeight(packed, kinds, sizes, inputs)
    refuse("quantized_linear", {"x": torch.randn(3, 256), "weight": weight}, message)


def spoilt(op, name, rng):
    """A good call with one entry of a table at, or beyond, some limit."""
    arguments = CALLS[op]()
    table = arguments[name].view(-1)
    limits = torch.iinfo(table.dtype)
    value = min(max(rng.choice(HOSTILE), limits.min), limits.max)
    table[rng.randrange(len(table))] = value
    return arguments


@pytest.mark.parametrize(("op", "name"), TABLES)
def test_any_value_is_refused_or_harmless(op, name):
    rng = random.Random(1)
    for _ in range(100):
        arguments = spoilt(op, name, rng)
        before = written(arguments)
        try:
            getattr(kernels, op)(**arguments)
        except ValueError:
            assert written(arguments) == before, "written to, then refused"


@pytest.mark.parametrize("temperature", [1e-45, 1e-40, 1e-38, 1e38, float("inf"), float("nan")])
def test_extreme_temperatures_draw_a_token(temperature):
    """So small a temperature sends every logit to minus infinity, and leaves nothing to draw."""
    for top in (-5.0, 5.0):
        arguments = CALLS["target_tokens"]() | {"temperature": torch.full((2,), temperature)}
        logits = arguments["logits"].sub_(10)
        logits[:, 7] = top
        for top_k, top_p, min_p in ((0, 1.0, 0.0), (0, 0.9, 0.0), (3, 0.5, 0.1), (0, 1.0, 0.2)):
            arguments |= {"top_k": int32([top_k] * 2), "top_p": torch.full((2,), top_p)}
            arguments |= {"min_p": torch.full((2,), min_p)}
            tokens = kernels.target_tokens(**arguments)
            assert torch.equal(tokens, reference.target_tokens(**arguments))
            if temperature < 1:
                assert tokens.tolist() == [7, 7]
