"""OpenAI's HTTP API over whatever can write answers: an edge, or a server for those without one.

`app.py` has the routes, `backend.py` what they stand on. A request is read and checked in
`bodies.py`, answered by `answering.py`, and spelled in the form of its endpoint by `chat.py` or
`completions.py`. `of_edge.py` is the endpoint of python -m runtime.edge.
"""
