"""Weights of quantised folders: each layout against its published formula, and spoilt ones."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from runtime.model.config import ModelError
from runtime.model.folder_weights import FolderWeights
from runtime.model.formats import floats
from specedge_kernels import StoredWeight
from specedge_kernels.quantized import FORMS
from tests.model import layout_cases as cases

CT = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
GPTQ, AWQ = {"quant_method": "gptq", "bits": 4}, {"quant_method": "awq", "version": "gemm"}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4"}


def random(outputs=80, inputs=256, seed=0):
    """With zero outside of the range of some groups, and some outputs much smaller than others."""
    rng = np.random.default_rng(seed)
    weight = (
        rng.standard_normal((outputs, inputs)) * 0.05 * 2.0 ** rng.integers(-3, 3, (outputs, 1))
    )
    weight[1] = abs(weight[1]) + 0.1
    weight[2] = -weight[1]
    return weight


def write(folder, tensors, name="x"):
    save_file({name + end: tensor.contiguous() for end, tensor in tensors.items()},
              folder / "model.safetensors")  # fmt: skip
    return folder


def read(folder, case, fields, name="x"):
    weights = FolderWeights(write(folder, case.tensors, name), fields)
    assert weights.n_bytes("x.weight") == sum(t.nbytes for t in case.tensors.values())
    assert weights.shapes == {"x.weight": case.values.shape}
    return weights.stored("x.weight")


def kind_of(weight):
    if isinstance(weight, StoredWeight):
        return FORMS[weight.kind].name
    return str(weight.dtype).removeprefix("torch.")


def assert_values(weight, case, relative=0.0):
    """To the bit of float32, which holds an integer of few bits times its scale."""
    got, want = floats(weight, torch.float32).double().numpy(), case.values
    error = abs(got - want.astype(np.float32 if not relative else np.float64))
    assert (error <= relative * abs(want).max(-1, keepdims=True)).all()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("group", [32, 64, 128, -1])
@pytest.mark.parametrize("g_idx", [True, False])
@pytest.mark.parametrize(
    ("bits", "symmetric", "kind"),
    [(4, True, "Q4_0"), (4, False, "Q5_0"), (8, True, "Q8_0"), (8, False, "float16"),
     (2, True, "Q4_0")],
)  # fmt: skip
def test_gptq(version, group, g_idx, bits, symmetric, kind, tmp_path):
    case = cases.gptq(random(), bits, symmetric, group, version=version, g_idx=g_idx)
    told = {"group_size": group, "checkpoint_format": "gptq" if version == 1 else "gptq_v2"}
    weight = read(tmp_path, case, {**GPTQ, **told, "bits": bits})
    assert kind_of(weight) == kind
    assert_values(weight, case, 2.0**-11 if kind == "float16" else 0.0)


def test_zero_points_of_gptq_that_borrow_from_their_neighbours(tmp_path):
    case = cases.gptq(abs(random()) + 0.01, symmetric=False)  # all zero points are 0
    assert (case.tensors[".qzeros"] != 0xEEEEEEEE - 2**32).all()
    assert_values(read(tmp_path, case, GPTQ), case)


@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_in_the_order_of_activations(symmetric, tmp_path):
    """Inputs of a block of 32 belong to many groups, which no format has."""
    case = cases.gptq(random(), symmetric=symmetric, group=64, act_order=True)
    weight = read(tmp_path, case, {**GPTQ, "group_size": 64, "desc_act": True})
    assert kind_of(weight) == "float16"
    assert_values(weight, case, 2.0**-11)


def test_gptq_in_another_order_of_whole_blocks(tmp_path):
    groups = torch.tensor([3, 0, 0, 2, 1, 1, 3, 2]).repeat_interleave(32)
    case = cases.gptq(random(), group=64)
    case.tensors[".g_idx"] = groups.int()
    codes = case.tensors[".qweight"].T.contiguous().view(torch.uint8)
    codes = torch.stack((codes & 15, codes >> 4), -1).view(80, 256).double() - 8
    want = codes * case.tensors[".scales"].T.double()[:, groups]
    weight = read(tmp_path, case, GPTQ)
    assert kind_of(weight) == "Q4_0"
    assert torch.equal(floats(weight, torch.float64), want)


@pytest.mark.parametrize("length", [128, 100])
def test_last_groups_may_be_shorter(length, tmp_path):
    """192 inputs are two groups of 128, not two of 96."""
    case = cases.gptq(random(64, 192), group=length, g_idx=False)
    weight = read(tmp_path, case, {**GPTQ, "group_size": length})
    assert kind_of(weight) == ("Q4_0" if length == 128 else "float16")
    assert_values(weight, case, 0 if length == 128 else 2.0**-11)


@pytest.mark.parametrize("group", [32, 128, -1])
@pytest.mark.parametrize(("symmetric", "kind"), [(True, "Q4_0"), (False, "Q5_0")])
def test_awq(group, symmetric, kind, tmp_path):
    case = cases.awq(random(), symmetric, group)
    weight = read(tmp_path, case, {**AWQ, "group_size": group})
    assert kind_of(weight) == kind
    assert_values(weight, case)


@pytest.mark.parametrize("outputs", [80, 13])
@pytest.mark.parametrize("group", [32, 128, -1])
@pytest.mark.parametrize(
    ("bits", "symmetric", "kind"),
    [(4, True, "Q4_0"), (4, False, "Q5_0"), (8, True, "Q8_0"), (8, False, "float16")],
)
def test_pack_quantized(outputs, group, bits, symmetric, kind, tmp_path):
    case = cases.pack_quantized(random(outputs), bits, symmetric, group)
    told = {"config_groups": {"group_0": {"weights": {"num_bits": bits, "group_size": group}}}}
    weight = read(tmp_path, case, CT | told)
    assert kind_of(weight) == kind
    assert_values(weight, case, 2.0**-11 if kind == "float16" else 0.0)


def test_pack_quantized_in_the_order_of_activations(tmp_path):
    case = cases.pack_quantized(random(), act_order=True)
    assert_values(read(tmp_path, case, CT), case, 2.0**-11)


@pytest.mark.parametrize("inputs", [36, 100])
def test_rows_that_are_no_whole_blocks(inputs, tmp_path):
    case = cases.pack_quantized(random(16, inputs), group=-1)
    weight = read(tmp_path, case, CT)
    assert kind_of(weight) == "float16"
    assert_values(weight, case, 2.0**-11)


@pytest.mark.parametrize("block", [None, (1, 64), (64, 128)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_int_quantized(block, symmetric, tmp_path):
    case = cases.int_quantized(random(200), symmetric, block)
    weights = {"group_size": 64, "block_structure": [64, 128]}
    weight = read(tmp_path, case, {**CT, "config_groups": {"group_0": {"weights": weights}}})
    assert kind_of(weight) == ("Q8_0" if symmetric else "float16")
    assert_values(weight, case, 0 if symmetric else 2.0**-11)


def test_scales_that_float16_lacks_leave_float32(tmp_path):
    case = cases.pack_quantized(random() * 2.0**-20)
    weight = read(tmp_path, case, CT)
    assert kind_of(weight) == "float32"
    assert_values(weight, case)


@pytest.mark.parametrize("name", [".weight_scale_inv", ".weight_scale"])
@pytest.mark.parametrize("shape", ["block", "row", "tensor"])
@pytest.mark.parametrize("sizes", [(256, 384), (200, 300), (130, 64), (3, 129)])
@pytest.mark.parametrize("powers", [True, False])
def test_float8(name, shape, sizes, powers, tmp_path):
    """With partial last blocks, for which transformers takes the scales of others."""
    case = cases.float8(random(*sizes), shape=shape, powers=powers, name=name)
    weight = read(tmp_path, case, FP8)
    kind = {384: "FP8", 64: "FP8_32"}.get(sizes[1], "bfloat16" if powers else "float16")
    assert kind_of(weight) == kind
    assert_values(weight, case, 2.0**-11 if kind == "float16" else 0)


@pytest.mark.parametrize("scale", [2.0**-40 / 3, 1e7 / 3])
def test_float8_with_scales_that_float16_lacks(scale, tmp_path):
    case = cases.float8(random(80, 300) * scale)
    weight = read(tmp_path, case, FP8)
    assert kind_of(weight) == "float32"
    assert_values(weight, case, 2.0**-23)


def test_other_blocks_of_float8(tmp_path):
    case = cases.float8(random(200, 300), (64, 32))
    told = {"config_groups": {"a": {"weights": {"block_structure": [64, 32]}}}}
    for fields in ({**FP8, "weight_block_size": [64, 32]}, CT | told):
        assert_values(read(tmp_path, case, fields), case, 2.0**-11)


@pytest.mark.parametrize(
    ("fields", "name", "factor"),
    [(CT, ".weight_packed", ".weight_global_scale"), (MODELOPT, ".weight", ".weight_scale_2")],
)
def test_nvfp4(fields, name, factor, tmp_path):
    case = cases.float4(random(), 16, name, factor)
    weight = read(tmp_path, case, fields)
    assert kind_of(weight) == "float16"
    assert_values(weight, case, 2.0**-11)


def test_mxfp4(tmp_path):
    case = cases.float4(random(), 32)
    weight = read(tmp_path, case, CT)
    assert kind_of(weight) == "MXFP4"
    assert_values(weight, case)


def test_mxfp4_of_gpt_oss(tmp_path):
    case = cases.experts(random(72).reshape(3, 24, 256))
    weights = FolderWeights(write(tmp_path, case.tensors), {"quant_method": "mxfp4"})
    assert weights.shapes == {"x": (3, 24, 256)}
    weight = weights.stored("x")
    assert kind_of(weight) == "MXFP4"
    want = case.values.reshape(72, 256)
    assert torch.equal(floats(weight, torch.float64), torch.from_numpy(want))


def test_plain_tensors_and_what_is_said_of_activations_beside_them(tmp_path):
    case = cases.float8(random())
    more = {".input_scale": torch.ones(1), ".k_scale": torch.ones(1), "_norm.weight": torch.ones(3)}
    weights = FolderWeights(write(tmp_path, case.tensors | more), FP8)
    assert weights.shapes == {"x.weight": (80, 256), "x_norm.weight": (3,)}
    assert weights.method("x_norm.weight") is None
    assert weights.method("x.weight") == "FP8"


def change(**changes):
    """A spoiler: of each tensor named a function of it, or its replacement."""

    def spoil(tensors):
        for name, new in changes.items():
            end = name if name.startswith("_b") else f".{name}"
            tensors[end] = new(tensors[end]) if callable(new) else new

    return spoil


def fill(number, at=(0, 0)):
    def filled(tensor):
        tensor[at] = number
        return tensor

    return filled


INF, NAN = float("inf"), float("nan")
GPTQ_CASE = (lambda: cases.gptq(random(), group=64), GPTQ)
AWQ_CASE = (lambda: cases.awq(random(), group=64), AWQ)
CT_CASE = (lambda: cases.pack_quantized(random(), symmetric=False, group=64), CT)
FP8_CASE = (lambda: cases.float8(random(200)), FP8)
NVFP4_CASE = (lambda: cases.float4(random(), 16), CT)
MXFP4_CASE = (lambda: cases.float4(random(), 32), CT)
SPOILT = {
    "gptq, infinite": (GPTQ_CASE, change(scales=fill(INF)), "its scales are not all finite"),
    "gptq, NaN": (GPTQ_CASE, change(scales=fill(NAN)), "its scales are not all finite"),
    "gptq, group 4 of 4": (
        GPTQ_CASE,
        change(g_idx=fill(4, 7)),
        r"belong to groups outside of 0 .. 3",
    ),
    "gptq, group -1": (GPTQ_CASE, change(g_idx=fill(-1, 7)), r"belong to groups outside of 0 .. 3"),
    "gptq, g_idx": (GPTQ_CASE, change(g_idx=lambda t: t[1:]), r"its g_idx has the shape \[255\]"),
    "gptq, scales": (GPTQ_CASE, change(scales=lambda t: t[:, 1:]), "it has 79 outputs in 10 words"),
    "gptq, zeros": (
        GPTQ_CASE,
        change(qzeros=lambda t: t[1:]),
        r"its qzeros has the shape \[3, 10\]",
    ),
    "gptq, type": (
        GPTQ_CASE,
        change(qweight=lambda t: t.short()),
        "qweight is stored as I16; expected I32",
    ),
    "gptq, flat": (
        GPTQ_CASE,
        change(qweight=lambda t: t[0]),
        r"shape \[80\]; expected \[any, any\]",
    ),
    "gptq, empty": (
        GPTQ_CASE,
        change(scales=lambda t: t[:, :0], qzeros=lambda t: t[:, :0]),
        "0 outputs in 0 words",
    ),
    "awq, groups": (
        AWQ_CASE,
        change(scales=lambda t: t[:3], qzeros=lambda t: t[:3]),
        "its 256 inputs do not divide into 3 groups",
    ),
    "awq, none": (
        AWQ_CASE,
        change(scales=lambda t: t[:0], qzeros=lambda t: t[:0]),
        "do not divide into 0 groups",
    ),
    "awq, outputs": (
        AWQ_CASE,
        change(scales=lambda t: t[:, :-1]),
        "it has 79 outputs; expected a multiple of 8",
    ),
    "ct, shape": (
        CT_CASE,
        change(weight_shape=torch.tensor([80, 2**40])),
        "1099511627776 inputs in 32 words",
    ),
    "ct, negative": (
        CT_CASE,
        change(weight_shape=torch.tensor([80, -256])),
        "it has -256 inputs in 32 words",
    ),
    "ct, rows": (
        CT_CASE,
        change(weight_shape=torch.tensor([2**40, 256])),
        r"expected \[1099511627776, any\]",
    ),
    "ct, one size": (
        CT_CASE,
        change(weight_shape=torch.tensor([80])),
        r"weight_shape has the shape \[1\]; expected \[2\]",
    ),
    "ct, zeros": (
        CT_CASE,
        change(weight_zero_point=lambda t: t[1:]),
        r"zero_point has the shape \[9, 4\]; expected \[10, 4\]",
    ),
    "ct, infinite": (CT_CASE, change(weight_scale=fill(-INF)), "its scales are not all finite"),
    "fp8, scales": (
        FP8_CASE,
        change(weight_scale_inv=lambda t: t[:1]),
        r"shape \[1, 2\]; expected \[1\] or \[200, 1\] or \[2, 2\]",
    ),
    "fp8, NaN": (FP8_CASE, change(weight_scale_inv=fill(NAN)), "its scales are not all finite"),
    "fp8, numbers": (
        FP8_CASE,
        change(weight=lambda t: fill(127)(t.view(torch.uint8)).view(torch.float8_e4m3fn)),
        "it holds numbers that are none",
    ),
    "fp8, type": (
        FP8_CASE,
        change(weight=lambda t: t.half()),
        "its weight is stored as F16; expected F8_E4M3 or I8",
    ),
    "nvfp4, factor": (
        NVFP4_CASE,
        change(weight_global_scale=torch.zeros(1)),
        "not all finite, or too large for float16",
    ),
    "nvfp4, two": (
        NVFP4_CASE,
        change(weight_global_scale=torch.ones(2)),
        r"weight_global_scale is \[2\]; expected one number",
    ),
    "nvfp4, scales": (
        NVFP4_CASE,
        change(weight_scale=lambda t: t[:, 1:]),
        r"\[80, 15\]; expected \[80, 16\]",
    ),
    "mxfp4, NaN": (MXFP4_CASE, change(weight_scale=fill(255)), "its scales are not all finite"),
    "mxfp4, groups": (
        MXFP4_CASE,
        change(weight_scale=lambda t: t[:, 1:]),
        r"\[80, 7\]; expected \[80, 8\]",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_weights_are_sentences(name, tmp_path):
    (make, fields), spoil, sentence = SPOILT[name]
    tensors = dict(make().tensors)
    spoil(tensors)
    write(tmp_path, tensors)
    with pytest.raises(ModelError, match=f"weight x.weight, quantised with .*: .*{sentence}"):
        FolderWeights(tmp_path, fields).stored("x.weight")


def test_a_missing_tensor_is_named(tmp_path):
    case = cases.gptq(random())
    for end in (".qzeros", ".scales"):
        write(tmp_path, {name: t for name, t in case.tensors.items() if name != end})
        with pytest.raises(ModelError, match=f"its {end[1:]} is missing"):
            FolderWeights(tmp_path, GPTQ)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({**GPTQ, "checkpoint_format": "marlin"}, "'marlin' is not supported; expected 'gptq' or"),
        ({**AWQ, "version": "gemv"}, "version 'gemv' of 4 bits is not supported; expected 'gemm'"),
        ({**AWQ, "bits": 3}, "version 'gemm' of 3 bits"),
        ({**CT, "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse weights .*-bitmask"),
        ({**CT, "transform_config": {"config_groups": {"u": {}}}}, "inputs rotated"),
    ],
)
def test_variants_that_are_not_read(fields, sentence, tmp_path):
    write(tmp_path, cases.gptq(random()).tensors)
    with pytest.raises(ModelError, match=f"quantization_config: .*{sentence}"):
        FolderWeights(tmp_path, fields)
