"""What this machine has: libraries, processor, memory, kernels, and a GPU or none.

Imports torch and the kernels while it looks, so that what keeps them from being imported is a
finding as well.
"""

import os
import platform
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec

from runtime.config import version
from runtime.doctor.finding import Finding, fault, ok, warning
from runtime.system import cpu_quota, free_memory_bytes, processor, whole_cores

LIBRARIES = ("torch", "triton", "transformers")
GIB = 2**30
KERNELS_AGAIN = "install SpecEdge again where a C++ compiler is: pip install ."


def look() -> Iterator[Finding]:
    """From the libraries up to the device; ends early where the rest could not be told."""
    yield software()
    yield processors()
    yield memory()
    try:
        import torch

        from specedge_kernels import _cpu, library

        used = _cpu.isa()
    except ImportError as error:
        yield fault("kernels", f"they cannot be loaded: {error}", KERNELS_AGAIN)
        return
    except ValueError as error:
        yield fault("instructions", str(error), "leave SPECEDGE_ISA unset")
        return
    has_cuda = torch.cuda.is_available()
    yield instructions(used, os.environ.get("SPECEDGE_ISA", ""))
    yield devices(gpus() if has_cuda else [], torch.version.cuda)
    yield kernels(library.DEVICES, library.TRITON_OPS if has_cuda else None)


def software() -> Finding:
    versions = {"specedge": version(), "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "none"
    told = ", ".join(f"{name} {number}" for name, number in versions.items())
    return ok("software", f"{told}, on {platform.platform(terse=True)}", **versions)


def processors() -> Finding:
    """Cores, and how many threads the model takes of them."""
    cores, threads = whole_cores(), int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    quota = cpu_quota()
    figures = {"cores": os.cpu_count(), "usable_cores": cores, "quota": quota, "threads": threads}
    share = f" of which {quota:g} may be used" if quota is not None else ""
    sentence = f"{processor()}, cores: {os.cpu_count()}{share}; threads of the model: {threads}"
    if threads > cores:
        mend = f"leave --threads and OMP_NUM_THREADS out, or give {max(cores - 1, 1)}"
        sentence += ", which only take the time from each other"
        return warning("processor", sentence, mend, **figures)
    return ok("processor", sentence, **figures)


def memory() -> Finding:
    free = free_memory_bytes()
    told = "this system does not say how much" if free is None else f"{free / GIB:.1f} GiB"
    return ok("memory", f"free: {told}", free_bytes=free)


def instructions(used: str, forced: str) -> Finding:
    """Which of the four forms of the CPU's kernels runs."""
    if forced:
        sentence = f"{used}, since SPECEDGE_ISA says so"
        return warning("instructions", sentence, "leave SPECEDGE_ISA unset", used=used)
    if used == "generic" and platform.machine() in ("x86_64", "AMD64"):
        sentence = "generic: this processor lacks AVX2, FMA or F16C"
        return warning("instructions", sentence, "take a processor from 2014 or later", used=used)
    return ok("instructions", used, used=used)


@dataclass(frozen=True)
class Gpu:
    """One that torch finds; `fault` says why it cannot be used, where it cannot."""

    name: str
    free_bytes: int = 0
    total_bytes: int = 0
    fault: str = ""

    def __str__(self) -> str:
        free, total = self.free_bytes / GIB, self.total_bytes / GIB
        return f"{self.name}, {self.fault or f'{free:.1f} of {total:.1f} GiB free'}"


def gpus() -> list[Gpu]:
    """All that torch finds, in the order of `--device cuda:N`."""
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        try:
            found.append(Gpu(name, *torch.cuda.mem_get_info(index)))
        except RuntimeError as error:  # its memory is full, or another program has it for itself
            found.append(Gpu(name, fault=str(error).partition("\n")[0]))
    return found


def devices(gpus: Sequence[Gpu], torch_cuda: str | None) -> Finding:
    """What `--device auto` takes, and the GPUs there are besides."""
    if gpus:
        told = "; ".join(f"cuda:{index} {gpu}" for index, gpu in enumerate(gpus))
        figures = {"device": "cuda", "gpus": [asdict(gpu) for gpu in gpus]}
        sentence = f"CUDA {torch_cuda}: {told}"
        if any(gpu.fault for gpu in gpus):
            mend = "see in nvidia-smi who has it, or name another one with --device"
            return warning("device", sentence, mend, **figures)
        return ok("device", sentence, **figures)
    if shutil.which("nvidia-smi"):
        sentence = "the CPU: there is nvidia-smi, but torch finds no GPU"
        mend = "check that nvidia-smi shows a GPU, or that its driver is new enough for this torch"
        if torch_cuda is None:
            mend = "install a torch that was built for CUDA: pip install --force-reinstall torch"
        return warning("device", sentence, mend, device="cpu")
    return ok("device", "the CPU; there is no NVIDIA GPU", device="cpu")


def kernels(devices: Mapping[str, Collection[str]], on_gpu: Collection[str] | None) -> Finding:
    """Which ops have an implementation where they will run.

    devices: of each op; on_gpu: those that a GPU must have, None where there is no GPU.
    """
    built = {kind: [op for op in devices if kind in devices[op]] for kind in ("cpu", "cuda")}
    sentence = f"{len(built['cpu'])} ops for the CPU, by C++"
    if on_gpu is None:
        return ok("kernels", sentence, **built)
    if missing := [op for op in on_gpu if op not in built["cuda"]]:
        sentence += f"; the GPU lacks {', '.join(missing)}"
        return fault("kernels", sentence, "pip install 'specedge[gpu]', for Triton", **built)
    by = "CUDA C++ and Triton" if find_spec("specedge_kernels._cuda") else "Triton"
    return ok("kernels", f"{sentence}; {len(built['cuda'])} for the GPU, by {by}", **built)
