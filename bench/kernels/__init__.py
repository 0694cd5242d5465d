"""How close each kernel comes to what the machine allows, beside other ways to do the same work.

    python -m bench.kernels [--json] [--quick] [--only OP] [--device auto] [--save FILE]

A row is printed only if its result agreed with the specification. The floor of a row is the larger
of its bytes at the copy bandwidth and its arithmetic at the matrix rate, both measured in the same
run. On a GPU calls are replayed from a CUDA graph over inputs of more than five times the L2; on a
CPU the sizes are small, the caches warm and the copy bandwidth that of a copy in the cache.
"""
