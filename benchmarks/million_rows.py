"""Load, validate, deduplicate and decontaminate a million rows, beside the same with `datasets`.

    .venv/bin/python benchmarks/million_rows.py [--rows 1000000] [--dir DIR] [--against COMMIT]

Writes a JSONL file of made-up text (about 500 bytes a row) with known faults planted in it, and
reads it in child processes, one way after the other: as the loop does, as the loop does with near
duplicates as well, and with `datasets` by `map` and `filter` over the same functions (from a copy
without the malformed rows, which end its JSON reader). Prints a Markdown table of seconds and peak
memory; exits 1 when a planted fault was not found, or a limit is exceeded. With --against the
loop's two ways are timed beside another commit's, in turn, and `datasets` is left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

NUM_QUESTIONS = 1000
DUPLICATES, NEAR, CONTAMINATED, MALFORMED = 0.02, 0.01, 0.0005, 0.001  # shares of the rows
GIB = 2**30
LIMITS_GIB = {"loop": 2.0, "loop, near duplicates": 4.0}


class Planted(NamedTuple):
    """How many rows of each fault are in the file."""

    duplicate: int
    near_duplicate: int
    contaminated: int
    rejected: int


# --- the file -------------------------------------------------------------------------------------


def make_vocabulary(rng: random.Random) -> tuple[list[str], list[float]]:
    """Words of one to four syllables with Zipf's frequencies, as cumulative weights."""
    syllables = [a + b for a in "bcdfghklmnprstvw" for b in "aeiou"]
    words = {"".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(30_000)}
    return sorted(words), list(itertools.accumulate(1 / (i + 10) for i in range(len(words))))


def write_files(folder: Path, num_rows: int) -> Planted:
    """Write rows.jsonl, well_formed.jsonl and questions.json."""
    rng = random.Random(0)
    vocabulary, weights = make_vocabulary(rng)

    def text(length: int) -> list[str]:
        return rng.choices(vocabulary, cum_weights=weights, k=length)

    def row(question: list[str], answer: list[str]) -> str:
        shown = {"instruction": " ".join(question) + "?", "output": " ".join(answer) + "."}
        return json.dumps(shown | {"topic": f"topic {rng.randrange(20)}"}) + "\n"

    questions = [{"question": " ".join(text(12)), "answer": "yes"} for _ in range(NUM_QUESTIONS)]
    (folder / "questions.json").write_text(json.dumps(questions))
    counts = dict.fromkeys(Planted._fields, 0)
    earlier: list[tuple[list[str], list[str]]] = []
    with (
        open(folder / "rows.jsonl", "w", encoding="utf-8") as all_rows,
        open(folder / "well_formed.jsonl", "w", encoding="utf-8") as well_formed,
    ):
        for _ in range(num_rows):
            kind, question, answer = rng.random(), text(25), text(62)
            if kind < MALFORMED:
                counts["rejected"] += 1
                all_rows.write('{"instruction": "cut off in the mid\n')
                continue
            kind -= MALFORMED
            if kind < CONTAMINATED:
                counts["contaminated"] += 1
                asked = rng.choice(questions)["question"].upper()
                question = ["please", "say", *asked.split(), *question[:5]]
            elif kind < CONTAMINATED + DUPLICATES and earlier:
                counts["duplicate"] += 1
                question, answer = rng.choice(earlier)
            elif kind < CONTAMINATED + DUPLICATES + NEAR and earlier:
                counts["near_duplicate"] += 1
                question, answer = rng.choice(earlier)
                answer = list(answer)
                answer[rng.randrange(len(answer))] = f"other{rng.randrange(10**9)}"
            elif len(earlier) < 50_000:
                earlier.append((question, answer))
            line = row(question, answer)
            all_rows.write(line)
            well_formed.write(line)
    return Planted(**counts)


# --- the ways -------------------------------------------------------------------------------------


def read_eval_texts(folder: Path) -> Any:
    from rows.contamination import EvalText, EvalTexts

    questions = json.loads((folder / "questions.json").read_text())
    return EvalTexts(EvalText("t", one["question"]) for one in questions)


def by_loop(folder: Path, near: float | None = None) -> dict[str, int]:
    from data_loader import clean_split, load_examples
    from rows.examples import ExampleTable
    from rows.sources import Source

    path = folder / "rows.jsonl"
    data = load_examples([Source(path.name, path)], near_duplicates_from=near)
    split = clean_split(data.examples, ExampleTable(), read_eval_texts(folder))
    return {**data.dropped.counts, **split.dropped.counts, "kept": len(split.train)}


