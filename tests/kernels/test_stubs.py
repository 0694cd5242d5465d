"""The stubs of the native modules say what pybind11 says of them."""

import ast
import re
from pathlib import Path

import pytest

import specedge_kernels

STUBS = Path(specedge_kernels.__file__).parent
PLAIN = {
    "typing.SupportsInt | typing.SupportsIndex": "int",
    "typing.SupportsFloat | typing.SupportsIndex": "float",
    "collections.abc.Sequence": "Sequence",
}


def in_stub(tree: ast.Module) -> dict[str, list[list[str]]]:
    """Of each function and method the types of its arguments, of each overload."""
    found: dict[str, list[list[str]]] = {}
    for scope in (tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))):
        prefix = f"{scope.name}." if isinstance(scope, ast.ClassDef) else ""
        for function in scope.body:
            if isinstance(function, ast.FunctionDef) and function.name != "__int__":
                arguments = function.args
                assert arguments.args == arguments.kwonlyargs == [], "pybind11 gives no names"
                types = [ast.unparse(a.annotation) for a in arguments.posonlyargs if a.annotation]
                found.setdefault(prefix + function.name, []).append(types)
    return found


def in_module(module: object, names: set[str]) -> dict[str, list[list[str]]]:
    """The same by the docstrings, which pybind11 writes from the C++ signatures."""
    found = {}
    for name in names:
        thing = module
        for part in name.split("."):
            thing = getattr(thing, part)
        lines = re.findall(r"\w+\((.*)\) -> ", thing.__doc__ or "")
        found[name] = [
            [plain(kind) for kind in re.findall(r"(?:arg\d+|value): (.*?)(?=, arg\d+: |$)", line)]
            for line in lines
        ]
    return found


def plain(kind: str) -> str:
    """A type as the stub spells it."""
    for told, short in PLAIN.items():
        kind = kind.replace(told, short)
    return re.sub(r"specedge_kernels\._\w+\.", "", kind)


@pytest.mark.parametrize("name", ["_cpu", "_cuda"])
def test_a_stub_is_the_contract_of_its_bindings(name: str) -> None:
    module = pytest.importorskip(f"specedge_kernels.{name}")
    tree = ast.parse((STUBS / f"{name}.pyi").read_text(encoding="utf-8"))
    stub = in_stub(tree)
    assert stub == in_module(module, set(stub))
    public = {name for name in dir(module) if not name.startswith("_")}
    assert public == {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}


def test_enums_have_the_values_of_the_stub() -> None:
    from specedge_kernels import _cpu

    tree = ast.parse((STUBS / "_cpu.pyi").read_text(encoding="utf-8"))
    for scope in tree.body:
        if isinstance(scope, ast.ClassDef) and scope.name in ("Dtype", "Quant"):
            values = [ast.unparse(n.target) for n in scope.body if isinstance(n, ast.AnnAssign)]
            assert values == list(getattr(_cpu, scope.name).__members__)
