"""What is opened where: the device that an option stands for."""

import pytest

from runtime.model.config import ModelError
from runtime.model.open import device_of


@pytest.mark.parametrize(
    ("name", "gpus", "device"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_a_device_is_one_that_is_there(name: str, gpus: int, device: str) -> None:
    assert str(device_of(name, gpus)) == device


@pytest.mark.parametrize(
    ("name", "gpus", "sentence"),
    [
        ("cuda", 0, "GPUs that torch finds here: 0"),
        ("cuda:1", 1, "GPUs that torch finds here: 1"),
        ("tpu", 1, "expected auto, cpu, cuda or cuda:N"),
        ("meta", 1, "expected auto, cpu, cuda or cuda:N"),
    ],
)
def test_one_that_is_not_is_a_sentence(name: str, gpus: int, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        device_of(name, gpus)
