"""What a verified tree costs the server with its connections by the daemon, and without."""

import json
import subprocess
import sys

from bench.stack.load import Figures, daemon
from bench.stack.table import Claim, Effort, Table

EDGES = 2000
GOAL_US = 60.0


def trees(effort: Effort) -> Table:
    """`python -m bench.connections`, through the daemon and with sockets: once each, it is long."""
    sockets = _measure(effort)
    with daemon("--module", "tcp") as running:
        before_s = running.cpu_s()
        guest = _measure(effort, "--stack", running.path)
        daemon_s = running.cpu_s() - before_s
    names = ("us of the server per tree", "of these, the event loop", "trees verified")
    rows = [(name, f"{sockets[name]:.1f}", f"{guest[name]:.1f}") for name in names]
    rows.append(("daemon CPU in all, greeting included, s", "", f"{daemon_s:.1f}"))
    cost = guest[names[0]]
    claims = [Claim(f"at most {GOAL_US:g} us of the server a tree", f"{cost:.1f}", cost <= GOAL_US)]
    title = f"{EDGES} edges of a stub server"
    return Table("trees", title, ("", "sockets", "as guest"), rows, claims)


def _measure(effort: Effort, *server: str) -> Figures:
    command = [sys.executable, "-m", "bench.connections", "--edges", str(EDGES), "--json"]
    command += ["--measure-s", str(10 * effort.seconds), "--", *server]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"bench.connections failed: {done.stderr.strip().rpartition(chr(10))[2]}")
    return {name: value for name, value in json.loads(done.stdout).items() if name != "machine"}
