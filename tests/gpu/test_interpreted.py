import pytest

from tests.gpu.interpreter import INTERPRETED, run_interpreted


@pytest.mark.parametrize("file", sorted(INTERPRETED.glob("test_*.py")), ids=lambda file: file.stem)
def test_kernels_under_the_interpreter(file):
    run_interpreted(file)
