"""Of a study's report: the table of arms, and the differences between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pages.document import Block, Bullets, Column, Figure, Paragraph, Section, Table
from pages.forest import ForestChart, ForestRow
from pages.ticks import Axis, Span
from studies.findings.findings import ArmFinding, Difference, Findings
from studies.findings.outcome import StudyOutcome
from studies.reports.report_words import (
    INTERVAL,
    NOT_RUN,
    UNKNOWN,
    change_words,
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


def arms_section(outcome: StudyOutcome, findings: Findings) -> Section:
    """The one table of arms, and how to read it."""
    if not findings.arms:
        return Section("Arms", [Paragraph("No arm has a result yet, so there is no table.")])
    pairs = counted(len(findings.pairs), "pair")
    blocks: list[Block] = [
        Paragraph(
            "Arms that share a letter under groups cannot be told apart: their difference is not "
            f"significant at 5 % after Holm's adjustment over all {pairs} of arms. The groups "
            "are named from the best down. A point is a hundredth of score gained on the control."
        ),
        _arms_table(outcome, findings),
    ]
    return Section("Arms", blocks)


def _arms_table(outcome: StudyOutcome, findings: Findings) -> Table:
    tasks = list(
        dict.fromkeys(task_title(outcome, task) for arm in findings.arms for task in arm.tasks)
    )
    control = short(findings.control or "the control")
    columns = [
        Column("arm"),
        Column("score (0 to 1)", True),
        Column(INTERVAL, True),
        Column("the interval is of"),
        Column("n (questions)", True),
        Column("seeds", True),
        Column("standard deviation of the seeds' scores", True),
        Column("groups"),
        Column(f"difference to {control}", True),
        Column(f"{INTERVAL} of the difference", True),
        Column("p (Holm)", True),
        Column("tokens, all seeds", True),
        Column("cost (USD), all seeds", True),
        Column("tokens per point", True),
        Column("cost (USD) per point", True),
        *(Column(f"{task}: score, n", True) for task in tasks),
        Column("note"),
    ]
    rows = [_arm_row(arm, outcome, findings, tasks) for arm in findings.arms]
    caption = f"Arms, best first. Tokens are those trained on, read and sampled; control: {control}"
    return Table(caption, columns, rows)


def _arm_row(
    arm: ArmFinding, outcome: StudyOutcome, findings: Findings, tasks: Sequence[str]
) -> list[str]:
    scores = {
        task_title(outcome, task): f"{score_words(score)}, n={task.n}"
        for task, score in zip(arm.tasks, arm.task_scores, strict=True)
    }
    return [
        arm.name,
        score_words(arm.score),
        ends_words(arm.interval),
        of_what(arm, outcome),
        count_words(num_questions(arm)),
        str(arm.num_seeds),
        _deviation(arm),
        arm.groups or NOT_COMPARED,
        *_against_control(arm, findings),
        *_cost(arm),
        *_per_point(arm, findings),
        *(scores.get(task, NOT_RUN) for task in tasks),
        arm.note or "none",
    ]


def _deviation(arm: ArmFinding) -> str:
    return UNKNOWN if arm.seed_deviation is None else f"{arm.seed_deviation:.4f}"


def _cost(arm: ArmFinding) -> list[str]:
    """Tokens and cost; what the trials began with was evaluated by them, and is counted there."""
    if not arm.run_ids:
        return ["counted with the trials"] * 2
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
        return ["is the control"] * 3
    gain = _gain(arm, findings)
    if gain is None:
        return [NOT_COMPARED] * 3
    return [change_words(gain.mean), ends_words(gain.interval, signed=True), p_words(gain.p_holm)]


def _per_point(arm: ArmFinding, findings: Findings) -> list[str]:
    if arm.name == findings.control:
        return ["is the control"] * 2
    gain = _gain(arm, findings)
    if gain is None:
        return [NOT_COMPARED] * 2
    if gain.mean <= 0:
        return ["no gain"] * 2
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
        "two-sided for no difference, and Holm's p is adjusted for all pairs of arms. Where one of "
        "the two has fewer than three seeds, the difference is of these checkpoints and not of the "
        "settings."
    )
    if findings.control is not None and findings.against_control:
        turned = [minus(one, findings.control) for one in findings.against_control]
        title = f"Every arm minus the control, {short(findings.control)}"
        yield Section("Against the control", [_forest(title, turned)])
    if findings.best is not None and findings.best == findings.control:
        same = "The control has the highest score, so this is the chart above."
        yield Section("Against the best", [Paragraph(same)])
    elif findings.best is not None and findings.against_best:
        turned = [minus(one, findings.best) for one in findings.against_best]
        title = f"Every arm minus the best, {short(findings.best)}"
        yield Section("Against the best", [_forest(title, turned)])
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
    columns = [
        Column("one"),
        Column("minus other"),
        Column("difference of scores", True),
        Column(INTERVAL, True),
        Column("p", True),
        Column("p (Holm)", True),
        Column("method"),
        Column("n (questions in both)", True),
        Column("seeds", True),
        Column("is of"),
        Column("told apart"),
        Column("in words"),
    ]
    rows = [
        [
            one.one,
            one.other,
            change_words(one.mean),
            ends_words(one.interval, signed=True),
            p_words(one.p_value),
            p_words(one.p_holm),
            one.method,
            count_words(one.n)
            + (f" ({one.num_left_out:,} in one alone, left out)" if one.num_left_out else ""),
            str(one.num_seeds),
            "the settings" if one.is_of_setting else "these checkpoints",
            "yes" if one.is_told_apart else "no",
            one.sentence,
        ]
        for one in differences
    ]
    return Table(caption, columns, rows, is_folded)


def groups_section(findings: Findings) -> Section:
    """A sentence on each group of arms that cannot be told apart."""
    if findings.groups:
        return Section("Groups", [Bullets(findings.groups)])
    if len(findings.arms) < 2:
        return Section("Groups", [Paragraph("Groups need two arms with results.")])
    return Section("Groups", [Paragraph("Every two arms are told apart; there is no group.")])
