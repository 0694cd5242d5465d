"""A chat template that means the same to the tokenizer of another model.

Templates name special tokens, such as bos_token, and leave it to a tokenizer which those are; here
they are written into it. docs/protocol.md, section 4.8. Renders nothing.
"""

import json
from collections.abc import Mapping

# the names that transformers gives to a template as variables
SPECIAL_TOKENS = tuple(
    f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
)


def portable(source: str, tokens: Mapping[str, str]) -> str:
    """The template with a line before it for each special token that it names.

    source: Jinja; tokens: what the template's own tokenizer calls so, by name.
    """
    # In Jinja a name that was never set stands for itself: undefined.
    values = {
        name: json.dumps(tokens[name], ensure_ascii=False) if name in tokens else "undefined"
        for name in SPECIAL_TOKENS
        if name in source
    }
    # A line each: the newline after a block is dropped, and the template begins a line.
    settings = "".join(f"{{% set {name} = {value} %}}\n" for name, value in values.items())
    return (settings + source).encode("utf-8", "replace").decode()
