"""How large is a run's page, how long does it take to write, and when can it be used?

    .venv/bin/python benchmarks/report_page.py [--runs 20x2000 1x5000 60x2000] [--run-dir DIR ...]

Targets: 20 rounds of 2,000 samples below 15 MB and usable within two seconds, the demo's page below
1.5 MB and open in a second. A run of so many rounds and samples is made by the loop's own store
and arrows; answers are 200 to 400 characters of words that follow each other as in the documents
here. Nothing is trained or sampled. Timed, in seconds on the clock: the page written for the first
time, which encodes every round; written again after one more round; and, where a Chromium is found,
from the navigation until the answers of the newest round stand there, read from a cold start of the
page (median of three), then until another filter and another page of samples do. A directory of a
finished run (`--run-dir`) is copied and its page measured alike, but for one more round.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import itertools
import os
import random
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from round_cost import Bench, write_inputs

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "tests")]

from browser import Browser, found_browser  # noqa: E402 # pyright: ignore[reportMissingImports]
from ledger.store import RunStore  # noqa: E402
from loop.run_page.answer_parts import FOLDER  # noqa: E402
from loop.run_page.page import PAGE, write_page  # noqa: E402

NUM_OPENINGS = 3
ROOM_OF_LINE = "{:<24}" + " {:>9}" * 7
STATUS = "document.querySelector('#answers-browser [role=status]').innerText"


class Words:
    """Texts in which words follow each other as they do in the documents of this project."""

    def __init__(self) -> None:
        said = " ".join(path.read_text() for path in sorted((REPO / "docs").glob("*.md"))).split()
        self._next: dict[str, list[str]] = defaultdict(list)
        for one, other in itertools.pairwise(said):
            self._next[one].append(other)
        self._first = said

    def text(self, rng: random.Random) -> str:
        """200 to 400 characters."""
        length, word, words = rng.randint(200, 400), rng.choice(self._first), []
        while sum(map(len, words)) + len(words) < length:
            words.append(word)
            word = rng.choice(self._next[word] or self._first)
        return " ".join(words)[:length]


class PageBench(Bench):
    """A run whose answers have the length and the words of real ones."""

    words = Words()

    def measured(self, round_no: int, rng: random.Random) -> Any:
        """A third of the answers are those of the round before, as of a model that has settled."""
        measured, before = super().measured(round_no, rng), random.Random(round_no - 1)
        tasks = []
        for task in measured.tasks:
            samples = []
            for sample in task.samples:
                own, earlier = self.words.text(rng), self.words.text(before)
                answer = earlier if rng.random() < 1 / 3 else own
                samples.append(replace(sample, answer=answer, truncated=rng.random() < 0.02))
            tasks.append(replace(task, samples=tuple(samples)))
        return measured._replace(tasks=tuple(tasks))


async def make(bench: PageBench, num_rounds: int) -> None:
    """Rounds 1 to `num_rounds`, and the baseline."""
    with contextlib.closing(bench.begin()) as store:
        run = bench.run(store)
        await bench.arrow("select", "selecting")(run, 0, None)
        for round_no in range(num_rounds + 1):
            bench.plant(store, round_no)
            await bench.close_round(run, round_no)


def timed_page(store: RunStore) -> float:
    began = time.perf_counter()
    write_page(store)
    return time.perf_counter() - began


async def written_again(bench: PageBench, round_no: int) -> float:
    """Seconds that the page takes after one more round, in the process that has written it."""
    with contextlib.closing(RunStore.open(bench.run_dir, to_resume=True)) as store:
        write_page(store)
        bench.plant(store, round_no)
        await bench.close_round(bench.run(store), round_no)
        return timed_page(store)


def until(act: str, outcome: str) -> str:
    """Seconds from an act until a frame in which its outcome stands, as a promise."""
    waiting = f"for (; !({outcome});) await new Promise(requestAnimationFrame);"
    taken = "return (performance.now() - began) / 1000;"
    return f"(async () => {{ const began = performance.now(); {act}; {waiting} {taken} }})()"


def in_browser(page_path: Path) -> list[float]:
    """Seconds until the answers are there, until another filter's are, and another page's."""
    program = found_browser()
    if program is None:
        return []
    shown = "document.querySelector('.samples ol')"
    taken = []
    with tempfile.TemporaryDirectory() as profile, Browser(program, Path(profile)) as browser:
        page = browser.page("about:blank")
        for _ in range(NUM_OPENINGS):
            page.open("about:blank")
            began = time.perf_counter()
            page.call("Page.navigate", url=page_path.as_uri() + "#answers")
            page.until(shown)
            opened_s = time.perf_counter() - began
            every = "document.querySelector('input[value=all]').click()"
            filtered_s = page.value(until(every, f"!{STATUS}.includes(':')"))
            onwards = "document.querySelector('nav[aria-label*=samples] button:last-child').click()"
            turned_s = page.value(until(onwards, f"{STATUS}.startsWith('51')"))
            taken.append((opened_s, filtered_s, turned_s))
    return [median(times) for times in zip(*taken, strict=True)]


def line(name: str, run_dir: Path, first_s: float, again_s: float | None) -> str:
    page = run_dir / PAGE
    parts = sum(one.stat().st_size for one in (run_dir / FOLDER).glob("*"))
    sizes = [f"{page.stat().st_size / 1e6:.2f} MB", f"{parts / 1e6:.2f} MB"]
    times = [f"{first_s:.2f} s", "" if again_s is None else f"{again_s:.2f} s"]
    browser = [f"{taken:.2f} s" for taken in in_browser(page)] or ["no Chromium"] * 3
    return ROOM_OF_LINE.format(name, *sizes, *times, *browser)


def made_run(shape: str) -> str:
    """The line of a run of ROUNDSxSAMPLES."""
    num_rounds, num_samples = map(int, shape.split("x"))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        write_inputs(Path(folder), num_samples)
        bench = PageBench(Path(folder))
        asyncio.run(make(bench, num_rounds - 1))
        with contextlib.closing(RunStore.open(bench.run_dir, to_resume=True)) as store:
            first_s = timed_page(store)
        again_s = asyncio.run(written_again(bench, num_rounds))
        return line(f"{num_rounds} + 1 rounds x {num_samples:,}", bench.run_dir, first_s, again_s)


def finished_run(run_dir: Path) -> str:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(run_dir, Path(folder) / "run"))
        shutil.rmtree(copy / FOLDER, ignore_errors=True)
        with contextlib.closing(RunStore.open(copy, to_resume=True)) as store:
            first_s = timed_page(store)
        return line(run_dir.name, copy, first_s, None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", nargs="*", default=["20x2000", "1x5000", "60x2000"])
    parser.add_argument("--run-dir", type=Path, nargs="*", default=[])
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    print(ROOM_OF_LINE.format("run", "page", "parts", "first", "again", "usable", "filter", "turn"))
    for run_dir in args.run_dir:
        print(finished_run(run_dir), flush=True)
    for shape in args.runs:
        print(made_run(shape), flush=True)


if __name__ == "__main__":
    main()
