"""The list of a folder's runs, as a page: pure, from what the runs' ledgers tell.

Without scripts it is a list of links; with them it can be filtered and sorted, and runs be chosen
to be compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from ledger.glance import Glance
from loop.run_page.following import STYLE
from loop.run_page.side_by_side import MAX_RUNS
from pages.document import Block, Column, Document, Link, Links, Paragraph, Section, Table
from pages.html import Behaviour, html_page
from pages.markup import element
from scores.wording import interval_text

SCRIPT = Path(__file__).with_name("runs_index.js").read_text(encoding="ascii")
STATES = {"stopped": "stopped without a word (killed, or its machine went down)"}


class Listed(NamedTuple):
    """A run directory as the list has it: at a glance, or why it cannot be read."""

    run_id: str
    run_dir: Path
    study: str | None  # the id of the study that it is a trial of
    glance: Glance | None
    problem: str


class Study(NamedTuple):
    """A study among the runs; without `has_report` nobody has written its page yet."""

    study_id: str
    folder: Path
    has_report: bool


def version_of(listed: Sequence[Listed]) -> str:
    """Differs where the list says something else, but for the tokens of what goes on."""
    told = [
        (one.run_id, one.problem, *(() if one.glance is None else _changing(one.glance)))
        for one in listed
    ]
    return hashlib.sha256(json.dumps(sorted(told)).encode()).hexdigest()[:16]


def _changing(glance: Glance) -> tuple[str, int]:
    return glance.state, glance.last_page_seq


def index_page(
    folder: str, listed: Sequence[Listed], studies: Sequence[Study], *, is_whole: bool
) -> str:
    """The page. `is_whole`: the folder was small enough to be looked through."""
    document = index_document(folder, listed, studies, is_whole=is_whole)
    made_of = f'"use strict";\nconst MADE_OF = "{version_of(listed)}";\nconst MOST = {MAX_RUNS};\n'
    return html_page(document, Behaviour(scripts=[made_of, SCRIPT], style=STYLE, connects=True))


def index_document(
    folder: str, listed: Sequence[Listed], studies: Sequence[Study], *, is_whole: bool
) -> Document:
    """Runs, evaluations, each study's trials, and what cannot be read; the newest first."""
    known = sorted((one for one in listed if one.glance is not None), key=_begun, reverse=True)
    of_none = [one for one in known if one.study is None]
    runs = [one for one in of_none if one.glance is not None and not one.glance.is_evaluation]
    evaluations = [one for one in of_none if one not in runs]
    damaged = [one for one in listed if one.glance is None]
    blocks: list[Block] = [Paragraph(_lead(folder, known, len(damaged)), is_lead=True)]
    if not is_whole:
        told = "There are too many folders here to look through; give a folder nearer to the runs."
        blocks.append(Paragraph(told))
    if runs:
        blocks.append(Section("Runs", [_table("Runs, the newest first", runs)], anchor="runs"))
    for study in studies:
        trials = [one for one in known if one.study == study.study_id]
        if trials:
            blocks.append(_study_section(study, trials))
    if evaluations:
        table = _table("Evaluations of checkpoints, the newest first", evaluations)
        blocks.append(Section("Evaluations", [table], anchor="evaluations"))
    if damaged:
        rows = [[str(one.run_dir), one.problem] for one in damaged]
        table = Table(
            "Directories of runs that cannot be read", [Column("run"), Column("why")], rows
        )
        blocks.append(Section("Damaged", [table], anchor="damaged"))
    return Document("Runs", blocks)


def _begun(one: Listed) -> tuple[str, str]:
    """One that has no event yet is the newest."""
    begun = None if one.glance is None else one.glance.begun
    return begun or "9999", one.run_id


def _lead(folder: str, known: Sequence[Listed], num_damaged: int) -> str:
    states = [one.glance.state for one in known if one.glance is not None]
    if not states and not num_damaged:
        return f"No runs in {folder} yet. This page shows them once there are any."
    num_going = states.count("going on")
    going = f", {num_going} of them going on" if num_going else ""
    damaged = f"; {num_damaged} cannot be read" if num_damaged else ""
    return f"{len(states):,} run{'s' * (len(states) != 1)} in {folder}{going}{damaged}."


def _study_section(study: Study, trials: Sequence[Listed]) -> Section:
    blocks: list[Block] = []
    if study.has_report:
        report = Link("the report", f"study/{study.study_id}/report.html")
        blocks.append(Links("What the study shows, as it was last written:", [report]))
    else:
        told = f"No report is written yet: study.py report {study.folder}"
        blocks.append(Paragraph(told))
    blocks.append(_table("Its trials, the newest first", trials))
    return Section(f"Study {study.folder.name}", blocks, anchor=f"study-{_word(study.study_id)}")


def _word(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text)


def _table(caption: str, listed: Sequence[Listed]) -> Table:
    columns = [
        Column("run"),
        Column("name"),
        Column("begun (UTC)"),
        Column("state"),
        Column("base model"),
        Column("rounds", True),
        Column("best score", True),
        Column("last decision"),
        Column("tokens", True),
    ]
    rows = [_row(one, one.glance) for one in listed if one.glance is not None]
    return Table(caption, columns, rows)


def _row(one: Listed, glance: Glance) -> list[str]:
    # A cell that is markup stands as it is: the list is of links.
    link = element("a", {"href": f"run/{quote(one.run_id)}/"}, one.run_dir.resolve().name)
    state = STATES.get(glance.state, glance.state)
    rounds = f"{max(glance.scores, default=0)}" if not glance.is_evaluation else "evaluation"
    best = ""
    if glance.best is not None:
        best = f"{glance.best.score:.4f} {interval_text(glance.best.interval)}"
    return [
        link,
        glance.name,
        (glance.begun or "").replace("T", " ").removesuffix("Z"),
        state,
        glance.base_model,
        rounds,
        best,
        glance.detail or glance.sentence or "",
        f"{glance.num_tokens:,}",
    ]
