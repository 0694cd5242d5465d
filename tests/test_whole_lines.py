"""Files that grow by whole lines on a disk that fills, which a largest size of files stands for."""

import subprocess
import sys
from pathlib import Path

import pytest

from runtime.whole_lines import WholeLines


def test_lines_are_there_at_once_and_come_behind_those_before(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    for mode in ("w", "a"):
        lines = WholeLines(path, mode)
        lines.append("é")
        assert path.read_text(encoding="utf-8").endswith("é\n")
        lines.close()
    assert path.read_text(encoding="utf-8") == "é\né\n"


def test_of_a_line_that_does_not_fit_nothing_stays(tmp_path: Path) -> None:
    body = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from runtime.whole_lines import WholeLines\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))\n"
        "lines = WholeLines(Path(sys.argv[1]), 'w')\n"
        "for line in ('x' * 9, 'y' * 15, 'z' * 3):\n"
        "    try:\n        lines.append(line)\n    except OSError as error:\n        print('full')"
    )
    path = tmp_path / "lines"
    command = [sys.executable, "-c", body, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "full\n"
    assert path.read_text() == "xxxxxxxxx\nzzz\n"


def test_a_device_that_is_full_raises() -> None:
    lines = WholeLines(Path("/dev/full"), "w")
    with pytest.raises(OSError, match="No space left"):
        lines.append("x")
    lines.close()
