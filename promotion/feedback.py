"""`registry.py feedback`: what people said of a checkpoint's answers, as rows for the next run.

    pool.jsonl              rows with a right answer, by topic, for `mining.pool_file`
    NAME_to_answer.jsonl    prompts that were answered wrongly, for a person; no run takes them
    preferences.jsonl       a better and a worse answer to one prompt, for preference training
    left_out.jsonl          rows that went nowhere, and why; similar.jsonl those that are only near
                            what an evaluation asks, and were taken
    feedback.json           what was taken, from which file, into what

Nothing that an evaluation of the entry's run asks gets in, by the rule that training rows are held
to. The folder appears whole, and then the registry has an event of it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from errors import ConfigError, LoopError, RegistryError, first_of, one_line
from ledger.registry_file import CHAMPION, PREFIX, Promoted, Registry
from ledger.registry_names import measured_in, run_of
from ledger.registry_writing import Who, writing
from ledger.store import RunStore
from promotion.feedback_lines import json_lines, pool_row, preference_row, to_answer_row
from promotion.feedback_questions import Questions, RunKnowledge, known_of, training_examples
from promotion.feedback_rows import Rated, RatedFile, read_feedback
from promotion.feedback_sorting import (
    Beside,
    Sorted,
    beside_training,
    conversation_ids,
    sort_rows,
)
from rows.contamination import MIN_HELD, Hit
from rows.examples import DroppedRow
from rows.places import row_lines
from rows.row_keys import TO_ANSWER
from rows.sources import Source, as_text, sha256_of
from rows.units import units_of
from storage.folders import folder_aside, refuse_occupied, write_plain

POOL, PREFERENCES = "pool.jsonl", "preferences.jsonl"
LEFT_OUT, SIMILAR, SUMMARY = "left_out.jsonl", "similar.jsonl", "feedback.json"
FOLDER = "feedback"  # beside the registry
EVENT = "feedback"
FOLDER_CHARS = 12  # of the file's sha256
MAX_LISTED = 20  # topics and columns in a line
MAX_SHOWN = 60  # characters of one


@dataclass(frozen=True)
class FeedbackFile:
    """A file of rated answers, the entry that they are of, and who gives it."""

    name: str  # `registry:support@3`, `registry:support@champion`, `registry:champion`, `support`
    file: Path
    registry: Path  # the file
    who: Who
    out: Path | None = None  # a folder; None: one beside the registry
    right_from: float = 1.0  # the score from which an answer counts as right (`--right-from`)


@dataclass(frozen=True)
class Taken:
    """What became of the rows, and where it was written."""

    entry: str
    file: str
    sha256: str
    folder: Path
    right_from: float
    counts: Mapping[str, int]
    versions: Mapping[str, int]  # entry -> rows that are of it
    topics: Mapping[str, int]  # topic -> rows of the pool; "" for those without one
    notes: Sequence[str]
    files: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}

    def lines(self) -> list[str]:
        """What is said of it, a line a fact."""
        counts, folder = self.counts, self.folder
        said = [f"{one_line(as_text(self.file))}: {_many(counts['rows'], 'row')}, of {self.entry}"]
        others = {key: number for key, number in self.versions.items() if key != self.entry}
        said[0] += "".join(f", {number} of {key}" for key, number in others.items())
        said += self.notes
        topics = [
            f"{one_line(topic, MAX_SHOWN) or 'no topic'} {n}" for topic, n in self.topics.items()
        ]
        listed = first_of(topics, MAX_LISTED)
        of_topics = f" ({listed})" if set(self.topics) - {""} else ""
        said.append(f"right answers: {counts['pool']}{of_topics}")
        if counts["pool"]:
            said[-1] += (
                f"; the next run takes {folder / POOL} as a source of train_file, or as "
                "mining.pool_file where they are many"
            )
        if counts["conflicts"]:
            said.append(
                f"  {counts['conflicts']} of them to prompts that training rows answer otherwise "
                f"({SUMMARY} has each)"
            )
        if counts["known"]:
            said.append(f"  {counts['known']} of them stand in the training rows already")
        said.append(f"prompts that wait for a right answer: {counts['to_answer']}")
        if counts["to_answer"]:
            said[-1] += (
                f'; fill in "correction" in {folder / self._to_answer} and give that file to this '
                "command"
            )
        said.append(
            f"pairs of a better and a worse answer: {counts['preferences']}; "
            f"{counts['ties']} as good as the best of their prompt make none"
        )
        if counts["preferences"]:
            said[-1] += f"; a run with method dpo takes {folder / PREFERENCES} as train_file"
        left = [f"{counts[kind]} {word}" for kind, word in LEFT_WORDS.items() if counts[kind]]
        if left:
            said.append(f"left out: {', '.join(left)} ({folder / LEFT_OUT} has each)")
        if counts["repeated"]:
            said.append(f"{_many(counts['repeated'], 'row')} said again what another one says")
        if counts["similar"]:
            said.append(
                f"taken, and similar to what an evaluation asks: {_many(counts['similar'], 'row')} "
                f"({folder / SIMILAR} has each)"
            )
        return said

    @property
    def _to_answer(self) -> str:
        return next(one for one in self.files if one.endswith(f"_{TO_ANSWER}.jsonl"))


LEFT_WORDS = {
    "contaminated": "asked by an evaluation",
    "disputed": "called right and wrong",
    "unrated": "without score and correction",
}


def take(given: FeedbackFile) -> Taken:
    """Sort the rows of a file and write them for the next run.

    Raises `RegistryError`, `DataError` or `ConfigError` for what cannot be taken; nothing is
    written then. A file that was taken already is refused as long as its folder is there.
    """
    if not 0 < given.right_from <= 1:
        raise ConfigError(
            f"--right-from {given.right_from:g}: answers are right from a score above 0 and up to "
            "1. Give such a number, or leave it out for 1."
        )
    registry = Registry.read(given.registry)
    entry = entry_meant(registry, given.name)
    source = Source(as_text(given.file.name), given.file)
    sha256 = sha256_of(source)
    _refuse_taken(registry, entry, sha256, given.file)
    folder = _free_folder(given, registry, entry.name, sha256)
    read = read_feedback(source, _entries(registry, entry), entry.reference)
    named = {row.entry for row in read.rows}
    runs = [
        known
        for one in registry.entries
        if one.reference in named
        for known in _knowledge(registry, one)
    ]
    kept, dropped, similar = _without_questions(read.rows, Questions(runs), source.name)
    found = sort_rows(kept, given.right_from, source.name)
    not_taken = {row.line_no for row in found.left_out}
    similar = [row for row in similar if row.line_no not in not_taken]
    beside = beside_training(found.asked, training_examples(runs))
    if sha256_of(source) != sha256:
        raise RegistryError(
            f"{source}: it was written to while it was read. Give it again once it is finished."
        )
    left_out = sorted([*dropped, *found.left_out], key=lambda row: row.line_no)
    contents = _contents(entry, source.name, found, left_out, similar)
    notes = [*_notes(given.name, entry, read, found), *(note for run in runs for note in run.notes)]
    counts = _counts(read, found, left_out, similar, beside)
    taken = Taken(
        entry.reference,
        str(given.file),
        sha256,
        folder,
        given.right_from,
        counts,
        dict(Counter(row.entry for row in read.rows)),
        _topics(found),
        notes,
        sorted(contents),
    )
    contents[SUMMARY] = json.dumps(_summary(taken, beside), indent=1, ensure_ascii=False) + "\n"
    _write(given, taken, contents)
    return taken


# --- which entry ----------------------------------------------------------------------------------


def entry_meant(registry: Registry, name: str) -> Promoted:
    """The entry that a name means; a name alone is its champion, or the newest without one."""
    text = name.removeprefix(PREFIX)
    if "@" in text or text not in registry.names:
        return registry.find(name)
    newest = next(one for one in reversed(registry.entries) if one.name == text)
    return registry.alias_of(text, CHAMPION) or newest


def _entries(registry: Registry, usual: Promoted) -> Callable[[str], str | None]:
    """What rows may call an entry, by what it means; None of the usual one's bare name."""
    known: dict[str, Promoted] = {}
    for one in registry.entries:
        for called in (one.reference, one.key, one.sampler_path, one.state_path):
            known[called] = one
    for called in (usual.reference, usual.key, usual.sampler_path, usual.state_path):
        known[called] = usual

    def entry_of(value: str) -> str | None:
        if value.removeprefix(PREFIX) == usual.name:
            return None
        found = known.get(value)
        if found is None:
            _, at, word = value.removeprefix(PREFIX).partition("@")
            aliases = {alias for _, alias in registry.aliases()}
            why = "is no entry of this registry"
            if (word if at else value.removeprefix(PREFIX)) in aliases:
                why = "is an alias, which moves; a row has to say the version that answered"
            raise ValueError(f"{as_text(value)[:80]!r} {why}")
        if found.name != usual.name:
            raise ValueError(
                f"{value[:80]!r} is of {found.name}, and not of {usual.name}; give its rows in a "
                "file of their own"
            )
        return found.reference

    return entry_of


