"""Who may import whom. A forbidden import is a design mistake, so it fails the check."""

import ast
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "numpy", "asyncio", "transformers", "triton"}

# folder or file -> what no module in it may import
FORBIDDEN = {
    "specedge_kernels": {"runtime", "transformers"},
    "runtime/wire": {"torch", "numpy"},
    "runtime/stack": {"torch", "numpy", "socket"},
    "runtime/wire/messages.py": HEAVY | {"socket"},
    "runtime/wire/connection.py": HEAVY | {"socket", "time"},
    "runtime/tree.py": {"torch", "asyncio", "runtime.model", "runtime.edge", "runtime.server"},
    "runtime/system.py": {"runtime", "socket", "torch", "numpy"},
    "runtime/history.py": HEAVY | {"runtime"},
    "runtime/options.py": HEAVY | {"runtime"},
    "runtime/sampling.py": HEAVY | {"runtime.wire", "runtime.model"},
    "runtime/option_files.py": HEAVY | {"socket"},
    "runtime/config.py": HEAVY
    | {"runtime.wire", "runtime.model", "runtime.edge", "runtime.server"},
    "runtime/arguments.py": HEAVY
    | {"runtime.wire", "runtime.model", "runtime.edge", "runtime.server"},
    "runtime/logs.py": HEAVY | {"runtime.wire", "runtime.model", "runtime.edge", "runtime.server"},
    "runtime/terminal.py": HEAVY
    | {"rich", "runtime.wire", "runtime.model", "runtime.edge", "runtime.server"},
    "runtime/server/http.py": {"torch", "numpy", "runtime.model", "runtime.server"},
    "runtime/server/metrics.py": {"torch", "numpy", "asyncio", "starlette", "uvicorn", "time"},
    "runtime/server/steps.py": {"torch", "numpy", "socket"},
    "runtime/server/model_thread.py": {"torch", "numpy", "asyncio", "socket"},
    "runtime/server/request.py": HEAVY | {"socket", "time", "runtime.model"},
    "runtime/server/policy": HEAVY | {"socket", "time"},
    "runtime/server/policy/estimators.py": {"runtime"},
    "runtime/server/policy/slots.py": {"runtime"},
    "runtime/server/schedule": HEAVY | {"socket", "time"},
    "runtime/server/schedule/prefix_cache.py": {"runtime"},
    "runtime/server/verify": {"asyncio", "socket"},
    "runtime/server/verify/verifier.py": {"time"},
    "runtime/model": {"asyncio", "socket"},
    "runtime/grammar": {"torch", "asyncio", "socket", "time"},
    "runtime/edge": {"runtime.server"},
    "runtime/edge/net": {"numpy"},
    "runtime/edge/net/watchdog.py": HEAVY | {"socket", "time", "runtime"},
    "runtime/conform": {"torch", "numpy", "runtime.edge", "runtime.server"},
    "runtime/edge/draft/drafter.py": {"asyncio", "socket"},
    "runtime/background.py": {"torch", "socket", "runtime"},
    "runtime/edge/answer.py": {"torch", "socket", "time", "runtime.model", "runtime.wire"},
    "runtime/edge/draft/suffixes.py": HEAVY | {"time", "runtime"},
    "runtime/edge/draft/lookup_drafter.py": HEAVY | {"time", "socket"},
    "runtime/edge/draft/pace.py": HEAVY | {"time", "runtime"},
    "runtime/edge/draft/speculation.py": {"torch", "asyncio", "time", "runtime.model"},
    "runtime/server": {"runtime.edge"},
    "runtime/bench/records.py": HEAVY | {"runtime"},
    "runtime/bench/figures.py": HEAVY | {"time", "runtime.edge", "runtime.server", "runtime.model"},
    "runtime/bench/link.py": {"runtime"},
}
# folder -> all of runtime that its modules may import
KNOWN = {
    "runtime/wire": {"runtime.wire", "runtime.stack", "runtime.system"},
    "runtime/stack": {
        *("runtime.stack", "runtime.arguments", "runtime.config", "runtime.options"),
        "runtime.terminal",
    },
    "runtime/model": {"runtime.model", "runtime.embedded", "runtime.system"},
    "runtime/grammar": {"runtime.grammar", "runtime.model"},
    "runtime/server/policy": {"runtime.server.policy", "runtime.server.request", "runtime.wire"},
    "runtime/server/schedule": {"runtime.server.schedule", "runtime.server.request"},
    "runtime/server/verify": {
        *("runtime.server.verify", "runtime.server.request", "runtime.server.schedule"),
        *("runtime.history", "runtime.model", "runtime.tree", "runtime.wire"),
    },
    "runtime/edge/draft": {
        *("runtime.edge.draft", "runtime.history", "runtime.model", "runtime.tree"),
    },
    "runtime/edge/net": {
        *("runtime.edge.net", "runtime.logs", "runtime.sampling", "runtime.tree", "runtime.wire"),
    },
    "runtime/embedded/__init__.py": set(),
    "runtime/embedded/training": {"runtime.arguments", "runtime.embedded", "runtime.model"},
}
# these may be imported, but only inside functions, when they are needed
LAZY = {
    "runtime/system.py": HEAVY | {"fcntl", "termios", "resource"},
    "runtime/model": {"transformers", "gguf", "safetensors", "huggingface_hub", "tokenizers"},
    "runtime/__init__.py": HEAVY | {"rich", "runtime"},
    "runtime/serve.py": {"torch", "rich", "runtime.server"},
    **{f"runtime/edge/{name}.py": {"torch"} for name in ("client", "worker", "prompts", "loading")},
    "runtime/edge/net": {"torch"},
    "runtime/edge/__main__.py": HEAVY | {"rich", "runtime.edge.client", "runtime.edge.chat"},
    "runtime/conform/__main__.py": {"torch", "transformers", "runtime.model"},
    "runtime/server/__main__.py": HEAVY | {"rich", "runtime.server.start"},
    "runtime/bench/__main__.py": HEAVY | {"rich", "runtime.bench.command"},
    "runtime/bench/command.py": {"torch", "matplotlib", "runtime.bench.plots"},
    "specedge_kernels": {"triton", "specedge_kernels.gpu"},
}
PAGE = ROOT / "docs/architecture.md"
# of the modules directly in runtime/, those that join the parts; the others know no part
FRONTS = {"runtime.__init__", "runtime.serve", "runtime.demo"}
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}


