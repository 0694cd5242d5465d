"""These tests launch kernels: on a GPU, or under the interpreter (tests/gpu/interpreter.py)."""

import os
from collections.abc import Iterator

import pytest
import torch
from triton.runtime import interpreter

RUNS_KERNELS = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if RUNS_KERNELS else ["test_*.py"]


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session", autouse=True)
def _language_is_replaced_once_a_launch() -> Iterator[None]:
    """The interpreter puts its own functions in the place of the language's at a launch, and again
    at every call of a function within it, which finds nothing left to do: a third of the time.
    """
    replace, execute = interpreter._patch_lang, interpreter.GridExecutor.__call__
    replaced: set[frozenset[str]] = set()

    def replace_once(fn: object) -> object:
        modules = frozenset(
            value.__name__
            for value in fn.__globals__.values()
            if value is interpreter.tl or value is interpreter.tl.core
        )
        if modules in replaced:
            return None
        replaced.add(modules)
        return replace(fn)

    def launch(self: object, *args: object, **named: object) -> None:
        replaced.clear()
        execute(self, *args, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", replace_once)
        patch.setattr(interpreter.GridExecutor, "__call__", launch)
        yield
