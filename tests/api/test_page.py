"""docs/http.md: its examples are run, and what it lists is what there is."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.api.bodies import NEUTRAL

PAGE = Path(__file__).parent.parent.parent / "docs/http.md"
TEXT = PAGE.read_text(encoding="utf-8")
CURLS = [block for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) if "curl" in block]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not there")
@pytest.mark.parametrize("number", range(3))
def test_the_page_s_curl_examples_run(url: str, number: int) -> None:
    assert len(CURLS) == 3
    script = "set -e\n" + CURLS[number].replace("http://127.0.0.1:8401", url)
    script = script.replace("curl ", "curl --silent --show-error --fail ")
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = ['"usage"', '"text_completion"', '"status":"ok"'][number]
    assert expected in done.stdout
    assert (number == 0) == ("data: [DONE]" in done.stdout)


def test_the_page_s_python_example_runs(url: str) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    code = code.replace("http://127.0.0.1:8401", url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "accepted_prediction_tokens" in done.stdout


def test_what_the_page_says_is_refused_is_refused() -> None:
    said = TEXT[TEXT.index("**What would change the text") :].partition("(`runtime/")[0]
    named = set(re.findall(r"`(\w+)`", said))
    assert len(named) > 10
    assert named <= NEUTRAL.keys()
