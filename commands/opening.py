"""From a command line to the settings and the run directory that are meant."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from commands.boundary import Session
from config_schema import LoadedConfig, config_hash, validate
from errors import ConfigError, StorageError
from loop.planning.models import find_model_dir
from loop.planning.training_yaml import load_settings
from services.place import (
    OF_ANOTHER_PROGRAM,
    TO_START_FROM,
    ServiceChoice,
    choose_service,
    why_here,
)
from settings.addresses import is_address, refused
from settings.config_file import with_overrides
from settings.method_groups import METHOD_GROUPS
from settings.price_file import with_prices
from settings.sameness import ADDED_SINCE, CHANGEABLE_ON_RESUME, hash_before, kept_settings

if TYPE_CHECKING:
    from ledger.store import RunStore
    from loop.planning.origin import Start
    from loop.planning.plan import Plan
    from loop.reports.progress import Progress


def refuse_other_config(recorded: dict[str, Any], given: LoadedConfig, where: str) -> None:
    """Raise `ConfigError`, naming the settings, when a resumed run would not be the same run.

    `where` is what the settings were given in.
    """
    was, now = kept_settings(recorded), kept_settings(given.config.model_dump(mode="json"))
    changed = [key for key in {**was, **now} if was.get(key) != now.get(key)]
    if changed:
        shown = "; ".join(f"{key} was {was.get(key)!r}, is {now.get(key)!r}" for key in changed)
        raise ConfigError(
            f"{where}: the run was started with other settings: {shown}. A resumed run may "
            f"change only {', '.join(CHANGEABLE_ON_RESUME)}. Change these back, or start a new run."
        )


# What an argument of the command line is when it is not given.
_NOT_GIVEN = (None, False, [])


def refuse_beside(args: argparse.Namespace, mode: str, allowed: Collection[str]) -> None:
    """Raise `ConfigError` for arguments that mean nothing beside one that does something else.

    `allowed` are the names of the arguments that do.
    """
    names = {"overrides": "--set"}
    given = [
        names.get(name, f"--{name.replace('_', '-')}")
        for name, value in vars(args).items()
        if value not in _NOT_GIVEN and name not in allowed
    ]
    if given:
        raise ConfigError(
            f"{mode} stands alone, and {', '.join(given)} was given beside it. Leave that out, or "
            f"give it in a command of its own, without {mode}."
        )


class OpenedSettings(NamedTuple):
    """The settings of a run, and its store and resolved values when it is being resumed."""

    loaded: LoadedConfig
    model_dir: Path | None
    store: RunStore | None
    run_dir: Path | None
    kept: dict[str, Any]
    evaluated: list[Any] | None  # checkpoints to evaluate: their names, or records on resumption
    back_to: int | None = None  # the round to go back to
    start: Start | None = None  # what a run that has not begun starts from
    notes: tuple[str, ...] = ()  # what is to be said first


def open_settings(args: argparse.Namespace, session: Session) -> OpenedSettings:
    """Find out from the command line which settings and which run directory are meant."""
    if args.registry is not None and args.evaluate is None:
        raise ConfigError(
            "--registry is where --evaluate and --chat look up registry:NAME@3, and there is "
            "neither. Leave it out; start_from looks in the config's folder and in this one."
        )
    if args.resume is None:
        if args.config is None:
            raise ConfigError(_no_config(args))
        loaded = load_settings(args.config, args.overrides)
        opened = OpenedSettings(
            loaded, find_model_dir(loaded), None, args.run_dir, {}, args.evaluate
        )
        return opened if args.evaluate is not None else with_start(opened)
    if args.evaluate is not None:
        raise ConfigError(
            "--evaluate and --resume exclude each other: the directory of an evaluation that is "
            "resumed says which checkpoints it is of."
        )
    if args.run_dir is not None:
        raise ConfigError(
            "--run-dir and --resume exclude each other: --resume names the directory."
        )
    return _resumed(args, session)


def _no_config(args: argparse.Namespace) -> str:
    if args.evaluate is None:
        return (
            "--config is missing. Give the path of a JSON config, for example --config "
            "eval_loop_config.json, or --resume RUN_DIR to continue a run."
        )
    return (
        "--config is missing: --evaluate asks the questions of a config. Give the path of the one "
        "that the checkpoints were trained with, or of another with the same base_model and other "
        "eval_tasks, for example --config my_config.json."
    )


def _resumed(args: argparse.Namespace, session: Session) -> OpenedSettings:
    from ledger.finding import newest_run
    from ledger.run_directory import EVALUATED, is_absent_or_empty
    from ledger.store import RunStore
    from loop.planning.resumption import refuse_other_code
    from loop.planning.tasks import task_code
    from loop.planning.teacher import with_teacher_now

    given = None
    if args.overrides and args.resume and not is_absent_or_empty(resumed_place(args.resume)[0]):
        _refuse_other_method(RunStore.open(resumed_place(args.resume)[0]), args.overrides)
    if args.config is not None:
        given = load_settings(args.config, args.overrides)
    run_dir, back_to = resumed_place(args.resume)
    notes: list[str] = []
    if args.resume == "":
        if given is None:
            raise ConfigError(
                "--resume without a RUN_DIR needs --config, to know whose run is meant."
            )
        hashes = config_hash(given.config), hash_before(given.config.model_dump(mode="json"))
        run_dir, why = newest_run(Path("runs"), hashes)
        notes.append(why)
    elif given is not None and is_absent_or_empty(run_dir):
        return with_start(OpenedSettings(given, find_model_dir(given), None, run_dir, {}, None))
    store = session.store = RunStore.open(run_dir, to_resume=not args.dry_run)
    store.refuse_impossible_ledger()
    recorded = store.settled_config()
    if given is None:
        given, moved = recorded_config(store, recorded, args.overrides)
        notes += moved
    where = str(run_dir) if args.config is None else str(given.file)
    model_dir = recorded_model_dir(given, recorded)
    model = store.manifest().base_model if store.has_started else None
    if model_dir is not None and model is not None and model.files:
        # Its files tell which model it is, so that another place is no other setting.
        begun_as = {"base_model": recorded["config"]["base_model"]}
        given = given._replace(config=given.config.model_copy(update=begun_as))
    refuse_other_config(recorded["config"], given, where)
    evaluated = recorded.get(EVALUATED)
    if back_to is not None:
        _refuse_going_back(args.resume, store, back_to)
    # Before a run has started nothing is recorded, and --config names code as for a new one.
    if store.has_started or args.config is None:
        notes += refuse_other_code(store, task_code(given), given.directory)
    kept, said = with_teacher_now(store, recorded, model_dir), tuple(notes)
    opened = OpenedSettings(given, model_dir, store, run_dir, kept, evaluated, back_to, notes=said)
    return opened if store.has_started or evaluated is not None else with_start(opened)


def _refuse_other_method(store: RunStore, overrides: list[str]) -> None:
    """Raise `ConfigError` where --set gives a run another method than it has, or settings of one:
    what these may be together is told of new runs."""
    recorded = store.settled_config()["config"]
    was = recorded.get("method", ADDED_SINCE["method"])
    for override in overrides:
        key = override.partition("=")[0].strip()
        group = key.partition(".")[0]
        is_other = group in METHOD_GROUPS and group != was
        if group == "method" and with_overrides({}, [override]).get("method") != was:
            is_other = True
        if is_other:
            raise ConfigError(
                f"{store.run_dir}: --set {key}: the run was started with method {was}, and neither "
                "its method nor what belongs to one can change when it is resumed. Leave it out; "
                "or start a new run with another method, which may start from this run's weights "
                f'("start_from": "{store.run_dir}@best").'
            )


def _refuse_going_back(key: str, store: RunStore, back_to: int) -> None:
    """Raise where a run cannot go back to the end of a round, or would lose what was promoted."""
    if store.is_evaluation:
        raise ConfigError(
            f"--resume {key}: {store.run_dir} is an evaluation of checkpoints, which has no "
            "rounds to go back to. Give the directory alone."
        )
    store.refuse_losing_promoted(back_to)


def recorded_config(
    store: RunStore, recorded: dict[str, Any], overrides: list[str]
) -> tuple[LoadedConfig, list[str]]:
    """The settings that a run recorded, where its files lie now; a line where that is elsewhere."""
    from ledger.finding import config_file_of

    file = config_file_of(recorded, store)
    raw = with_overrides(recorded["config"], overrides)
    raw = with_prices(raw, file.parent, str(store.run_dir))
    loaded = LoadedConfig(validate(raw, str(store.run_dir)), file, file.parent)
    if str(file) == recorded["config_file"]:
        return loaded, []
    return loaded, [
        f"{store.run_dir} has been moved or copied: its files are those of {file.parent}"
    ]


def recorded_model_dir(given: LoadedConfig, recorded: dict[str, Any]) -> Path | None:
    """The directory of the base model, or where it lay, if it does so still: its name may be from
    another working folder. The sha256 of its files tells whether it is the same."""
    model_dir = find_model_dir(given)
    if model_dir is not None or given.config.base_model != recorded["config"].get("base_model"):
        return model_dir
    was = Path(recorded["files"]["base_model"])
    return was if was.is_absolute() and (was / "config.json").is_file() else None


def with_start(opened: OpenedSettings) -> OpenedSettings:
    """The settings of a run that has not begun, with what it is to start from."""
    from loop.planning.origin import find_origin

    start = find_origin(opened.loaded)
    return (
        opened
        if start is None
        else opened._replace(start=start, kept={**start.kept, **opened.kept})
    )


def resumed_place(text: str) -> tuple[Path, int | None]:
    """The directory that --resume names, and the round to go back to, if one is named."""
    match = re.fullmatch(r"(.+)@round_(\d{1,4})", text, re.DOTALL)
    if match is None or Path(text).exists():
        return Path(text), None
    return Path(match[1]), int(match[2])


def begin_progress(
    args: argparse.Namespace, settings: OpenedSettings, session: Session
) -> Progress:
    """What shows how a command goes on; it says so at once, before libraries that take seconds."""
    from loop.reports.progress import Progress

    session.end_live_line()
    progress = Progress(verbose=args.verbose, redacted=session.keys.redacted)
    name = settings.loaded.config.run_name
    progress.line(f"{name}: reading settings and data, loading libraries")
    progress.live("loading libraries and data")
    session.progress = progress
    return progress


def choose_place(
    args: argparse.Namespace, settings: OpenedSettings, session: Session, here: str | None
) -> ServiceChoice:
    """Where the run happens, by the rules of services/place.py; `here` is why on this machine.

    Raises `ConfigError` where a resumed run's model directory is gone, and for what is no address.
    """
    if settings.store is not None and settings.model_dir is None:
        was = settings.store.settled_config()["files"]["base_model"]
        if Path(was).is_absolute():
            raise ConfigError(
                f"{settings.store.run_dir}: the base model that the run began with, {was}, is not "
                "there. Put it back, or say where it lies now with --set base_model=DIRECTORY: the "
                "sha256 of its files tells whether it is the same."
            )
    config, env, start = settings.loaded.config, session.keys.environment, settings.start
    if start is not None:
        weights = TO_START_FROM if start.adapter is None else OF_ANOTHER_PROGRAM
        here = why_here(start.service, weights) or here
    choice = choose_service(
        config.base_url,
        config.base_model,
        settings.model_dir,
        env,
        local=args.local,
        here=here,
    )
    if choice.base_url is not None and not is_address(choice.base_url):  # the config's was checked
        raise ConfigError(refused("TINKER_BASE_URL", choice.base_url))
    return choice


def begin_run(
    settings: OpenedSettings,
    plan: Plan,
    choice: ServiceChoice,
    session: Session,
    evaluated: list[dict[str, Any]] | None = None,
) -> RunStore:
    """Make the run directory and write down everything that was settled.

    `evaluated` are the checkpoints of an evaluation outside a run.
    """
    from ledger.run_directory import EVALUATED, new_run_dir
    from ledger.store import RunStore
    from loop.planning.manifest import data_manifest, dropped_rows, resolved_config, versions

    name, resolved = plan.config.run_name, resolved_config(plan, choice, versions())
    if evaluated is not None:
        name, resolved = f"{name}-evaluation", {**resolved, EVALUATED: evaluated}
    run_dir = settings.run_dir or new_run_dir(Path("runs"), name)
    try:
        store = session.store = RunStore.create(run_dir, resolved)
        store.on_event = session.tell_event
    except StorageError as error:
        raise StorageError(f"{error} Nothing was begun yet; give the same command again.") from None
    similar = plan.inputs.split.similar
    dropped = dropped_rows(plan)
    store.record_start(data_manifest(plan), dropped, plan.config_hash, similar, plan.origin)
    return store
