"""Of a study's report: the table of arms, and the differences between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pages.document import Block, Bullets, Figure, Paragraph, Section, Table
from pages.forest import ForestChart, ForestRow
from pages.ticks import Axis, Span
from studies.findings.findings import ArmFinding, Difference, Findings
from studies.findings.outcome import StudyOutcome
from studies.reports.report_words import (
    INTERVAL,
    NONE,
    NOT_RUN,
    OF_WEIGHTS,
    UNKNOWN,
    Field,
    change_words,
    compact_table,
    count_words,
    counted,
    difference_words,
    ends_words,
    minus,
    num_questions,
    of_what,
    p_words,
    score_words,
    short,
    task_title,
    usd_words,
)

NOT_COMPARED = "not compared"
NO_GAIN, UNSURE = "no gain", "unsure"
NO_ANSWERS = "none"
NO_PRICE = (NONE, NO_GAIN, UNSURE)


def arms_section(outcome: StudyOutcome, findings: Findings) -> Section:
    """The one table of arms, and what single rows are to be read with."""
    if not findings.arms:
        return Section("Arms", [Paragraph("No arm has a result yet, so there is no table.")])
    notes = [f"{arm.name}: {arm.note}." for arm in findings.arms if arm.note]
    blocks: list[Block] = [Paragraph(_how_to_read(findings)), _arms_table(outcome, findings)]
    return Section("Arms", [*blocks, Bullets(notes)] if notes else blocks)


def _arms_table(outcome: StudyOutcome, findings: Findings) -> Table:
    arms = findings.arms
    control = short(findings.control or "the control")
    against = [_against_control(arm, findings) for arm in arms]
    costs = [_cost(arm) for arm in arms]
    points = [_per_point(arm, findings) for arm in arms]
    fields = [
        Field("arm", [arm.name for arm in arms]),
        Field("score (0 to 1)", [score_words(arm.score) for arm in arms], True),
        Field(INTERVAL, [ends_words(arm.interval) for arm in arms], True),
        Field("group", [arm.groups or NONE for arm in arms]),
        Field(f"minus {control}", [one[0] for one in against], True),
        Field(f"{INTERVAL} of it", [one[1] for one in against], True),
        Field("p (Holm)", [one[2] for one in against], True),
        *_task_fields(outcome, arms),
        Field("cut off or malformed", _of_answers(arms, "num_flawed"), True, "", (NO_ANSWERS,)),
        Field("failed", _of_answers(arms, "num_failed"), True, "", (NO_ANSWERS,)),
        Field("n (questions)", [count_words(num_questions(arm)) for arm in arms], True, "n is {}"),
        Field(
            "seeds", [_seeds(arm, outcome) for arm in arms], True, "seeds of each trained arm: {}"
        ),
        Field("SD of seeds", [_deviation(arm) for arm in arms], True, ""),
        Field(
            "the interval is of",
            [of_what(arm, outcome) for arm in arms],
            said="intervals of trained arms are of {}",
            exempt=(OF_WEIGHTS,),
        ),
        Field("tokens", [one[0] for one in costs], True),
        Field("tokens per point", [one[0] for one in points], True, "", NO_PRICE),
        Field("cost (USD)", [one[1] for one in costs], True, _if_unknown(costs)),
        Field("cost per point", [one[1] for one in points], True, "", (*NO_PRICE, UNKNOWN)),
    ]
    return compact_table(f"Arms, best first; the control is {control}.", fields)


def _how_to_read(findings: Findings) -> str:
    """The words of the table, where they first stand."""
    pairs = counted(len(findings.pairs), "pair")
    return (
        "An arm is one combination of values with all its seeds, or weights that are not trained. "
        "The control is the arm that all others are compared with. p says how often chance alone "
        "would bring a difference as large as the one seen; Holm's method raises it, since "
        f"{pairs} of arms are tested at once, and two arms are told apart where it stays below "
        "0.05. Arms that share a letter (a group) cannot be told apart, which does not make them "
        "equal. Intervals are for one comparison and p (Holm) is adjusted for all, so an interval "
        "may leave 0 out while p does not tell two arms apart."
    )


def _task_fields(outcome: StudyOutcome, arms: Sequence[ArmFinding]) -> Iterator[Field]:
    """A column for each task; one alone that all arms have is the score itself."""
    by_arm = [{task_title(outcome, t): (t, s) for t, s in zip(a.tasks, a.task_scores, strict=True)}
              for a in arms]  # fmt: skip
    titles = list(dict.fromkeys(title for tasks in by_arm for title in tasks))
    if len(titles) == 1 and all(titles[0] in tasks for tasks in by_arm):
        return
    for title in titles:
        sizes = {tasks[title][0].n for tasks in by_arm if title in tasks}
        is_alike = len(sizes) == 1
        cells = [
            NOT_RUN
            if title not in tasks
            else score_words(tasks[title][1]) + ("" if is_alike else f", n={tasks[title][0].n}")
            for tasks in by_arm
        ]
        yield Field(f"{title} (n={min(sizes)})" if is_alike else f"{title}: score, n", cells, True)


def _of_answers(arms: Sequence[ArmFinding], what: Literal["num_flawed", "num_failed"]) -> list[str]:
    """So many of an arm's answers, over all its seeds; a column of nothing is left out."""
    numbers = [(int(getattr(arm, what)), arm.num_answers) for arm in arms]
    return [f"{n:,} of {answers:,}" if n else NO_ANSWERS for n, answers in numbers]


