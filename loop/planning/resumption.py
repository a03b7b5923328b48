"""What a resumption refuses: other data, other code, other results, training past the sealed test.

What is refused is named, with the file to restore; a run goes on as itself or not at all.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from config_schema import TrainingConfig
from errors import ConfigError, RunStoreError
from grading.graders import GRADING
from ledger.records import ModelFiles
from ledger.store import RunStore
from loop.planning.manifest import data_manifest, dropped_rows, with_model_files
from loop.planning.models import model_change
from loop.planning.plan import Plan
from rows.places import place_text


def refuse_other_data(store: RunStore, manifest: Mapping[str, Any]) -> None:
    """Raise `RunStoreError` when a file is no longer the one that the run began with."""
    recorded = store.manifest()
    known = {"files": recorded.files, "eval_tasks": recorded.eval_tasks}
    for group, files in known.items():
        for name, file in manifest[group].items():
            if name not in files or files[name].sha256 != file["sha256"]:
                of_task = ""
                if file["path"] == name:  # a task of Inspect's
                    of_task = (
                        " (samples have to be shuffled with a seed; a version of before may have "
                        "recorded less of the task)"
                    )
                raise RunStoreError(
                    f"{file['path']}: the content of {name} has changed since the run began, "
                    f"so the run cannot go on as the same run. Restore the file{of_task}, or start "
                    "a new run."
                )


def refuse_other_grading(store: RunStore) -> None:
    """Raise `RunStoreError` where answers would be graded otherwise than those before them."""
    began = store.manifest().grading
    if began != GRADING:
        raise RunStoreError(
            f"{store.run_dir}: its answers were graded by version {began} of the graders, and this "
            f"program has version {GRADING}, which may grade the same answers otherwise, so the "
            "run cannot go on as the same run. Resume it with the version of this program that "
            f'began it, or start a new run from its weights ("start_from": "{store.run_dir}@best").'
        )


def refuse_other_model(where: str, recorded: ModelFiles | None, plan: Plan) -> list[str]:
    """Raise `RunStoreError` when the base model's files are not those that a run began with,
    wherever they lie. Returns a line where that cannot be told; `where` names the run."""
    if not plan.model_files:  # a hub's, which has no files here
        return []
    if recorded is None:
        return [
            f"base model: whether {plan.inputs.model_path} is the one that {where} began with "
            "cannot be told, because the version that began it recorded no sha256 of its files"
        ]
    change = model_change(recorded.files, plan.model_files)
    if change is not None:
        raise RunStoreError(
            f"{plan.inputs.model_path}: this is not the base model that {where} began with, from "
            f"{recorded.path}: {change}. Adapter and scores are of those files alone: restore "
            "them, or start a new run."
        )
    return []


def refuse_other_rows(store: RunStore, manifest: Mapping[str, Any], *, is_cut: bool) -> None:
    """Raise `RunStoreError` when of the same files other rows or tokens would be trained on, as
    where another version cleans or renders them otherwise. Manifests of older runs have their
    number alone. With `is_cut` rows are cut at the model's context, where they were too long."""
    for key, began in store.manifest().examples.items():
        now = manifest["examples"].get(key, {"num_examples": 0, "sha256": None})
        tokens = [(began.num_tokens, now.get("num_tokens")),
                  (began.num_loss_tokens, now.get("num_loss_tokens"))]  # fmt: skip
        if began.num_examples == now["num_examples"] and not is_cut:
            for (was, is_now), what in zip(tokens, ("tokens", "tokens with loss"), strict=True):
                if was != is_now:
                    raise RunStoreError(
                        f"{store.run_dir}: the rows of {key} had {was:,} {what} when the run "
                        f"began, and this version writes {is_now:,} (reasoning in an answer, "
                        "calls of tools and weights are read since), so it cannot go on as the "
                        "same run. Resume it with the version that began it, or start a new run."
                    )
        is_same = began.sha256 in (None, now["sha256"])
        if began.num_examples != now["num_examples"] or not is_same:
            others = " others" if began.num_examples == now["num_examples"] else ""
            raise RunStoreError(
                f"{store.run_dir}: the run began with {began.num_examples} examples of {key}, and "
                f"this version keeps {now['num_examples']}{others} of the same rows, so it cannot "
                "go on as the same run. Resume it with the version of this program that began it "
                "(its data_dropped.jsonl says what went), or start a new run."
            )


def with_known_model(plan: Plan, store: RunStore | None, say: Callable[[str], None]) -> Plan:
    """The plan with the digests of its base model's files, before any of it is loaded.

    Raises `RunStoreError` where the run in `store` began with others.
    """
    plan = with_model_files(plan, say)
    if store is not None and store.has_started:
        for line in refuse_other_model(str(store.run_dir), store.manifest().base_model, plan):
            say(line)
    return plan


