"""Make the embedded draft.

    python -m runtime.embedded.training.distill --text FILE.jsonl.gz --out DIR

Reads conversations that the target wrote, scores them with the target, trains the draft on the
soft labels, and writes the int8 draft whenever it agrees better with the target on held-out
prompts than before. With `--generate N` it writes the conversations first; with `--prompts` the
target answers prompts of others, and its answers join them. With `--start` a draft that exists is
trained on. Imports torch only after the options are read.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.arguments import Parser
from runtime.embedded import target_path

if TYPE_CHECKING:
    from torch import Tensor

    from runtime.embedded.training.corpus import Corpus
    from runtime.embedded.training.llama import Shape, Weights
    from runtime.embedded.training.score import Scores
    from runtime.embedded.training.train import Recipe, Run

HEAD_TOKENS = 8192  # of a draft that starts anew


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--text", type=Path, required=True, help="gzipped JSON lines: prompt, answer, temperature")
    add("--out", type=Path, required=True, help="folder for draft.safetensors, draft_config.json")
    add("--scratch", type=Path, default=Path("distill-scratch"), help="folder for soft labels")
    add("--generate", type=int, metavar="N", help="first write N conversations to --text")
    add("--prompts", type=Path, help="first answer these: JSON lines with prompt")
    add("--start", type=Path, metavar="DIR", help="train the draft that lies there")
    add("--evaluate", action="store_true", help="only measure the draft that lies in --out")
    add("--layers", type=int, nargs="+", default=[0, 1, 2], help="target layers to start from")
    add(
        "--head-tokens",
        type=int,
        help=f"rows of the cut output head ({HEAD_TOKENS}, or those of --start)",
    )
    add("--own-share", type=float, help="own conversations an epoch, per one of another's prompt")
    add("--epochs", type=float, default=6.0, help="passes over the text, unless --minutes end it")
    add("--minutes", type=float, default=67.0, help="wall-clock limit of the training")
    add("--save-minutes", type=float, default=7.0, help="how often to measure and keep the draft")
    add("--batches-per-step", type=int, default=2, help="of 2,048 positions, their gradients added")
    add("--learning-rate", type=float, default=2e-3)
    add("--argmax-share", type=float, default=0.2, help="part of a label for the first choice")
    add("--threads", type=int, default=1)
    add("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse_options()
    # Spinning worker threads make every step slow on a machine that others use too.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    import torch

    torch.set_num_threads(options.threads)
    if options.generate:
        from runtime.embedded.training.generate import write_self_text

        write_self_text(target_path(), options.text, options.generate, options.seed)
    if options.prompts:
        from runtime.embedded.training.answers import write_answers
        from runtime.embedded.training.prompts import read_prompts

        prompts = [line["prompt"] for line in read_prompts(options.prompts)]
        write_answers(prompts, options.text, options.seed)
    distill(options)


def distill(options: argparse.Namespace) -> None:
    """Score, train and report; every step finds what an earlier run already finished."""
    from runtime.embedded.training.arithmetic import COMPUTE
    from runtime.embedded.training.corpus import read_corpus
    from runtime.embedded.training.export import EMBEDDING
    from runtime.embedded.training.llama import Llama, read_gguf
    from runtime.embedded.training.score import score_corpus
    from runtime.embedded.training.train import train

    shape, target = read_gguf(target_path())
    target[EMBEDDING] = target[EMBEDDING].to(COMPUTE)
    corpus = read_corpus(options.text)
    # Matrices are converted once here, not at every batch.
    ready = {name: w.to(COMPUTE) if w.dim() == 2 else w for name, w in target.items()}
    scores = score_corpus(Llama(shape, ready), corpus, options.scratch)
    if not options.evaluate:
        run, indices = _prepare(options, shape, target, corpus, scores)
        train(run, indices, _Keeper(run, options.out).keep_if_better)
    _report(options.out, shape, target[EMBEDDING], corpus, scores)


def _prepare(
    options: argparse.Namespace,
    shape: "Shape",
    target: "Weights",
    corpus: "Corpus",
    scores: "Scores",
) -> tuple["Run", list[int]]:
    """The run and the conversations it may train on."""
    import torch

    from runtime.embedded.training.corpus import frequent_tokens
    from runtime.embedded.training.export import EMBEDDING, load_draft
    from runtime.embedded.training.llama import Llama
    from runtime.embedded.training.train import Run, draft_shape, start_weights, weights_of_draft

    recipe = _recipe(options)
    indices = [i for i, c in enumerate(corpus.conversations) if not c.held_out]
    if options.start:
        draft, old_ids = load_draft(options.start / "draft.safetensors")
        head_ids = old_ids
        if options.head_tokens:
            head_ids = torch.tensor(frequent_tokens(corpus, indices, options.head_tokens))
        weights = weights_of_draft(draft, old_ids, target[EMBEDDING], head_ids)
    else:
        count = options.head_tokens or HEAD_TOKENS
        head_ids = torch.tensor(frequent_tokens(corpus, indices, count))
        weights = start_weights(target, recipe, head_ids)
    model = Llama(draft_shape(shape, weights), weights)
    return Run(model, head_ids, corpus, scores, recipe), indices


def _recipe(options: argparse.Namespace) -> "Recipe":
    from runtime.embedded.training.train import Recipe

    return Recipe(
        layers=tuple(options.layers),
        batches_per_step=options.batches_per_step,
        own_share=options.own_share,
        epochs=options.epochs,
        minutes=options.minutes,
        save_minutes=options.save_minutes,
        learning_rate=options.learning_rate,
        argmax_share=options.argmax_share,
        seed=options.seed,
    )


class _Keeper:
    """Keeps the best draft of a run on disk, measured as it will be used: after int8."""

    def __init__(self, run: "Run", out: Path):
        self.run, self.out, self.best = run, out, 0.0

    def keep_if_better(self) -> None:
        from runtime.embedded.training.evaluate import agreement
        from runtime.embedded.training.export import EMBEDDING, pack, save_draft, unpack
        from runtime.embedded.training.llama import Llama

        run = self.run
        weights, head_ids = unpack(pack(run.draft.weights, run.head_ids))
        weights[EMBEDDING] = run.draft.weights[EMBEDDING]
        draft = Llama(run.draft.shape, weights, run.draft.compute)
        greedy = [i for i in _held_out(run.corpus) if run.corpus.conversations[i].temperature == 0]
        result = agreement(draft, head_ids, run.corpus, run.scores, greedy)
        print(f"held-out greedy text: {result}", flush=True)
        if result.top1 > self.best:
            self.best = result.top1
            save_draft(self.out, run.draft.weights, run.head_ids, run.draft.shape)


def _held_out(corpus: "Corpus") -> list[int]:
    return [index for index, c in enumerate(corpus.conversations) if c.held_out]


def _report(
    out: Path, shape: "Shape", embedding: "Tensor", corpus: "Corpus", scores: "Scores"
) -> None:
    """Print what the draft on disk does on held-out prompts, in fp32."""
    import torch

    from runtime.embedded.training.evaluate import agreement
    from runtime.embedded.training.export import EMBEDDING, load_draft
    from runtime.embedded.training.llama import Llama
    from runtime.embedded.training.train import draft_shape

    weights, head_ids = load_draft(out / "draft.safetensors")
    weights[EMBEDDING] = embedding
    draft = Llama(draft_shape(shape, weights), weights, torch.float32)
    kinds: dict[str, list[int]] = {}
    for index in _held_out(corpus):
        conversation = corpus.conversations[index]
        name = "greedy" if conversation.temperature == 0 else "sampled"
        whose = "prompts of others" if conversation.outside else "own prompts"
        kinds.setdefault(f"{name} answers to {whose}", []).append(index)
    for name, indices in kinds.items():
        result = agreement(draft, head_ids, corpus, scores, indices, embedding.float())
        print(f"{name}, {len(indices)} held out: {result}")


if __name__ == "__main__":
    main()
