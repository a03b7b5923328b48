"""Of a run's page: the files that it read, and which of their rows it left out or should show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ledger.records import Manifest
from ledger.row_lists import first_rows
from loop.run_page.viewed import Viewed
from loop.run_page.wording import cut
from pages.document import Block, Column, Paragraph, Section, Table
from rows.examples import DroppedRow
from rows.other_answers import KIND as OTHER_ANSWER
from rows.places import DROPPED, SIMILAR
from scores.measures import method_words
from scores.wording import share_text

NUM_FIRST = 5  # rows of each kind
SHA_CHARS = 16
KINDS = {
    "rejected": "could not be used",
    "duplicate": "the same as a row before it",
    "near_duplicate": "nearly the same as a row before it",
    "contaminated": "asks a question of an evaluation",
    "no_loss_tokens": "nothing in it to train on",
    "tie": "neither answer is better than the other",
    "unpaired": "a marked answer without one of the other kind to its prompt",
    "opposite": "a pair that stands the other way round as well",
    "similar": "near a question of an evaluation, and trained on",
}
WITHHELD = "It is near a question of the sealed test, which is not shown here"


def data_section(view: Viewed) -> Section:
    return Section("Data", list(_blocks(view)), anchor="data")


def _blocks(view: Viewed) -> Iterator[Block]:
    if not view.store.has_started:
        yield Paragraph("The run has not recorded its data.")
        return
    manifest = view.store.manifest()
    if manifest.files:
        own = method_words(view.config).name not in ("sft", "dpo")
        yield _files_table(manifest, "of their own answers" if own else "with loss")
        yield from _dropped(view, manifest)
        yield from _similar(view, manifest)
        yield from _other_answers(view, manifest)
    when = "of each checkpoint" if view.store.is_evaluation else "in rounds"
    yield _questions_table(manifest, view.config["evaluation"]["test_tasks"], when)
    yield Paragraph("Whole digests, and those of code and model files: data_manifest.json.")


def _files_table(manifest: Manifest, marked: str) -> Table:
    """`marked` is what the tokens with loss of the rows as rendered are to the method."""
    kept = dict(manifest.examples)
    rows = []
    for name, file in manifest.files.items():
        rows.append([name, file.path, f"{file.num_rows:,}", "", "", "", file.sha256[:SHA_CHARS]])
        one = kept.pop(name, None)
        if one is not None:
            counts = (one.num_examples, one.num_tokens, one.num_loss_tokens)
            rows[-1][3:6] = [f"{number:,}" for number in counts]
    for name, one in kept.items():  # of a setting that names several files
        counts = (one.num_examples, one.num_tokens, one.num_loss_tokens)
        rows.append([name, "all of its files", "", *(f"{number:,}" for number in counts), ""])
    columns = [
        Column("setting"),
        Column("file"),
        Column("rows", True),
        Column("examples", True),
        Column("tokens", True),
        Column(marked, True),
        Column("sha256 begins with"),
    ]
    return Table("Files of rows", columns, rows)


def num_rows_of(manifest: Manifest) -> int:
    return sum(file.num_rows for file in manifest.files.values())


def _dropped(view: Viewed, manifest: Manifest) -> Iterator[Block]:
    counts = {kind: n for kind, n in manifest.num_dropped.items() if kind != "similar" and n}
    num_rows = num_rows_of(manifest)
    if not counts:
        yield Paragraph(f"No row was left out, of {num_rows:,}.")
        return
    total = sum(counts.values())
    rows = [
        [
            kind,
            KINDS.get(kind, ""),
            f"{number:,}",
            share_text(number, num_rows, digits=1) if num_rows else "",
        ]
        for kind, number in counts.items()
    ]
    columns = [Column("kind"), Column("what it is"), Column("rows", True), Column("share", True)]
    yield Table(f"Left out: {total:,} of {num_rows:,} rows", columns, rows)
    found = first_rows(view.store.run_dir / DROPPED, counts, NUM_FIRST)
    for kind, number in counts.items():
        yield _rows_table(f"Left out as {kind}", found[kind], number, DROPPED, view)


def _similar(view: Viewed, manifest: Manifest) -> Iterator[Block]:
    older = manifest.num_dropped.get("similar", 0)  # older runs list them among the dropped
    number, file = (older, DROPPED) if older else (manifest.num_similar, SIMILAR)
    if not number:
        yield Paragraph("No row is near a question of an evaluation.")
        return
    yield Paragraph(
        f"{number:,} of {num_rows_of(manifest):,} rows are near a question of an evaluation "
        "without asking it (one other number or name). They are trained on; where that should not "
        "be, take them out."
    )
    found = first_rows(view.store.run_dir / file, ["similar"], NUM_FIRST)["similar"]
    yield _rows_table("Similar rows", found, number, file, view)


def _other_answers(view: Viewed, manifest: Manifest) -> Iterator[Block]:
    number = manifest.num_other_answers
    if not number:
        return  # or a run of a version that did not look
    yield Paragraph(
        f"{number:,} rows ask what other rows answer differently. All are trained on; where not "
        "every answer is right, correct or take out the wrong ones."
    )
    found = first_rows(view.store.run_dir / SIMILAR, [OTHER_ANSWER], NUM_FIRST)[OTHER_ANSWER]
    yield _rows_table("Rows with other answers, the worst first", found, number, SIMILAR, view)


def _rows_table(
    caption: str, found: Sequence[DroppedRow], number: int, file: str, view: Viewed
) -> Table:
    sealed = view.config["evaluation"]["test_tasks"]
    rows = []
    for row in found:
        is_sealed = any(name in row.reason for name in sealed)
        text, reason = (
            ("not shown", WITHHELD)
            if is_sealed
            else (cut(row.text or "not recorded"), cut(row.reason))
        )
        rows.append([f"{row.file} line {row.line_no:,}", text, reason])
    columns = [Column("row"), Column("its words"), Column("why")]
    note = f"{len(rows)} of {number:,} are shown; {file} has all of them, with both texts."
    return Table(caption, columns, rows, is_folded=True, note=note)


def _questions_table(manifest: Manifest, sealed: Sequence[str], when: str) -> Table:
    rows = []
    for name, file in manifest.eval_tasks.items():
        asked = "sealed test" if name in sealed else when
        rows.append([name, asked, file.path, file.sha256[:SHA_CHARS]])
    columns = [Column("task"), Column("asked"), Column("file"), Column("sha256 begins with")]
    return Table("Evaluations", columns, rows)
