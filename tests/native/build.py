"""Builds the driver of this folder: the sources of csrc, every instruction set, sanitised.

Knows the compiler's options, nothing of what is run.
"""

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FLAGS = ("-std=c++20", "-O1", "-g1", "-fopenmp", "-ffp-contract=off", f"-I{CSRC}", *SANITIZE)
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = tuple(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl"))
ISAS = {"generic": ()}
if platform.machine() in ("x86_64", "AMD64"):
    ISAS |= {"avx2": AVX2, "avx512": (*AVX2, *AVX512, "-mprefer-vector-width=512")}

# Fresh memory is full of NaN. Leaks are not looked for: that needs ptrace, which containers deny.
ENVIRONMENT = {
    "ASAN_OPTIONS": "max_malloc_fill_size=1073741824:malloc_fill_byte=255:detect_leaks=0",
    "OMP_NUM_THREADS": "2",
}


class NoSanitizer(Exception):
    """There is no compiler here that links the sanitisers."""


def build(folder: Path) -> Path:
    """Compile and link the driver in a folder. Raises NoSanitizer."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise NoSanitizer("no C++ compiler")
    probe = folder / "probe.cpp"
    probe.write_text("int main() {}")
    if not _runs(compiler, *FLAGS, probe, "-o", folder / "probe"):
        raise NoSanitizer(f"{compiler} does not link the address sanitiser or OpenMP")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda unit: _compile(compiler, folder, *unit), _units()))
    driver = folder / "driver"
    subprocess.run([compiler, *FLAGS, *objects, "-o", driver], check=True)
    return driver


def run(driver: Path, first_seed: int, count: int, isa: str) -> subprocess.CompletedProcess[str]:
    """Run cases on one instruction set."""
    return subprocess.run(
        [driver, str(first_seed), str(count)],
        env={**os.environ, **ENVIRONMENT, "SPECEDGE_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )


def _units() -> list[tuple[Path, str]]:
    """Every source, once per instruction set where it is made for several."""
    units = [(source, "") for source in sorted(HERE.glob("*.cpp"))]
    for source in sorted(CSRC.glob("*.cpp")):
        if source.name != "bindings.cpp":
            per_isa = "specedge::SPECEDGE_ISA" in source.read_text(encoding="utf-8")
            units += [(source, isa) for isa in (ISAS if per_isa else ("",))]
    return units


def _compile(compiler: str, folder: Path, source: Path, isa: str) -> Path:
    target = folder / f"{source.parent.name}-{source.stem}-{isa}.o"
    flags = [*FLAGS, f"-DSPECEDGE_ISA={isa}", *ISAS[isa]] if isa else FLAGS
    subprocess.run([compiler, *flags, "-c", source, "-o", target], check=True)
    return target


def _runs(*command: object) -> bool:
    return not subprocess.run(list(map(str, command)), capture_output=True, check=False).returncode
