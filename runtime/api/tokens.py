"""POST /tokenize, /detokenize and /tokenizer_info, in the forms of vLLM and of llama.cpp."""

from __future__ import annotations

from typing import Any

from runtime.api.backend import Backend
from runtime.api.bodies import DetokenizeBody, TokenizeBody
from runtime.api.errors import APIError


def tokenize(backend: Backend, body: TokenizeBody) -> dict[str, Any]:
    """The ids of a text or a conversation; takes a while. Raises ValueError, and APIError."""
    given = [text for text in (body.prompt, body.messages, body.content) if text is not None]
    if len(given) != 1:
        raise APIError(400, "give one of prompt, messages and content", param="prompt")
    if body.content is not None:
        ids = backend.tokenize(body.content, special=bool(body.add_special))
        pieces = [{"id": index, "piece": _piece(backend, index)} for index in ids]
        return {"tokens": pieces if body.with_pieces else ids}
    if body.messages is not None:
        ids = backend.encode(body.messages)
    else:
        ids = backend.tokenize(str(body.prompt), special=body.add_special_tokens is not False)
    tokenizer = backend.tokenizer
    return {
        "count": len(ids),
        "max_model_len": backend.max_context,
        "tokens": ids,
        "token_strs": [tokenizer.token(i) for i in ids] if body.return_token_strs else None,
    }


def detokenize(backend: Backend, body: DetokenizeBody) -> dict[str, Any]:
    """The text of ids, under the name it has in either. Raises APIError for an id of no token."""
    tokenizer = backend.tokenizer
    if unknown := [index for index in sorted(set(body.tokens)) if not tokenizer.token(index)]:
        raise APIError(400, f"token id {unknown[0]} is none of {backend.model}", param="tokens")
    text = tokenizer.decode(body.tokens)
    return {"prompt": text, "content": text}


def info(backend: Backend) -> dict[str, Any]:
    """What a client needs to know who has no tokenizer: special tokens, and the chat template."""
    return {
        **backend.tokenizer.special_tokens,
        "chat_template": backend.chat_template,
        "model_max_length": backend.max_context,
    }


def _piece(backend: Backend, index: int) -> str | list[int]:
    """A token's text, or its bytes where they are no text of their own, as llama.cpp has it."""
    spelled = backend.tokenizer.token_bytes.get(index, first=False) or b""
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return list(spelled)
