"""Replicas on a Ray cluster: `serve run runtime.ray:app model=... max_replicas=4`.

Ray Serve places servers, starts them again and decides how many there are; one front, which is
placed too, sends edges on to them. What edges and servers say goes past Ray, over TCP as ever.
"""

from typing import Any

__all__ = ["app"]


def __getattr__(name: str) -> Any:
    """`app`, for which Ray is imported; the rest of the folder can be used without it."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from runtime.ray.application import app
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ModuleNotFoundError(
            "Ray is not installed: pip install '.[ray]'", name="ray"
        ) from None
    return app
