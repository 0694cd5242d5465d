"""The layouts of quantised folders, and which of them a config.json speaks of."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from runtime.model.layouts.awq import Awq
from runtime.model.layouts.gptq import Gptq
from runtime.model.layouts.layout import Layout, Parts, lengths
from runtime.model.layouts.packed_floats import Mxfp4Experts, PackedFloats
from runtime.model.layouts.packed_integers import PackedIntegers
from runtime.model.layouts.whole_bytes import WholeBytes

__all__ = ["READ", "Layout", "Parts", "layouts_of"]

_BLOCK = (128, 128)  # outputs and inputs that share a scale, where nothing else is said
Fields = Mapping[str, Any]


def layouts_of(fields: Fields) -> tuple[Layout, ...]:
    """The layouts that the weights of a folder may have, by its quantization_config.

    Raises ValueError for a variant that is not read, KeyError for a method.
    """
    return READ[str(fields.get("quant_method"))](fields)


def _float8(fields: Fields) -> tuple[Layout, ...]:
    return (WholeBytes("FP8", (_pair(fields.get("weight_block_size")) or _BLOCK,)),)


def _modelopt(fields: Fields) -> tuple[Layout, ...]:
    return PackedFloats("ModelOpt"), WholeBytes("ModelOpt", (_BLOCK,))


def _compressed_tensors(fields: Fields) -> tuple[Layout, ...]:
    sparsity = fields.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense":
        raise ValueError(f"sparse weights ({sparsity['format']}) are not supported")
    if fields.get("transform_config"):
        raise ValueError("weights that need their inputs rotated (transform_config) do not run")
    described = list(_of_groups(fields))
    told = lengths(*(weights.get("group_size") for weights in described))
    blocks = [_pair(weights.get("block_structure")) for weights in described]
    shapes = (*((1, length) for length in told), *(block for block in blocks if block), _BLOCK)
    method = "compressed-tensors"
    return PackedIntegers(told), PackedFloats(method), WholeBytes(method, shapes)


def _of_groups(fields: Fields) -> Iterator[Fields]:
    """What a configuration says of the weights of each group of modules."""
    groups = fields.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            yield weights


def _pair(told: Any) -> tuple[int, int] | None:
    sizes = lengths(*told) if isinstance(told, list) else ()
    return (sizes[0], sizes[1]) if len(sizes) == 2 else None


READ: Mapping[str, Callable[[Fields], tuple[Layout, ...]]] = {
    "gptq": lambda fields: (Gptq(fields),),
    "awq": lambda fields: (Awq(fields),),
    "fp8": _float8,
    "fbgemm_fp8": _float8,
    "modelopt": _modelopt,
    "compressed-tensors": _compressed_tensors,
    "mxfp4": lambda fields: (Mxfp4Experts(),),
}
