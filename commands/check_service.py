"""`--check-service`: what the service that the settings point at does as Tinker documents it.

Each line is measured there and then; services/check has the probes and what is made of them. With
--config the result is written beside the config, where its runs find it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import secrets
import signal
import sys
import tempfile
import textwrap
import threading
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from commands.boundary import Session, in_loop
from commands.opening import OpenedSettings, begin_progress, choose_place, refuse_beside
from config_schema import LoadedConfig, load_and_validate_config, validate
from errors import ConfigError, Interrupted
from loop.planning.models import find_model_dir
from loop.planning.service_checks import FILE_SUFFIX, check_record
from loop.reports.console import PROGRAM, USUAL_WIDTH, say, tell
from services.keys import Keys
from services.place import ServiceChoice
from settings.config_file import with_overrides
from storage.files import write_whole

if TYPE_CHECKING:
    import tinker

    from local_tinker import Service
    from loop.reports.progress import Progress
    from services.check.bench import Bench, Row
    from services.check.checking import Report, Subject
    from services.check.verdicts import Line

MODE = "--check-service"
BESIDE = ("check_service", "config", "overrides", "local", "json", "verbose")
NUM_ROW_TOKENS = 33  # as many as are sampled behind a prompt, so that no context has to be larger
LEAVE_S = 5  # for the service to be told that the session is over
NOT_NAMED = "(no base_model is named)"  # what is said to have nowhere to go then
# Without --config: what the settings need and the check does not.
NOTHING_TO_TRAIN = {"train_file": "nothing.jsonl", "eval_tasks": ["simple_qa"]}
TEXTS = (
    "The capital of France is Paris, and the capital of Italy is Rome. Water boils at one hundred "
    "degrees at sea level, and it freezes at zero. A week has seven days, and a year has twelve "
    "months. ",
    "In the morning the sun rises in the east, and in the evening it sets in the west. Bread is "
    "made of flour, water and salt. Most birds can fly, but a penguin swims instead. ",
)


class Rows(NamedTuple):
    """The texts in the model's tokens."""

    first: Row
    second: Row
    long: Row
    vocab_size: int


def check_service(args: argparse.Namespace, session: Session) -> int:
    """Check the service and print the table; 1 where a difference changes scores."""
    refuse_beside(args, MODE, BESIDE)
    settings = _settings(args, session)
    config = settings.loaded.config
    progress = begin_progress(args, settings, session)
    choice = choose_place(args, settings, session, None)
    progress.line(f"service: {choice.kind} ({choice.reason})")
    from loop.planning.inputs import model_path_of
    from loop.rounds.session import hosting

    path = model_path_of(config, settings.model_dir)
    with hosting(choice, progress) as service:
        if service is not None:
            _serve(service, config.base_model, path)
        with tempfile.TemporaryDirectory(prefix="check-service-") as folder:
            report = in_loop(
                _check(settings, choice, service, Path(folder), session.keys, progress)
            )
    progress.close()
    record = check_record(choice, config.base_model, report.lines)
    _show(args, record, report, session.keys)
    if args.config is not None:
        file = settings.loaded.file.with_suffix(FILE_SUFFIX)
        write_whole(file, [session.keys.redacted(json.dumps(record, indent=1)), "\n"])
        progress.line(f"written: {file}, which runs of this config on this service will name")
    return 1 if any(line.is_bad for line in report.lines) else 0


def _settings(args: argparse.Namespace, session: Session) -> OpenedSettings:
    """The settings of --config, or those of --set alone with the model that the service has."""
    if args.config is not None:
        loaded = load_and_validate_config(args.config, args.overrides)
    else:
        raw = with_overrides(NOTHING_TO_TRAIN, args.overrides)
        if "base_model" not in raw:
            raw["base_model"] = _only_model(args, raw.get("base_url"), session.keys)
        loaded = LoadedConfig(validate(raw, MODE), Path.cwd() / "check", Path.cwd())
    return OpenedSettings(loaded, find_model_dir(loaded), None, None, {}, None)


