"""What a study found, in words that stand by themselves: a few sentences for somebody who reads no
table. Made from the findings; nothing is computed here but what would tell two arms apart. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scores.wording import interval_text
from studies.findings.claims import SMALLEST, THREE_SEEDS, needed_words
from studies.findings.findings import Difference
from studies.findings.measured import ROUNDING, MeasuredArm, listed_few


def answer_of(
    arms: Sequence[MeasuredArm], control: MeasuredArm | None, against_best: Sequence[Difference]
) -> list[str]:
    """At most four sentences on the arms that are compared, best first; `against_best` are the
    others less the best."""
    if len(arms) < 2:
        return ["Fewer than two arms have a result, so there is no answer yet."]
    if arms[0].score - arms[-1].score <= ROUNDING:
        return [f"All {len(arms)} arms scored {arms[0].score:.4f}, so none is better than another."]
    return list(_sentences(arms[0], control, against_best))


def _sentences(
    best: MeasuredArm, control: MeasuredArm | None, against_best: Sequence[Difference]
) -> Iterator[str]:
    is_of_setting = all(one.is_of_setting for one in against_best)
    limit = "" if is_of_setting else " That is of these checkpoints; other seeds may score others."
    yield _first(best, control, against_best) + limit
    worse = [one.one for one in against_best if one.is_told_apart]
    alike = [one for one in against_best if not one.is_told_apart]
    if worse:
        yield f"Clearly worse than {best.name}: {listed_few(worse)}."
    if alike:
        names = listed_few([one.one for one in alike])
        yield f"Not to be told from {best.name}, which does not make them equal: {names}."
        yield _what_would_tell(alike[0])


def _first(
    best: MeasuredArm, control: MeasuredArm | None, against_best: Sequence[Difference]
) -> str:
    """Which arm is best, and by how much over the control."""
    told = f"{best.name} scored highest, {best.score:.4f} of 1"
    if control is None:
        return f"{told}."
    if control.name == best.name:
        return f"{told}: it is the control, which the others are compared with."
    loss = next((one for one in against_best if one.one == control.name), None)
    if loss is None:
        return f"{told}; it was not compared with {control.name}, the control."
    by = (
        f"{told}, which is {-loss.mean:.4f} more than {control.name}, the control that all are "
        "compared with"
    )
    interval = loss.interval
    if interval is None:
        return f"{by}; how sure that is, is unknown."
    # The loss turned: by how much the best is above.
    ends = interval_text(interval._replace(low=-interval.high, high=-interval.low), signed=True)
    if loss.is_told_apart:
        return f"{by} (95% interval of that {ends})."
    return f"{by} (95% interval of that {ends}), no more than chance may bring."


def _what_would_tell(nearest: Difference) -> str:
    """What it takes to tell the best from the next of those that are not told from it."""
    gap = abs(nearest.mean)
    of_whom = f"To tell {nearest.one} from {nearest.other}"
    if not nearest.is_of_setting:
        return f"{of_whom} it takes {THREE_SEEDS}."
    if nearest.parts is None:
        return f"{of_whom} it takes more questions than one, or one cluster of them."
    aim, if_so = gap, f"if they differ by as much as observed, {gap:.4f}"
    if gap < SMALLEST / 4:
        aim, if_so = SMALLEST, f"if they differ by {SMALLEST:g}; observed is about nothing"
    needed = needed_words(aim, nearest.parts, nearest.n, nearest.num_seeds)
    return f"{of_whom} it takes, {if_so}, {needed}, and somewhat more among several pairs."
