"""Of an export's card: what the checkpoint scored, and why it was this one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from exports.card_story import Story
from loop.run_page.wording import change_text, gain_of, gain_text, loss_text
from pages.document import Block, Bullets, Code, Column, Paragraph, Section, Table
from scores.decision import broken_guard
from scores.results import LEVEL, EvalResult, TaskResult
from scores.wording import ROLE_NAMES, bits_text, interval_text

MOST_PROMPT_CHARS = 2000  # of the system prompt that questions were asked with


def results_section(story: Story) -> Section:
    return Section("Results", list(_results(story)))


def _results(story: Story) -> Iterator[Block]:
    result, baseline = story.result, story.baseline
    if result is None:
        yield Paragraph("This checkpoint was not evaluated, so there is no result of it.")
        return
    yield _scores_table(story, result)
    yield Paragraph(
        f"{_what_the_score_is(result)} Where a run has several rounds it recommends one by them, "
        "so that one's score there is too high on average, nobody measured by how much; a sealed "
        "test has no part in any choice."
    )
    yield _tasks_table(result, baseline)
    yield from _guards(story, result)
    yield from _held_out(result, baseline)
    yield from _how_asked(story, result)


def _what_the_score_is(result: EvalResult) -> str:
    number = len(result.scored_tasks)
    of = "the dev questions, those asked after every round"
    if number == 1:
        return f"The score is the mean over {of}, from 0 to 1."
    return (
        f"The score is the mean of the scores of {number} tasks, whatever their numbers of "
        f"questions; each is the mean over its part of {of}, from 0 to 1."
    )


def _scores_table(story: Story, result: EvalResult) -> Table:
    of_round = f"dev questions, this checkpoint (round {result.round})"
    rows = [_score_row(of_round, result)]
    baseline = story.baseline
    if baseline is not None and baseline is not result and result.round:
        rows.insert(0, _score_row(f"dev questions, {story.start_name}", baseline))
        gain = gain_of(result, baseline)
        method = "" if gain is None else f" ({gain.method})"
        rows.append([f"change, the same questions{method}", gain_text(gain), "", f"{result.n:,}"])
    if story.test is not None:
        rows.append(_score_row("sealed test, this checkpoint", story.test))
    columns = [Column("what was asked"), Column("score"), Column(f"{LEVEL:.0%} interval")]
    return Table("Scores", [*columns, Column("questions", True)], rows)


def _score_row(name: str, result: EvalResult) -> list[str]:
    return [name, f"{result.score:.4f}", interval_text(result.interval), f"{result.n:,}"]


def _tasks_table(result: EvalResult, baseline: EvalResult | None) -> Table:
    rows = []
    for task in sorted(result.tasks, key=lambda task: (task.role != "score", -task.layer)):
        before = None if baseline is None or not result.round else baseline.task(task.name)
        rows.append(
            [
                f"{task.name}{ROLE_NAMES[task.role]}",
                "not measured" if before is None else f"{before.score:.4f}",
                f"{task.score:.4f} {interval_text(task.interval)}",
                change_text(task, before) or "not known",
                _questions(task),
                _flaws(task),
            ]
        )
    columns = [Column("task"), Column("before"), Column("score"), Column("change")]
    columns += [Column("questions", True), Column("answers that were not whole")]
    return Table("By task", columns, rows)


def _questions(task: TaskResult) -> str:
    """How many there are; those of a cluster are not independent."""
    if task.num_clusters is None:
        return f"{task.n:,}"
    return f"{task.n:,} in {task.num_clusters:,} cluster{'s' * (task.num_clusters != 1)}"


def _flaws(task: TaskResult) -> str:
    kinds = {
        "truncated": task.num_truncated,
        "malformed": task.num_malformed,
        "failed": task.num_failed,
    }
    found = ", ".join(f"{number:,} {kind}" for kind, number in kinds.items() if number)
    return f"{found} of {len(task.samples):,}" if found else "none"


def _guards(story: Story, result: EvalResult) -> Iterator[Block]:
    guards, baseline = story.view.gate.guards, story.baseline
    if not guards:
        yield Paragraph(
            "No guard was set (gate.guards), so no task was watched for what may have been lost."
        )
        return
    lines = []
    for name, allowed in guards.items():
        after, before = result.task(name), None if baseline is None else baseline.task(name)
        if after is None or before is None or baseline is None:
            lines.append(f"{name}: not measured on this checkpoint.")
            continue
        one = broken_guard(result, baseline, replace(story.view.gate, guards={name: allowed}))
        moved = f"{before.score:.4f} to {after.score:.4f}, may fall by {allowed:g}"
        lines.append(f"{name}: {'holds' if one is None else 'broken'}; {moved} (n={after.n:,}).")
    yield Paragraph("Guards, tasks on which it may lose no more than is set:")
    yield Bullets(lines)


def _held_out(result: EvalResult, baseline: EvalResult | None) -> Iterator[Block]:
    if not result.held_out:
        yield Paragraph("No held-out loss was measured.")
        return
    earlier = {} if baseline is None else {loss.name: loss for loss in baseline.held_out}
    rows = []
    for loss in result.held_out:
        was = loss_text(earlier[loss.name].nll) if loss.name in earlier else "not measured"
        now = f"{loss_text(loss.nll)}, perplexity {loss.perplexity:.4g}{bits_text(loss)}"
        rows.append([loss.name, was, now, f"{loss.n:,}"])
    columns = [Column("conversations"), Column("before"), Column("loss a token")]
    yield Table("Held-out losses, in nats", [*columns, Column("number", True)], rows)


def _how_asked(story: Story, result: EvalResult) -> Iterator[Block]:
    evaluation = story.config["evaluation"]
    longest = sorted({task.max_tokens for task in result.tasks if task.max_tokens is not None})
    repeats = evaluation["num_repeats"]
    times = "once" if repeats == 1 else f"{repeats} times"
    cut = " or ".join(f"{number:,}" for number in longest)
    most = f"answers of at most {cut} tokens" if cut else "the longest answer was not recorded"
    yield Paragraph(f"Asked at temperature {evaluation['temperature']:g}, {times}; {most}.")
    if (prompt := evaluation["system_prompt"]) is not None:
        more = "" if len(prompt) <= MOST_PROMPT_CHARS else " (only its beginning is shown)"
        yield Paragraph(
            f"Every question was asked with this system prompt before it{more}; without it these "
            "results say nothing:"
        )
        yield Code(prompt[:MOST_PROMPT_CHARS].split("\n"))


def decision_section(story: Story) -> Section:
    """Which round this is, and what the run decided."""
    number, lines = story.checkpoint.round, []
    if story.decision is not None:
        lines.append(f"Decided after round {number}: {story.decision.sentence}")
    elif story.result is None:
        lines.append(f"Nothing was decided on this checkpoint, which was saved in round {number}.")
    last = story.last
    if last is not None and last.round != number:
        lines.append(f"The run's last decision, after round {last.round}: {last.sentence}")
    if last is not None and last.best_round != number:
        best = story.store.result(last.best_round)
        scored = "" if best is None else f" ({best.score:.4f} on the dev questions)"
        which = (
            "This is not the round that the run recommends"
            if last.stops
            else "The best round so far is another one"
        )
        lines.append(f"{which}, round {last.best_round}{scored}.")
    elif last is not None and last.stops and story.result is not None:
        lines.append("It is the round that the run recommends.")
    return Section("Which round, and why", [Bullets(lines or ["The run has decided nothing."])])
