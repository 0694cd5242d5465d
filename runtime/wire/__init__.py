"""STF/1, the protocol between edges and server: messages, connections, and the only sockets.

`messages` and `connection` do no input or output and know no clock; `tcp` is the thin adapter
that carries their bytes. Nothing here knows models, drafting or scheduling.
"""
