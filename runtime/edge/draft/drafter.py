"""Runs the draft model for all requests of this edge, several of them in one pass.

Owns the engine, the pool of pages and the KV of the last conversation, whose beginning the next
prompt often shares. What a request has drafted is in its `Speculation`; which pass it wants is
decided elsewhere. To be used from one thread: a speculation belongs to it during its calls. Knows
nothing of sockets or of the server.

Source: SpecEdge (arXiv:2505.17052, section 4.1); coupled ranking as in drafter-invariant
speculation (arXiv:2408.07978).
"""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from runtime.edge.draft.mixture import changed, mix, shift
from runtime.edge.draft.shares import LONGEST, Recalled, shares
from runtime.edge.draft.speculation import Pass, Speculation
from runtime.edge.draft.suffixes import Earlier
from runtime.model import staging
from runtime.model.engine import Engine, KeptPath, TreeRequest
from runtime.model.staging import Layout, Parcel
from runtime.tree import ROOT
from specedge_kernels import draft_topk

PREFILL_CHUNK_TOKENS = 512
# Of passes that a GPU has recorded: a few requests' frontiers, and the trees that they belong to.
RECORDED_ROWS, RECORDED_REQUESTS = 64, 8


@dataclass(frozen=True)
class Conversation:
    """Text and the pages that hold its KV, kept for a prompt that begins with it."""

    tokens: Sequence[int]
    pages: list[int]


@dataclass(frozen=True)
class Names:
    """What the texts of an edge call the model's tokens, where it is not by their ids.

    of        name of each id, no two alike
    drafted   ids that may be drafted
    """

    of: Sequence[int]
    drafted: Set[int]

    def own_id(self, name: int) -> int:
        return self._ids[name]

    @cached_property
    def _ids(self) -> dict[int, int]:
        return {name: index for index, name in enumerate(self.of)}


