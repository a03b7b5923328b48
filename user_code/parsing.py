"""Python text to its syntax tree, whatever else happens meanwhile."""

from __future__ import annotations

import ast

TRIES = 10


def parsed(source: str | bytes) -> ast.Module:
    """The syntax tree of a module's text. Raises what `ast.parse` raises.

    Up to CPython 3.11.8 and 3.12.2 it raises `SystemError` where garbage collection begins within
    it and a finalizer parses as well, as a traceback does that asyncio reports of a task whose
    exception nobody took (python/cpython#106905). The garbage is gone then, so it is tried again.
    """
    for _ in range(TRIES - 1):
        try:
            return ast.parse(source)
        except SystemError:
            continue
    return ast.parse(source)
