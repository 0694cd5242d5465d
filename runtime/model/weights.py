"""From a checkpoint to a Transformer: every tensor is checked by name and shape, then moved in.

Weights run as they are stored, or as was asked for; on a GPU all floats are of one type. Reads
one product's tensors at a time, so that at most these exist twice. Knows nothing of file formats.
"""

import functools
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from runtime.model.checkpoint import Checkpoint, open_checkpoint
from runtime.model.config import ExpertsConfig, ModelConfig, ModelError
from runtime.model.experts import Experts, GroupedLinear, MixtureOfExperts, Router, SharedExpert
from runtime.model.folder import EMBEDDING, HEAD
from runtime.model.formats import (
    FLOATS,
    KINDS,
    Weight,
    floats,
    n_bytes,
    name_of,
    quantised,
    runnable,
)
from runtime.model.parallel import Ranks
from runtime.model.parallel_weights import CheckpointPart
from runtime.model.transformer import GatedMlp, Layer, Linear, Product, Transformer, as_it_is
from runtime.model.weight_memory import WeightMemory
from runtime.system import freed_memory_given_back
from specedge_kernels import QuantizedWeight, StoredWeight, pack_quantized

__all__ = ["ModelError", "expected_shapes", "load"]

Progress = Callable[[int, int], None]  # (done_bytes, total_bytes)

HEAD_IDS, NORM = "head_ids", "model.norm.weight"
STORED = "stored"

_LISTED = ", ".join((*FLOATS, *KINDS))
log = logging.getLogger(__name__)


@freed_memory_given_back()
def load(
    name: str | Path,
    weights: str = STORED,
    device: torch.device | str = "cpu",
    progress: Progress = lambda done_bytes, total_bytes: None,
    activations: str = "rounded",
    batch_invariant: bool = True,
    ranks: Ranks | None = None,
) -> Transformer:
    """The model in a Hugging Face folder, a .gguf file, on the hub, or embedded.

    weights: "stored", or the type or format that all are converted to, one of `formats.FLOATS` and
    `formats.KINDS`; activations: "rounded" to 8 bits before a product with quantised weights on a
    CPU, or "exact"; batch_invariant: on a GPU, see transformer.py; ranks: with whom the model is
    shared, and whose part is read. Raises ModelError with a sentence for a person: nothing there, a
    wrong format, an unsupported model, a missing or extra or misshaped tensor, or ranks that cannot
    share it.
    """
    device = torch.device(device)
    if weights not in (STORED, *FLOATS, *KINDS):
        raise ValueError(f"weights: expected one of {STORED}, {_LISTED}, got {weights!r}")
    if activations not in ("rounded", "exact"):
        raise ValueError(f"activations: expected rounded or exact, got {activations!r}")
    checkpoint = open_checkpoint(name)
    check_shapes(checkpoint)
    if ranks is not None:
        checkpoint = CheckpointPart(checkpoint, ranks.rank, ranks.size)
    exact = activations == "exact"
    loader = _Loader(checkpoint, weights, device, progress, exact, batch_invariant, ranks)
    return loader.transformer()


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of this model holds, by Hugging Face name."""
    hidden, mlp, depth = config.hidden_size, config.intermediate_size, config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (config.vocab_size, hidden),
        NORM: (hidden,),
    }
    if not config.tied_embedding:
        shapes[HEAD] = (config.head_size, hidden)
    if config.head_size != config.vocab_size:
        shapes[HEAD_IDS] = (config.head_size,)
    heads = {"q": config.n_heads, "k": config.n_kv_heads, "v": config.n_kv_heads}
    for index in range(config.n_layers):
        layer = f"model.layers.{index}"
        for part, n_heads in heads.items():
            shapes[f"{layer}.self_attn.{part}_proj.weight"] = (n_heads * depth, hidden)
            if config.qkv_bias:
                shapes[f"{layer}.self_attn.{part}_proj.bias"] = (n_heads * depth,)
            if config.qk_norm and part != "v":
                shapes[f"{layer}.self_attn.{part}_norm.weight"] = (depth,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, config.n_heads * depth)
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        if config.output_bias:
            shapes[f"{layer}.self_attn.o_proj.bias"] = (hidden,)
        if experts := config.experts_of(index):
            shapes |= _expert_shapes(f"{layer}.mlp", hidden, experts)
            continue
        shapes |= _mlp_shapes(f"{layer}.mlp", hidden, mlp)
        if config.mlp_bias:
            for part, size in {"gate": mlp, "up": mlp, "down": hidden}.items():
                shapes[f"{layer}.mlp.{part}_proj.bias"] = (size,)
    return shapes


def _mlp_shapes(name: str, hidden: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.gate_proj.weight": (inner, hidden),
        f"{name}.up_proj.weight": (inner, hidden),
        f"{name}.down_proj.weight": (hidden, inner),
    }


def _expert_shapes(name: str, hidden: int, experts: ExpertsConfig) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.gate.weight": (experts.n_experts, hidden)}
    for e in range(experts.n_experts):
        shapes |= _mlp_shapes(f"{name}.experts.{e}", hidden, experts.intermediate_size)
    if experts.shared_size is not None:
        shapes |= _mlp_shapes(f"{name}.shared_expert", hidden, experts.shared_size)
        shapes[f"{name}.shared_expert_gate.weight"] = (1, hidden)
    return shapes


def check_shapes(checkpoint: Checkpoint) -> None:
    expected, got = expected_shapes(checkpoint.config), checkpoint.shapes
    for name, shape in expected.items():
        if name not in got:
            raise ModelError(f"tensor {name} is missing; expected shape {list(shape)}")
        if tuple(got[name]) != shape:
            raise ModelError(f"tensor {name} has shape {list(got[name])}; expected {list(shape)}")
    for name, shape in got.items():
        if name not in expected and not _is_redundant(name, checkpoint):
            raise ModelError(
                f"tensor {name} of shape {list(shape)} is not part of this model; "
                "expected no such tensor"
            )


def _is_redundant(name: str, checkpoint: Checkpoint) -> bool:
    """Some store rotary frequencies, or a tied head again, and AutoGPTQ biases of zeros."""
    if name.endswith("rotary_emb.inv_freq") or (name == HEAD and checkpoint.config.tied_embedding):
        return True
    weight = f"{name.removesuffix('bias')}weight"
    if not name.endswith(".bias") or weight not in checkpoint.shapes:
        return False
    bias = checkpoint.stored(name) if checkpoint.method(weight) else None
    return isinstance(bias, Tensor) and not bias.any()


class Stored(Protocol):
    """Tensors on disk, by name."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def n_bytes(self, name: str) -> int: ...

    def method(self, name: str) -> str | None: ...

    def stored(self, name: str) -> Weight: ...


