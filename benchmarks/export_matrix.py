"""What every format of export.py does on every architecture, in a fresh environment.

    .venv/bin/python benchmarks/export_matrix.py [--rows Llama] [--formats peft merged] [--work DIR]

Each model is trained by a run of the product (two rounds, 60 rows, 100 questions, the embedded
service), exported by `export.py`, and then loaded outside of the project: by
benchmarks/export_fresh.py, which a user could have written, in an environment that has torch,
transformers, peft and xllamacpp alone, in an empty folder. Its greedy answers to the 100 questions
are held against the tokens that the service itself samples at temperature 0; how many are identical
is printed, and where an export is refused, why. That an export which fails its own check leaves no
folder is looked at as well.

Writes below its work folder alone: a temporary one, or DIR, whose `environment/` is made once.
Prints Markdown, interrupted (Ctrl-C) of what it has by then.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

REPO = Path(__file__).resolve().parent.parent
FRESH = REPO / "benchmarks" / "export_fresh.py"
PACKAGES = ("torch", "transformers", "peft", "xllamacpp")
MAX_S = 900.0  # of one program in the fresh environment
sys.path[:0] = [str(REPO), str(REPO / "tests"), str(REPO / "benchmarks")]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TINKER_TELEMETRY", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models so small only wait for a second one

from export_models import MAX_TOKENS, ROWS, Row, Trained, called, trained  # noqa: E402


class Form(NamedTuple):
    """A column of the matrix: how it is exported, and as what it is loaded."""

    name: str
    options: Sequence[str]
    loaded_as: str


FORMS = (
    Form("peft", ("--format", "peft"), "peft"),
    Form("peft --fold-unembed", ("--format", "peft", "--fold-unembed"), "peft"),
    Form("merged", ("--format", "merged"), "merged"),
    Form("gguf f32", ("--format", "gguf", "--quantization", "f32"), "gguf"),
    Form("gguf f16", ("--format", "gguf", "--quantization", "f16"), "gguf"),
    Form("gguf q8_0", ("--format", "gguf", "--quantization", "q8_0"), "gguf"),
    Form("gguf-adapter", ("--format", "gguf-adapter", "--quantization", "f32"), "gguf-adapter"),
    Form("ollama", ("--format", "ollama", "--quantization", "f32"), "gguf"),
)


class Cell(NamedTuple):
    """What came of one export. `num_identical` is None where nothing was loaded."""

    row: str
    form: str
    num_identical: int | None
    num_asked: int
    seconds: float
    refusal: str = ""
    checks: Sequence[dict[str, Any]] = ()

    @property
    def short(self) -> str:
        if self.num_identical is None:
            return "refused" if self.refusal else "failed"
        return f"{self.num_identical} of {self.num_asked}"


# --- the fresh environment ------------------------------------------------------------------------


def pins() -> list[str]:
    """The versions that the project pins, of the packages that an export's user needs."""
    text = "".join((REPO / f"requirements{one}.txt").read_text() for one in ("", "-gguf"))
    found = dict(re.findall(r"^([\w-]+)==([^\s;]+)", text, re.MULTILINE))
    return [f"{name}=={found[name]}" for name in PACKAGES]


def fresh_python(work: Path) -> Path:
    """The interpreter of an environment without the project, made once in the work folder."""
    folder = work / "environment"
    python, stamp = folder / "bin" / "python", folder / "pins.txt"
    wanted = "\n".join(pins())
    if not stamp.is_file() or stamp.read_text() != wanted:
        progress(f"making {folder} with {', '.join(pins())}")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", *pins()]
        subprocess.run(install, check=True)
        stamp.write_text(wanted)
    return python


def answers_of(python: Path, work: Path, arguments: Sequence[str]) -> list[list[int]]:
    """Run the user's script in an empty folder. Raises `RuntimeError` with what it wrote."""
    with tempfile.TemporaryDirectory(dir=work) as empty:
        out = Path(empty) / "answers.json"
        names = ("PATH", "LANG", "OMP_NUM_THREADS")
        kept = {key: os.environ[key] for key in names if key in os.environ}
        env = {**kept, "HF_HUB_OFFLINE": "1", "HF_HOME": str(Path(empty) / "hub")}
        command = [str(python), "-I", str(FRESH), *arguments[:3], str(out), *arguments[3:]]
        done = subprocess.run(
            command, cwd=empty, env=env, capture_output=True, text=True, timeout=MAX_S
        )
        if done.returncode or not out.is_file():
            raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-1500:]}")
        return json.loads(out.read_text())


# --- one export -----------------------------------------------------------------------------------


