"""One request on the server: the few numbers it owns; everything else is derived from them.

Knows nothing of models, sockets or clocks. The `context` is the accepted text, prompt included.
Its last token is the **root**: the only accepted token whose KV the cache does not have once the
prompt is done. What a step does for a session follows from `context`, `cached` and `draft` alone,
so a prompt, a plain decoding step and a tree are one case:

    tokens   [0, cached)               in the KV cache; full pages of it may be shared
             [cached, len(context)-1)  to be prefilled, in chunks
             len(context)-1            the root, verified together with the draft
"""

from collections.abc import Hashable
from dataclasses import dataclass, field

from runtime.server.prefix_cache import Key
from runtime.tree import Tree
from runtime.wire.messages import Draft, Finish, Open

NO_NODES = Tree()


class RejectedDraft(ValueError):
    """A draft that does not fit the session; the message is sent to the edge."""


@dataclass(eq=False)
class Session:
    """State of one request. `key` names it among all edges; `pages` hold its KV.

    Only sessions of one `tenant` share pages. Two sessions are equal only if they are the same.
    """

    key: Hashable
    params: Open
    limit: int  # the context may grow to this many tokens
    context: list[int]
    target_stop_ids: frozenset[int] = frozenset()  # that end it beside the request's own
    tenant: Hashable = ""
    pages: list[int] = field(default_factory=list)
    page_keys: list[Key] = field(default_factory=list)  # of the context's full pages, so far known
    published: int = 0  # leading pages that others may find
    cached: int = 0
    admission: int = 0  # of all admissions, which one was its last
    preemptions: int = 0
    round: int = 0  # the verdict that is owed next; 0 follows the prompt
    draft: Tree | None = NO_NODES  # what is ready to be verified; the prompt alone at first
    ready_s: float = 0.0  # when the draft arrived
    verdict_s: float | None = None  # when the last verdict left
    finish: Finish = Finish.NONE

    @property
    def root(self) -> int:
        """Index of the root in the context."""
        return len(self.context) - 1

    @property
    def uncached(self) -> int:
        """Tokens before the root that still have to be prefilled."""
        return self.root - self.cached

    @property
    def remaining(self) -> int:
        """Tokens that may still be produced."""
        return self.limit - len(self.context)

    def accept_draft(self, message: Draft, now_s: float) -> None:
        """Make a draft ready to be verified. Raises RejectedDraft."""
        if message.base != len(self.context):
            raise RejectedDraft(
                f"round {message.round} drafts after {message.base} tokens, but the accepted text "
                f"has {len(self.context)}"
            )
        draft = Tree(message.tokens, message.parents)
        deepest = max(draft.depths(), default=0)
        if deepest >= self.remaining:
            raise RejectedDraft(
                f"the tree is {deepest} tokens deep, but only {self.remaining} tokens are left; "
                f"draft at most {self.remaining - 1} deep"
            )
        self.draft, self.ready_s = draft, now_s

    def advance(self, accepted: list[int], bonus: int) -> tuple[int, Finish]:
        """Commit the accepted tokens and the bonus, cut at a stop token or at the limit.

        Returns how many accepted tokens precede the last token kept, and why it ends, if it does.
        """
        new = [*accepted, bonus]
        for count, token in enumerate(new):
            if token in self.target_stop_ids or token in self.params.stop_ids:
                self.finish = Finish.STOP
            elif count + 1 == self.remaining:
                self.finish = Finish.LENGTH
            if self.finish is not Finish.NONE:
                new = new[: count + 1]
                break
        self.context += new
        self.cached = self.root
        self.round += 1
        self.draft = None
        return len(new) - 1, self.finish