def _only_model(args: argparse.Namespace, base_url: str | None, keys: Keys) -> str:
    """The model to check where none is named: this project's own on this machine, else the one that
    the service lists. Raises `ConfigError` where it lists several."""
    from services.listening import refuse_no_service
    from services.place import choose_service

    demo = PROGRAM.parent / "demo_model"
    choice = choose_service(base_url, NOT_NAMED, None, keys.environment, local=args.local)
    if choice.kind == "embedded":
        return str(demo)
    if choice.base_url is not None:
        refuse_no_service(choice.base_url, functools.partial(tell, file=sys.stderr))
    from loop.rounds.session import explained
    from services.sdk import names_to_train, rest_client
    from services.waiting import aside

    async def listed() -> list[str]:
        with explained(choice.base_url):
            rest = await aside(lambda: rest_client(choice.base_url, keys.tinker))
            return names_to_train(await rest.get_server_capabilities())

    names = in_loop(listed())
    if len(names) != 1:
        raise ConfigError(
            f"{MODE}: no model is named, and the service lists {', '.join(names) or 'none'}. Name "
            "one: --set base_model=NAME, or --config FILE."
        )
    return names[0]


def _serve(service: Service, base_model: str, path: str) -> None:
    from local_tinker.wire import UserError

    try:
        service.serve_model(base_model, path)
    except UserError as error:
        raise ConfigError(str(error)) from None


async def _check(
    settings: OpenedSettings,
    choice: ServiceChoice,
    service: Service | None,
    folder: Path,
    keys: Keys,
    progress: Progress,
) -> Report:
    """Open a session, check, and delete what was saved whatever happens."""
    import asyncio

    from services.check.checking import check

    base_url = choice.base_url
    if service is not None:
        base_url = service.base_url
        keys = replace(keys, tinker=service.open_folder(folder))
    left: list[str] = []
    _end_on_sigterm()
    try:
        async with _bench(settings, base_url, keys, left) as (bench, rows):
            subject = _subject(settings, choice, rows)
            progress.lines(_costs(settings, bench, subject))
            return await check(bench, subject, progress.live)
    except asyncio.CancelledError:
        but = ", but for what a warning names" if left else ""
        raise Interrupted(f"Interrupted; what the check had saved is deleted{but}.") from None
    finally:
        progress.lines(
            f"warning: not deleted; it was to be kept for an hour: {one}" for one in left
        )


def _end_on_sigterm() -> None:
    """Let SIGTERM end the task at work as Ctrl-C does, where handlers can be set."""
    import asyncio

    task = asyncio.current_task()
    assert task is not None, "it is called in one"
    if threading.current_thread() is threading.main_thread():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


@contextlib.asynccontextmanager
async def _bench(
    settings: OpenedSettings, base_url: str | None, keys: Keys, left: list[str]
) -> AsyncIterator[tuple[Bench, Rows]]:
    """A session on the service, with the texts; at its end nothing is left of it but what the
    service does not delete, which is added to `left`."""
    import asyncio

    import tinker

    from loop.rounds.session import explained
    from services.check.bench import Bench
    from services.sdk import open_clients
    from services.waiting import aside

    config = settings.loaded.config
    with explained(base_url):
        clients = await aside(lambda: open_clients(base_url, keys.tinker))
        try:
            context = await _context(clients.rest, config.base_model)
            rows = _rows(settings, context)
            name = f"check-{secrets.token_hex(4)}"
            bench = Bench(clients.service, clients.rest, config.base_model, rows.first, name)
            try:
                yield bench, rows
            finally:
                left += await bench.delete_all()
        finally:
            with contextlib.suppress(tinker.TinkerError, TimeoutError):
                await asyncio.wait_for(clients.service.close("success").result_async(), LEAVE_S)


async def _capabilities(rest: tinker.RestClient) -> tinker.types.GetServerCapabilitiesResponse:
    return await rest.get_server_capabilities()


async def _context(rest: tinker.RestClient, base_model: str) -> int | None:
    """The context of a model by the service's list; None where it does not say."""
    from services.check.bench import ANSWER_S, Refused, within

    listed = await within(_capabilities(rest), ANSWER_S)
    models = () if isinstance(listed, Refused) else listed.supported_models
    return next((one.max_context_length for one in models if one.model_name == base_model), None)


