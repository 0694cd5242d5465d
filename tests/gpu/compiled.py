"""Compiles Triton kernels for cards that are not here, and reads what came out."""

import re
import subprocess
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

# The least that cards of these kinds give one program.
SHARED_BYTES = {"sm_80": 101376, "sm_90": 232448, "sm_100": 232448}


def cross_compile(kernel, arch: str, types: dict[str, str], constants: dict, **options):
    """`types` names the arguments that are no constants; pointers and "i32*16" are aligned."""
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr").removesuffix("*16") for name in names}
    aligned = [name for name, kind in types.items() if kind[0] == "*" or kind.endswith("*16")]
    source = ASTSource(
        kernel,
        signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    return triton.compile(source, target=target, options=options)


def stack_bytes(compiled: CompiledKernel, folder: Path) -> int:
    """Local memory of a thread: 0 unless registers were spilled."""
    usage = cuobjdump("--dump-resource-usage", compiled, folder)
    return int(re.search(r"STACK:(\d+)", usage)[1])


def main_loop(compiled: CompiledKernel, folder: Path) -> list[str]:
    """Machine code of the innermost loop that copies to shared memory."""
    sass = cuobjdump("--dump-sass", compiled, folder)
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/ +([^;]+);", sass)
    code = [(int(address, 16), text) for address, text in lines]
    loops = []
    for address, text in code:
        branch = re.search(r"\bBRA.* (0x[0-9a-f]+)", text)
        if branch and int(branch[1], 16) < address:
            loops.append([t for at, t in code if int(branch[1], 16) <= at <= address])
    return min((loop for loop in loops if any("LDGSTS" in t for t in loop)), key=len)


def cuobjdump(option: str, compiled: CompiledKernel, folder: Path) -> str:
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    return subprocess.check_output([tool, option, str(cubin)], text=True)


def waits(compiled: CompiledKernel) -> list[int]:
    """Of every wait for copies to shared memory: how many younger groups may be in flight."""
    return [int(n) for n in re.findall(r"async_wait.*?num = (\d+)", compiled.asm["ttgir"])]
