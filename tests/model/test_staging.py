import numpy as np
import torch

from runtime.model.staging import ALIGN_BYTES, Layout


def test_arrays_share_one_buffer_and_nothing_else():
    layout = Layout(
        a=(torch.int64, (3,)),
        none=(torch.int32, (0,)),
        b=(torch.int32, (2, 5)),
        c=(torch.float32, (1,)),
        d=(torch.float64, (2, 0)),
        e=(torch.int64, (1, 1)),
    )
    buffer, arrays = layout.host_buffer(torch.device("cpu"))
    for value, array in enumerate(arrays.values()):
        array.fill(value)
    views = layout.views(buffer.clone())
    for value, (name, view) in enumerate(views.items()):
        assert view.is_contiguous()
        assert view.shape == arrays[name].shape
        assert (view == value).all(), name
        assert view.numel() == 0 or (view.data_ptr() - views["a"].data_ptr()) % ALIGN_BYTES == 0
    assert [view.dtype for view in views.values()] == [
        *(torch.int64, torch.int32, torch.int32, torch.float32, torch.float64, torch.int64)
    ]


def test_a_layout_of_nothing():
    buffer, arrays = Layout(a=(torch.int64, (0, 4))).host_buffer(torch.device("cpu"))
    assert len(buffer) == 0
    assert np.array_equal(arrays["a"], np.zeros((0, 4)))