class Reader:
    """Reads tensors into the form that they run in, counts their bytes, tells what was converted.

    names: all tensors that will be read.
    """

    def __init__(
        self,
        checkpoint: Stored,
        names: Collection[str],
        weights: str,
        device: torch.device,
        progress: Progress,
        exact: bool,
        batch_invariant: bool = True,
        embedding: str = EMBEDDING,
    ):
        self.checkpoint, self.names = checkpoint, names
        self.weights, self.device, self.progress = weights, device, progress
        self.exact, self.batch_invariant = exact, batch_invariant
        self.on_cpu = device.type == "cpu"
        self.memory = WeightMemory()
        self.products: list[Product] = []  # of layers, that have been read
        # what the model computes in: see transformer.py
        self.dtype = torch.float32 if self.on_cpu else self._gpu_dtype(embedding)
        self.converted: dict[str, Counter[tuple[str, str]]] = {}  # by the reason
        self.converted_bytes: Counter[str] = Counter()
        self.done_bytes, self.total_bytes = 0, sum(map(checkpoint.n_bytes, names))

    def linear(self, *names: str) -> Linear:
        """One product for all projections of the same input, their rows one after the other."""
        bias = None
        if f"{names[0]}.bias" in self.names:
            bias = torch.cat([self.vector(f"{name}.bias") for name in names])
        linear = self.product(self.matrix(*(f"{name}.weight" for name in names)), bias)
        outputs = {name: self.checkpoint.shapes[f"{name}.weight"][0] for name in names}
        self.products.append(Product(linear, outputs))
        return linear

    def product(self, weight: Tensor | QuantizedWeight, bias: Tensor | None = None) -> Linear:
        linear = Linear(weight, bias, self.exact, self.batch_invariant)
        del weight  # what was packed would exist a third time
        if self.on_cpu:
            linear.weight = self.memory.moved(linear.weight)
        return linear

    def matrix(self, *names: str) -> Tensor | QuantizedWeight:
        """Matrices one below the other. Of several formats, all are floats if one is."""
        stored = [self._read(name) for name in names]
        parts = [self._weight(weight) for weight in stored]
        packable = [part for part in parts if isinstance(part, StoredWeight)]
        if len(packable) == len(parts):
            self._note(names, stored, parts)
            packed = [pack_quantized(part.rows, part.kind) for part in packable]
            whole = packed[0] if len(packed) == 1 else QuantizedWeight.concatenated(packed)
            return whole.to(self.device)
        tensors = _alike(parts) if self.on_cpu else [floats(part, self.dtype) for part in parts]
        self._note(names, stored, tensors)
        return (tensors[0] if len(tensors) == 1 else torch.cat(tensors)).to(self.device)

    def embedding(self, name: str) -> Tensor | StoredWeight:
        """On a CPU as it is stored: only rows of it are ever looked at. On a GPU floats."""
        stored = self._read(name)
        weight = self._weight(stored) if self.on_cpu else floats(stored, self.dtype)
        self._note([name], [stored], [weight])
        return weight if isinstance(weight, StoredWeight) else weight.to(self.device)

    def vector(self, name: str) -> Tensor:
        return floats(self._read(name), self.dtype).to(self.device)

    def grouped(
        self, weights: Iterable[Tensor | QuantizedWeight], bias: Tensor | None = None
    ) -> GroupedLinear:
        """One product for all these sets, packed one after the other."""
        linear = GroupedLinear(weights, None if bias is None else bias.float(), self.exact)
        if self.on_cpu:
            linear.weight = self.memory.moved(linear.weight)
        return linear

    def matrices(self, name: str, transposed: bool) -> Iterator[Tensor | QuantizedWeight]:
        """Each matrix of a tensor [E, M, K], or the one of [M, K].

        transposed: it is [E, K, M], or [K, M].
        """
        whole = self._read(name)
        stored: list[Weight]
        if isinstance(whole, StoredWeight):
            stored = [StoredWeight(rows, whole.kind) for rows in whole.rows]
        else:
            each = whole if whole.dim() == 3 else whole[None]
            stored = [*(each.mT if transposed else each)]
        for matrix in stored:
            weight = self._weight(matrix)
            self._note([name], [matrix], [weight])
            if isinstance(weight, StoredWeight):
                packed = pack_quantized(weight.rows, weight.kind)
                yield packed.to(self.device)
            else:
                yield weight.contiguous().to(self.device)

    def tell(self) -> None:
        for reason, converted in self.converted.items():
            kinds = [f"{n} of {old} as {new}" for (old, new), n in converted.items()]
            size = self.converted_bytes[reason] / 2**20
            log.warning("tensors %s: %s, %.1f MiB in all", reason, ", ".join(kinds), size)

    def _weight(self, stored: Weight) -> Weight:
        """A matrix in the type or format that it runs in."""
        if self.weights in FLOATS:
            return floats(stored, FLOATS[self.weights])
        weight = (
            quantised(stored, KINDS[self.weights]) if self.weights in KINDS else runnable(stored)
        )
        return weight if self.on_cpu or isinstance(weight, StoredWeight) else weight.to(self.dtype)

    def _gpu_dtype(self, embedding: str) -> torch.dtype:
        """Of all weights: as was asked for, else that of the embedding, bfloat16 if quantised."""
        if self.weights in FLOATS:
            return FLOATS[self.weights]
        stored = self.checkpoint.stored(embedding)
        if isinstance(stored, Tensor) and stored.dtype in FLOATS.values():
            return stored.dtype
        return torch.bfloat16

    def _note(self, of: Sequence[str], stored: Sequence[Weight], weights: Sequence[Weight]) -> None:
        """Remember what is not what was stored or asked for, or is quantised twice."""
        for name, before, after in zip(of, stored, weights, strict=True):
            method, reason = self.checkpoint.method(name), None
            is_floats = method is not None and isinstance(before, Tensor)
            names = (method if method and is_floats else name_of(before), name_of(after))
            is_quantised = is_floats or isinstance(before, StoredWeight)
            if self.weights == STORED and is_floats:
                reason = "quantised in a way that no format here holds are floats"
            elif self.weights == STORED and is_quantised:
                reason = "in formats that do not run here were converted"
            elif self.weights in KINDS and names[1] != self.weights.upper():
                reason = f"whose rows are no multiple of {self.weights}'s blocks run otherwise"
            elif self.weights in KINDS and is_quantised:
                reason = "were quantised again, which costs text"
            if reason and names[0] != names[1]:
                self.converted.setdefault(reason, Counter())[names] += 1
                self.converted_bytes[reason] += n_bytes(after)

    def _read(self, name: str) -> Weight:
        weight = self.checkpoint.stored(name)
        self.done_bytes += self.checkpoint.n_bytes(name)
        self.progress(self.done_bytes, self.total_bytes)
        return weight


