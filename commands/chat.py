"""`--chat`: a saved checkpoint asked what somebody types, as its run asks its questions.

Each question stands alone: the run's system prompt before it, in the run's chat format, sampled by
the run's evaluation settings. Nothing is written down, neither in the run nor elsewhere.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import tinker

from commands.boundary import Session
from commands.chat_answers import Asked
from commands.chat_lines import answer_lines, converse
from commands.evaluate import (
    common_renderer,
    notes_on,
    refuse_other_models,
    refuse_unfit_subjects,
    serve_as_named,
    why_weights_here,
)
from commands.opening import (
    OpenedSettings,
    begin_progress,
    choose_place,
    recorded_config,
    recorded_model_dir,
    refuse_beside,
)
from config_schema import LoadedConfig
from errors import ConfigError
from ledger.references import Subject, find_subjects
from ledger.store import RunStore
from loop.planning.fitting import limits_of
from loop.planning.inputs import model_inputs
from loop.planning.models import find_model_dir
from loop.planning.page import describe_formats
from loop.planning.plan import Plan, make_plan
from loop.planning.resumption import with_known_model
from loop.planning.training_yaml import load_settings
from loop.rounds.adopting import adopt_subjects
from loop.rounds.session import explained, open_service
from services.faults import SDK_ERRORS, is_gone, said_by
from services.place import ServiceChoice, service_of_run
from services.sdk import Clients, open_clients
from services.watched_client import watched
from simple_eval import DEFAULT_MAX_TOKENS

if TYPE_CHECKING:
    from local_tinker import Service

KEY = "--chat"
BESIDE = ("chat", "beside", "config", "overrides", "registry", "local", "json", "verbose")
SETTABLE = (
    *("evaluation.system_prompt", "evaluation.temperature", "evaluation.max_tokens"),
    *("evaluation.concurrency", "seed", "renderer_name", "base_model", "base_url"),
)
LEAVE_S = 5  # for the service to be told that the session is over


class Opened(NamedTuple):
    """The checkpoint that is asked, the settings to ask it by, and what is said of them first."""

    subject: Subject
    settings: OpenedSettings


def chat(args: argparse.Namespace, session: Session) -> int:
    """Answer what is typed, or what a pipe holds; returns the exit code."""
    refuse_beside(args, KEY, BESIDE)
    _refuse_other_settings(args.overrides)
    subject, settings = open_checkpoint(args)
    if args.beside and subject.path is None:
        raise ConfigError(
            f"{KEY} {subject.label}: this is the untouched base model itself, so there is nothing "
            "to show beside it. Leave --beside out, or name a checkpoint."
        )
    progress = begin_progress(args, settings, session)
    progress.lines(settings.notes)
    choice = place_of(args, settings, subject, session)
    progress.line(f"service: {choice.kind} ({choice.reason})")
    inputs = model_inputs(settings.loaded, settings.model_dir)
    progress.lines(notes_on([subject], inputs))
    name = common_renderer([subject], inputs, KEY)
    plan = make_plan(inputs, {} if subject.renderer is None else {"renderer_name": name})
    progress.lines(describe_formats(plan))
    plan = with_known_model(plan, None, progress.line)
    progress.lines(refuse_other_models([subject], plan))
    with open_service(choice, plan, progress) as service, asyncio.Runner() as runner:
        serve_as_named(service, plan, [subject])
        keys = session.keys
        tell = progress.line
        runner.run(refuse_unfit_subjects([subject], choice, plan.config, keys, tell, KEY))
        progress.live("loading the weights")
        with (
            weights_folder(service, subject, plan) as weights,
            connected(service, choice, weights, session) as clients,
        ):
            base = replace(subject, label=f"base model {plan.config.base_model}", path=None)
            both = [subject, base] if args.beside else [subject]
            found = runner.run(_clients(clients, both, plan, session))
            context = limits_of(inputs.model_dir).context
            asked = Asked(found, plan.renderer, plan.sampling, context)
            progress.line(_how(subject, plan))
            progress.close()
            if sys.stdin.isatty() and sys.stdout.isatty() and not args.json:
                return converse(asked, runner, progress)
            return runner.run(answer_lines(asked, progress, is_json=args.json))


# --- what is meant --------------------------------------------------------------------------------


def _refuse_other_settings(overrides: list[str]) -> None:
    """Raise `ConfigError` for settings that change nothing in how a question is answered."""
    for one in overrides:
        key = one.partition("=")[0].strip()
        if key not in SETTABLE:
            raise ConfigError(
                f"{KEY} --set {one}: {key} changes nothing in how a question is answered. Leave "
                f"it out; what does is {', '.join(SETTABLE)}."
            )


def open_checkpoint(args: argparse.Namespace) -> Opened:
    """The checkpoint, with the settings of --config or else those that its run recorded.

    Raises `InputError` children.
    """
    loaded = None
    if args.config is not None:
        loaded = load_settings(args.config, args.overrides)
    (subject,) = find_subjects([args.chat], Path("runs"), args.registry, KEY)
    if loaded is not None:
        loaded = _without_grader(loaded)
        settings = OpenedSettings(loaded, find_model_dir(loaded), None, None, {}, None)
        return Opened(subject, settings)
    if subject.run_dir is None:
        raise ConfigError(
            f"{KEY} {args.chat}: no run below ./runs has these weights, so how to ask them is not "
            "known. Give the config that they were trained with: --config my_config.json."
        )
    store = RunStore.open(subject.run_dir)
    recorded = store.settled_config()
    given, moved = recorded_config(store, recorded, args.overrides)
    given = _without_grader(given)
    model_dir = recorded_model_dir(given, recorded)
    settings = OpenedSettings(given, model_dir, store, None, {}, None, notes=tuple(moved))
    return Opened(subject, settings)


def _without_grader(loaded: LoadedConfig) -> LoadedConfig:
    """The settings without the model that grades, which is not needed here."""
    evaluation = loaded.config.evaluation.model_copy(update={"grader_model": None})
    return loaded._replace(config=loaded.config.model_copy(update={"evaluation": evaluation}))


def place_of(
    args: argparse.Namespace, settings: OpenedSettings, subject: Subject, session: Session
) -> ServiceChoice:
    """Where the checkpoint is asked: where its weights are. Raises `ConfigError`."""
    is_elsewhere = subject.service not in (None, "embedded")
    if is_elsewhere and args.local and subject.path is not None:
        raise ConfigError(
            f"{KEY} {subject.label}: its weights are on the service that its run was on, and "
            "--local stays on this machine. Leave --local out."
        )
    store, is_moved = settings.store, settings.loaded.config.base_url is not None
    if is_elsewhere and store is not None and not (is_moved or args.local):
        return service_of_run(store.settled_config(), session.keys.environment)
    return choose_place(args, settings, session, why_weights_here([subject]))


def _how(subject: Subject, plan: Plan) -> str:
    """By what settings the questions are answered."""
    sampling = plan.sampling
    prompt = sampling.system_prompt
    said = "no system prompt" if prompt is None else f"the system prompt {prompt!r}"
    path = subject.path or "the untouched base model"
    name = subject.label if subject.label == path else f"{subject.label} ({path})"
    return (
        f"asking {name}: temperature "
        f"{sampling.temperature:g}, up to {sampling.max_tokens or DEFAULT_MAX_TOKENS} tokens an "
        f"answer, seed {sampling.seed}, {said}; each question stands alone"
    )


# --- the session ----------------------------------------------------------------------------------


@contextlib.contextmanager
def weights_folder(service: Service | None, subject: Subject, plan: Plan) -> Iterator[Path | None]:
    """Where the embedded service finds the weights; None where a service has them."""
    if subject.adapter is None:
        yield subject.checkpoint_dir
        return
    with tempfile.TemporaryDirectory() as name:
        adopt_subjects(service, [subject], plan.config.base_model, Path(name), KEY)
        yield Path(name)


@contextlib.contextmanager
def connected(
    service: Service | None, choice: ServiceChoice, weights: Path | None, session: Session
) -> Iterator[Clients]:
    """A session on the service, which is told when it is over."""
    base_url, key = choice.base_url, session.keys.tinker
    status: Literal["success", "errored", "interrupted"] = "errored"
    if service is not None:
        assert weights is not None, "weights of no known run are refused here"
        base_url, key = service.base_url, service.open_folder(weights)
    with explained(base_url):
        clients = open_clients(base_url, key)
    try:
        with explained(base_url):
            yield clients
        status = "success"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        with contextlib.suppress(tinker.TinkerError, TimeoutError):
            clients.service.close(status).result(LEAVE_S)


async def _clients(
    clients: Clients, asked: Sequence[Subject], plan: Plan, session: Session
) -> dict[str, tinker.SamplingClient]:
    """A client for each of the checkpoints, by the name that its answers have.

    Raises `ConfigError` where the service does not have its weights any more.
    """
    found: dict[str, tinker.SamplingClient] = {}
    for one in asked:
        base_model = plan.config.base_model if one.path is None else None
        try:
            client = await clients.service.create_sampling_client(one.path, base_model)
        except SDK_ERRORS as error:
            if not is_gone(error):
                raise
            raise ConfigError(
                f"{KEY} {one.label}: the service does not have {one.path or base_model}: "
                f"{said_by(error)}. Name another checkpoint; --list RUN_DIR shows what there is."
            ) from None
        found[one.label] = watched(client, lambda _: None, session.keys.redacted)
    return found
