"""The routes of OpenAI's API, over any backend."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from runtime.api import chat, completions, responses, tokens
from runtime.api.absent import NOT_STORED, absent
from runtime.api.adapted import Adapted, asked_for, models_of
from runtime.api.answering import Answering, encode
from runtime.api.backend import Backend, BackendOf
from runtime.api.bodies import ChatBody, CompletionBody, DetokenizeBody, Known, TokenizeBody, read
from runtime.api.causes import api_error
from runtime.api.errors import APIError
from runtime.api.responses import ResponseBody

LONG_BYTES = 16 * 1024  # some milliseconds of any tokenizer

Endpoint = Callable[[Request], Awaitable[Response]]


def application(backend_of: BackendOf, more: Sequence[BaseRoute] = ()) -> Starlette:
    """The API as an app of its own, with `more` routes beside it."""
    handlers = {HTTPException: _refused, Exception: _broken}
    app = Starlette(routes=[*routes(backend_of), *more], exception_handlers=handlers)
    app.router.redirect_slashes = False  # no body goes along with it, nor a key everywhere
    return app


def routes(backend_of: BackendOf) -> list[BaseRoute]:
    """Those of the API, for any app."""
    api = _API(backend_of)
    return [
        Route("/v1/models", told(api.models), methods=["GET"]),
        Route("/v1/models/{model:path}", told(api.model), methods=["GET"]),
        Route("/v1/chat/completions", told(api.chat), methods=["POST"]),
        Route("/v1/responses", told(api.responses), methods=["POST"]),
        Route("/v1/responses/input_tokens", told(api.input_tokens), methods=["POST"]),
        Route("/v1/responses/{id}", told(api.response), methods=["GET", "DELETE"]),
        Route("/v1/completions", told(api.completions), methods=["POST"]),
        Route("/tokenize", told(api.tokenize), methods=["POST"]),
        Route("/detokenize", told(api.detokenize), methods=["POST"]),
        Route("/tokenizer_info", told(api.tokenizer_info), methods=["GET"]),
    ]


def to_look_after(unready: Callable[[], str]) -> list[BaseRoute]:
    """/health and /ready, which need no key; `unready` says why no requests are taken, if none."""

    async def health(request: Request) -> Response:
        return _json({"status": "ok"})

    async def ready(request: Request) -> Response:
        if reason := unready():
            return APIError(503, reason).response()
        return _json({"status": "ok"})

    return [Route("/health", health), Route("/ready", ready)]


class _API:
    """The endpoints."""

    def __init__(self, backend_of: BackendOf) -> None:
        self._backend_of, self._created = backend_of, int(time.time())

    async def models(self, request: Request) -> Response:
        backend = await self._ready(request)
        data = [self._model(model) for model in models_of(backend)]
        # Codex takes a list without `models` for an error, and one with none for what it is
        return _json({"object": "list", "data": data, "models": []})

    async def model(self, request: Request) -> Response:
        if not (name := request.path_params["model"]):
            raise HTTPException(404)
        backend = asked_for(name, await self._ready(request))
        return _json(self._model(backend))

    async def chat(self, request: Request) -> Response:
        backend, body = await self._asked(request, ChatBody)
        use = await asyncio.to_thread(chat.use_of, body, backend)
        asked = chat.asked(body, use)
        return Answering(backend, asked, chat.ChatForm(backend, asked, use), _is_long(request))

    async def responses(self, request: Request) -> Response:
        backend, body = await self._asked(request, ResponseBody)
        use = await asyncio.to_thread(responses.use_of, body, backend)
        asked = responses.asked(body, use)
        form = responses.ResponseForm(backend, asked, body, use)
        return Answering(backend, asked, form, _is_long(request))

    async def input_tokens(self, request: Request) -> Response:
        backend, body = await self._asked(request, ResponseBody)
        use = await asyncio.to_thread(responses.use_of, body, backend)
        asked = responses.asked(body, use)
        ids = await encode(backend, asked, asked.prompts[0])
        return _json({"object": "response.input_tokens", "input_tokens": len(ids)})

    async def response(self, request: Request) -> Response:
        await self._ready(request)
        raise APIError(404, NOT_STORED)

    async def completions(self, request: Request) -> Response:
        backend, body = await self._asked(request, CompletionBody)
        asked = completions.asked(body)
        form = completions.CompletionForm(backend, asked)
        return Answering(backend, asked, form, _is_long(request))

    async def tokenize(self, request: Request) -> Response:
        return _json(
            await asyncio.to_thread(tokens.tokenize, *await self._asked(request, TokenizeBody))
        )

    async def detokenize(self, request: Request) -> Response:
        return _json(
            await asyncio.to_thread(tokens.detokenize, *await self._asked(request, DetokenizeBody))
        )

    async def tokenizer_info(self, request: Request) -> Response:
        return _json(tokens.info(await self._ready(request)))

    async def _asked(self, request: Request, kind: type[Known]) -> tuple[Backend, Known]:
        """Who may ask is known before the body is read."""
        backend = await self._ready(request)
        body = await read(request, kind)
        return asked_for(body.model, backend), body

    async def _ready(self, request: Request) -> Backend:
        backend = await self._backend_of(key_of(request))
        if reason := backend.unready():
            raise APIError(503, reason)
        return backend

    def _model(self, backend: Backend) -> dict[str, Any]:
        of = {"parent": backend.whole.model} if isinstance(backend, Adapted) else {}
        return {
            **of,
            "id": backend.model,
            "object": "model",
            "created": self._created,
            "owned_by": "specedge",
            "max_model_len": backend.max_context,
            "context_length": backend.max_context,
        }


def _is_long(request: Request) -> bool:
    """Whether its prompt may be; the length of the body is at hand."""
    return int(request.headers.get("content-length", LONG_BYTES)) >= LONG_BYTES


def key_of(request: Request) -> str | None:
    """The key that a request brings, None where it brings none."""
    # headers are bytes, which Starlette takes for Latin-1
    sent = request.headers.get("authorization", "").encode("latin-1").decode(errors="replace")
    scheme, _, key = sent.partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else None


def _json(content: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")


def told(endpoint: Endpoint) -> Endpoint:
    """An endpoint whose errors are answers."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Exception as error:
            return api_error(error).response()

    return answer


async def _refused(request: Request, error: Exception) -> Response:
    """What Starlette finds: no such path, or another method."""
    assert isinstance(error, HTTPException), "of the handlers above"
    method, path = request.method, request.url.path
    response = absent(error.status_code, method, path, request.app.routes).response()
    response.headers.update(error.headers or {})
    return response


async def _broken(request: Request, error: Exception) -> Response:
    """What nobody foresaw; it is raised again behind this, and so comes into the log."""
    return APIError(500, "this endpoint failed; its log says how").response()
