"""What the ids of a vocabulary stand for, in 16 bytes: equal however a model is stored and padded.

docs/protocol.md, section 4.7, says it for other implementations. Knows tokens and ids, no files.
"""

import hashlib
import re
from bisect import bisect_left
from collections.abc import Container, Mapping

HASH_BYTES = 16
MAX_ROWS = 2**32
SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"

# what llama.cpp's converters write for rows without a token, and what models reserve and never use
_PADDING = re.compile(r"\[PAD\d+\]|<dummy\d+>|<unused\d+>")


class VocabularyHashes:
    """The hashes of one vocabulary below any number of rows: the peer says how many it has."""

    def __init__(self, ids: Mapping[str, int], unused_ids: Container[int] = ()):
        used = sorted(
            (index, token)
            for token, index in ids.items()
            if index not in unused_ids and not _PADDING.fullmatch(token)
        )
        self._ids = [index for index, _ in used]
        # of the first 0, 1, 2, ... used ids, so that to ask costs nothing
        self._hashes = _prefix_hashes(used)

    def below(self, rows: int) -> bytes:
        """16 bytes that differ where an id below `rows` stands for another token."""
        count = bisect_left(self._ids, rows)
        return self._hashes[count * HASH_BYTES : (count + 1) * HASH_BYTES]


def _prefix_hashes(used: list[tuple[int, str]]) -> bytes:
    digest = hashlib.sha256()
    hashes = [digest.digest()[:HASH_BYTES]]
    for index, token in used:
        # GGUF files have the blanks of whole tokens as they are, folders the mark for them.
        spelled = token.replace(SPACE_MARK, " ").encode("utf-8", errors="surrogatepass")
        digest.update(index.to_bytes(4, "little") + len(spelled).to_bytes(4, "little") + spelled)
        hashes.append(digest.digest()[:HASH_BYTES])
    return b"".join(hashes)
