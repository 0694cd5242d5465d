"""Errors in OpenAI's shape, and which one an exception is."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import msgspec
from starlette.responses import Response

from runtime.api.backend import UnknownKey
from runtime.edge.net.link import ServerError
from runtime.wire.messages import ErrorCode

RETRY_AFTER_S = 1
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    501: "not_implemented_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
# of what a server refuses, or why it is away
STATUS = {
    None: 503,
    ErrorCode.BUSY: 429,
    ErrorCode.LIMIT: 400,
    ErrorCode.CONSTRAINT: 400,
    ErrorCode.ADAPTER: 404,
    ErrorCode.DRAINING: 503,
    ErrorCode.TIMEOUT: 503,
}
OPTION = re.compile(r"--([a-z-]+)|\b([a-z_]+)=(?= )")
KEYWORD = re.compile(r"\b([a-z_]+)=(?= )")  # as Python spells an option


class APIError(Exception):
    """An answer that is an error; `param` names the field of the request that has to change."""

    def __init__(
        self, status: int, sentence: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(sentence)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """{"error": {...}} as OpenAI's clients read it."""
        kind = TYPES.get(self.status, "server_error")
        inner = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": inner}

    def response(self) -> Response:
        """With its status, and when to try again where that may help."""
        headers = {"Retry-After": str(RETRY_AFTER_S)} if self.status in (429, 503) else {}
        if self.status == 501:
            headers["x-should-retry"] = "false"  # OpenAI's clients would, as after any 5xx
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        content = msgspec.json.encode(self.body())
        return Response(content, self.status, headers, media_type="application/json")


def api_error(error: BaseException) -> APIError:
    """What a client is told of an exception; those that nobody foresaw are raised again."""
    match error:
        case APIError():
            return error
        case UnknownKey():
            return APIError(401, str(error), code="invalid_api_key")
        case ServerError():
            code = error.code.name.lower() if error.code is not None else None
            return APIError(STATUS.get(error.code, 502), str(error), code=code)
        case TimeoutError() | asyncio.TimeoutError():
            return APIError(504, str(error), code="timeout")
        case ValueError():  # what cannot be asked; configs name their own option
            named = OPTION.search(str(error))
            param = (named[1] or named[2]).replace("-", "_") if named else None
            return APIError(400, KEYWORD.sub(r"\1", str(error)), param=param)
    raise error
