"""Builds the drivers of this folder: the sources of csrc, every instruction set that this
processor runs, sanitised.

Knows the compilers' options, nothing of what is run.
"""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
FLAGS = ("-std=c++20", "-O1", "-g1", "-ffp-contract=off", f"-I{CSRC}", "-fno-sanitize-recover=all")
# A vector's spare room is not to be read either.
FLAGS += ("-D_GLIBCXX_SANITIZE_VECTOR",)
# Without the last one GCC 12 takes twice as long to place the products' vectors in registers.
SANITIZE = ("-fopenmp", "-fsanitize=address,undefined", "-fira-region=one")
# Of one thread: clang's OpenMP is a package of its own, and two threads would blur the coverage.
FUZZ = ("-fsanitize=fuzzer,address,undefined",)
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = tuple(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl"))
FLAGS_OF = {"generic": (), "dotprod": ("-march=armv8.2-a+dotprod",)}
FLAGS_OF |= {"avx2": AVX2, "avx512": (*AVX2, *AVX512, "-mprefer-vector-width=512")}
FLAGS_OF["avx512vnni"] = (*FLAGS_OF["avx512"], "-mavx512vnni")
X86, ARM = ("generic", "avx2", "avx512", "avx512vnni"), ("generic", "dotprod")
ISAS = {"x86_64": X86, "AMD64": X86, "aarch64": ARM, "arm64": ARM}.get(
    platform.machine(), ("generic",)
)
# The products' unrolled loops: optimised, they take four times as long to compile.
PLAIN = {"quantized_linear.cpp": ("-O0",)}
# All that a set adds to the one before it, where that is not everything.
ADDED = dict.fromkeys(("avx512vnni", "dotprod"), ("quantized_linear.cpp",))

# Fresh memory is full of NaN. Leaks are not looked for: that needs ptrace, which containers deny.
ENVIRONMENT = {
    "ASAN_OPTIONS": "max_malloc_fill_size=1073741824:malloc_fill_byte=255:detect_leaks=0",
    "OMP_NUM_THREADS": "2",
}


class NoSanitizer(Exception):
    """There is no compiler here that links the sanitisers, or libFuzzer."""


@dataclass(frozen=True)
class Toolchain:
    compiler: str
    flags: tuple[str, ...]

    def compile(self, folder: Path, source: Path, isa: str = "", *flags: str) -> Path:
        target = folder / f"{source.parent.name}-{source.stem}-{isa}.o"
        flags = (*flags, f"-DSPECEDGE_ISA={isa}", *FLAGS_OF[isa]) if isa else flags
        command = [self.compiler, *self.flags, *flags, "-c", source, "-o", target]
        subprocess.run(command, check=True)
        return target

    def link(self, folder: Path, sources: list[tuple[Path | str, ...]]) -> Path:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda unit: self.compile(folder, *unit), sources))
        driver = folder / "driver"
        subprocess.run([self.compiler, *self.flags, *objects, "-o", driver], check=True)
        return driver

    def links(self, folder: Path, program: str) -> bool:
        probe = folder / "probe.cpp"
        probe.write_text(program)
        command = [self.compiler, *self.flags, probe, "-o", folder / "probe"]
        return not subprocess.run(command, capture_output=True, check=False).returncode

    def sets(self) -> list[str]:
        """The instruction sets that this processor runs."""
        command = [self.compiler, "-march=native", "-dM", "-E", "-xc++", os.devnull]
        macros = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        needs = {isa: [flag for flag in FLAGS_OF[isa] if "=" not in flag] for isa in ISAS}
        return [
            isa
            for isa, flags in needs.items()
            if all(f"#define __{flag.removeprefix('-m').upper()}__ " in macros for flag in flags)
        ]


def build(folder: Path) -> Path:
    """The driver of main.cpp, in a folder. Raises NoSanitizer."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise NoSanitizer("there is no C++ compiler here")
    toolchain = Toolchain(compiler, FLAGS + SANITIZE)
    if not toolchain.links(folder, "int main() {}"):
        raise NoSanitizer(f"{compiler} does not link the address sanitiser or OpenMP")
    return toolchain.link(folder, [*_checks(), *_ops(toolchain.sets())])


def build_fuzzer(folder: Path) -> Path:
    """The same cases under libFuzzer, in a folder. Raises NoSanitizer."""
    compiler = shutil.which("clang++")
    if not compiler:
        raise NoSanitizer("libFuzzer needs clang++, which is not here")
    toolchain = Toolchain(compiler, FLAGS + FUZZ)
    if not toolchain.links(folder, 'extern "C" int LLVMFuzzerTestOneInput() { return 0; }'):
        raise NoSanitizer(f"{compiler} does not link libFuzzer (Debian: libclang-rt-dev)")
    return toolchain.link(folder, [*_checks(without="main.cpp"), *_ops(toolchain.sets())])


def build_for_arm(folder: Path) -> Path:
    """The driver for 64-bit ARM, as a script that emulates it, in a folder. Raises NoSanitizer."""
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if not compiler or not emulator:
        raise NoSanitizer(
            "no compiler and emulator of ARM (Debian: g++-aarch64-linux-gnu, qemu-user)"
        )
    # the address sanitiser's memory is not the emulator's
    toolchain = Toolchain(compiler, (*FLAGS, "-static", "-fopenmp", "-fsanitize=undefined"))
    driver = toolchain.link(folder, [*_checks(), *_ops(list(ARM))])
    program = driver.rename(folder / "emulated")
    driver.write_text(f'#!/bin/sh\nexec {emulator} {program} "$@"\n')
    driver.chmod(0o755)
    return driver


def run(driver: Path, isa: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a driver on one instruction set."""
    return subprocess.run(
        [driver, *map(str, arguments)],
        env={**os.environ, **ENVIRONMENT, "SPECEDGE_ISA": isa},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def runs(driver: Path, isa: str) -> bool:
    """Whether this processor has an instruction set; every driver says so before anything else."""
    return "is not an instruction set of this processor" not in run(driver, isa, "-help=1").stderr


def _checks(without: str = "") -> Iterator[tuple[Path, ...]]:
    return ((source,) for source in sorted(HERE.glob("*.cpp")) if source.name != without)


def _ops(sets: list[str]) -> Iterator[tuple[Path | str, ...]]:
    """Every source of csrc, once per instruction set where it is made for several.

    A set that this processor lacks is not compiled: nobody can choose it, and its name in the
    choice stands for another one's functions.
    """
    absent = [f"-D{isa}=generic" for isa in FLAGS_OF if isa not in sets]
    for source in sorted(CSRC.glob("*.cpp")):
        if source.name == "isa.cpp":
            yield source, "", *absent
        elif "specedge::SPECEDGE_ISA" in source.read_text(encoding="utf-8"):
            made = [isa for isa in sets if source.name in ADDED.get(isa, (source.name,))]
            yield from ((source, isa, *PLAIN.get(source.name, ())) for isa in made)
        elif source.name != "bindings.cpp":
            yield (source,)
