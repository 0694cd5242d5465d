"""Rotary tables: cosines and sines of every position, computed once by the model's own code.

A row then gets what its position has in the table, whatever else is in its batch. Two kinds of
scaling look at the longest text of the batch; here they have one set of frequencies for all texts:
that of the model's whole context, or, where the context is asked to be no longer than what the
model was first trained for, the one for short texts. (vLLM chooses by its longest context, too.)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Tables = tuple[Tensor, ...]


def is_rotary(module: Any) -> bool:
    return "Rotary" in type(module).__name__ and any(
        name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False)
    )


def forward_of(module: Any) -> Callable[..., Any]:
    """Its class's, without the part that looks at the batch."""
    whole = type(module).forward
    forward: Callable[..., Any] = getattr(whole, "__wrapped__", whole)
    return forward


class Rotary:
    """In place of a module's forward: (x, position_ids [1, N]) -> what it gives for them."""

    def __init__(self, module: Any, n_positions: int):
        self._module, self._n_positions = module, n_positions
        self._tables: dict[str | None, Tables] = {}
        self._single = False

    def __call__(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
        if layer_type not in self._tables:
            self._tables[layer_type] = self._computed(x.device, layer_type)
        found = tuple(_as(x, table[position_ids[0]][None]) for table in self._tables[layer_type])
        return found[0] if self._single else found

    def tables(self, device: torch.device) -> Tables:
        """[C, D] of every position, for all layers."""
        return self._computed(device, None)

    def _computed(self, device: torch.device, layer_type: str | None) -> Tables:
        """[C, D] of every position."""
        positions = torch.arange(self._n_positions, device=device)[None]
        named = {} if layer_type is None else {"layer_type": layer_type}
        made = forward_of(self._module)(
            self._module, torch.empty(0, device=device), positions, **named
        )
        self._single = isinstance(made, Tensor)
        return tuple(table[0] for table in ((made,) if self._single else made))


def choose_frequencies(module: Any, max_context: int) -> None:
    """Of a model with one set of frequencies for short texts and one for long, one for all."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kinds = getattr(module, "rope_type", None)
    for layer_type, kind in (kinds if isinstance(kinds, dict) else {None: kinds}).items():
        if kind != "longrope":
            continue
        place = "inv_freq" if layer_type is None else f"{layer_type}_inv_freq"
        rope, named = module.config.rope_parameters, {}
        if layer_type is not None:
            rope, named = rope[layer_type], {"layer_type": layer_type}
        longest_short = rope["original_max_position_embeddings"]
        if max_context > longest_short:
            frequencies, _ = ROPE_INIT_FUNCTIONS[kind](
                module.config, module._buffers[place].device, seq_len=longest_short + 1, **named
            )
            module._buffers[place] = frequencies


def _as(x: Tensor, found: Tensor) -> Tensor:
    """In the type of the activations, but for complex numbers."""
    return found.to(x.dtype) if found.is_floating_point() else found
