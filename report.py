"""The page of a run: made again from its directory, several runs side by side, a folder of runs.

    python report.py RUN_DIR                  # write RUN_DIR/report.html again
    python report.py RUN_DIR RUN_DIR ...      # compare runs, or checkpoints: RUN_DIR@round_02
    python report.py --serve [RUNS_DIR]       # show a folder of runs, and follow those at work
    python report.py --track RUN_DIR          # tell trackers what they do not have of a run

docs/report.md says what the pages show. This file parses arguments and prints.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from commands.boundary import describe_failure, end_program, sigterm_as_interrupt
from errors import ConfigError, InputError, Interrupted, LoopError
from loop.reports.console import (
    Starting,
    command_for,
    drop,
    open_missing_streams,
    say,
    tell,
    write_out,
)

DEFAULT_PORT = 8377
PAGE_SUFFIXES = (".html", ".htm")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="report.py",
        description="Write the page of a run, compare runs on one page, or show a folder of runs.",
        epilog="Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.",
    )
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN_DIR",
        help="one run, whose page is written; or 2 to 20, which are compared by their best "
        "checkpoints, or by others as RUN_DIR@round_02",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where to write the page (default: RUN_DIR/report.html, or comparison.html here)",
    )
    parser.add_argument(
        "--serve",
        nargs="?",
        const=Path("runs"),
        type=Path,
        metavar="RUNS_DIR",
        help="show the runs of a folder (default: runs) in a browser on this machine, and follow "
        "those that go on, until Ctrl-C",
    )
    parser.add_argument(
        "--port",
        type=int,
        metavar="N",
        help=f"where --serve listens (default: {DEFAULT_PORT}; 0: any that is free)",
    )
    parser.add_argument(
        "--track",
        metavar="RUN_DIR",
        help="tell the trackers in a run's settings what they do not have of it yet",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="with --track: a setting of `tracking` for this time, such as "
        "tracking.trackers='[\"trackio\"]' for a run that was not tracked",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; every failure ends as one paragraph on stderr and an exit code."""
    open_missing_streams()
    args = parse_arguments(argv)
    try:
        with sigterm_as_interrupt():
            _refuse_what_excludes(args)
            with Starting():  # this takes a second, and more on a busy machine
                import loop.run_page.page  # noqa: F401
            if args.serve is not None:
                serve(args)
            elif args.track is not None:
                track(args)
            elif len(args.runs) == 1:
                write_one(args)
            else:
                compare(args)
        write_out()
        return 0
    except BrokenPipeError:  # whoever read the output has gone
        for stream in (sys.stdout, sys.stderr):
            drop(stream)
        return 1
    except (LoopError, OSError) as error:
        is_asked = isinstance(error, Interrupted)
        message = describe_failure(error)
        exit_code = 2 if isinstance(error, InputError) else 130 if is_asked else 1
        tell(f"{'' if is_asked else 'error: '}{message}", file=sys.stderr)
        if args.json:
            say(json.dumps({"error": message, "exit_code": exit_code}))
        return exit_code
    except KeyboardInterrupt:
        tell("Interrupted.", file=sys.stderr)
        return 130


def _refuse_what_excludes(args: argparse.Namespace) -> None:
    """Raise `ConfigError` for arguments of two commands at once, and for none."""
    named = {
        "RUN_DIR": bool(args.runs),
        "--serve": args.serve is not None,
        "--track": args.track is not None,
    }
    given = [name for name, is_given in named.items() if is_given]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} exclude each other. Give one of them.")
    if not given:
        raise ConfigError(
            "Nothing is named. Give the directory of a run, several to compare them, or --serve."
        )
    if args.port is not None and args.serve is None:
        raise ConfigError("--port is where --serve listens. Give --serve as well.")
    if args.overrides and args.track is None:
        raise ConfigError("--set is for the trackers of --track. A run's own settings are settled.")
    if other := [one for one in args.overrides if not one.lstrip().startswith("tracking.")]:
        raise ConfigError(
            f"--set {other[0]}: only `tracking` may be another one than the run's, for example "
            "--set tracking.project=mine."
        )
    if args.out is not None and not args.runs:
        raise ConfigError(f"--out is where a page is written, and {given[0]} writes none.")
    if args.out is not None and args.out.suffix.lower() not in PAGE_SUFFIXES:
        raise ConfigError(
            f"--out {args.out}: a page is a file whose name ends in .html, so that nothing else is "
            "written over. Give such a name."
        )
    if args.out is not None and args.out.is_dir():
        raise ConfigError(f"--out {args.out}: this is a directory. Give the name of a file.")


# --- the page of a run ----------------------------------------------------------------------------