def cell_of(row: Row, form: Form, made: Trained, python: Path, work: Path) -> Cell:
    """Export, load in the fresh environment, and count identical answers."""
    from export import main

    out = made.folder / "exports" / form.name.replace(" ", "_")
    out.parent.mkdir(exist_ok=True)
    begun, before = time.monotonic(), set(out.parent.iterdir())
    said = called(main, [f"{made.run_dir}@best", str(out), *form.options], may_fail=True)
    num_asked = len(made.answers)
    if said.code:
        if left := sorted(one.name for one in set(out.parent.iterdir()) - before):
            raise SystemExit(f"{row.name}, {form.name}: exit {said.code}, and it left {left}")
        why = said.stderr.strip().split("error: ", 1)[-1].replace(str(made.folder), "DIR")
        return Cell(row.name, form.name, None, num_asked, time.monotonic() - begun, why)
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=out, check=True)
    checks = json.loads((out / "export.json").read_text())["checks"]
    asked = made.folder / "asked.json"
    asked.write_text(json.dumps({"conversations": made.conversations, "max_tokens": MAX_TOKENS}))
    try:
        answers = answers_of(python, work, [*_load_arguments(form, out, made), str(asked)])
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        progress(f"{row.name}, {form.name}: {error}")
        return Cell(row.name, form.name, None, num_asked, time.monotonic() - begun, "", checks)
    same = sum(one == other for one, other in zip(answers, made.answers, strict=True))
    return Cell(row.name, form.name, same, num_asked, time.monotonic() - begun, "", checks)


def _load_arguments(form: Form, out: Path, made: Trained) -> list[str]:
    if form.loaded_as in ("peft", "merged"):
        return [form.loaded_as, str(out)]
    if form.loaded_as == "gguf-adapter":
        (base,) = out.glob("base-*.gguf")
        return ["gguf", f"{base}+{out / 'adapter.gguf'}"]
    (file,) = out.glob("*.gguf")
    return ["gguf", str(file)]


# --- the table ------------------------------------------------------------------------------------


def matrix(cells: Sequence[Cell], forms: Sequence[Form]) -> str:
    """Identical greedy answers, a row for each architecture."""
    names = [form.name for form in forms]
    lines = [f"| architecture | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    found = {(cell.row, cell.form): cell.short for cell in cells}
    for row in dict.fromkeys(cell.row for cell in cells):
        lines.append(f"| {row} | {' | '.join(found.get((row, n), '') for n in names)} |")
    return "\n".join(lines)


def by_check(cells: Sequence[Cell]) -> str:
    """What each export's own checks found, or why it was refused."""
    lines = ["| architecture | format | check | outcome |", "|---|---|---|---|"]
    for cell in cells:
        start = f"| {cell.row} | {cell.form} |"
        if cell.refusal:
            lines.append(f"{start} refused | {' '.join(cell.refusal.split())} |")
        for one in cell.checks:
            holds = "holds" if one["passed"] else "DOES NOT HOLD"
            lines.append(f"{start} {one['name']} | {holds}: {one['sentence']} |")
        if not cell.refusal:
            lines.append(f"{start} fresh environment | {cell.short} answers are identical |")
    return "\n".join(lines).replace("\\|", "/")


def progress(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def run(work: Path, rows: Sequence[Row], forms: Sequence[Form]) -> None:
    python = fresh_python(work)
    cells: list[Cell] = []
    try:
        with tempfile.TemporaryDirectory(dir=work) as models:
            for row in rows:
                _fill(cells, row, forms, python, work, Path(models))
    finally:
        sys.stdout.write(f"{matrix(cells, forms)}\n\n{by_check(cells)}\n")


def _fill(
    cells: list[Cell], row: Row, forms: Sequence[Form], python: Path, work: Path, models: Path
) -> None:
    begun = time.monotonic()
    made = trained(row, models / re.sub(r"\W+", "_", row.name))
    num_different = len({tuple(answer) for answer in made.answers})
    progress(
        f"{row.name}: trained in {time.monotonic() - begun:.0f} s, score {made.score:.4f}, "
        f"{num_different} different answers, {made.num_agreeing} of {len(made.answers)} as "
        "the run's evaluation has them"
    )
    for form in forms:
        cell = cell_of(row, form, made, python, work)
        progress(f"{row.name}, {form.name}: {cell.short} ({cell.seconds:.0f} s)")
        cells.append(cell)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], metavar="ROW")
    parser.add_argument("--formats", nargs="+", choices=[f.name for f in FORMS], metavar="FORMAT")
    parser.add_argument("--work", type=Path, metavar="DIR")
    given = parser.parse_args()
    rows = [row for row in ROWS if given.rows is None or row.name in given.rows]
    forms = [form for form in FORMS if given.formats is None or form.name in given.formats]
    if given.work is not None:
        given.work.mkdir(parents=True, exist_ok=True)
        run(given.work.resolve(), rows, forms)
        return
    with tempfile.TemporaryDirectory() as work:
        run(Path(work), rows, forms)


if __name__ == "__main__":
    main()
