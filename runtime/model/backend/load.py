"""From a model's folder to a TransformersModel: modules, their weights, ours in their places."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from runtime.model.adapter import Base
from runtime.model.backend.attention import PLACE, PagedAttention, Pass
from runtime.model.backend.fused import fuse
from runtime.model.backend.matrix import Matrix
from runtime.model.backend.model import Given, TransformersModel
from runtime.model.backend.norms import as_norm
from runtime.model.backend.parameters import Parameters
from runtime.model.backend.probe import path_alone, probe
from runtime.model.backend.rotary import Rotary, choose_frequencies, is_rotary
from runtime.model.backend.skeleton import Skeleton, Uses, explained, is_experts, skeleton
from runtime.model.backend.steady import is_activation, steady
from runtime.model.backend.whole import as_decoder
from runtime.model.config import MAX_STATED_TOKENS, KVShape, ModelError, check_count
from runtime.model.experts import Experts, GroupedLinear
from runtime.model.folder import quantisation_of, read_fields
from runtime.model.folder_weights import FolderWeights
from runtime.model.rope import scaling_from, stretched_context
from runtime.model.transformer import Product, as_it_is
from runtime.model.weights import Progress, Reader
from runtime.system import freed_memory_given_back

Place = tuple[Any, str]  # a module and the name of a parameter in it


class Described(NamedTuple):
    """What a model needs memory for, of its folder alone; shapes and bytes by its files' names."""

    weights: FolderWeights
    kv_shapes: tuple[KVShape, ...]
    max_context: int
    embedding: str


def describe(folder: Path) -> Described:
    """A model that is not loaded. Raises ModelError with a sentence that says what is missing."""
    built = skeleton(folder)
    weights = _weights(folder)
    Parameters(built.causal, weights).check()
    context = _context(built, 0)
    vocabulary = built.causal.get_input_embeddings().weight.shape[0]
    embedding = next(n for n, shape in weights.shapes.items() if shape[0] == vocabulary)
    return Described(weights, _kv_shapes(built), context, embedding)


def _weights(folder: Path) -> FolderWeights:
    path = folder / "config.json"
    return FolderWeights(folder, quantisation_of(path, read_fields(path)))


def _kv_shapes(built: Skeleton) -> tuple[KVShape, ...]:
    calls = enumerate(built.attention.values())
    return tuple(call.shape for index, call in calls if call.keeper == index)


@freed_memory_given_back()
def load(
    folder: Path,
    weights: str,
    device: torch.device,
    progress: Progress = lambda done_bytes, total_bytes: None,
    activations: str = "rounded",
    batch_invariant: bool = True,
    max_context: int = 0,
) -> TransformersModel:
    """The model in a Hugging Face folder, run by transformers' modules.

    Options as for `weights.load`; max_context: the longest text that it will run, 0 for the
    model's. Raises ModelError with a sentence that says what is missing.
    """
    built = skeleton(folder)
    causal = built.causal
    parameters = Parameters(causal, _weights(folder))
    parameters.check()
    places = _places(causal, parameters)
    embedding = causal.get_input_embeddings()
    reader = Reader(
        parameters,
        [*places, *_persistent_buffers(causal)],
        weights,
        device,
        progress,
        activations == "exact",
        batch_invariant,
        _name_of(embedding, places),
    )
    with explained(folder, f"{type(causal).__name__} of transformers"):
        running = _place_attention(built, reader.batch_invariant)
        _fill(built, places, reader, running)
        head = causal.get_output_embeddings()
        model = _assembled(built, _context(built, max_context), running)
        model.products, model.base = _adaptable(reader, parameters.shapes, _name_of(head, places))
        reader.tell()
        probe(model)
        _try_in_one_call(model, embedding.weight, head)
    return model


def _name_of(module: Any, places: Mapping[str, list[Place]]) -> str:
    """The tensor that is a module's weight; empty if none is."""
    return next((name for name, where in places.items() if (module, "weight") in where), "")


def _try_in_one_call(model: TransformersModel, embedding: Tensor, head: Any) -> None:
    """Run the layers in one call from now on, if that gives the bits that the modules give."""
    model.settle()
    if model.device.type != "cpu" or head is None or getattr(head, "bias", None) is not None:
        return
    by_modules = path_alone(model)
    model.decoder = as_decoder(model.body, embedding, head.weight)
    if model.decoder is None:
        return
    if not torch.equal(path_alone(model), by_modules):
        model.decoder = None
        return
    # where rows have adapters the modules run, and leave the last norm to the decoder as well
    model.body.norm.forward = as_it_is
    probe(model)


