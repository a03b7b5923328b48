"""What a run is distilled from (`distill.teacher`): found, held against the student, and said.

The teacher scores and samples the student's own tokens, so it needs the student's tokenizer, and it
has to be the same one from the first round to the last, also after a resumption. What is refused is
named before anything is paid for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from config_schema import LoadedConfig, TrainingConfig
from errors import ConfigError, RunStoreError
from ledger.records import Origin, Teacher, seconds_of
from ledger.references import Subject, find_to_sample, names_weights
from ledger.registry_names import weights_problem
from ledger.registry_weights import digests_of_weights, weights_dir
from ledger.store import RunStore
from loop.planning.models import find_model, model_change, model_digests
from rows.chat_formats import ChatFormat, choose_format, load_tokenizer
from rows.examples import Example, Message
from services.place import ServiceChoice, refuse_elsewhere
from simple_eval import joined_prompt
from storage.stored_json import record_of

KEY = "distill.teacher"
BASE = "base model "  # before the names of a base model's files, beside those of the weights


def find_teacher(loaded: LoadedConfig, model_path: str, kept: Mapping[str, Any]) -> Teacher | None:
    """What `distill.teacher` names; None for another method. A run that goes on keeps the one that
    it began with, whatever the name means by now.

    `model_path` is what the student's base model is loaded from, and `kept` holds a resumed run's
    resolved values. Raises `InputError` children.
    """
    settings = loaded.config.distill
    if settings is None:
        return None
    key = f"{loaded.file}: {KEY} {settings.teacher}"
    if kept.get("teacher") is not None:
        return _as_it_began(record_of(Teacher, kept["teacher"]), model_path)
    folders = [loaded.directory, Path()]
    if not names_weights(settings.teacher, folders):
        found = find_model(loaded, KEY, settings.teacher)
        teacher = Teacher(settings.teacher, settings.teacher, str(found or settings.teacher))
        if loaded.config.budget.prices is not None and teacher.model_path != model_path:
            raise ConfigError(
                f"{key}: budget.prices is set, and all tokens of a run are priced as those of "
                "base_model, which the teacher's are not. Leave budget.prices and budget.usd out, "
                "and bound the run by budget.tokens."
            )
    else:
        subject = find_to_sample(settings.teacher, folders, f"{loaded.file}: {KEY}")
        teacher = _of_subject(subject, settings.teacher, key)
    return replace(teacher, sha256=_digests(teacher, model_path))


def _of_subject(subject: Subject, name: str, key: str) -> Teacher:
    if subject.run_dir is None:
        return Teacher(name, None, None, subject.path)
    path, until = subject.path, None
    store = RunStore.open(subject.run_dir)
    if path is not None:
        until = next((one.expires_at for one in store.saved_weights() if one.path == path), None)
        is_there = until is None or seconds_of(until) > time.time()
        if subject.service == "embedded":
            is_there = is_there and weights_dir(subject.run_dir, path).is_dir()
        if not is_there:
            raise ConfigError(
                f"{key}: {path} is not there any more; it has expired or was deleted. Name other "
                f"weights; --list {subject.run_dir} shows which are there."
            )
        problem = weights_problem(subject.run_dir, subject.promoted_sha256, path)
        if problem is not None:
            raise ConfigError(f"{key}: in {subject.run_dir} {problem}. Name another entry.")
    teacher = Teacher(
        name=subject.label,
        model_name=subject.model_name,
        model_path=subject.base_model,
        path=path,
        run_id=subject.run_id,
        run_dir=str(subject.run_dir.resolve()),
        renderer=subject.renderer,
        service=subject.service,
        expires_at=until,
    )
    model_dir = _model_dir(teacher)
    if model_dir is not None and not (model_dir / "config.json").is_file():
        raise ConfigError(
            f"{key}: its base model was {model_dir}, where there is none any more. Put it back, or "
            "name another teacher."
        )
    if model_dir is not None and subject.model_files is not None and subject.model_files.files:
        change = model_change(subject.model_files.files, model_digests(model_dir))
        if change is not None:
            raise ConfigError(
                f"{key}: its base model, {model_dir}, has changed since these weights were "
                f"trained: {change}. Restore it, or name another teacher."
            )
    return teacher


def _model_dir(teacher: Teacher) -> Path | None:
    """The directory of its base model; None of a hub's."""
    path = None if teacher.model_path is None else Path(teacher.model_path)
    return path if path is not None and path.is_absolute() else None


def _digests(teacher: Teacher, model_path: str) -> dict[str, str]:
    """The sha256 of its files that are here; the student's base model has its own record."""
    found: dict[str, str] = {}
    if teacher.path is not None and teacher.run_dir is not None:
        found |= digests_of_weights(Path(teacher.run_dir), teacher.path) or {}
    model_dir = _model_dir(teacher)
    if model_dir is not None and teacher.model_path != model_path:
        found |= {f"{BASE}{name}": sha256 for name, sha256 in model_digests(model_dir).items()}
    return found


def with_teacher_now(
    store: RunStore, recorded: Mapping[str, Any], model_dir: Path | None
) -> dict[str, Any]:
    """What a run that goes on resolved when it began, with its teacher where that lies now: moved
    or copied together with the run, or where it was. `model_dir` is the student's base model."""
    kept = dict(recorded["resolved"])
    if kept.get("teacher") is None:
        return kept
    teacher = record_of(Teacher, kept["teacher"])
    run_dir, model_path = (
        one if one is None else str(store.now_at(Path(one)))
        for one in (teacher.run_dir, teacher.model_path)
    )
    if teacher.model_path == recorded["files"]["base_model"] and model_dir is not None:
        model_path = str(model_dir)
    return kept | {"teacher": asdict(replace(teacher, run_dir=run_dir, model_path=model_path))}


