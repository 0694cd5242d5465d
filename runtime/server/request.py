"""One request on the server: everything that is known of it, in one record.

The independent facts are stored and the rest is derived, its phase among them; scheduler, pipeline
and credits are policies over these records, and keep nothing about a request but its place in a
line. What its phase follows from changes in the named methods below alone, each of which checks
what must hold before it.

The `context` is the accepted text, prompt included. Its last token is the **root**: the only
accepted token whose KV the cache does not have once the prompt is done. So a prompt, a plain
decoding step and a tree are one case:

    tokens   [0, cached)               in the KV cache, or put there by a step that it is in
             [cached, len(context)-1)  to be prefilled, in chunks
             len(context)-1            the root, verified together with the draft

Knows nothing of models, sockets or clocks.
"""

from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from runtime.history import History
from runtime.server.policy.edge_profile import EdgeProfile
from runtime.server.schedule.prefix_cache import Key
from runtime.tree import Tree
from runtime.wire.messages import Constraint, Draft, Finish, Offer, Open, Rule, Turn

NO_NODES = Tree()


class Guide(Protocol):
    """What a Constraint allows next, for a request that has one.

    given   its whole answer, where the constraint says it token by token; else nothing
    """

    given: Sequence[int]

    def advance(self, tokens: Sequence[int]) -> None:
        """The answer goes on with these."""

    def masks(self, tokens: Sequence[int], parents: Sequence[int]) -> Future[Any]:
        """Bits of the tokens that may follow the root and each node of a tree under it.

        Nodes as in `Tree`. An array [1 + nodes, ceil(V / 32)] i32: bit i % 32 of word i // 32
        allows token i. It is made once for each draft, the first time that it is asked for.
        """


class Phase(Enum):
    """What a request waits for; of two things, what it waits for first."""

    READING = "the rest of its prompt"
    NEEDS_PAGES = "pages to be admitted, or admitted again"
    PREFILLING = "steps that put its text into the cache"
    DRAFTING = "its edge, whose turn it is"
    NEEDS_CREDIT = "a credit for its edge"
    NEEDS_MASKS = "what its constraint allows"
    QUEUED = "a step for its draft"
    IN_STEP = "a step that it is in"
    ENDED = "nothing"


class RejectedDraft(ValueError):
    """A draft that does not fit the request; the message is sent to the edge."""


@dataclass(eq=False, slots=True)
class Credit:
    """Permission to send a tree: for a tree in this step, until a time at which it is taken back.

    One whose tree came after the credit had been taken back is for no certain `step`.
    """

    step: int | None
    until_s: float
    is_out: bool = True  # until a step takes its tree, or it is taken back


