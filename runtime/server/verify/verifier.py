"""One verification step: a batch of requests in, a verdict or a reason for each out.

A `Batch` is put together from requests and from then on reads and changes none of them: while the
model runs it, the event loop goes on with the requests, and a step that fails is tried again
request by request. A step is launched, which does not wait for the device, and its outcomes are
fetched; the next may be launched in between: a token that its rows need of this one never leaves
the device.
Knows nothing of sockets, clocks or scheduling.
Source: sample-and-match with counter-based noise; SpecInfer (arXiv:2305.09781) for tree
verification in one pass, Gumbel-max coupling as in arXiv:2408.07978.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runtime.model import staging
from runtime.model.engine import Engine, TreeRequest
from runtime.model.parallel import RankLost
from runtime.model.staging import Content, Parcel
from runtime.server.request import Request
from runtime.server.schedule.step import Work
from runtime.server.verify.columns import SAMPLING, TreeColumns, trees_of, walk
from runtime.server.verify.logprobs import TokenLogprobs, Wanted
from runtime.server.verify.ranks import Told, draw, leading
from runtime.server.verify.rule import Edits, GroupedEdits, Masks
from runtime.wire.messages import Finish, Open
from specedge_kernels import edit_logits, target_tokens

log = logging.getLogger(__name__)

MOST_TOP_K = 2**31 - 1  # that the kernels can be told; no vocabulary is as large
NO_TOKEN = "the model gave no valid probabilities for this request"
NO_ALLOWED_TOKEN = (
    "no token of the model goes on as the constraint of this request wants it: it is too complex "
    "here, or asks for what no token spells, or the model gave no valid probabilities"
)
UNKNOWN = 0  # stands for a token that is still to be drawn
FAILED = -1  # was drawn where no token could be


@dataclass(slots=True)
class Verified:
    """The walk along the target's tokens: `path` of node numbers from the root (0), and the bonus.

    The KV of the path already lies in order behind the prefix. `logprobs` are those of the token
    after each node of the path, where the request asked for them.
    """

    request: Request
    path: list[int]
    bonus: int
    logprobs: Sequence[TokenLogprobs] = ()

    def commit(self) -> tuple[int, Finish]:
        """Make it part of the request's text; what follows from it, as `Request.advance` says."""
        draft = self.request.draft
        assert draft is not None, "a verdict without a draft"
        return self.request.advance([draft.tokens[node - 1] for node in self.path[1:]], self.bonus)


@dataclass(slots=True)
class Failed:
    """The request cannot go on; its batch mates are not affected.

    `by_device` says that it is not to blame: a pass that has nothing to do with it failed as well.
    """

    request: Request
    sentence: str
    by_device: bool = False


Outcome = Verified | Failed


@dataclass(slots=True)
class Part:
    """The rows of one request in a step, as they were when the step was put together."""

    request: Request
    chunk: TreeRequest | None
    tree: TreeRequest | None
    follows: bool  # the token of the root is drawn by the step before
    edits: Edits | None = None  # of the tree's logits
    masks: Future[Any] | None = None  # [rows of the tree, words] i32: which tokens may follow them

    @classmethod
    def of(cls, work: Work) -> "Part":
        """The part that `work` says, of a request that has entered the step."""
        request = work.request
        chunk = _chunk_rows(request, work.start, work.chunk) if work.chunk else None
        tree = None
        if work.follows:
            tree = _tree_rows(request, UNKNOWN, request.root + 1, (), ())
        elif work.verify:
            assert request.draft is not None, "a request without a draft was scheduled"
            root, draft = request.root, request.draft
            tree = _tree_rows(request, request.context[root], root, draft.tokens, draft.parents)
        part = cls(request, chunk, tree, work.follows)
        if tree is None or (request.rule is None and request.guide is None):
            return part
        return part._with_rule()

    def _with_rule(self) -> "Part":
        """The same with all that the request has of its own to say about its tokens."""
        request = self.request
        edits = Edits.of(request.rule, request.history) if request.rule else None
        draft = None if self.follows else request.draft
        nodes = ((), ()) if draft is None else (draft.tokens, draft.parents)
        masks = request.guide.masks(*nodes) if request.guide else None
        return replace(self, edits=edits, masks=masks)


