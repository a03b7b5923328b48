"""Of a run's page: scores by rounds, every decision as its sentence, guards, and each task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ledger.run_directory import Event
from loop.run_page.answers import answers_at
from loop.run_page.thinning import spread
from loop.run_page.viewed import Viewed
from loop.run_page.wording import MOST_CHARS, change_text, cut, loss_text
from pages.charts import Level, LineChart, Point, Series
from pages.document import Block, Column, Figure, Paragraph, Section, Table
from pages.ticks import Axis, Span, Tick
from scores.measures import SFT, method_words
from scores.results import LEVEL, EvalResult
from scores.wording import ROLE_NAMES, interval_text, score_text

MOST_ROUNDS = 30  # drawn with a marker and an interval each
MOST_TICKS = 12
MOST_OPEN = 12  # rounds, from which their table is folded
SCORE_AXIS = Axis("score (0 to 1)", limits=Span(0.0, 1.0))


def round_axis(numbers: Sequence[int], title: str = "round") -> Axis:
    """Marked at whole rounds."""
    ticks = tuple(Tick(float(number), str(number)) for number in spread(numbers, MOST_TICKS))
    return Axis(title, ticks=ticks)


def score_figure(view: Viewed) -> Figure:
    """The score of each round with its interval, against the threshold and the start."""
    store, results = view.store, view.store.results()
    decision, test = store.last_decision(), store.test_result()
    best = 0 if decision is None else decision.best_round
    numbers = [one.round for one in results]
    drawn = spread(numbers, MOST_ROUNDS, [best])
    points = [_point(one) for one in results if one.round in drawn]
    series = [Series("score", points)]
    if test is not None:
        series.append(Series("sealed test", [_point(test, "sealed test, ")]))
    chart = LineChart(
        round_axis(numbers),
        SCORE_AXIS,
        series,
        Level(f"threshold {view.gate.threshold:g}", view.gate.threshold),
        more_levels=[Level(f"before training {one.score:.4f}", one.score) for one in results[:1]],
    )
    left_out = ""
    if len(drawn) < len(numbers):
        left_out = f" {len(drawn)} of {len(numbers)} rounds are drawn; the table has all of them."
    description = (
        f"On the dev questions, which are asked after every round; bars are {LEVEL:.0%} intervals. "
        f"A point leads to its answers.{left_out}"
    )
    return Figure("Score by round", description, chart, _scores_table(results, test))


def _point(result: EvalResult, what: str = "") -> Point:
    interval = result.interval
    text = f"{what}round {result.round}: {score_text(result)}, n={result.n:,}"
    low, high = (None, None) if interval is None else interval
    href = "" if what else answers_at(result.round)
    return Point(float(result.round), result.score, low, high, text, href)


def _scores_table(results: Sequence[EvalResult], test: EvalResult | None) -> Table:
    rows = [[str(one.round), *scores_cells(one)] for one in results]
    if test is not None:
        rows.append([f"sealed test, round {test.round}", *scores_cells(test)])
    return Table("Scores", [Column("round"), *SCORE_COLUMNS], rows, is_folded=True, note=FLAWS)


FLAWS = (
    "n counts questions, what follows answers: truncated ones were cut off at their longest "
    "length, malformed ones had no readable form, and failed ones left none; all are in the score."
)
SCORE_COLUMNS = (
    Column("score", True),
    Column(f"{LEVEL:.0%} interval", True),
    Column("n", True),
    Column("truncated", True),
    Column("malformed", True),
    Column("failed", True),
)


def scores_cells(result: EvalResult) -> list[str]:
    counts = (result.n, result.num_truncated, result.num_malformed, result.num_failed)
    return [
        f"{result.score:.4f}",
        interval_text(result.interval),
        *(f"{number:,}" for number in counts),
    ]


# --- decisions ------------------------------------------------------------------------------------


def rounds_section(view: Viewed) -> Section:
    """What was decided after each round, what its curves showed, and how its guards stood."""
    return Section("Rounds and decisions", list(_rounds(view)), anchor="rounds")


def _rounds(view: Viewed) -> Iterator[Block]:
    store, results = view.store, view.store.results()
    if not results:
        yield Paragraph("No round has been evaluated.")
    rows = []
    for one in results:
        decision, lr = store.decision(one.round), store.last_lr(one.round)
        rows.append(
            [
                str(one.round),
                score_text(one),
                "" if lr is None else f"{lr:.4g}",
                "not decided" if decision is None else decision.sentence,
                store.diagnosis(one.round) or "",
            ]
        )
    columns = [
        Column("round", True),
        Column("score"),
        Column("last learning rate", True),
        Column("decision"),
        Column(f"what its {'losses' if method_words(view.config) is SFT else 'steps'} showed"),
    ]
    if rows:
        yield Table("Decisions", columns, rows, is_folded=len(rows) > MOST_OPEN)
    if (num := sum(1 for _ in store.ever("resumed"))) > 0:
        gone = store.num_superseded_steps
        yield Paragraph(
            f"The run was resumed {num} time{'s' * (num != 1)}; {gone:,} step{'s' * (gone != 1)} "
            "taken before do not count any more, as it went on from before them. The page shows "
            "what counts in the weights; tokens of both are counted as used."
        )
    yield from _guards(view, results)
    yield from _limits(list(store.events("limits_checked")))
    if flaws := list(_failures_told(view)):
        yield Table("Failures and interruptions", [Column("when, UTC"), Column("what")], flaws)


def _failures_told(view: Viewed) -> Iterator[list[str]]:
    """Those too that the run has gone on from since."""
    for event in view.store.ever("eval_failed", "failed", "interrupted"):
        kind = event["type"].replace("_", " ")
        yield [event["time"], f"{kind}: {event.get('detail', '')}"]


def _guards(view: Viewed, results: Sequence[EvalResult]) -> Iterator[Block]:
    """Tasks that may not get worse, and by how much they did."""
    if not results or not view.gate.guards:
        return
    baseline, rows = results[0], []
    for result in results[1:]:
        for name, allowed in view.gate.guards.items():
            after, before = result.task(name), baseline.task(name)
            if after is None or before is None:
                rows.append([str(result.round), name, "not measured", "", f"{allowed:g}", ""])
                continue
            fallen = before.score - after.score
            verdict = "broken" if fallen > allowed + 1e-12 else "holds"
            was = f"{before.score:.4f}"
            rows.append([str(result.round), name, score_text(after), was, f"{allowed:g}", verdict])
    columns = [
        Column("round", True),
        Column("guard"),
        Column("score"),
        Column("before training", True),
        Column("may fall by", True),
        Column("verdict"),
    ]
    yield Table("Guards: what may not get worse", columns, rows, is_folded=len(rows) > MOST_OPEN)


def _limits(events: Sequence[Event]) -> Iterator[Block]:
    """How rounds stood to the limits of a file of them."""
    rows = []
    for event in events:
        for kind in ("violations", "warnings"):
            found = event.get(kind)
            for one in found if isinstance(found, list) else []:
                message = one.get("message", "") if isinstance(one, dict) else one
                rows.append([str(event["round"]), kind.removesuffix("s"), str(message)])
        if not event["fails"]:
            rows.append([str(event["round"]), "verdict", "within the limits"])
    if rows:
        columns = [Column("round", True), Column("kind"), Column("what")]
        yield Table("Limits of evalops_budget_file", columns, rows, is_folded=len(rows) > MOST_OPEN)


# --- tasks ----------------------------------------------------------------------------------------

MOST_FAILURES = 10


def tasks_section(view: Viewed) -> Section:
    """Each task of the recommended round beside the start, and what it still gets wrong."""
    store, decision = view.store, view.store.last_decision()
    best = None if decision is None else store.result(decision.best_round)
    baseline = store.result(0)
    blocks: list[Block] = []
    if best is None or baseline is None:
        blocks = [Paragraph("Nothing is measured yet.")]
    else:
        blocks = [_tasks_table(best, baseline), *_losses_table(best, baseline), *_failures(best)]
    return Section("Tasks and known failures", blocks, anchor="tasks")


def _tasks_table(best: EvalResult, baseline: EvalResult) -> Table:
    rows = []
    for task in sorted(best.tasks, key=lambda task: -task.layer):
        before = baseline.task(task.name)
        change = change_text(task, before) if best.round else ""
        was = "" if before is None else f"{before.score:.4f}"
        flaws = [f"{n:,}" for n in (task.num_truncated, task.num_malformed, task.num_failed)]
        name = f"{task.name}{ROLE_NAMES[task.role]}"
        rows.append([name, was, score_text(task), change, f"{task.n:,}", *flaws])
    columns = [
        Column("task"),
        Column("before training", True),
        Column(f"round {best.round}", True),
        Column("change"),
        *SCORE_COLUMNS[2:],
    ]
    note = "A change is of the same questions; p is how often chance alone would move as much."
    return Table("Each task", columns, rows, note=note)


def _losses_table(best: EvalResult, baseline: EvalResult) -> Iterator[Block]:
    earlier = {loss.name: loss for loss in baseline.held_out}
    rows = []
    for loss in best.held_out:
        was = loss_text(earlier[loss.name].nll) if loss.name in earlier else ""
        now = loss_text(loss.nll)
        rows.append([loss.name, was, now, f"{loss.perplexity:.4g}", f"{loss.n:,}"])
    if rows:
        columns = [
            Column("held-out rows"),
            Column("loss a token before training", True),
            Column(f"round {best.round}", True),
            Column("perplexity", True),
            Column("rows", True),
        ]
        note = "Natural logarithms: 0 is certain of every right token; lower is better."
        yield Table("Loss on rows that were held out", columns, rows, note=note)


def _failures(best: EvalResult) -> Iterator[Block]:
    """The first questions that were not answered right, and of how many."""
    # One line for a question, also where it was asked several times.
    wrong = list({sample.id: sample for sample in best.samples if sample.score < 1}.values())
    if not wrong:
        yield Paragraph(f"Known failures: none of {best.n:,} questions in round {best.round}.")
        return
    rows = []
    for sample in wrong[:MOST_FAILURES]:
        kinds = {"truncated": sample.truncated, "malformed": sample.malformed}
        flags = ", ".join(name for name, is_so in kinds.items() if is_so)
        answer = f"failed: {sample.error}" if sample.error else sample.answer or ""
        expected = " or ".join(sample.expected)
        texts = (sample.question, expected, answer)
        rows.append([*(cut(text) for text in texts), flags, f"{sample.score:.4g}"])
    columns = [
        Column("question"),
        Column("expected"),
        Column("answer"),
        Column("flags"),
        Column("score", True),
    ]
    caption = (
        f"Known failures: {len(wrong):,} of {best.n:,} questions were not answered fully right in "
        f"round {best.round}"
    )
    shown = f"The first {len(rows)} are shown, cut to {MOST_CHARS} characters; the section on "
    yield Table(caption, columns, rows, note=f"{shown}questions and answers has all of them.")