def _knowledge(registry: Registry, entry: Promoted) -> list[RunKnowledge]:
    """What the run of an entry knows, and the evaluation outside of it that it was promoted on.
    Raises `RegistryError` where either is gone."""
    problems: list[str] = []
    run = run_of(registry, entry, problems)
    if run is None:
        raise RegistryError(
            f"{entry.reference}: what the evaluations of its run {entry.run_id} ask cannot be told "
            f"({'; '.join(problems)}), so nothing can be kept out of the rows. Put the run back."
        )
    place = measured_in(registry, entry, run.run_dir)
    evaluations = [] if place == run.run_dir else [RunStore.open(place)]
    return [known_of(one) for one in (run, *evaluations)]


def _refuse_taken(registry: Registry, entry: Promoted, sha256: str, file: Path) -> None:
    for event in registry.events:
        if event["type"] != EVENT or (event.get("name"), event.get("sha256")) != (
            entry.name,
            sha256,
        ):
            continue
        folder = registry.folder / str(event.get("folder"))
        if folder.is_dir():
            raise RegistryError(
                f"{file}: these rows were taken for {entry.name} at {event['time']}, into "
                f"{folder}. Nothing is done twice; remove that folder to take them again."
            )


# --- what may not get in --------------------------------------------------------------------------