def _chunk_rows(request: Request, start: int, count: int) -> TreeRequest:
    """The next prompt tokens: a chain whose logits nobody needs."""
    return TreeRequest(
        tokens=request.context[start : start + count],
        parents=range(-1, count - 1),
        prefix_len=start,
        pages=request.pages,
        logit_rows=(),
        adapter=request.adapter,
    )


def _tree_rows(
    request: Request, root_token: int, root: int, tokens: Sequence[int], parents: Sequence[int]
) -> TreeRequest:
    """The root and the draft under it; plain decoding is a draft of no nodes."""
    return TreeRequest(
        tokens=[root_token, *tokens],
        parents=[-1, *parents],
        prefix_len=root,
        pages=request.pages,
        logit_rows=range(1 + len(tokens)),
        adapter=request.adapter,
    )


class Batch:
    """A step that the model can run: its rows, and how to draw and walk the tokens at them.

    rows     the pass, and `parcel` all that goes to the device for the step
    tensors  on the device: of the rows, the trees' columns and what some of them have of their own
    drawn    by the step before, on the device, where rows follow it: that of the batch `before`
    fault    why there is none of this
    """

    def __init__(self, engine: Engine, parts: Sequence[Part], before: "Batch | None" = None):
        self.parts = parts
        self.verified = [part for part in parts if part.tree is not None]
        self.trees = [part.tree for part in parts if part.tree is not None]
        # what the model's thread would else look through between two passes
        self.follows = any(part.follows for part in parts)
        self.drawn: Tensor | None = None
        # with the row of the root of each, and where its token is among those drawn
        self._followers: list[tuple[Part, int, int]] = []
        self.fault: Exception | None = None
        try:
            self._pack(engine)
            if self.follows:
                self._follow(before)
        except Exception as error:  # told when it is launched, as what fails then
            self.fault = error

    def _pack(self, engine: Engine) -> None:
        # A tree may attend to a chunk of its own prompt in the same pass: every layer writes the
        # KV of all rows before it attends.
        chunks = [part.chunk for part in self.parts if part.chunk is not None]
        self.rows = engine.prepare([*chunks, *self.trees])
        self.sampling = _sampling([part.request.params for part in self.verified])
        self.columns = TreeColumns(self.trees, self.sampling)
        contents: dict[str, Content] = {"rows": self.rows, "columns": self.columns}
        contents |= self._own_contents([len(tree.tokens) for tree in self.trees])
        self.parcel = Parcel(engine.kv.device, contents)
        self.tensors = {name: self.parcel.tensors(name) for name in contents}

    def _own_contents(self, rows: Sequence[int]) -> dict[str, Content]:
        """What some of the trees, of so many rows, have beside the columns that all have."""
        contents: dict[str, Content] = {}
        edits = [part.edits for part in self.verified]
        if any(edits):
            contents["edits"] = GroupedEdits(edits)
        masks = [None if part.masks is None else part.masks.result() for part in self.verified]
        if any(mask is not None for mask in masks):
            contents["masks"] = Masks(masks, rows)
        wanted = [part.request.params.logprobs for part in self.verified]
        self.logprobs = Wanted(wanted, rows) if any(wanted) else None
        if self.logprobs is not None:
            contents["logprobs"] = self.logprobs
        return contents

    def _follow(self, before: "Batch | None") -> None:
        """Let those who follow the step before have the tokens that it will have drawn."""
        assert before is not None, "a step follows none"
        places = {part.request: place for place, part in enumerate(before.verified)}
        roots = self.rows.joined.first_rows[-len(self.trees) :].tolist()
        drawn = self.parcel.arrays["rows"]["drawn"]
        for row, part in zip(roots, self.verified, strict=True):
            if part.follows:
                drawn[row] = places[part.request]
                self._followers.append((part, row, places[part.request]))

    def told(self) -> Told:
        """What others who run the model need to know. Waits for what the step before has drawn."""
        if self.drawn is not None:
            tokens, arrays = self.drawn.tolist(), self.parcel.arrays["rows"]
            for part, row, place in self._followers:
                assert part.tree is not None, "who follows has a root"
                token = max(tokens[place], UNKNOWN)
                part.tree.tokens, arrays["tokens"][row], arrays["drawn"][row] = [token], token, -1
            self.drawn = None
        return Told(self.rows.joined.requests, self.sampling, self.needs_whole_rows)

    @property
    def needs_whole_rows(self) -> bool:
        """Whether more than the best token of each row is asked for, or of some tokens alone."""
        told = self.sampling
        limited = (told["top_k"] > 0) | (told["top_p"] < 1) | (told["min_p"] > 0)
        return bool((limited & (told["temperature"] > 0)).any()) or len(self.tensors) > 2


