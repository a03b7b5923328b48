"""How often does each grader judge 300 labelled answers as a careful reader does?

    .venv/bin/python benchmarks/graders.py [--wrong GRADER] [--seconds 20]

Compared are ours (`simple_eval.GRADERS`), Inspect (`match(numeric=True)`, `includes()`, `exact()`),
both GSM8K filters of lm-evaluation-harness with its exact match, and math-verify's parse and
verify. The last two are of requirements-graders.txt, which the first run installs into an
environment of its own in the folder for temporary files; deleting that undoes it.

graded_answers.jsonl was written before any grader was run on it. Its labels go by the meaning of
our graders. numeric: the answer's final number, the last one or the boxed one, has the value of
the gold answer, and no other final value is given; "50%" is right for 50 and for 0.5. includes: the
gold answer stands in the answer as a word or number of its own. exact: the whole answer is the gold
one apart from case, spaces, punctuation and marks around it. `source` names the public test, bug
report or model output that an answer is from, shortened to the form that matters; `note` says where
the gold answer is a near miss chosen here instead of the source's, and where a label is debatable.

A judgement that takes longer than --seconds counts as "not right". --wrong lists what a grader
judges otherwise than the label.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import select
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).resolve().parent.parent
HERE = REPO / "benchmarks"
sys.path.insert(0, str(REPO))

from inspect_ai.model import ModelName, ModelOutput  # noqa: E402
from inspect_ai.scorer import CORRECT, Target, exact, includes, match  # noqa: E402
from inspect_ai.solver import TaskState  # noqa: E402

from simple_eval import GRADERS  # noqa: E402

PINS = HERE / "requirements-graders.txt"
INSPECT = {"numeric": match(numeric=True), "includes": includes(), "exact": exact()}
OTHERS = {  # the name in graders_of_others.py of each column
    "lm-eval strict": "strict-match",
    "lm-eval flexible": "flexible-extract",
    "math-verify": "math-verify",
}
COLUMNS = ("ours", "Inspect", *OTHERS)


class Labelled(NamedTuple):
    """An answer, and whether a careful reader would say that it is right."""

    kind: str
    grader: str
    gold: str
    answer: str
    right: bool
    source: str
    note: str = ""

    @property
    def group(self) -> str:
        """The line of the tables: other graders than the numeric one are counted apart."""
        return self.kind if self.grader == "numeric" else f"{self.kind} ({self.grader})"


class Tally(NamedTuple):
    """How a grader's judgements of some answers compare with their labels."""

    num_answers: int
    num_as_labelled: int
    num_false_accepts: int
    num_false_rejects: int


Judgements = list[bool | None]  # None: the grader has no equivalent for that answer


def read_labelled(file: Path = HERE / "graded_answers.jsonl") -> list[Labelled]:
    return [Labelled(**json.loads(line)) for line in file.read_text("utf-8").splitlines()]


# --- judging --------------------------------------------------------------------------------------


def judge_ours(one: Labelled) -> bool:
    # A grader may give a share of a point; only the whole point is "right".
    return float(GRADERS[one.grader](one.answer, [one.gold])) >= 1.0


def judge_by_inspect(one: Labelled) -> bool:
    model = ModelName("mockllm/model")
    output = ModelOutput.from_content("mockllm/model", one.answer)
    state = TaskState(model, sample_id=1, epoch=1, input="", messages=[], output=output)
    score = asyncio.run(INSPECT[one.grader](state, Target([one.gold])))
    return score is not None and score.value == CORRECT


def environment() -> Path:
    """The Python that has the other graders, installed beside this one's packages if it is not."""
    digest = hashlib.sha256(PINS.read_bytes() + sys.prefix.encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"graders-{digest}"
    python, done = folder / "bin" / "python", folder / "complete"
    if done.exists():
        return python
    print(f"Installing {PINS.name} into {folder}.", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    # An environment that is made from another one sees the packages of the base Python alone.
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "project.pth").write_text(sysconfig.get_paths()["purelib"])
    install = [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(PINS)]
    subprocess.run(install, check=True, stdout=sys.stderr)
    done.touch()
    return python


@contextmanager
def worker(python: Path, name: str) -> Iterator[subprocess.Popen[str]]:
    """A process of graders_of_others.py that has read its packages."""
    command = [str(python), str(HERE / "graders_of_others.py"), name]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    try:
        if process.stdout is None or process.stdout.readline() != "ready\n":
            raise SystemExit(f"The grader {name} did not start; it said above why.")
        yield process
    finally:
        process.kill()
        process.communicate()


def judge_elsewhere(
    python: Path, name: str, answers: Sequence[Labelled], seconds: float
) -> list[bool]:
    """The judgements of one grader of another project; one that takes too long is "not right"."""
    judged: list[bool] = []
    while len(judged) < len(answers):
        with worker(python, name) as process:
            for one in answers[len(judged) :]:
                reply = _asked(process, one, seconds)
                judged.append(reply == "true\n")
                if reply is None:
                    print(f"{name}: no end within {seconds} s: {one.answer!r}", file=sys.stderr)
                    break
    return judged


def _asked(process: subprocess.Popen[str], one: Labelled, seconds: float) -> str | None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps([one.gold, one.answer]) + "\n")
    process.stdin.flush()
    # One line is asked for at a time, so that none can wait in the reader's buffer.
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    if not ready:
        return None
    if reply := process.stdout.readline():
        return reply
    raise SystemExit(f"The grader ended at the gold answer {one.gold!r} for {one.answer!r}.")


