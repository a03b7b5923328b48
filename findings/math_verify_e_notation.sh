#!/usr/bin/env bash
# math-verify 0.9.0: a number in E notation is read without its exponent, and a mixed number without its
# fraction, so that wrong answers are judged right and right ones wrong.
#
# Where: math_verify/parser.py takes plain numbers by a pattern that ends before "e" and before a second
#   number ("2 2/3" gives [2, '2 2/3']); nothing is reported, parse returns a value.
# Why it matters: models write small probabilities and physical constants as 8e-1 or 6.02e23, and cooking and
#   carpentry answers as 2 2/3; a reward or a score built on `verify` is then wrong both ways. LaTeX
#   (`6.02 \times 10^{23}`, `2\frac{2}{3}`) is read as meant.
# Seen:
#   math-verify 0.9.0
#   gold 6.02       answer 6.02e23                 right
#   gold 8          answer 8e-1                    right
#   gold 0.8        answer 8e-1                    wrong
#   gold 1000       answer 1e3                     wrong
#   gold 2          answer 2 2/3                   right
#   gold 8/3        answer 2 2/3                   wrong
#   gold 8/3        answer $2\frac{2}{3}$          right
#   gold 800        answer $8 \times 10^{2}$       right
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check \
    "math-verify[antlr4_13_2]==0.9.0" latex2sympy2_extended==1.11.0
cd "$work"
venv/bin/python - <<'PY'
from importlib.metadata import version

from math_verify import parse, verify

print(f"math-verify {version('math-verify')}")
for gold, answer, seen in (
    ("6.02", "6.02e23", True),
    ("8", "8e-1", True),
    ("0.8", "8e-1", False),
    ("1000", "1e3", False),
    ("2", "2 2/3", True),
    ("8/3", "2 2/3", False),
    ("8/3", r"$2\frac{2}{3}$", True),
    ("800", r"$8 \times 10^{2}$", True),
):
    judged = verify(parse(gold), parse(answer))
    print(f"gold {gold:10} answer {answer:23} {'right' if judged else 'wrong'}")
    assert judged == seen, f"changed: {answer!r} for {gold!r} is {judged}"
PY
