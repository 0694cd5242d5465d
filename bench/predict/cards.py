"""What the cards can do: their makers' figures, and what is assumed to be reachable of these."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from unittest.mock import patch

# Of an H100's 3.35 TB/s a copy reaches 3.0, of its 989 TFLOP/s a large product 798.
COPY_SHARE, PRODUCT_SHARE = 0.895, 0.807
# Matrix instructions of single warps, where a card has larger ones (arXiv:2402.13499, table 8).
WARP_MMA_SHARE = 0.62
LATENCY_S = 0.7e-6  # of memory under load
LAUNCH_S = 1.0e-6  # from the end of a kernel to the begin of the next in a graph
REGISTERS, WARPS, PROGRAMS = 65536, 64, 32  # of a multiprocessor
RESERVED_BYTES = 1024  # of shared memory, for every program

# Instructions of a warp that a multiprocessor takes a clock (CUDA C++ Programming Guide,
# "Arithmetic Instructions": results a clock / 32). Those that move data: 128 bytes a clock.
RATES = {"float": 4.0, "integer": 2.0, "special": 0.5, "data": 1.0}


@dataclass(frozen=True)
class Card:
    """Figures of the data sheet; rates that are reached are properties."""

    name: str
    arch: str
    multiprocessors: int
    clock_hz: float
    peak_bytes_per_s: float
    peak_flops: float  # bfloat16, dense
    l2_bytes_per_s: float  # assumed
    l2_bytes: int
    shared_bytes: int  # of a multiprocessor

    @property
    def bytes_per_s(self) -> float:
        return COPY_SHARE * self.peak_bytes_per_s

    @property
    def flops_per_s(self) -> float:
        return PRODUCT_SHARE * self.peak_flops

    @contextmanager
    def pretended(self) -> Iterator[None]:
        """torch tells launchers that this is the card, whatever device they ask about."""
        number = int(self.arch.removeprefix("sm_"))
        properties = SimpleNamespace(
            name=self.name,
            major=number // 10,
            minor=number % 10,
            multi_processor_count=self.multiprocessors,
            L2_cache_size=self.l2_bytes,
            shared_memory_per_block_optin=self.shared_bytes - RESERVED_BYTES,
        )
        capability = divmod(number, 10)
        with (
            patch("torch.cuda.get_device_properties", lambda device=None: properties),
            patch("torch.cuda.get_device_capability", lambda device=None: capability),
        ):
            yield


CARDS = {
    card.name: card
    for card in (
        Card("A100", "sm_80", 108, 1.41e9, 2.04e12, 312e12, 4.0e12, 40 << 20, 164 << 10),
        Card("H100", "sm_90", 132, 1.83e9, 3.35e12, 989e12, 5.5e12, 50 << 20, 228 << 10),
        Card("B200", "sm_100", 148, 1.85e9, 8.0e12, 2250e12, 12e12, 126 << 20, 228 << 10),
    )
}
