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
import struct
import types
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Replacement(NamedTuple):
    """A name of a module, and what makes the cheaper value of the one that is there."""

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
    would go to a trace file alone, outside the run's directory, with a flush for each. It stays
    unwritten for as long as the process lives."""
    from inspect_ai._util import logger as inspect_logger

    if inspect_logger._logHandler["handler"] is None:  # set up once a process
        with _replaced(_UNOPENED):
            inspect_logger.init_logger("error", trace_dir=Path(os.devnull))
    if (handler := inspect_logger._logHandler["handler"]) is not None:
        handler.trace_logger = None  # pyright: ignore[reportAttributeAccessIssue] (it asks)
    logger = logging.getLogger("inspect_ai")
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)


_UNOPENED = Replacement(
    "inspect_ai._util.logger", "FileHandler", lambda handler: functools.partial(handler, delay=True)
)


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


def _deep_by_text(walk: Callable[[object, int], bool]) -> Callable[[object, int], bool]:
    """Look through a sample for what nests too deeply only where its JSON cannot be written with
    a few more levels around it."""
    return lambda value, max_depth: (
        (max_depth < MAX_DEPTH or _text_of(value) is None) and walk(value, max_depth)
    )


def _references_by_text(walk: Callable[[Any], set[str]]) -> Callable[[Any], set[str]]:
    """Find the attachments that a sample names in its JSON, which is faster than in its objects."""

    def references(value: Any) -> set[str]:
        global _last_text
        text, _last_text = _text_of(value), (None, None)
        if text is None:
            return walk(value)
        found = _REFERENCE.findall(text)
        if len(found) != text.count(b'"attachment://'):  # as a key, or within a text
            return walk(value)
        return {one.decode() for one in found}

    return references


MAX_DEPTH = 250  # of JSON that `_text_of` gives
_REFERENCE = re.compile(rb'(?<!\\)"attachment://([^"\\]*)"(?!:)')
_last_text: tuple[object, bytes | None] = (None, None)  # both replacements ask of the same value


def _text_of(value: object) -> bytes | None:
    """A value as JSON, or None if it nests more than `MAX_DEPTH` levels, or cannot be written."""
    from pydantic_core import to_json

    global _last_text
    if _last_text[0] is not value:
        try:  # pydantic gives up at 255 levels, of which these are some
            text = to_json([[[[[value]]]]], fallback=lambda _: None)
        except ValueError:
            text = None
        _last_text = (value, text)
    return _last_text[1]


def _ids_in_stock(module: types.ModuleType) -> types.SimpleNamespace:
    """The module `uuid` with random bytes for 256 ids at once: a sample has 27."""
    stock: Iterator[tuple[int, int]] = iter(())

    def uuid4() -> uuid.UUID:
        nonlocal stock
        taken = next(stock, None)
        if taken is None:
            stock = struct.iter_unpack("QQ", os.urandom(4096))
            taken = next(stock)
        made = object.__new__(module.UUID)  # what it checks is so by the way it is made
        bits = (taken[0] << 64 | taken[1]) & ~_FIXED | _VERSION_4
        object.__setattr__(made, "int", bits)
        object.__setattr__(made, "is_safe", uuid.SafeUUID.unknown)
        return made

    return types.SimpleNamespace(**{**vars(module), "uuid4": uuid4})


_FIXED = 0xF << 76 | 0b11 << 62  # the bits of a UUID that say what it is
_VERSION_4 = 4 << 76 | 0b10 << 62


def _states_by_parts(deepcopy: Callable[..., Any]) -> Callable[..., Any]:
    """Copy of a sample's new state what it shares with the sample: all else was made for it."""
    from inspect_ai.solver import TaskState

    def copied(found: Any, *args: Any) -> Any:
        if type(found) is not TaskState:
            return deepcopy(found, *args)
        state = copy.copy(found)
        vars(state).update(deepcopy({name: vars(found)[name] for name in OF_SAMPLE}))
        return state

    return copied


OF_SAMPLE = ("_input", "_target", "_metadata", "_messages")


def _texts_that_fit(module: types.ModuleType) -> types.SimpleNamespace:
    """The module `textwrap`, which takes a text to words before it finds that it is short."""

    def shorten(text: str, width: int, **options: Any) -> str:
        one_line = " ".join(text.split())
        return one_line if len(one_line) <= width else module.shorten(text, width, **options)

    return types.SimpleNamespace(**{**vars(module), "shorten": shorten})


def _only_where_heard(start: Callable[[], None]) -> Callable[[], None]:
    """Hand the events of a sample on only if a hook of the user's waits for them."""
    from inspect_ai.hooks._hooks import get_all_hooks

    def start_if_heard() -> None:
        if any(hook.enabled() for hook in get_all_hooks()):
            start()

    return start_if_heard


def _never_drawn(live: type[Any]) -> type[Any]:
    """A table of the tasks that is not laid out, for a display that is off."""

    class NeverDrawn(live):
        def refresh(self) -> None:
            pass

    return NeverDrawn


@functools.cache
def _distributions_of() -> Mapping[str, list[str]]:
    from importlib.metadata import packages_distributions

    return packages_distributions()


REPLACEMENTS = (
    Replacement("inspect_ai.log._condense", "exceeds_max_depth", _deep_by_text),
    Replacement("inspect_ai.log._condense", "attachment_refs_from_value", _references_by_text),
    Replacement("inspect_ai.hooks._hooks", "start_sample_event_emitter", _only_where_heard),
    # Twelve threads are started to compress the few kilobytes of a sample, which takes none.
    Replacement("inspect_ai._util.zipfile", "_ZSTD_THREADS", lambda _: 0),
    # Looked for among all that is installed, for each task of each evaluation, 0.3 s each time.
    Replacement("inspect_ai._util.package", "packages_distributions", lambda _: _distributions_of),
    Replacement("shortuuid.main", "_uu", _ids_in_stock),
    Replacement("inspect_ai._display.rich.display", "Live", _never_drawn),
    Replacement("inspect_ai._eval.task.run", "deepcopy", _states_by_parts),
    Replacement("inspect_ai.log._util", "textwrap", _texts_that_fit),
)
