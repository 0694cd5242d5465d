"""A GPU that is not there: tensors on it have types, shapes and a device, and no numbers.

What runs on it is what would run on a real one, up to the kernels. An operation that needs a number
on the host raises, as the shapes alone do not tell it; what crosses between host and device, and
how, is written down.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from specedge_kernels.library import DEVICES

DEVICE = torch.device("cuda:1")  # not the current one, whose streams are others


class Functions(TorchFunctionMode):
    """What a torch without CUDA cannot do by itself: make tensors on a GPU, and x[...] there."""

    def __init__(self, gpu: "FakeGpu"):
        super().__init__()
        self._gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.pop("pin_memory", False):
            made = func(*args, **kwargs)  # real memory, which is filled on the host
            self._gpu.pinned.add(made.untyped_storage()._cdata)
            return made
        given = (*args, *kwargs.values())
        if any(isinstance(one, torch.device) and one == DEVICE for one in given):
            with self._gpu.mode, Crossings(self._gpu):
                return func(*args, **kwargs)
        if func is Tensor.__getitem__ and args[0].is_cuda:
            return self._of(*args)
        if func is Tensor.__setitem__ and args[0].is_cuda:
            x, key, value = args
            if isinstance(key, Tensor):
                return x.masked_fill_(key, value)
            part = self._of(x, key)
            return part.copy_(value) if isinstance(value, Tensor) else part.fill_(value)
        if func is Tensor.copy_:
            return torch.ops.aten.copy_.default(*args, **kwargs)
        return func(*args, **kwargs)

    def _of(self, x: Tensor, key: Any) -> Tensor:
        dim, wanted = 0, list[Tensor | None]()
        keys = key if isinstance(key, tuple) else (key,)
        for number, one in enumerate(keys):
            if one is None:
                x, dim = x.unsqueeze(dim), dim + 1
            elif one is ...:
                dim = x.dim() - sum(rest is not None for rest in keys[number + 1 :])
            elif isinstance(one, slice):
                x = torch.ops.aten.slice.Tensor(x, dim, one.start, one.stop, one.step or 1)
                dim += 1
            elif isinstance(one, Tensor):
                wanted += [None] * (dim - len(wanted)) + [one]
                dim += 1
            else:
                assert isinstance(one, int), f"a list as an index is sent to the device: {one}"
                x = x.select(dim, one)
        return torch.ops.aten.index.Tensor(x, wanted) if wanted else x


class FakeGpu:
    """While `running`, tensors can be made there.

    crossed  "up" or "down" for each copy between host and device, with a "!" where somebody would
             have waited for it: from or to memory that is not pinned, or without being told not to
    streams  on which an event was recorded, by their device; None is the current one's
    graphs   that were recorded, and `replays` of these
    """

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.crossed: list[str] = []
        self.streams: list[torch.device | None] = []
        self.graphs = self.replays = 0
        self._current: torch.device | None = None
        self.pinned: set[int] = set()

    @contextmanager
    def running(self) -> Iterator[None]:
        with Crossings(self), Functions(self):
            yield

    def event(self) -> SimpleNamespace:
        """torch.cuda.Event."""
        return SimpleNamespace(record=lambda stream=None: self.streams.append(stream))

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        """torch.cuda.device."""
        before, self._current = self._current, device
        yield
        self._current = before

    def new_graph(self) -> SimpleNamespace:
        """torch.cuda.CUDAGraph."""
        return SimpleNamespace(replay=self._replay)

    def _replay(self) -> None:
        self.replays += 1

    @contextmanager
    def graph(self, graph: Any, pool: Any, capture_error_mode: str) -> Iterator[None]:
        """torch.cuda.graph, which records on a stream of the current device."""
        assert self._current == DEVICE, "nothing of this device is recorded"
        crossed = len(self.crossed)
        yield
        assert len(self.crossed) == crossed, "what is copied would be copied again in each replay"
        self.graphs += 1

    def cross(self, way: str, host: Tensor, waits: bool) -> None:
        is_pinned = host.untyped_storage()._cdata in self.pinned
        self.crossed.append(way if is_pinned and not waits else f"{way}!")


class Crossings(TorchDispatchMode):
    """Tells of every copy between host and device."""

    def __init__(self, gpu: FakeGpu):
        super().__init__()
        self._gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        # what is written to comes first, and its last argument says whether somebody waits
        writes = func.overloadpacket.__name__ == "copy_"
        to, given = (args[0], args[1:]) if writes else (made, args)
        waits = not kwargs.get("non_blocking") and not (writes and args[2:] and args[2])
        for one in given:
            if isinstance(to, Tensor) and isinstance(one, Tensor) and one.dim():
                self._tell(to, one, waits)
        return made

    def _tell(self, to: Tensor, source: Tensor, waits: bool) -> None:
        if to.is_cuda and source.is_cpu:
            self._gpu.cross("up", source, waits)
        if to.is_cpu and source.is_cuda:
            self._gpu.cross("down", to, waits)


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    gpu = FakeGpu()
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "Event", gpu.event)
        patch.setattr(torch.cuda, "current_stream", lambda device=None: device)
        patch.setattr(torch.cuda, "device", gpu.device)
        patch.setattr(torch.cuda, "CUDAGraph", gpu.new_graph)
        patch.setattr(torch.cuda, "graph", gpu.graph)
        patch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
        for op, devices in DEVICES.items():
            patch.setitem(DEVICES, op, [*devices, "cuda"])
        yield gpu
