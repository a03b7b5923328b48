"""The command line and the loop: train, checkpoint, evaluate, decide, select, and go again.

    python trainer_with_eval.py --config eval_loop_config.json

Every arrow is written to the run directory's ledger before the next one starts, and each is looked
up there first; so a run that was killed resumes at the arrow it was on, by the same code.
This file orchestrates. It computes no statistics, parses no rows and builds no datums.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from commands.boundary import (
    Session,
    alert,
    end_program,
    in_loop,
    report_failure,
    report_unread,
    sigterm_as_interrupt,
)
from errors import ConfigError, Interrupted
from loop.reports.console import Starting, open_missing_streams, write_out
from loop.reports.events_out import event_stream, for_programs
from services.keys import taken

if TYPE_CHECKING:
    from commands.opening import OpenedSettings
    from ledger.store import RunStore
    from loop.planning.plan import Plan
    from loop.reports.progress import Progress
    from loop.rounds.run import Beside, Run
    from scores.decision import Decision
    from services.place import Place

# --- the loop -------------------------------------------------------------------------------------


async def run_rounds(run: Run) -> Decision:
    """Run the loop from wherever its ledger stands to a decision that stops it."""
    from loop.rounds.deciding import decide_and_record
    from loop.rounds.evaluating import due_tasks, evaluate, rehearse
    from loop.rounds.findings import check_limits, diagnose_and_record, topics_and_record
    from loop.rounds.finishing import complete_evidence
    from loop.rounds.keeping import care_for_checkpoints
    from loop.rounds.selecting import select
    from loop.rounds.sending import send_to_evalops
    from loop.rounds.starting import starting_weights
    from loop.rounds.training import train
    from loop.tracking.playground import write_for_playground
    from scores.decision import EXTENDABLE

    store = run.store
    round_no = 0
    checkpoint = await starting_weights(run)  # None: round 0 is the untouched base model
    decision: Decision | None = None
    await rehearse(run)
    while True:
        # --- train, checkpoint ---------------------------------------------------------------
        if decision is not None:
            selection = store.selection(round_no) or await select(run, round_no, decision)
            checkpoint = store.checkpoint(round_no) or await train(run, selection, decision)
        # --- evaluate ------------------------------------------------------------------------
        result = await evaluate(run, round_no, checkpoint, due_tasks(run, round_no))
        # --- decide --------------------------------------------------------------------------
        decision = recorded = store.decision(round_no)
        was_told = recorded is not None and (round_no == 0 or store.topics(round_no) is not None)
        if decision is None or decision.action in EXTENDABLE:
            decision, result = await decide_and_record(run, result, checkpoint)
        await care_for_checkpoints(run, decision)
        write_for_playground(store)
        # --- report --------------------------------------------------------------------------
        sentence, topics = diagnose_and_record(run, result), topics_and_record(run, result)
        if was_told and decision == recorded:
            run.progress.recorded_line(result, decision)
        else:
            run.progress.round_line(result, decision, sentence, topics)
        check_limits(run, result, checkpoint)
        send_to_evalops(run, result, decision, checkpoint)
        run.show_page()
        if decision.stops:
            await complete_evidence(run, decision)
            return decision
        if run.leaves_after(round_no):
            return decision
        # --- select --------------------------------------------------------------------------
        round_no += 1


# --- the command ----------------------------------------------------------------------------------


class Arguments(argparse.ArgumentParser):
    """What tells a program of a mistake as of any other, and people with the usage."""

    def error(self, message: str) -> NoReturn:
        if event_stream() is None:
            super().error(message)
        raise ConfigError(f"{message}. Correct the arguments; --help lists them.")


def asks_for_json(words: Sequence[str]) -> bool:
    """Whether --json is among the arguments, also where the others cannot be read."""
    return any(len(word) > len("--j") and "--json".startswith(word) for word in words)


def parse_arguments(
    argv: list[str] | None = None, program: str = "trainer_with_eval.py"
) -> argparse.Namespace:
    parser = Arguments(
        prog=program,
        description="Fine-tune a language model with LoRA in evaluation-driven rounds.",
        epilog="Exit codes: 0 finished, 1 failed, 2 bad input, 3 with --gate when the target was "
        "not met, 130 interrupted. Progress goes to stderr, results to stdout.",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="JSON config; docs/settings.md lists the settings"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change one setting, for example --set seed=3 --set mining.replay_share=0.5",
    )
    parser.add_argument(
        "--run-dir",
        type=Path,
        metavar="DIR",
        help="new run directory (default: runs/<time>-<name>)",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN_DIR",
        help="continue a run; without RUN_DIR the newest one of --config; with RUN_DIR@round_02 go "
        "back to the end of that round and run what came after it again",
    )
    parser.add_argument(
        "--evaluate",
        nargs="+",
        metavar="CHECKPOINT",
        help="evaluate checkpoints by the questions of --config instead of training: RUN_DIR, "
        "RUN_DIR@best, RUN_DIR@round_02, registry:NAME@3, registry:champion, "
        "tinker://... or a folder with an adapter in PEFT's layout; of several the first is what "
        "the others are compared with",
    )
    parser.add_argument(
        "--chat",
        metavar="CHECKPOINT",
        help="ask a checkpoint, named as for --evaluate, what you type, as its run asks its "
        "questions; in a pipe one question a line",
    )
    parser.add_argument(
        "--beside",
        action="store_true",
        help="with --chat: show the untouched base model's answer as well",
    )
    parser.add_argument(
        "--registry",
        type=Path,
        metavar="FILE",
        help="with --evaluate and --chat: where registry:... is looked up (default: "
        "registry.jsonl here)",
    )
    parser.add_argument(
        "--list",
        type=Path,
        metavar="RUN_DIR",
        help="show which weights a run has saved, where, since and until when",
    )
    parser.add_argument(
        "--init",
        nargs="+",
        metavar=("USE_CASE", "DIR"),
        help="write a config and its one-pager for chat, code, math, tools or safety into DIR "
        "(default: a folder named so), and say which files to put there and what is still open",
    )
    parser.add_argument(
        "--power",
        nargs="+",
        metavar=("FROM TO", "RUN_DIR"),
        help="how many questions tell the score TO from FROM, for example --power 0.80 0.85; with "
        "--config also what its questions can tell, with RUN_DIR how many answers a run changed",
    )
    parser.add_argument(
        "--check-service",
        action="store_true",
        help="try what the service does of what Tinker documents (loss, alpha, optimizer, saves, "
        "samples), with a few thousand tokens; exit 1 where a difference changes scores",
    )
    parser.add_argument(
        "--local",
        action="store_true",
        help="train on this machine, whatever keys or addresses are set",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="plan the run on one page, check all that costs nothing, stop",
    )
    parser.add_argument(
        "--preview",
        type=int,
        metavar="N",
        help="show the first N rows of each source (and N hard ones of a resumed run) as the model "
        "will see them, with the tokens that carry loss marked, and stop",
    )
    parser.add_argument(
        "--gate", action="store_true", help="exit 3 when the threshold is not met in the end"
    )
    parser.add_argument(
        "--alert",
        metavar="COMMAND",
        help="run a command, without a shell, when a limit is violated, the target is missed or "
        "the run fails, with what happened as JSON on its standard input",
    )
    parser.add_argument(
        "--summary",
        type=Path,
        metavar="FILE",
        help="append a summary in Markdown to FILE, for example $GITHUB_STEP_SUMMARY",
    )
    parser.add_argument(
        "--junit", type=Path, metavar="FILE", help="write who passed to FILE, as JUnit's XML"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the result as one JSON object (with --chat one for each question); meanwhile "
        "stderr is JSON lines: each event of the ledger, and messages",
    )
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="show every step and answer, and tracebacks of errors",
    )
    return parser.parse_args(argv)


def main(
    argv: list[str] | None = None,
    parse: Callable[[list[str] | None], argparse.Namespace] = parse_arguments,
    command: Callable[[argparse.Namespace, Session], int] | None = None,
) -> int:
    """Run a command, this file's or another one of the same boundary and its own arguments; every
    failure ends as one paragraph on stderr and an exit code."""
    open_missing_streams()
    is_json = asks_for_json(sys.argv[1:] if argv is None else argv)
    with taken() as keys, sigterm_as_interrupt(), for_programs(is_json, keys.redacted):
        session, args = Session(keys), argparse.Namespace(json=is_json, verbose=False, config=None)
        try:
            args = parse(argv)
            exit_code = (command or run_command)(args, session)
            write_out()
            return exit_code
        except KeyboardInterrupt:
            return report_failure(args, session, Interrupted("Interrupted."))
        except BrokenPipeError:
            return report_unread(args, session)
        except Exception as error:  # the one boundary
            return report_failure(args, session, error)
        finally:
            if session.store is not None:
                session.store.close()


def run_command(args: argparse.Namespace, session: Session) -> int:
    """Do what the arguments ask for; returns the exit code."""
    if args.summary is not None or args.junit is not None:
        from commands.ci import check_files

        check_files(args)
    if args.alert is not None:
        from commands.alerts import parse_command

        session.alert_command = parse_command(args.alert)
    if args.init is not None:
        from commands.init import write_project

        return write_project(args)
    if args.power is not None:
        with Starting():
            from commands.power import show_power

        return show_power(args)
    if args.list is not None:
        from commands.listing import list_checkpoints

        return list_checkpoints(args)
    if args.beside and args.chat is None:
        raise ConfigError("--beside is for --chat: name a checkpoint to ask, or leave it out.")
    session.starting = Starting()
    if args.chat is not None:
        from commands.chat import chat

        return chat(args, session)
    if args.check_service:
        from commands.check_service import check_service

        return check_service(args, session)
    from commands.opening import open_settings

    settings = open_settings(args, session)
    if args.preview is not None and (settings.evaluated is not None or args.dry_run):
        raise ConfigError("--preview shows rows and stops; leave --evaluate and --dry-run out.")
    if settings.evaluated is not None:
        from commands.evaluate import evaluate_checkpoints

        return evaluate_checkpoints(args, settings, session)
    if args.preview is not None:
        from commands.preview import preview

        return preview(args, settings, session)
    if args.dry_run:
        from commands.dry_run import dry_run

        return dry_run(args, settings, session)
    return start_or_resume(args, settings, session)


def start_or_resume(args: argparse.Namespace, settings: OpenedSettings, session: Session) -> int:
    """Settle everything, open the service, and run the rounds; returns the exit code."""
    from commands.opening import begin_progress

    loaded, store = settings.loaded, settings.store
    progress = begin_progress(args, settings, session)
    from commands.outcome import Ending, report_end_and_alert, report_finished
    from commands.starting import settle, take_up
    from loop.rounds.session import open_service, refuse_unfit_service

    progress.lines(settings.notes)
    as_recorded = loaded.config.model_dump(mode="json")
    if store is not None and settings.back_to is None and store.is_finished_with(as_recorded):
        return report_finished(args, session, store, loaded.config, progress)
    choice, plan, beside = settle(args, settings, session, progress)
    with open_service(choice, plan, progress) as service:
        keys, tell = session.keys, progress.line
        in_loop(refuse_unfit_service(settings.start, plan, choice, keys, tell))
        store, place = take_up(settings, plan, choice, service, session)
        beside = beside._replace(alert=functools.partial(alert, session))
        decision = in_loop(train_on_service(plan, store, progress, place, beside))
        session.is_running = False
    ending = Ending(loaded.config, plan.cost_usd(store.spent()))
    return report_end_and_alert(args, session, store, decision, ending)


async def train_on_service(
    plan: Plan, store: RunStore, progress: Progress, place: Place, beside: Beside | None = None
) -> Decision:
    """Run the rounds, from wherever the ledger stands, to their end or where they are left."""
    from loop.rounds.run import Beside
    from loop.rounds.sending import sending
    from loop.rounds.session import connected
    from loop.tracking.following import tracked

    beside = beside or Beside()
    async with connected(plan, store, progress, place, beside.sharing) as run:
        run.limits, run.alert, run.leaves_after = beside.limits, beside.alert, beside.leaves_after
        async with tracked(store, plan.config, progress.line, beside.tracking):
            with sending(run, beside.evalops):
                decision = await run_rounds(run)
                run.is_closing = True
                if decision.stops:
                    store.append("run_finished", round=decision.round, action=decision.action)
                    run.show_page()
                if run.evalops is not None:
                    await run.evalops.finish()
        return decision


if __name__ == "__main__":
    end_program(main())
