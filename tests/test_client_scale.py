"""What the client does with many samples: work and what is kept, counted, never seconds."""

from __future__ import annotations

import asyncio
import cProfile
import pickle
import pstats
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tinker
from tinker_cookbook.renderers.llama3 import Llama3Renderer
from tinker_cookbook.tokenizer_utils import get_tokenizer

import local_tinker
from answer_runs import SCORED, sample
from evaluation.held_out import load_held_out, measure_losses
from evaluation.preferences import load_pairs, measure_pairs
from ledger.store import RunStore
from loop.run_page.answer_parts import encoded, part_json
from rows import similarity
from rows.rendering import Rendering
from rows.similarity import likeness_to
from run_records import Shape, evaluated
from scores.results import Measured, SampleResult, task_result
from sdk_client import using
from services.at_once import AHEAD, in_order
from simple_eval import Sampler, SamplingSettings, ask_questions, load_questions
from storage.journal import Journal
from test_loop import Workspace

NUM, AT_ONCE = 40, 2


# --- asking ---------------------------------------------------------------------------------------


class Counting(Llama3Renderer):
    """Counts what it renders."""

    num_rendered = 0

    def build_generation_prompt(self, *arguments: Any, **options: Any) -> tinker.ModelInput:
        self.num_rendered += 1
        return super().build_generation_prompt(*arguments, **options)

    def build_supervised_example(self, *arguments: Any, **options: Any) -> Any:
        self.num_rendered += 1
        return super().build_supervised_example(*arguments, **options)


class Watching:
    """A sampling client that notes at each request how much was rendered until then."""

    def __init__(self, client: tinker.SamplingClient, renderer: Counting) -> None:
        self._client, self._renderer = client, renderer
        self.rendered: list[int] = []

    def _note(self) -> None:
        self.rendered.append(self._renderer.num_rendered)

    async def sample(self, *arguments: Any) -> tinker.SampleResponse:
        self._note()
        return await self._client.sample(*arguments)

    async def compute_logprobs(self, prompt: tinker.ModelInput) -> list[float | None]:
        self._note()
        return await self._client.compute_logprobs(prompt)


def rows(kind: str) -> list[dict[str, str]]:
    rows = [{"prompt": f"Say {n}.", "chosen": f"{n}", "rejected": "no"} for n in range(NUM)]
    if kind == "pairs":
        return rows
    asked, said = ("question", "answer") if kind == "questions" else ("instruction", "output")
    return [{asked: one["prompt"], said: one["chosen"]} for one in rows]


@pytest.mark.parametrize("kind", ["questions", "losses", "pairs"])
def test_no_more_is_rendered_than_is_about_to_be_asked(
    service: local_tinker.Service, workspace: Workspace, llama_dir: Path, kind: str
) -> None:
    """Of a hundred thousand questions the first is asked at once, and the others wait as they are
    read."""
    workspace.write_rows("asked.jsonl", rows(kind))
    renderer, path = Counting(get_tokenizer(str(llama_dir))), workspace.folder / "asked.jsonl"
    rendering, journal = Rendering(renderer, 512), Journal(workspace.folder / "j", "x")

    async def ask(client: tinker.ServiceClient) -> tuple[int, list[int]]:
        heard = Watching(await client.create_sampling_client(base_model="llama"), renderer)
        given: Any = heard
        settings = SamplingSettings(0.0, 2, seed=5, concurrency=AT_ONCE)
        sampler = Sampler("x", given, renderer, rendering, settings)
        renderer.num_rendered = 0
        if kind == "questions":
            done = await ask_questions(load_questions("qa:asked.jsonl", path), sampler, journal)
            return len(done), heard.rendered
        held = load_held_out("nll:asked", path) if kind == "losses" else load_pairs("pref:a", path)
        rendering.render_all(held.examples)
        renderer.num_rendered = 0
        if kind == "losses":
            loss = await measure_losses("nll:asked", held.examples, sampler, journal)
            return loss.n, heard.rendered
        return len(await measure_pairs("pref:a", held.examples, sampler, journal)), heard.rendered

    num_done, rendered = using(service, workspace.folder / "checkpoints", ask)
    sides = 2 if kind == "pairs" else 1
    assert (num_done, len(rendered), len(journal)) == (NUM, sides * NUM, NUM)
    of_each = renderer.num_rendered / NUM
    ahead = [number / of_each - asked / sides for asked, number in enumerate(rendered)]
    assert max(ahead) <= AHEAD * AT_ONCE


