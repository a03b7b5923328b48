"""The registry: which checkpoints were promoted, by whom, on what evidence.

    python registry.py list                                # what was promoted, and is called what
    python registry.py show registry:support@3             # all of one entry
    python registry.py promote CHECKPOINT NAME             # if it is not worse than the champion
    python registry.py compare CHECKPOINT CHECKPOINT       # by the same questions
    python registry.py alias support@2 staging             # let an alias stand for another version
    python registry.py retire support@1 --reason "..."     # take out of use
    python registry.py feedback NAME FILE                  # rated answers, as rows for the next run
    python registry.py verify                              # prove the chain and the files

docs/registry.md says what each does. This file parses arguments and prints.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from commands.boundary import Session, end_program, report_failure, sigterm_as_interrupt
from errors import ConfigError, Interrupted, LoopError, one_line
from loop.reports.console import Starting, drop, open_missing_streams, say, tell, write_out
from services.keys import Keys, taken

if TYPE_CHECKING:
    from ledger.registry_file import Registry
    from ledger.registry_writing import Who
    from promotion.naming import Changed

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

FILE, RUNS = "registry.jsonl", "runs"  # beside each other
MAX_REASON = 500
CUT_WORD = "--then"  # of this argument only the program is recorded


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="registry.py",
        description="Keep which checkpoints were promoted, and refuse one that is worse.",
        epilog="Exit codes: 0 done, 1 failed or does not verify, 2 bad input, 3 a promotion was "
        "refused, 130 interrupted.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listed = _command(commands, "list", "show what was promoted, and what it is called")
    listed.add_argument("--name", metavar="NAME", help="of this name alone")
    listed.add_argument(
        "--refused", action="store_true", help="show the promotions that were refused, and why"
    )
    shown = _command(commands, "show", "show all of one entry")
    shown.add_argument("entry", metavar="ENTRY", help="NAME@3, NAME@ALIAS or ALIAS")
    _add_promote(commands)
    compared = _command(
        commands, "compare", "hold a checkpoint against another, as both were measured"
    )
    compared.add_argument("one", metavar="CHECKPOINT", help="RUN_DIR@round_02, registry:NAME@3")
    compared.add_argument("other", metavar="AGAINST", help="the checkpoint that it is held against")
    moved = _changing(commands, "alias", "let an alias stand for an entry, or remove it")
    moved.add_argument("entry", metavar="ENTRY", help="NAME@3 or NAME@ALIAS; NAME with --remove")
    moved.add_argument("alias", metavar="ALIAS", help="for example staging")
    moved.add_argument("--remove", action="store_true", help="take the alias away from the name")
    moved.add_argument(
        "--force",
        metavar="REASON",
        help="why champion is moved by hand, without a comparison; it is recorded",
    )
    retired = _changing(commands, "retire", "take an entry out of use; its name stays its own")
    retired.add_argument("entry", metavar="ENTRY", help="NAME@3")
    retired.add_argument("--reason", required=True, metavar="REASON", help="it is recorded")
    rated = _changing(commands, "feedback", "take rated answers as rows for the next run")
    rated.add_argument(
        "name", metavar="NAME", help="NAME, NAME@3 or an alias: who gave the answers"
    )
    rated.add_argument("file", type=Path, metavar="FILE", help="rows of prompt, response and score")
    rated.add_argument("--out", type=Path, metavar="DIR", help="a new folder for what is written")
    rated.add_argument(
        "--right-from",
        type=float,
        default=1.0,
        metavar="SCORE",
        help="the score from which an answer counts as right (default: 1)",
    )
    proven = _command(commands, "verify", "prove the chain of lines, and the files of the entries")
    proven.add_argument("--head", metavar="SHA256", help="a line's hash that was noted elsewhere")
    return parser.parse_args(argv)


def _add_promote(commands: Commands) -> None:
    promoted = _changing(commands, "promote", "make a checkpoint an entry, unless it is worse")
    promoted.add_argument("checkpoint", metavar="CHECKPOINT", help="RUN_DIR or RUN_DIR@round_02")
    promoted.add_argument("name", metavar="NAME", help="what it is to be a version of")
    promoted.add_argument(
        "--alias",
        default="champion",
        metavar="ALIAS",
        help="the alias that moves to it, and whose checkpoint it is compared with (default: "
        "champion)",
    )
    promoted.add_argument(
        "--force", metavar="REASON", help="promote it whatever speaks against it; it is recorded"
    )
    promoted.add_argument(
        "--no-evaluate",
        action="store_true",
        help="refuse where the champion would have to be measured on other questions first",
    )
    promoted.add_argument(
        "--then",
        metavar="COMMAND",
        help="run a command after it, without a shell, with what changed as JSON on its standard "
        "input",
    )


def _command(commands: Commands, name: str, does: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")
    command.add_argument(
        "--registry",
        type=Path,
        default=Path(FILE),
        metavar="FILE",
        help=f"the registry (default: {FILE} here)",
    )
    command.add_argument("--json", action="store_true", help="print the result as one JSON object")
    command.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
    return command


def _changing(commands: Commands, name: str, does: str) -> argparse.ArgumentParser:
    command = _command(commands, name, does)
    command.add_argument(
        "--by", metavar="WHO", help="who does it, for the record (default: the user's name here)"
    )
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; every failure ends as one paragraph on stderr and an exit code."""
    open_missing_streams()
    args = parse_arguments(argv)
    args.words = list(sys.argv[1:] if argv is None else argv)
    with taken() as keys:
        try:
            with sigterm_as_interrupt():
                with Starting():  # this takes a second, and more on a busy machine
                    import ledger.registry_writing  # noqa: F401
                exit_code = COMMANDS[args.command](args, keys)
            write_out()
            return exit_code
        except BrokenPipeError:  # whoever read the output has gone
            for stream in (sys.stdout, sys.stderr):
                drop(stream)
            return 1
        except (LoopError, OSError) as error:
            return report_failure(args, Session(keys), error)
        except KeyboardInterrupt:
            return report_failure(args, Session(keys), Interrupted("Interrupted."))


