"""python -m specedge_kernels: what is installed, and on which devices each op runs."""

from importlib.util import find_spec

import torch

from specedge_kernels.installed import devices, instruction_set, version


def main() -> None:
    triton = "with Triton" if find_spec("triton") else "without Triton"
    print(f"specedge_kernels {version()}, torch {torch.__version__}, {triton}")
    for device, ops in devices().items():
        print(f"{device}: {hardware(device)}; {len(ops)} ops: {', '.join(ops)}")
    if "cuda" not in devices():
        print("cuda: torch finds no GPU")


def hardware(device: str) -> str:
    if device == "cpu":
        return f"{instruction_set()}, {torch.get_num_threads()} threads"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names)


if __name__ == "__main__":
    main()