def _if_unknown(costs: Sequence[Sequence[str]]) -> str | None:
    """A clause for a cost that is known of no arm; one that all share stays where it is."""
    found = {cost for _, cost in costs} - {NONE}
    return "cost: {}" if found == {UNKNOWN} else None


def _seeds(arm: ArmFinding, outcome: StudyOutcome) -> str:
    """What is not trained has none to vary."""
    return NONE if of_what(arm, outcome) == OF_WEIGHTS else str(arm.num_seeds)


def _deviation(arm: ArmFinding) -> str:
    if arm.num_seeds < 2:
        return NONE
    return UNKNOWN if arm.seed_deviation is None else f"{arm.seed_deviation:.4f}"


def _cost(arm: ArmFinding) -> list[str]:
    """Tokens and cost; what the trials began with was evaluated by them, and is counted apart."""
    if not arm.run_ids or not arm.num_tokens:  # nothing was paid, so it is no price
        return [NONE] * 2
    return [count_words(arm.num_tokens), usd_words(arm.cost_usd)]


def _gain(arm: ArmFinding, findings: Findings) -> Difference | None:
    """An arm minus the control; None where they were not compared."""
    if findings.control is None:
        return None
    both = {arm.name, findings.control}
    found = next((d for d in findings.against_control if {d.one, d.other} == both), None)
    return None if found is None else minus(found, findings.control)


def _against_control(arm: ArmFinding, findings: Findings) -> list[str]:
    if arm.name == findings.control:
        return ["control", NONE, NONE]
    gain = _gain(arm, findings)
    if gain is None:
        return [NOT_COMPARED, NONE, NONE]
    return [change_words(gain.mean), ends_words(gain.interval, signed=True), p_words(gain.p_holm)]


def _per_point(arm: ArmFinding, findings: Findings) -> list[str]:
    gain = None if arm.name == findings.control else _gain(arm, findings)
    if gain is None:
        return [NONE] * 2
    if gain.mean <= 0:
        return [NO_GAIN] * 2
    if not gain.is_told_apart:
        return [UNSURE] * 2
    return [count_words(arm.tokens_per_point), usd_words(arm.usd_per_point)]


# --- differences ----------------------------------------------------------------------------------


def differences_section(findings: Findings) -> Section:
    """Against the control and the best as charts, and all pairs as a table."""
    if not findings.pairs:
        only = Paragraph("There is no difference to show: two arms with results are needed.")
        return Section("Paired differences", [only])
    return Section("Paired differences", list(_differences(findings)))


