"""Every bench can be started: what it uses of the runtime is still there."""

import importlib
from pathlib import Path

import pytest

import bench

FOLDER = Path(bench.__path__[0])
MODULES = sorted(
    ".".join(path.relative_to(FOLDER.parent).with_suffix("").parts) for path in FOLDER.rglob("*.py")
)
OPTIONAL = {"triton", "flashinfer", "matplotlib", "xllamacpp", "pytest_benchmark"}


@pytest.mark.parametrize("name", [name for name in MODULES if "__" not in name])
def test_a_bench_finds_what_it_imports(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(str(error))
