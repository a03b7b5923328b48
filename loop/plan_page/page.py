"""The plan of a run: one page in the terminal, as HTML, and as named values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loop.plan_page.capacity import capacity_part
from loop.plan_page.costs import costs_part
from loop.plan_page.data import data_part
from loop.plan_page.method_choice import method_part
from loop.plan_page.model import model_part
from loop.plan_page.models import models_part
from loop.plan_page.policy import policy_part
from loop.plan_page.rates import rates_part
from loop.plan_page.risks import Risk, risks_of
from loop.plan_page.serving import serving_part
from loop.plan_page.suite import suite_part
from loop.plan_page.token_estimate import (
    RowTokens,
    counted_tokens,
    estimated_tokens,
    uncounted_tokens,
)
from loop.plan_page.view import WARNING, Part, Planned
from loop.planning.inputs import counted
from loop.planning.methods import batch_text, words_for
from loop.planning.steps import Passes
from pages.document import Bullets, Code, Document, Paragraph, Section, Table
from pages.html import html_page
from scores.measures import SFT

FIRST = "Look at these first"


@dataclass(frozen=True)
class RunPlan:
    """All that the plan says."""

    run_name: str
    summary: str
    risks: Sequence[Risk]
    parts: Sequence[Part]
    view: Planned
    written: Sequence[str]  # lines about the files beside it
    not_checked: Sequence[str]

    @property
    def warnings(self) -> list[str]:
        """The parts' lines that stand before all others."""
        return [line for part in self.parts for line in part.lines if line.startswith(WARNING)]


def plan_of(view: Planned, written: Sequence[str], not_checked: Sequence[str]) -> RunPlan:
    """Put the parts together."""
    tokens = _tokens_of(view)
    capacity, schedule = capacity_part(view, tokens), rates_part(view)
    verdict = capacity.facts["verdict"]
    passes = [Passes(**one) for one in schedule.facts["passes"]]
    parts = [
        *(model_part(view), models_part(view, tokens), data_part(view), method_part(view)),
        *(capacity, schedule, suite_part(view)),
        *(costs_part(view), policy_part(view, verdict), serving_part(view)),
    ]
    risks, config = risks_of(view, passes, verdict), view.config
    steps = view.inputs.settled.steps
    until = f"until a round passes at eval_threshold {config.eval_threshold:g}"
    if not config.gate.stop:
        until = "all of them, whether a round passes or not (gate.stop is false)"
    summary = (
        f"At most {steps.total:,} steps of {batch_text(config)} in rounds of "
        f"{steps.per_round:,}, {until}"
    )
    return RunPlan(config.run_name, summary, risks, parts, view, written, not_checked)


def _tokens_of(view: Planned) -> RowTokens:
    """The tokens of the rows, as exactly as they are known before anything is trained."""
    plan = view.plan
    if words_for(view.config) is not SFT:
        return uncounted_tokens(None if plan is None else counted_tokens(plan).longest)
    if plan is None:
        return estimated_tokens(view.inputs.split.train, view.inputs.split.pool, view.config)
    return counted_tokens(plan)


def text_lines(plan: RunPlan) -> Iterator[str]:
    """Yield the plan as a terminal has it: headings, and lines below them."""
    first = [*plan.warnings, *(f"risk: {one.sentence}" for one in plan.risks)]
    for title, lines in (
        (FIRST, first),
        *((part.title, [*_calm(part), *part.shown]) for part in plan.parts),
        ("Next", list(_next(plan))),
        ("not checked:", list(plan.not_checked)),
    ):
        if lines:
            yield title
            yield from (f"  {line}" for line in lines)


def flat_lines(plan: RunPlan) -> list[str]:
    """All lines of the parts without their headings, as programs have read them from the first."""
    told = (line for part in plan.parts for line in (*_calm(part), *part.shown))
    return [*plan.warnings, *told, *plan.written]


def facts_of(plan: RunPlan) -> dict[str, Any]:
    """The named values of all parts."""
    commands = plan.view.commands
    return {
        "summary": plan.summary,
        "warnings": [line.removeprefix(WARNING) for line in plan.warnings],
        "risks": [one._asdict() for one in plan.risks],
        **{part.name: part.facts for part in plan.parts},
        "commands": commands._asdict(),
    }


def page_html(plan: RunPlan) -> str:
    """The plan as one HTML page, to be written to a file as it is.

    It may be shown to anybody, so the folders of this machine are left out of its paths.
    """
    shown = _without(plan.view.folders)
    first = [*plan.warnings, *(f"risk: {one.sentence}" for one in plan.risks)]
    found = f"{counted(len(plan.warnings), 'warning')} and {counted(len(plan.risks), 'risk')}"
    lead = Paragraph(f"{plan.summary}. {found}. Nothing was trained or asked for this page.", True)
    commands = plan.view.commands
    pilot = [Paragraph(shown(_pilot_words(plan)))]
    typed = [Code([shown(commands.pilot)])] if commands.pilot is not None else []
    run = [Paragraph("The run itself:"), Code([shown(commands.run)])]
    blocks = [
        lead,
        *([Section(FIRST, [Bullets([*map(shown, first)])])] if first else []),
        *(_section(part, shown) for part in plan.parts),
        Section("Next", [*pilot, *typed, *run]),
        Section("Not checked", [Bullets([*map(shown, plan.not_checked)])]),
    ]
    return html_page(Document(f"Plan of {plan.run_name}", blocks))


def _without(folders: Sequence[str]) -> Callable[[str], str]:
    """What leaves these folders out of the paths in a text, the longest ones first."""

    def shown(text: str) -> str:
        for folder in sorted(folders, key=len, reverse=True):
            text = text.replace(f"{folder.rstrip('/')}/", "") if folder.strip("/") else text
        return text

    return shown


def _section(part: Part, shown: Callable[[str], str]) -> Section:
    lines = [*map(shown, [*_calm(part), *part.details])]
    blocks = [
        replace(block, rows=[[*map(shown, row)] for row in block.rows])
        if isinstance(block, Table)
        else block
        for block in part.blocks
    ]
    return Section(part.title, [*([Bullets(lines)] if lines else []), *blocks])


def _calm(part: Part) -> list[str]:
    """The lines of a part that are no warnings."""
    return [line for line in part.lines if not line.startswith(WARNING)]


def _pilot_words(plan: RunPlan) -> str:
    commands = plan.view.commands
    if commands.pilot is None:
        return f"No pilot run: {commands.why_not}"
    return (
        f"A pilot run of one round of {commands.pilot_steps:,} steps, which shows whether rate and "
        "rank fit, and how fast it goes:"
    )


def _next(plan: RunPlan) -> Iterator[str]:
    commands = plan.view.commands
    yield from plan.written
    if commands.pilot is None:
        yield f"no pilot run: {commands.why_not}"
    else:
        yield f"pilot, one round of {commands.pilot_steps:,} steps: {commands.pilot}"
    yield f"the run: {commands.run}"
