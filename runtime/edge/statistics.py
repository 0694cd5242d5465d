"""What an answer took, counted verdict by verdict. Knows no clock and no connection."""

from dataclasses import dataclass

from runtime.edge.loop import Round
from runtime.wire.messages import Turn


@dataclass
class Statistics:
    """What one answer took.

    Bytes are those of whole frames over the connection in both directions meanwhile: of answers
    that are written at the same time each counts the others' as well.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, that the server had in its cache
    read_tokens: int = 0  # of the prompt, that it has there now, as far as it has said
    tokens: int = 0
    verifications: int = 0
    drafted_nodes: int = 0  # those offered unasked among them, of which the server tries few
    accepted_nodes: int = 0  # of these, in the text
    bytes_sent: int = 0
    bytes_received: int = 0
    first_token_s: float = 0.0
    seconds: float = 0.0
    reconnects: int = 0  # the link broke, and a new one was found
    verify_ms: int = 0  # as the server reports it; a step is counted by each request in it
    passes: int = 0  # of the draft model, before trees were sent
    passes_ahead: int = 0  # and while they were in flight
    rounds_ahead: int = 0  # verdicts before which nodes had been expanded in flight
    hits: int = 0  # of these, verdicts below which the next tree had begun
    expanded_ahead: int = 0  # nodes expanded in flight
    reused_ahead: int = 0  # of these, nodes that the verdict left of use

    @property
    def tokens_per_second(self) -> float:
        """Over the whole answer, the prompt's time included."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_verification(self) -> float:
        """Tokens gained by one round of draft and verification, the first token not counted."""
        return (self.tokens - 1) / (self.verifications - 1) if self.verifications > 1 else 0.0

    @property
    def bytes_per_round(self) -> float:
        """Tree up and verdict down; the prompt is counted too."""
        total = self.bytes_sent + self.bytes_received
        return total / self.verifications if self.verifications else 0.0

    @property
    def server_ms_per_token(self) -> float:
        """What a token costs the server: its verification steps over the tokens they gave."""
        return self.verify_ms / self.tokens if self.tokens else 0.0

    def count(self, round_: Round) -> None:
        """Add one verdict."""
        self.tokens += len(round_.tokens)
        self.drafted_nodes += len(round_.commit.sent) + round_.offered
        is_offered = round_.verdict.turn is Turn.MORE  # and the step's own verdict is to come
        self.verifications += not is_offered
        path = round_.commit.sent.path(round_.verdict.node)
        # a stop string may end the text within the path
        self.accepted_nodes += min(len(path) + is_offered, len(round_.tokens))
        self.verify_ms += round_.verdict.verify_ms
        self.passes += round_.passes
        self.passes_ahead += round_.passes_ahead
        self.rounds_ahead += round_.commit.n_ahead > 0
        self.hits += round_.commit.hit and round_.commit.n_ahead > 0
        self.expanded_ahead += round_.commit.n_ahead
        self.reused_ahead += round_.commit.n_reused