# --- list, show -----------------------------------------------------------------------------------


def list_entries(args: argparse.Namespace, keys: Keys) -> int:
    """Show what was promoted; 1 where that is not all that the registry should have."""
    registry = _looked_at(args.registry)
    with Starting():
        from promotion.showing import refusal_line, refused_of, shown_of, table

    entries = [one for one in registry.entries if args.name in (None, one.name)]
    refused = refused_of(registry, args.name)
    if args.name is not None and not entries and not refused and registry.problem is None:
        known = ", ".join(registry.names) or "no name yet"
        raise ConfigError(
            f"--name {args.name}: nothing was promoted as that. {args.registry} knows {known}."
        )
    if args.json:
        about = {"registry": str(args.registry), "problem": registry.problem, "head": registry.head}
        shown = [shown_of(registry, one).to_json() for one in entries]
        say(json.dumps({**about, "entries": shown, "refused": refused}, indent=1))
        return _said_of(registry)
    if args.refused:
        for event in refused:
            tell(refusal_line(event))
    else:
        for line in table([shown_of(registry, one) for one in entries]) if entries else ():
            say(line)
        if not entries and registry.problem is None:
            tell(f"{args.registry}: nothing was promoted yet.")
    if (refused or args.refused) and registry.problem is None:
        last = f", the last on {refused[-1]['time'][:10]}" if refused else ""
        how = "" if args.refused or not refused else "; --refused shows why"
        tell(f"promotions that were refused: {len(refused)}{last}{how}")
    return _said_of(registry)


def show(args: argparse.Namespace, keys: Keys) -> int:
    """Show one entry."""
    from ledger.registry_file import Registry

    registry = Registry.read(args.registry)
    entry = registry.find(args.entry)
    with Starting():
        from promotion.showing import describe, history_of, shown_of

    shown = shown_of(registry, entry)
    if args.json:
        say(json.dumps({**shown.to_json(), "history": history_of(registry, entry)}, indent=1))
    else:
        for line in describe(registry, shown):
            tell(line)
    return _said_of(registry)


def _looked_at(path: Path) -> Registry:
    """A registry as far as it can be read. Raises `RegistryError` where there is none."""
    from ledger.registry_file import Registry

    registry = Registry.look(path)
    return registry if registry.is_there else Registry.read(path)


def _said_of(registry: Registry) -> int:
    """Say what is wrong with a registry that was shown; the exit code."""
    if registry.num_torn_bytes:
        tell(
            f"{registry.path}: {registry.num_torn_bytes} bytes after its last line are of one that "
            "was not written whole, or is being written now, and of which nobody was told. The "
            "next command that writes cuts them off.",
            file=sys.stderr,
        )
    if registry.problem is None:
        return 0
    tell(
        f"error: {registry.problem}. What is shown ends before it; "
        f"{registry.num_unread_lines} lines are not read. Restore the file from a copy.",
        file=sys.stderr,
    )
    return 1


# --- alias, retire --------------------------------------------------------------------------------


def alias(args: argparse.Namespace, keys: Keys) -> int:
    """Let an alias stand for an entry, or remove it."""
    from promotion.naming import move_alias, remove_alias

    who, forced = _who(args, keys), _reason("--force", args.force, keys)
    change = remove_alias if args.remove else move_alias
    return _tell_change(args, change(args.registry, args.entry, args.alias, who, forced))


def retire(args: argparse.Namespace, keys: Keys) -> int:
    """Take an entry out of use."""
    from promotion.naming import retire as retired

    who, reason = _who(args, keys), _reason("--reason", args.reason, keys)
    assert reason is not None, "the argument is required"
    return _tell_change(args, retired(args.registry, args.entry, reason, who))


def _tell_change(args: argparse.Namespace, changed: Changed) -> int:
    if changed.num_cut_bytes:
        tell(
            f"{args.registry}: cut off {changed.num_cut_bytes} bytes of a line that was not "
            "written whole, and of which nobody was told.",
            file=sys.stderr,
        )
    if args.json:
        say(json.dumps(changed.record, indent=1))
    else:
        tell(changed.sentence)
    return 0


