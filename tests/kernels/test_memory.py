"""A kernel that finds no memory raises MemoryError, in whichever of its threads, and lives on."""

import os
import subprocess
import sys

import pytest

# Once as it should be, so that threads and libraries are there; then with too little memory left
# for what the op needs beside its outputs; then as it should be again.
PROGRAM = """
import resource, sys, torch, specedge_kernels as kernels
from torch import float32 as f32, int32 as i32, int64 as i64

rows = lambda value, dtype: torch.full((2,), value, dtype=dtype)

def target_tokens(size):
    logits = torch.zeros(2, size << 22)
    return lambda: kernels.target_tokens(
        logits, rows(1, f32), rows(0, i32), rows(0.9, f32), rows(0, f32), rows(5, i64), rows(7, i64)
    )

def draft_topk(size):
    logits = torch.zeros(2, size << 22)
    return lambda: kernels.draft_topk(logits, 3, rows(1, f32), rows(5, i64), rows(7, i64))

def tree_attention(size):
    q, cache = torch.zeros(16, 1, size << 18), torch.zeros(1, 16, 1, size << 18)
    one, ends = torch.ones(1, dtype=i32), torch.tensor([0, 16], dtype=i32)
    parents = torch.arange(-1, 15, dtype=i32)
    ancestors, depth = kernels.build_tree(parents, ends, words=1)
    return lambda: kernels.tree_attention(
        q, cache, cache, 0 * one[None], 0 * one, 16 * one, ends, ancestors, depth, scale=1.0
    )

op = globals()[sys.argv[1]](1)
expected = op()
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[2]) * 2**20
_, most = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (limit, most))
try:
    op()
except MemoryError:
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    both = [value if isinstance(value, tuple) else (value,) for value in (expected, op())]
    print(all(map(torch.equal, *both)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("op", "left_mb"), [("target_tokens", 8), ("draft_topk", 8), ("tree_attention", 20)]
)
def test_an_op_without_memory_raises_and_works_again(op: str, left_mb: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, op, str(left_mb)],
        env={**os.environ, "OMP_NUM_THREADS": "2", "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "True\n"), ended.stderr[-2000:]
