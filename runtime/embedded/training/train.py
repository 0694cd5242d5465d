"""Training the draft on the target's soft labels.

fp32 master weights, a cosine schedule. The embedding is the target's,
frozen. Knows nothing of files but the folder in which the best draft so far is kept.
"""

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from runtime.embedded.training.corpus import Corpus, batches
from runtime.embedded.training.export import EMBEDDING
from runtime.embedded.training.llama import Llama, Shape, Weights
from runtime.embedded.training.loss import soft_cross_entropy, soft_labels
from runtime.embedded.training.score import Scores, pad_inputs, table_rows


@dataclass(frozen=True)
class Recipe:
    """What a training run depends on besides its data."""

    layers: tuple[int, ...] = (0, 1, 2)
    epochs: float = 6.0
    minutes: float = 60.0
    save_minutes: float = 10.0
    batch_tokens: int = 2048
    batches_per_step: int = 2
    own_share: float | None = None  # own conversations an epoch, per one of another's prompt
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.03
    argmax_share: float = 0.2
    prompt_weight: float = 0.5
    state_weight: float = 0.0
    seed: int = 0


def start_weights(target: Weights, recipe: Recipe, head_ids: Tensor) -> Weights:
    """The draft before training: some layers of the target and the head's rows of its embedding."""
    embedding = target[EMBEDDING]
    weights = {EMBEDDING: embedding, "model.norm.weight": target["model.norm.weight"].clone()}
    for to, source in enumerate(recipe.layers):
        for name, weight in target.items():
            if name.startswith(f"model.layers.{source}."):
                kind = name.split(".", 3)[3]
                weights[f"model.layers.{to}.{kind}"] = weight.float().clone()
    weights["lm_head.weight"] = embedding[head_ids].float().clone()
    return weights


def weights_of_draft(
    draft: Weights, old_ids: Tensor, embedding: Tensor, head_ids: Tensor
) -> Weights:
    """A draft that exists, with another head: rows that it lacks are those of the embedding."""
    rows = dict(zip(old_ids.tolist(), draft["lm_head.weight"], strict=True))
    head = [rows.get(token, embedding[token].float()) for token in head_ids.tolist()]
    return draft | {EMBEDDING: embedding, "lm_head.weight": torch.stack(head)}


def draft_shape(target: Shape, weights: Weights) -> Shape:
    """The target's, with the layers that the weights have."""
    layers = {name.split(".")[2] for name in weights if name.startswith("model.layers.")}
    return replace(target, layers=len(layers))


@dataclass(frozen=True)
class Run:
    """One training run: what is trained, on what, and how."""

    draft: Llama
    head_ids: Tensor
    corpus: Corpus
    scores: Scores
    recipe: Recipe

    def slot_of(self) -> Tensor:
        slots = torch.full((len(self.draft.weights[EMBEDDING]),), -1)
        slots[self.head_ids] = torch.arange(len(self.head_ids))
        return slots

    def batch_loss(self, members: list[int], slot_of: Tensor) -> tuple[Tensor, int]:
        """Mean loss of a batch and the number of its positions."""
        ids, real = pad_inputs(self.corpus, members)
        weight = self._position_weights(members)
        counted = weight > 0  # nothing is computed for the rest behind the last layer
        weight = weight[counted]
        states = self.draft.hidden(torch.tensor(self.corpus.prefix), ids)[real][counted]
        positions = table_rows(self.corpus, members)
        rows = positions[counted.numpy()]
        top = torch.from_numpy(self.scores.ids[rows].astype("int64"))
        probs = torch.from_numpy(self.scores.probs[rows]).float()
        slots, mass = soft_labels(top, probs, slot_of, self.recipe.argmax_share)
        loss = soft_cross_entropy(
            states, self.draft.weights["lm_head.weight"], slots, mass * weight[:, None]
        )
        if self.recipe.state_weight:
            wanted = torch.from_numpy(self.scores.states[rows]).float()
            error = (states - wanted).square().sum(-1) / wanted.square().sum(-1).mean()
            loss = loss + self.recipe.state_weight * (error * weight).sum()
        return loss / weight.sum(), len(positions)

    def epoch(self, indices: list[int], rng: random.Random) -> list[list[int]]:
        """Batches of all answers to prompts of others, and of own text as much as is wanted."""
        conversations = self.corpus.conversations
        outside = [i for i in indices if conversations[i].outside]
        own = [i for i in indices if not conversations[i].outside]
        if self.recipe.own_share is not None and outside:
            own = rng.sample(own, min(len(own), round(self.recipe.own_share * len(outside))))
        return batches(self.corpus, outside + own, self.recipe.batch_tokens, rng)

    def _position_weights(self, members: list[int]) -> Tensor:
        """1 where a token of an answer is predicted; of the target's own prompts prompt_weight."""
        rows = []
        for index in members:
            row = torch.ones(len(self.corpus.inputs(index)))
            row[: self.corpus.answer_offset(index)] = self.recipe.prompt_weight
            row[: self.corpus.first_learned(index)] = 0
            rows.append(row)
        return torch.cat(rows)


