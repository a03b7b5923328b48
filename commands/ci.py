"""What a pipeline shows of a run or an evaluation: a summary in Markdown, and JUnit's XML.

The summary is short enough for a comment below a pull request, however many rounds and questions
there were. Names, questions and answers in it are anybody's, and nothing in them acts as markup.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree

from errors import ConfigError, one_line
from loop.reports.lines import in_vain_text
from pages.document import Block, Bullets, Column, Document, Paragraph, Section, Table
from pages.markdown import markdown
from scores.results import LEVEL, Moved, moved_questions, score_difference
from scores.wording import interval_text, score_text, signed_text
from storage.files import append_line, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from ledger.records import Usage
    from ledger.store import RunStore
    from loop.reports.comparison import Comparison
    from scores.decision import Decision, Gate
    from scores.results import EvalResult, SampleResult

NUM_WRONG_SHOWN = 5
NUM_ROUNDS_SHOWN = 10  # the last ones; the baseline and the best round are shown beside them
NUM_LINES_SHOWN = 20
NUM_TURNED_SHOWN = 3  # checkpoints whose answers are held beside others'
NUM_SENTENCES = 10
QUESTION_CHARS, ANSWER_CHARS, SENTENCE_CHARS = 160, 80, 600
FAILURE_CHARS = 4_000  # what a comment has room for many times
FILES = ("report.html", "eval_report.md", "inspect_logs")  # of a run directory, where it has them


class Line(NamedTuple):
    """One checkpoint, what it is compared with, and whether it passes; None: it is not judged."""

    name: str
    result: EvalResult
    before: EvalResult | None
    before_name: str
    passed: bool | None
    sentence: str


class Summary(NamedTuple):
    """What is told of a run, or of an evaluation of checkpoints. `turned` are the lines whose
    answers are held beside those of before, `judged` those that failed if they do not pass."""

    title: str
    passed: bool
    sentences: Sequence[str]
    lines: Sequence[Line]
    turned: Sequence[Line]
    judged: Sequence[Line]
    usage: Usage
    in_vain: Usage
    run_dir: Path


# --- what is summed up ----------------------------------------------------------------------------


def summary_of_run(store: RunStore, decision: Decision, gate: Gate, name: str) -> Summary:
    """A run that has ended: its rounds against its baseline."""
    results = store.results()
    lines = lines_of_run(results, decision.best_round, gate)
    best = [line for line in lines[1:] if line.result.round == decision.best_round]
    sentences = [decision.sentence]
    if (test := store.test_result()) is not None:
        sentences.append(f"Sealed test: score {score_text(test)}, n={test.n}.")
    is_within = store.is_within_limits(decision.best_round)
    if not is_within:
        sentences.append("A limit of evalops_budget_file is violated.")
    if len(lines) < len(results):
        sentences.append(f"{len(results) - len(lines)} rounds before the last are not shown.")
    passed = decision.action == "stop_passed" and is_within
    # Rounds before the best are no failures: they are how it was reached.
    title, used = f"{name}: run", (store.usage(), store.in_vain())
    return Summary(title, passed, sentences, lines, best, [], *used, store.run_dir)


def lines_of_run(results: Sequence[EvalResult], best_round: int, gate: Gate) -> list[Line]:
    """The baseline, the best round and the last ones, each judged by the gate."""
    from scores.decision import judge

    baseline = results[0]
    lines = [Line("round 0 (baseline)", baseline, None, "", None, "")]
    first_of_last = max(1, len(results) - NUM_ROUNDS_SHOWN)
    for place, result in enumerate(results[1:], start=1):
        is_best = result.round == best_round
        if is_best or place >= first_of_last:
            verdict = judge(result, baseline, gate)
            called = f"round {result.round}{' (best)' if is_best else ''}"
            said = verdict.objection or verdict.numbers
            lines.append(Line(called, result, baseline, "the baseline", verdict.passed, said))
    return lines


def summary_of_evaluation(store: RunStore, comparisons: Sequence[Comparison], name: str) -> Summary:
    """Checkpoints side by side, against the reference."""
    lines = [
        Line(one.label, one.result, one.before, one.against or "", one.passed, one.sentence)
        for one in comparisons
    ]
    judged = [line for line in lines if line.passed is not None]
    num_passed = sum(line.passed is True for line in judged)
    sentences = [line.sentence for line in lines]
    if len(lines) > 1:
        sentences.insert(0, f"{num_passed} of {len(judged)} checkpoints beside the reference pass.")
    turned = [line for line in judged if line.before is not None]
    title, passed = f"{name}: evaluation", num_passed == len(judged)
    used = store.usage(), store.in_vain()
    return Summary(title, passed, sentences, lines, turned, judged, *used, store.run_dir)


def worse_and_better(before: EvalResult, after: EvalResult) -> tuple[list[Moved], int]:
    """The questions of scored tasks and guards that are answered worse, and how many better."""
    moved = [
        one
        for task in after.tasks
        if (other := before.task(task.name)) is not None
        for one in moved_questions(task, other)
    ]
    worse = [one for one in moved if one.change < 0]
    return sorted(worse, key=lambda one: one.after.id), len(moved) - len(worse)


# --- Markdown -------------------------------------------------------------------------------------


def document_of(summary: Summary) -> Document:
    """The summary as a page."""
    word = "Passed" if summary.passed else "Not passed"
    lead, *others = [one_line(text, SENTENCE_CHARS) for text in summary.sentences]
    num_left = max(0, len(others) - NUM_SENTENCES)
    if num_left:
        others = [*others[:NUM_SENTENCES], f"{num_left} more are in the report."]
    blocks: list[Block] = [Paragraph(f"{word}. {lead}", is_lead=True)]
    if others:
        blocks.append(Bullets(others))
    blocks.append(_table(summary.lines))
    for line in summary.turned[:NUM_TURNED_SHOWN]:
        blocks += _turned(line)
    there = [name for name in FILES if (summary.run_dir / name).exists()]
    used = summary.usage
    ends = [
        f"Tokens: {used.train_tokens:,} trained, {used.prompt_tokens:,} of prompts, "
        f"{used.sampled_tokens:,} sampled; {used.minutes:.1f} minutes."
    ]
    if summary.in_vain.tokens:
        ends.append(f"Beside them, {in_vain_text(*summary.in_vain[:3])}.")
    ends.append(f"Run directory: {summary.run_dir}, with {', '.join([*there, 'evals'])}.")
    blocks.append(Bullets(ends))
    return Document(one_line(summary.title), blocks)


def _table(lines: Sequence[Line]) -> Table:
    columns = [Column(f"score, {LEVEL:.0%} interval"), Column("n", is_number=True)]
    columns += [Column("difference"), Column("passes"), Column("flaws")]
    rows, shown = [], lines[:NUM_LINES_SHOWN]
    for line in shown:
        result = line.result
        passes = {None: "-", True: "yes", False: "no"}[line.passed]
        cells = [score_text(result), str(result.n), _difference(line), passes, _flaws(result)]
        rows.append([one_line(line.name, QUESTION_CHARS), *cells])
    num_left = len(lines) - len(shown)
    caption = f"Checkpoints, {num_left} more are in the report" if num_left else "Checkpoints"
    return Table(caption, [Column("checkpoint"), *columns], rows)


def _difference(line: Line) -> str:
    if line.before is None:
        return "-"
    found = score_difference(line.result, line.before, LEVEL)
    return f"{signed_text(found.mean)} {interval_text(found.interval, signed=True)}"


def _flaws(result: EvalResult) -> str:
    counts = {"truncated": result.num_truncated, "malformed": result.num_malformed}
    counts["failed"] = result.num_failed
    return ", ".join(f"{number} {name}" for name, number in counts.items() if number) or "none"


def _turned(line: Line) -> Iterator[Block]:
    assert line.before is not None, "only such lines are held beside others"
    worse, num_better = worse_and_better(line.before, line.result)
    title = one_line(f"{line.name} beside {line.before_name}", QUESTION_CHARS)
    counts = f"{len(worse)} questions newly wrong or worse, {num_better} newly right or better."
    if not worse:
        yield Paragraph(f"{title}: {counts}")
        return
    rows = [
        [
            one_line(one.after.question, QUESTION_CHARS),
            one_line(" | ".join(one.after.expected), ANSWER_CHARS),
            one_line(_answer(one.before), ANSWER_CHARS),
            one_line(_answer(one.after), ANSWER_CHARS),
        ]
        for one in worse[:NUM_WRONG_SHOWN]
    ]
    caption = f"The first {len(rows)} of these" if len(rows) < len(worse) else "All of these"
    columns = [Column("question"), Column("accepted"), Column("before"), Column("now")]
    yield Section(title, [Paragraph(counts), Table(caption, columns, rows)])


def _answer(sample: SampleResult) -> str:
    return sample.answer if sample.answer is not None else f"failed: {sample.error}"


# --- JUnit ----------------------------------------------------------------------------------------


def junit_of(summary: Summary) -> str:
    """A test case for each checkpoint that is judged, and one for the whole."""
    judged = [(line.name, line.passed, line.sentence) for line in summary.judged]
    whole = ("target", summary.passed, " ".join(summary.sentences))
    return _junit(summary.title, [whole, *judged], "failure")


def _junit(title: str, cases: Sequence[tuple[str, bool | None, str]], how: str) -> str:
    num_failed = sum(passed is False for _, passed, _ in cases)
    num = {"tests": str(len(cases)), f"{how}s": str(num_failed)}
    suite = ElementTree.Element("testsuite", {"name": _xml(title), **num})
    for name, passed, sentence in cases:
        of = {"classname": _xml(title), "name": _xml(name)}
        case = ElementTree.SubElement(suite, "testcase", of)
        if passed is False:
            ElementTree.SubElement(case, how, {"message": _xml(sentence)})
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, "unicode", xml_declaration=False) + "\n"


def _xml(text: str) -> str:
    """What XML 1.0 can hold of a text: control characters and surrogates are not printable."""
    return one_line(text)


# --- the files ------------------------------------------------------------------------------------


def check_files(args: argparse.Namespace) -> None:
    """Refuse, before anything is paid for, what cannot be written in the end."""
    for flag, path in (("--summary", args.summary), ("--junit", args.junit)):
        if path is None:
            continue
        if not _may_write(flag, path):
            raise ConfigError(
                f"{flag}: {str(path)!r} is a folder or a device. Name a file, for example "
                "summary.md; where a variable of the pipeline names it, that is not set."
            )
        if args.dry_run or args.preview is not None or args.list is not None:
            raise ConfigError(
                f"{flag} is written when a run or an evaluation ends; leave it out of --dry-run, "
                "--preview and --list."
            )
    if args.summary is not None and args.summary == args.junit:
        raise ConfigError(f"--summary and --junit both name {args.junit}. Give each its own file.")


def _may_write(flag: str, path: Path) -> bool:
    """A summary may go to a pipe or a terminal; JUnit's file takes the place of what is there."""
    if flag == "--summary":
        return not path.is_dir()
    return path.is_file() or not path.exists()


def write_files(args: argparse.Namespace, redacted: Callable[[str], str], summary: Summary) -> None:
    """Append the summary, as pipelines want it, and write JUnit's file, where they are asked for.

    Raises `StorageError`.
    """
    if args.summary is not None:
        _append(args.summary, redacted(markdown(document_of(summary))))
    if args.junit is not None:
        write_whole(args.junit, [redacted(junit_of(summary))])


def _append(path: Path, text: str) -> None:
    append_line(path, text, is_synced=False)  # which a pipe cannot be


def write_failure(args: argparse.Namespace, message: str) -> None:
    """The same of a command that failed, by the message that its user was told.

    Raises `StorageError`. Leaves alone what was refused, as the message says.
    """
    title = "trainer_with_eval.py"
    summary, junit = (getattr(args, name, None) for name in ("summary", "junit"))
    if summary is not None and _may_write("--summary", summary):
        blocks: list[Block] = [Paragraph("No verdict: it ended early.", is_lead=True)]
        blocks.append(Paragraph(one_line(message, FAILURE_CHARS)))
        _append(summary, markdown(Document(title, blocks)))
    if junit is not None and junit != summary and _may_write("--junit", junit):
        write_whole(junit, [_junit(title, [("target", False, message)], "error")])
