"""Addresses of services, to which keys are sent: what can be one, and what is private in it."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

from settings.config_file import as_shown
from settings.groups import Name

SCHEMES = ("http", "https")
WANTED = (
    "an address such as https://HOST or http://127.0.0.1:8000, without user name, password, query "
    "or fragment"
)


def is_address(text: str) -> bool:
    """Whether requests can be sent there, with nothing in it that may be a secret."""
    if any(sign in text for sign in "@?#\\") or any(one.isspace() for one in text):
        return False
    try:
        url = urlsplit(text)
        return url.scheme in SCHEMES and bool(url.hostname) and url.port != 0
    except ValueError:  # a port that is none, half of an IPv6 address
        return False


def without_secrets(address: str) -> str:
    """An address as messages show it: without user name, password, query and fragment."""
    bare = address.partition("?")[0].partition("#")[0]
    return f"[hidden]@{bare.rpartition('@')[2]}" if "@" in bare else bare


def refused(what: str, address: str) -> str:
    """The sentence that says why `what` names no address."""
    return f"{what}: input should be {WANTED}; found {as_shown(without_secrets(address))!r}."


def _checked(text: str) -> str:
    if not is_address(text):
        raise ValueError(refused("base_url", text))  # with its own words, which hide a password
    return text


Address = Annotated[Name, AfterValidator(_checked)]
