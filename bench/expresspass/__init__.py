"""ExpressPass (arXiv:1610.04688) beside DCTCP, HULL and DX, packet by packet.

A discrete-event simulation in C++ (engine/), in whole picoseconds, the same for the same seed:
hosts, links, switches with a queue of data and a queue of credits before every link. Nothing of
SpecEdge is in it; SpecEdge's own credits, which follow the same paper, are bench.scheduler's.

    python -m bench.expresspass [--only convergence ...] [--flows 100000] [--plots DIR] [--json]

ExpressPass's credit control is as the paper's authors have it in their simulator (target loss
1/8 of what is unused, weight 0.01 to 0.5); DCTCP marks at 65 packets for 10 Gbit/s; HULL's phantom
queue drains at 0.95 and marks at 1 kB for 1 Gbit/s, its pacer is left out (no host here sends
bursts); DX counts less than one frame of queueing as none. All open with one round trip (TCP's
handshake, ExpressPass's request), after which TCP's window is 10 packets.
"""
