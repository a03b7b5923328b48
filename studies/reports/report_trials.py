"""Of a study's report: what became of each trial, the sealed test, and what all of it took."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ledger.records import Usage
from loop.reports.lines import in_vain_text
from pages.document import Block, Bullets, Code, Column, Paragraph, Section, Table
from scores.wording import score_and_n
from studies.findings.findings import Findings
from studies.findings.measured import listed_few
from studies.findings.outcome import ArmOutcome, StudyOutcome, TrialOutcome
from studies.reports.report_words import (
    INTERVAL,
    NOT_RUN,
    UNKNOWN,
    Field,
    compact_table,
    count_words,
    counted,
    ends_words,
    measured_words,
    score_words,
    task_title,
    usd_words,
)

FOLDED_FROM = 20  # rows
UNTRAINED = "not trained"
STATUS_WORDS = {
    "done": "done",
    "dropped": "dropped before the end",
    "begun": "begun and not ended",
    "failed": "failed",
    "missing": NOT_RUN,
}


def _trials(outcome: StudyOutcome) -> Iterator[tuple[ArmOutcome, TrialOutcome]]:
    for arm in outcome.arms:
        yield from ((arm, trial) for trial in arm.trials)


def not_run_section(outcome: StudyOutcome, findings: Findings) -> Section:
    """Every trial that claims do not rest on, with the reason."""
    rows = [
        [t.run_id, arm.name, _seed(t), STATUS_WORDS[t.status], t.why, measured_words(t.result)]
        for arm, t in _trials(outcome)
        if t.status != "done"
    ]
    listed = {row[0] for row in rows}
    rows += [
        [one.run_id, one.name, UNKNOWN, STATUS_WORDS.get(one.status, one.status), one.why, NOT_RUN]
        for one in findings.not_run
        if one.run_id not in listed
    ]
    reasons = {one.run_id: one.why for one in findings.not_run}
    for row in rows:
        row[4] = row[4] or reasons.get(row[0]) or "no reason is recorded"
    title = "Trials not run, dropped or failed"
    if not rows:
        return Section(title, [Paragraph("Every trial is done.")])
    columns = ["run", "arm", "seed", "status", "why", f"measured (score, {INTERVAL}, n)"]
    caption = "Trials not run, dropped, begun or failed"
    table = Table(caption, [Column(one) for one in columns], rows, len(rows) > FOLDED_FROM)
    return Section(title, [table])


def _seed(trial: TrialOutcome) -> str:
    return "none" if trial.seed is None else str(trial.seed)


def gate_section(outcome: StudyOutcome) -> Section:
    """What the gate would have done; a study's trials take equal training whatever it says."""
    rows = [
        [trial.run_id, arm.name, sentence]
        for arm, trial in _trials(outcome)
        for sentence in trial.gate_sentences
    ]
    title = "What the gate would have done"
    if not rows:
        return Section(title, [Paragraph("No trial has a record of it.")])
    columns = [Column("run"), Column("arm"), Column("round by round")]
    caption = "What a run outside of a study would have decided; here it changed nothing"
    table = Table(caption, columns, rows, len(rows) > FOLDED_FROM)
    which = f": {outcome.gate}" if outcome.gate else ""
    meaning = (
        "After each round of an ordinary run a gate holds the score against a threshold, and by "
        "that the run stops, goes on at a lower learning rate or goes back. Trials of a study "
        f"train alike, so here that is told and not done{which}."
    )
    return Section(title, [Paragraph(meaning), table])


NO_TEST = "The study has no sealed test (evaluation.test_tasks in controls)."


