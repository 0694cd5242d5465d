"""What this machine is, and what a process of it takes. Linux; elsewhere less is known."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from runtime.system import processor


def machine(libraries: Iterable[str]) -> dict[str, str]:
    """The system, the processor, the interpreter, and the versions of installed libraries."""
    return {
        "system": platform.platform(terse=True),
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **{name: version(name) for name in libraries},
    }


def resident_bytes(process: int | str = "self") -> int:
    """Memory of a process that is in RAM, mapped files included."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
