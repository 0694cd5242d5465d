"""What a GPU that is not here would take for each op: predicted, never measured.

    python -m bench.predict [--card H100] [--only OP] [--terms] [--json]

Every launch of an op at a shape is recorded on tensors without data, compiled for the card's
architecture, and read: registers, shared memory, spills, the instructions of the main loop by the
unit that executes them, bytes under way, arithmetic of the matrix instructions. With the bytes and
the operations of the algorithm these give the terms below, in seconds; a launch is predicted to
take the largest of them, a memory latency to begin with and the gap between two kernels of a graph.

    memory    bytes that must come from or go to memory / what a copy reaches
    L2        bytes of all readings, repeated ones as well / what the L2 gives
    flight    the same on the busiest multiprocessor / (bytes under way there / latency)
    issue     instructions there / 4 a clock
    pipe      those of its most loaded unit / what that takes a clock
    matrix    arithmetic of the tiles, padding included / what a large product reaches
    alone     one program after the other in its place: a turn's matrix instructions, then (where a
              turn waits for these; else meanwhile) its others, at most one of a warp every second
              clock; and a latency where loads are not ahead

A kernel that streams in no loop is one turn of all its code, both sides of every branch. What is
assumed of a card stands in cards.py. Left out are conflicts, divergence, turns of other loops than
the main one, writes that are waited for, and clocks that fall under load. The ratio of two ways of
one table is worth more than a time.
"""