def sealed_section(outcome: StudyOutcome, findings: Findings) -> Section:
    title = "The winner and the sealed test"
    who = Paragraph(f"{outcome.winner_sentence}{_limits_of_the_winner(outcome, findings)}")
    if outcome.sealed is None:
        sealed = "The sealed test was not opened." if outcome.has_sealed_test else NO_TEST
        return Section(title, [who, Paragraph(sealed)])
    later = ""
    if outcome.sealed_of != outcome.winner:
        later = f" It was opened when {outcome.sealed_of} was ahead, and a test is opened once."
    said = Paragraph(
        f"The score of {outcome.sealed_of} on the sealed test, asked of it alone, is "
        f"{measured_words(outcome.sealed)} questions; no choice was made by it.{later}"
    )
    columns = [Column("task"), Column(f"score, {INTERVAL}, n"), Column("answers with flaws")]
    rows = [
        [
            task_title(outcome, task),
            score_and_n(task),
            f"{task.num_truncated} truncated, {task.num_malformed} malformed, "
            f"{task.num_failed} failed",
        ]
        for task in outcome.sealed.tasks
    ]
    return Section(title, [who, said, Table("The sealed test by task", columns, rows)])


def _limits_of_the_winner(outcome: StudyOutcome, findings: Findings) -> str:
    """What the winner cannot be told apart from: to be the best of these numbers is no more."""
    of_run = {trial.run_id: arm.name for arm, trial in _trials(outcome)}
    winner = of_run.get(outcome.winner or "")
    alike = [
        pair.other if pair.one == winner else pair.one
        for pair in findings.pairs
        if winner in (pair.one, pair.other) and not pair.is_told_apart
    ]
    if not alike:
        return ""
    return (
        f" It was chosen by its score, and its arm cannot be told apart from {listed_few(alike)}."
    )


def history_section(outcome: StudyOutcome) -> Section:
    if not outcome.history:
        return Section("History", [Paragraph("The study was not changed after it began.")])
    lines = [f"{one.time}: {one.sentence}" for one in outcome.history]
    return Section("History", [Bullets(lines)])


def remarks_section(outcome: StudyOutcome, findings: Findings) -> Section:
    stopped = [outcome.budget_sentence] if outcome.budget_sentence else []
    said = [*findings.remarks, *outcome.warnings, *outcome.from_trials, *stopped]
    remarks = list(dict.fromkeys(said))
    blocks: list[Block] = [Bullets(remarks)] if remarks else [Paragraph("There are none.")]
    return Section("Remarks", blocks)


# --- what it took ---------------------------------------------------------------------------------


def cost_section(outcome: StudyOutcome) -> Section:
    trials = [trial for _, trial in _trials(outcome)]
    num_trained = sum(arm.is_trained for arm, _ in _trials(outcome))
    beside = len(trials) - num_trained
    others = f" and {counted(beside, 'arm')} without training" if beside else ""
    total = in_vain = Usage(0, 0, 0, 0.0)
    for trial in trials:
        total, in_vain = total.plus(trial.usage), in_vain.plus(trial.in_vain)
    said = (
        f"{counted(num_trained, 'trial')}{others} used {total.train_tokens:,} tokens trained, "
        f"{total.prompt_tokens:,} read and {total.sampled_tokens:,} sampled, "
        f"{total.tokens:,} in all, in {total.minutes:.1f} minutes. {_cost_sentence(trials)}"
    )
    if in_vain.tokens:
        said += f" Among them, {in_vain_text(*in_vain[:3])}; they are those of their trial and arm."
    common = sum(trial.common_usage.tokens for trial in trials)
    apart = (
        "In the table of arms, tokens are those trained on, read and sampled for all seeds of an "
        "arm, without the evaluation of what all trials begin with and without the sealed test "
        f"({common:,} tokens in all); cost likewise. A point is a hundredth of score gained on the "
        "control, and has a price where the gain is told apart from chance."
    )
    return Section("Tokens and cost", [Paragraph(said), Paragraph(apart), _trials_table(outcome)])


def _cost_sentence(trials: Sequence[TrialOutcome]) -> str:
    known = [trial.cost_usd for trial in trials if trial.cost_usd is not None]
    if not known:
        return "What it cost is unknown: there are no prices for it in the settings."
    of_all = "In all it" if len(known) == len(trials) else f"{len(known)} of these {len(trials)}"
    rest = "" if len(known) == len(trials) else "; the cost of the others is unknown"
    return f"{of_all} cost {usd_words(sum(known))} by the prices in the settings{rest}."


