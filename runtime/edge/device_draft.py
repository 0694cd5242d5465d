"""A whole draft on the device: passes of the model and growth of the trees, no host in between.

Where a pass of the draft model is short, asking the host after each which nodes to expand costs
as much as the pass. Here the host uploads where the trees stand, the passes follow one another
(on a GPU as one CUDA graph), and the host reads the finished trees once. They are those that
`DraftTree` grows pass by pass on the host. Prompt lookup needs the host and has no part in this.
Knows trees and the draft's engine; nothing of sockets, or of what becomes of the trees.
Source: SpecExec (arXiv:2406.02532), SpecEdge (arXiv:2505.17052, section 4.1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from runtime.model.engine import Engine, KeptPath, TreeBatch
from runtime.model.graphs import PAGES, Recorded, graph_pool, least
from runtime.model.staging import Layout
from runtime.tree import ROOT, DraftTree
from specedge_kernels import draft_topk, grow_tree

MAX_SLOTS = 256  # what the four mask words of tree attention can tell apart


@dataclass(frozen=True)
class Start:
    """Where one tree begins: text that is in the cache, and the noise to rank children with."""

    context_tokens: int  # the root is the last of them
    pages: Sequence[int]  # must hold the context and every node that can be expanded
    budget: int
    seed: int
    noise_temperature: float


@dataclass(frozen=True)
class Size:
    """What fixes every shape of a draft."""

    trees: int  # B
    passes: int
    pages: int  # M


class DeviceDraft:
    """Grows trees of one shape: `beams` nodes expanded in a pass, `width` children of each."""

    def __init__(self, engine: Engine, beams: int, width: int):
        self._engine, self._beams = engine, beams
        self._width = min(width, engine.model.config.head_size)
        self._pool = graph_pool(engine.model.device)
        self._growths: dict[Size, _Growth] = {}

    @torch.inference_mode()
    def grow(self, starts: Sequence[Start], logits: Tensor, passes: int) -> list[DraftTree]:
        """One tree for each start, of `passes` levels at most; logits [B, head_size] of the roots.

        The first level is what the logits say; every further one is a pass of the model. The KV of
        the i-th expanded node lies at context_tokens + i. Raises ValueError where more nodes could
        be expanded than masks or pages can hold.
        """
        if not starts:
            return []
        self._check(starts, passes)
        n_pages = max(len(start.pages) for start in starts)
        size = Size(len(starts), passes, least(PAGES, n_pages) or n_pages)
        growth = self._growths.get(size)
        if growth is None:
            growth = _Growth(self._engine, self._beams, self._width, size, self._pool)
            self._growths[size] = growth
        grown = growth.run(starts, logits)
        kept = zip(starts, grown, strict=True)
        self._engine.compact([KeptPath(s.pages, s.context_tokens, slots) for s, (_, slots) in kept])
        return [tree for tree, _ in grown]

    def _check(self, starts: Sequence[Start], passes: int) -> None:
        if passes < 1 or self._beams * passes > MAX_SLOTS:
            raise ValueError(
                f"{passes} passes of {self._beams} nodes; expected at least one pass and at most "
                f"{MAX_SLOTS} nodes"
            )
        n_expanded = self._beams * (passes - 1)
        for start in starts:
            capacity = len(start.pages) * self._engine.kv.page_size
            if start.context_tokens + n_expanded > capacity:
                raise ValueError(
                    f"a context of {start.context_tokens} tokens and {n_expanded} nodes do not "
                    f"fit into pages for {capacity}"
                )


class _Growth:
    """All passes of one size, over tensors that stay where they are.

    A pass has `beams` rows for each tree, and row i of pass p goes to slot p * beams + i behind the
    context, so that places and shapes are known beforehand: only tokens and masks follow from the
    pass before. Rows beyond a short frontier are nobody's and leave a gap, which is closed at last.
    """

    def __init__(self, engine: Engine, beams: int, width: int, size: Size, pool: object):
        self._engine, self._beams, self._width, self._size = engine, beams, width, size
        self._words = 1 if beams * size.passes <= 64 else 2 if beams * size.passes <= 128 else 4
        self._n_slots = beams * (size.passes - 1)
        self._input_layout, self._tree_layout = self._layouts()
        device, head_size = engine.model.device, engine.model.config.head_size
        self._input_bytes, self._tree_bytes = (
            torch.zeros(layout.n_bytes, dtype=torch.uint8, device=device)
            for layout in (self._input_layout, self._tree_layout)
        )
        self._inputs = self._input_layout.views(self._input_bytes)
        self._trees = self._tree_layout.views(self._tree_bytes)
        self._logits = torch.zeros(size.trees, head_size, device=device)
        self._passes = Recorded(self._run_passes, device, pool)

    def _layouts(self) -> tuple[Layout, Layout]:
        """What the host uploads, and the trees in the order of grow_tree's arguments."""
        i32, i64, f32, f64 = torch.int32, torch.int64, torch.float32, torch.float64
        trees, passes, rows = self._size.trees, self._size.passes, self._size.trees * self._beams
        inputs = Layout(
            seeds=(i64, (rows,)),
            prefixes=(i64, (rows,)),
            slots=(i64, (passes - 1, rows)),
            temperatures=(f32, (rows,)),
            offsets=(i32, (trees + 1,)),
            n_nodes=(i32, (passes - 1, trees)),
            prefix_lens=(i32, (trees,)),
            budgets=(i32, (trees,)),
            page_table=(i32, (trees, self._size.pages)),
        )
        shape = trees, self._width * (1 + self._n_slots)
        kinds = {"tokens": i64, "parents": i32, "scores": f64, "depths": i32, "slots": i32}
        nodes = {name: (kind, shape) for name, kind in kinds.items()}
        return inputs, Layout(**nodes, found=(i32, (trees,)))

    def run(self, starts: Sequence[Start], logits: Tensor) -> list[tuple[DraftTree, Sequence[int]]]:
        """Each tree, and behind its context the slots of its expanded nodes, in order."""
        buffer, arrays = self._input_layout.host_buffer(self._engine.model.device)
        self._fill(arrays, starts)
        self._input_bytes.copy_(buffer, non_blocking=True)
        self._logits.copy_(logits)
        self._passes()
        trees = self._tree_layout.views(self._tree_bytes.cpu())
        return [
            self._read({name: array[b] for name, array in trees.items()}, start.budget)
            for b, start in enumerate(starts)
        ]

    def _fill(self, arrays: Mapping[str, np.ndarray], starts: Sequence[Start]) -> None:
        beams, page_size, table = self._beams, self._engine.kv.page_size, arrays["page_table"]
        table.fill(0)
        for row, start in zip(table, starts, strict=True):
            row[: len(start.pages)] = start.pages
        context = np.array([start.context_tokens for start in starts])
        place = context[:, None] + np.arange(self._n_slots)  # [B, slots]
        slots = np.take_along_axis(table, place // page_size, axis=1).astype(np.int64) * page_size
        by_pass = (slots + place % page_size).reshape(len(starts), -1, beams).swapaxes(0, 1)
        arrays["slots"][:] = by_pass.reshape(arrays["slots"].shape)
        arrays["n_nodes"][:] = beams * np.arange(1, self._size.passes)[:, None]
        arrays["offsets"][:] = beams * np.arange(len(starts) + 1)
        arrays["prefix_lens"][:], arrays["prefixes"][:] = context, context.repeat(beams)
        arrays["budgets"][:] = [start.budget for start in starts]
        seeds = np.array([start.seed for start in starts], np.uint64).astype(np.int64)
        arrays["seeds"][:] = seeds.repeat(beams)
        arrays["temperatures"][:] = np.repeat([s.noise_temperature for s in starts], beams)

    def _run_passes(self) -> None:
        """Waits for nothing, so that it can be one CUDA graph."""
        inputs = self._inputs
        self._trees["found"].zero_()
        rows = slice(None, None, self._beams)  # one of each tree
        expanded = self._trees["parents"].new_full((self._size.trees, 1), ROOT)
        offers = self._children(self._logits, inputs["prefixes"][rows], rows)
        for number in range(self._size.passes - 1):
            expanded, tokens, ancestors, depth = self._add(expanded, offers, number)
            positions = inputs["prefixes"] + depth
            batch = TreeBatch(
                tokens=tokens,
                positions=positions,
                slots=inputs["slots"][number],
                page_table=inputs["page_table"],
                prefix_lens=inputs["prefix_lens"],
                n_nodes=inputs["n_nodes"][number],
                offsets=inputs["offsets"],
                ancestors=ancestors,
                depth=depth,
            )
            logits = self._engine.model.logits(self._engine.hidden(batch))
            offers = self._children(logits, positions + 1, slice(None))
        self._add(expanded, offers, self._size.passes - 1)

    def _children(self, logits: Tensor, position: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """The likeliest children of each row: ids and log-probabilities [B, X, K]."""
        ids, logprobs = draft_topk(
            logits,
            self._width,
            self._inputs["temperatures"][rows].contiguous(),
            self._inputs["seeds"][rows].contiguous(),
            position.contiguous(),
            self._engine.model.head_ids,
        )
        shape = self._size.trees, -1, self._width
        return ids.view(shape), logprobs.view(shape)

    def _add(
        self, expanded: Tensor, offers: tuple[Tensor, Tensor], number: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Add children to the trees, and choose what the next pass expands."""
        trees, budgets = self._trees.values(), self._inputs["budgets"]
        first_slot = number * self._beams
        return grow_tree(*trees, expanded, *offers, budgets, first_slot, self._beams, self._words)

    def _read(self, tree: Mapping[str, Tensor], budget: int) -> tuple[DraftTree, Sequence[int]]:
        n = int(tree["found"])
        tokens, parents, scores, depths, slots = (
            tree[name][:n].tolist() for name in ("tokens", "parents", "scores", "depths", "slots")
        )
        # slots from n_slots on were given for a pass that did not come
        nodes = {slot: node for node, slot in enumerate(slots) if 0 <= slot < self._n_slots}
        used = sorted(nodes)
        arrays = {"tokens": tokens, "parents": parents, "scores": scores, "depths": depths}
        return DraftTree(budget, **arrays, expanded=[nodes[slot] for slot in used]), used
