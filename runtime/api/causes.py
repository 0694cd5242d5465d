"""Which error of the API an exception is."""

from __future__ import annotations

import asyncio
import re

from starlette.requests import ClientDisconnect

from runtime.api.backend import UnknownKey
from runtime.api.counting import GIVEN_UP
from runtime.api.errors import APIError
from runtime.edge.net.link import ServerError
from runtime.wire.messages import ErrorCode

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


def api_error(error: BaseException) -> APIError:
    """What a client is told of an exception; those that nobody foresaw are raised again."""
    match error:
        case APIError():
            return error
        case ClientDisconnect():
            return APIError(GIVEN_UP, "the client left before its request was whole")
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