def _as_it_began(teacher: Teacher, model_path: str) -> Teacher:
    """The teacher of a run that goes on. Raises `RunStoreError` where its files are others."""
    run_dir = teacher.run_dir
    if teacher.service == "embedded" and run_dir is not None and not Path(run_dir).is_dir():
        raise RunStoreError(
            f"{run_dir}: the run of the teacher, {teacher}, lay here when this run began, and is "
            "neither here any more nor where it would be, had both been moved together. Move its "
            "directory to this place, and give the command again; or start a new run."
        )
    change = model_change(teacher.sha256, _digests(teacher, model_path))
    if change is not None:
        where = teacher.run_dir or teacher.model_path
        raise RunStoreError(
            f"{where}: the teacher {teacher} is not what it was when the run began: {change}. A "
            "run is distilled from one teacher: restore it, or start a new run."
        )
    return teacher


# --- held against the student ---------------------------------------------------------------------


def refuse_other_tokenizer(teacher: Teacher | None, of_student: Any, model_path: str) -> None:
    """Raise `ConfigError` where teacher and student do not write the same tokens with the same ids.
    Of a path of no known run the service is asked for its base model later."""
    if teacher is None or teacher.model_path in (None, model_path):
        return
    assert teacher.model_path is not None, "it is no path alone"
    theirs = load_tokenizer(teacher.model_path, KEY).get_vocab()
    own = of_student.get_vocab()
    if theirs == own:
        return
    other = sorted(text for text in {*theirs, *own} if theirs.get(text) != own.get(text))
    raise ConfigError(
        f"{KEY} {teacher.name}: its tokenizer is not the student's: {len(other)} tokens differ, "
        f"the first {other[0]!r} ({_said(theirs, other[0])} of the teacher, "
        f"{_said(own, other[0])} of the student), and the teacher judges the student's tokens by "
        "their ids. Name a teacher of the student's family, or train on its answers by method sft."
    )


def _said(vocabulary: Mapping[str, int], text: str) -> str:
    return f"id {vocabulary[text]}" if text in vocabulary else "not a token"


def refuse_same_weights(
    teacher: Teacher | None, origin: Origin | None, model_path: str, teacher_prompt: str | None
) -> None:
    """Raise `ConfigError` where the student begins as the teacher, and hears all that it does."""
    if teacher is None or teacher_prompt is not None:
        return
    if origin is None:
        is_same = teacher.path is None and teacher.model_path == model_path
    else:
        # Both are saved together, under one name.
        path = origin.parent.state_path.replace("/weights/", "/sampler_weights/")
        is_same = teacher.path == path
    if is_same:
        raise ConfigError(
            f"{KEY} {teacher.name}: these are the weights that the student begins as, so there is "
            "nothing to learn from it. Name a better teacher, or set distill.teacher_prompt."
        )


def refuse_other_teacher_service(teacher: Teacher | None, choice: ServiceChoice) -> None:
    """Raise `ConfigError` where the teacher is not on the service that the run is to be on."""
    if teacher is not None and teacher.path is not None:
        refuse_elsewhere(f"{KEY} {teacher.name}", "these weights", teacher.service, choice)


def with_system(example: Example, told: str) -> Example:
    """The row with a system message put first, joined with its own where it has one."""
    first = example.messages[0]
    if first.role != "system":
        return replace(example, messages=(Message("system", told), *example.messages))
    joined = first._replace(content=joined_prompt(told, first.content))
    return replace(example, messages=(joined, *example.messages[1:]))


def recorded_teacher(teacher: Teacher | None) -> dict[str, Any] | None:
    """As config.resolved.json has it."""
    return None if teacher is None else asdict(teacher)


def describe_teacher(
    teacher: Teacher | None, config: TrainingConfig, of_student: ChatFormat
) -> Iterator[str]:
    """Yield what the student learns from, and what of it may go wrong."""
    settings = config.distill
    if teacher is None or settings is None:
        return
    told = "" if settings.teacher_prompt is None else ", which alone hears distill.teacher_prompt"
    size = settings.group_size
    answers = f"{size} answer{'s' * (size != 1)} of up to {settings.max_tokens} tokens a row"
    how = f"{answers} of the student, judged token by token"
    if settings.way == "off_policy":
        how = (
            f"{answers} of the teacher, sampled once in a run; {settings.targets or 'soft'} targets"
        )
    yield f"teacher: {teacher}{told}; {how}"
    if teacher.expires_at is not None:
        yield (
            f"warning: the teacher's weights are kept until {teacher.expires_at}, and the run "
            "cannot go on without them; promote them (registry.py promote), or end before that"
        )
    elif teacher.path is not None and teacher.run_id is None:
        yield (
            "warning: until when the teacher's weights are kept is not known here, since they are "
            "of no known run, and the run cannot go on without them"
        )
    yield from _describe_renderer(teacher, of_student)


def _describe_renderer(teacher: Teacher, of_student: ChatFormat) -> Iterator[str]:
    name = teacher.renderer
    if name is None and teacher.model_path is not None:
        try:
            name = choose_format(None, teacher.model_path, key=KEY, fallback=of_student).name
        except ConfigError:
            yield (
                f"warning: the teacher is asked in the student's chat format, {of_student.name}, "
                "and whether it was made for it cannot be told"
            )
    if name not in (None, of_student.name):
        yield (
            f"warning: the teacher was trained with the renderer {name}, and is asked in the "
            f"student's, {of_student.name}, where it may answer worse. Set renderer_name to {name} "
            "where the student can be trained with it"
        )
