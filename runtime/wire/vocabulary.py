"""Whether both ends mean the same text by the same ids: neither may know what the other's say.

Each end tells the rows of its embedding and a hash of what the ids below them stand for. Only ids
below the rows of both are ever used, so the end with more rows compares, as it can hash its own
ids below the other's rows. Knows no tokenizer: an end's hash is a function of the rows.
"""

from collections.abc import Callable

from runtime.wire.messages import Hello, Welcome


def same_vocabulary(peer: Hello | Welcome, rows: int, own_hash: Callable[[int], bytes]) -> bool:
    """False if the peer's vocabulary is another one; an end with fewer rows cannot tell.

    own_hash(n) are 16 bytes for this end's ids below n; this end has `rows`.
    """
    if peer.vocabulary_size > rows:
        return True
    return peer.vocabulary_hash == own_hash(peer.vocabulary_size)


def other_vocabulary(hello: Hello, welcome: Welcome) -> str:
    """The sentence with which either end refuses."""
    return (
        f"{hello.model!r} ({hello.vocabulary_size} tokens) and the target {welcome.model!r} "
        f"({welcome.vocabulary_size} tokens) have different vocabularies; name the target's "
        f"tokenizer with --tokenizer, or take a draft of its family"
    )