def modules(place: str) -> list[Path]:
    path = ROOT / place
    return [path] if path.suffix else sorted(path.rglob("*.py"))


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Dotted names that a module imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def offences(names: set[str], forbidden: set[str]) -> set[str]:
    return {name for name in names for root in forbidden if f"{name}.".startswith(f"{root}.")}


@pytest.mark.parametrize("place", FORBIDDEN)
def test_no_forbidden_import(place: str) -> None:
    assert modules(place), f"{place} is gone; mend this table"
    for path in modules(place):
        assert not offences(imports(path), FORBIDDEN[place]), path


@pytest.mark.parametrize("place", KNOWN)
def test_a_folder_knows_no_more_of_the_runtime(place: str) -> None:
    assert modules(place), f"{place} is gone; mend this table"
    for path in modules(place):
        ours = offences(imports(path), {"runtime"}) - {"runtime"}
        assert ours == offences(ours, KNOWN[place]), path


@pytest.mark.parametrize("place", LAZY)
def test_heavy_imports_wait_until_they_are_needed(place: str) -> None:
    for path in modules(place):
        if path.is_relative_to(ROOT / "specedge_kernels/gpu"):
            continue
        assert not offences(imports(path, top_level_only=True), LAZY[place]), path


LONGEST_FUNCTION = 40  # lines, its docstring not counted