def _differences(findings: Findings) -> Iterator[Block]:
    yield Paragraph(
        "Each difference is paired on question ids: both arms answered the same questions. p is "
        "two-sided for no difference, and Holm's p is adjusted for all pairs of arms; intervals "
        "are for one comparison, so one may leave 0 out while Holm's p does not. Where one of the "
        "two has fewer than three seeds, the difference is of these checkpoints and not of the "
        "settings."
    )
    if findings.control is not None and findings.against_control:
        turned = [minus(one, findings.control) for one in findings.against_control]
        title = f"Every arm minus the control, {short(findings.control)}"
        yield _forest(title, turned)
    if findings.best is not None and findings.best == findings.control:
        yield Paragraph("The control has the highest score, so this is against the best as well.")
    elif findings.best is not None and findings.against_best:
        turned = [minus(one, findings.best) for one in findings.against_best]
        title = f"Every arm minus the best, {short(findings.best)}"
        yield _forest(title, turned)
    every = differences_table("All pairs of arms", findings.pairs, is_folded=True)
    yield Section("All pairs", [every])


def _forest(title: str, differences: Sequence[Difference]) -> Figure:
    rows = [
        ForestRow(
            name=one.one,
            difference=one.mean,
            low=None if one.interval is None else one.interval.low,
            high=None if one.interval is None else one.interval.high,
            note=difference_words(one),
            is_marked=one.is_told_apart,
        )
        for one in differences
    ]
    num_apart = sum(one.is_told_apart for one in differences)
    chart = ForestChart(
        x=Axis(f"difference of scores ({INTERVAL})", limits=Span(-1.0, 1.0)),
        rows=rows,
        marked_means="filled: told apart, Holm's p < 0.05",
        unmarked_means="hollow: not told apart",
    )
    description = (
        f"{counted(len(rows), 'difference')} of scores with their intervals and Holm's p; "
        f"{num_apart} told apart from zero."
    )
    return Figure(title, description, chart, differences_table(f"{title}: numbers", differences))


def differences_table(
    caption: str, differences: Sequence[Difference], *, is_folded: bool = False
) -> Table:
    def number(one: Difference) -> str:
        left_out = f" ({one.num_left_out:,} in one alone, left out)" if one.num_left_out else ""
        return count_words(one.n) + left_out

    def of_what(one: Difference) -> str:
        if not one.is_of_trained:
            return OF_WEIGHTS
        return "the settings" if one.is_of_setting else "these checkpoints"

    every = differences
    fields = [
        Field("one", [one.one for one in every]),
        Field("minus other", [one.other for one in every]),
        Field("difference of scores", [change_words(one.mean) for one in every], True),
        Field(INTERVAL, [ends_words(one.interval, signed=True) for one in every], True),
        Field("p", [p_words(one.p_value) for one in every], True),
        Field("p (Holm)", [p_words(one.p_holm) for one in every], True),
        Field("told apart", ["yes" if one.is_told_apart else "no" for one in every]),
        Field("n (questions in both)", [number(one) for one in every], True, "n is {}"),
        Field("seeds", [str(one.num_seeds) for one in every], True, "seeds: {}"),
        Field("method", [one.method for one in every], said="method: {}"),
        Field("is of", [of_what(one) for one in every], said="a difference is of {}"),
    ]
    return compact_table(caption, fields, is_folded=is_folded)


def groups_section(findings: Findings) -> Section:
    """A sentence on each group of arms that cannot be told apart."""
    letters = Paragraph(
        "A letter stands for arms of which no two are told apart: no difference among them is "
        "significant at 5 % after Holm's adjustment over all pairs. The groups are named from the "
        "best down."
    )
    if findings.groups:
        return Section("Groups", [letters, Bullets(findings.groups)])
    if len(findings.arms) < 2:
        return Section("Groups", [Paragraph("Groups need two arms with results.")])
    return Section("Groups", [Paragraph("Every two arms are told apart; there is no group.")])