def _trials_table(outcome: StudyOutcome) -> Table:
    trials = list(_trials(outcome))
    rows = [_trial_row(arm, trial) for arm, trial in trials]
    # A column that says the same of every trial is a clause of the caption, if it has one here.
    said: dict[str, str | None] = {"run": None, "arm": None, "seed": "seed {}",
        "status": "status {}", "round": "round {}", "score (0 to 1)": None, INTERVAL: None,
        "n (questions)": "n is {}", "steps": "{} steps", "learning rate": "learning rate {}",
        "LoRA parameters": "{} LoRA parameters", "tokens trained": "{} tokens trained",
        "tokens read": "{} tokens read", "tokens sampled": "{} tokens sampled", "minutes": None,
        "cost (USD)": "cost {}", "weights (sampler path)": None}  # fmt: skip
    words = {"run", "arm", "status", "weights (sampler path)"}
    fields = [
        Field(title, [row[i] for row in rows], title not in words, clause, (UNTRAINED,))
        for i, (title, clause) in enumerate(said.items())
    ]
    caption = "Every trial: what it came to, what it took, and where its weights are."
    return compact_table(caption, fields, is_folded=len(rows) > FOLDED_FROM)


def _trial_row(arm: ArmOutcome, trial: TrialOutcome) -> list[str]:
    result, rate = trial.result, trial.learning_rate
    unknown = UNKNOWN if arm.is_trained else UNTRAINED
    measured = [NOT_RUN] * 3
    if result is not None:
        measured = [score_words(result.score), ends_words(result.interval), f"{result.n:,}"]
    return [
        trial.run_id,
        arm.name,
        _seed(trial),
        STATUS_WORDS[trial.status],
        unknown if trial.round_no is None else str(trial.round_no),
        *measured,
        unknown if trial.num_steps is None else f"{trial.num_steps:,}",
        unknown if rate is None else f"{rate:g}",
        unknown if trial.num_lora_params is None else count_words(trial.num_lora_params),
        f"{trial.usage.train_tokens:,}",
        f"{trial.usage.prompt_tokens:,}",
        f"{trial.usage.sampled_tokens:,}",
        f"{trial.usage.minutes:.1f}",
        usd_words(trial.cost_usd),
        trial.checkpoint or unknown,
    ]


class Typed(NamedTuple):
    """What is typed in the working directory that a report is written from: `commands` make the
    study and its report, `inspect` is the program, `folder` the study's."""

    cwd: str
    commands: Sequence[str]
    inspect: str
    folder: Path


def reproduce_section(outcome: StudyOutcome, typed: Typed) -> Section:
    """What was typed, the command that opens every log, and where the winner's weights are."""
    commands = typed.commands
    sha256 = outcome.experiment_sha256 or UNKNOWN
    blocks: list[Block] = [Paragraph(f"sha256 of experiment.yaml: {sha256}.")]
    if commands:
        where = f"Every command is given in {typed.cwd}. The study is made and told again by:"
        blocks += [Paragraph(where), Code(commands)]
    else:
        blocks.append(Paragraph("The commands that made the study are unknown."))
    if outcome.logs_dir is not None:
        view = f"{typed.inspect} view --log-dir {_quoted(typed.folder / outcome.logs_dir)}"
        blocks += [Paragraph("All logs of Inspect are opened by:"), Code([view])]
    winner = next((t for _, t in _trials(outcome) if t.run_id == outcome.winner), None)
    if winner is not None and winner.run_dir is not None:
        place = typed.folder / winner.run_dir
        weights = f", whose weights are {winner.checkpoint}" if winner.checkpoint else ""
        report = place / "eval_report.md"
        told = f"The winner, {winner.run_id}{weights}, is the run in this folder; its report:"
        blocks += [Paragraph(told), Code([str(place), str(report)])]
    return Section("How to reproduce", blocks)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
