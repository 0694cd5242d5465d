"""Processes that run one model together, started by torchrun: what they exchange, and who leads.

Each holds some heads, some columns of every product's outputs and some of the vocabulary. Rank 0
leads: it tells the others of each step in one message, and all of them do the same work in the same
order. What is exchanged are outputs, each computed by one rank over all of its inputs: no partial
sums are added, so a row has the bits that one process gives it, whatever the format of the weights.
Knows no layers, and not what a step means.

Source: column parallel products, Megatron-LM, arXiv:1909.08053, here for every product of a layer.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from runtime.model.config import ModelError

BEAT_S = 1.0  # the leader is heard at least so often
LOADING_S = 3600.0  # that ranks may need to load their parts, one longer than another
FIRST_BYTES = 1024  # of a message; the rest, where there is any, comes in a second exchange
_SENTENCE_BYTES = 512
_STOP, _BEAT = -1, 0  # in place of a message's length


class RankLost(Exception):
    """A rank has ended or hangs, or could not go on; no step can be run any more."""


class LeaderTells(Exception):
    """The model cannot be opened; rank 0 says why."""


class Ranks:
    """One process's place among those that run a model; `n_bytes` counts what it has sent."""

    def __init__(self, rank: int, size: int, local_rank: int = 0):
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.lost: RankLost | None = None
        self.n_bytes = 0
        self._steps: dist.ProcessGroup | None = None  # whom steps are told to, on the host
        self._device: dist.ProcessGroup | None = None  # where tensors are exchanged
        self._turn = threading.Lock()  # a step, or a beat
        self._stopped = threading.Event()
        self._beats: threading.Thread | None = None

    @classmethod
    def join(cls, rank: int, size: int, local_rank: int) -> "Ranks":
        """Meet the others, where the environment says, as torchrun sets it. Raises ModelError."""
        try:
            dist.init_process_group("gloo", timeout=timedelta(seconds=LOADING_S))
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"the {size} ranks of torchrun do not meet: {_line(error)}") from error
        return cls(rank, size, local_rank)

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """All ranks do this, or none: the sentence of one that fails is told by rank 0."""
        sentence = ""
        try:
            yield
        except ModelError as error:
            sentence = str(error)
        mine = torch.zeros(_SENTENCE_BYTES, dtype=torch.uint8)
        text = sentence.encode()[:_SENTENCE_BYTES]
        mine[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else 0
        told = [torch.empty_like(mine) for _ in range(self.size)]
        with self._reaching():
            dist.all_gather(told, mine)
        sentences = [bytes(one.tolist()).rstrip(b"\0") for one in told]
        first = next((rank for rank, one in enumerate(sentences) if one), None)
        if first is None:
            return
        if self.rank:
            raise LeaderTells
        whose = "" if sentences[0] else f"rank {first}: "
        raise ModelError(sentence or whose + sentences[first].decode(errors="replace"))

    def least(self, number: int) -> int:
        """The least of the numbers that the ranks bring."""
        all_of_them = torch.tensor([number])
        with self._reaching():
            dist.all_reduce(all_of_them, dist.ReduceOp.MIN)
        return int(all_of_them)

    def begin(self, device: torch.device, silence_s: float) -> None:
        """From now on steps are run on `device`, and a rank that is silent for so long is lost."""
        timeout = timedelta(seconds=silence_s)
        with self._reaching():
            self._steps = dist.new_group(backend="gloo", timeout=timeout)
            on_host = device.type == "cpu"
            self._device = (
                self._steps if on_host else dist.new_group(backend="nccl", timeout=timeout)
            )
        if self.rank == 0:
            self._beats = threading.Thread(target=self._beat_forever, name="beats", daemon=True)
            self._beats.start()

    @contextmanager
    def leading(self, message: Tensor) -> Iterator[None]:
        """Tell of a step, `message` [bytes] u8 on the host, and run it with the others.

        Whatever goes wrong in it leaves the ranks at different places: RankLost.
        """
        with self._turn:
            try:
                self._tell(len(message), message)
                yield
            except RankLost:
                raise
            except Exception as error:
                raise self._gone(error) from error

    def steps(self) -> Iterator[Tensor]:
        """The messages of the leader, [bytes] u8, until it stops."""
        while True:
            first = torch.empty(FIRST_BYTES, dtype=torch.uint8)
            self._broadcast(first, self._steps)
            length = int(first[:8].view(torch.int64))
            if length == _STOP:
                dist.destroy_process_group()
                return
            if length == _BEAT:
                continue
            rest = torch.empty(max(length - (FIRST_BYTES - 8), 0), dtype=torch.uint8)
            if len(rest):
                self._broadcast(rest, self._steps)
            yield torch.cat((first[8:], rest))[:length]

    def stop(self) -> None:
        """No more steps: the others end. Nothing where one is lost, as then they end anyway."""
        self._stopped.set()
        if self._beats is not None:
            self._beats.join()
        if self.lost is None:
            self._tell(_STOP)
            # before the interpreter ends, under whose feet its threads would go on
            dist.destroy_process_group()

    def _tell(self, length: int, message: Tensor | None = None) -> None:
        first = torch.zeros(FIRST_BYTES, dtype=torch.uint8)
        first[:8].view(torch.int64)[0] = length
        if message is not None:
            first[8 : 8 + length] = message[: FIRST_BYTES - 8]
        self._broadcast(first, self._steps)
        if message is not None and length > FIRST_BYTES - 8:
            self._broadcast(message[FIRST_BYTES - 8 :], self._steps)

    def _beat_forever(self) -> None:
        """Between steps, say and see that all are there."""
        while not self._stopped.wait(BEAT_S):
            with self._turn:
                if self.lost is not None or self._stopped.is_set():
                    return
                try:
                    self._tell(_BEAT)
                except RankLost:
                    return

    def whole(self, x: Tensor) -> Tensor:
        """x [N, W] of every rank -> [N, size W], in the order of the ranks, to the bit."""
        mine = x.contiguous()
        got = x.new_empty(self.size, *x.shape)
        with self._reaching():
            # as bytes: not every backend knows every type
            dist.all_gather([_bytes(one) for one in got], _bytes(mine), self._device)
        self.n_bytes += (self.size - 1) * mine.nbytes
        return got.movedim(0, -2).flatten(-2)

    def looked_up(self, ids: Tensor, rows: int, table: Callable[[Tensor], Tensor]) -> Tensor:
        """Rows [N, H] of a table whose `rows` rows the ranks share, at ids [N].

        table: of this rank's part, by its own ids.
        """
        first, last = part(self.rank, self.size, rows)
        is_mine = (ids >= first) & (ids < last)
        found = table(torch.where(is_mine, ids - first, 0)) * 1
        found[~is_mine] = 0
        # every bit comes from one rank, so integers add up to it, where floats would lose -0
        with self._reaching():
            dist.all_reduce(_words(found), group=self._device)
        self.n_bytes += 2 * (self.size - 1) * found.nbytes // self.size
        return found

    def of_all(self, x: Tensor) -> Tensor:
        """x [N] of every rank -> [size, N]."""
        return self.whole(x[None]).view(self.size, -1)

    def columns(self, x: Tensor, n: int) -> Tensor | None:
        """At rank 0 the whole of x [N, W], of whose n columns each rank has its part."""
        widths = [last - first for first, last in parts(self.size, n)]
        mine = torch.zeros(len(x), max(widths), dtype=x.dtype, device=x.device)
        mine[:, : x.shape[1]] = x
        got = [torch.empty_like(mine) for _ in widths] if self.rank == 0 else None
        with self._reaching():
            dist.gather(mine, got, 0, self._device)
        if got is None:
            self.n_bytes += mine.nbytes
            return None
        return torch.cat([one[:, :width] for one, width in zip(got, widths, strict=True)], 1)

    def same(self, x: Tensor) -> Tensor:
        """x of rank 0, which the others overwrite theirs with."""
        self._broadcast(x, self._device)
        return x

    def _broadcast(self, x: Tensor, group: dist.ProcessGroup | None) -> None:
        with self._reaching():
            dist.broadcast(x, 0, group)
        self.n_bytes += 0 if self.rank else (self.size - 1) * x.nbytes

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        if self.lost is not None:
            raise self.lost
        try:
            yield
        except RuntimeError as error:
            raise self._gone(error) from error

    def _gone(self, error: Exception) -> RankLost:
        self.lost = RankLost(
            f"one of the {self.size} ranks has ended, hangs or failed, so all of them stop; start "
            f"them anew ({_line(error)})"
        )
        return self.lost


def part(rank: int, size: int, n: int) -> tuple[int, int]:
    """Which of n things a rank has, first and last + 1; the parts differ by one at most."""
    return rank * n // size, (rank + 1) * n // size


def parts(size: int, n: int) -> list[tuple[int, int]]:
    """`part` of every rank."""
    return [part(rank, size, n) for rank in range(size)]


def _bytes(x: Tensor) -> Tensor:
    return x.view(-1).view(torch.uint8)


def _words(x: Tensor) -> Tensor:
    """As integers that backends can add; rows of a model have an even number of halves."""
    return x.view(torch.int32)


def _line(error: Exception) -> str:
    """The first sentence of what a library says, without where in its sources."""
    text = " ".join(str(error).split())
    text = text.split("] ", 1)[-1] if text.startswith("[") else text
    return text.split(". ", 1)[0][:200]
