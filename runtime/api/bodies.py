"""Requests as they come: their JSON, checked field by field before anything is done with them.

What is not known here is passed over, as OpenAI's own clients send more than anyone answers; but a
field that would change the text, and is not supported, is refused by its name.
"""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta
from starlette.requests import Request

from runtime.api.errors import APIError
from runtime.api.structured import StructuredOutputs

MAX_BODY_BYTES = 8 * 2**20
MAX_QUICK_BYTES = 64 * 1024  # read in about a millisecond
MAX_DEPTH = 64
MAX_ANSWERS = 128  # to one request
MISSING = re.compile(r"required field `(\w+)`")
# half of a character, as a text in JavaScript has it that was cut within one
LONE = re.compile(
    rb"(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]|"
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
)
PATH = re.compile(r" - at (?:`key` in )?`\$\.?(?P<path>.*)`$")

Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Repetition = Annotated[float, Meta(ge=0.01, le=100)]
Likeliest = Annotated[int, Meta(ge=0, le=20)]
Tokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class StreamOptions(msgspec.Struct):
    """Of a streamed answer."""

    include_usage: bool | None = None


class TemplateVariables(msgspec.Struct, forbid_unknown_fields=True):
    """What a request may tell the chat template."""

    enable_thinking: bool | None = None


class Asking(msgspec.Struct, kw_only=True):
    """What every endpoint knows. None is the same as nothing, here and below."""

    model: str | None = None


class Body(Asking, kw_only=True):
    """What both endpoints that write text know."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_ANSWERS)] | None = None
    max_tokens: Tokens | None = None
    stop: str | Annotated[list[str], Meta(max_length=64)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Share | None = None
    min_p: Share | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Repetition | None = None
    repeat_penalty: Repetition | None = None  # llama.cpp's name
    response_format: dict[str, Any] | None = None
    structured_outputs: StructuredOutputs | None = None
    # what ids and values may be is the edge's to check, which names the token that is wrong
    logit_bias: dict[str, Any] | None = None


class ChatBody(Body, kw_only=True):
    """POST /v1/chat/completions"""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Likeliest | None = None
    chat_template_kwargs: TemplateVariables | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class CompletionBody(Body, kw_only=True):
    """POST /v1/completions"""

    prompt: str | list[Any]
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    logprobs: Likeliest | bool | None = None
    echo: bool | None = None


class TokenizeBody(Asking, kw_only=True):
    """vLLM's names, `prompt` or `messages`; llama.cpp's is `content`."""

    prompt: str | None = None
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)] | None = None
    content: str | None = None
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    return_token_strs: bool | None = None
    with_pieces: bool | None = None


class DetokenizeBody(Asking, kw_only=True):
    """The same in both."""

    tokens: list[Annotated[int, Meta(ge=0, le=2**31 - 1)]]


# field -> the values, besides null, that leave the text as it is without the field
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "adaptive_target": (-1,),
    "add_generation_prompt": (True,),
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "continue_final_message": (False,),
    "custom_logit_processor": (),
    "documents": ([],),
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "ebnf": (),
    "echo": (False,),  # of a chat
    "enable_thinking": (),
    "function_call": ("none",),
    "functions": ([],),
    "grammar": ("",),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_stop_str_in_output": (False,),
    "input_ids": (),
    "json_schema": (),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "lora": ([],),
    "lora_path": (),
    "mirostat": (0,),
    "modalities": (["text"],),
    "n_predict": (-1,),
    "n_probs": (0,),
    "no_stop_trim": (False,),
    "prompt_embeds": (),
    "prompt_logprobs": (0,),
    "reasoning_budget": (-1,),
    "reasoning_effort": (),
    "regex": (),
    "samplers": (),
    "skip_special_tokens": (True,),
    "stop_regex": (),
    "stop_token_ids": ([],),
    "structural_tag": (),
    "suffix": ("",),
    "t_max_predict_ms": (0, -1),
    "thinking": (),
    "thinking_budget": (),
    "thinking_token_budget": (),
    "top_a": (0,),
    "top_n_sigma": (-1, 0),
    "truncate_prompt_tokens": (),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "verbosity": (),
    "web_search_options": (),
    "xtc_probability": (0,),
}

Known = TypeVar("Known", bound=Asking)


async def read(request: Request, kind: type[Known]) -> Known:
    """The body of a request. Raises APIError."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise APIError(400, f"the body is encoded as {encoding!r:.40}; send it as it is")
    body = await read_bytes(request)
    if len(body) <= MAX_QUICK_BYTES:
        return parse(body, kind)
    # edges of a server, or other answers of an edge, wait for the same event loop
    return await asyncio.to_thread(parse, body, kind)


async def read_bytes(request: Request) -> bytes:
    """At most MAX_BODY_BYTES of it, whatever its header says. Raises APIError."""
    chunks, length = [], 0
    async for chunk in request.stream():
        length += len(chunk)
        if length > MAX_BODY_BYTES:
            raise APIError(413, f"the body is longer than {MAX_BODY_BYTES} bytes; send less")
        chunks.append(chunk)
    return b"".join(chunks)


def parse(body: bytes, kind: type[Known]) -> Known:
    """Raises APIError, with the field that is wrong as its param."""
    fields = _object(body)
    for name, neutral in NEUTRAL.items():
        value = None if name in kind.__struct_fields__ else fields.get(name)
        if value is not None and not any(_same(value, allowed) for allowed in neutral):
            sentence = f"{name} would change the text, and is not supported here; leave it out"
            raise APIError(400, sentence, param=name, code="unsupported_parameter")
    for name, value in fields.items():
        if _is_deeper(value, MAX_DEPTH):
            raise APIError(400, f"{name} is nested more than {MAX_DEPTH} deep", param=name)
    try:
        return msgspec.convert(fields, kind, str_keys=True)
    except msgspec.ValidationError as error:
        sentence, param = str(error), None
        if found := PATH.search(sentence):
            param = found["path"]
            sentence = f"{param}: {sentence[: found.start()]}"
        elif missing := MISSING.search(sentence):
            param = missing[1]
        raise APIError(400, sentence, param=param) from error


def _object(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        half = LONE.search(body)
        reason = f"{half[0].decode()} is half of a character (a lone surrogate)" if half else error
        raise APIError(400, f"the body cannot be read as a JSON object: {reason}") from error


def _same(value: Any, allowed: Any) -> bool:
    # in Python false is 0, and a field that takes one does not take the other
    return value == allowed and isinstance(value, bool) == isinstance(allowed, bool)


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether lists and objects are in one another more often; level by level: it may be long."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(depth):
        if not level:
            return False
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    return bool(level)
