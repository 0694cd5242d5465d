"""What a compiled kernel is made of: its resources, and one turn of the loop that streams.

The loop is found twice: in Triton's intermediate code, which has the sizes of what is loaded and
multiplied, and in the machine code, which has the instructions. Where no loop loads anything, one
turn is all of the kernel.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from triton.compiler import CompiledKernel

from tests.gpu.compiled import cuobjdump
from tests.gpu.launches import resources

TYPE_BITS = {"f8": 8, "i8": 8, "i1": 8, "bf16": 16, "f16": 16, "i16": 16}
TYPE_BITS |= {"f32": 32, "i32": 32, "f64": 64, "i64": 64}
AHEAD = ("async_copy_global_to_local", "async_tma_copy_global_to_local")
LOADS = ("tt.load ", *AHEAD)
PRODUCTS = ("tc_gen5_mma", "warp_group_dot ", "tt.dot")
FLOAT = {"FFMA", "FMUL", "FADD", "HFMA2", "HMUL2", "HADD2", "FFMA2", "FMUL2", "FADD2", "DFMA"}
SPECIAL = {"MUFU", "I2F", "F2I", "F2F", "POPC", "FRND", "BREV", "FLO"}
DATA = {"LDS", "STS", "LDSM", "STSM", "LDG", "STG", "LDGSTS", "LDL", "STL", "SHFL", "REDUX"}
DATA |= {"ATOM", "ATOMG", "ATOMS", "RED", "LDTM", "STTM", "LD", "ST", "MATCH"}
MATRIX = {"HMMA", "IMMA", "QMMA", "HGMMA", "QGMMA", "IGMMA", "UTCHMMA", "UTCQMMA", "UTCOMMA"}
CONTROL = {"BRA", "BAR", "NOP", "EXIT", "CALL", "RET", "BSSY", "BSYNC", "WARPSYNC", "DEPBAR"}
CONTROL |= {"LDGDEPBAR", "WARPGROUP", "FENCE", "MEMBAR", "SYNCS", "UTCBAR", "ERRBAR", "VOTE"}


@dataclass(frozen=True)
class Code:
    """A kernel; a turn is one pass of its main loop, or of the whole kernel if it has none."""

    registers: int
    stack_bytes: int
    shared_bytes: int  # of a program
    warps: int
    turn_bytes: int  # that a program loads in a turn
    turn_flops: int  # of matrix instructions, padding included
    by_unit: dict[str, float]  # instructions of a warp in a turn, in units of the rates' table
    instructions: int  # of a warp in a turn
    spills: int  # of these, those that keep registers in memory
    flight_bytes: float  # under way while a turn computes
    loads_ahead: bool  # whether those of the next turn are under way
    products_ahead: bool  # whether matrix instructions go on into the next turn
    loops: bool
    warp_mma: bool  # whether single warps multiply


def read(compiled: CompiledKernel, folder: Path) -> Code:
    used = resources(compiled, folder)
    loop = streaming_loop(compiled.asm["ttgir"])
    text = loop or compiled.asm["ttgir"].splitlines()
    turn_bytes = sum(loaded_bytes(line) for line in text)
    instructions = turn(cuobjdump("--dump-sass", compiled, folder), bool(loop))
    depth = turns_ahead(loop, compiled.metadata.num_stages)
    names = {name.split(".")[0] for name in instructions}
    return Code(
        registers=used["REG"],
        stack_bytes=used["STACK"],
        shared_bytes=compiled.metadata.shared,
        warps=compiled.metadata.num_warps,
        turn_bytes=turn_bytes,
        turn_flops=sum(product_flops(line) for line in text),
        by_unit=by_unit(instructions),
        instructions=len(instructions),
        spills=count_spills(instructions),
        flight_bytes=turn_bytes * max(depth, 1),
        loads_ahead=depth > 0,
        products_ahead=go_on(loop),
        loops=bool(loop),
        warp_mma=bool(names & {"HMMA", "IMMA", "QMMA"}),
    )


def streaming_loop(ttgir: str) -> list[str]:
    """The lines of the innermost loop that loads most, none if no loop loads."""
    lines = ttgir.splitlines()
    indents = [len(line) - len(line.lstrip()) for line in lines]
    best: list[str] = []
    for start, line in enumerate(lines):
        if "scf.for" not in line and "scf.while" not in line:
            continue
        ends = (i for i in range(start + 1, len(lines)) if indents[i] <= indents[start])
        body = lines[start + 1 : next(ends)]
        innermost = not any("scf.for" in inner for inner in body)
        if innermost and turn_size(body) > turn_size(best):
            best = body
    return best


def turn_size(body: list[str]) -> tuple[bool, int]:
    """Loops whose loads run ahead first, as they were written for streaming."""
    runs_ahead = any(load in line for line in body for load in AHEAD)
    return runs_ahead, sum(map(loaded_bytes, body))


def loaded_bytes(line: str) -> int:
    if not any(load in line for load in LOADS):
        return 0
    found = re.search(r"tensor<((?:\d+x)+)!tt\.ptr<(\w+)>", line)
    found = found or re.search(r"tensordesc<(?:tensor<)?((?:\d+x)+)(\w+)", line)
    return elements(found[1]) * TYPE_BITS.get(found[2], 8) // 8 if found else 0


def product_flops(line: str) -> int:
    if not any(product in line for product in PRODUCTS):
        return 0
    left, right = re.findall(r"(?:memdesc|tensor)<(?:\d+x)*?(\d+)x(\d+)x\w", line)[:2]
    return 2 * int(left[0]) * int(left[1]) * int(right[1])


def elements(sizes: str) -> int:
    return math.prod(int(size) for size in sizes.split("x") if size)


def turns_ahead(loop: list[str], stages: int) -> float:
    """How many turns' loads are under way while one computes."""
    waits = [int(n) for line in loop for n in re.findall(r"async_wait.*?num = (\d+)", line)]
    groups = sum("async_commit_group" in line for line in loop)
    if waits and groups:
        return max(waits) / groups
    return stages - 1 if any("async_tma" in line for line in loop) else 0


