"""A checkpoint exported for other programs, and loaded again before it is called finished.

    python export.py RUN_DIR OUT --format peft            # the adapter, in PEFT's layout
    python export.py RUN_DIR@round_02 OUT --format merged # a model directory with it merged in
    python export.py RUN_DIR OUT --format gguf            # for llama.cpp; also gguf-adapter, ollama

docs/export.md says what each holds and how it is checked. This file parses arguments and prints.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from commands.boundary import Session, end_program, report_failure, sigterm_as_interrupt
from errors import Interrupted, LoopError
from loop.reports.console import Starting, drop, open_missing_streams, say, tell, write_out
from services.keys import Keys, taken

if TYPE_CHECKING:
    from exports.making import Made

CARD = "README.md"


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="export.py",
        description="Write a checkpoint as a folder that other programs load, and compare it with "
        "the service before it is called finished.",
        epilog="Exit codes: 0 done, 1 failed, nothing is left, 2 bad input, 130 interrupted.",
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="RUN_DIR (its best), RUN_DIR@round_02, registry:NAME@N, registry:ALIAS, tinker://... "
        "or a folder with an adapter in PEFT's layout",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write; a new one")
    parser.add_argument(
        "--format",
        required=True,
        choices=("peft", "merged", "gguf", "gguf-adapter", "ollama"),
        help="what is written",
    )
    parser.add_argument(
        "--quantization",
        choices=("f32", "f16", "q8_0"),
        help="of a GGUF file (default: f16)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of a merged model (default: the base model's own)",
    )
    parser.add_argument(
        "--base-model",
        metavar="DIR",
        help="where the base model lies now, if it has moved (it is known by its sha256); of an "
        "adapter that another program wrote, its base model",
    )
    parser.add_argument(
        "--renderer",
        metavar="NAME",
        help="the chat format of a tinker:// path that belongs to no run below ./runs, and of an "
        "adapter that another program wrote",
    )
    parser.add_argument(
        "--fold-unembed",
        action="store_true",
        help="with --format peft: merge the adapter's part on the unembedding into a copy of the "
        "base model, so that servers take the rest",
    )
    parser.add_argument(
        "--registry",
        type=Path,
        metavar="FILE",
        help="where registry:NAME is looked up (default: registry.jsonl here)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; every failure ends as one paragraph on stderr and an exit code."""
    open_missing_streams()
    args = parse_arguments(argv)
    with taken() as keys:  # in nobody else's hands meanwhile, nor in what is printed
        try:
            with sigterm_as_interrupt():
                with Starting():  # this takes a second, and more on a busy machine
                    import exports.making  # noqa: F401
                report(args, export(args, keys))
            write_out()
            return 0
        except BrokenPipeError:  # whoever read the output has gone
            for stream in (sys.stdout, sys.stderr):
                drop(stream)
            return 1
        except (LoopError, OSError) as error:
            return report_failure(args, Session(keys), error)
        except KeyboardInterrupt:
            stopped = Interrupted("Interrupted. Nothing was written.")
            return report_failure(args, Session(keys), stopped)


def export(args: argparse.Namespace, keys: Keys) -> Made:
    """Make the export."""
    from exports.making import make_export
    from exports.source import Asked
    from exports.wanted import Wanted
    from loop.reports.progress import Progress

    asked = Asked(args.checkpoint, args.base_model, args.renderer, registry=args.registry)
    out = Path.cwd() / args.out
    wanted = Wanted(args.format, out, args.quantization, args.dtype, args.fold_unembed)
    progress = Progress(verbose=args.verbose, redacted=keys.redacted)
    try:
        return make_export(asked, wanted, keys.environment, progress)
    finally:
        progress.close()


def report(args: argparse.Namespace, made: Made) -> None:
    """Print what was written, what each check found, and how it is used."""
    if args.json:
        say(json.dumps({"out": str(made.wanted.out), "files": made.sums, **made.record}, indent=1))
        return
    for note in made.record["notes"]:
        tell(f"note: {note}")
    for one in made.checks:
        tell(f"ok: {one.sentence}")
    if made.advice is not None:
        tell(made.advice)
    tell(f"Wrote {len(made.sums) + 1} files to {args.out}; sha256sum -c SHA256SUMS checks them.")
    say(f"Use it: {use_of(made, args.out)}")


def use_of(made: Made, out: Path) -> str:
    """The one line that loads an export."""
    folder = shlex.quote(str(out))
    model = shlex.quote(str(out / (made.gguf or "")))
    adapter = shlex.quote(str(out / "adapter.gguf"))
    uses = {
        "peft": f"PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({made.base!r}), "
        f"{str(out)!r})",
        "merged": f"AutoModelForCausalLM.from_pretrained({str(out)!r})",
        "gguf": f"llama-server --model {model} --jinja",
        "gguf-adapter": f"llama-server --model {model} --lora {adapter} --jinja",
        "ollama": f"cd {folder} && ollama create NAME --file Modelfile",
    }
    return f"{uses[made.wanted.format]} ({out / CARD} has the rest)"


if __name__ == "__main__":
    end_program(main())
