"""SpecEdge beside llama.cpp and transformers: `python -m bench.peers`."""