def by_datasets(folder: Path) -> dict[str, int]:
    """The same filters over the same functions, without a list of what was dropped and why."""
    from datasets import disable_progress_bars, load_dataset

    from data_loader import read_row
    from rows.sources import Row

    disable_progress_bars()
    eval_texts, seen = read_eval_texts(folder), set()

    def record(row: dict[str, Any]) -> Any:
        try:
            return read_row(Row(0, row, None), {}).record
        except ValueError:
            return None

    def keyed(row: dict[str, Any]) -> dict[str, bytes]:
        made = record(row)
        return {"key": b"" if made is None else made.key}

    def is_new(key: bytes) -> bool:
        if not key or key in seen:
            return False
        seen.add(key)
        return True

    def is_clean(row: dict[str, Any]) -> bool:
        hit = eval_texts.find_in("", [(one.role, one.text) for one in record(row).messages])
        return hit is None or hit.kind == "similar"

    with tempfile.TemporaryDirectory(dir=folder) as cache:
        data = load_dataset(
            "json",
            data_files=str(folder / "well_formed.jsonl"),
            split="train",
            cache_dir=cache,
        )
        num_rows = len(data)
        data = data.map(keyed)
        data = data.filter(is_new, input_columns="key", load_from_cache_file=False)
        num_new = len(data)
        data = data.filter(is_clean, load_from_cache_file=False)
        return {
            "duplicate": num_rows - num_new,
            "contaminated": num_new - len(data),
            "kept": len(data),
        }


WAYS: dict[str, Callable[[Path], dict[str, int]]] = {
    "loop": by_loop,
    "loop, near duplicates": lambda folder: by_loop(folder, 0.8),
    "`datasets`, `map` and `filter`": by_datasets,
}


def run_child(way: str, folder: Path, repo: Path = REPO) -> dict[str, Any]:
    """Run one way in a process of its own; returns its counts, seconds and peak memory."""
    program = repo / "benchmarks" / Path(__file__).name
    command = [sys.executable, str(program), "--child", way, "--dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{way} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def child(way: str, folder: Path) -> None:
    start = time.perf_counter()
    counts = WAYS[way](folder)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"counts": counts, "seconds": seconds, "peak_bytes": peak}))


# --- the table ------------------------------------------------------------------------------------


def shortfalls(way: str, measured: dict[str, Any], planted: Planted) -> Iterator[str]:
    """Yield what was not found as planted, and limits that were exceeded."""
    counts = measured["counts"]
    for kind, expected in planted._asdict().items():
        if kind == "rejected" and "datasets" in way:
            continue
        if kind == "near_duplicate":
            # Of a near copy's near copies one may be dropped for the other: a few more or less.
            if "near" in way and abs(counts.get(kind, 0) - expected) > 0.02 * expected:
                yield f"{way}: {counts.get(kind, 0)} near duplicates of about {expected}"
        elif counts.get(kind, 0) != expected:
            yield f"{way}: {counts.get(kind, 0)} {kind} of {expected}"
    limit = LIMITS_GIB.get(way)
    if limit is not None and measured["peak_bytes"] > limit * GIB:
        yield f"{way}: {measured['peak_bytes'] / GIB:.2f} GiB, more than {limit:g}"


def compare(folder: Path, commit: str) -> None:
    """Print the loop's ways beside those of another commit, of three runs each the fastest."""
    base = folder / "base"
    subprocess.run(["git", "clone", "--quiet", str(REPO), str(base)], check=True)
    subprocess.run(["git", "checkout", "--quiet", commit], cwd=base, check=True)
    print(f"| way | s | s, {commit} | ratio | GiB | GiB, {commit} | ratio |")
    print("|---|---|---|---|---|---|---|")
    for way in LIMITS_GIB:
        runs = [(run_child(way, folder), run_child(way, folder, base)) for _ in range(3)]
        cells = []
        for key, unit in (("seconds", 1), ("peak_bytes", GIB)):
            ours, theirs = (min(pair[i][key] for pair in runs) / unit for i in (0, 1))
            cells.append(f"{ours:.2f} | {theirs:.2f} | {ours / theirs:.3f}")
        print(f"| {way} | {' | '.join(cells)} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Time a million rows.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dir", type=Path, help="where the files are written (default: temporary)")
    parser.add_argument("--against", metavar="COMMIT", help="compare the loop's ways with COMMIT's")
    parser.add_argument("--child", choices=list(WAYS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        child(args.child, args.dir)
        return 0
    with tempfile.TemporaryDirectory(dir=args.dir) as name:
        folder = Path(name)
        planted = write_files(folder, args.rows)
        size_mb = (folder / "rows.jsonl").stat().st_size / 1e6
        print(f"{args.rows:,} rows, {size_mb:.0f} MB, {NUM_QUESTIONS:,} questions; {planted}\n")
        if args.against is not None:
            compare(folder, args.against)
            return 0
        print("| way | s | rows/s | peak memory, GiB | dropped |")
        print("|---|---|---|---|---|")
        missed: list[str] = []
        for way in WAYS:
            measured = run_child(way, folder)
            counts = {k: v for k, v in measured["counts"].items() if k != "kept"}
            dropped = ", ".join(f"{number:,} {kind}" for kind, number in sorted(counts.items()))
            seconds = measured["seconds"]
            print(
                f"| {way} | {seconds:.0f} | {args.rows / seconds:,.0f} | "
                f"{measured['peak_bytes'] / GIB:.2f} | {dropped} |",
                flush=True,
            )
            missed += shortfalls(way, measured, planted)
    print("\n" + ("\n".join(missed) if missed else "Everything planted was found."))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
