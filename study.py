"""Studies: one experiment.yaml, many trials.

    python study.py generate DIR      # the config and the evaluation script of each trial
    python study.py check DIR         # what of it is done, missing or stale
    python study.py run DIR           # train and evaluate what is left, in one process
    python study.py status DIR        # how far it is, also while it runs
    python study.py report DIR        # the answer, as report.html, report.md and results.csv

docs/studies.md has the format of experiment.yaml. This file parses arguments and prints.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from commands.boundary import describe_failure, end_program
from errors import ConfigError, InputError, Interrupted, LoopError
from loop.reports.console import (
    Starting,
    command_for,
    drop,
    open_missing_streams,
    say,
    shown_python,
    tell,
    write_out,
)

if TYPE_CHECKING:
    from studies.design.checking import TrialState
    from studies.design.generating import Generation, OnDisk
    from studies.findings.outcome import StudyOutcome, TrialOutcome

MAX_LISTED = 20
MAX_NAMED = 3


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="study.py",
        description="Make the trials of a study from its experiment.yaml, run them, and report.",
        epilog="Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made = commands.add_parser("generate", help="write configs, evaluation scripts and their map")
    made.add_argument("dir", type=Path, metavar="DIR", help="the folder of experiment.yaml")
    made.add_argument("--dry-run", action="store_true", help="show what would be written, stop")
    made.add_argument(
        "--force",
        action="store_true",
        help="overwrite also what was edited by hand, and ask nothing",
    )
    checked = commands.add_parser("check", help="say of each trial what is done, missing or stale")
    checked.add_argument("dir", type=Path, metavar="DIR", help="the folder of experiment.yaml")
    checked.add_argument("--json", action="store_true", help="print it as one JSON object")
    _add_run(commands)
    told = commands.add_parser("status", help="say how far each trial is, also while it runs")
    told.add_argument("dir", type=Path, metavar="DIR", help="the folder of experiment.yaml")
    told.add_argument("--json", action="store_true", help="print it as one JSON object")
    reported = commands.add_parser("report", help="write report.html, report.md and results.csv")
    reported.add_argument("dir", type=Path, metavar="DIR", help="the folder of experiment.yaml")
    return parser.parse_args(argv)


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = commands.add_parser("run", help="train and evaluate all that is left, and report")
    run.add_argument("dir", type=Path, metavar="DIR", help="the folder of experiment.yaml")
    run.add_argument(
        "--parallel",
        type=int,
        default=1,
        metavar="N",
        help="so many trials at once on a remote service; the embedded one takes them in turn",
    )
    run.add_argument(
        "--local",
        action="store_true",
        help="train on this machine, whatever keys or addresses are set",
    )
    run.add_argument(
        "--reuse",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a study or a run whose evaluations are used again where weights and questions are "
        "the same; studies in the folders beside DIR are looked at anyway",
    )
    run.add_argument("-v", "--verbose", action="store_true", help="show all that trials say")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; every failure ends as one paragraph on stderr and an exit code."""
    open_missing_streams()
    args = parse_arguments(argv)
    try:
        with Starting():  # this takes a second, and more on a busy machine
            import studies.design.generating  # noqa: F401
        exit_code = COMMANDS[args.command](args)
        write_out()
        return exit_code
    except BrokenPipeError:  # whoever read the output has gone
        for stream in (sys.stdout, sys.stderr):
            drop(stream)
        return 1
    except (LoopError, OSError) as error:
        is_asked = isinstance(error, Interrupted)
        tell(f"{'' if is_asked else 'error: '}{describe_failure(error)}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 130 if is_asked else 1
    except KeyboardInterrupt:
        program = command_for(Path(__file__).resolve())
        again = f"{program} {args.command} {_quoted(args.dir)}"
        tell(f"Interrupted. Continue with: {again}", file=sys.stderr)
        return 130


# --- generate -------------------------------------------------------------------------------------


def generate(args: argparse.Namespace) -> int:
    """Make the files of a study, and write them unless they are only to be shown."""
    from studies.design.generating import (
        ASKED_FROM,
        compare_with_disk,
        generation_of,
        refuse_edited,
        write_generation,
    )

    generation = generation_of(args.dir)
    found = compare_with_disk(generation)
    for warning in generation.warnings:
        tell(f"warning: {warning}", file=sys.stderr)
    num_trials = len(generation.trials)
    _tell_hypothesis(generation)
    if args.dry_run:
        _show(generation, found)
        return 0
    if not args.force:
        refuse_edited(found)
    if num_trials >= ASKED_FROM and not args.force and found.new:
        _ask(num_trials)
    write_generation(generation, found)
    _tell_written(generation, found)
    return 0


def _tell_hypothesis(generation: Generation) -> None:
    """How the hypothesis will be put to a test, before anything is paid for."""
    from studies.findings.hypothesis import read_hypothesis

    experiment = generation.study.experiment
    text, expects = experiment.experiment.hypothesis, experiment.study.expects
    if text is None or expects:
        return
    tasks = [task.entry.name for task in generation.tasks]
    reading = read_hypothesis(text, list(experiment.variables), tasks)
    if reading.why_not is not None:
        tell(
            f"warning: the hypothesis is not tested as it stands: {reading.why_not}. Say what is "
            "expected in study.expects.",
            file=sys.stderr,
        )
        return
    read = "; ".join(f"{variable} {claim}" for variable, claim in reading.claims)
    tell(f"hypothesis, read as: {read}", file=sys.stderr)


def _ask(num_trials: int) -> None:
    """Ask a person before many trials. Raises `ConfigError` where nobody says yes."""
    if not sys.stdin.isatty():
        raise ConfigError(
            f"{num_trials:,} trials would be generated, and nobody is at a terminal to be asked "
            "whether so many are meant. Leave values out, or add --force."
        )
    tell(f"{num_trials:,} trials would be generated. Go on? [y/N]", file=sys.stderr)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ConfigError(f"{num_trials:,} trials were not generated. Nothing was written.")


def _show(generation: Generation, found: OnDisk) -> None:
    """What would be written, and the first trial's config as an example."""
    tell(f"{generation.study.name}: {len(generation.trials):,} trials; nothing is written")
    for one in generation.trials[:MAX_LISTED]:
        say(f"  {one.trial.run_id}  {one.trial.shown}")
    if len(generation.trials) > MAX_LISTED:
        say(f"  and {len(generation.trials) - MAX_LISTED:,} more")
    for what, files in (
        ("new", found.new),
        ("overwritten", found.other),
        ("edited by hand, overwritten by --force alone", found.edited),
        ("same", found.same),
    ):
        if files:
            names = ", ".join(_shown(file) for file in files[:MAX_LISTED])
            more = f" and {len(files) - MAX_LISTED:,} more" if len(files) > MAX_LISTED else ""
            say(f"{what}: {names}{more}")
    _tell_left_over(found)
    first = generation.trials[0]
    say(f"{_shown(first.train_file)}:")
    say(first.train_text.rstrip())


def _tell_written(generation: Generation, found: OnDisk) -> None:
    num_written = len(found.new) + len(found.other) + len(found.edited)
    folder = _shown(generation.study.configs_dir)
    if not num_written:
        tell(f"{folder}: all {len(found.same):,} files are as the study says; nothing is written")
    else:
        tasks = ", ".join(task.entry.name for task in generation.tasks) or "none"
        tell(
            f"{folder}: {len(generation.trials):,} trials, {num_written:,} files written, "
            f"{len(found.same):,} as they were; tasks: {tasks}"
        )
    _tell_left_over(found)
    first = generation.trials[0]
    alone = f"One trial alone is trained and then evaluated, {first.trial.run_id} by:"
    if generation.study.experiment.experiment.framework == "tinker":
        study = Path(__file__).resolve()
        train, run_dir = _quoted(first.train_file), _quoted(first.run_dir)
        folder = _quoted(generation.study.folder)
        say(f"All of it, with the report: {command_for(study)} run {folder}")
        say(alone)
        program = command_for(study.parent / "trainer_with_eval.py")
        say(f"  {program} --config {train} --run-dir {run_dir}")
    else:
        say(alone)
        say(f"  tune run lora_finetune_single_device --config {_quoted(first.train_file)}")
    if first.eval_file is not None:
        say(f"  {command_for(first.eval_file)}")


def _tell_left_over(found: OnDisk) -> None:
    for file in found.left_over:
        tell(
            f"warning: {_shown(file)}: left over from an earlier generate, and no part of the "
            "study now. Remove it.",
            file=sys.stderr,
        )


# --- check ----------------------------------------------------------------------------------------


def check(args: argparse.Namespace) -> int:
    """Say how each trial of a study stands."""
    from studies.design.checking import as_json, state_of
    from studies.design.generating import generation_of

    generation = generation_of(args.dir)
    state = state_of(generation)
    if args.json:
        say(as_json(state))
        return 0
    for warning in generation.warnings:
        tell(f"warning: {warning}", file=sys.stderr)
    for one in state.trials:
        tell(_line_of(one))
    for arm in state.arms:
        tell(f"{arm.run_id}: config {arm.config.shown}; measured {arm.measured.shown}")
    for name in state.changed_inputs:
        tell(f"changed since the study was generated: {name}. Generate again.")
    for name in state.left_over:
        tell(f"no part of the study now: {_shown(Path(name))}")
    return 0


def _line_of(one: TrialState) -> str:
    told = {"config": one.config, "training": one.training, **one.tasks}
    states = "; ".join(f"{name} {finding.shown}" for name, finding in told.items())
    return f"{one.run_id} ({one.params}): {states}"


# --- run, status, report --------------------------------------------------------------------------


def run(args: argparse.Namespace) -> int:
    """Do all that is left of a study, and report on it; the exit code."""
    with Starting():  # these take seconds
        from commands.boundary import in_loop, sigterm_as_interrupt
        from loop.tracking.trackers import refuse_missing
        from services.keys import taken
        from studies.design.generating import bring_up_to_date, generation_of
        from studies.work.in_flight import sharing_of
        from studies.work.known import known_run_dirs
        from studies.work.record import StudyRecord
        from studies.work.running import Work, run_study
        from studies.work.screen import Screen
        from studies.work.spending import Spending
        from studies.work.trial_runs import Floor

    if args.parallel < 1:
        raise ConfigError(f"--parallel is {args.parallel}; give a number of trials, 1 or more.")
    generation = generation_of(args.dir)
    study = generation.study
    _refuse_torchtune(generation)
    if not generation.tasks and not _names_tasks(generation):
        raise ConfigError(f"{_shown(study.file.path)}: no tasks are named. Add evaluation.tasks.")
    for one in (*generation.trials, *generation.arms):
        refuse_missing(one.config)
    bring_up_to_date(generation)
    for warning in generation.warnings:
        tell(f"warning: {warning}", file=sys.stderr)
    configs = [one.config for one in (*generation.trials, *generation.arms)]
    sharing, warning = sharing_of(configs, args.parallel)
    if warning is not None:
        tell(f"warning: {warning}", file=sys.stderr)
    known = known_run_dirs(study, args.reuse)
    rows = {arm.run_id: arm.name for arm in generation.arms}
    rows |= {one.trial.run_id: one.trial.shown for one in generation.trials}
    command = f"{command_for(Path(__file__).resolve())} run {_quoted(args.dir)}{_flags_of(args)}"
    record = StudyRecord.open(study.results_dir)
    with contextlib.ExitStack() as opened:
        opened.callback(record.close)
        keys = opened.enter_context(taken())
        opened.enter_context(sigterm_as_interrupt())
        screen = Screen(
            rows,
            redacted=keys.redacted,
            logs_dir=study.results_dir / "logs",
            how_to_continue=f"Continue with: {command}",
            verbose=args.verbose,
        )
        opened.callback(screen.close)
        floor = Floor(keys, screen, args.local, args.parallel, sharing)
        opened.callback(floor.close)
        spending = Spending(study.experiment.study.budget)
        work = Work(generation, record, floor, spending)
        try:
            outcome = in_loop(run_study(work, known))
        except Interrupted as error:
            screen.close()
            raise Interrupted(f"{error} Continue with: {command}") from None
    exit_code = _tell_outcome(outcome, command)
    _write_report(generation, outcome)
    return exit_code


def _flags_of(args: argparse.Namespace) -> str:
    """What has to be said again to go on in the same way, and in the same place."""
    words = ["--local"] if args.local else []
    words += ["--parallel", str(args.parallel)] if args.parallel > 1 else []
    words += [word for path in args.reuse for word in ("--reuse", _quoted(path))]
    return "".join(f" {word}" for word in words)


def _refuse_torchtune(generation: Generation) -> None:
    study = generation.study
    if study.experiment.experiment.framework != "tinker":
        raise ConfigError(
            f"{_shown(study.file.path)}: framework is torchtune, whose trials are not run here. "
            "generate prints the command of each, and check says how they stand."
        )


def _names_tasks(generation: Generation) -> bool:
    return bool(generation.trials[0].config.eval_tasks)


def _tell_outcome(outcome: StudyOutcome, command: str) -> int:
    """Print what is not done of a study, and what it used; the exit code."""
    _tell_totals(outcome)
    failed: dict[str, list[str]] = {}
    for arm in outcome.arms:
        for one in arm.trials:
            if one.status == "failed":
                failed.setdefault(one.why, []).append(one.run_id)
    for why, run_ids in failed.items():
        more = f" and {len(run_ids) - MAX_NAMED} more" if len(run_ids) > MAX_NAMED else ""
        names = ", ".join(run_ids[:MAX_NAMED])
        tell(f"error: {names}{more} failed: {why} Try it again with: {command}", file=sys.stderr)
    return 1 if failed else 0


def _tell_trials(outcome: StudyOutcome) -> None:
    """Print how each trial stands."""
    from scores.wording import score_and_n

    for arm in outcome.arms:
        for one in arm.trials:
            seed = "" if one.seed is None or outcome.seeds == 1 else f", seed={one.seed}"
            score = "" if one.result is None else f", score {score_and_n(one.result)}"
            at = f" after round {one.round_no}" if one.round_no and one.status != "done" else ""
            used = f", {one.usage.tokens:,} tokens" if one.usage.tokens else ""
            why = f": {one.why}" if one.why else ""
            state = _state_words(one)
            tell(f"{one.run_id} ({arm.name}{seed}): {state}{at}{score}{used}{why}")


def _state_words(trial: TrialOutcome) -> str:
    """What a person calls how a trial stands."""
    if trial.status == "missing":
        return "not used" if trial.why else "not begun"
    return "begun, and not at its end" if trial.status == "begun" else trial.status


def _tell_totals(outcome: StudyOutcome) -> None:
    """Print how many trials stand how, what they used, and what was chosen by them."""
    from scores.wording import score_and_n
    from studies.reports.report_words import costs_words

    trials = [one for arm in outcome.arms for one in arm.trials]
    counts = Counter(map(_state_words, trials))
    total = sum(one.usage.tokens for one in trials)
    minutes = sum(one.usage.minutes for one in trials)
    states = ", ".join(f"{number} {state}" for state, number in counts.items())
    cost = costs_words([one.cost_usd for one in trials if one.usage.tokens])
    tell(f"{len(trials)} trials: {states}; {total:,} tokens, {minutes:.1f} min of work{cost}")
    in_vain = sum(one.in_vain.tokens for one in trials)
    if in_vain:
        tell(f"{in_vain:,} of these tokens, at the most, were sent and are recorded nowhere")
    if outcome.budget_sentence is not None:
        tell(outcome.budget_sentence)
    tell(outcome.winner_sentence)
    if outcome.sealed is not None:
        tell(f"Sealed test, opened on {outcome.sealed_of}: {score_and_n(outcome.sealed)}")


def status(args: argparse.Namespace) -> int:
    """Say how far each trial of a study is; the exit code."""
    from ledger.run_directory import is_locked
    from studies.design.generating import generation_of
    from studies.work.collecting import as_json, outcome_of
    from studies.work.record import StudyRecord

    generation = generation_of(args.dir)
    _refuse_torchtune(generation)
    outcome = outcome_of(generation, StudyRecord.read(generation.study.results_dir))
    is_at_work = is_locked(generation.study.results_dir)
    if args.json:
        say(as_json(outcome, is_at_work=is_at_work))
        return 0
    _tell_trials(outcome)
    _tell_totals(outcome)
    tell("study.py run is at work on it." if is_at_work else "No process is at work on it.")
    return 0


def report(args: argparse.Namespace) -> int:
    """Write what a study shows, and print its answer; the exit code."""
    from studies.design.generating import generation_of
    from studies.work.collecting import outcome_of
    from studies.work.record import StudyRecord

    generation = generation_of(args.dir)
    _refuse_torchtune(generation)
    record = StudyRecord.read(generation.study.results_dir)
    _write_report(generation, outcome_of(generation, record))
    return 0


def _write_report(generation: Generation, outcome: StudyOutcome) -> None:
    from studies.findings.analysis import analyse
    from studies.reports.report import write_report
    from studies.reports.report_trials import Typed

    findings = analyse(outcome)
    command, folder = command_for(Path(__file__).resolve()), generation.study.folder
    commands = [f"{command} {name} {_quoted(folder)}" for name in ("run", "report")]
    (python,) = shlex.split(shown_python())  # Inspect's program lies beside it
    inspect = _quoted(Path(python).with_name("inspect"))
    here, project = Path.cwd(), Path(__file__).resolve().parent
    where = "the project's folder" if here == project else str(here)
    typed = Typed(where, commands, inspect, Path(_shown(folder)))
    files = write_report(folder, outcome, findings, typed)
    tell(findings.headline)
    if outcome.hypothesis is not None:
        tell(findings.verdict_sentence)
    say(f"Report: {_shown(files.html)}, {files.markdown.name}, {files.csv.name}")


COMMANDS = {"generate": generate, "check": check, "run": run, "status": status, "report": report}


def _quoted(path: Path) -> str:
    return shlex.quote(_shown(path))


def _shown(path: Path) -> str:
    """A path as a person would type it from here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


if __name__ == "__main__":
    end_program(main())
