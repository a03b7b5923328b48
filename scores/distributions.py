"""The distributions that intervals and tests of scores rest on, to some ten digits.

Student's t and the regularised incomplete beta function; sources stand with each formula.
"""

from __future__ import annotations

import math
from statistics import NormalDist


def student_t_cdf(t: float, df: float) -> float:
    """Distribution function of Student's t (Abramowitz and Stegun 26.5.27 and 26.7.1)."""
    if not df > 0:
        raise ValueError(f"{df} degrees of freedom")
    square = t * t
    tail = 0.5 * _beta_cdf(df / (df + square), square / (df + square), df / 2, 0.5)
    return tail if t < 0 else 1 - tail


def student_t_quantile(p: float, df: float) -> float:
    """Inverse of `student_t_cdf`, by Newton's method on the tail.

    The upper tail of t is convex and heavier than the normal one, so that steps from the normal
    quantile only go outwards and cannot overshoot.
    """
    if not 0 < p < 1:
        raise ValueError(f"{p} is not a probability with a finite quantile")
    tail = min(p, 1 - p)
    t = -NormalDist().inv_cdf(tail)
    log_scale = -_log_beta(df / 2, 0.5) - 0.5 * math.log(df)
    for _ in range(2000):
        density = math.exp(log_scale - (df + 1) / 2 * math.log1p(t * t / df))
        step = (student_t_cdf(-t, df) - tail) / density
        t += step
        if step <= 1e-14 * t:
            break
    return t if p > 0.5 else -t


def upper_share(level: float) -> float:
    """The probability below the upper end of a two-sided interval."""
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not between 0 and 1")
    return 0.5 + level / 2


def two_sided_z(level: float) -> float:
    return NormalDist().inv_cdf(upper_share(level))


def binomial_tail(k: int, n: int, p: float) -> float:
    """P(X >= k), X binomial (Abramowitz and Stegun 26.5.24): exact, and quick for large n."""
    if k <= 0:
        return 1.0
    return _beta_cdf(p, 1 - p, k, n - k + 1) if k <= n else 0.0


def _beta_cdf(x: float, y: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b); `y` is 1 - x, given for its precision.

    Continued fraction of DLMF 8.17.22, evaluated by Lentz's method.
    """
    if x <= 0 or y <= 0:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1 - _beta_cdf(y, x, b, a)
    log_x = math.log(x) if x < 0.5 else math.log1p(-y)
    log_y = math.log(y) if y < 0.5 else math.log1p(-x)
    fraction, c, d = 1.0, 1.0, 0.0
    for i in range(100_000):
        m = i // 2
        if i == 0:
            term = 1.0
        elif i % 2 == 0:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / ((1 + term * d) or 1e-300)
        c = (1 + term / c) or 1e-300
        fraction *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return math.exp(a * log_x + b * log_y - _log_beta(a, b)) / a * (fraction - 1)


def _log_beta(a: float, b: float) -> float:
    """log B(a, b). For large arguments the difference of lgammas would lose its digits."""
    small, large = min(a, b), max(a, b)
    if large < 20:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    def rest(x: float) -> float:  # of Stirling's series, DLMF 5.11.1
        return (1 / 12 - (1 / 360 - (1 / 1260 - 1 / (1680 * x * x)) / (x * x)) / (x * x)) / x

    total = large + small
    return (
        math.lgamma(small)
        - small * math.log(large)
        - (total - 0.5) * math.log1p(small / large)
        + small
        + rest(large)
        - rest(total)
    )
