"""Expressions: worked out in a process of its own, within bounds, and only where one is asked."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

from conftest import REPO, thorough_only
from grading.expressions import LONGEST, MOST_NESTED, expression
from grading.graders import grade, grade_numeric, problem_with
from grading.math_process import PROCESS, NotJudged

# Working these out would take longer than anybody waits, or more memory than there is.
HOSTILE = [
    r"9^{9^{9^{9}}}",
    r"\binom{10000000}{5000000}",
    r"10^{10^{9}}+1",
    r"(x+y+z+1)^{500}",
]


@pytest.mark.parametrize(
    "text",
    [pytest.param(text, marks=thorough_only) for text in HOSTILE[:-1]] + HOSTILE[-1:],
    ids=range(len(HOSTILE)),
)
def test_what_cannot_be_worked_out_is_no_verdict(text: str) -> None:
    with pytest.raises(NotJudged, match=r"could not compare expressions: (no end within|it needs)"):
        grade_numeric(rf"\boxed{{{text}}}", ["x^2+x"])
    assert grade_numeric(r"\boxed{x(x+1)}", ["x^2+x"])  # the next judgement is made


def test_others_go_on_while_an_expression_is_worked_out() -> None:
    async def both() -> tuple[list[str], bool]:
        happened: list[str] = []

        async def hostile() -> None:
            with pytest.raises(NotJudged):
                await grade("numeric", rf"\boxed{{{HOSTILE[0]}}}", ["x^2+x"])
            happened.append("hostile")

        async def other() -> None:
            assert await grade("numeric", "5", ["5"])
            happened.append("other")

        await asyncio.gather(hostile(), other())
        return happened, await grade("numeric", "$2x+x$", ["3x+0"])

    assert asyncio.run(both()) == (["other", "hostile"], True)


PLAIN = """
import sys
sys.path.insert(0, {repo!r})
from grading.graders import GRADERS, problem_with
from grading.math_process import PROCESS
for answer, gold in [("42", "42"), ("The answer is 1/2.", "0.5"), ("12 or 13", "12"), ("x", "1")]:
    GRADERS["numeric"](answer, [gold])
    problem_with("numeric", gold)
assert PROCESS.running() is None
"""
ASKING = """
import os, signal, sys
sys.path.insert(0, {repo!r})
from grading.graders import GRADERS
from grading.math_process import PROCESS
assert GRADERS["numeric"]("$x+1$", ["1+x"])
print(PROCESS.running(), flush=True)
{end}
"""


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_nothing_is_started_where_no_expression_is_asked() -> None:
    done = run(PLAIN.format(repo=str(REPO)))
    assert done.returncode == 0, done.stderr


def is_gone(pid: int) -> bool:
    for _ in range(600):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_the_process_ends_with_the_one_that_started_it(end: str) -> None:
    done = run(ASKING.format(repo=str(REPO), end=end))
    assert done.returncode == (-signal.SIGKILL if end else 0), done.stderr
    assert is_gone(int(done.stdout))


def test_the_process_has_no_environment_of_ours() -> None:
    assert grade_numeric("$x+1$", ["1+x"])
    environment = f"/proc/{PROCESS.running()}/environ"
    if not os.path.exists(environment):
        pytest.skip("only Linux shows a process's environment")
    with open(environment, encoding="utf-8") as file:
        names = {entry.partition("=")[0] for entry in file.read().split("\0") if entry}
    assert names == {"PYTHONHASHSEED", "PYTHONUTF8"}


@pytest.mark.parametrize(
    "gold", [r"\sqrt{2}", "√2", "2x+1", "$9+1$", r"\frac{3\pi}{4}", "(3,5)", r"2\pm\sqrt{3}", "pi"]
)
def test_an_expression_can_be_a_gold_answer(gold: str) -> None:
    assert problem_with("numeric", gold) is None
    assert grade_numeric(f"The answer is {gold}.", [gold])


@pytest.mark.parametrize(
    "text",
    ["1939-1945", "3 - 5", "24/7", "1e5x", "2 2/3 x", "yes", "x = y > 3", "12 or 13", "\\input{a}"],
)
def test_what_math_verify_would_misread_is_no_expression(text: str) -> None:
    assert expression(text, is_formula=True) is None


def test_an_expression_has_a_length_and_a_depth() -> None:
    assert expression("x+" * (LONGEST // 2 - 1) + "1", is_formula=True) is not None
    assert expression("x+" * (LONGEST // 2) + "1", is_formula=True) is None
    assert expression("(" * MOST_NESTED + "x+1" + ")" * MOST_NESTED, is_formula=True) is not None
    deeper = MOST_NESTED + 1
    assert expression("(" * deeper + "x+1" + ")" * deeper, is_formula=True) is None
