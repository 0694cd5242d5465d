"""The ways to serve that are compared: what server and edges are told beyond the workload.

Source: SpecEdge (arXiv:2505.17052), sections 5.1 (baselines) and 5.2 (ablations).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SERVER_ONLY = "server-only"
REPLAYED = "specedge-replayed"  # its edges send trees that were drafted before


@dataclass(frozen=True)
class Mode:
    """What the server and the edges are told beyond the workload."""

    server: tuple[str, ...] = ()  # options of python -m runtime.server
    edge: Mapping[str, Any] = field(default_factory=dict)  # fields of EdgeConfig


# What an operator would otherwise run: every request in every step, nobody drafts.
PLAIN = Mode(edge={"max_budget": 0})
MODES = {
    "plain": PLAIN,
    "specedge": Mode(),
    "disaggregated": Mode(server=("--no-pipeline",), edge={"proactive": "off"}),
    "no-pipeline": Mode(server=("--no-pipeline",)),
    "no-proactive": Mode(edge={"proactive": "off"}),
    "single-proactive": Mode(edge={"proactive": "single"}),
    # as many rows in a step as one tree of 32 nodes has, for the trees of two requests
    "shared-steps": Mode(
        server=("--max-batch", "2", "--max-nodes", "32", "--max-step-nodes", "33")
    ),
    "no-offers": Mode(edge={"offers": False}),
    "no-coupling": Mode(edge={"coupling": False}),
    "credits-open": Mode(server=("--credits", "open")),
    "credits-drr": Mode(server=("--credits", "drr")),
}
