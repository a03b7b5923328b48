"""The page of a run: its figures are the run's, at each of its stages, and no text in it acts.

What is on the page is read back from it, and worked out again from the files of the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import run_records as records
from commands.boundary import record_failure
from config_schema import load_and_validate_config
from conftest import REPO
from data_selector import Pick
from errors import ConfigError, EvalError, RunStoreError
from ledger.registry_weights import weights_dir
from ledger.row_lists import first_rows
from ledger.store import RunStore
from loop.planning.inputs import read_inputs
from loop.planning.models import find_model_dir
from loop.planning.plan import make_plan
from loop.reports.progress import Progress
from loop.rounds.run import Beside
from loop.rounds.session import open_service
from loop.rounds.showing import MAX_PIECE_CHARS, MAX_ROW_CHARS, NUM_SHOWN, shortened, shown_picks
from loop.run_page.page import PAGE, keep_page, page_of
from loop.run_page.thinning import MOST_POINTS, spread, thinned
from loop.run_page.viewed import standing_of, viewed
from page_reading import Page, Tables, is_shown
from pages.charts import Point
from rows.rendering import Piece
from run_records import SEALED, SECRET, TASK, Shape
from services.keys import Keys
from services.place import Place, ServiceChoice
from study_records import HOSTILE
from test_loop import Workspace
from trainer_with_eval import main, train_on_service
from two_runs import begin


def page_in(run_dir: Path) -> str:
    return (run_dir / PAGE).read_text(encoding="utf-8")


def made(store: RunStore) -> str:
    """The page as a reader makes it, once nobody is at work on the run."""
    store.close()
    return page_of(viewed(RunStore.open(store.run_dir)))


def json_in(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# --- a real run: left after round 1, and gone on with ---------------------------------------------


class Real(NamedTuple):
    run_dir: Path
    pages: list[str]  # after round 1, and at the end
    events: list[dict[str, Any]]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, llama_dir: Path) -> Real:
    workspace = Workspace(tmp_path_factory.mktemp("page"), llama_dir)
    held_out = [{"instruction": f"Say {i}", "output": str(i)} for i in range(300, 304)]
    workspace.write_rows("held.jsonl", held_out)
    pool = [{"instruction": "Say 100", "output": "100"}] * 2  # a duplicate, which is dropped
    workspace.write_rows("pool.jsonl", [*pool, *rows_of_pool()])
    workspace.arguments(
        "run",
        eval_tasks=["qa:questions.jsonl", "nll:held.jsonl"],
        evaluation={"max_tokens": 4, "held_out_every_steps": 2, "test_tasks": ["qa:test.jsonl"]},
    )
    test = [{"question": f"{SECRET} {i}", "answer": "x"} for i in range(5)]
    workspace.write_rows("test.jsonl", test)
    loaded = load_and_validate_config(workspace.folder / "config.json")
    plan = make_plan(read_inputs(loaded, find_model_dir(loaded)))
    choice = ServiceChoice("embedded", None, "a test")
    run_dir = workspace.folder / "run"
    store, progress = begin(plan, choice, run_dir), Progress(verbose=False)
    with open_service(choice, plan, progress) as service:
        place = Place(choice, service, run_dir / "checkpoints", Keys())
        beside = Beside(leaves_after=lambda number: number == 1)
        asyncio.run(train_on_service(plan, store, progress, place, beside))
    store.close()
    pages = [page_in(run_dir)]
    with contextlib.chdir(REPO):
        assert main(["--resume", str(run_dir)]) == 0
    pages.append(page_in(run_dir))
    lines = (run_dir / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
    return Real(run_dir, pages, [json.loads(line) for line in lines])


def rows_of_pool() -> list[dict[str, str]]:
    return [
        {"instruction": f"Say {i}", "output": str(i), "topic": ("sums", "names")[i % 2]}
        for i in range(101, 130)
    ]


def of_type(real: Real, kind: str) -> list[dict[str, Any]]:
    return [event for event in real.events if event["type"] == kind]


def test_the_page_after_a_round_tells_of_what_there_is(real: Real) -> None:
    page = Page(real.pages[0])
    assert page.text_of("strong") == ["Going on."]
    tables = Tables(real.pages[0])
    assert [row[0] for row in tables.named("Scores")] == ["0", "1"]
    assert "sealed test has not been asked" in real.pages[0]
    assert SECRET not in real.pages[0] + real.pages[1]


def test_what_is_long_stands_last(real: Real) -> None:
    for page in real.pages:
        assert re.findall(r'<h2 id="([^"]*)"', page)[-2:] == ["words", "answers"]


def test_scores_are_those_of_the_evaluations(real: Real) -> None:
    rows = Tables(real.pages[1]).named("Scores")
    names = ["round_00", "round_01", "round_02", "test"]
    for row, name in zip(rows, names, strict=True):
        result = json_in(real.run_dir / f"evals/{name}.json")
        samples = [one for task in result["tasks"] for one in task["samples"]]
        assert float(row[1]) == pytest.approx(sum(one["score"] for one in samples) / len(samples))
        assert row[2] == "[{:.2f}, {:.2f}]".format(*result["interval"])
        flags = ("truncated", "malformed")
        counts = [len(samples), *(sum(one[flag] for one in samples) for flag in flags), 0]
        assert [int(cell) for cell in row[3:]] == counts
    titles = re.findall(r"<title>(?:score|sealed test): (.*?)</title>", real.pages[1])
    for title, row in zip(titles, rows, strict=True):
        assert f"{row[1]} {row[2]}, n={row[3]}" in title
    links = [one["href"] for one in Page(real.pages[1]).named("a") if "aria-label" in one]
    assert links == ["#answers/0", "#answers/1", "#answers/2"]


def test_every_decision_stands_there_as_its_sentence(real: Real) -> None:
    rows = Tables(real.pages[1]).named("Decisions")
    assert [row[3] for row in rows] == [one["sentence"] for one in of_type(real, "decided")]
    assert [row[4] for row in rows[1:]] == [one["sentence"] for one in of_type(real, "diagnosed")]


def test_losses_and_rates_are_those_of_the_ledger(real: Real) -> None:
    rows, steps = Tables(real.pages[1]).named("Steps"), of_type(real, "step")
    for row, step in zip(rows, steps, strict=True):
        assert [int(row[0]), int(row[1])] == [step["step"], step["round"]]
        assert float(row[2]) == pytest.approx(step["nll"], abs=5e-5)
        assert float(row[3]) == pytest.approx(step["lr"], rel=1e-5)
        assert [int(row[4]), int(row[5])] == [step["num_tokens"], step["num_loss_tokens"]]
    shown = re.findall(r"<title>held out: nll:held.jsonl: after (\d+) steps: (.*?)<", real.pages[1])
    expected = {one["step"]: one["nll"] for one in of_type(real, "held_out")}
    for number, step in enumerate((0, 3, 6)):
        result = json_in(real.run_dir / f"evals/round_{number:02d}.json")
        expected[step] = result["held_out"][0]["nll"]
    assert {int(step): float(nll) for step, nll in shown} == pytest.approx(expected, abs=5e-5)
    by_round = Tables(real.pages[1]).named("Loss a token by round")
    for row in by_round:
        losses = [one["nll"] for one in steps if one["round"] == int(row[0])]
        figures = [losses[0], losses[-1], min(losses), sum(losses) / len(losses)]
        assert [float(cell) for cell in row[2:6]] == pytest.approx(figures, abs=5e-5)


def test_tokens_are_added_up_by_round_and_in_all(real: Real) -> None:
    used: dict[str, Counter[str]] = defaultdict(Counter)
    for event in real.events:
        name = "outside of these" if event["round"] is None else str(event["round"])
        for of in (name, "all"):
            used[of]["trained"] += event["num_tokens"] if event["type"] == "step" else 0
            used[of]["read"] += event.get("num_prompt_tokens", 0)
            used[of]["sampled"] += event.get("num_sampled_tokens", 0)
    for name, *cells in Tables(real.pages[1]).named("Used"):
        counts = [int(cell.replace(",", "")) for cell in cells[:3]]
        assert counts == [used[name][key] for key in ("trained", "read", "sampled")], name
        assert cells[4] == "none"
    assert "The run was on this machine, so these tokens cost nothing." in real.pages[1]


def test_topics_are_counted_from_the_answers(real: Real) -> None:
    rows = Tables(real.pages[1]).named("Share of right answers by topic")
    assert {row[0] for row in rows} == {"sums", "names"}
    for topic, num, *cells in rows:
        for number in range(3):
            result = json_in(real.run_dir / f"evals/round_{number:02d}.json")
            samples = [s for t in result["tasks"] for s in t["samples"] if s["topic"] == topic]
            share = sum(one["score"] for one in samples) / len(samples)
            assert cells[number] == f"{share:.2f}" and int(num) == len(samples)


def test_what_was_trained_on_is_what_was_selected(real: Real) -> None:
    tables = Tables(real.pages[1])
    summary = tables.named("Examples by round")
    for number, row in enumerate(summary, start=1):
        selection = json_in(real.run_dir / f"selections/round_{number:02d}.json")
        sources = Counter(pick["source"] for pick in selection["picks"])
        different = {pick["example_id"] for pick in selection["picks"]}
        assert [int(row[1]), int(row[2])] == [len(selection["picks"]), len(different)]
        assert [int(cell) for cell in row[3:6]] == [sources[s] for s in ("train", "replay", "pool")]
    picks = json_in(real.run_dir / "selections/round_02.json")["picks"]
    listed = tables.named("Rows of round 2")
    told = {(f"{one['file']} line {one['line_no']}", one["text"], one["reason"]) for one in picks}
    assert {(row[0], row[1], row[4]) for row in listed} == told
    assert sum(int(row[5]) for row in listed) == len(picks)


def test_rows_are_shown_as_the_model_saw_them(real: Real) -> None:
    """What is marked is the answer that the row teaches."""
    marked = Page(real.pages[1]).text_of("mark")
    told = []
    for number in (2, 1):
        shown = json_in(real.run_dir / f"selections/shown_{number:02d}.json")
        picks = json_in(real.run_dir / f"selections/round_{number:02d}.json")["picks"]
        assert 0 < len(shown["rows"]) <= NUM_SHOWN
        assert {row["example_id"] for row in shown["rows"]} <= {p["example_id"] for p in picks}
        assert shown["num_rows"] == len({pick["example_id"] for pick in picks})
        for row in shown["rows"]:
            text = "".join(piece["text"] for piece in row["pieces"])
            (asked,) = re.findall(r"Say (\d+)", text)
            (trained,) = [piece["text"] for piece in row["pieces"] if piece["weight"] == 1]
            assert trained.startswith(asked)
            told.append(trained)
    assert marked == told


def test_the_data_is_counted_with_what_was_left_out(real: Real) -> None:
    tables, manifest = Tables(real.pages[1]), json_in(real.run_dir / "data_manifest.json")
    for name, path, num_rows, *counts, _ in tables.named("Files of rows"):
        file, kept = manifest["files"][name], manifest["examples"][name]
        assert [path, int(num_rows)] == [file["path"], file["num_rows"]]
        told = [kept[key] for key in ("num_examples", "num_tokens", "num_loss_tokens")]
        assert [int(cell.replace(",", "")) for cell in counts] == told
    lines = (real.run_dir / "data_dropped.jsonl").read_text(encoding="utf-8").splitlines()
    counts = Counter(json.loads(line)["kind"] for line in lines)
    total = sum(file["num_rows"] for file in manifest["files"].values())
    (caption,) = [one for one in tables.found if one.startswith("Left out: ")]
    assert caption.startswith(f"Left out: {len(lines)} of {total} rows")
    assert {row[0]: int(row[2]) for row in tables.named("Left out: ")} == counts
    (row,) = tables.named("Left out as duplicate")
    assert row[0] == "pool.jsonl line 2" and "line 1" in row[2]


def test_the_environment_is_what_was_recorded(real: Real) -> None:
    rows = {row[0]: row[1] for row in Tables(real.pages[1]).named("Environment")}
    recorded = json_in(real.run_dir / "config.resolved.json")
    assert rows["device"] == recorded["machine"]["device"]
    assert rows["chat format"] == recorded["resolved"]["renderer_name"]
    assert rows["commit of this program"] == "not recorded"
    assert recorded["config_hash"] in real.pages[1]
    assert json.dumps(recorded["config"]["eval_tasks"][0]) in "".join(
        Page(real.pages[1]).text_of("code")
    )


def test_the_page_made_again_is_the_page_that_the_run_wrote(
    real: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPO)  # its commands are for the folder that it was made in
    assert page_of(viewed(RunStore.open(real.run_dir))) == real.pages[1]


# --- each stage of a run --------------------------------------------------------------------------


def in_round_1(store: RunStore) -> None:
    records.rounds(store, num=1)
    records.trained(store, 1, Shape(), num_steps=2)


def failed(store: RunStore) -> None:
    records.rounds(store, num=1)
    records.trained(store, 1, Shape())
    record_failure(store, EvalError("The grader raised."), "The grader raised.")


STAGES: dict[str, tuple[Callable[[RunStore], None], str, str]] = {
    "begun": (lambda store: None, "Nothing is measured yet.", "No process is at work"),
    "round 0": (lambda s: records.rounds(s, num=1), "Not finished.", "before training the score"),
    "killed in round 1": (in_round_1, "Not finished.", "No process is at work"),
    "eval_failed": (failed, "Not finished.", "An evaluation failed"),
    "after round 1": (lambda s: records.rounds(s, num=2), "Not finished.", "round 1 with 0.4000"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_has_a_page_at_each_stage(stage: str, tmp_path: Path) -> None:
    make, word, said = STAGES[stage]
    store = records.begun(tmp_path / "run")
    make(store)
    page = made(store)
    assert Page(page).text_of("strong") == [word]
    (verdict,) = [text for tag, text in Page(page).texts if tag == "p" and said in text][:1]
    assert verdict
    assert "--resume" in "".join(Page(page).text_of("code"))


def test_a_run_at_work_says_that_it_goes_on(tmp_path: Path) -> None:
    store = records.begun(tmp_path / "run")
    records.rounds(store, num=2)
    assert standing_of(store).kind == "going_on"
    page = page_of(viewed(store))
    assert Page(page).text_of("strong") == ["Going on."]
    assert "--resume" not in "".join(Page(page).text_of("code"))


def test_a_failure_is_on_the_page_that_it_leaves(tmp_path: Path) -> None:
    store = records.begun(tmp_path / "run")
    failed(store)
    assert "The grader raised." in page_in(store.run_dir)


def test_a_finished_run_says_whether_it_is_good_enough(tmp_path: Path) -> None:
    good = made(records.finished(tmp_path / "good"))
    assert Page(good).text_of("strong") == ["Good enough."]
    assert "Round 2 passed: 0.9000 [0.70, 0.97] reaches the 0.75 that was asked for" in good
    assert "the sealed test, asked once, gave 0.8000 [0.58, 0.92] on 20" in good
    assert SECRET not in good
    shape = Shape(shares=(0.5, 0.3, 0.4), is_sealed=False)
    bad = made(records.finished(tmp_path / "bad", shape))
    assert Page(bad).text_of("strong") == ["Not good enough."]
    assert "It scores below what the run began with (0.5000)" in bad
    assert "there is no sealed test" in bad
    assert "Keep the untouched model until a run beats it" in bad
    assert "No round scored above the untouched model, so there is nothing to use yet." in bad
    alike = made(records.finished(tmp_path / "alike", Shape(shares=(0.5, 0.5), is_sealed=False)))
    assert "It scores no higher than what the run began with (0.5000)" in alike
    assert "nothing to use yet. The weights of round 1 are kept, to look at" in alike


def test_a_rollback_stands_there_as_it_was_decided(tmp_path: Path) -> None:
    shape = Shape(shares=(0.2, 0.7, 0.3, 0.72), num_questions=100, is_sealed=False)
    store = records.finished(tmp_path / "run", shape)
    sentences = [row[3] for row in Tables(made(store)).named("Decisions")]
    assert "Back to round 1 (0.7000), which this round is worse than" in sentences[2]


def test_a_resumed_run_says_how_often_and_what_was_done_twice(tmp_path: Path) -> None:
    store = records.begun(tmp_path / "run")
    in_round_1(store)
    store.append("resumed", durable_seq=store.newest_event["seq"] - 2)  # pyright: ignore
    store.close()
    page = made(RunStore.open(tmp_path / "run"))
    assert "The run was resumed 1 time; 2 steps taken before do not count any more" in page


def test_an_evaluation_has_checkpoints_in_the_place_of_rounds(tmp_path: Path) -> None:
    names = ["runs/a@round_00 <b>", "runs/a@round_01", "runs/a@round_02"]
    store = records.begun(tmp_path / "run", evaluated=names)
    for number, share in enumerate((0.5, 0.6, 0.9)):
        records.evaluated(store, number, share, Shape())
    assert "3 of 3 checkpoints are measured" in page_of(viewed(store))
    for number, passed in enumerate((None, False, True)):
        store.record_comparison(number, passed, f"sentence {number}")
    store.append("run_finished")
    page = made(store)
    rows = Tables(page).named("Each checkpoint")
    assert [row[0] for row in rows] == names
    assert [row[2][:6] for row in rows] == ["0.5000", "0.6000", "0.9000"]
    assert [row[4][:8] for row in rows] == ["", "+0.1000 ", "+0.4000 "]
    said = "1 of 2 checkpoints pass; the threshold is 0.75, and they are compared with runs/a"
    assert said in page
    assert not {"curves", "topics", "selections"} & {one.get("id") for _, one in Page(page).tags}


@pytest.mark.parametrize(("passed", "word"), [(True, "Good enough."), (False, "Not good enough.")])
def test_one_checkpoint_is_judged_in_its_sentence(passed: bool, word: str, tmp_path: Path) -> None:
    store = records.begun(tmp_path / "run", evaluated=["runs/a"])
    records.evaluated(store, 0, 0.5, Shape())
    store.record_comparison(0, passed, "runs/a passes or not.")
    store.append("run_finished")
    page = Page(made(store))
    assert page.text_of("strong") == [word]
    assert any("runs/a passes or not." in text for text in page.text_of("p"))


# --- text from anywhere, and the sealed test ------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_run_acts_on_its_page(text: str, tmp_path: Path) -> None:
    written = text.encode(errors="ignore").decode()  # a file of a run holds no half characters
    hostile = made(records.finished(tmp_path / "run", Shape(text=written)))
    plain = made(records.finished(tmp_path / "plain" / "run", Shape()))
    page = Page(hostile)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in Page(plain).tags]
    for tag, given in page.tags:
        assert not [name for name in given if name.startswith("on") or name == "style"], tag
        if "href" in given:
            assert tag == "a" and re.match(r"#|\./|[a-z_.]+\.(md|jsonl?)$", given["href"]), given
    assert is_shown(re.sub(r"<script.*?</script>", "", hostile, flags=re.DOTALL))


def test_what_is_near_the_sealed_test_is_withheld(tmp_path: Path) -> None:
    page = made(records.finished(tmp_path / "run"))
    tables = Tables(page)
    (row,) = tables.named("Left out as contaminated")
    assert row[1] == "not shown" and "sealed test" in row[2]
    assert [row[1] for row in tables.named("Similar rows")] == ["b", "not shown"]
    assert TASK in page and SEALED in page and SECRET not in page
    assert "evals/test.json" in page


def test_logs_of_inspect_are_linked_from_the_page(tmp_path: Path) -> None:
    log = "inspect_logs/a: b#1.eval"
    store = records.finished(tmp_path / "run", Shape(log=log, is_sealed=False))
    assert "inspect_logs" not in made(store)  # nothing is there to be opened
    (store.run_dir / "inspect_logs").mkdir()
    (store.run_dir / log).touch()
    page = Page(made(RunStore.open(store.run_dir)))
    links = [one["href"] for one in page.named("a") if one["href"].endswith(".eval")]
    assert links == ["./inspect_logs/a%3A%20b%231.eval"] * 3
    assert any("inspect_ai view --log-dir" in text for text in page.text_of("code"))


def test_costs_are_those_of_the_price_table(tmp_path: Path) -> None:
    store = records.finished(tmp_path / "run")
    rows = Tables(made(store)).named("Used")
    for _, trained, read, sampled, _, cost in rows:
        usd = (int(trained) * 3.0 + int(read) * 1.0 + int(sampled) * 2.0) / 1e6
        assert float(cost) == pytest.approx(usd, abs=5e-5)
    assert sum(int(row[1]) for row in rows[:-1]) == int(rows[-1][1]) == store.usage().train_tokens


# --- what a page may not do -----------------------------------------------------------------------


def test_a_page_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    store = records.finished(tmp_path / "run")
    (store.run_dir / PAGE).mkdir()
    (store.run_dir / PAGE / "in the way").touch()
    said = keep_page(store)
    assert said is not None and said.startswith("warning: ") and "report.html" in said
    assert not list(store.run_dir.glob("*.tmp"))


def test_a_page_that_cannot_be_made_is_a_warning(tmp_path: Path) -> None:
    store = records.finished(tmp_path / "run")
    (store.run_dir / "data_dropped.jsonl").write_text('{"kind": "duplicate", "file": 1}\n')
    said = keep_page(store)
    assert said is not None and "data_dropped.jsonl line 1: not a row that a run lists" in said


def test_settings_of_another_version_are_one_paragraph(tmp_path: Path) -> None:
    store = records.finished(tmp_path / "run")
    recorded = json_in(store.run_dir / "config.resolved.json")
    recorded["config"]["lora_rnk"] = 3
    store.write_json("config.resolved.json", recorded)
    with pytest.raises(ConfigError, match="lora_rnk is not a setting; did you mean lora_rank"):
        viewed(store)


def test_a_file_that_is_of_another_round_is_refused(tmp_path: Path) -> None:
    store = records.finished(tmp_path / "run")
    store.close()
    file = store.run_dir / "evals/round_02.json"
    file.write_text(json.dumps({**json_in(file), "round": 1}))
    with pytest.raises(RunStoreError, match=r"round_02\.json: it holds round 1, and the ledger"):
        page_of(viewed(RunStore.open(store.run_dir)))


# --- long runs ------------------------------------------------------------------------------------


def test_a_curve_is_thinned_without_losing_a_spike() -> None:
    values = [1.0 + (step == 7777) * 40 - (step == 1234) * 0.5 for step in range(10_000)]
    points = [Point(float(x), y, None, None, "") for x, y in enumerate(values)]
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS + 2
    assert {point.x for point in kept} >= {7777.0, 1234.0, 9999.0}
    assert kept == sorted(kept, key=lambda point: point.x)
    assert thinned(points[:50]) == points[:50]


def test_a_part_of_many_is_spread_over_them() -> None:
    assert spread(range(5), 10) == [0, 1, 2, 3, 4]
    assert spread(range(101), 11) == list(range(0, 101, 10))
    assert spread(range(101), 11, [55]) == sorted([*range(0, 101, 10), 55])


def test_a_long_run_says_what_it_leaves_out(tmp_path: Path) -> None:
    shares = tuple(0.2 + n / 200 for n in range(42))
    shape = Shape(shares=shares, steps=1, num_questions=4, threshold=1.0, is_sealed=False)
    page = made(records.finished(tmp_path / "run", shape))
    assert "of 42 rounds are drawn; the table has all of them." in page
    tables = Tables(page)
    assert len(tables.named("Scores")) == len(tables.named("Decisions")) == 42
    assert re.search("1[01] of 42 rounds are shown; ledger.jsonl has all.", page)
    assert "Rows are listed of the last 6 of 41 rounds" in page
    assert len(page) < 300_000


# --- rows that are kept ---------------------------------------------------------------------------


def pick(name: str, weight: float | None) -> Pick:
    return Pick(name, "pool" if weight else "replay", None, "why", weight)


def test_the_rows_kept_are_the_first_ones_with_mined_ones_among_them() -> None:
    replayed = [pick(f"r{n}", None) for n in range(20)]
    mined = [pick(f"m{n}", 0.5) for n in range(20)]
    shown = [one.example_id for one in shown_picks([*replayed, *mined, *mined])]
    assert shown == [*(f"r{n}" for n in range(6)), *(f"m{n}" for n in range(6))]
    assert len(shown_picks([*replayed[:2], *mined])) == NUM_SHOWN
    assert [one.example_id for one in shown_picks([*mined[:1] * 9, *replayed[:1]])] == ["m0", "r0"]


def test_a_long_row_is_cut_and_says_by_how_much() -> None:
    pieces = [Piece("a" * 5000, 0.0), Piece("b", 1.0)]
    cut = list(shortened(pieces))
    assert [len(one.text) for one in cut] == [MAX_PIECE_CHARS // 2, MAX_PIECE_CHARS // 2, 1]
    assert [one.num_left_out for one in cut] == [0, 5000 - MAX_PIECE_CHARS, 0]
    many = list(shortened([Piece("c" * 500, 1.0)] * 100))
    assert sum(len(one.text) for one in many) == MAX_ROW_CHARS
    assert many[-1] == replace(many[-1], text="", num_left_out=50_000 - MAX_ROW_CHARS)


def test_the_first_rows_of_each_kind_are_found(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"file": "f", "line_no": n, "kind": "ab"[n > 50], "reason": "r"} for n in range(60)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    found = first_rows(path, ["a", "b", "c"], 2)
    assert {kind: [row.line_no for row in of] for kind, of in found.items()} == {
        "a": [0, 1],
        "b": [51, 52],
        "c": [],
    }
    assert first_rows(tmp_path / "none.jsonl", ["a"], 2) == {"a": []}


def test_the_command_that_serves_the_weights_names_places_that_hold_where_it_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = Shape(is_sealed=False)
    monkeypatch.chdir(tmp_path)
    store = records.finished(Path("run"), shape)
    checkpoint = store.checkpoint(2)
    assert checkpoint is not None and checkpoint.sampler_path is not None
    weights_dir(Path("run"), checkpoint.sampler_path).mkdir(parents=True)
    page = Page(made(store))
    (command,) = [line for line in page.text_of("code") if "local_tinker" in line]
    assert f"--checkpoint-dir {tmp_path / 'run' / 'checkpoints'}" in command
    assert any(f"Start it in {REPO}." in text for _, text in page.texts)
