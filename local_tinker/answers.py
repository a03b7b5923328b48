"""What the service answers: a status and bytes, and what each error means in HTTP.

Errors that stay are 400, 401, 404, 410, 413 or 422: the SDK repeats a request after 408, 409, 429
and 5xx, for minutes, so none of these is used for them.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from local_tinker.checkpoints import StorageError
from local_tinker.wire import NotFound, UserError
from local_tinker.worker import Closed

MAX_ERROR_CHARS = 2000  # messages quote what they found, which may be long
MAX_PROBLEMS = 5  # of a request that does not fit the protocol
JSON = "application/json"
OPENAI_PREFIX = "/oai/api/v1/"  # below it requests, keys and errors are OpenAI's


class OpenAIError(Exception):
    """A refusal with the status that OpenAI has for it, and the parameter that is at fault."""

    def __init__(
        self, message: str, param: str | None = None, *, status: int = 400, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


class BodyTooLarge(Exception):
    """The request's body goes on beyond the limit."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"the request body is larger than {max_bytes} bytes; send less at a time")


EXPECTED = (
    UserError,
    NotFound,
    Closed,
    StorageError,
    ValidationError,
    ClientDisconnect,
    BodyTooLarge,
    OpenAIError,
)


class Answer(NamedTuple):
    body: bytes
    status: int = 200
    media_type: str = JSON

    def as_response(self) -> Response:
        return Response(self.body, self.status, media_type=self.media_type)


class Refusal(NamedTuple):
    """An error in words; `code` is what OpenAI calls it, where it has a name for it, and `param`
    the parameter that is at fault, which its clients are told as well."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None

    def answer(self, path: str) -> Answer:
        """In the form that clients of this path read errors in."""
        message = self.message[:MAX_ERROR_CHARS]
        if not path.startswith(OPENAI_PREFIX):
            return json_answer({"error": message}, self.status)
        kind = "authentication_error" if self.status == 401 else "invalid_request_error"
        kind = kind if self.status < 500 else "server_error"
        error = {"message": message, "type": kind, "param": self.param, "code": self.code}
        return json_answer({"error": error}, self.status)


def json_answer(content: Any, status: int = 200) -> Answer:
    return Answer(json.dumps(content).encode(), status)


def refused(error: Exception, path: str) -> Answer:
    """Say what one of the `EXPECTED` errors means, to a client of this path."""
    return _refusal(error, path.startswith(OPENAI_PREFIX)).answer(path)


def _refusal(error: Exception, is_openais: bool) -> Refusal:
    """OpenAI's clients send what was answered with 5xx again, twice at most."""
    match error:
        case OpenAIError():
            return Refusal(error.status, str(error), error.code, error.param)
        case Closed() if is_openais:
            return Refusal(503, str(error))
        case StorageError() if is_openais:
            return Refusal(500, str(error))
        case ValidationError():
            return malformed(error.errors(include_url=False, include_context=False))
        case NotFound():
            return Refusal(404, str(error))
        case BodyTooLarge():
            return Refusal(413, str(error))
        case ClientDisconnect():
            return Refusal(400, "the connection ended within the request")  # nobody reads it
        case _:
            return Refusal(400, str(error))


def malformed(problems: Any) -> Refusal:
    """Say where a request does not fit the protocol, from pydantic's list of errors."""
    shown = "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}"
        for problem in problems[:MAX_PROBLEMS]
    )
    return Refusal(422, f"the request does not fit the protocol: {shown}")
