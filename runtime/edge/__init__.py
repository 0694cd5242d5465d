"""The edge: drafts token trees with a small model and streams the text that the server verifies.

`client.py` is its page for programs, `__main__.py` for people; `worker.py` is what both start, and
`loop.py` the course of one request. `draft/` has what is drafted, `net/` the way to the server.
"""