class Drafter:
    """One draft model for any number of requests."""

    def __init__(self, engine: Engine, names: Names | None = None, earlier: Earlier | None = None):
        self.engine, self._names = engine, names
        self._recalled = None if earlier is None else Recalled(earlier)
        if engine.model.device.type == "cuda":
            engine.record(RECORDED_ROWS, RECORDED_REQUESTS)
        pool_tokens = engine.kv.n_free * engine.kv.page_size
        self.capacity_tokens = min(pool_tokens, engine.model.max_context)
        head_ids = engine.model.head_ids
        if head_ids is None:
            head_ids = torch.arange(engine.model.vocab_size, device=engine.model.device)
        # of the logits those that are drafted, by rising names; None for all as they are
        self._columns: Tensor | None = None
        self._token_ids = head_ids
        if names is not None:
            self._columns = _columns(names, head_ids)
            self._token_ids = head_ids.new_tensor(names.of)[head_ids[self._columns]]
        self._known: dict[int, int] = {}  # columns that a vocabulary has, by its size
        self._last = Conversation((), [])

    @property
    def vocabulary_size(self) -> int:
        """Rows of the model's embedding: it can read the ids below, or names."""
        if self._names is not None:
            return max(self._names.of) + 1
        return self.engine.model.vocab_size

    @torch.inference_mode()
    def run(self, passes: Sequence[Pass]) -> list[bool]:
        """One pass of the model for all; for each, False where the pages do not suffice."""
        has_room = [self._reserve(one) for one in passes]
        passes = [one for one, room in zip(passes, has_room, strict=True) if room]
        self._move([one.speculation for one in passes])
        draws = Draws([(one.speculation, node) for one in passes for node in _expanded(one)])
        rows = self.engine.prepare([self._request(one) for one in passes])
        parcel = Parcel(self.engine.model.device, {"rows": rows, "draws": draws})
        parcel.send()
        logits = self.engine.run(rows, parcel)
        if self._columns is not None:
            logits = logits[:, self._columns]
        for one in passes:
            self._account(one)
        if draws.expanded:
            self._add_children(draws, logits, parcel.tensors("draws"))
        return has_room

    def finish(self, speculation: Speculation) -> None:
        """End a request; the KV of its text stays until the pages are needed.

        The text is looked up for those that come, if the drafter was given a place for it.
        """
        if self._recalled is not None and speculation.is_readable:
            self._recalled.texts.add(speculation.context)
        if not speculation.pages:
            return
        self._move([speculation])
        self._release_last()
        text = speculation.context[: speculation.cached]
        self._last = Conversation(text, speculation.pages)
        speculation.forget_cache()

    def _reserve(self, one: Pass) -> bool:
        """Pages for a pass. A request that cannot have them for its text gives up those it has."""
        kv, speculation = self.engine.kv, one.speculation
        if not speculation.pages:
            self._adopt_last(speculation)
        missing = kv.pages_for(one.n_tokens) - len(speculation.pages)
        if missing > kv.n_free:
            self._release_last()
        if missing <= kv.n_free and one.n_tokens <= self.capacity_tokens:
            speculation.pages += kv.allocate(max(missing, 0))
            return True
        if one.is_text:
            kv.free(speculation.pages)
            speculation.forget_cache()
        return False

    def _adopt_last(self, speculation: Speculation) -> None:
        """Take over what the last conversation has of this text, all but the root's logits."""
        common = common_prefix(self._last.tokens, speculation.context[:-1])
        if common:
            speculation.cached, speculation.pages = common, self._last.pages
            self._last = Conversation((), [])

    def _release_last(self) -> None:
        self.engine.kv.free(self._last.pages)
        self._last = Conversation((), [])

    def _move(self, speculations: Sequence[Speculation]) -> None:
        """Bring caches into the order of their speculations."""
        self.engine.compact([KeptPath(s.pages, s.moved_from, s.places) for s in speculations])
        for speculation in speculations:
            speculation.places = []

    def _request(self, one: Pass) -> TreeRequest:
        """The next tokens of the text as a chain, or the frontier, whose ancestors are cached."""
        s = one.speculation
        if one.is_text:
            tokens = s.context[s.cached : s.cached + PREFILL_CHUNK_TOKENS]
            count = len(tokens)
            last = (count - 1,) if s.cached + count == len(s.context) else ()
            return TreeRequest(self._own_ids(tokens), range(-1, count - 1), s.cached, s.pages, last)
        row = {node: i for i, node in enumerate(s.tree.expanded)} | {ROOT: -1}
        row |= {node: len(s.tree.expanded) + i for i, node in enumerate(one.frontier)}
        return TreeRequest(
            tokens=self._own_ids([s.tree.tokens[node] for node in one.frontier]),
            parents=[row[s.tree.parents[node]] for node in (*s.tree.expanded, *one.frontier)],
            prefix_len=len(s.context),
            pages=s.pages,
            logit_rows=range(len(one.frontier)),
        )

    def _own_ids(self, tokens: Sequence[int]) -> Sequence[int]:
        return tokens if self._names is None else [self._names.own_id(name) for name in tokens]

    def _account(self, one: Pass) -> None:
        """Note what the pass has put into the cache."""
        s = one.speculation
        if one.is_text:
            s.cached = _end(one)
        else:
            s.tree.expanded += one.frontier

    def _add_children(self, draws: "Draws", logits: Tensor, columns: Mapping[str, Tensor]) -> None:
        """Offer each node's likeliest children to its tree; logits [N, V], columns as of `draws`,
        on the device."""
        expanded, paths = draws.expanded, draws.paths
        known = self._known_columns(min(s.vocabulary_size for s, _ in expanded))
        logits, token_ids = logits[:, :known].contiguous(), self._token_ids[:known]
        looked_up = [self._looked_up(s, path) for (s, _), path in zip(expanded, paths, strict=True)]
        for row, ((s, _), path) in enumerate(zip(expanded, paths, strict=True)):
            if s.edits:
                change = shift(s.edits, s.history, path, logits[row], token_ids)
                logits[row] += change
                looked_up[row] = changed(looked_up[row], change, token_ids)
        for row, mask in self._masks(expanded, paths).items():
            bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
            is_allowed = torch.from_numpy(bits).bool().to(token_ids.device)[token_ids]
            logits[row].masked_fill_(~is_allowed, -math.inf)
            looked_up[row] = {t: share for t, share in looked_up[row].items() if bits[t]}
        widths = [s.shape.max_branch_width for s, _ in expanded]
        most = min(max(widths), known)
        arriving = staging.download(*draft_topk(logits, most, **columns, token_ids=token_ids))
        arriving.wait()
        ids, log_probabilities = arriving.columns()
        rows = zip(expanded, widths, ids.tolist(), log_probabilities.tolist(), strict=True)
        for ((speculation, node), width, tokens, scores), row_shares in zip(
            rows, looked_up, strict=True
        ):
            # a row of which nothing is allowed has no numbers for scores
            own = {t: score for t, score in zip(tokens, scores, strict=True) if score > -math.inf}
            speculation.tree.add_children(node, mix(own, row_shares)[:width])

    def _looked_up(self, s: Speculation, path: Sequence[int]) -> dict[int, float]:
        """What stood behind the same words before, in the text of this request or earlier ones."""
        s.recalled = self._recalled
        if not len(s.suffixes):
            s.suffixes.extend(s.context)  # of a prompt there is nothing to be learned
        for place in range(len(s.suffixes), len(s.context)):
            if s.recalled is not None:
                tail = s.context[max(place - LONGEST, 0) : place]
                s.recalled.learn(s.suffixes, tail, s.context[place])
            s.suffixes.extend(s.context[place : place + 1])
        return shares(s.suffixes, [*s.context[-LONGEST:], *path], s.recalled)

    def _masks(
        self, expanded: Sequence[tuple[Speculation, int]], paths: Sequence[Sequence[int]]
    ) -> dict[int, np.ndarray]:
        """By the rows of nodes that not everything may follow: what may, int32 words of bits."""
        guided: dict[int, list[int]] = {}
        for row, (speculation, _) in enumerate(expanded):
            if speculation.guide is not None:
                guided.setdefault(id(speculation), []).append(row)
        found: dict[int, np.ndarray] = {}
        for rows in guided.values():
            speculation, _ = expanded[rows[0]]
            assert speculation.guide is not None, "a row without a guide"
            masks = speculation.guide.after(speculation.context, [paths[row] for row in rows])
            if masks is not None:
                found |= zip(rows, masks, strict=True)
        return found

    def _known_columns(self, vocabulary_size: int) -> int:
        """How many columns of the logits are tokens that the target has as well."""
        if vocabulary_size >= self.vocabulary_size:
            return len(self._token_ids)
        if vocabulary_size not in self._known:
            known = torch.searchsorted(self._token_ids, vocabulary_size)
            self._known[vocabulary_size] = int(known)
        return self._known[vocabulary_size]