@dataclass(eq=False)
class Launched:
    """A step that is queued on the device, behind `before`, whose outcomes nobody may know yet.

    drawn   [B] i64 on the device: the token after each tree's walk, -1 where it has failed
    given   what `before` had drawn as this was queued; it has another `drawn` if it failed later
    arriving  of each tree the bonus, nodes accepted and the path; log-probabilities before them,
              where somebody wants any
    fault   why there is none of this
    retried what came of its requests one by one, where it has failed as a whole
    """

    batch: Batch
    before: "Launched | None"
    given: Tensor | None
    drawn: Tensor | None = None
    arriving: staging.Arriving | None = None
    fault: Exception | None = None
    retried: list[Outcome] | None = None

    @property
    def is_over(self) -> bool:
        """Whether the device is done with it; on a CPU always, as launching is running there."""
        return self.arriving is None or self.arriving.is_there

    def wait(self) -> None:
        """Until the device is done with it. Raises what it has failed with."""
        if self.fault is not None:
            raise self.fault
        if self.arriving is not None:
            self.arriving.wait()

    def outcomes(self) -> list[Outcome]:
        """Of a step that is settled. The step before it is let go of here, and not by `settle`: to
        free all that it consists of takes time that the model would stand still for."""
        self.before = None
        if self.retried is not None:
            return self.retried
        assert self.arriving is not None, "the step was never launched"
        if not self.batch.trees:
            return []
        *logprobs, bonus, accepted, path = self.arriving.columns()
        verdicts = zip(bonus.tolist(), accepted.tolist(), path.tolist(), strict=True)
        outcomes = [
            _outcome(part.request, nodes[:count], token)
            for part, (token, count, nodes) in zip(self.batch.verified, verdicts, strict=True)
        ]
        for rows in logprobs:
            assert self.batch.logprobs is not None, "nobody has asked for any"
            for outcome, told in zip(outcomes, self.batch.logprobs.by_tree(rows), strict=True):
                if told and isinstance(outcome, Verified):
                    outcome.logprobs = [told[node] for node in outcome.path]
        return outcomes


def _sampling(params: Sequence[Open]) -> dict[str, np.ndarray]:
    """How each tree's tokens are drawn, by column, each [B]."""
    return {
        "temperature": np.array([p.temperature for p in params], np.float32),
        "top_k": np.array([min(p.top_k, MOST_TOP_K) for p in params], np.int32),
        "top_p": np.array([p.top_p for p in params], np.float32),
        "min_p": np.array([p.min_p for p in params], np.float32),
        "seed": np.array([p.seed for p in params], np.uint64).astype(np.int64),
    }


def put_together(engine: Engine, step: Sequence[Work], before: Batch | None = None) -> Batch:
    """What the model needs for a step, of requests that have entered it; `before` is the step
    that those of them who follow one will be launched behind."""
    return Batch(engine, [Part.of(work) for work in step], before)


def verify_batch(engine: Engine, step: Sequence[Work]) -> list[Outcome]:
    """Put a step together and run it."""
    return fetch(engine, launch(engine, put_together(engine, step), None))


def launch(engine: Engine, batch: Batch, before: Launched | None) -> Launched:
    """Queue a step on the device; `before` is the step that was launched last, fetched or not.

    Does not wait for the device. A failure is told when the outcomes are fetched.
    """
    launched = Launched(batch, before, None if before is None else before.drawn)
    try:
        if batch.fault is not None:
            raise batch.fault
        if batch.follows:
            batch.drawn = launched.given
            assert batch.drawn is not None, "a step without trees is followed"
        _queue(engine, launched)
    except RankLost:
        raise
    except Exception as error:
        launched.fault = error
    return launched


def fetch(engine: Engine, launched: Launched) -> list[Outcome]:
    """Wait for a step: an outcome for each tree, and for each chunk that failed."""
    settle(engine, launched)
    return launched.outcomes()


