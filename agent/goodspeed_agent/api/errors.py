"""Errors in OpenAI's shape."""

from __future__ import annotations

import math
from typing import Any

from starlette.responses import JSONResponse

from goodspeed.errors import GoodSpeedError, InvalidRequest, LinkLost, Overloaded, Refused

__all__ = ["BadField", "error_body", "error_response"]


_ASKED_WRONGLY = frozenset({"empty_prompt", "invalid_request", "prompt_too_long", "token_out_of_range", "too_large"})
"""For these a server refuses what an agent cannot tell beforehand."""


class BadField(InvalidRequest):
    """A field of a request's body is wrong, unknown, or asks for what is not done here."""

    def __init__(self, message: str, param: str | None = None, *, code: str = "invalid_request") -> None:
        super().__init__(message, code=code, param=param)


def error_body(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    """The one shape that every OpenAI client reads."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: GoodSpeedError) -> JSONResponse:
    """What a client is told of an exception."""
    headers = {}
    match error:
        case BadField(code="model_not_found"):
            status, kind = 404, "invalid_request_error"
        case InvalidRequest():
            status, kind = 400, "invalid_request_error"
        case Refused(code=code) if code in _ASKED_WRONGLY:
            status, kind = 400, "invalid_request_error"
        case Overloaded():
            status, kind = 503, "overloaded_error"
            headers["Retry-After"] = str(math.ceil(error.retry_after_s))
        case LinkLost():
            status, kind = 503, "server_error"
        case _:
            status, kind = 502, "server_error"
    param = error.param if isinstance(error, InvalidRequest) else None
    return JSONResponse(error_body(str(error), kind, param, error.code), status, headers)
