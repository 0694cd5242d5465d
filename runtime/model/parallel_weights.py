"""What one of several ranks holds of a checkpoint: rows of its matrices, and no others are read.

Query heads, with the key/value heads that they read; the outputs of every other product; tokens of
the vocabulary. All are rows as they are stored, so any format can be shared. Knows no processes.
"""

from dataclasses import replace

from runtime.model.checkpoint import Checkpoint
from runtime.model.config import ModelConfig, ModelError
from runtime.model.folder import EMBEDDING, HEAD
from runtime.model.formats import Weight
from runtime.model.parallel import part

_QUERIES, _KEYS_VALUES = ("q_proj",), ("k_proj", "v_proj")
_EVEN = ("o_proj", "gate_proj", "up_proj", "down_proj")


class CheckpointPart:
    """The part of rank `rank` of `size`; names are those of the whole, `config` has its heads.

    Raises ModelError where so many ranks cannot share the model.
    """

    def __init__(self, whole: Checkpoint, rank: int, size: int):
        self._whole, self._rank, self._size = whole, rank, size
        config = self._config = whole.config
        check_shareable(config, size)
        self.config = replace(
            config,
            n_heads=config.n_heads // size,
            n_kv_heads=max(config.n_kv_heads // size, 1),
        )
        self.shapes = {name: self._shape(name) for name in whole.shapes}

    def n_bytes(self, name: str) -> int:
        return self._share(name, self._whole.n_bytes(name))

    def running_bytes(self, name: str) -> int:
        return self._share(name, self._whole.running_bytes(name))

    def method(self, name: str) -> str | None:
        return self._whole.method(name)

    def stored(self, name: str) -> Weight:
        rows = self.rows(name)
        return self._whole.stored(name) if rows is None else self._whole.stored_rows(name, *rows)

    def stored_rows(self, name: str, first: int, last: int) -> Weight:
        begin, _ = self.rows(name) or (0, 0)
        return self._whole.stored_rows(name, begin + first, begin + last)

    def rows(self, name: str) -> tuple[int, int] | None:
        """Which rows of a tensor this rank has, first and last + 1; None for all."""
        rank, size, config = self._rank, self._size, self._config
        kind = name.split(".")[-2]
        if kind in _QUERIES:
            first, last = part(rank, size, config.n_heads)
            return first * config.head_dim, last * config.head_dim
        if kind in _KEYS_VALUES:
            first = rank * config.n_kv_heads // size
            last = first + self.config.n_kv_heads
            return first * config.head_dim, last * config.head_dim
        if kind in _EVEN or name in (EMBEDDING, HEAD):
            return part(rank, size, self._whole.shapes[name][0])
        return None

    def _shape(self, name: str) -> tuple[int, ...]:
        shape, rows = self._whole.shapes[name], self.rows(name)
        return shape if rows is None else (rows[1] - rows[0], *shape[1:])

    def _share(self, name: str, n_bytes: int) -> int:
        return n_bytes * self.shapes[name][0] // max(self._whole.shapes[name][0], 1)


def check_shareable(config: ModelConfig, size: int) -> None:
    """Raises ModelError unless so many ranks can share a model."""
    if config.head_size != config.vocab_size:
        raise ModelError("a model whose head has only some of the tokens runs on one rank alone")
    heads, kv_heads = config.n_heads, config.n_kv_heads
    if heads % size or (kv_heads % size and size % kv_heads):
        fit = [
            n for n in range(2, heads + 1) if not heads % n and not (kv_heads % n and n % kv_heads)
        ]
        numbers = ", ".join(map(str, fit)) or "one alone"
        raise ModelError(
            f"{size} ranks cannot share {heads} query heads over {kv_heads} key/value heads "
            f"evenly; ranks that can: {numbers}"
        )
    experts = config.experts
    inner = () if experts is None else (experts.intermediate_size, experts.shared_size or size)
    for width in (config.hidden_size, config.intermediate_size, *inner):
        if width % size:
            raise ModelError(f"{size} ranks cannot share a layer {width} wide evenly")
