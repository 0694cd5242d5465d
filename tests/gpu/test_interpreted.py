import pytest

from tests.gpu.interpreter import INTERPRETED, run_interpreted

# Starting a child takes seconds: few of them, of about the same length.
SLOW = ["test_tree_attention.py", "test_batch_invariance.py", "test_verify.py"]
FILES = {True: [], False: []}
for file in sorted(INTERPRETED.glob("test_*.py")):
    FILES[file.name in SLOW].append(file)


@pytest.mark.parametrize("files", FILES.values(), ids=["attention", "others"])
def test_kernels_under_the_interpreter(files, request):
    run_interpreted(files, request.config.option.markexpr)