def _rows(settings: OpenedSettings, context: int | None) -> Rows:
    """The texts in the model's tokens, repeated as long as they have to be. Raises `ConfigError`
    where the context is too small to check anything in."""
    from loop.planning.inputs import model_path_of
    from rows.chat_formats import load_tokenizer
    from services.check.bench import Row

    config = settings.loaded.config
    if context is not None and context < NUM_ROW_TOKENS:
        raise ConfigError(
            f"{MODE}: the service says that {config.base_model} has a context of {context} tokens, "
            f"and the check takes {NUM_ROW_TOKENS}. Check a larger model, or correct "
            "the service's list."
        )
    tokenizer = load_tokenizer(model_path_of(config, settings.model_dir))
    tokens = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]

    def row(one: Sequence[int], num_tokens: int) -> Row:
        return Row(tuple((list(one) * (num_tokens // len(one) + 1))[:num_tokens]))

    first, second = (row(one, NUM_ROW_TOKENS) for one in tokens)
    longest = max(2, min(config.max_seq_length, context or config.max_seq_length))
    return Rows(first, second, row([*tokens[0], *tokens[1]], longest), len(tokenizer))


def _subject(settings: OpenedSettings, choice: ServiceChoice, rows: Rows) -> Subject:
    from loop.planning.steps import most_in_flight
    from loop.rounds.depth import bounded, depth_for
    from services.check.checking import Subject
    from services.check.courses import Flags
    from services.check.known import known_logprobs

    config = settings.loaded.config
    known: Sequence[float] | str = "its files are not on this machine"
    if settings.model_dir is not None:
        known = known_logprobs(settings.model_dir, rows.first.tokens)
    flags = Flags(config.train_mlp, config.train_attn, config.train_unembed)
    most = most_in_flight(config)
    return Subject(
        rank=config.lora_rank,
        flags=flags,
        second_row=rows.second,
        long_row=rows.long,
        known=known,
        vocab_size=rows.vocab_size,
        depth=lambda latency_s, gap_s: bounded(depth_for(latency_s, gap_s), most),
    )


def _costs(settings: OpenedSettings, bench: Bench, subject: Subject) -> list[str]:
    """What the check will send at most, and what that costs by the user's table."""
    from ledger.records import Usage
    from loop.planning.plan import cost_usd
    from services.check.checking import planned

    most = planned(bench.row, subject)
    said = (
        f"tokens: at most {most.train_tokens:,} trained, {most.prompt_tokens:,} read and "
        f"{most.sampled_tokens:,} sampled"
    )
    usage = Usage(**asdict(most), minutes=0.0)
    cost = cost_usd(settings.loaded.config, usage)
    return [said if cost is None else f"{said}, ${cost:.4f} by budget.prices"]


# --- what is shown --------------------------------------------------------------------------------


def table(lines: Sequence[Line]) -> str:
    """The lines as a table of 80 columns; what differs says what it affects."""
    shown = []
    for line in lines:
        shown.append(f"{line.verdict:<11}  {line.name}")
        notes = [line.found]
        if line.verdict != "works":
            notes.append(f"affects {line.affects}")
        for note in notes:
            shown += textwrap.wrap(
                note, USUAL_WIDTH, initial_indent=" " * 13, subsequent_indent=" " * 13
            )
    return "\n".join(shown)


def summary(lines: Sequence[Line]) -> str:
    """One sentence on all lines."""
    counts = Counter(line.verdict for line in lines)
    num_bad = sum(line.is_bad for line in lines)
    said = (
        f"{counts['works']} work, {counts['differs']} differ, {counts['cannot tell']} cannot be "
        "told"
    )
    if not counts["differs"]:
        return f"{said}."
    return f"{said}; {num_bad or 'none'} of those that differ change scores."


def _show(args: argparse.Namespace, record: dict[str, Any], report: Report, keys: Keys) -> None:
    if args.json:
        say(keys.redacted(json.dumps({**record, "spent": asdict(report.spent)}, indent=1)))
        return
    spent = report.spent
    sent = (
        f"{spent.train_tokens:,} trained, {spent.prompt_tokens:,} read, {spent.sampled_tokens:,} "
        "sampled"
    )
    say(keys.redacted(f"{table(report.lines)}\n\n{summary(report.lines)}\ntokens: {sent}"))