def rate_at(progress: float, recipe: Recipe) -> float:
    """Learning rate when this share of the run is done: linear warm-up, then a cosine to 1 %."""
    if progress < recipe.warmup:
        return recipe.learning_rate * (progress + 1e-4) / recipe.warmup
    done = min(1.0, (progress - recipe.warmup) / (1 - recipe.warmup))
    return recipe.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


def _optimizers(weights: Weights, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the head and the norms.

    With updates scaled to AdamW's size, one learning rate serves both.
    """
    trained = {name: w.requires_grad_() for name, w in weights.items() if name != EMBEDDING}
    matrices = [w for name, w in trained.items() if "layers" in name and w.dim() == 2]
    norms = [w for w in trained.values() if w.dim() == 1]
    groups = [
        {"params": [trained["lm_head.weight"]], "weight_decay": recipe.weight_decay},
        {"params": norms, "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(
            matrices, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True),
    ]


def _step(optimizers: list[torch.optim.Optimizer], learning_rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        optimizer.zero_grad()


def train(run: Run, indices: list[int], save: Callable[[], None]) -> None:
    """Train until the recipe's epochs or minutes are over; call save every save_minutes and last.

    The schedule follows whichever of the two is further, so that a run on a busy machine still
    ends its cosine in time.
    """
    recipe, rng = run.recipe, random.Random(run.recipe.seed)
    optimizers = _optimizers(run.draft.weights, recipe)
    trained = [w for w in run.draft.weights.values() if w.requires_grad]
    queue = run.epoch(indices, rng)
    positions = sum(len(run.corpus.inputs(index)) for members in queue for index in members)
    total = recipe.epochs * positions
    slot_of, log = run.slot_of(), _Log()
    saved = log.minutes
    while (progress := max(log.seen / total, log.minutes / recipe.minutes)) < 1:
        for _ in range(recipe.batches_per_step):
            queue = queue or run.epoch(indices, rng)
            loss, count = run.batch_loss(queue.pop(), slot_of)
            (loss / recipe.batches_per_step).backward()
            log.add(loss.item(), count)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        _step(optimizers, rate_at(progress, recipe))
        log.step(progress)
        if log.minutes - saved > recipe.save_minutes:
            save()
            saved = log.minutes
    save()


class _Log:
    """Counts positions, steps and time; prints the loss of late now and then."""

    def __init__(self) -> None:
        self.began, self.seen, self.steps = time.monotonic(), 0, 0
        self.losses: list[float] = []

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self.began) / 60

    def add(self, loss: float, positions: int) -> None:
        self.seen += positions
        self.losses.append(loss)

    def step(self, progress: float) -> None:
        self.steps += 1
        if self.steps % 50 == 0:
            mean, rate = sum(self.losses) / len(self.losses), self.seen / self.minutes / 60
            print(
                f"step {self.steps}, {self.seen} positions, {100 * progress:.1f} %: "
                f"loss {mean:.4f}, {rate:.0f} positions/s",
                flush=True,
            )
            self.losses.clear()