def _who(args: argparse.Namespace, keys: Keys) -> Who:
    """Who gave the command, and the command."""
    from ledger.registry_writing import who

    by = None if args.by is None else one_line(keys.redacted(args.by), MAX_REASON)
    if by == "":
        raise ConfigError("--by is empty. Say who does it, or leave it out for the user's name.")
    return who(by, _command_line(args, keys))


def _command_line(args: argparse.Namespace, keys: Keys) -> list[str]:
    """The command as it is recorded, without keys and without what a --then is told."""
    words = [keys.redacted(word) for word in args.words]
    for number, word in enumerate(words):
        key, is_joined, value = word.partition("=")
        is_cut = len(key) > len("--t") and CUT_WORD.startswith(key)
        if is_cut and is_joined:
            words[number] = f"{key}={_program(value)}"
        elif is_cut and number + 1 < len(words):
            words[number + 1] = _program(words[number + 1])
    return ["registry.py", *words]


def _program(command: str) -> str:
    """The first word: the others may be an address or a key of a chat's."""
    first, *rest = command.split(maxsplit=1) or [""]
    return f"{first} ..." if rest else first


def _reason(key: str, given: str | None, keys: Keys) -> str | None:
    """A reason as one line for the record. Raises `ConfigError` for an empty one."""
    from ledger.registry_writing import as_text

    if given is None:
        return None
    reason = one_line(as_text(keys.redacted(given)), MAX_REASON)
    if not reason:
        raise ConfigError(f"{key} is empty. Say why in some words: they are what others find.")
    return reason


# --- verify ---------------------------------------------------------------------------------------


def verify(args: argparse.Namespace, keys: Keys) -> int:
    """Prove the chain and the files; 1 where not all of it holds."""
    registry = _looked_at(args.registry)
    with Starting():
        from promotion.verifying import verify as verified

    found = verified(registry, args.head)
    if args.json:
        about = {
            "registry": str(args.registry),
            "holds": found.holds,
            "problem": registry.problem,
            "num_lines": len(registry.events),
            "num_torn_bytes": registry.num_torn_bytes,
            "head": registry.head,
            "has_head": found.has_head,
        }
        say(json.dumps({**about, "entries": [one.to_json() for one in found.entries]}))
        return 0 if found.holds else 1
    for one in found.entries:
        for line in one.lines():
            tell(line)
    if registry.problem is None:
        head = "" if registry.head is None else f"; the last has the hash {registry.head}"
        tell(f"{args.registry}: {len(registry.events)} lines, each carries the hash before{head}")
    if found.has_head is not None:
        where = "is" if found.has_head else "IS NOT"
        tell(f"the line with the hash {args.head} {where} in it")
    _said_of(registry)
    return 0 if found.holds else 1


# --- promote, compare, feedback -------------------------------------------------------------------


def promote(args: argparse.Namespace, keys: Keys) -> int:
    """Make a checkpoint an entry, unless something speaks against it; 3 where it was refused."""
    with Starting():
        from promotion.notices import parse_then
        from promotion.promoting import promote as promoted
        from promotion.weighing import Request

    request = Request(
        checkpoint=args.checkpoint,
        name=args.name,
        registry=args.registry,
        who=_who(args, keys),
        alias=args.alias,
        force=_reason("--force", args.force, keys),
        then=None if args.then is None else parse_then(args.then),
        may_evaluate=not args.no_evaluate,
    )
    outcome = promoted(request, keys, lambda line: tell(line, file=sys.stderr))
    if args.json:
        say(json.dumps(outcome.to_json(), indent=1))
        return outcome.exit_code
    for line in outcome.lines:
        tell(line)
    return outcome.exit_code


def compare(args: argparse.Namespace, keys: Keys) -> int:
    """Say how one checkpoint stands to another as both were measured; 1 where nobody can tell."""
    with Starting():
        from promotion.comparing import compare_names

    runs_dirs = [args.registry.parent / RUNS, Path(RUNS)]
    found = compare_names(args.one, args.other, args.registry, runs_dirs)
    if args.json:
        say(json.dumps(found.to_json(), indent=1))
    else:
        for line in found.lines:
            tell(line)
    return 0 if found.pairing is not None else 1


def feedback(args: argparse.Namespace, keys: Keys) -> int:
    """Take rated answers from production as rows for the next run."""
    with Starting():
        from promotion.feedback import FeedbackFile, take

    who = _who(args, keys)
    rated = FeedbackFile(args.name, args.file, args.registry, who, args.out, args.right_from)
    took = take(rated)
    if args.json:
        say(json.dumps(took.to_json(), indent=1))
        return 0
    for line in took.lines():
        tell(line)
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace, Keys], int]] = {
    "list": list_entries,
    "show": show,
    "promote": promote,
    "compare": compare,
    "alias": alias,
    "retire": retire,
    "feedback": feedback,
    "verify": verify,
}

if __name__ == "__main__":
    end_program(main())
