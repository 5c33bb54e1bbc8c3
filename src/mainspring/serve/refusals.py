"""Errors as OpenAI clients expect them: `{"error": {message, type, param, code}}` and a fitting status."""

import logging
from collections.abc import Mapping

from fastapi.responses import JSONResponse

from mainspring.spec import Denied, DoesNotFit, MainspringError, NotFound, SpecError, Unavailable

log = logging.getLogger(__name__)

RETRY_AFTER_S = 5


class Refusal(SpecError):
    """A request field is wrong: `param` names it, `code` and `status` say how where 400 says too little."""

    def __init__(self, message: str, *, param: str = "", code: str = "", status: int = 400, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.param, self.code, self.status = param, code, status


def describe(error: Exception) -> tuple[int, dict[str, object]]:
    """The HTTP status and body for an error; whatever is not ours is logged and reported without detail."""
    if not isinstance(error, MainspringError):
        log.error("request failed", exc_info=error)
        return 500, _body("internal error", kind="server_error", code="internal_error")
    message = f"{error} (hint: {error.hint})" if error.hint else str(error)
    match error:
        case Refusal():
            return error.status, _body(message, param=error.param, code=error.code)
        case Denied():
            return 401, _body(message, code="invalid_api_key")
        case NotFound():
            return 404, _body(message, param="model", code="model_not_found")
        case DoesNotFit():
            return 400, _body(message, code="context_length_exceeded")
        case SpecError():
            return 400, _body(message)
        case Unavailable():
            return 503, _body(message, kind="server_error", code="unavailable")
    return error.http_status, _body(message, kind="server_error", code="failed")


def respond(error: Exception, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response for an error."""
    status, body = describe(error)
    found = dict(headers or {})
    if status == 503:
        found["retry-after"] = str(RETRY_AFTER_S)
    if status == 401:
        found["www-authenticate"] = "Bearer"
    return JSONResponse(body, status_code=status, headers=found)


def _body(message: str, *, kind: str = "invalid_request_error", param: str = "", code: str = "") -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "param": param or None, "code": code or None}}