def settle(engine: Engine, launched: Launched) -> None:
    """Wait for a step, so that its outcomes can be told; they are for another thread to read.

    Steps are settled in the order in which they were launched. A batch that raises is run again one
    request at a time, and one that was launched behind it is launched anew, as tokens and KV of
    the first were not there for it.
    """
    before = launched.before
    if before is not None and launched.given is not before.drawn:
        again = launch(engine, launched.batch, before)
        launched.drawn, launched.arriving = again.drawn, again.arriving
        launched.fault = again.fault
    try:
        launched.wait()
    except Exception as error:  # whatever one request does must not reach its batch mates
        parts = launched.batch.parts
        log.exception("a step of %d requests failed", len(parts))
        outcomes = launched.retried = _fail(engine, parts, before, error)
        tokens = {one.request: one.bonus for one in outcomes if isinstance(one, Verified)}
        drawn = [tokens.get(part.request, FAILED) for part in launched.batch.verified]
        launched.drawn = torch.tensor(drawn, dtype=torch.int64).to(engine.kv.device)


def _fail(
    engine: Engine, parts: Sequence[Part], before: Launched | None, error: Exception
) -> list[Outcome]:
    """What comes of the requests of a step that has failed: each is run by itself."""
    if len(parts) == 1:
        sentence = f"the server failed on this request: {error}"
        return [Failed(parts[0].request, sentence, by_device=not _works(engine, parts[0]))]
    outcomes: list[Outcome] = []
    for part in parts:
        alone = Batch(engine, [part], None if before is None else before.batch)
        outcomes += fetch(engine, launch(engine, alone, before))
    return outcomes


def _works(engine: Engine, failed: Part) -> bool:
    """Whether the smallest of passes succeeds. It writes to the last page of a request that has
    failed, which nobody shares: a root's page is not published."""
    pages = [failed.request.pages[-1]]
    probe = TreeRequest([0], [-1], prefix_len=0, pages=pages, logit_rows=[0])
    try:
        with leading(engine.ranks, Told([probe], {})):
            engine.forward([probe]).sum().item()
    except RankLost:
        raise
    except Exception:
        return False
    return True


@torch.inference_mode()
def _queue(engine: Engine, launched: Launched) -> None:
    """The step, run by all who share the model."""
    batch = launched.batch
    if engine.ranks is None:
        _run(engine, launched)
        return
    with leading(engine.ranks, batch.told()):
        _run(engine, launched)


def _run(engine: Engine, launched: Launched) -> None:
    """The upload and the pass; then draw the target's token at every node, walk each tree, compact
    the cache. Last comes the one copy back, for which nobody waits here.
    """
    batch = launched.batch
    batch.parcel.send()
    logits = engine.run(batch.rows, batch.parcel, batch.drawn)
    if not batch.trees:
        launched.arriving = staging.download(logits)  # none: that they are there tells of the pass
        return
    target, *logprobs = _target(engine, batch, logits)
    columns, most_nodes = batch.tensors["columns"], batch.columns.most_nodes
    path, accepted_lens, bonus = walk(engine, columns, target, most_nodes)
    launched.drawn = bonus
    launched.arriving = staging.download(*logprobs, bonus, accepted_lens, path)


def _target(engine: Engine, batch: Batch, logits: Tensor) -> list[Tensor]:
    """The target's token at every node, and log-probabilities where somebody wants any."""
    ranks = engine.ranks
    if ranks is None:
        return _drawn(batch, logits)
    vocab_size = engine.model.vocab_size
    if not batch.needs_whole_rows:
        return [draw(ranks, logits, batch.tensors["columns"], vocab_size)]
    whole = ranks.columns(logits, vocab_size)
    assert whole is not None, "rank 0 leads"
    target, *logprobs = _drawn(batch, whole)
    return [ranks.same(target), *logprobs]


def _drawn(batch: Batch, logits: Tensor) -> list[Tensor]:
    """`_target` of whole rows of logits, which are edited in place."""
    tensors, columns, logprobs = batch.tensors, batch.tensors["columns"], batch.logprobs
    raw = None if logprobs is None else logits[tensors["logprobs"]["rows"]]
    if "edits" in tensors:
        edit_logits(logits, *trees_of(columns), **tensors["edits"])
    sampling = (columns[name] for name in SAMPLING)
    target = target_tokens(logits, *sampling, **tensors.get("masks", {}))
    if logprobs is None or raw is None:
        return [target]
    return [target, logprobs.of_targets(raw, target[tensors["logprobs"]["rows"]])]


def _outcome(request: Request, path: list[int], bonus: int) -> Outcome:
    if bonus < 0:
        return Failed(request, NO_TOKEN if request.guide is None else NO_ALLOWED_TOKEN)
    return Verified(request, path, bonus)
