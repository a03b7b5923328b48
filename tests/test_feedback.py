"""What comes back from production: nothing that an evaluation asks, and each row in one place."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from data_loader import load_examples
from errors import ConfigError, DataError, LoopError, RegistryError, StorageError
from ledger.registry_file import CHAMPION, Promoted, Registry
from ledger.registry_writing import who, writing
from ledger.store import RunStore
from promotion.feedback import POOL, PREFERENCES, FeedbackFile, Taken, take
from promotion.feedback_rows import score_of
from rows.sources import Source
from test_loop import Workspace
from test_registry import in_child

SEALED = "Which of the forty gates of Marrowgate opens first at dawn"
SETTINGS = {
    "max_rounds": 1,
    "steps_per_round": 2,
    "evaluation": {
        "max_tokens": 4,
        "test_tasks": ["qa:sealed.jsonl"],
        "test_on": "winner",
    },
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, llama_dir: Path) -> Workspace:
    """A run whose sealed test was not opened, promoted twice as `support`, and once as `bills`."""
    workspace = Workspace(tmp_path_factory.mktemp("feedback"), llama_dir)
    workspace.write_rows("sealed.jsonl", [{"question": SEALED, "answer": "the salt gate"}])
    assert workspace.run("runs/first", **SETTINGS) == 0
    run = RunStore.open(workspace.folder / "runs/first")
    with writing(workspace.folder / "registry.jsonl") as writer:
        writer.promote(entry_of(run, "support", 1))
        writer.promote(entry_of(run, "support", 2), [CHAMPION])
        writer.promote(entry_of(run, "bills", 1))
    return workspace


def entry_of(run: RunStore, name: str, version: int) -> Promoted:
    saved = run.checkpoint(1)
    assert saved is not None and saved.sampler_path is not None
    return Promoted(
        name,
        version,
        "2026-11-29T00:00:00Z",
        run.run_id,
        "runs/first",
        saved.round,
        saved.step,
        f"{saved.sampler_path}.{name}.{version}",
        saved.state_path,
        weights_sha256=None,
        base_model=saved.base_model,
        base_sha256=None,
        lora={},
        renderer=saved.renderer,
        data_sha256="a" * 64,
        results={},
        sealed_test=None,
        promoted_by="a test",
        command=[],
        parent=None,
        against=None,
    )


@pytest.fixture
def house(made: Workspace, tmp_path: Path) -> Path:
    """The same in a folder of the test's own."""
    return shutil.copytree(made.folder, tmp_path / "house")


