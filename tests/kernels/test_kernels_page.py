"""docs/kernels.md: its example runs where there is torch and nothing else, its table is true."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

import specedge_kernels as kernels
from specedge_kernels import _cpu, library
from tests.kernels.ops_table import PAGE, with_table


def distributions(name: str, found: set[str]) -> set[str]:
    """The distribution and all of those here that it needs."""
    if name not in found and any(metadata.Distribution.discover(name=name)):
        found.add(name)
        for line in metadata.requires(name) or ():
            if "extra ==" not in line:
                distributions(re.split(r"[^\w.-]", line)[0], found)
    return found


@pytest.fixture(scope="module")
def torch_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with torch, what torch itself needs, and the kernels."""
    folder = tmp_path_factory.mktemp("torch_alone")
    for name in distributions("torch", set()):
        for file in metadata.files(name) or ():
            link = folder / file.parts[0]
            if not link.exists() and ".." not in file.parts:
                link.symlink_to(file.locate().parents[len(file.parts) - 1] / file.parts[0])
    package = folder / "specedge_kernels"
    package.mkdir()
    for part in (*Path(kernels.__file__).parent.iterdir(), Path(_cpu.__file__)):
        if not (package / part.name).exists():
            (package / part.name).symlink_to(part)
    return folder


def run(folder: Path, code: str) -> str:
    """In a process that sees this folder and the standard library."""
    code = f"import sys; sys.path.append({str(folder)!r})\n{code}"
    child = subprocess.run([sys.executable, "-ISc", code], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    return child.stdout


def test_the_example_runs_beside_torch_alone(torch_alone: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    told = run(torch_alone, example)
    assert told.startswith("accepted nodes: [[0, 2, 3, -1], [0, -1, -1, -1]]")


def test_the_table_is_what_the_ops_accept() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "run python -m tests.kernels.ops_table"


def test_the_package_says_what_it_is(torch_alone: Path) -> None:
    told = run(
        torch_alone, "import runpy; runpy.run_module('specedge_kernels', run_name='__main__')"
    )
    assert told.startswith(f"specedge_kernels 0+unknown, torch {torch.__version__}, without Triton")
    assert f"cpu: {kernels.instruction_set()}, " in told
    assert kernels.__version__ == metadata.version("specedge")
    assert kernels.devices()["cpu"] == tuple(library.OPS)
