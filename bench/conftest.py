"""What pytest-benchmark writes into its JSON files about the machine."""

import pytest
import torch  # noqa: F401  so that its version is among them

from bench.harness import this_machine


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, object]) -> None:
    machine_info.update(this_machine())