def _without_questions(
    rows: Sequence[Rated], questions: Questions, file: str
) -> tuple[list[Rated], list[DroppedRow], list[DroppedRow]]:
    """The rows that ask nothing that an evaluation asks, those that do, and those that are near."""
    kept: list[Rated] = []
    dropped: list[DroppedRow] = []
    similar: list[DroppedRow] = []
    for row in rows:
        turns = [(one.role, one.text) for one in row.prompt.messages]
        turns += [("assistant", answer) for answer in row.answers]
        ids = {one for answer in row.answers for one in conversation_ids(row.prompt, answer)}
        hit = questions.find_in(sorted(ids) or [""], turns)
        if hit is None or hit.kind == "similar":
            hit = _asked_elsewhere(row, questions) or hit
        if hit is None or hit.kind == "similar":
            kept.append(row)
        if hit is not None:
            text, other = (one or None for one in (hit.text, hit.other))
            into = dropped if hit.kind == "contaminated" else similar
            into.append(DroppedRow(file, row.line_no, hit.kind, hit.reason, text, other))
    return kept, dropped, similar


def _asked_elsewhere(row: Rated, questions: Questions) -> Hit | None:
    """The question that stands in what nobody asked: an answer, a system message, a label. Training
    rows are not held to that, but of these rows every text is written somewhere."""
    texts = [one.text for one in row.prompt.messages if one.role != "user"]
    texts += [*row.answers, *(one for one in (row.topic, row.id, row.time) if one is not None)]
    turns = [("user", text) for text in texts if len(units_of(text)) >= MIN_HELD]
    hit = questions.find_in([""], turns) if turns else None
    return hit if hit is not None and hit.kind == "contaminated" else None


# --- what is written ------------------------------------------------------------------------------


def _contents(
    entry: Promoted,
    file: str,
    found: Sorted,
    left_out: Sequence[DroppedRow],
    similar: Sequence[DroppedRow],
) -> dict[str, str]:
    """The files of the folder, those without a row left away."""
    pool = [pool_row(one, answer, file) for one in found.asked for answer in one.right]
    to_answer = [to_answer_row(one, file) for one in found.asked if one.is_failed]
    contents = {
        POOL: json_lines(pool),
        f"{entry.name}_{TO_ANSWER}.jsonl": json_lines(to_answer),
        PREFERENCES: json_lines(preference_row(pair, file) for pair in found.pairs),
        LEFT_OUT: "".join(row_lines(left_out)),
        SIMILAR: "".join(row_lines(similar)),
    }
    return {name: text for name, text in contents.items() if text}