@dataclass(eq=False, slots=True)
class Request:
    """State of one request. `key` names it among all; only those of equal `sharers` share pages.

    Two requests are equal only if they are the same.
    """

    key: Any  # its peer and its number there, on a server
    params: Open
    limit: int  # the context may grow to this many tokens
    context: list[int]
    user: Hashable = ""
    target_stop_ids: frozenset[int] = frozenset()  # that end it beside the request's own
    rule: Rule | None = None  # that changes its logits
    seen: set[int] = field(default_factory=set)  # tokens of the prompt so far, where they count
    history: History | None = None  # of its text, where the rule looks at it
    constraint: Constraint | None = None
    guide: Guide | None = None  # that enforces it
    adapter: int = -1  # which of the model's it is answered with; -1 for none
    masked: bool = True  # whether it is known what the constraint allows for the draft
    # its pages, while it is admitted
    admitted: bool = False
    pages: list[int] = field(default_factory=list)
    page_keys: list[Key] = field(default_factory=list)  # of the context's full pages, so far known
    published: int = 0  # leading pages that others may find
    cached: int = 0
    found: int = 0  # tokens that were in its pages when it was admitted last
    admission: int = 0  # of all admissions, which one was its last
    preemptions: int = 0
    ready: bool = False  # to be verified: it has draft, masks, pages, and its text in them
    opened_s: float = 0.0
    stepped: bool = False  # whether it has been in a step
    # its rounds
    round: int = 0  # the verdict that is owed next; 0 follows the prompt
    turn: Turn | None = None  # who moves next, as its edge was told; None before the first verdict
    draft: Tree | None = NO_NODES  # what is ready to be verified; the prompt alone at first
    offer: Offer | None = None  # the last one that may still be of use
    takes_offer: bool = False  # in its next step, so that it does not follow its own without it
    decoded: int = 0  # tokens from where the offer began to where the draft taken from it does
    ready_s: float = 0.0  # when the draft arrived
    verdict_s: float | None = None  # when the last verdict left
    finish: Finish = Finish.NONE
    ended: bool = False
    # the steps that the model has, or has before it
    in_steps: int = 0  # that it has rows in
    verifying: int = 0  # verdicts that they owe its edge
    # its edge
    owed_s: float = 0.0  # for how long it has owed something, as far as was looked
    edge: EdgeProfile = field(default_factory=EdgeProfile)
    credit: Credit | None = None

    @property
    def phase(self) -> Phase:
        """What it waits for."""
        if self.ended:
            return Phase.ENDED
        if self.in_steps or self.verifying:
            return Phase.IN_STEP
        if not self.admitted:
            is_read = len(self.context) >= self.params.prompt_tokens
            return Phase.NEEDS_PAGES if is_read else Phase.READING
        if self.uncached:
            return Phase.PREFILLING
        if self.draft is not None:
            return Phase.QUEUED if self.masked else Phase.NEEDS_MASKS
        return Phase.DRAFTING if self.turn is Turn.EDGE else Phase.NEEDS_CREDIT

    @property
    def sharers(self) -> Hashable:
        """Who may hold its pages: they are a user's, and what is in them an adapter's."""
        return (self.user, self.adapter)

    @property
    def nodes(self) -> int:
        """Drafted nodes that wait to be verified."""
        return 0 if self.draft is None else len(self.draft.tokens)

    @property
    def root(self) -> int:
        """Index of the root in the context."""
        return len(self.context) - 1

    @property
    def answer(self) -> list[int]:
        """The tokens of the text that count as answer."""
        return self.context[self.params.prompt_tokens - self.params.output_tokens :]

    @property
    def uncached(self) -> int:
        """Tokens before the root that still have to be prefilled."""
        return len(self.context) - 1 - self.cached

    @property
    def remaining(self) -> int:
        """Tokens that may still be produced."""
        return self.limit - len(self.context)

    @property
    def is_plain(self) -> bool:
        """Whether it decodes plainly: then it can be in every step. A prompt does not yet."""
        return self.turn is Turn.SERVER

    @property
    def goes_on(self) -> bool:
        """Whether no edge has the turn before its next token: who never drafts is plain at once."""
        return self.is_plain or (self.turn is None and not self.edge.max_nodes)

    @property
    def needs_text(self) -> bool:
        """Whether no token can be drawn before those in front of it are known."""
        return self.history is not None or self.guide is not None

    @property
    def is_verifiable(self) -> bool:
        """Whether a step that has its text in the cache may verify its draft."""
        return self.draft is not None and self.masked

    @property
    def is_drafting(self) -> bool:
        """Whether its edge may send a tree, or has one on the way."""
        return self.turn is Turn.EDGE and self.draft is None and not self.verifying

    @property
    def has_credit(self) -> bool:
        """Whether a credit is out for it."""
        return self.credit is not None and self.credit.is_out

    @property
    def is_owed(self) -> bool:
        """Whether its edge is to send something, without which nothing goes on."""
        return self.phase in (Phase.READING, Phase.DRAFTING)

    def look(self, passed_s: float) -> None:
        """So much time has passed since it was looked at last."""
        self.owed_s = self.owed_s + passed_s if self.is_owed else 0.0

    def read(self, tokens: tuple[int, ...]) -> bool:
        """More of the prompt has come; whether that was the last of it."""
        assert self.phase is Phase.READING, f"{self.key} reads a prompt while {self.phase}"
        self.context.extend(tokens)
        self.owed_s = 0.0
        is_whole = len(self.context) == self.params.prompt_tokens
        if self.rule is not None and self.rule.counts_tokens:
            # by portions, so that a long prompt is not all looked at at its end
            if self.rule.repetition_penalty != 1:
                self.seen.update(tokens)
            if is_whole:
                self.history, self.seen = History(self.seen, self.answer), set()
        return is_whole

    def admit(self, pages: list[int], cached: int, admission: int) -> None:
        """It has pages, of which the first ones hold `cached` tokens of its text already."""
        assert self.phase is Phase.NEEDS_PAGES, f"{self.key} is admitted while {self.phase}"
        self.admitted, self.pages, self.admission = True, pages, admission
        self.cached = self.found = cached

    def take_pages(self, pages: list[int]) -> None:
        """It has more pages, behind those that it had."""
        assert self.admitted, f"{self.key} gets pages, and has not been admitted"
        self.pages += pages

    def preempt(self) -> list[int]:
        """It has no pages any more, for the sake of an older request: those that it had."""
        self.preemptions += 1
        return self.lose_pages()

    def lose_pages(self) -> list[int]:
        """It has no pages any more: those that it had. Its text and its draft stay."""
        assert self.admitted, f"{self.key} has no pages to lose"
        assert self.ended or self.phase is not Phase.IN_STEP, f"{self.key} is in a step"
        pages, self.pages, self.admitted, self.cached = self.pages, [], False, 0
        return pages

    def accept_draft(self, message: Draft, now_s: float) -> None:
        """Make a draft ready to be verified. Raises RejectedDraft."""
        if message.base != len(self.context):
            raise RejectedDraft(
                f"round {message.round} drafts after {message.base} tokens, but the accepted text "
                f"has {len(self.context)}"
            )
        draft = Tree(message.tokens, message.parents)
        deepest = max(draft.depths(), default=0) if len(draft) >= self.remaining else 0
        if deepest >= self.remaining:
            raise RejectedDraft(
                f"the tree is {deepest} tokens deep, but only {self.remaining} tokens are left; "
                f"draft at most {self.remaining - 1} deep"
            )
        self.line_up(draft, now_s)

    def take_offer(self, offer: Offer) -> None:
        """Keep an offer in place of the one before, if it is of use. Raises RejectedDraft."""
        if offer.base > len(self.context):
            raise RejectedDraft(
                f"an offer goes on from {offer.base} tokens, but the accepted text has only "
                f"{len(self.context)}"
            )
        before = self.offer
        self.offer = offer
        if not self.is_plain or not len(self.offered):
            self.offer = before

    @property
    def offered(self) -> Tree:
        """What its edge has offered to follow its text; without nodes where that is nothing."""
        if self.offer is None or len(self.context) - self.offer.base >= len(self.offer.tokens):
            return NO_NODES  # none, or one of long ago
        tree = Tree(self.offer.tokens, self.offer.parents)
        below = tree.below(self.context[self.offer.base :])
        if below is None or max(below.depths(), default=0) >= self.remaining:
            return NO_NODES
        return below

    def take_along(self, most: int) -> Tree:
        """The best nodes of what is offered; where nothing of it is left, it is forgotten."""
        offered = self.offered
        if self.offer is not None:
            self.decoded = len(self.context) - self.offer.base
        if not len(offered):
            self.drop_offer()
            return NO_NODES
        tree = offered.best(most)
        self.takes_offer = len(tree) > 0
        return tree

    def drop_offer(self) -> None:
        """What its edge has offered is of no use any more."""
        self.offer, self.takes_offer = None, False

    @property
    def foreseen(self) -> int:
        """Tokens of the text behind it that the offer had, in their order."""
        assert self.offer is not None, f"{self.key} has no offer"
        tree = Tree(self.offer.tokens, self.offer.parents)
        return len(tree.along(self.context[self.offer.base :]))

    def line_up(self, draft: Tree, now_s: float) -> None:
        """A draft, that of no nodes included, is ready to be verified."""
        assert self.draft is None, f"{self.key} has a draft already"
        self.draft, self.ready_s = draft, now_s
        self.owed_s = 0.0

    @property
    def may_be_cut(self) -> bool:
        """Whether its draft was offered: it may be verified in part, as nobody waits for the rest.

        What a constraint allows has been found for the draft as it is.
        """
        return self.is_plain and self.nodes > 0 and self.guide is None

    def cut(self, nodes: int) -> None:
        """Of its draft only the best nodes are verified, so many."""
        assert self.may_be_cut, f"{self.key} has offered nothing"
        assert self.draft is not None, f"{self.key} has no draft"
        self.draft = self.draft.best(nodes)
        self.edge.nodes = len(self.draft)

    @property
    def is_given(self) -> bool:
        """Whether its answer is known: nobody drafts it, and only its numbers are asked for."""
        return self.guide is not None and len(self.guide.given) > 0

    def guided(self, guide: Guide) -> None:
        """Hold its answer to a constraint."""
        self.guide = guide
        if self.is_given:
            begin = self.params.prompt_tokens - self.params.output_tokens
            self.limit = min(self.limit, begin + len(guide.given))
            self.edge.max_nodes = 0

    def next_given(self, most: int) -> Tree:
        """What follows of a given answer, but for its last token, as a draft of so many nodes."""
        assert self.guide is not None, f"{self.key} has no constraint"
        done, nodes = len(self.answer), min(most, self.remaining - 1)
        return Tree(tuple(self.guide.given[done : done + nodes]), tuple(range(nodes)))

    def await_masks(self) -> Future[Any]:
        """It is in no step with its draft until what its constraint allows there is known."""
        assert self.guide is not None, f"{self.key} has no constraint"
        assert self.draft is not None, f"{self.key} has no draft"
        self.masked = False
        return self.guide.masks(self.draft.tokens, self.draft.parents)

    def masks_came(self) -> None:
        """What its constraint allows for its draft is known now."""
        assert not self.masked, f"{self.key} waits for no masks"
        self.masked = True

    def enter_step(self, chunk: int, verify: bool) -> None:
        """A step prefills so many of its tokens, and verifies its draft if it says."""
        uncached = self.uncached
        assert self.admitted, f"{self.key} has no pages for a step"
        assert not self.ended, f"{self.key} has ended"
        assert chunk <= uncached, f"{chunk} tokens of {uncached}"
        assert not verify or chunk == uncached, f"{self.key} is verified before its prompt"
        assert not verify or self.is_verifiable, f"{self.key} has no draft, or no masks for it"
        self.cached += chunk
        self.in_steps += 1
        self.verifying += verify

    def follow(self) -> None:
        """It enters the next step as well, with the token that the step it is in will draw."""
        assert self.goes_on, f"{self.key} does not decode plainly"
        assert self.in_steps == self.verifying == 1, f"{self.key} owes {self.verifying} verdicts"
        self.in_steps = self.verifying = 2

    def leave_step(self) -> None:
        """That step is over; a verdict may follow."""
        assert self.in_steps, f"{self.key} is in no step"
        self.in_steps -= 1

    def withdraw(self, chunk: int, verify: bool) -> None:
        """The step that it entered last does not take place."""
        self.leave_step()
        self.cached -= chunk
        self.verifying -= verify

    def advance(self, accepted: list[int], bonus: int) -> tuple[int, Finish]:
        """Commit the accepted tokens and the bonus, cut at a stop token or at the limit.

        Its edge is told who moves next, with `told`, unless this is the end.

        Returns how many accepted tokens precede the last token kept, and why it ends, if it does.
        """
        assert self.draft is not None, f"{self.key} waits for no verdict"
        new, remaining = [*accepted, bonus], self.remaining
        for count, token in enumerate(new, start=1):
            if self._stops_at(token):
                self.finish = Finish.STOP
            elif count == remaining:
                self.finish = Finish.LENGTH
            else:
                continue
            new = new[:count]
            break
        self.context += new
        if self.history is not None:
            self.history.extend(new)
        if self.guide is not None:
            self.guide.advance(new)
        self.cached = self.root
        self.round += 1
        self.draft = None
        return len(new) - 1, self.finish

    def _stops_at(self, token: int) -> bool:
        if self.is_given:
            return False
        return token in self.target_stop_ids or token in self.params.stop_ids

    def told(self, turn: Turn) -> None:
        """Its edge is told who moves next, with the verdict that it was owed."""
        assert self.draft is None, f"{self.key} has a draft: it is the server's turn"
        assert self.verifying, f"{self.key} was owed no verdict"
        self.turn = turn
        self.verifying -= 1

    def tell_apart(self, accepted: int) -> None:
        """So many tokens are told in verdicts of their own, beside the one that it was owed."""
        self.round += accepted

    def credited(self) -> None:
        """Its edge, which was told to wait, may send a tree."""
        assert self.turn is Turn.WAIT, f"{self.key} gets a credit, but does not wait for one"
        self.turn = Turn.EDGE

    def end(self) -> None:
        """Nothing more will be said of it."""
        assert not self.ended, f"{self.key} ends twice"
        self.ended = True