def judge_all(answers: Sequence[Labelled], seconds: float) -> dict[str, Judgements]:
    judged: dict[str, Judgements] = {
        "ours": [judge_ours(one) for one in answers],
        "Inspect": [judge_by_inspect(one) for one in answers],
    }
    python = environment()
    numeric = [one for one in answers if one.grader == "numeric"]
    for column, name in OTHERS.items():
        replies = iter(judge_elsewhere(python, name, numeric, seconds))
        judged[column] = [next(replies) if one.grader == "numeric" else None for one in answers]
    return judged


# --- tables ---------------------------------------------------------------------------------------


def tally(answers: Sequence[Labelled], judgements: Judgements) -> Tally:
    pairs = [(one.right, said) for one, said in zip(answers, judgements, strict=True)]
    known = [(right, said) for right, said in pairs if said is not None]
    return Tally(
        len(known),
        sum(right == said for right, said in known),
        sum(said and not right for right, said in known),
        sum(right and not said for right, said in known),
    )


def below(rows: dict[str, dict[str, Tally]]) -> list[str]:
    """Where ours is less often right than the best of the others, with both counts."""
    found = []
    for group, tallies in rows.items():
        others = {name: one for name, one in tallies.items() if name != "ours" and one.num_answers}
        best = max(others, key=lambda name: others[name].num_as_labelled)
        ours, theirs = tallies["ours"].num_as_labelled, others[best].num_as_labelled
        if ours < theirs:
            found.append(f"{group} {ours} ({best} {theirs})")
    return found


def print_table(rows: dict[str, dict[str, Tally]], cell: Callable[[Tally], str]) -> None:
    print(f"| kind | answers | {' | '.join(COLUMNS)} |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    for group, tallies in rows.items():
        cells = [cell(one) if one.num_answers else "" for one in tallies.values()]
        print(f"| {group} | {tallies['ours'].num_answers} | {' | '.join(cells)} |")


def tabulate(answers: Sequence[Labelled], judged: dict[str, Judgements]) -> None:
    def row(chosen: Callable[[Labelled], bool]) -> dict[str, Tally]:
        at = [i for i, one in enumerate(answers) if chosen(one)]
        kept = [answers[i] for i in at]
        return {column: tally(kept, [judged[column][i] for i in at]) for column in COLUMNS}

    in_order = sorted(answers, key=lambda one: one.grader != "numeric")
    groups = dict.fromkeys(one.group for one in in_order)
    by_group = {group: row(lambda one, group=group: one.group == group) for group in groups}
    totals = {
        "**numeric**": row(lambda one: one.grader == "numeric"),
        "**all**": row(lambda one: True),
    }
    print(f"Judged as labelled (inspect_ai {version('inspect_ai')}, {', '.join(pins())}):\n")
    print_table(by_group | totals, lambda one: str(one.num_as_labelled))
    print("\nFalse accepts + false rejects (an accepted wrong answer is worse):\n")
    print_table(by_group | totals, lambda one: f"{one.num_false_accepts} + {one.num_false_rejects}")
    num_wrong = sum(one.grader == "numeric" and not one.right for one in answers)
    num_debatable = sum("debatable" in one.note for one in answers)
    print(
        "\nEmpty: that grader has no equivalent; its total is of the numeric answers alone. Who "
        f"rejects everything judges {num_wrong} numeric answers as labelled. {num_debatable} "
        "labels are debatable and say so in their notes."
    )
    short = below(by_group)
    said = f"no, below on: {', '.join(short)}" if short else "yes"
    print(f"\nOurs is at least as often right as the best of the others on every kind: {said}")


def pins() -> list[str]:
    lines = PINS.read_text().splitlines()
    return [line.replace("==", " ") for line in lines if not line.startswith("#")]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--wrong", choices=COLUMNS, help="list what this grader judges wrongly")
    parser.add_argument("--seconds", type=float, default=20.0, help="limit for one judgement")
    args = parser.parse_args()
    answers = read_labelled()
    judged = judge_all(answers, args.seconds)
    tabulate(answers, judged)
    if args.wrong:
        print(f"\nJudged otherwise than labelled by {args.wrong}:\n")
        for one, said in zip(answers, judged[args.wrong], strict=True):
            if said is not None and said != one.right:
                name = "accepts" if said else "rejects"
                print(f"- {one.group}: {name} {one.answer[-90:]!r} for {one.gold!r}; {one.source}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
