"""Random arguments of edit_logits."""

from dataclasses import dataclass

import torch
from torch import Tensor

from specedge_kernels import reference
from tests.kernels.cases import int32, offsets_of, parents_of


@dataclass(frozen=True)
class Edit:
    """One call of edit_logits, and the same for one request alone."""

    logits: Tensor
    tokens: Tensor
    ancestors: Tensor
    offsets: Tensor
    text_offsets: Tensor
    text_tokens: Tensor
    text_counts: Tensor
    bias_offsets: Tensor
    bias_tokens: Tensor
    bias_values: Tensor
    repetition: Tensor
    frequency: Tensor
    presence: Tensor

    def arguments(self, device: str = "cpu") -> dict[str, Tensor]:
        """By name, copies."""
        return {name: tensor.clone().to(device) for name, tensor in vars(self).items()}

    def alone(self, b: int) -> "Edit":
        rows, text, bias = (
            slice(*offsets[b : b + 2].tolist())
            for offsets in (self.offsets, self.text_offsets, self.bias_offsets)
        )
        return Edit(
            *(self.logits[rows], self.tokens[rows], self.ancestors[rows]),
            *(offsets_of([rows.stop - rows.start]), offsets_of([text.stop - text.start])),
            *(self.text_tokens[text], self.text_counts[text]),
            *(offsets_of([bias.stop - bias.start]), self.bias_tokens[bias], self.bias_values[bias]),
            *(self.repetition[b : b + 1], self.frequency[b : b + 1], self.presence[b : b + 1]),
        )


def make_edit(
    sizes: list[int], vocabulary: int, seed: int, words: int = 1, padding: int = 0
) -> Edit:
    """Random trees of these sizes; texts and biases of none to all of a small vocabulary, so that
    drafted tokens repeat along a path and are in the text as often as not."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(low: int, high: int, n: int) -> Tensor:
        return torch.randint(low, high, (n,), generator=generator)

    def lists(shares: list[float]) -> tuple[Tensor, Tensor]:
        chosen = [torch.rand(vocabulary, generator=generator) < share for share in shares]
        found = [mask.nonzero()[:, 0] for mask in chosen]
        junk = numbers(-9, 2 * vocabulary, padding)
        return offsets_of([len(tokens) for tokens in found]), torch.cat((*found, junk))

    offsets = offsets_of(sizes)
    parents = [
        parents_of("random" if b % 2 else "chain", n, generator) for b, n in enumerate(sizes)
    ]
    ancestors, _ = reference.build_tree(
        int32([p for tree in parents for p in tree]), offsets, words
    )
    n, batch = sum(sizes), len(sizes)
    text_offsets, text_tokens = lists([(0.5, 0.0, 1.0, 0.1)[b % 4] for b in range(batch)])
    bias_offsets, bias_tokens = lists([(0.2, 0.9, 0.0)[b % 3] for b in range(batch)])

    def pick(values: list[float]) -> Tensor:
        return torch.tensor(values)[numbers(0, len(values), batch)]

    return Edit(
        *(torch.randn(n, vocabulary, generator=generator) * 4, numbers(0, vocabulary, n)),
        *(ancestors, offsets, text_offsets, text_tokens),
        numbers(0, 4, len(text_tokens)).int(),
        *(bias_offsets, bias_tokens, torch.randn(len(bias_tokens), generator=generator) * 5),
        *(pick([0.7, 1.0, 1.3, 3.0]), pick([-0.5, 0.0, 0.1, 2.0]), pick([-1.0, 0.0, 0.3])),
    )
