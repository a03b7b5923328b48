"""What Inspect does for every sample, and this project does not need, left out while it evaluates.

Inspect prepares each sample for watchers (a trace file, a client that could attach) and looks
through what it records several times. `economy` says the same things for less: the same answers,
scores, events and logs. It replaces functions of Inspect that are not public, for the time of one
evaluation; tests/test_inspect_economy.py fails where a version of Inspect lacks one of them.
What each was worth: benchmarks/RESULTS.md, by benchmarks/eval_overhead.py.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import importlib
import logging
import os
import re
import tempfile
import types
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Replacement(NamedTuple):
    """A name of a module, and what makes the cheaper value from the one that is there."""

    module: str
    name: str
    cheaper: Callable[[Any], Any]


@contextlib.contextmanager
def economy() -> Iterator[None]:
    """Evaluate at less cost of our own beside the sampling; all is as before at the end."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_rare_garbage_collection())
        stack.enter_context(_quick_copies())
        stack.enter_context(_no_traces())
        stack.enter_context(_nobody_attaches())
        for replacement in REPLACEMENTS:
            stack.enter_context(_replaced(replacement))
        yield


@contextlib.contextmanager
def _replaced(replacement: Replacement) -> Iterator[None]:
    module = importlib.import_module(replacement.module)
    before = getattr(module, replacement.name)
    setattr(module, replacement.name, replacement.cheaper(before))
    try:
        yield
    finally:
        setattr(module, replacement.name, before)


@contextlib.contextmanager
def _rare_garbage_collection() -> Iterator[None]:
    """Collect rarely: a sample makes thousands of objects that are no cycles, and looking through
    them as often as by default is a quarter of its cost."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextlib.contextmanager
def _quick_copies() -> Iterator[None]:
    """Copy a dict without a call for each text, number and None in it: nine in ten of the 600 calls
    that copying makes for a sample (Inspect copies its settings and states whole)."""
    dispatch: dict[type, Any] = getattr(copy, "_deepcopy_dispatch")  # noqa: B009 (not public)
    before = dispatch[dict]
    dispatch[dict] = _copied_dict
    try:
        yield
    finally:
        dispatch[dict] = before


_ATOMS = frozenset({str, int, float, bool, type(None)})


def _copied_dict(found: dict[Any, Any], memo: dict[int, Any]) -> dict[Any, Any]:
    """A deep copy of a dict, as the `copy` module makes it."""
    copied: dict[Any, Any] = {}
    memo[id(found)] = copied
    for key, value in found.items():
        key = key if type(key) in _ATOMS else copy.deepcopy(key, memo)
        copied[key] = value if type(value) in _ATOMS else copy.deepcopy(value, memo)
    return copied


@contextlib.contextmanager
def _no_traces() -> Iterator[None]:
    """Make no log records below `INFO`: transcripts take those of `INFO` and above, and lower ones
    would go to a trace file alone, outside the run's directory, with a flush for each."""
    from inspect_ai._util import logger as inspect_logger

    with tempfile.TemporaryDirectory() as folder:  # it opens the file at once
        inspect_logger.init_logger("error", trace_dir=Path(folder))
        handler = inspect_logger._logHandler["handler"]
        if handler is not None and handler.trace_logger is not None:
            handler.trace_logger.close()
            handler.trace_logger = None  # pyright: ignore[reportAttributeAccessIssue] (it asks)
    logger = logging.getLogger("inspect_ai")
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _nobody_attaches() -> Iterator[None]:
    """Open no session for a client of the Agent Client Protocol: its server is off, and a session
    would still translate every event of a sample for it."""
    from inspect_ai.agent._acp.transport import _acp_live_active

    token = _acp_live_active.set(True)  # as within a session; an inner one listens to nothing
    try:
        yield
    finally:
        _acp_live_active.reset(token)


# --- replacements ---------------------------------------------------------------------------------


def _all_may_be_deep(exceeds: Callable[[object, int], bool]) -> Callable[[object, int], bool]:
    """Instead of looking through a sample for what nests too deeply, ask of each what is asked of
    those that do: whether it can be written."""
    return lambda value, max_depth: True


_REFERENCE = re.compile(rb'"attachment://([^"\\]*)"')


def _references_by_text(walk: Callable[[Any], set[str]]) -> Callable[[Any], set[str]]:
    """Find the attachments that a sample names in its JSON, which is faster than in its objects."""
    from pydantic_core import to_json

    def references(value: Any) -> set[str]:
        try:
            text = to_json(value, fallback=lambda _: None)
        except ValueError:  # as of bytes, or of what nests too deeply
            return walk(value)
        found = _REFERENCE.findall(text)
        if len(found) != text.count(b'"attachment://'):  # with characters that JSON escapes
            return walk(value)
        return {one.decode() for one in found}

    return references


def _ids_in_stock(module: types.ModuleType) -> types.SimpleNamespace:
    """The module `uuid` with random bytes for 256 ids at once: a sample has 27."""
    stock = b""

    def uuid4() -> uuid.UUID:
        nonlocal stock
        stock = stock or os.urandom(4096)
        taken, stock = stock[:16], stock[16:]
        return module.UUID(bytes=taken, version=4)

    return types.SimpleNamespace(**{**vars(module), "uuid4": uuid4})


def _two_digits_at_once(spell: Callable[..., str]) -> Callable[..., str]:
    """Spell the same id with half the divisions."""
    pairs: dict[str, list[str]] = {}

    def spelled(number: int, alphabet: list[str], padding: int | None = None) -> str:
        digits = "".join(alphabet)
        if digits not in pairs:
            pairs[digits] = [low + high for high in digits for low in digits]
        known, base, parts = pairs[digits], len(digits) ** 2, []
        while number:
            number, rest = divmod(number, base)
            parts.append(known[rest])
        text = "".join(parts).rstrip(digits[0])
        return text.ljust(padding or 0, digits[0])[::-1]

    return spelled


def _only_where_heard(start: Callable[[], None]) -> Callable[[], None]:
    """Hand the events of a sample on only if a hook of the user's waits for them."""
    from inspect_ai.hooks._hooks import get_all_hooks

    def start_if_heard() -> None:
        if any(hook.enabled() for hook in get_all_hooks()):
            start()

    return start_if_heard


@functools.cache
def _distributions_of() -> Mapping[str, list[str]]:
    from importlib.metadata import packages_distributions

    return packages_distributions()


REPLACEMENTS = (
    Replacement("inspect_ai.log._condense", "exceeds_max_depth", _all_may_be_deep),
    Replacement("inspect_ai.log._condense", "attachment_refs_from_value", _references_by_text),
    Replacement("inspect_ai.hooks._hooks", "start_sample_event_emitter", _only_where_heard),
    # Twelve threads are started to compress the few kilobytes of a sample, which takes none.
    Replacement("inspect_ai._util.zipfile", "_ZSTD_THREADS", lambda _: 0),
    # Looked for among all that is installed, for each task of each evaluation, 0.3 s each time.
    Replacement("inspect_ai._util.package", "packages_distributions", lambda _: _distributions_of),
    Replacement("shortuuid.main", "_uu", _ids_in_stock),
    Replacement("shortuuid.main", "int_to_string", _two_digits_at_once),
)