def _write(given: FeedbackFile, taken: Taken, contents: Mapping[str, str]) -> None:
    """Let the folder appear, then the event of it: what the registry tells of is there."""
    with writing(given.registry) as writer:
        entry = writer.registry.find(taken.entry)
        _refuse_taken(writer.registry, entry, taken.sha256, given.file)
        with folder_aside(taken.folder) as aside:
            for name, text in contents.items():
                write_plain(aside / name, text.encode())
        folder = taken.folder.absolute()
        inside = folder.is_relative_to(writer.registry.folder)
        place = folder.relative_to(writer.registry.folder) if inside else folder
        try:
            writer.record(EVENT, _event(given, taken, contents, as_text(str(place))))
        except LoopError as error:
            error.args = (
                f"{error} The rows lie in {taken.folder}, and the registry does not tell of them: "
                "remove that folder before the command is given again.",
            )
            raise


def _event(
    given: FeedbackFile, taken: Taken, contents: Mapping[str, str], folder: str
) -> dict[str, Any]:
    """What the registry keeps of it."""
    return {
        "name": taken.entry.removeprefix(PREFIX).partition("@")[0],
        "entry": taken.entry,
        "file": as_text(taken.file),
        "sha256": taken.sha256,
        "folder": folder,
        "files": {
            name: hashlib.sha256(text.encode()).hexdigest() for name, text in contents.items()
        },
        "right_from": taken.right_from,
        "counts": dict(taken.counts),
        "versions": dict(taken.versions),
        **given.who._asdict(),
    }


def _free_folder(given: FeedbackFile, registry: Registry, name: str, sha256: str) -> Path:
    """Where the folder is to appear. One without an event of it, as a kill leaves, is let be."""
    if given.out is not None:
        refuse_occupied("--out", given.out)
        return given.out
    first = registry.folder / FOLDER / name / sha256[:FOLDER_CHARS]
    numbered = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(one for one in itertools.chain([first], numbered) if not one.exists())


# --- what is said of it ---------------------------------------------------------------------------


def _notes(name: str, entry: Promoted, read: RatedFile, found: Sorted) -> list[str]:
    notes = []
    if name.removeprefix(PREFIX) != entry.key:
        notes.append(f"{name} means {entry.reference}")
    if read.unused:
        columns = [
            f"{one_line(as_text(key), MAX_SHOWN)} ({_many(n, 'row')})"
            for key, n in read.unused.items()
        ]
        notes.append(f"columns that are not used: {first_of(columns, MAX_LISTED)}")
    if found.num_several_topics:
        notes.append(
            f"{_many(found.num_several_topics, 'prompt')} with rows of different topics: the "
            "first one counts"
        )
    return notes


def _counts(
    read: RatedFile,
    found: Sorted,
    left_out: Sequence[DroppedRow],
    similar: Sequence[DroppedRow],
    beside: Beside,
) -> dict[str, int]:
    kinds = Counter(row.kind for row in left_out)
    return {
        "rows": len(read.rows),
        "pool": sum(len(one.right) for one in found.asked),
        "to_answer": sum(one.is_failed for one in found.asked),
        "preferences": len(found.pairs),
        "ties": found.num_ties,
        **{kind: kinds[kind] for kind in LEFT_WORDS},
        "repeated": found.num_repeated,
        "similar": len(similar),
        "conflicts": len(beside.conflicts),
        "known": len(beside.known),
    }


def _topics(found: Sorted) -> dict[str, int]:
    topics = Counter[str]()
    for one in found.asked:
        if one.right:
            topics[one.topic or ""] += len(one.right)
    return dict(topics)


def _summary(taken: Taken, beside: Beside) -> dict[str, Any]:
    """What `feedback.json` holds."""
    return {**taken.to_json(), "conflicts": sorted(set(beside.conflicts.values()))}


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
