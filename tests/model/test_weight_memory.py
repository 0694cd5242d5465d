"""Packed weights lie on large pages, each by itself."""

import re
import sys
from pathlib import Path

import pytest
import torch

from runtime.model.experts import MixtureOfExperts
from runtime.model.weight_memory import WeightMemory
from runtime.model.weights import load
from specedge_kernels import QuantizedWeight, pack_quantized
from tests.model import tiny

LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")


def asks_for_large_pages(address: int) -> bool:
    """Whether the system was asked for them where this lies, as it says itself."""
    found = re.finditer(
        r"^([0-9a-f]+)-([0-9a-f]+) .*?^VmFlags:(.*?)$",
        Path("/proc/self/smaps").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    flags = (one[3] for one in found if int(one[1], 16) <= address < int(one[2], 16))
    return "hg" in next(flags).split()


needs_large_pages = pytest.mark.skipif(
    sys.platform != "linux" or not LARGE_PAGES.exists(), reason="there are no large pages here"
)


def test_weights_keep_their_numbers_and_their_room() -> None:
    memory, generator = WeightMemory(), torch.manual_seed(0)
    sizes = [(3, 5), (0, 4), (1, 64, 64), (2, 1, 8192, 64), (7,)]
    given = [
        torch.randn(size, generator=generator).to(dtype)
        for size in sizes
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    ]
    moved = [memory.moved(tensor) for tensor in given]
    for before, after in zip(given, moved, strict=True):
        assert isinstance(after, torch.Tensor)
        assert after.dtype == before.dtype
        assert torch.equal(after, before)
        assert after.data_ptr() % 64 == 0


def test_more_than_a_room_at_once() -> None:
    large = torch.arange(20 << 20, dtype=torch.int32)  # 80 MiB
    memory = WeightMemory()
    first = memory.moved(large[:100])
    assert torch.equal(torch.as_tensor(memory.moved(large)), large)
    assert torch.equal(torch.as_tensor(first), large[:100])


def test_quantised_weights_are_moved_whole() -> None:
    stored = torch.randint(256, (16, 34), dtype=torch.uint8, generator=torch.manual_seed(0))
    weight = pack_quantized(stored, 8)
    moved = WeightMemory().moved(weight)
    assert isinstance(moved, QuantizedWeight)
    assert moved.packed.data_ptr() != weight.packed.data_ptr()
    assert torch.equal(moved.packed, weight.packed)
    assert (moved.kinds, moved.sizes, moved.in_features) == ((8,), (16,), 32)


@needs_large_pages
def test_what_is_loaded_lies_on_large_pages(tmp_path: Path) -> None:
    folder = tiny.save(tiny.huggingface_model("qwen3-moe"), tmp_path)
    model = load(folder)
    products = [model.head, *(part for layer in model.layers for part in (layer.qkv, layer.output))]
    grouped = [
        layer.mlp.experts for layer in model.layers if isinstance(layer.mlp, MixtureOfExperts)
    ]
    sets = [product for experts in grouped for product in (experts.gate_up, experts.down)]
    assert len(sets) == 2 * len(model.layers)
    for product in (*products, *sets):
        assert isinstance(product.weight, torch.Tensor)
        assert asks_for_large_pages(product.weight.data_ptr())