def _adaptable(
    reader: Reader, shapes: Mapping[str, tuple[int, ...]], head: str
) -> tuple[list[Product], Base]:
    """What adapters can be beside: products of layers that every row goes through once."""
    out = head.removesuffix(".weight")
    products = [
        product
        for product in reader.products
        if not any(module == out or ".experts." in module for module in product.outputs)
    ]
    outputs = {module: n for product in products for module, n in product.outputs.items()}
    matrices = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if len(shape) == 2:  # some have the inputs first
            is_turned = outputs.get(module, shape[0]) != shape[0]
            matrices[module] = shape[::-1] if is_turned else shape
    return products, Base(matrices, outputs.keys())


def _places(causal: Any, parameters: Parameters) -> dict[str, list[Place]]:
    """Every tensor to read, and the modules that have it: several where it is tied."""
    shared: dict[int, dict[str, Place]] = defaultdict(dict)
    for prefix, module in causal.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            shared[id(parameter)][f"{prefix}.{name}" if prefix else name] = module, name
    places: dict[str, list[Place]] = {}
    for tied in shared.values():
        stored = [name for name in tied if name in parameters]
        if not stored:
            name, (module, attribute) = next(iter(tied.items()))
            shape = list(getattr(module, attribute).shape)
            raise ModelError(f"tensor {name} is missing; expected shape {shape}")
        if len(stored) > 1 and not parameters.same(stored):
            # stored apart and unlike, they are not tied, whatever the configuration says
            places.update({name: [tied[name]] for name in stored})
        else:
            places[stored[0]] = list(tied.values())
    return places


def _place_attention(built: Skeleton, batch_invariant: bool) -> Pass:
    """Ours in the place of theirs; the pass that all of it looks at."""
    running = Pass()
    kept = sorted({call.keeper for call in built.attention.values()})
    for index, (module, call) in enumerate(built.attention.items()):
        place, appends = kept.index(call.keeper), call.keeper == index
        module.__dict__[PLACE] = PagedAttention(place, appends, call, running, batch_invariant)
    return running


def _fill(built: Skeleton, places: dict[str, list[Place]], reader: Reader, running: Pass) -> None:
    """Read every tensor into its modules; what is no weight is computed as transformers does."""
    causal = built.causal
    fuse(built, {name for name, where in places.items() if len(where) == 1}, reader, running)
    _compute_buffers(causal, reader.device)
    for name, (module, attribute) in _persistent_buffers(causal).items():
        buffer = module._buffers[attribute]
        module._buffers[attribute] = reader.vector(name).to(buffer.dtype)
    experts: dict[Any, dict[str, str]] = defaultdict(dict)
    for name, where in places.items():
        (module, attribute), *_ = where
        if attribute not in module._parameters:
            continue  # of a block that was read whole
        if is_experts(module):
            experts[module][attribute] = name
            continue
        value = _value(getattr(module, attribute), name, reader, built.uses)
        if isinstance(value, Matrix):
            value.running = running
        for module, attribute in where:
            del module._parameters[attribute]
            module.__dict__[attribute] = value
    for module, named in experts.items():
        module.forward = _experts(module, named, reader)


def _value(parameter: Tensor, name: str, reader: Reader, uses: Uses) -> Tensor:
    """What a parameter becomes: a matrix for products, one for look-ups, or plain numbers."""
    key, shape = id(parameter), tuple(parameter.shape)
    if key in uses.stacks - uses.others:
        stack = [reader.product(matrix) for matrix in reader.matrices(name, transposed=True)]
        return Matrix.of(shape, reader.dtype, reader.device, stack=stack)
    if parameter.dim() != 2 or key in uses.others:
        return reader.vector(name)
    if key in uses.turned:
        (matrix,) = reader.matrices(name, transposed=True)
    elif key in uses.products:
        matrix = reader.matrix(name)
    else:
        return Matrix.of(shape, reader.dtype, reader.device, None, reader.embedding(name))
    product = reader.product(matrix)
    if key not in uses.rows | uses.elsewhere:
        outputs = {name.removesuffix(".weight"): product.out_features}
        reader.products.append(Product(product, outputs))
    return Matrix.of(shape, reader.dtype, reader.device, product)


