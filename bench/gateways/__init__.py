"""Gateways before one server: does it pay that they meter credits, where the server can?

Edges come to the server by the stack daemons of several hosts, its gateways. With `drr` the server
gives credits to the users of all of them in turn. With `xpass` no one does: each gateway offers at
a rate of its own, which follows its loss at a gate before the accelerator, as ExpressPass
(arXiv:1610.04688) has it, and sees nobody else's sessions. Both go through the server's own
pipeline and window.

    xpass         a gateway is one flow; a gate of 8 offers, feedback every 0.1 s
    xpass, users  it offers as often as one flow for each of its users would
    xpass, best   the same with a gate of 16 offers, which did best: a step's worth

    python -m bench.gateways [--edges 1000] [--draws 3] [--json]      simulated
    python -m bench.gateways --daemons                                measured, as root

`--daemons` starts two specedge-stack in network namespaces of their own, joined to this host by
veth and an emulated link, and a stub server that verifies for real users behind them. The gate and
the feedback are then in the server's process, and their messages take as long as they would.
"""