class Draws:
    """Nodes whose children a pass looks for, and how these are drawn: columns of `draft_topk`."""

    def __init__(self, expanded: Sequence[tuple[Speculation, int]]):
        self.expanded = expanded
        self.paths = [s.tree.path(node) for s, node in expanded]
        shape = (len(expanded),)
        self.layout = Layout(
            temperature=(torch.float32, shape),
            seed=(torch.int64, shape),
            position=(torch.int64, shape),
        )

    def fill(self, arrays: Mapping[str, np.ndarray]) -> None:
        arrays["temperature"][:] = [s.noise.temperature for s, _ in self.expanded]
        arrays["seed"][:] = [s.noise.seed for s, _ in self.expanded]
        whose = zip(self.expanded, self.paths, strict=True)
        arrays["position"][:] = [s.position(path) for (s, _), path in whose]


def _expanded(one: Pass) -> Sequence[int]:
    """The nodes whose logits a pass gives."""
    if one.is_text:
        return [ROOT] if _end(one) == len(one.speculation.context) else []
    return one.frontier


def _end(one: Pass) -> int:
    """How much of its text is in the cache after a pass for it."""
    s = one.speculation
    return min(s.cached + PREFILL_CHUNK_TOKENS, len(s.context))


def _columns(names: Names, head_ids: Tensor) -> Tensor:
    """Of the columns that stand for head_ids [V] those that are drafted, by rising names."""
    of, drafted = names.of, names.drafted
    known = [(of[index], c) for c, index in enumerate(head_ids.tolist()) if index in drafted]
    return head_ids.new_tensor([column for _, column in sorted(known)])


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts share at their beginning."""
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)
