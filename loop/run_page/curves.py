"""Of a run's page: the loss and the learning rate of each step, and the loss on held-out rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ledger.run_directory import Event
from ledger.store import RunStore
from loop.run_page.thinning import MOST_MARKERS, spread, stretch, thinned
from loop.run_page.viewed import Viewed
from loop.run_page.wording import loss_text
from pages.charts import Begin, LineChart, Point, Series
from pages.document import Beside, Block, Column, Figure, Paragraph, Section, Table
from pages.ticks import Axis, Scale, Span
from scores.measures import method_words
from scores.results import EvalResult

MOST_BEGINS = 12
MOST_HELD_OUT = 6  # files; more curves cannot be told apart
MOST_STEPS = 400  # listed one by one
LOG_RATIO = 30  # from which an axis is logarithmic
TICK_ROOM = 44.0
# Whose tokens the loss a token is of, where it is not what is minimised.
OF_METHOD = {
    "dpo": "the tokens of the chosen answers, which DPO may leave or make less likely,",
    "rl": "the tokens that it had sampled itself, which is no measure of right answers,",
    "distill": "the tokens that it had sampled itself, which is no measure of right answers,",
}


class HeldOutAt(NamedTuple):
    """A held-out loss after so many steps, and the round that it was measured in."""

    step: int
    nll: float
    round: int


def curves_section(view: Viewed) -> Section:
    """The loss of each step above its learning rate, over the same steps."""
    store = view.store
    steps, held_out = list(store.events("step")), held_out_of(store, store.results())
    blocks: list[Block]
    if not steps:
        blocks = [Paragraph("No step has been taken.")]
    else:
        ends = Span(0.0, float(max(steps[-1]["step"], 1)))
        begins = begins_of(steps)
        loss = _loss_figure(view, steps, held_out, (ends, begins))
        rate = _rate_figure(steps, (ends, begins))
        between = Paragraph("The learning rate over the same steps:")
        blocks = [Beside([loss, between, rate], [_rounds_table(steps, held_out)])]
    return Section("Loss and learning rate", blocks, anchor="curves")


def held_out_of(store: RunStore, results: Iterable[EvalResult]) -> dict[str, list[HeldOutAt]]:
    """The held-out losses by their name, those inside of rounds and those that these results have
    at the ends of theirs."""
    found: dict[str, dict[int, HeldOutAt]] = {}
    for event in store.events("held_out"):
        at = HeldOutAt(event["step"], event["nll"], event["round"])
        found.setdefault(event["task"], {})[at.step] = at
    for result in results:
        checkpoint = store.checkpoint(result.round)
        step = 0 if checkpoint is None else checkpoint.step
        for loss in result.held_out:
            found.setdefault(loss.name, {})[step] = HeldOutAt(step, loss.nll, result.round)
    return {name: [at[step] for step in sorted(at)] for name, at in found.items()}


def begins_of(steps: Sequence[Event]) -> list[Begin]:
    firsts: dict[int, int] = {}
    for event in steps:
        firsts.setdefault(event["round"], event["step"])
    chosen = spread(list(firsts), MOST_BEGINS)
    return [Begin(float(firsts[number]), f"round {number}") for number in chosen]


Frame = tuple[Span, list[Begin]]  # the ends of the x axis, and where rounds begin


def _loss_figure(
    view: Viewed, steps: Sequence[Event], held_out: Mapping[str, list[HeldOutAt]], frame: Frame
) -> Figure:
    ends, begins = frame
    points = [
        Point(float(step), nll, None, None, f"step {step}: {loss_text(nll)}")
        for step, nll in ((one["step"], one["nll"]) for one in steps)
    ]
    method = method_words(view.config)
    series = [Series(method.nll_is, thinned(points), has_markers=len(points) <= MOST_MARKERS)]
    for name, found in list(held_out.items())[:MOST_HELD_OUT]:
        of_name = [
            Point(float(at.step), at.nll, None, None, f"after {at.step} steps: {loss_text(at.nll)}")
            for at in found
        ]
        has_markers = len(of_name) <= MOST_MARKERS
        series.append(Series(f"held out: {name}", thinned(of_name), has_markers=has_markers))
    values = [point.y for one in series for point in one.points]
    chart = LineChart(
        Axis("step", limits=ends),
        Axis("loss a token", _scale(values)),
        series,
        is_spread=False,
        begins=begins,
        tick_room=TICK_ROOM,
    )
    whose = "the right tokens" if method.learns_rows else OF_METHOD[method.name]
    description = (
        f"How unlikely {whose} were to the model, before each step: 0 is certain of all "
        "of them. Later rounds train on other rows, so compare within a round."
        f"{left_out_text(len(points), steps)}"
    )
    if len(held_out) > MOST_HELD_OUT:
        description += f" {MOST_HELD_OUT} of {len(held_out)} held-out files are drawn."
    return Figure("Loss by step", description, chart, _steps_table(view, steps))


def left_out_text(num_points: int, steps: Sequence[Event]) -> str:
    said = ""
    if (size := stretch(num_points)) > 1:
        said += f" Of every {size} steps the lowest and the highest are drawn."
    num_rounds = len({one["round"] for one in steps})
    if num_rounds > MOST_BEGINS:
        said += f" The begin of {MOST_BEGINS} of {num_rounds} rounds is marked."
    return said


def _rate_figure(steps: Sequence[Event], frame: Frame) -> Figure:
    ends, begins = frame
    points = [
        Point(float(one["step"]), one["lr"], None, None, f"step {one['step']}: {one['lr']:.4g}")
        for one in steps
    ]
    has_markers = len(points) <= MOST_MARKERS
    chart = LineChart(
        Axis("step", limits=ends),
        Axis("learning rate", _scale([point.y for point in points])),
        [Series("learning rate", thinned(points), has_markers=has_markers)],
        is_spread=False,
        begins=begins,
        tick_room=TICK_ROOM,
    )
    firsts: dict[int, list[float]] = {}
    for one in steps:
        firsts.setdefault(one["round"], []).append(one["lr"])
    rows = [
        [str(number), f"{rates[0]:.6g}", f"{rates[-1]:.6g}"] for number, rates in firsts.items()
    ]
    columns = [Column("round", True), Column("first rate", True), Column("last rate", True)]
    numbers = Table("Learning rates by round", columns, rows, is_folded=True)
    description = f"As each step used it.{left_out_text(len(points), steps)}"
    return Figure("Learning rate by step", description, chart, numbers)


def _scale(values: Sequence[float]) -> Scale:
    """Logarithmic where values span more than a line can show."""
    is_wide = bool(values) and min(values) > 0 and max(values) / min(values) >= LOG_RATIO
    return "log10" if is_wide else "linear"


def _steps_table(view: Viewed, steps: Sequence[Event]) -> Table:
    columns = [
        Column("step", True),
        Column("round", True),
        Column("loss a token", True),
        Column("learning rate", True),
        Column("tokens", True),
        Column("with loss", True),
    ]
    rows = [
        [
            str(one["step"]),
            str(one["round"]),
            loss_text(one["nll"]),
            f"{one['lr']:.6g}",
            f"{one['num_tokens']:,}",
            f"{one.get('num_loss_tokens', 0):,}",
        ]
        for one in spread(steps, MOST_STEPS)
    ]
    note = ""
    if len(rows) < len(steps):
        note = (
            f"{len(rows)} of {len(steps):,} steps are listed, evenly; each one is a `step` in "
            f"{view.store.run_dir.name}/ledger.jsonl."
        )
    return Table("Steps", columns, rows, is_folded=True, note=note)


def _rounds_table(steps: Sequence[Event], held_out: Mapping[str, list[HeldOutAt]]) -> Table:
    by_round: dict[int, list[float]] = {}
    for one in steps:
        by_round.setdefault(one["round"], []).append(one["nll"])
    names = list(held_out)[:MOST_HELD_OUT]
    lasts = {name: {at.round: at.nll for at in held_out[name]} for name in names}
    rows = []
    for number, losses in by_round.items():
        figures = (losses[0], losses[-1], min(losses), sum(losses) / len(losses))
        of_files = (lasts[name].get(number) for name in names)
        rows.append(
            [
                str(number),
                f"{len(losses):,}",
                *(loss_text(value) for value in figures),
                *("" if value is None else loss_text(value) for value in of_files),
            ]
        )
    columns = [
        Column("round", True),
        Column("steps", True),
        Column("first", True),
        Column("last", True),
        Column("lowest", True),
        Column("mean", True),
        *(Column(f"held out: {name}", True) for name in names),
    ]
    return Table("Loss a token by round", columns, rows, is_folded=len(rows) > MOST_BEGINS)
