"""The report of a study: `report.html`, `report.md` and `results.csv` in its folder.

HTML and Markdown are two renderings of one document, so they say the same. Nothing is computed
here: what is told stands in the findings, what was measured in the outcome.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pages.document import Block, Bullets, Column, Document, Paragraph, Section, Table
from pages.html import html_page
from pages.markdown import markdown
from storage.files import write_whole
from studies.findings.findings import ClaimFinding, Findings
from studies.findings.measured import listed
from studies.findings.outcome import StudyOutcome
from studies.reports.report_arms import arms_section, differences_section, groups_section
from studies.reports.report_curves import curves_section
from studies.reports.report_trials import (
    Typed,
    cost_section,
    gate_section,
    history_section,
    not_run_section,
    remarks_section,
    reproduce_section,
    sealed_section,
)
from studies.reports.report_words import INTERVAL, change_words, ends_words
from studies.reports.results_csv import results_csv


class Report(NamedTuple):
    """The files of a report."""

    html: Path
    markdown: Path
    csv: Path


def write_report(folder: Path, outcome: StudyOutcome, findings: Findings, typed: Typed) -> Report:
    """Write the three files. `typed` has the lines that make the study and its report again.

    Raises `StorageError`.
    """
    document = report_document(outcome, findings, typed)
    files = Report(folder / "report.html", folder / "report.md", folder / "results.csv")
    write_whole(files.html, [html_page(document)])
    write_whole(files.markdown, [markdown(document)])
    write_whole(files.csv, [results_csv(outcome)])
    return files


def report_document(outcome: StudyOutcome, findings: Findings, typed: Typed) -> Document:
    """All that the report says, in its order."""
    blocks: list[Block] = [
        Paragraph(findings.headline, is_lead=True),
        _answer_section(findings),
        _hypothesis_section(outcome),
        arms_section(outcome, findings),
        curves_section(outcome, findings),
        differences_section(findings),
        groups_section(findings),
        _claims_section(findings),
        not_run_section(outcome, findings),
        gate_section(outcome),
        sealed_section(outcome, findings),
        history_section(outcome),
        remarks_section(outcome, findings),
        cost_section(outcome),
        reproduce_section(outcome, typed),
    ]
    return Document(f"Study: {outcome.name}", blocks)


def _answer_section(findings: Findings) -> Section:
    """What an engineer would show to somebody else: it needs no table beside it."""
    said = [Paragraph(" ".join(findings.answer)), Paragraph(findings.verdict_sentence)]
    return Section("Answer", said)


def _hypothesis_section(outcome: StudyOutcome) -> Section:
    question = f"Question: {outcome.question}" if outcome.question else "No question is stated."
    stated = (
        f"Hypothesis: {outcome.hypothesis}" if outcome.hypothesis else "No hypothesis is stated."
    )
    return Section("Question and hypothesis", [Paragraph(question), Paragraph(stated)])


def _claim_name(one: ClaimFinding) -> str:
    return f"{one.claim} with {one.variable}"


def _claims_section(findings: Findings) -> Section:
    """Diminishing returns, and whatever else was tested."""
    title = "Diminishing returns and other claims"
    if not findings.claims:
        return Section(title, [Paragraph("No claim was tested.")])
    columns = [
        Column("claim"),
        Column("verdict"),
        Column("effect (of score)", True),
        Column(INTERVAL, True),
        Column("in words"),
    ]
    rows = [
        [
            _claim_name(one),
            one.verdict,
            change_words(one.effect),
            ends_words(one.interval, signed=True),
            one.sentence,
        ]
        for one in findings.claims
    ]
    needed: dict[str, list[str]] = {}
    for one in findings.claims:
        if one.needed:
            needed.setdefault(one.needed, []).append(_claim_name(one))
    blocks: list[Block] = [Table("What was claimed, tested", columns, rows)]
    if needed:
        told = [f"{listed(names)}: {what}" for what, names in needed.items()]
        blocks += [Paragraph("What would decide it:"), Bullets(told)]
    return Section(title, blocks)