def go_on(loop: list[str]) -> bool:
    """Whether no turn waits for its own products, but where a branch of it does."""
    indent = min((len(line) - len(line.lstrip()) for line in loop), default=0)
    own = [line for line in loop if not line[indent:].startswith(" ")]
    pending = [int(n) for line in own for n in re.findall(r"pendings = (\d+)", line)]
    if pending:
        return min(pending) > 0
    reads = any("tmem_load" in line for line in own)
    return any("tc_gen5_mma" in line for line in own) and not reads


def turn(sass: str, loops: bool) -> list[str]:
    """Names of the instructions of the machine's innermost loop that loads most, or of all."""
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/ +([^;]+);", sass)
    code = [(int(at, 16), re.sub(r"^@!?U?P\w+ +", "", text).split()) for at, text in lines]
    bodies = []
    for at, words in code:
        target = int(words[-1], 16) if words[0].startswith("BRA") else at
        if loops and target < at:
            bodies.append([w[0] for place, w in code if target <= place <= at])
    weights = [(sum(map(ahead, body)) / len(body), body) for body in bodies]
    return max(weights)[1] if weights else [words[0] for _, words in code]


def ahead(name: str) -> float:
    """A loop is told by the density of its loads, those to shared memory first."""
    root = name.split(".")[0]
    return {"LDGSTS": 1000.0, "UTMALDG": 1000.0, "LDG": 1.0}.get(root, 0.0) * width(name)


def width(name: str) -> int:
    """Clocks that the data of a warp take at 128 bytes a clock."""
    return {"128": 4, "64": 2}.get(next(iter(re.findall(r"\.(128|64)\b", name)), ""), 1)


def by_unit(names: list[str]) -> dict[str, float]:
    counts: Counter[str] = Counter()
    for name in names:
        root = name.split(".")[0]
        unit = unit_of(root)
        counts[unit] += width(name) if unit == "data" else 1
    return dict(counts)


def count_spills(names: list[str]) -> int:
    return sum(name.startswith(("LDL", "STL")) for name in names)


def unit_of(root: str) -> str:
    for unit, roots in (("float", FLOAT), ("special", SPECIAL), ("data", DATA)):
        if root in roots:
            return unit
    if root in MATRIX:
        return "matrix"
    if root in CONTROL:
        return "control"
    return "uniform" if root.startswith("U") else "integer"
