"""Every kept input, and the same spoilt ones in every run, in a process of little memory."""

import subprocess
import sys
from pathlib import Path

import pytest

CASES = {
    "frames": 20_000,
    "conversation": 1_500,
    "gguf": 500,
    "safetensors": 150,
    "config": 500,
    "index": 150,
}
CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("target", CASES)
def test_kept_and_spoilt_inputs(target, tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz", target]
    options = ["--cases", str(CASES[target]), "--findings", str(tmp_path)]
    cases = subprocess.run(
        command + options, cwd=CORPUS.parents[2], capture_output=True, text=True, check=False
    )
    assert cases.returncode == 0, cases.stderr[-4000:]
    assert cases.stdout.startswith(f"{target}: {CASES[target]} cases")


def test_the_corpus_is_small_and_whole():
    assert {path.name for path in CORPUS.iterdir()} == set(CASES)
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 200_000
