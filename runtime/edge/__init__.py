"""The edge: drafts token trees with a small model and streams the text that the server verifies.

    from runtime.edge import generate
    for text in generate("Why is the sky blue?", server="127.0.0.1:8400"):
        print(text, end="", flush=True)

`Edge` is the same for several questions over one connection. Both are imported on first use, so
that `python -m runtime.edge --help` does not wait for torch.
"""

from typing import Any

__all__ = ["Edge", "generate"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from runtime.edge import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
