import numpy as np
import pytest
import torch

from runtime.model import staging
from runtime.model.staging import ALIGN_BYTES, Layout, Parcel

CPU = torch.device("cpu")


class Numbered:
    """Arrays that are filled with their number."""

    def __init__(self, first: int, **arrays):
        self.first, self.layout = first, Layout(**arrays)

    def fill(self, arrays):
        for value, array in enumerate(arrays.values(), self.first):
            array.fill(value)


def test_all_arrays_of_a_parcel_share_one_buffer_and_nothing_else():
    contents = {
        "one": Numbered(
            1,
            a=(torch.int64, (3,)),
            none=(torch.int32, (0,)),
            b=(torch.int32, (2, 5)),
            c=(torch.float32, (1,)),
        ),
        "nothing": Numbered(5, e=(torch.int64, (0, 4))),
        "two": Numbered(6, a=(torch.float64, (2, 1)), b=(torch.int64, (1, 1))),
    }
    parcel = Parcel(CPU, contents)
    there = [(name, key, view) for name in contents for key, view in parcel.tensors(name).items()]
    for value, (name, key, view) in enumerate(there, 1):
        assert view.is_contiguous()
        assert view.shape == parcel.arrays[name][key].shape
        assert (view == value).all(), (name, key)
        assert view.numel() == 0 or view.data_ptr() % ALIGN_BYTES == 0
    assert [view.dtype for *_, view in there] == [
        *(torch.int64, torch.int32, torch.int32, torch.float32),
        *(torch.int64, torch.float64, torch.int64),
    ]
    (buffer,) = {view.untyped_storage().data_ptr() for *_, view in there if view.numel()}
    assert buffer == parcel.bytes["one"].data_ptr()


def test_what_is_written_before_it_is_sent_goes_along(monkeypatch):
    """Again, too, where it is sent again; on a device of its own, which a copy stands for."""
    parcel = Parcel(CPU, {"one": Numbered(1, a=(torch.int32, (2,)))})
    sent = []
    monkeypatch.setattr(staging, "upload", lambda here, there: sent.append(here.clone()))
    parcel.arrays["one"]["a"][0] = 7
    parcel.send()
    parcel.arrays["one"]["a"][1] = 8
    parcel.send()
    assert [one[:8].view(torch.int32).tolist() for one in sent] == [[7, 1], [7, 8]]


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_columns_arrive_as_they_were(batch):
    """The bytes of all behind each other, as a GPU has them copied."""
    columns = (
        torch.rand(batch, 3, dtype=torch.float64),
        torch.randint(1 << 40, (batch,)),
        torch.arange(batch, dtype=torch.int32),
        torch.randint(99, (batch, 5), dtype=torch.int32),
    )
    parts = staging.parts(staging.joined(columns), columns)
    for part, column in zip(parts, columns, strict=True):
        assert part.dtype == column.dtype
        assert torch.equal(part, column)


def test_a_parcel_of_nothing():
    parcel = Parcel(CPU, {"none": Numbered(1, a=(torch.int64, (0, 4)))})
    assert len(parcel.bytes["none"]) == 0
    assert np.array_equal(parcel.arrays["none"]["a"], np.zeros((0, 4)))
