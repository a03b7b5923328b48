"""Of an export's card: what is known to be wrong with the checkpoint, and what nobody measured."""

from __future__ import annotations

from collections.abc import Iterator

from errors import one_line
from exports.card_story import Story
from loop.reports.run_report import GAP_FACTOR
from pages.document import Block, Bullets, Paragraph, Section
from scores.decision import flaw_warning, is_below_baseline, judge
from scores.diagnosis import last_quarter
from scores.measures import SFT, method_words
from scores.results import SAME_SCORE, EvalResult, SampleResult
from scores.wording import interval_text, scores_apart

MOST_TOPICS = 5
MOST_ANSWERS = 5
MOST_CHARS = 160  # of a question or an answer


def failures_section(story: Story | None) -> Section:
    """Known failures; of a checkpoint of no known run that nothing is known."""
    if story is None:
        text = (
            "None is known, because nothing is: no evaluation of this checkpoint was found. "
            "Evaluate it before you rely on it."
        )
        return Section("Known failures", [Paragraph(text)])
    blocks: list[Block] = [Bullets(list(_failures(story)))]
    if story.result is not None:
        blocks += _wrong_answers(story.result)
    blocks += [Paragraph("What was never measured:"), Bullets(list(_unmeasured(story)))]
    return Section("Known failures", blocks)


def _failures(story: Story) -> Iterator[str]:
    result, baseline = story.result, story.baseline
    if result is None:
        yield "This checkpoint was not evaluated."
        return
    if baseline is not None and result.round:
        verdict = judge(result, baseline, story.view.gate)
        if not verdict.passed:
            yield f"It does not pass its gate: {verdict.objection or verdict.numbers}."
        if is_below_baseline(result, baseline):
            higher, own = scores_apart(baseline.score, result.score)
            yield f"{_capital(story.start_name)} scored higher: {higher} against {own}."
        elif result.score - baseline.score <= SAME_SCORE:
            yield f"It scores no higher than {story.start_name}: by the score nothing is gained."
    if story.guard_broken is not None:
        yield f"A guard is broken: {story.guard_broken}."
    if not story.store.is_within_limits(result.round):
        yield "A limit of evalops_budget_file is violated."
    if (flaws := flaw_warning(result)) is not None:
        yield f"{_capital(flaws)}."
    if result.num_failed:
        yield f"{result.num_failed:,} of {result.num_samples:,} samples had no answer, by an error."
    yield from _overfitting(story, result)
    yield from _weak_topics(story, result)
    yield from _contamination(story)
    if (origin := story.store.origin) is not None:
        yield from (f"Not known of the sealed test: {what}." for what in origin.unknown)
        yield from (f"{_capital(what)}." for what in origin.warnings if what)
    num_wrong = len({one.id for one in result.samples if one.score < 1})
    yield f"{num_wrong:,} of {result.n:,} dev questions were {_not_right(result)}."


def _not_right(result: EvalResult) -> str:
    """What is said of questions with a sample below 1."""
    repeats = max(task.num_repeats for task in result.scored_tasks)
    is_graded = any(0 < one.score < 1 for one in result.samples)
    how = "not answered wholly right" if is_graded else "not answered right"
    return how if repeats == 1 else f"{how} each of the {repeats} times that they were asked"


def _capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"


def _overfitting(story: Story, result: EvalResult) -> Iterator[str]:
    losses = story.store.losses(result.round)
    if not losses or method_words(story.config) is not SFT:
        return
    training = last_quarter(losses)
    for loss in result.held_out:
        if loss.nll > GAP_FACTOR * training:
            yield (
                f"The held-out loss {loss.nll:.4f} of {loss.name} is far above the training loss "
                f"{training:.4f} of the round's last steps: signs of overfitting."
            )


def _weak_topics(story: Story, result: EvalResult) -> Iterator[str]:
    """The topics that score lower than the whole, the weakest first."""
    reports = story.store.topics(result.round) or []
    weak = [one for one in reports if one.score < result.score]
    for one in weak[:MOST_TOPICS]:
        yield (
            f"Weak topic: {one_line(one.topic, MOST_CHARS)}, {one.score:.2f} "
            f"{interval_text(one.interval)} on {one.n:,} question{'s' * (one.n != 1)}."
        )
    if (more := len(weak) - MOST_TOPICS) > 0:
        yield f"Topics that score lower than the whole as well: {more:,}."


def _contamination(story: Story) -> Iterator[str]:
    manifest = story.manifest
    if number := manifest.num_dropped.get("contaminated", 0):
        yield (
            f"Rows of the data that asked a question of an evaluation: {number:,}. They were left "
            "out of training."
        )
    if number := manifest.num_similar + manifest.num_dropped.get("similar", 0):  # older runs' place
        yield (
            "Rows of the data that are near a question of an evaluation without asking it: "
            f"{number:,}. They could be trained on, so on such questions the score may be too high."
        )


def _unmeasured(story: Story) -> Iterator[str]:
    result, config = story.result, story.config
    if story.test is None:
        yield story.sealed
    if result is not None:
        tasks = ", ".join(task.name for task in result.tasks)
        yield (
            f"Anything but these tasks: {tasks}. Safety, bias, other languages and longer "
            "conversations are known only as far as they ask for them."
        )
        if story.store.topics(result.round) is None:
            yield "How it stands by topic."
        if not result.held_out:
            yield "The loss on held-out conversations."
    if not story.view.gate.guards:
        yield "What it lost of what the base model could do: no guard was set."
    yield f"How much of it is chance of training: this is one run, with seed {config['seed']}."
    yield "What the base model had seen of these questions when it was made."


def _wrong_answers(result: EvalResult) -> Iterator[Block]:
    """Some questions of the dev set with wrong answers; the sealed test's are never shown."""
    wrong: dict[str, SampleResult] = {}
    for sample in result.samples:
        if sample.score < 1:
            wrong.setdefault(sample.id, sample)
    if not wrong:
        return
    shown = list(wrong.values())[:MOST_ANSWERS]
    those = f"{len(wrong):,} dev questions that were {_not_right(result)}"
    yield Paragraph(f"{len(shown)} of the {those}:")
    yield Bullets([_wrong_text(sample) for sample in shown])


def _wrong_text(sample: SampleResult) -> str:
    expected = one_line(" or ".join(sample.expected), MOST_CHARS) or "nothing"
    # An error's text may name places on the disk.
    got = "no answer, by an error" if sample.error is not None else None
    got = got or one_line(sample.answer or "", MOST_CHARS) or "an empty answer"
    flaws = "".join(f", {n}" for n in ("truncated", "malformed") if getattr(sample, n))
    text = f"{one_line(sample.question, MOST_CHARS)} Expected: {expected}. Got: {got}{flaws}"
    return text if text.endswith(".") else f"{text}."
