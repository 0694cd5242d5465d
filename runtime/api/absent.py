"""Paths and methods that are not here: what a client is told who asks for one.

Most ask for what OpenAI's API has besides text, or have a base URL that does not end with /v1.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.routing import BaseRoute, Route

from runtime.api.errors import APIError

NOT_STORED = "answers are not stored here; send the whole conversation as input"
TEXT_ALONE = "this model reads and writes text alone"
ONE_REQUEST = "nothing is kept here, and nothing runs, beyond one request for text"
# below /v1, by the first part of a path: what OpenAI's API has, and why it is not here
REASONS = {
    "embeddings": "this model writes text; it has no embeddings",
    "moderations": "this model writes text; it judges none",
    **dict.fromkeys(("audio", "images", "videos", "realtime", "live"), TEXT_ALONE),
    **dict.fromkeys(("files", "uploads", "batches", "vector_stores", "containers"), ONE_REQUEST),
    **dict.fromkeys(("conversations", "assistants", "threads", "chatkit"), ONE_REQUEST),
    **dict.fromkeys(("agents", "skills", "evals", "fine_tuning"), ONE_REQUEST),
    **dict.fromkeys(("organization", "projects"), "this endpoint knows of no organizations"),
}


def absent(status: int, method: str, path: str, routes: Sequence[BaseRoute]) -> APIError:
    """What there is in place of what a router found nothing for, with status 404 or 405."""
    first = path.removeprefix("/v1/").partition("/")[0] if path.startswith("/v1/") else ""
    if reason := REASONS.get(first):
        return APIError(501, f"{method} {path}: {reason}")
    if path.startswith("/v1/responses/compact"):
        return APIError(501, f"{method} {path}: conversations are not shortened here")
    known = [route for route in routes if isinstance(route, Route) and route.methods]
    ours = [route for route in known if route.path.startswith("/v1/") and "{" not in route.path]
    if (meant := path.rstrip("/")) != path and any(route.path == meant for route in ours):
        return APIError(404, f"{method} {path} is not here; did you mean {meant}?")
    if path.startswith(("/v1/responses/", "/v1/chat/completions")):
        return APIError(status, f"{method} {path}: {NOT_STORED}")
    if status == 405:
        there = {m for route in known if route.path_regex.match(path) for m in route.methods or ()}
        return APIError(405, f"{method} {path}: this path takes {_listed(there)}")
    for route in ours:
        if path.rstrip("/").endswith(route.path.removeprefix("/v1")):
            sentence = f"did you mean {route.path}? The base URL of a client ends with /v1"
            return APIError(404, f"{method} {path} is not here; {sentence}")
    there = {f"{_listed(route.methods or ())} {route.path}" for route in ours}
    return APIError(404, f"{method} {path} is not here; there are {', '.join(sorted(there))}")


def _listed(methods: Sequence[str] | set[str]) -> str:
    return " or ".join(sorted({*methods} - {"HEAD"}))