def refuse_other_code(store: RunStore, code: Mapping[str, str], folder: Path) -> list[str]:
    """Raise `RunStoreError` when code that the run's tasks are made of is not what it was.

    `code` is what it is now, by its path from the settings' `folder` its sha256. To be asked before
    any of it is loaded, and so run. Returns a line on each file.
    """
    if not store.has_started:
        if code:
            raise RunStoreError(
                f"{store.run_dir}: the run has not started, so it is not recorded which code "
                f"{folder / next(iter(code))} is to have. Start a new run."
            )
        return []
    # Older runs recorded the whole path of each.
    began_in = Path(store.settled_config()["config_file"]).parent
    recorded = {
        os.path.relpath(path, began_in) if Path(path).is_absolute() else path: sha256
        for path, sha256 in store.manifest().code.items()
    }
    # What no import statement names was found by running the task, and is read where it lay.
    found = {path: folder / path for path in recorded if path not in code}
    code = {**code, **{path: _sha256(file) for path, file in found.items() if file.is_file()}}
    if (path := changed_code(recorded, code)) is not None:
        raise RunStoreError(
            f"{os.path.normpath(folder / path)}: this Python file belongs to a task of the run, "
            f"and it is not the one that the run began with (sha256 was {recorded.get(path)}, is "
            f"{code.get(path)}), so it was not run. Restore it, or start a new run."
        )
    return [
        f"task code: {os.path.normpath(folder / path)} (sha256 {sha256})"
        for path, sha256 in code.items()
    ]


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def changed_code(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """A file that is not what it was, by its path; None where all are. What lies outside of the
    settings' folder may lie elsewhere now, under its name and with what it held."""
    for path in (*now, *before):
        if path in now and path in before and now[path] != before[path]:
            return path
    moved = [{(Path(one).name, code[one]): one for one in code if one not in other}
             for code, other in ((now, before), (before, now))]  # fmt: skip
    for code, other in (moved, reversed(moved)):
        for content, path in code.items():
            if content not in other:
                return path
    return None


def refuse_other_results(store: RunStore, asked: Mapping[str, Collection[str]]) -> None:
    """Raise `RunStoreError` for results of other samples than the tasks have."""
    for name, measured in store.measured_files().items():
        for task, ids in measured.sample_ids.items():
            if task not in asked or ids != asked[task]:
                raise RunStoreError(
                    f"{store.run_dir / name}: it holds results of {task!r} that are not of the "
                    "samples that the task has. The file was changed by something else; "
                    "restore it or start a new run."
                )


def refuse_foreign_records(plan: Plan, store: RunStore) -> None:
    """Raise `RunStoreError` for results and selections that this plan cannot have led to."""
    tasks = (*plan.tasks, *plan.test_tasks)
    refuse_other_results(store, {task.name: task.sample_ids for task in tasks})
    num_picks, selection = 0, None
    for event in store.events("selected"):
        before = store.checkpoint(event["round"] - 1)
        num_steps = plan.steps.of_next_round(0 if before is None else before.step)
        num_slots = num_steps * plan.config.batch_size
        selection = store.selection(event["round"])
        assert selection is not None, "there is an event of it"
        num_picks += num_slots
        numbers = selection.train_cursor, *selection.times_drawn.values()
        is_of_plan = (selection.round, selection.seed) == (event["round"], plan.config.seed)
        if len(selection.picks) != num_slots or max(numbers) > num_picks or not is_of_plan:
            raise _foreign(store, event["file"], "other rows or counts than the settings ask for")
    if selection is not None and (picks := plan.contaminated_picks(selection)):
        name = f"selections/round_{selection.round:02d}.json"
        pick = picks[0]
        place = pick.example_id
        if pick.file is not None and pick.line_no is not None:
            place = f"{place_text(pick.file, pick.line_no, pick.text)}, {place}"
        raise _foreign(store, name, f"{place}, which may not be trained on")


def _foreign(store: RunStore, name: str, what: str) -> RunStoreError:
    return RunStoreError(
        f"{store.run_dir / name}: it names {what}. The file was changed by something else; "
        "restore it or start a new run."
    )


def continue_run(store: RunStore, plan: Plan, back_to: int | None = None) -> None:
    """Check that the data are the ones the run began with, and mark the resumption.

    It goes on where it was, or from the end of round `back_to`.
    """
    refuse_training_past_test(store, plan.config)

    manifest = data_manifest(plan)
    if not store.has_started:  # killed while its directory was being made
        similar = plan.inputs.split.similar
        dropped = dropped_rows(plan)
        store.record_start(manifest, dropped, plan.config_hash, similar, plan.origin)
    else:
        refuse_other_data(store, manifest)
        refuse_other_grading(store)
        num_cut = plan.train.num_truncated + plan.pool.num_truncated
        is_cut = plan.max_seq_length != plan.config.max_seq_length and num_cut > 0
        refuse_other_rows(store, manifest, is_cut=is_cut)
        refuse_foreign_records(plan, store)
        store.mark_resumed(plan.config.model_dump(mode="json"), back_to)


def refuse_training_past_test(store: RunStore, config: TrainingConfig) -> None:
    """Raise `ConfigError` when a larger bound would train on after the sealed test was opened."""
    opened, recorded = store.test_opened(), store.resolved_config()["config"]
    bounds = {"max_rounds": config.max_rounds, "budget": config.budget.model_dump(mode="json")}
    changed = [key for key, value in bounds.items() if recorded.get(key) != value]
    if opened is not None and changed:
        raise ConfigError(
            f"{store.run_dir}: {changed[0]} cannot change any more, because the sealed test of "
            f"this run has been opened, on round {opened['round']}: training on would give a "
            "checkpoint that no unseen question can judge. Resume without the change, or start a "
            f"new run from its weights: a config with start_from: {store.run_dir}@best and an "
            "evaluation.test_tasks that nobody has looked at."
        )