def give(house: Path, *rows: Any, name: str = "support", **more: Any) -> Taken:
    """Rows, or texts that are to be lines as they are, taken for a name."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (house / "f.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    who_gives = who("ann", ["registry.py"])
    return take(FeedbackFile(name, house / "f.jsonl", house / "registry.jsonl", who_gives, **more))


def rows_in(taken: Taken, name: str) -> list[dict[str, Any]]:
    file = taken.folder / name
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def said(prompt: Any, response: Any = None, score: Any = None, **more: Any) -> dict:
    row = {"prompt": prompt, "response": response, "score": score, **more}
    return {key: value for key, value in row.items() if value is not None}


# --- what ratings come to -------------------------------------------------------------------------


def test_rows_become_a_pool_prompts_to_answer_and_pairs(house: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Where is my bill?"},
    ]
    taken = give(
        house,
        said("How do I log in?", "By the door.", 0, topic="account"),
        said("How do I log in?", "Press the blue button.", True, topic="account", id="a7"),
        said(turns, "In a drawer.", correction="In your account, below orders.", topic="bills"),
        said("Who are you?", "I will not say.", "thumbs_down", time="2026-11-29"),
        said("Who are you?", "Nobody.", "\U0001f44e\U0001f3fd"),
        said("Is it late?", "Yes.", 1),
        said("Is it late?", " Yes. ", 0),
        said("Are you there?", "Yes."),
        said("How do I log in?", "Press the blue button.", 1),
    )
    pool = rows_in(taken, POOL)
    source = {"file": "f.jsonl", "entry": "registry:support@2"}
    assert pool == [
        {"prompt": "How do I log in?", "completion": "Press the blue button.", "topic": "account",
         "feedback": {**source, "lines": [2, 9], "id": "a7"}},
        {"prompt": turns, "completion": "In your account, below orders.", "topic": "bills",
         "feedback": {**source, "lines": [3]}},
    ]  # fmt: skip
    (waiting,) = rows_in(taken, "support_to_answer.jsonl")
    assert waiting["prompt"] == "Who are you?" and waiting["correction"] == ""
    pairs = [
        (pair["prompt"][-1]["content"], *(pair[k][0]["content"] for k in ("chosen", "rejected")))
        for pair in rows_in(taken, PREFERENCES)
    ]
    assert pairs == [
        ("How do I log in?", "Press the blue button.", "By the door."),
        ("Where is my bill?", "In your account, below orders.", "In a drawer."),
    ]
    left = {(row["line_no"], row["kind"]) for row in rows_in(taken, "left_out.jsonl")}
    assert left == {(6, "disputed"), (7, "disputed"), (8, "unrated")}
    assert taken.counts["ties"] == taken.counts["repeated"] == 1
    assert taken.topics == {"account": 1, "bills": 1}
    registry = Registry.read(house / "registry.jsonl")
    event = registry.events[-1]
    assert event["type"] == "feedback" and event["by"] == "ann" and event["counts"]["pool"] == 2
    assert house / event["folder"] == taken.folder and event["sha256"] == taken.sha256
    assert set(event["files"]) == {one.name for one in taken.folder.iterdir()}
    # and it is what a run trains on: the last answer alone, after the turns that were given
    examples = load_examples([Source("pool", taken.folder / POOL)]).examples
    assert [one.topic for one in examples] == ["account", "bills"]
    assert [one.weight for one in examples[1].messages] == [None, None, 0.0, None, None]


@pytest.mark.parametrize(
    ("value", "score"),
    [(0, 0.0), (1, 1.0), (True, 1.0), (False, 0.0), (0.5, 0.5), ("0.25", 0.25), (" 1 ", 1.0),
     ("Thumbs Up", 1.0), ("thumbs-down", 0.0), ("THUMBS_UP", 1.0), ("\U0001f44d\ufe0f", 1.0),
     (":+1:", 1.0), (":-1:", 0.0), (":thumbsdown:", 0.0), ("like", 1.0), ("no", 0.0), ("+1", 1.0),
     (1e-300, 0.0)],
)  # fmt: skip
def test_scores_in_the_spellings_of_others(value: Any, score: float) -> None:
    assert score_of(value) == pytest.approx(score)


@pytest.mark.parametrize(
    "value",
    [2, -1, "-1", 5, "4 stars", 1.0000001, float("inf"), "nan", "1e9", 10**400, [1], {"a": 1},
     "maybe", "100%", b"1", "1/1"],
)  # fmt: skip
def test_other_scores_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match='"score" is '):
        score_of(value)


def test_an_answer_is_right_from_a_score_on(house: Path) -> None:
    rows = [said("Why so?", "A", 0.7), said("Why so?", "B", 0.9), said("Why so?", "C", 0.2)]
    taken = give(house, *rows, right_from=0.8)
    assert [row["completion"] for row in rows_in(taken, POOL)] == ["B"]
    rejected = [pair["rejected"][0]["content"] for pair in rows_in(taken, PREFERENCES)]
    assert rejected == ["A", "C"]
    for bound in (0, -1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="--right-from"):
            give(house, *rows, right_from=bound)


def test_what_ratings_say_holds_for_any_of_them(house: Path, made: Workspace) -> None:
    """Random ratings of few prompts and answers, read by the reader and sorted: no answer that was
    called wrong is right, each pair is of a better and a worse one, and no row is lost."""
    draw = random.Random(5)
    for number in range(25):
        rows = []
        for _ in range(draw.randint(1, 30)):
            row: dict[str, Any] = {"prompt": f"Prompt {draw.randint(1, 3)} of day {number}?"}
            if draw.random() < 0.9:
                row["response"] = draw.choice(["a", "b", "c ", "c"])
                if draw.random() < 0.8:
                    row["score"] = draw.choice([0, 0.5, 1, "up", "down"])
            if draw.random() < 0.3:
                row["correction"] = draw.choice(["a", "d"])
            rows.append(row)
        wrong = {
            (row["prompt"], row["response"].strip())
            for row in rows
            if row.get("response") and row.get("score") in (0, 0.5, "down")
        }
        taken = give(house, *rows)
        pool = {(row["prompt"], row["completion"]) for row in rows_in(taken, POOL)}
        assert not pool & wrong
        assert len(pool) == taken.counts["pool"]
        waiting = {row["prompt"] for row in rows_in(taken, "support_to_answer.jsonl")}
        assert not waiting & {prompt for prompt, _ in pool}
        for pair in rows_in(taken, PREFERENCES):
            better, worse = (pair["feedback"][key]["score"] for key in ("chosen", "rejected"))
            assert pair["chosen"] != pair["rejected"]
            assert worse is None or better > worse
        accounted = {row["line_no"] for row in rows_in(taken, "left_out.jsonl")}
        for line_no, row in enumerate(rows, start=1):
            answers = {(row["prompt"], str(row.get(k)).strip()) for k in ("response", "correction")}
            in_use = answers & pool or row["prompt"] in waiting or (answers & wrong and pool)
            assert in_use or line_no in accounted, (line_no, row)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "said_of_it"),
    [
        (said("q?", "a", 5), "line 2: \"score\" is 5, none of 0 to 1"),
        ({"promt": "q?", "response": "a", "score": 1}, 'did you mean "prompt"'),
        (said("q?", "a", rating=1), '"rating" is no column here; did you mean "score"'),
        (said("q?", "a", 0, corrected="b"), '"corrected" is no column here; did you mean "corr'),
        (said("q?", score=1), '"score" is of a "response", and there is none'),
        (said([{"role": "assistant", "content": "x"}], "a", 1), "there is no user message"),
        (said([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "a", 1),
         "does not end with what a user"),
        (said("q?", "a", 1, system="Be kind."), '"system" changes what is asked'),
        (said("q?", "a", 1, image="x.png"), "only text is trained"),
        (said("q?", ["a"], 1), '"response" is not a string'),
        (said("q?", "a \ud800", 1), "lone surrogate"),
        (said("q?", "a", 1, model="registry:support@9"), "'registry:support@9' is no entry of"),
        (said("q?", "a", 1, checkpoint="support@champion"), "is an alias, which moves"),
        (said("q?", "a", 1, checkpoint="registry:champion"), "is an alias, which moves"),
        (said("q?", "a", 1, model="bills@1"), "is of bills, and not of support"),
        (said("q?", "a", 1, model="support@1", checkpoint="support@2"), "name two entries"),
        (said("q?", "a", 1, id={"a": 1}), '"id" is neither a text nor a number'),
        ('{"prompt": "q?", "prompt": "r?"}', "the key 'prompt' stands twice"),
        ('{"prompt": "q?", ', "not valid JSON"),
        ({"response": "a", "score": 1}, 'there is no "prompt"'),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_meant_refuses_the_file(
    house: Path, row: Any, said_of_it: str
) -> None:
    before = (house / "registry.jsonl").read_bytes()
    with pytest.raises(DataError) as refused:
        give(house, said("Is it day?", "Yes.", 1), row)
    assert said_of_it in str(refused.value) and "line 2" in str(refused.value)
    assert not (house / "feedback").exists()
    assert (house / "registry.jsonl").read_bytes() == before


def test_files_and_names_that_are_none(house: Path) -> None:
    with pytest.raises(DataError, match="holds no row"):
        give(house)
    for name in ("nobody", "support@7", "registry:nobody@1"):
        with pytest.raises(RegistryError):
            give(house, said("q?", "a", 1), name=name)
    (house / "f.jsonl").unlink()
    given = FeedbackFile("support", house / "f.jsonl", house / "registry.jsonl", who(None, []))
    with pytest.raises(DataError, match="cannot be read"):
        take(given)


def test_the_same_file_is_not_taken_twice(house: Path) -> None:
    row = said("How far is it?", "Not far.", 1)
    taken = give(house, row)
    before = (house / "registry.jsonl").read_bytes()
    with pytest.raises(RegistryError, match="were taken for support at"):
        give(house, row)
    assert (house / "registry.jsonl").read_bytes() == before
    shutil.rmtree(taken.folder)
    assert give(house, row).folder == taken.folder
    # a folder that a kill left without its event is let be
    left = shutil.copytree(taken.folder, house / "left")
    registry = house / "registry.jsonl"
    registry.write_bytes(b"".join(registry.read_bytes().splitlines(keepends=True)[:3]))
    again = give(house, row)
    assert again.folder.name == f"{taken.folder.name}-2" and left.is_dir()
    assert rows_in(again, POOL) == rows_in(taken, POOL)


def test_anybodys_text_stays_in_its_place(house: Path) -> None:
    row = said("</script> What?", "\x00 null\u2028", 1, topic="a\nb\x1b[31m")
    taken = give(house, {**row, "x\n\x1b[2J": 1})
    assert all(line.isprintable() for line in taken.lines())
    (pool,) = rows_in(taken, POOL)
    assert (pool["completion"], pool["topic"]) == ("\x00 null", row["topic"])
    assert len(load_examples([Source("pool", taken.folder / POOL)]).examples) == 1


def test_a_folder_of_ones_own(house: Path, tmp_path: Path) -> None:
    row = said("How far is it?", "Not far.", 1)
    taken = give(house, row, out=tmp_path / "mine")
    assert (tmp_path / "mine" / POOL).is_file() and taken.folder == tmp_path / "mine"
    with pytest.raises(ConfigError, match="is not empty, and nothing is written over"):
        give(house, said("How far is he?", "Not far.", 1), out=tmp_path / "mine")


def test_rows_go_to_the_version_that_they_name(house: Path) -> None:
    run = RunStore.open(house / "runs/first")
    path = entry_of(run, "support", 1).sampler_path
    named = ("registry:support@1", "support", path, "support@2")
    rows = [said(f"Prompt {i}?", "Yes.", 1, checkpoint=name) for i, name in enumerate(named)]
    taken = give(house, *rows)
    assert taken.versions == {"registry:support@1": 2, "registry:support@2": 2}
    entries = [row["feedback"]["entry"][-1] for row in rows_in(taken, POOL)]
    assert entries == ["1", "2", "1", "2"]
    assert taken.lines()[0].endswith("4 rows, of registry:support@2, 2 of registry:support@1")


# --- what an evaluation asks ----------------------------------------------------------------------


def asked_as(question: str) -> list[Any]:
    return [
        question,
        f"Hello, please: {question.rstrip('?').lower()}?",
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"},
         {"role": "user", "content": question}],
    ]  # fmt: skip


def test_nothing_that_an_evaluation_asks_gets_in(house: Path) -> None:
    """Of the sealed test not a word is written, here or on the screen."""
    dev = [json.loads(line) for line in (house / "questions.jsonl").read_text().splitlines()]
    prompts = [one for row in dev for one in asked_as(row["question"])] + asked_as(SEALED)
    rows = [
        said(prompt, "x", score, **({"correction": "y"} if score is None else {}))
        for prompt in prompts
        for score in (1, 0, None)
    ]
    taken = give(house, *rows, said("How is the weather?", "Fine.", 1))
    assert [row["completion"] for row in rows_in(taken, POOL)] == ["Fine."]
    assert taken.counts["contaminated"] == len(rows)
    assert not rows_in(taken, PREFERENCES) and not rows_in(taken, "support_to_answer.jsonl")
    written = "".join(one.read_text() for one in taken.folder.iterdir())
    told = written + "\n".join(taken.lines()) + (house / "registry.jsonl").read_text()
    assert "marrowgate" not in told.lower()
    assert "asks a question of the sealed test (qa:sealed.jsonl)" in written
    assert dev[0]["question"] in written


@pytest.mark.parametrize(
    "row",
    [
        said("How do you do?", SEALED, 1),
        said("How do you do?", "x", correction=SEALED),
        said("How do you do?", "x", 1, topic=SEALED),
        said("How do you do?", "x", 0, id=SEALED),
        said("How do you do?", "x", 0, time=SEALED),
        said([{"role": "system", "content": SEALED}, {"role": "user", "content": "Well?"}], "x", 1),
    ],
)
def test_a_question_gets_in_as_no_other_text_either(row: dict, house: Path) -> None:
    taken = give(house, row, said("How is the weather?", "Fine.", 1))
    assert (taken.counts["contaminated"], taken.counts["pool"]) == (1, 1)
    written = "".join(one.read_text() for one in taken.folder.iterdir())
    assert "marrowgate" not in (written + "\n".join(taken.lines())).lower()


def test_a_kill_between_the_folder_and_its_event_is_gone_on_from(house: Path) -> None:
    row, file = said("How is the weather?", "Fine.", 1), house / "registry.jsonl"
    lines = file.read_bytes()
    first = give(house, row)
    file.write_bytes(lines)  # as the kill left it
    second = give(house, row)
    assert second.folder == first.folder.with_name(f"{first.folder.name}-2")
    assert rows_in(second, POOL) == rows_in(first, POOL)
    assert json.loads(file.read_bytes().splitlines()[-1])["folder"].endswith("-2")
    with pytest.raises(RegistryError, match="were taken for support"):
        give(house, row)


def test_a_full_disk_at_the_event_says_which_folder_is_there(house: Path) -> None:
    lines = (house / "registry.jsonl").read_bytes()

    def fill() -> None:
        size = len(lines) + 100
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        with pytest.raises(StorageError, match=r"The rows lie in .*/out, and the registry does no"):
            give(house, said("How is the weather?", "Fine.", 1), out=house / "out")

    assert in_child(fill) == 0
    assert (house / "registry.jsonl").read_bytes() == lines and (house / "out").is_dir()


def test_questions_that_were_measured_count_where_the_file_was_changed(house: Path) -> None:
    (house / "questions.jsonl").write_text('{"question": "A new question here?", "answer": "x"}\n')
    old = said("Which word stands at place 3?", "x", 1)
    new = said("A new question here?", "x", 1)
    taken = give(house, old, new, said("How are you?", "Well.", 1))
    assert taken.counts["contaminated"] == 2 and taken.counts["pool"] == 1
    assert any("was changed since the run began" in line for line in taken.lines())
    (house / "questions.jsonl").unlink()
    taken = give(house, old, said("Are you well?", "Yes.", 1))
    assert taken.counts["contaminated"] == 1
    assert any("its questions are those that were measured" in line for line in taken.lines())
    # the sealed test was not opened, so its file alone knows its questions
    (house / "sealed.jsonl").unlink()
    with pytest.raises(RegistryError, match="what its task qa:sealed"):
        give(house, old, said("Are you very well?", "Yes.", 1))


def test_a_run_that_is_gone_refuses(house: Path) -> None:
    shutil.rmtree(house / "runs/first")
    with pytest.raises(LoopError, match="support@2"):
        give(house, said("q?", "a", 1))


def test_what_training_rows_say_otherwise_is_counted(house: Path) -> None:
    rows = [json.loads(line) for line in (house / "train.jsonl").read_text().splitlines()[:3]]
    taken = give(
        house,
        said(rows[0]["instruction"], rows[0]["output"], 1),
        said(rows[1]["instruction"], "Another answer.", 1),
        said(rows[2]["instruction"], "Another answer.", 0),
    )
    assert (taken.counts["known"], taken.counts["conflicts"]) == (1, 1)
    summary = json.loads((taken.folder / "feedback.json").read_text())
    assert summary["conflicts"] == ["train.jsonl line 2"]


# --- the next run ---------------------------------------------------------------------------------


def test_what_waits_for_an_answer_is_trained_by_no_run(house: Path) -> None:
    """Whatever its name, and whatever `data.columns` calls its columns; filled in and given again
    it is a right answer."""
    row = said("Who are you?", "I will not say.", 0, topic="names")
    taken = give(house, row, said("Who is there?", "Nobody.", 0))
    waiting = taken.folder / "support_to_answer.jsonl"
    renamed = shutil.copy(waiting, house / "rows.jsonl")
    for columns in ({}, {"prompt": "prompt", "completion": "response"}):
        with pytest.raises(DataError, match='"to_answer": it is a prompt that was answered'):
            load_examples([Source("rows", Path(renamed), columns=columns)])
    lines = [json.loads(line) for line in waiting.read_text().splitlines()]
    lines[0]["correction"] = "The support."
    again = give(house, *lines)
    (pool,) = rows_in(again, POOL)
    assert (pool["completion"], pool["topic"]) == ("The support.", "names")
    (pair,) = rows_in(again, PREFERENCES)
    assert pair["rejected"][0]["content"] == "I will not say."
    assert again.counts["to_answer"] == 1


@pytest.mark.trains
def test_the_next_run_draws_from_the_pool(house: Path, made: Workspace) -> None:
    rows = [
        said(f"What is the name of star {i}?", f"Star {i}.", 1, topic="names") for i in range(8)
    ]
    taken = give(house, *rows)
    next_run = Workspace(house, Path(made.settings["base_model"]))
    mining = {"pool_file": str(taken.folder / POOL), "strategy": "topics", "replay_share": 0}
    assert next_run.run("runs/next", mining=mining, steps_per_round=1, max_rounds=2) == 0
    selection = next_run.store("runs/next").selection(2)
    assert selection is not None
    assert {pick.file for pick in selection.picks} == {POOL}
    assert all("name of star" in (pick.text or "") for pick in selection.picks)


def test_a_row_that_is_left_out_is_not_counted_as_taken_and_similar(house: Path) -> None:
    near = "Which word stands at place {} today?".format
    taken = give(
        house,
        said(near(1), "x", 1),
        said(near(2), "x", 1),
        said(near(2), "x", 0),
        said(near(3), "y"),
    )
    listed = [row["line_no"] for row in rows_in(taken, "similar.jsonl")]
    assert (taken.counts["disputed"], taken.counts["unrated"]) == (2, 1)
    assert listed == [1] and taken.counts["similar"] == 1
    assert any("similar to what an evaluation asks: 1 row (" in line for line in taken.lines())
