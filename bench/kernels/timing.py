"""Times of calls on a CPU or a GPU, and what the machine can copy and multiply.

On a GPU one CUDA graph holds many calls, and each call has inputs of its own, so that by the time
one's turn comes again the L2 holds something else. What the machine can do is taken from the lower
quartile of its times, what the kernels do from the median.
"""

import math
from collections.abc import Callable, Sequence

import torch

from bench.harness import Timing, measure
from specedge_kernels import linear, pack_linear

REPLAYS = 100
MAX_COPIES = 128  # inputs much below a megabyte stay in the L2, as they do in use
GRAPH_S = 1e-3
CPU_SAMPLES, CPU_SAMPLE_S = 15, 0.005

Call = Callable[[], object]


def n_copies(device: torch.device, n_bytes: int) -> int:
    """How many inputs of this size make five times the L2."""
    if device.type == "cpu":
        return 1
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    return min(MAX_COPIES, math.ceil(5 * l2_bytes / max(n_bytes, 1)))


def time_calls(calls: Sequence[Call], device: torch.device, floor_s: float) -> Timing:
    """Seconds of one of `calls`, which do the same on different inputs."""
    if device.type == "cpu":
        return measure(calls[0], CPU_SAMPLES, CPU_SAMPLE_S)
    rounds = math.ceil(min(MAX_COPIES, GRAPH_S / max(floor_s, 1e-6)) / len(calls))
    graph = capture(calls, rounds)
    return Timing.of([replay_s(graph) / (rounds * len(calls)) for _ in range(REPLAYS)])


def capture(calls: Sequence[Call], rounds: int) -> torch.cuda.CUDAGraph:
    """All calls, `rounds` times over; kernels are compiled before the capture."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    for _ in range(3):
        graph.replay()
    return graph


def replay_s(graph: torch.cuda.CUDAGraph) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second of a copy, read and written bytes together: in the cache on a CPU."""
    elements = 64 * 2**10 if device.type == "cpu" else 512 * 2**20
    source = torch.ones(elements, device=device)
    target = torch.empty_like(source)
    took = time_calls([lambda: target.copy_(source)], device, GRAPH_S)
    return 2 * source.nbytes / took.low_s


def matmul_rate(device: torch.device) -> float:
    """FLOP per second of the fastest product of random matrices: bfloat16, or float32 on a CPU."""
    size, dtype = (768, torch.float32) if device.type == "cpu" else (8192, torch.bfloat16)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    ways: list[Call] = [lambda: torch.mm(a, b, out=out)]
    if device.type == "cpu":
        panels = pack_linear(b)
        ways.append(lambda: linear(a, panels, size))
    return 2 * size**3 / min(time_calls([way], device, GRAPH_S).low_s for way in ways)
