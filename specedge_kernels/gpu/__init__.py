"""Triton kernels, one file per op: the kernel first, its launcher below.

Importing this package needs triton; `library.py` does so only where a GPU is. Launchers have the
signatures of `cpu.py`, allocate and launch, check nothing (`ops.py` did) and never synchronise.
"""