def write_one(args: argparse.Namespace) -> None:
    """Write the page of one run, in its directory or elsewhere."""
    from ledger.references import named_round
    from ledger.run_directory import is_locked
    from ledger.store import RunStore
    from loop.run_page.folders import refuse_other_folders
    from loop.run_page.page import PAGE, page_of, write_page
    from loop.run_page.viewed import viewed
    from storage.files import write_whole

    (name,) = args.runs
    run_dir, *_ = named_round(name, name, [Path()])
    if str(run_dir) != name and not Path(name).exists():
        raise ConfigError(
            f"{name}: a page is of a whole run. Give {run_dir} alone, or another checkpoint to "
            "compare this one with."
        )
    run_dir = Path(name)
    refuse_other_folders(name, run_dir)
    page = run_dir / PAGE if args.out is None else args.out
    if args.out is None:
        if is_locked(run_dir):
            raise ConfigError(
                f"{run_dir}: another process is at work on this run, and writes its page after "
                "each round. To have it as the run stands now give --out FILE, a place elsewhere; "
                "--serve follows it."
            )
        store = RunStore.open(run_dir, to_resume=True)
        try:
            store.refuse_impossible_ledger()
            write_page(store)
        finally:
            store.close()
    else:
        store = RunStore.open(run_dir)
        store.refuse_impossible_ledger()
        write_whole(page, [page_of(viewed(store))])
    decision = store.last_decision()
    sentence = None if decision is None else decision.sentence
    if args.json:
        say(
            json.dumps({"page": str(page), "run_dir": str(run_dir), "sentence": sentence}, indent=1)
        )
        return
    if sentence is not None:
        tell(sentence)
    say(f"Page: {page}")


# --- several runs ---------------------------------------------------------------------------------


def compare(args: argparse.Namespace) -> None:
    """Write a page that compares runs."""
    from loop.run_page.side_by_side import COMPARISON, find_named, side_by_side
    from pages.html import html_page
    from storage.files import write_whole

    shown = side_by_side(find_named(args.runs))
    page = Path(COMPARISON) if args.out is None else args.out
    write_whole(page, [html_page(shown.document)])
    if args.json:
        checkpoints = [
            {
                "checkpoint": one.label,
                "run_dir": str(one.store.run_dir),
                "round": one.round,
                "score": None if one.round is None else one.store.scores()[one.round],
                "tokens": one.store.usage().tokens,
                "tokens_in_vain": one.store.in_vain().tokens,
            }
            for one in shown.named
        ]
        outcome: dict[str, Any] = {
            "page": str(page),
            "sentence": shown.sentence,
            "checkpoints": checkpoints,
            "pairs": [
                {**pair._asdict(), "is_told_apart": pair.is_told_apart} for pair in shown.pairs
            ],
        }
        say(json.dumps(outcome, indent=1))
        return
    tell(shown.sentence)
    say(f"Page: {page}")


# --- a folder of runs, and trackers ---------------------------------------------------------------


def serve(args: argparse.Namespace) -> None:
    """Show a folder of runs until Ctrl-C."""
    from commands.serving import listen, serve_runs

    port = DEFAULT_PORT if args.port is None else args.port
    sockets = listen(args.serve, port)
    if args.json:
        say(json.dumps({"address": sockets.address, "runs_dir": str(args.serve)}))
    else:
        say(f"Runs of {args.serve}: {sockets.address}")
        tell("Only this machine reaches it. Ctrl-C ends it.", file=sys.stderr)
    write_out()
    serve_runs(args.serve, sockets)


def track(args: argparse.Namespace) -> None:
    """Tell trackers what they do not have of a run yet."""
    from config_schema import validate
    from ledger.store import RunStore
    from loop.run_page.folders import refuse_other_folders
    from loop.tracking.replaying import replay
    from services.keys import taken
    from settings.config_file import with_overrides

    run_dir = Path(args.track)
    refuse_other_folders(args.track, run_dir)
    store = RunStore.open(run_dir)  # a process at work on it tells its trackers itself
    config = with_overrides(store.settled_config()["config"], args.overrides)
    group = config.get("tracking")
    if not isinstance(group, dict) or not group.get("trackers"):
        again = shlex.join(["--track", args.track, "--set", 'tracking.trackers=["trackio"]'])
        raise ConfigError(
            f"{run_dir}: the settings of this run name no tracker, so there is nobody to tell. "
            f"Name one: {command_for(Path(__file__).resolve())} {again}"
        )
    store.refuse_impossible_ledger()
    with taken() as keys:  # out of the environment: the code of trackers has no use for them
        lines = replay(store, validate(config, str(run_dir)), keys)
    if args.json:
        say(json.dumps({"run_dir": str(run_dir), "told": lines}, indent=1))
        return
    for line in lines:
        tell(line)


if __name__ == "__main__":
    end_program(main())