def test_what_is_worked_on_at_once_is_bounded_and_comes_in_order() -> None:
    num_at_work = most = 0

    async def work(item: int) -> int:
        nonlocal num_at_work, most
        num_at_work += 1
        most = max(most, num_at_work)
        for _ in range(item % 7):
            await asyncio.sleep(0)
        num_at_work -= 1
        return -item

    found = asyncio.run(in_order(iter(range(100)), 3, work))
    assert (found, most) == ([-item for item in range(100)], AHEAD * 3)
    assert asyncio.run(in_order([], 3, work)) == []


def test_where_one_fails_no_more_are_begun() -> None:
    begun: list[int] = []

    async def work(item: int) -> None:
        begun.append(item)
        await asyncio.sleep(0)
        if item == 10:
            raise ValueError("the tenth")

    async def ask() -> None:
        with pytest.raises(ValueError, match="the tenth"):
            await in_order(range(1000), 2, work)
        num_begun = len(begun)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(begun) == num_begun < 30

    asyncio.run(ask())


# --- keeping --------------------------------------------------------------------------------------


def many(number: int, num_chars: int = 20) -> list[SampleResult]:
    return [sample(SCORED, one, "a" * num_chars, float(one % 2)) for one in range(number)]


def test_a_journal_keeps_its_records_on_disk_alone(tmp_path: Path) -> None:
    path = tmp_path / "round_01.partial.jsonl"
    journal, texts = Journal(path, "weights"), [f"{one}\u00e4\n" * 5000 for one in range(20)]
    for one, text in enumerate(texts):
        journal.add(f"q/{one}", {"text": text}, num_prompt_tokens=one)
    for read in (journal, Journal(path, "weights")):
        assert len(pickle.dumps(vars(read))) < 5000 < path.stat().st_size / 20
        assert [read.get(f"q/{one}", dict[str, str]) for one in range(20)] == [
            {"text": text} for text in texts
        ]
        assert read.num_tokens == (sum(range(20)), 0)


def peak_of(work: Callable[[], object]) -> int:
    """The most bytes that are allocated meanwhile, beyond those that were before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_an_evaluation_is_written_piece_by_piece(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", {"config": {}})
    measured = Measured((task_result(SCORED, many(4000)),))
    peak = peak_of(lambda: store.write_json("evals/round_00.json", measured._asdict()))
    size = (store.run_dir / "evals" / "round_00.json").stat().st_size
    assert peak < size / 2, (peak, size)
    store.write_json("copied.json", measured.to_json())  # of copies, all in one
    written = (store.run_dir / "copied.json").read_bytes()
    assert (store.run_dir / "evals" / "round_00.json").read_bytes() == written
    store.close()


def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", {"config": {}})
    store.write_json("a.json", {"number": 1})
    before = sorted(store.run_dir.iterdir()), (store.run_dir / "a.json").read_bytes()
    for wrong in (float("nan"), object(), "\ud800"):
        with pytest.raises((TypeError, ValueError)):
            store.write_json("a.json", {"number": 2, "wrong": wrong})
    assert (sorted(store.run_dir.iterdir()), (store.run_dir / "a.json").read_bytes()) == before
    store.close()


def test_a_result_and_what_was_measured_are_the_same_samples(tmp_path: Path) -> None:
    """Whichever of them is asked for first."""
    shape = Shape()
    store = RunStore.create(tmp_path / "run", {"config": {}})
    evaluated(store, 0, 0.5, shape)
    store.close()
    for first in ("result", "measured"):
        store = RunStore.open(tmp_path / "run")
        getattr(store, first)(0)
        result = store.result(0)
        assert result is not None
        assert all(
            one is other for one, other in zip(store.measured(0).tasks, result.tasks, strict=True)
        )


# --- showing --------------------------------------------------------------------------------------


def test_a_page_tries_no_cut_that_cuts_nothing() -> None:
    """Each try writes and packs all samples; of short texts there were eight in vain."""
    measured, profile = Measured((task_result(SCORED, many(3000)),)), cProfile.Profile()
    part = profile.runcall(encoded, measured, 20_000)
    calls: Any = pstats.Stats(profile)
    num_tries = sum(
        found[0] for (_, _, name), found in calls.stats.items() if name == part_json.__name__
    )
    assert 0 < len(part) <= 20_000
    assert 1 < num_tries <= 4


def test_likeness_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"Name the {thing} of {place}." for thing in "abcdef" for place in "uvwxyz"]
    questions = ["What is the b of w?", "Name a d.", "And of z?"]
    whole = likeness_to(questions, texts)
    monkeypatch.setattr(similarity, "MAX_CELLS", 7)
    assert likeness_to(questions, texts) == whole
