"""A server of a few lines, in this process: it knows the text, and checks what edges send."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from runtime.edge.net.link import NO_CREDENTIALS, Link
from runtime.tree import Tree
from runtime.wire import messages as wire
from runtime.wire.connection import Connection, Role

LATER = Callable[[Callable[[], None]], object]  # runs a function some time later


class ScriptedServer:
    """Continues every prompt with `truth`, in turns and after delays drawn from `rng`.

    Stands where the socket of a `Link` does. `later` decides when an answer goes out.
    """

    bytes_sent = 0  # nobody looks after this link
    connection = Connection(Role.EDGE)  # nor counts its requests

    def __init__(self, truth: Sequence[int], rng: random.Random, later: LATER | None = None):
        self.truth, self.drafts, self.offers = list(truth), list[wire.Draft](), list[wire.Offer]()
        self.likes_offers, self.rounds = False, 0
        self.turns = [wire.Turn.SERVER, wire.Turn.EDGE, wire.Turn.EDGE, wire.Turn.WAIT]
        self._rng, self._later = rng, later or self._after_a_while
        self._open: dict[int, wire.Open] = {}
        self._produced: dict[int, int] = {}
        self._granted: dict[int, int] = {}  # nodes, while a draft may come
        self._round: dict[int, int] = {}

    def link(self) -> Link:
        """A link whose messages come here; call it with the event loop running."""
        hello = wire.Hello(wire.VERSION, 260, bytes(16), "scripted")
        self._link = link = Link(hello, NO_CREDENTIALS)
        link.welcome = wire.Welcome(1, 260, bytes(16), 200, 1000, 9, "scripted")
        link._peer = self
        return link

    def send(self, message: wire.Message) -> None:
        match message:
            case wire.Open():
                self._open[message.request] = message
                self._produced[message.request] = self._round[message.request] = 0
                self._due = message.prompt_tokens
            case wire.Prompt():
                self._due -= len(message.tokens)
                if not self._due:
                    self._answer(message.request, Tree())
            case wire.Draft():
                self._check(message)
                self.drafts.append(message)
                self._answer(message.request, Tree(message.tokens, message.parents))
            case wire.Offer():
                params, produced = self._open[message.request], self._produced[message.request]
                assert self.likes_offers, "nobody has asked for an offer"
                assert params.prompt_tokens <= message.base <= params.prompt_tokens + produced
                assert params.max_nodes > 0
                assert len(message.tokens) <= wire.MAX_NODES
                self.offers.append(message)
            case wire.Close():
                self._open.pop(message.request)

    def _check(self, draft: wire.Draft) -> None:
        params, produced = self._open[draft.request], self._produced[draft.request]
        assert len(draft.tokens) <= self._granted.pop(draft.request), "no turn, or too many nodes"
        assert draft.round == self._round[draft.request]
        assert draft.base == params.prompt_tokens + produced
        deepest = max(Tree(draft.tokens, draft.parents).depths(), default=0)
        assert deepest < params.max_tokens - produced

    def _answer(self, request: int, tree: Tree) -> None:
        self._later(lambda: self._verdict(request, tree))

    def _verdict(self, request: int, tree: Tree) -> None:
        """Walk the tree along the truth, and say who moves next."""
        if request not in self._open:
            return
        params, produced, node = self._open[request], self._produced[request], 0
        edges = dict(zip(zip(tree.parents, tree.tokens, strict=True), range(1, 999), strict=False))
        while (child := edges.get((node, self.truth[produced]))) is not None:
            node, produced = child, produced + 1
        bonus = self.truth[produced]
        self._produced[request] = produced = produced + 1
        finish = wire.Finish.LENGTH if produced == params.max_tokens else wire.Finish.NONE
        turn = self._rng.choice(self.turns)
        if finish or not params.max_nodes:
            turn = wire.Turn.SERVER
        times_ms = (self._rng.randint(0, 5), self._rng.choice([0, 3, wire.NO_LIMIT_MS]))
        grant = (max(self._rng.randint(0, params.max_nodes), 1), *times_ms)
        verdict = wire.Verdict(request, self._round[request], node, bonus, finish, 0, 0, turn)
        self._round[request] += 1
        self.rounds += 1
        if turn is not wire.Turn.SERVER:
            # as our server does: who waits is not told yet what the credit will say
            told = grant if turn is wire.Turn.EDGE else (0, 0, 0)
            verdict = wire.Verdict(request, verdict.round, node, bonus, finish, 0, 0, turn, *told)
        elif self.likes_offers and not finish:
            verdict = replace(verdict, max_nodes=params.max_nodes)
        self._link._on_message(self, verdict)
        if finish:
            return
        match turn:
            case wire.Turn.SERVER:
                self._answer(request, Tree())
            case wire.Turn.EDGE:
                self._granted[request] = verdict.max_nodes
            case wire.Turn.WAIT:
                self._later(lambda: self._credit(request, *grant))

    def _credit(self, request: int, max_nodes: int, *times_ms: int) -> None:
        if request in self._open:
            self._granted[request] = max_nodes
            self._link._on_message(self, wire.Credit(request, max_nodes, *times_ms))

    def _after_a_while(self, answer: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(self._rng.choice([0, 0.001, 0.006]), answer)
