"""The text model in a checkpoint that sees or hears as well: its configuration and its tensors.

Only text is ever asked of a model here, so towers for pictures and sound stay unread. Knows names,
not what they mean.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

Tensor = TypeVar("Tensor")

# Those whose text part alone computes what the whole model computes of a text.
WITH_TEXT_PART = ("gemma3", "gemma3n", "gemma4", "llama4", "mistral3")

# Said once for the whole model, and not again for its text part.
_INHERITED = (
    *("tie_word_embeddings", "quantization_config", "torch_dtype", "dtype"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)
# As transformers 4 saved them, and as it saves them now.
TEXT_PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
    "lm_head.": "lm_head.",
}


def text_fields(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config.json of the text part; the fields themselves where there is no such part."""
    text = fields.get("text_config")
    if fields.get("model_type") not in WITH_TEXT_PART or not isinstance(text, dict):
        return fields
    return {**{name: fields[name] for name in _INHERITED if name in fields}, **text}


def text_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the text part, under the names they have in a text model; all where it is all."""
    if not any(name.startswith(("language_model.", "model.language_model.")) for name in tensors):
        return dict(tensors)
    return {
        text + name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        for prefix, text in TEXT_PREFIXES.items()
        if name.startswith(prefix)
    }
