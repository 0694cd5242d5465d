"""The table of docs/kernels.md: what every op takes, and where it runs.

    python -m tests.kernels.ops_table

writes it anew. Shapes are those of the docstrings in `ops.py`; types are what the op accepts when
it is tried; devices are what `library.py` registers.
"""

import inspect
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

import specedge_kernels as kernels
from specedge_kernels import library
from tests.kernels.hostile_cases import CALLS

PAGE = Path(__file__).parents[2] / "docs/kernels.md"
BEGIN, END = "<!-- python -m tests.kernels.ops_table -->\n", "<!-- end of the table -->\n"
DTYPES = (
    *(torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def table() -> str:
    rows = ["| op | tensors | on |", "|---|---|---|"]
    rows += [f"| `{op}` | {'; '.join(tensors(op))} | {devices(op)} |" for op in library.OPS]
    return "\n".join(rows) + "\n"


def tensors(op: str) -> Iterator[str]:
    """Tensors of one shape and one type together, as in "`k`, `v` [N, Hk, D] float32"."""
    given = [name for name, value in CALLS[op]().items() if isinstance(value, Tensor)]
    for like, names in groupby(given, lambda name: (shape(op, name), types(op, name))):
        yield f"{', '.join(f'`{name}`' for name in names)} {' '.join(like)}"


def shape(op: str, name: str) -> str:
    """The first brackets after the argument's name in the docstring that are not its index."""
    told = inspect.getdoc(getattr(kernels, op)) or ""
    found = re.search(rf"\b{name}\b(?:\[[^\]]+\])?[^.:;\[]*\s(\[[^\]]+\])", told)
    assert found, f"{op}: the docstring does not say the shape of {name}"
    return " ".join(found[1].split())


def types(op: str, name: str) -> str:
    accepted = [dtype for dtype in DTYPES if takes(op, name, dtype)]
    if len(accepted) == len(DTYPES):
        return "of any type"
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in accepted)


def takes(op: str, name: str, dtype: torch.dtype) -> bool:
    """Whether a good call stays good with this argument, or all of its type, in another type."""
    before = CALLS[op]()[name].dtype
    alike = [n for n, v in CALLS[op]().items() if isinstance(v, Tensor) and v.dtype == before]
    for changed in ([name], alike):
        arguments = CALLS[op]()
        arguments |= {n: torch.zeros_like(arguments[n], dtype=dtype) for n in changed}
        try:
            getattr(kernels, op)(**{n: on_meta(value) for n, value in arguments.items()})
        except ValueError:
            continue
        return True
    return False


def on_meta(value: object) -> object:
    """Shapes and types are checked without any values there."""
    if isinstance(value, kernels.QuantizedWeight):
        return replace(value, packed=value.packed.to("meta"))
    return value.to("meta") if isinstance(value, Tensor) else value


def devices(op: str) -> str:
    ways = [("CUDA C++", library.CUDA_OPS), ("Triton", library.TRITON_OPS)]
    ways += [("on the host", library.HOST_OPS)]
    on_a_gpu = " or ".join(way for way, ops in ways if op in ops)
    return f"CPU, GPU ({on_a_gpu})" if on_a_gpu else "CPU"


def with_table(page: str) -> str:
    head, rest = page.split(BEGIN)
    return head + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
