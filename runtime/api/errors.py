"""Errors in OpenAI's shape."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

RETRY_AFTER_S = 1
STOPPING = "the answer was ended: this endpoint is stopping"
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
        content = json.dumps(self.body())
        return Response(content, self.status, headers, media_type="application/json")