@pytest.mark.parametrize("place", ["runtime", "bench"])
def test_a_function_fits_on_a_screen(place: str) -> None:
    """But for kernels, whose signatures and tiles are long."""
    for path in modules(place):
        if path.is_relative_to(ROOT / "bench/kernels"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                lines -= len((ast.get_docstring(node, clean=False) or "").splitlines())
                assert lines <= LONGEST_FUNCTION, f"{path}:{node.lineno}: {node.name}"


# what `Request.phase` follows from, and the pages that some phases have
PHASE_FACTS = {
    *("ended", "in_steps", "verifying", "admitted", "context", "cached", "draft", "masked", "turn"),
    "pages",
}


def test_a_request_changes_its_phase_itself() -> None:
    """In named methods, which check what must hold before; nobody else assigns these facts."""
    record = ROOT / "runtime/server/request.py"
    for path in modules("runtime/server"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                owner = ast.unparse(node.value)
                is_own = owner == "self" or path == record
                assert is_own or node.attr not in PHASE_FACTS, f"{path}:{node.lineno}: {owner}"


def page_table() -> dict[str, set[str]]:
    """Part -> the parts that it imports, as the page says."""
    rows = re.findall(r"^\| (`.*?`) \|(.*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {part.strip("`"): set(re.findall(r"`(.*?)`", parts)) for part, parts in rows}


def part_of(name: str, parts: Iterable[str]) -> str | None:
    """The innermost part that a dotted name belongs to; None for what is in none."""
    if name in FRONTS:
        return "runtime"
    within = [part for part in parts if f"{name}.".startswith(part.replace("/", ".") + ".")]
    deepest = max(within, key=len, default="runtime")
    return None if deepest == "runtime" else deepest


def test_the_page_says_who_imports_whom() -> None:
    """Both ways: no import that the page does not have, and none on it that there is not."""
    told = page_table()
    found: dict[str, set[str]] = {part: set() for part in told}
    for path in [*modules("runtime"), *modules("specedge_kernels")]:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        part = part_of(name, told)
        known = {part_of(name, told) for name in imports(path)} - {None, part}
        if part is None:
            assert not known, f"{path} is for all parts and knows {known}"
        else:
            found[part] |= known
    assert found == told


def test_nothing_can_run_code_from_data() -> None:
    for path in [*modules("runtime"), *modules("specedge_kernels")]:
        assert not offences(imports(path), UNSAFE), path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"eval", "exec", "torch.load"}, f"{path}:{node.lineno}"


# what Windows lacks, and of what it has, what means something else there
POSIX_MODULES = {"fcntl", "termios", "resource", "pwd", "grp", "pty", "tty", "posix", "syslog"}
POSIX_NAMES = {
    *("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGUSR1", "SIGUSR2"),
    *("add_signal_handler", "remove_signal_handler", "setitimer", "pthread_sigmask", "sigwait"),
    *("fork", "forkpty", "geteuid", "getuid", "getegid", "getgid", "setuid", "killpg", "setsid"),
    *("getpgid", "getloadavg", "getpriority", "nice", "uname", "mkfifo", "chown", "fchown"),
    *("fchmod", "O_CLOEXEC", "O_NOFOLLOW", "O_DIRECTORY", "O_NONBLOCK", "sysconf", "posix_fadvise"),
    *("sched_getaffinity", "sched_setaffinity", "wait3", "wait4", "AF_UNIX", "madvise", "fwalk"),
}
# the bench of a machine measures Linux machines
LINUX_ALONE = ("runtime/bench",)


def test_what_some_systems_lack_is_in_one_file() -> None:
    """Edges run on Windows and macOS as well."""
    for path in [*modules("runtime"), *modules("specedge_kernels")]:
        place = path.relative_to(ROOT).as_posix()
        if place == "runtime/system.py" or place.startswith(LINUX_ALONE):
            continue
        assert not offences(imports(path), POSIX_MODULES), path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = {getattr(node, "attr", ""), getattr(node, "id", ""), getattr(node, "name", "")}
            assert not names & POSIX_NAMES, f"{path}:{getattr(node, 'lineno', '?')}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not node.value.startswith(("/proc", "/sys", "/dev/")), path


def test_torch_stays_out_of_csrc() -> None:
    for path in (ROOT / "csrc").rglob("*.*"):
        text = path.read_text(encoding="utf-8")
        assert "<torch/" not in text, path
        assert "pybind11" not in text or path.name == "bindings.cpp", path


def test_sockets_live_in_one_place() -> None:
    """The conformance tests have their own: they do what a good peer never does."""
    own = {ROOT / f"runtime/{name}.py" for name in ("wire/tcp", "wire/places", "conform/peer")}
    for path in modules("runtime"):
        if path not in own:
            assert "socket" not in imports(path), path


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no repository, but its files alone")
def test_the_repository_keeps_no_links() -> None:
    """A link leads to what its maker had, and nobody else has."""
    listed = subprocess.run(
        ["git", "ls-files", "--stage"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert [line for line in listed.splitlines() if line.startswith("120000")] == []