class _Loader(Reader):
    """Puts the tensors of a checkpoint together."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        weights: str,
        device: torch.device,
        progress: Progress,
        exact: bool,
        batch_invariant: bool,
        ranks: Ranks | None,
    ):
        self.ranks, self.whole = ranks, as_it_is if ranks is None else ranks.whole
        self.config = checkpoint.config
        names = expected_shapes(self.config).keys()
        super().__init__(checkpoint, names, weights, device, progress, exact, batch_invariant)

    def transformer(self) -> Transformer:
        config = self.config
        tied = config.tied_embedding
        # first, as it is the largest: while it is packed, little else is there
        head = self.product(self.matrix(EMBEDDING if tied else HEAD))
        layers = [
            self._layer(f"model.layers.{index}", config.experts_of(index))
            for index in range(config.n_layers)
        ]
        head_ids = None
        if config.head_size != config.vocab_size:
            head_ids = floats(self._read(HEAD_IDS), torch.int64).to(self.device)
        model = Transformer(
            config,
            embedding=None if tied else self.embedding(EMBEDDING),
            layers=layers,
            norm=self.vector(NORM),
            head=head,
            head_ids=head_ids,
            batch_invariant=self.batch_invariant,
            ranks=self.ranks,
            products=self.products,
        )
        self.tell()
        return model

    def _layer(self, name: str, experts: ExpertsConfig | None) -> Layer:
        attention, mlp = f"{name}.self_attn", f"{name}.mlp"
        return Layer(
            attention_norm=self.vector(f"{name}.input_layernorm.weight"),
            qkv=self.linear(*(f"{attention}.{part}_proj" for part in "qkv")),
            qk_norm=self._qk_norm(attention) if self.config.qk_norm else None,
            output=self.linear(f"{attention}.o_proj"),
            mlp_norm=self.vector(f"{name}.post_attention_layernorm.weight"),
            mlp=self._mlp(mlp) if experts is None else self._mixture(mlp, experts),
        )

    def _mlp(self, name: str) -> GatedMlp:
        gate_up = self.linear(f"{name}.gate_proj", f"{name}.up_proj")
        return GatedMlp(gate_up, self.linear(f"{name}.down_proj"), self.whole)

    def _mixture(self, name: str, experts: ExpertsConfig) -> MixtureOfExperts:
        """Gates stay floats whatever the weights are: they are small, and choose."""
        router = Router(
            self.product(self.vector(f"{name}.gate.weight")),
            experts.n_chosen,
            normalise=experts.normalise,
        )
        chosen = Experts(
            self._sets(name, experts.n_experts, "gate_proj", "up_proj"),
            self._sets(name, experts.n_experts, "down_proj"),
            whole=self.whole,
        )
        if experts.shared_size is None:
            return MixtureOfExperts(router, chosen)
        gate = self.product(self.vector(f"{name}.shared_expert_gate.weight"))
        return MixtureOfExperts(
            router, chosen, SharedExpert(self._mlp(f"{name}.shared_expert"), gate)
        )

    def _sets(self, name: str, n_experts: int, *parts: str) -> GroupedLinear:
        weights = (
            self.matrix(*(f"{name}.experts.{e}.{part}.weight" for part in parts))
            for e in range(n_experts)
        )
        return self.grouped(weights)

    def _qk_norm(self, attention: str) -> Tensor:
        q, k = (self.vector(f"{attention}.{part}_norm.weight") for part in "qk")
        return torch.cat((q.expand(self.config.n_heads, -1), k.expand(self.config.n_kv_heads, -1)))


def _alike(parts: Sequence[Weight]) -> list[Tensor]:
    """All of one type that holds them; quantised ones need no more than float16."""
    dtypes = [part.dtype if isinstance(part, Tensor) else torch.float16 for part in parts]
    return [floats(part, functools.reduce(torch.promote_types, dtypes)) for part in parts]
