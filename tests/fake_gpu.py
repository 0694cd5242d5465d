"""A GPU that is not there: tensors on it have types, shapes and a device, and no numbers.

What runs on it is what would run on a real one, up to the kernels. An operation that needs a number
on the host raises, as the shapes alone do not tell it; what crosses between host and device, and
how, is written down.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from specedge_kernels.library import DEVICES

DEVICE = torch.device("cuda:1")  # not the current one, whose streams are others


class Indexing(TorchFunctionMode):
    """x[...] and x[...] = y of tensors on a GPU, which a torch without CUDA cannot do by itself."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__ and args[0].device.type == "cuda":
            return self._of(*args)
        if func is Tensor.__setitem__ and args[0].device.type == "cuda":
            x, key, value = args
            part = x if isinstance(key, Tensor) else self._of(x, key)
            if isinstance(key, Tensor):
                return part.masked_fill_(key, value)
            return (
                torch.ops.aten.copy_.default(part, value)
                if isinstance(value, Tensor)
                else part.fill_(value)
            )
        if func is Tensor.copy_:
            return torch.ops.aten.copy_.default(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

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
    """

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.crossed: list[str] = []
        self.streams: list[torch.device | None] = []
        self._pinned: set[int] = set()
        self._empty = torch.empty

    @contextmanager
    def running(self) -> Iterator[None]:
        with self.mode, Crossings(self), Indexing():
            yield

    def empty(
        self, *size: Any, pin_memory: bool = False, device: Any = None, **given: Any
    ) -> Tensor:
        """torch.empty. Pinned memory is real: it is filled on the host."""
        if not pin_memory:
            with ExitStack() as stack:
                if device is not None and torch.device(device).type == "cuda":
                    stack.enter_context(self.mode)
                return self._empty(*size, device=device, **given)
        with unset_fake_temporarily():
            made = self._empty(*size, **given)
        self._pinned.add(made.untyped_storage()._cdata)
        return made

    def event(self) -> SimpleNamespace:
        """torch.cuda.Event."""
        return SimpleNamespace(record=lambda stream=None: self.streams.append(stream))

    def cross(self, way: str, host: Tensor, waits: bool) -> None:
        is_pinned = host.untyped_storage()._cdata in self._pinned
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
        patch.setattr(torch, "empty", gpu.empty)
        patch.setattr(torch.cuda, "Event", gpu.event)
        patch.setattr(torch.cuda, "current_stream", lambda device=None: device)
        for op, devices in DEVICES.items():
            patch.setitem(DEVICES, op, [*devices, "cuda"])
        yield gpu
