"""Random launches of tree attention as the families of models make them, and what they should give.

A case mixes what one launch may hold (prompt chunks longer than their masks, decode steps, trees,
requests without a prefix or without rows) with any choice of widths, types, windows, caps, sinks
and scales. The oracle knows no masks of bits and no pages: it walks parents, in float64.
"""

import random
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tests.kernels.cases import SHAPES, Batch, make_batch, make_caches, parents_of

FP8 = torch.float8_e4m3fn
CACHED = (torch.float32, torch.bfloat16, torch.float16, FP8)
# of Llama, Phi, GPT-J, DeepSeek, Gemma; and the absorbed forms of latent attention
WIDTHS = ((64, 64), (80, 80), (96, 96), (112, 112), (128, 128), (192, 128), (256, 256), (24, 40))
LATENT = ((576, 512), (80, 64))


@dataclass(frozen=True)
class Family:
    """A batch, its queries and caches, and the options of the op."""

    parents: list[list[int]]
    batch: Batch
    q: Tensor
    caches: tuple[Tensor, Tensor]
    options: dict[str, float | Tensor]


def draw(seed: int, prefix: int = 150, rows: int = 150) -> Family:
    """A family with prefixes of about so many tokens, and so many rows of a request, at most."""
    choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    latent = choose.random() < 0.2
    dim, value_dim = choose.choice(LATENT if latent else WIDTHS)
    heads = 1 if latent else choose.choice((1, 2, 3))
    query_heads = heads * choose.choice((1, 3, 4, 5))
    trees, cached, prefixes = draw_requests(choose, generator, prefix)
    cached = [max(n, len(tree) - rows) for n, tree in zip(cached, trees, strict=True)]
    batch = make_batch(trees, prefixes, choose.choice((1, 16, 64)), generator, cached, words=1)
    make = partial(make_caches, batch, heads, generator=generator)
    layouts = choose.choice(("NHD", "HND")), choose.choice(("NHD", "HND"))
    keys, _ = make(dim, choose.choice(CACHED), layout=layouts[0])
    _, values = make(value_dim, choose.choice(CACHED), layout=layouts[1])
    q = torch.randn(int(batch.offsets[-1]), query_heads, dim, generator=generator) * 2
    options: dict[str, float | Tensor] = {"scale": dim**-0.5}
    if choose.random() < 0.6:
        options["window"] = choose.choice((1, 7, 40, 64, 100))
    if choose.random() < 0.4:
        options["softcap"] = choose.choice((2.0, 30.0))
    if choose.random() < 0.6:
        options["sinks"] = torch.randn(query_heads, generator=generator) * 3
    for name in ("k_scale", "v_scale"):
        by_head = torch.rand(heads, generator=generator) + 0.5
        options[name] = choose.choice((1.0, 0.7, by_head))
    return Family(trees, batch, q, (keys, keys[..., :value_dim] if latent else values), options)


def draw_requests(
    choose: random.Random, generator: torch.Generator, prefix: int
) -> tuple[list[list[int]], list[int], list[int]]:
    """Parents, how many nodes have no row, and the prefix, of each request."""
    requests = [
        (parents_of(choose.choice(SHAPES), choose.randint(2, 40), generator), 0),  # a tree
        (parents_of("random", 64, generator), choose.randint(50, 64)),  # its last nodes, or none
        (
            parents_of("chain", choose.randint(65, 140), generator),
            choose.randint(0, 60),
        ),  # a prompt
        ([-1], 0),  # a decode step
    ]
    choose.shuffle(requests)
    prefixes = [choose.choice((0, 1, 63, 64, 65, prefix)) for _ in requests]
    return [tree for tree, _ in requests], [cached for _, cached in requests], prefixes


def expected(family: Family) -> tuple[Tensor, Tensor]:
    """The outputs [N, Hq, Dv] and log-sums [N, Hq] in float64."""
    q, sinks = family.q.double(), family.options.get("sinks")
    heads, group = family.caches[0].shape[2], q.shape[1] // family.caches[0].shape[2]
    scale, window = family.options["scale"], int(family.options.get("window", -1))
    cap = family.options.get("softcap", 0)
    outs, sums, row = [], [], 0
    for b, parents in enumerate(family.parents):
        keys, values = (
            tokens(family, b, cache, family.options[name]).repeat_interleave(group, 1)
            for cache, name in zip(family.caches, ("k_scale", "v_scale"), strict=True)
        )
        rows = int(family.batch.offsets[b + 1] - family.batch.offsets[b])
        for node in range(len(parents) - rows, len(parents)):
            path = path_to(node, parents, int(family.batch.prefix_lens[b]))
            path = path[max(len(path) - window, 0) :] if window >= 0 else path
            scores = torch.einsum("hd,khd->hk", q[row], keys[path]) * scale
            scores = torch.tanh(scores / cap) * cap if cap else scores
            sink = torch.full((heads * group, 1), -torch.inf).double()
            sink = sink if sinks is None else sinks.double()[:, None]
            scores = torch.cat((sink, scores), 1)
            outs.append(torch.einsum("hk,khd->hd", scores.softmax(1)[:, 1:], values[path]))
            sums.append(scores.logsumexp(1))
            row += 1
    return torch.stack(outs), torch.stack(sums)


def tokens(family: Family, b: int, cache: Tensor, scale: float | Tensor) -> Tensor:
    """The prefix and the nodes of a request, in their order [tokens, Hk, width], scaled."""
    length = int(family.batch.prefix_lens[b] + family.batch.n_nodes[b])
    pages = family.batch.page_table[b, : -(-length // cache.shape[1])].long()
    found = cache[pages].flatten(0, 1)[:length].double()
    return found * (scale.double()[:, None] if isinstance(scale, Tensor) else scale)


def path_to(node: int, parents: list[int], prefix: int) -> list[int]:
    """The slots of the prefix and of the nodes from the root to this one."""
    path: list[int] = []
    while node >= 0:
        path.insert(0, prefix + node)
        node = parents[node]
    return [*range(prefix), *path]
