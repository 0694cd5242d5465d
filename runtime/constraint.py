"""What an answer may be, as a text that says so. Knows nothing of the language of that text."""

from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["json_schema", "regex", "lark", "tokens"]

MOST_BYTES = 60 * 1024 - 9  # a frame of the protocol holds no more


@dataclass(frozen=True)
class Constraint:
    """Only an answer that fits `text` is written, whatever the model would rather say.

    kind   "json_schema": JSON that is valid under the schema; "regex": a text that the expression
           matches as a whole; "lark": a text of the grammar, in llguidance's form of Lark;
           "tokens": ids with a space between two, which are the answer whatever the model would
           say, to hear their log-probabilities
    text   1 to 61,431 bytes of UTF-8

    Raises ValueError for another kind or size; what it means is looked at by the server.
    """

    kind: Kind
    text: str

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            kinds = ", ".join(get_args(Kind))
            raise ValueError(f"a constraint cannot be of the kind {self.kind!r}; there are {kinds}")
        try:
            size = len(self.text.encode())
        except (AttributeError, UnicodeEncodeError):
            raise ValueError(f"the text of a constraint is {self.text!r}; expected text") from None
        if not 1 <= size <= MOST_BYTES:
            raise ValueError(f"a constraint has {size} bytes; there are 1 to {MOST_BYTES}")
