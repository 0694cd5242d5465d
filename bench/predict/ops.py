"""Every op but attention, at the sizes of one verification step."""

from collections.abc import Iterator
from functools import partial
from importlib import import_module

from bench.kernels.step import PAGE_TOKENS
from bench.predict.model import Stream
from bench.predict.work import BF16, DENSE, EXPERTS, F32, I32, I64, Model, Work, empty, in_triton
from tests.gpu.launches import Launch


def works() -> Iterator[Work]:
    for model in (DENSE, EXPERTS):
        yield from step(model, 16, 32)


def step(model: Model, batch: int, nodes: int) -> Iterator[Work]:
    """The other ops, for `batch` trees of `nodes` nodes."""
    label = f"{model.name} B{batch} T{nodes}"
    yield from layer(model, label, batch * nodes)
    yield from draws(model, label, batch * nodes)
    n, offsets = batch * nodes, empty(batch + 1)
    tokens, masks = empty(n, dtype=I64), empty(n, 1, dtype=I64)
    yield simple("build_tree", label, 16 * n, (empty(n), offsets, 1))
    yield simple("verify", label, 24 * n, (tokens, masks, offsets, tokens, nodes))
    kv = empty(model.layers, 2, 99, PAGE_TOKENS, model.heads, model.dim, dtype=BF16)
    tables = (empty(batch, 99), empty(batch), empty(batch, nodes), empty(batch))
    moved = 2 * model.layers * batch * 7 * model.heads * model.dim * BF16.itemsize
    yield simple("compact_kv", f"{label}, 8 kept, 7 moved", 2 * moved, (kv, *tables), moved)


def layer(model: Model, label: str, n: int) -> Iterator[Work]:
    """What a layer does to its n rows."""
    heads, dim = model.query_heads + 2 * model.heads, model.dim
    caches = [empty(9, PAGE_TOKENS, model.heads, dim, dtype=BF16) for _ in range(2)]
    rows, slots = empty(n, model.hidden, dtype=BF16), empty(n, dtype=I64)
    qkv, norms = empty(n, heads, dim, dtype=BF16), empty(heads - model.heads, dim, dtype=BF16)
    cos = empty(4096, dim, dtype=F32)
    turned = (qkv, norms, cos, cos, slots, *caches, slots)
    n_bytes = n * dim * (2 * heads * BF16.itemsize + 2 * F32.itemsize)
    yield simple("rope_append_kv", label, n_bytes, turned)
    new = (empty(n, model.heads, dim, dtype=BF16),) * 2
    yield simple("append_kv", label, 4 * new[0].nbytes, (*new, *caches, slots))
    yield simple("rms_norm", label, 4 * rows.nbytes, (rows, rows[0], 1e-6, rows))
    gate_up = empty(n, 2 * model.inner, dtype=BF16)
    yield simple("silu_mul", label, 1.5 * gate_up.nbytes, (gate_up,))


def draws(model: Model, label: str, n: int) -> Iterator[Work]:
    logits, tokens = empty(n, model.vocabulary, dtype=F32), empty(n, dtype=I64)
    rules = [empty(n, dtype=kind) for kind in (F32, I32, F32, F32, I64, I64)]
    yield simple("target_tokens", f"{label} top-p, first pass", logits.nbytes, (logits, *rules))
    yield simple("token_logprobs", f"{label} n 5", logits.nbytes, (logits, tokens, 5))
    few = logits[:16]
    drafts = (few, 8, rules[0][:16], tokens[:16], tokens[:16])
    yield simple("draft_topk", f"{model.name} N16 k 8", few.nbytes, drafts)


def simple(
    op: str, shape: str, n_bytes: float, arguments: tuple[object, ...], loaded: float | None = None
) -> Work:
    """Its first launch moves everything, of which `loaded` is read; later ones merge."""
    module = import_module(f"specedge_kernels.gpu.{op}")
    first: list[str] = []

    def stream(launch: Launch) -> Stream | None:
        first.append(launch.kernel.__name__)
        if launch.kernel.__name__ != first[0]:
            return None
        return Stream(n_bytes, n_bytes if loaded is None else loaded, launch.programs)

    launches = partial(in_triton, partial(getattr(module, op), *arguments), stream)
    return Work(op, "ours", shape, n_bytes, 0, launches)
