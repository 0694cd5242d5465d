"""A model of transformers without numbers: what it computes, in which shapes, from which weights.

Built and run once on torch's meta device, which has shapes alone. That tells what a layer keeps
of a token and how each weight is used, for any family, before a tensor is read.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from runtime.model.backend.attention import NAME, PLACE, AttentionCall, Recorder, attend
from runtime.model.backend.rotary import forward_of, is_rotary
from runtime.model.config import MAX_LAYERS, ModelError, check_count
from runtime.model.folder import read_fields

_TOKENS = 3  # that are run: no other number of rows is likely to be as many
_REASON_CHARACTERS = 300  # torch's go on with addresses of its own code
_SIZES = {
    **{"vocab_size": 2**24, "num_hidden_layers": MAX_LAYERS},
    **{"hidden_size": 2**31 - 1, "num_attention_heads": 2**31 - 1},
}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_LAYER_TYPES = {"full_attention", "sliding_attention", "chunked_attention"}


class Uses(TorchFunctionMode):
    """Notes which weights are multiplied with and which are looked up in, by their ids."""

    def __init__(self) -> None:
        super().__init__()
        self.products: set[int] = set()
        self.turned: set[int] = set()  # multiplied with as [inputs, outputs], as in GPT-2
        self.rows: set[int] = set()
        self.elsewhere: set[int] = set()  # products of other rows than the tokens'
        self.stacks: set[int] = set()
        self.others: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [*args, *kwargs.values()]
        if func in (F.linear, F.embedding):
            noted = self.products if func is F.linear else self.rows
            weight = id(kwargs["weight"] if "weight" in kwargs else given.pop(1))
            noted.add(weight)
            if func is F.linear and given[0].shape[:-1].numel() != _TOKENS:
                self.elsewhere.add(weight)
        if func is torch.addmm and isinstance(given[2], torch.nn.Parameter):
            self.turned.add(id(given.pop(2)))
        if func is torch.bmm and isinstance(given[1], torch.nn.Parameter):
            self.stacks.add(id(given.pop(1)))
        if func is Tensor.__bool__:  # of a number that is not there: checks of numbers are passed
            return True
        made = func(*args, **kwargs)
        # asked for its type or its shape, or for itself in the type that it has, it is not used
        if getattr(func, "__name__", "") != "__get__" and not (given and made is given[0]):
            self.others.update(
                id(value) for value in given if isinstance(value, torch.nn.Parameter)
            )
        return made


@dataclass
class Skeleton:
    """The modules, on the meta device, and what was seen in them.

    longest  tokens of a text up to which all layers see what their attention is told of; None for
             any text
    """

    causal: Any
    attention: dict[torch.nn.Module, AttentionCall] = field(default_factory=dict)
    uses: Uses = field(default_factory=Uses)
    longest: int | None = None
    turned: set[int] = field(default_factory=set)  # dimensions that rotary tables turn

    @property
    def base(self) -> Any:
        """Embedding, layers and last norm: all but the head."""
        return self.causal.base_model


def configuration(folder: Path) -> Any:
    """transformers' configuration of a folder's model. Raises ModelError."""
    fields = read_fields(folder / "config.json")
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    with explained(folder, f"the {fields.get('model_type', 'unnamed')} configuration"):
        known = fields.get("model_type") in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if not known and "auto_map" in fields:
            raise ModelError("it comes with code of its own, which is never run")
        if "model_type" not in fields:
            raise ModelError("config.json has no model_type")
        if not known:
            raise ModelError("transformers has no causal language model of that type")
        check_count("num_hidden_layers", fields.get("num_hidden_layers", 1), MAX_LAYERS)
        # what the weights are quantised with is for the reader of weights alone
        own = {"auto_map": None, "quantization_config": None}
        config = AutoConfig.for_model(**{**fields, **own})
        _check_sizes(config.get_text_config())
        return config


def _check_sizes(config: Any) -> None:
    """Whatever a family calls them: modules are made by these, and a vocabulary is told edges."""
    for name, most in _SIZES.items():
        if (size := getattr(config, name, None)) is not None:  # not every family has heads
            check_count(name, size, most)
    every = next((n for name in _EXPERTS if (n := getattr(config, name, None))), None)
    chosen = getattr(config, "num_experts_per_tok", None)
    if isinstance(every, int) and isinstance(chosen, int):
        check_count("num_experts_per_tok", chosen, every)


def skeleton(folder: Path) -> Skeleton:
    """The model that a folder's config.json describes. Raises ModelError if it cannot run here."""
    config = configuration(folder)
    with explained(folder, f"the {config.model_type} configuration"):
        built = Skeleton(_modules(config))
    with explained(folder, f"{type(built.causal).__name__} of transformers"):
        _look_at(built)
        _check_layers(built)
        built.longest = _longest(built)
    return built


