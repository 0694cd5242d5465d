"""A model is run once before it serves: a tree beside another text, and one of its paths alone.

Speculation is lossless only if a token's logits are the same in both. What a family's code does
cannot be known beforehand, so it is tried.
"""

import torch
from torch import Tensor

from runtime.model.backend.model import TransformersModel
from runtime.model.batch import NO_ADAPTER, TreeRequest
from runtime.model.config import ModelError
from runtime.model.engine import Engine
from runtime.model.kv_cache import PagedKV

_PAGE, _PAGES, _OTHER_PAGES = 8, (4, 1, 2), (6, 0)
_PREFIX = 7
_PARENTS = (-1, 0, 0, 1, -1, 2, 3, 5)
_PATH = (0, 2, 5, 7)  # of the tree: siblings and cousins come between its nodes
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def probe(model: TransformersModel, adapter: int = NO_ADAPTER) -> None:
    """Raises ModelError if a row depends on what shares its pass, or sees more than its path.

    adapter: what the tree's rows have, but not the other text's.
    """
    together, alone = _tree_and_other(model, adapter, NO_ADAPTER), path_alone(model, adapter)
    if not bool(together.isfinite().all() and alone.isfinite().all()):
        raise ModelError("its logits are not finite")
    error = difference(together, alone)
    if error > _TOLERANCE[model.dtype]:
        raise ModelError(
            "a token in a tree gets other logits than in a text of its own (by "
            f"{error:.1e} of the largest): the model sees more of a pass than attention shows it"
        )
    _check_bits(model, together, alone)


def probe_adapted(model: TransformersModel) -> None:
    """The same for rows with an adapter, and for those without one beside them."""
    probe(model, adapter=0)
    beside = _tree_and_other(model, NO_ADAPTER, others=0)
    _check_bits(model, beside, path_alone(model))


def _check_bits(model: TransformersModel, together: Tensor, alone: Tensor) -> None:
    if model.device.type == "cpu" and not torch.equal(together, alone):
        raise ModelError(
            "a token's logits depend, in their last bits, on what else is computed with it, so "
            "that text would depend on speculation"
        )


def _tree_and_other(model: TransformersModel, adapter: int, others: int) -> Tensor:
    """Logits along the path, of the tree in one pass with another text."""
    engine, tokens = _engine(model), _tokens(model)
    prefix, tree, other = tokens[:_PREFIX], tokens[_PREFIX : _PREFIX + len(_PARENTS)], tokens[-9:]
    chunks = [
        _chunk(prefix, 0, _PAGES, adapter),
        _chunk(other[:5], 0, _OTHER_PAGES, others),
        _chunk(other[5:], 5, _OTHER_PAGES, others),
    ]
    engine.forward(chunks[:2])
    drafted = TreeRequest(tree, _PARENTS, _PREFIX, _PAGES, _PATH, adapter=adapter)
    return engine.forward([chunks[2], drafted])[1:]


def path_alone(model: TransformersModel, adapter: int = NO_ADAPTER) -> Tensor:
    """Logits along the path, its tokens one at a time."""
    engine, tokens = _engine(model), _tokens(model)
    engine.forward([_chunk(tokens[:_PREFIX], 0, _PAGES, adapter)])
    steps = [
        _chunk([tokens[_PREFIX + node]], _PREFIX + depth, _PAGES, adapter)
        for depth, node in enumerate(_PATH)
    ]
    return torch.cat([engine.forward([step]) for step in steps])


def difference(some: Tensor, others: Tensor) -> float:
    """The largest, in shares of the largest logit."""
    return float((some - others).abs().max() / others.abs().max())


def _tokens(model: TransformersModel) -> list[int]:
    draws = torch.Generator().manual_seed(0)
    tokens: list[int] = torch.randint(0, model.vocab_size, (64,), generator=draws).tolist()
    return tokens


def _engine(model: TransformersModel) -> Engine:
    return Engine(model, PagedKV(model.kv_shapes, 8, _PAGE, model.dtype, model.device))


def _chunk(tokens: list[int], prefix_len: int, pages: tuple[int, ...], adapter: int) -> TreeRequest:
    """A piece of a text, of whose last token the logits are wanted."""
    n = len(tokens)
    return TreeRequest(tokens, range(-1, n - 1), prefix_len, pages, [n - 1], adapter=adapter)
