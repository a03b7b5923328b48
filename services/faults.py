"""What a Tinker service's errors mean to a user: one message each, and a word for the ledger.

The SDK has retried by then what can be retried; what comes back to us ends the process, with the
run resumable. Pure: an exception in, a `ServiceError` or None out.
"""

from __future__ import annotations

import re

import tinker
from tinker.lib.retryable_exception import RetryableException

from errors import SENT_AGAIN, ServiceError

# What an SDK call can raise besides `tinker.TinkerError`; a ValueError only with these words.
SDK_ERRORS = (tinker.TinkerError, RetryableException, ValueError)
NO_SUCH_REQUEST = (405, 501)
_NO_RESULT = "Error retrieving result"
_STATUS = re.compile(r"with status (\d{3})|Error code: (\d{3})")

_MEANINGS = {
    "session_lost": (
        "no longer knows this session or request: the service was restarted, or the session "
        "expired while nothing was heard of it. Start the service again if it is yours"
    ),
    "future_lost": "has lost the result of a request that it had accepted",
    "refused_key": "refuses the key. Check that TINKER_API_KEY holds one that is still valid",
    "out_of_quota": "will not work on credit any longer. Settle the account's billing or quota",
    "rate_limited": "still limits the rate after all retries. Wait a while",
    "user_error": "refuses a request as wrong",
    "too_long": "refuses a request that is longer than the model's context",
    "server_error": "failed on its own side",
    "unreachable": "cannot be reached any more. Start it again, or check the network",
}
# What the SDK adds to a service's words, of use to its own authors.
_SDK_WORDS = re.compile(r"^(Request failed: )+| ?for self\.request_id=.*$", re.DOTALL)
_TOO_LONG = re.compile(r"\bcontext (of|length|window|size)\b|'s context\b", re.IGNORECASE)
_BY_STATUS = {
    **dict.fromkeys((400, 409, 413, 422, 425), "user_error"),
    **dict.fromkeys((401, 403), "refused_key"),
    402: "out_of_quota",
    404: "session_lost",
    410: "future_lost",
    429: "rate_limited",
}


def explain(error: Exception, base_url: str | None, before: str = "") -> ServiceError | None:
    """What an error of the SDK means; None for one that is not about the service. `before` is the
    sentence that says what the service had held up by then, where it had."""
    fault = _fault(error)
    if fault is None:
        return None
    remedy = ""
    if fault == "user_error" and _TOO_LONG.search(str(error)):
        fault = "too_long"
        remedy = (
            f" {SENT_AGAIN}: start a new run with a lower max_seq_length, or for a question with a "
            "lower evaluation.max_tokens, or without what is so long."
        )
    explained = ServiceError(
        f"The service at {base_url or 'Tinker'} {_MEANINGS[fault]} ({type(error).__name__}: "
        f"{said_by(error)}).{before}{remedy} What was saved before is safe."
    )
    explained.fault = fault
    return explained


def said_by(error: Exception) -> str:
    """What the service said, without what the SDK adds of itself."""
    return _SDK_WORDS.sub("", str(error)).strip() or str(error)


def is_gone(error: Exception) -> bool:
    """Whether an error on naming a checkpoint says that it is expired, deleted or unknown."""
    return _fault(error) in ("user_error", "session_lost", "future_lost")


def is_refusal(error: Exception) -> bool:
    """Whether a service says that a request is wrong, so that it has done nothing for it. A
    conflict may be with the same request, sent twice."""
    return _fault(error) == "user_error" and not isinstance(error, tinker.ConflictError)


def is_unknown_request(error: Exception) -> bool:
    """Whether a service says that it has no such request at all, for whatever it is asked."""
    return isinstance(error, tinker.APIStatusError) and error.status_code in NO_SUCH_REQUEST


def _fault(error: Exception) -> str | None:
    if isinstance(error, RetryableException):
        return "future_lost"
    if isinstance(error, tinker.APIStatusError):
        return _of_status(error.status_code)
    if isinstance(error, tinker.APIConnectionError):
        return "unreachable"
    if isinstance(error, tinker.RequestFailedError):
        return "user_error" if error.category == "user" else "server_error"
    if isinstance(error, tinker.TinkerError):
        return "server_error"
    if isinstance(error, ValueError) and str(error).startswith(_NO_RESULT):
        found = _STATUS.search(str(error))
        return _of_status(int(found[1] or found[2])) if found else "future_lost"
    return None


def _of_status(status: int) -> str:
    return _BY_STATUS.get(status, "server_error" if status >= 500 else "user_error")
