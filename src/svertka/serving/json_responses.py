"""Responses in JSON, and the responses to errors that every server of svertka gives."""

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from svertka.serving.http_error import HTTPError


class ASCIIJSONResponse(JSONResponse):
    """JSON in ASCII: class names may hold lone surrogates, which UTF-8 cannot encode."""

    def render(self, content: Any) -> bytes:
        """Encode `content`; NaN and infinity become null."""
        try:
            return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
        except ValueError:
            return json.dumps(_replace_nan(content), allow_nan=False, separators=(",", ":")).encode()


def _replace_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _replace_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_replace_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


async def _handle_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPError)
    return ASCIIJSONResponse({"error": error.sentence}, error.status, error.headers)


async def _handle_starlette_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return ASCIIJSONResponse({"error": error.detail.lower()}, error.status_code, error.headers)


# For FastAPI(exception_handlers=…).
ERROR_HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    HTTPError: _handle_http_error,
    HTTPException: _handle_starlette_error,
}
