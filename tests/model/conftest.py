"""Models saved by transformers, once for all tests of this folder."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from runtime.model import weights
from runtime.model.transformer import Transformer
from tests.model import tiny
from tests.model.llama_cpp_vocab import LlamaCpp


@dataclass(frozen=True)
class Pair:
    """transformers' model, and ours loaded from what it saved."""

    theirs: torch.nn.Module
    ours: Transformer
    folder: Path


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """A function from a model's name to its Pair."""
    made: dict[str, Pair] = {}

    def pair(name: str) -> Pair:
        if name not in made:
            theirs = tiny.huggingface_model(name)
            folder = tiny.save(theirs, tmp_path_factory.mktemp(name))
            made[name] = Pair(theirs, weights.load(folder), folder)
        return made[name]

    return pair


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


@pytest.fixture(scope="session")
def llama_cpp_vocab():
    """llama.cpp in a process of its own, where it is installed."""
    if find_spec("xllamacpp") is None:
        pytest.skip("xllamacpp is not installed")
    process = LlamaCpp()
    yield process
    process.close()
