"""The network stack as a module: what it costs, and what it saves.

Each part repeats one claim of NetKernel (arXiv:1903.07119) beside our goal. The load is C++
(load/), compiled when first used; the daemon is the one that is installed.

    python -m bench.stack [--only rings round_trips ...] [--seconds 1] [--turns 5] [--json]

What is compared runs in turns, and the medians are told, of what is compared those of each turn's:
what else the machine does hits all alike.
"""
