"""python -m runtime.bench: what this machine, or the paper's, gains from SpecEdge, measured."""
