"""The keys of this process: taken out of the environment, and out of every text that leaves it."""

from __future__ import annotations

import contextlib
import html
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from errors import ConfigError

TINKER, EVALOPS = "TINKER_API_KEY", "EVALOPS_API_KEY"
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$", re.IGNORECASE)
MIN_CHARS = 8  # a shorter value is no secret, and its letters may stand anywhere

# Log records, by logger and level, that a filter keeps from everybody: going through them for keys
# would cost more than they do, and there is one for each request.
UNHEARD: set[tuple[str, int]] = set()


@dataclass(frozen=True)
class Keys:
    """What calls are signed with. Neither `repr` nor a child process has them."""

    tinker: str | None = field(default=None, repr=False)
    evalops: str | None = field(default=None, repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """The process's environment, with the keys."""
        held = {TINKER: self.tinker, EVALOPS: self.evalops}
        return {**os.environ, **{name: key for name, key in held.items() if key is not None}}

    def redacted(self, text: str) -> str:
        """The text without the keys, and without what the environment holds as a secret."""
        for name, value in self.environment.items():
            if name in (TINKER, EVALOPS) or _SECRET_NAME.search(name):
                text = redact(text, value)
        return text


@contextlib.contextmanager
def taken() -> Iterator[Keys]:
    """Take the keys out of the environment for as long as this process works, and no longer.

    The space around them, such as the newline of the file that they came from, is no part of them.
    """
    before = {name: os.environ.pop(name) for name in (TINKER, EVALOPS) if name in os.environ}
    held = {name: key.strip() or None for name, key in before.items()}
    keys = Keys(held.get(TINKER), held.get(EVALOPS))
    try:
        with _redacted_logs(keys):
            yield keys
    finally:
        os.environ.update(before)


def refuse_unsendable(name: str, key: str) -> None:
    """Raise `ConfigError` for a key that no request's header can carry."""
    if not all("!" <= char <= "~" for char in key):
        raise ConfigError(
            f"{name} has spaces, control or non-ASCII characters inside, which no request can "
            "carry. Copy the key once more, and export it."
        )


def redact(text: str, secret: str) -> str:
    """Return `text` without the secret, in any letter case and however it is escaped: for JSON, in
    a URL, in HTML or as Python shows strings, also several times over."""
    if len(secret) < MIN_CHARS:
        return text
    return re.sub("".join(map(_any_form, secret)), "[redacted]", text, flags=re.IGNORECASE)


def _any_form(character: str) -> str:
    """A pattern of a character as escaped texts have it."""
    forms = [
        r"\\+" if character == "\\" else r"\\*" + re.escape(character),
        "".join(f"%(?:25)*{byte:02x}" for byte in character.encode()),
        rf"\\+(?:u{ord(character):04x}|x{ord(character):02x})",
    ]
    if (escaped := html.escape(character)) != character:
        forms.append(escaped.replace("&", "&(?:amp;)*", 1))
    return f"(?:{'|'.join(forms)})"


@contextlib.contextmanager
def _redacted_logs(keys: Keys) -> Iterator[None]:
    """Keep the keys out of log records: the SDK logs what servers answer, who may quote them."""
    before = logging.getLogRecordFactory()

    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        if (record.name, record.levelno) in UNHEARD:
            return record
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # somebody's mistake, which must not break the call
            message = f"{record.msg} {record.args}"
        record.msg, record.args = keys.redacted(message), None
        if record.exc_info:
            record.exc_text = keys.redacted(_FORMATTER.formatException(record.exc_info))
            record.exc_info = None
        return record

    logging.setLogRecordFactory(make)
    try:
        yield
    finally:
        logging.setLogRecordFactory(before)


_FORMATTER = logging.Formatter()