def _experts(module: Any, named: dict[str, str], reader: Reader) -> Experts:
    first = "gate_up_proj" if module.has_gate else "up_proj"
    if getattr(module, "has_post_expert_norm", False) or not {first, "down_proj"} <= named.keys():
        raise ModelError("its experts have other parts than two products")

    def product(name: str) -> GroupedLinear:
        # quantised ones lie by their outputs, whatever the module has
        plain = reader.checkpoint.method(named[name]) is None
        matrices = reader.matrices(named[name], module.is_transposed and plain)
        bias = reader.vector(named[f"{name}_bias"]) if module.has_bias else None
        return reader.grouped(matrices, bias)

    return Experts(product(first), product("down_proj"), _gate_of(module, reader.on_cpu))


def _compute_buffers(causal: Any, device: torch.device) -> None:
    """Those that no file has: frequencies, scales."""
    for name, buffer in list(causal.named_non_persistent_buffers()):
        prefix, _, last = name.rpartition(".")
        causal.get_submodule(prefix)._buffers[last] = torch.empty_like(buffer, device="cpu")
    for module in causal.modules():
        module._is_hf_initialized = False
    causal.initialize_weights()
    for name, buffer in list(causal.named_non_persistent_buffers()):
        prefix, _, last = name.rpartition(".")
        causal.get_submodule(prefix)._buffers[last] = buffer.to(device)


def _persistent_buffers(causal: Any) -> dict[str, Place]:
    """Numbers that are no weights and that a file has."""
    computed = dict(causal.named_non_persistent_buffers())
    return {
        f"{prefix}.{name}" if prefix else name: (module, name)
        for prefix, module in causal.named_modules()
        for name, _ in module.named_buffers(recurse=False)
        if (f"{prefix}.{name}" if prefix else name) not in computed
    }


def _context(built: Skeleton, asked: int) -> int:
    """Tokens of the longest text, as asked for if that is fewer than the model's."""
    config, longest = built.causal.config.get_text_config(), built.longest
    stated: Any = getattr(config, "max_position_embeddings", None)
    if longest is not None and isinstance(stated, int):
        stated = min(stated, longest)
    check_count("max_position_embeddings", stated, MAX_STATED_TOKENS)
    rope = getattr(config, "rope_parameters", None) or {}
    try:
        scaling = scaling_from(rope, stated) if "rope_type" in rope else None
    except ValueError:  # of a kind that leaves the stated context as it is
        scaling = None
    context = stretched_context(scaling, stated)
    return min(context, asked) if asked else context


def _assembled(built: Skeleton, max_context: int, running: Pass) -> TransformersModel:
    """Norms and rotary tables in their places, and the head apart from the body."""
    causal, given = built.causal, Given()
    on_cpu = causal.get_input_embeddings().weight.device.type == "cpu"
    for module in causal.modules():
        if is_rotary(module):
            choose_frequencies(module, max_context)
            module.forward = Rotary(module, max_context)
        elif (norm := as_norm(module)) is not None:
            module.forward = norm
        elif on_cpu and is_activation(module):
            module.forward = steady(module.forward)
    embedding = causal.get_input_embeddings().weight
    return TransformersModel(
        causal,
        _without_body(causal, given),
        given,
        running,
        _kv_shapes(built),
        embedding,
        max_context,
    )


def _without_body(causal: Any, given: Given) -> Any:
    """The body, in whose place `given` is now."""
    body, embedding = causal.get_decoder(), causal.get_input_embeddings()
    if body is causal:  # the class does not say
        body = next((part for part in causal.children() if embedding in part.modules()), None)
    for parent in causal.modules():
        for name, module in parent.named_children():
            if module is body:
                del parent._modules[name]
                parent.__dict__[name] = given
                return body
    raise ModelError("its head and its body cannot be told apart")


def _gate_of(module: Any, on_cpu: bool) -> Callable[[Tensor], Tensor]:
    """What lies between the two products of an expert: the module's own."""
    between = module._apply_gate if module.has_gate else module.act_fn
    gate = steady(between) if on_cpu else between
    return lambda inner: gate(inner).contiguous()
