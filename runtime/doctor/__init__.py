"""python -m runtime.doctor: what this machine can do, and what a server is worth to it."""
