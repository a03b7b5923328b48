"""The page's questions and answers as data: what a part holds, when it is made, and what it costs.

What a reader does with them is tried in a real browser, in test_answers_browser.py.
"""

from __future__ import annotations

import base64
import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from answer_runs import (
    FAILED,
    GUARD,
    LOSS,
    ODD_TEXTS,
    SCORED,
    answers_run,
    begun,
    decided,
    held_out,
    record_round,
    sample,
    scored_samples,
)
from ledger.store import RunStore
from loop.run_page.answer_parts import (
    FOLDER,
    PART_CHARS,
    TEXT_LIMITS,
    encoded,
    part_json,
    relative_href,
)
from loop.run_page.answers import (
    INDEX,
    answers_at,
    answers_of,
    parts_of,
    recommended_of,
    rounds_of,
)
from loop.run_page.page import page_of
from loop.run_page.viewed import viewed
from page_reading import Page
from pages.html import DataPart
from scores.results import Measured, TaskResult, eval_result, task_result
from study_records import HOSTILE


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its parts, which no test changes."""
    run_dir = tmp_path_factory.mktemp("answers") / "run"
    store = answers_run(run_dir)
    answers_of(viewed(store))
    store.close()
    return run_dir


@pytest.fixture
def run_dir(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def json_of(part: str) -> dict[str, Any]:
    return json.loads(gzip.decompress(base64.b64decode(part)))


def data_of(store: RunStore) -> dict[str, str]:
    """What the page carries, by id."""
    return {one.part_id: one.base64_text for one in answers_of(viewed(store)).behaviour.parts}


def index_of(store: RunStore) -> dict[str, Any]:
    return json.loads(base64.b64decode(data_of(store)[INDEX]))


def stamps(run_dir: Path) -> dict[str, int]:
    return {one.name: one.stat().st_mtime_ns for one in sorted((run_dir / FOLDER).glob("*"))}


# --- what a part says -----------------------------------------------------------------------------


def test_a_part_says_what_the_run_has_recorded(made: Path) -> None:
    store = RunStore.open(made)
    data = data_of(store)
    assert set(data) == {INDEX, *(f"answers-{number}" for number in range(4))}
    for number in range(4):
        measured = store.measured(number)
        part = json_of(data[f"answers-{number}"])
        assert [one["name"] for one in part["tasks"]] == [one.name for one in measured.tasks]
        for task, shown in zip(measured.tasks, part["tasks"], strict=True):
            assert shown["num_samples"] == len(task.samples) == len(shown["samples"])
            for one, said in zip(task.samples, shown["samples"], strict=True):
                assert f"{task.name}/{said['id']}" == one.id
                same = ("question", "answer", "score", "topic")
                assert all(said[name] == getattr(one, name) for name in same)
                assert said["expected"] == list(one.expected)
                assert said.get("repeat", 1) == one.repeat
                assert said.get("truncated", False) == one.truncated
                assert said.get("malformed", False) == one.malformed
                assert said.get("error") == one.error
                assert not said.get("cut")
        for loss, shown in zip(measured.held_out, part["held_out"], strict=True):
            assert [row["loss"] for row in shown["rows"]] == [r.nll_sum / 10 for r in loss.rows]


def test_the_index_says_what_was_not_run_and_why(made: Path) -> None:
    index = index_of(RunStore.open(made))
    assert index["recommended"] == 2
    assert [one["name"] for one in index["tasks"]] == [SCORED, GUARD, LOSS]
    assert {one["name"]: one["every"] for one in index["tasks"]}[GUARD] == 3
    tasks = [one["tasks"] for one in index["rounds"]]
    assert tasks == [sorted([SCORED, GUARD, LOSS]), *[sorted([SCORED, LOSS])] * 2, [SCORED]]
    assert [bool(one["note"]) for one in index["rounds"]] == [False, False, False, True]
    note = index["rounds"][3]["note"]
    assert note == f"It was not evaluated: {FAILED} Measured until then: {SCORED}."


def test_a_run_that_has_asked_nothing_yet_says_so(tmp_path: Path) -> None:
    index = index_of(begun(tmp_path / "run"))
    (only,) = index["rounds"]
    assert only["note"] == "It has not been evaluated yet." and only["part"] is None
    assert index["recommended"] is None
    store = begun(tmp_path / "failed")
    store.append("eval_failed", detail=FAILED)
    assert index_of(store)["rounds"][0]["note"] == f"It was not evaluated: {FAILED}"
    store.append("resumed", durable_seq=0)
    assert index_of(RunStore.open(tmp_path / "failed"))["rounds"][0]["note"].endswith("yet.")


def test_checkpoints_of_an_evaluation_have_their_labels(tmp_path: Path) -> None:
    labels = ["runs/a@round_00", "runs/<b>@best", "tinker://x/y"]
    store = begun(tmp_path / "run", labels)
    for number in range(2):
        measured = Measured((task_result(SCORED, scored_samples(number)),))
        record_round(store, number, measured)
    index = index_of(store)
    assert [one["name"] for one in index["rounds"]] == labels
    assert [one["file"] for one in index["rounds"]] == [
        "evals/checkpoint_00.json", "evals/checkpoint_01.json", None,
    ]  # fmt: skip
    assert index["is_evaluation"] is True
    assert sorted(stamps(tmp_path / "run")) == ["checkpoint_00.txt", "checkpoint_01.txt"]


def test_the_sealed_test_is_in_no_part(run_dir: Path) -> None:
    store = RunStore.open(run_dir, to_resume=True)
    secret = replace(scored_samples(1)[60], question="A sealed question?", answer="a sealed answer")
    measured = Measured((task_result("qa:sealed.jsonl", [secret]),))
    store.record_test_opened(2, None, "abc")
    store.record_test_measured(2, measured, 2)
    store.record_test(eval_result(2, None, measured, {}), 2)
    data = data_of(store)
    index = base64.b64decode(data.pop(INDEX)).decode()
    assert "sealed" not in index
    assert "sealed" not in json.dumps([json_of(part) for part in data.values()])
    store.close()


# --- made once ------------------------------------------------------------------------------------


def test_only_what_is_new_or_changed_is_made_again(run_dir: Path) -> None:
    store = RunStore.open(run_dir, to_resume=True)
    before, data = stamps(run_dir), data_of(store)
    assert stamps(run_dir) == before
    # The round that was broken off is measured on: its file is another one, and so is its part.
    store.record_measured(3, Measured((), (held_out(3),)), 3)
    assert json_of(data_of(store)["answers-3"])["held_out"][0]["name"] == LOSS
    changed = {name for name, at in stamps(run_dir).items() if at != before[name]}
    assert changed == {"round_03.txt"}
    store.close()
    reread = data_of(RunStore.open(run_dir))
    assert {name for name in data if reread[name] != data[name]} == {INDEX, "answers-3"}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2].partition("\n")[0],
        lambda text: text.replace("\n", "\n</script>"),
        lambda text: text + "more\n",
        lambda text: "0" + text,
        lambda text: text.replace("\n", "\n0", 1),
        lambda text: text.rpartition("\n")[0].rpartition("\n")[0] + f"\n{encoded(Measured())}\n",
        lambda text: text.rpartition("\n")[0] + "A" * 3 * PART_CHARS,
        lambda text: "\u2028\x00",
    ],
)
def test_a_kept_part_that_is_no_part_is_made_again(run_dir: Path, spoil: Any) -> None:
    place = run_dir / FOLDER / "round_01.txt"
    whole = place.read_text()
    place.write_text(spoil(whole))
    store = RunStore.open(run_dir, to_resume=True)
    part = data_of(store)["answers-1"]
    assert part == whole.splitlines()[-1]
    assert place.read_text() == whole
    store.close()


def test_reading_another_ones_run_writes_nothing(run_dir: Path) -> None:
    data = data_of(RunStore.open(run_dir))
    shutil.rmtree(run_dir / FOLDER)
    before = sorted(run_dir.rglob("*"))
    assert data_of(RunStore.open(run_dir)) == data
    assert sorted(run_dir.rglob("*")) == before


# --- what it costs --------------------------------------------------------------------------------


def long_task(num_samples: int, num_chars: int) -> TaskResult:
    texts = [base64.b85encode(str(i).encode() * num_chars).decode() for i in range(num_samples)]
    return task_result(
        SCORED, [sample(SCORED, i, text[:num_chars], 1.0) for i, text in enumerate(texts)]
    )


def test_over_the_budget_texts_are_cut_and_say_so() -> None:
    task = long_task(50, 3000)
    part = encoded(Measured((task,)), 6_000)
    assert len(part) <= 6_000
    (shown,) = json_of(part)["tasks"]
    assert len(shown["samples"]) == shown["num_samples"] == 50
    limits = {len(one["answer"]) for one in shown["samples"]}
    assert len(limits) == 1 and limits < set(TEXT_LIMITS)
    assert all(one["cut"] for one in shown["samples"])
    # Whole answers are told apart by what stands beside them, however much was cut.
    whole = part_json(Measured((task,)))["tasks"][0]["samples"]
    assert [one["digest"] for one in whole] == [one["digest"] for one in shown["samples"]]


def test_where_cutting_is_not_enough_samples_are_left_out_and_counted() -> None:
    part = encoded(Measured((long_task(2000, 200),), (held_out(1),)), 8_000)
    assert len(part) <= 8_000
    (shown,) = json_of(part)["tasks"]
    assert 0 < len(shown["samples"]) < shown["num_samples"] == 2000
    tiny = encoded(Measured((long_task(2000, 200),)), 100)
    assert json_of(tiny) == {"tasks": [], "held_out": []}


def test_one_long_answer_costs_the_others_nothing() -> None:
    samples = [*scored_samples(2), sample(SCORED, 999, "".join(map(str, range(400_000))), 1.0)]
    (shown,) = json_of(encoded(Measured((task_result(SCORED, samples),)), 100_000))["tasks"]
    assert [one["id"] for one in shown["samples"] if one.get("cut")] == ["q999"]


def test_a_page_that_is_full_leaves_out_the_rounds_that_matter_least(made: Path) -> None:
    store = RunStore.open(made)
    rounds = rounds_of(store)
    assert recommended_of(store, rounds) == 2
    parts = parts_of(store, rounds, 2)
    of = [len(parts[f"answers-{number}"]) for number in range(4)]
    assert set(parts_of(store, rounds, 2, of[2])) == {"answers-2"}
    assert set(parts_of(store, rounds, 2, of[2] + of[0])) == {"answers-0", "answers-2"}
    assert set(parts_of(store, rounds, 2, sum(of) - 1)) == {"answers-0", "answers-2", "answers-3"}
    assert parts_of(store, rounds, 2, 10) == {}


# --- text from anywhere ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [*HOSTILE, *ODD_TEXTS, "\ud83d", "\\\udc00\ud83d\ude00", "\x00" * 9]
)
def test_any_text_comes_through_whole(text: str) -> None:
    one = sample(SCORED, 0, text, 0.0, question=text, expected=(text,), error=text, topic=text)
    part = encoded(Measured((task_result(SCORED, [one]),)))
    DataPart("x", part)  # base64, and nothing that could end the element it stands in
    (said,) = json_of(part)["tasks"][0]["samples"]
    # JSON joins two halves of a pair that stand side by side; nothing else changes.
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    assert [said["question"], *said["expected"], said["answer"], said["topic"]] == [whole] * 4
    assert said["error"] == (whole or "no reason is recorded")


@pytest.mark.parametrize(
    ("name", "href"),
    [
        ("inspect_logs/a b&c.eval", "inspect_logs/a%20b%26c.eval"),
        ("javascript:alert(1)", "javascript%3Aalert%281%29"),
        ("//elsewhere.test/x", None),
        ("/etc/passwd", None),
        ("logs/../../x", None),
        ("", None),
        ("a#b?c", "a%23b%3Fc"),
    ],
)
def test_links_stay_inside_the_run(name: str, href: str | None) -> None:
    assert relative_href(name) == href


def test_links_to_answers() -> None:
    assert answers_at(2) == "#answers/2"
    assert answers_at(0, "qa:a b&c#d?.jsonl") == "#answers/0?task=qa%3Aa%20b%26c%23d%3F.jsonl"


def test_the_page_runs_its_own_script_alone(made: Path) -> None:
    behaviour = answers_of(viewed(RunStore.open(made))).behaviour
    (script,) = behaviour.scripts
    assert script.isascii() and behaviour.style.isascii()
    assert "<" + "/script" not in script and "<!--" not in script and "innerHTML" not in script
    text = page_of(viewed(RunStore.open(made)))
    page = Page(text)
    assert [given for given in page.named("script") if "type" not in given] == [{}]
    kept = {given["id"] for given in page.named("script") if given.get("type") == "text/plain"}
    assert kept == {one.part_id for one in behaviour.parts}
    assert not [inside for inside in page.text_of("script") if "alert(1)" in inside]


def test_a_round_that_was_trained_again_has_its_own_part(run_dir: Path) -> None:
    store = RunStore.open(run_dir, to_resume=True)
    store.mark_resumed(store.resolved_config()["config"], back_to=1)
    assert [one["number"] for one in index_of(store)["rounds"]] == [0, 1]
    again = Measured((task_result(SCORED, scored_samples(3)),))
    record_round(store, 2, again, decided(2))
    part = json_of(data_of(store)["answers-2"])
    assert part["tasks"] == part_json(again)["tasks"] and part["held_out"] == []
    store.close()
