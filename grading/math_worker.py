"""Works expressions out with math-verify: a line of JSON in, a line of JSON out, until input ends.

    python math_worker.py SECONDS MEGABYTES

Run by math_process.py in a process of its own, since what a model writes may take for ever: it ends
itself when one question takes longer than `SECONDS`, or more memory than `MEGABYTES`.

["value", EXPRESSION] is answered by its value ("3/2" or decimal digits), null where it has none;
["same", GOLD, EXPRESSION] by true or false; ["is_one", EXPRESSION] says whether it can be read.
{"problem": WHY} is the answer where none can be given.
"""

from __future__ import annotations

import json
import logging
import resource
import signal
import sys
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Basic, Expr, Float, I, N, Rational, nan, oo, zoo

DIGITS = 40  # of what is no fraction
MAX_EXPONENT = 12_000  # decimal places of the largest and smallest values
EXACT, ROUNDED = 1e-25, 1e-6  # how far two constants may differ, relative to them
_NO_VALUE = (ValueError, TypeError, ArithmeticError, AttributeError, NotImplementedError)


def read(latex: str) -> Any:
    """The expression, as SymPy has it; None where it cannot be read."""
    found = parse(
        f"${latex}$",
        [LatexExtractionConfig()],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,  # pyright: ignore[reportArgumentType] (None is what it documents)
    )
    if not found or not isinstance(found[0], Basic):
        return found[0] if found else None
    return found[0].subs({one: I for one in found[0].free_symbols if str(one) == "i"})


def constant(one: Any) -> Expr | None:
    """A finite number without variables; None for all else."""
    if not isinstance(one, Expr) or one.free_symbols:
        one = one.doit() if isinstance(one, Expr) else one  # x^2 - x^2 has none in the end
    if not isinstance(one, Expr) or one.free_symbols:
        return None
    worked_out = one.doit()
    return None if worked_out.has(oo, -oo, zoo, nan) or not worked_out.is_number else worked_out


def value(one: Any) -> str | None:
    number = constant(one)
    if number is None:
        return None
    if isinstance(number, Rational):
        is_long = max(abs(number.p), number.q) >= 10**MAX_EXPONENT
        return None if is_long else f"{number.p}/{number.q}"
    close = N(number, DIGITS)
    if not isinstance(close, Float | Rational) or abs(close) >= Float(10) ** MAX_EXPONENT:
        return None
    return str(close) if close == 0 or abs(close) > Float(10) ** -MAX_EXPONENT else None


def is_same(gold: Any, other: Any) -> bool:
    """Two constants by their values, all else by math-verify's rules."""
    one, two = constant(gold), constant(other)
    if one is None and two is None:
        return bool(verify(gold, other, timeout_seconds=None))
    if one is None or two is None:
        return False
    allowed = ROUNDED if one.has(Float) or two.has(Float) else EXACT
    difference, size = abs(N(one - two, DIGITS)), max(abs(N(one, DIGITS)), abs(N(two, DIGITS)))
    return bool(difference <= allowed * size)


def answer(question: list[str]) -> Any:
    kind, *expressions = question
    read_ones = [read(one) for one in expressions]
    if kind == "is_one":
        (one,) = read_ones
        return isinstance(one, Basic) and not one.has(zoo, nan)
    if any(one is None for one in read_ones):
        return None if kind == "value" else False
    try:
        return value(*read_ones) if kind == "value" else is_same(*read_ones)
    except _NO_VALUE:  # SymPy's way to say that something has no number
        return None if kind == "value" else False


def memory_used() -> float:
    """Megabytes, at most so far."""
    if sys.platform == "linux":  # where `getrusage` counts what the parent process had as well
        with open("/proc/self/status", encoding="ascii") as file:
            (line,) = (line for line in file if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def main() -> int:
    seconds, megabytes = float(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the loop, which ends this one
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    logging.disable()
    sys.set_int_max_str_digits(0)
    if sys.platform == "linux":  # a wall behind the limit, for what asks for all of it at once
        resource.setrlimit(resource.RLIMIT_AS, (2 * megabytes * 2**20, 2 * megabytes * 2**20))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        # With nobody to catch it the alarm ends the process, whatever it is doing.
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            said = answer(json.loads(line))
        except MemoryError:
            said = {"problem": f"it needs more than {megabytes} MB"}
        except RecursionError:
            said = {"problem": "it is nested too deeply"}
        # SymPy and math-verify go on after a MemoryError, with an answer that means nothing.
        if memory_used() > megabytes:
            said = {"problem": f"it needs more than {megabytes} MB"}
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()
        if isinstance(said, dict):
            return 0  # what memory it has left may be in pieces
    return 0


if __name__ == "__main__":
    sys.exit(main())