def _modules(config: Any) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    causal_class: Any = AutoModelForCausalLM._model_mapping[type(config)]
    _check_kinds(causal_class, set(getattr(config.get_text_config(), "layer_types", None) or ()))
    if not causal_class._can_set_attn_implementation():
        raise ModelError("its attention cannot be given from outside, which a tree of tokens needs")
    with torch.device("meta"):
        return causal_class._from_config(
            config, attn_implementation=NAME, dtype=torch.float32
        ).eval()


def _check_kinds(causal_class: Any, kinds: set[str]) -> None:
    """Of a class whose layers may keep a running state, a model may have others alone."""
    other = sorted(kinds - _LAYER_TYPES)
    if getattr(causal_class, "_is_stateful", False) and (other or not kinds):
        raise ModelError(
            "it keeps a running state of the text, which cannot be taken back to the last "
            "accepted token"
        )
    if other:
        raise ModelError(
            f"it has layers of {' and '.join(other)}, which keep more of a text than keys and "
            "values by token, or see it otherwise"
        )


def _look_at(built: Skeleton) -> None:
    """Run some tokens, and note what is called with what."""
    calls: list[tuple[torch.nn.Module, AttentionCall]] = []
    recorder = Recorder(calls)
    for module in built.causal.modules():
        if hasattr(module, "layer_idx"):
            module.__dict__[PLACE] = recorder
        if is_experts(module):
            module.forward = lambda x, chosen, weights: torch.empty_like(x)
        if is_rotary(module):
            module.forward = partial(_noted_turns, built.turned, forward_of(module), module)
    numbers = torch.zeros(1, _TOKENS, dtype=torch.int64, device="meta")
    with torch.inference_mode(), torch.device("meta"), built.uses:
        built.causal(input_ids=numbers, position_ids=numbers, use_cache=False)
    built.attention = dict(calls)
    if len(built.attention) < len(calls):
        raise ModelError("a layer attends twice to what it keeps of a token, which is kept once")


def _noted_turns(turned: set[int], forward: Any, *args: Any, **kwargs: Any) -> Any:
    made = forward(*args, **kwargs)
    turned.add(made[0].shape[-1])
    return made


def _check_layers(built: Skeleton) -> None:
    config, calls = built.causal.config, list(built.attention.values())
    if len(calls) != config.num_hidden_layers:
        raise ModelError(
            f"{len(calls)} of its {config.num_hidden_layers} layers have attention; what the "
            "others keep of a text could not be taken back to the last accepted token"
        )
    for call, kind in zip(calls, getattr(config, "layer_types", None) or (), strict=False):
        if (kind == "sliding_attention") != (call.window >= 0):
            raise ModelError(
                f"layer {call.layer} is of {kind}, and its attention is told of "
                f"{'a' if call.window >= 0 else 'no'} window"
            )


def _longest(built: Skeleton) -> int | None:
    """In chunks attention begins anew, windows may be known to masks alone, and where queries grow
    with their positions (llama 4), positions are counted in the pass. Shorter texts meet none."""
    config, limits = built.causal.config, []
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        limits.append(config.attention_chunk_size)
    for module in built.causal.modules():
        if getattr(module, "attn_temperature_tuning", False):
            module.attn_temperature_tuning = False
            limits.append(config.floor_scale - 1)
    window = getattr(config, "sliding_window", None)
    masked = "create_sliding_window_causal_mask" in vars(sys.modules[type(built.causal).__module__])
    if window and masked and not any(call.window >= 0 for call in built.attention.values()):
        limits.append(window)
    return min(limits, default=None)


@contextmanager
def explained(folder: Path, what: str) -> Iterator[None]:
    """Whatever goes wrong in transformers' code is a ModelError that says in what."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{folder}: {what} cannot be run: {error}") from None
    except Exception as error:
        # a KeyError is as its key is spelled
        told = f"transformers finds no {error}" if isinstance(error, KeyError) else str(error)
        reason = " ".join(told.split()) or type(error).__name__
        reason = shorten(reason, _REASON_CHARACTERS, placeholder=" …")
        raise ModelError(f"{folder}: {what} cannot be run: {reason}") from error


def is_experts(module: Any) -> bool:
    """Whether it is one that transformers lets others run: packed experts, told by these."""
    return hasattr(module, "has_gate") and hasattr(module, "is_transposed")
