"""Who asks: whether the key is known, and whether the SDK is new enough to be understood."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable

from starlette.types import Scope

from local_tinker.answers import OPENAI_PREFIX, Refusal

BEARER = b"bearer "
# The first version whose training data and samples are protobuf; its sampler knows no other form.
OLDEST_SDK = (0, 25)
_USER_AGENT = re.compile(rb"Tinker/Python (\d+)\.(\d+)\S*")


def known_key(scope: Scope, keys: Iterable[str]) -> str | None:
    """Return the key that the request was sent with, or None when it is none of `keys`."""
    given = _header(scope, b"x-api-key")
    if not given and scope["path"].startswith(OPENAI_PREFIX):
        given = _bearer(scope)
    # Compare with every key, so that the time taken tells nothing about any of them.
    matches = [key for key in keys if hmac.compare_digest(key.encode(), given)]
    return matches[0] if matches else None


def key_refusal(scope: Scope) -> Refusal:
    """Say what is wrong with the key of a request; never what it is."""
    if scope["path"].startswith(OPENAI_PREFIX):
        found = (
            "the API key is missing or wrong; send `Authorization: Bearer KEY` with the key that "
            "the service printed at its start"
        )
    elif _bearer(scope) and not _header(scope, b"x-api-key"):
        found = (
            "the key came as `Authorization: Bearer`, which is not read here; send it as "
            f"`X-API-Key: KEY`. Only requests below {OPENAI_PREFIX} take a Bearer key"
        )
    else:
        found = "X-API-Key is missing or wrong; use the key that the service printed at its start"
    return Refusal(401, found, "invalid_api_key")


def sdk_refusal(scope: Scope) -> Refusal | None:
    """Say so when the SDK is one that this service cannot serve; every version sends its own."""
    found = _USER_AGENT.search(_header(scope, b"user-agent"))
    if found is None or (int(found[1]), int(found[2])) >= OLDEST_SDK:
        return None
    version = found[0].decode("latin-1").rpartition(" ")[2]
    oldest = ".".join(map(str, OLDEST_SDK))
    return Refusal(
        400,
        f"this is tinker {version}, and the service needs {oldest} or newer, which sends training "
        f"data as protobuf; run `pip install 'tinker>={oldest}'`",
    )


def _bearer(scope: Scope) -> bytes:
    given = _header(scope, b"authorization")
    return given[len(BEARER) :].strip() if given.lower().startswith(BEARER) else b""


def _header(scope: Scope, name: bytes) -> bytes:
    for found, value in reversed(scope["headers"]):  # a proxy puts its own behind the client's
        if found == name:
            return value
    return b""
