"""How much others have of the cores that this process runs on; nothing where Linux does not tell.

Whatever the cores ran that this process did not: other programs, the kernel for their sake, and
what a hypervisor took for other guests (proc(5), /proc/stat: "steal").
"""

import os
import time
from pathlib import Path

from runtime.bench.workers import available_cores

STAT = Path("/proc/stat")


def others_s() -> float:
    """Seconds that others have had of each of the cores, the mean; from any time on."""
    cores = available_cores()
    try:
        lines = STAT.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    found = [line.split() for line in lines]
    ticks = sum(busy(line[1:]) for line in found if line and line[0] in map("cpu{}".format, cores))
    ran_s = ticks / os.sysconf("SC_CLK_TCK") - time.process_time() if ticks else 0.0
    return ran_s / len(cores)


def busy(ticks: list[str]) -> int:
    """All but `idle` and `iowait`; guests' time is in `user` already."""
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, ticks)
    return user + nice + system + irq + softirq + steal
