"""A new run from the weights of an old one, and a sealed test that is opened only for a pass."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from conftest import thorough_only
from test_loop import Workspace, row, same_bits
from trainer_with_eval import main

pytestmark = pytest.mark.core

SEALED = {"question": "Which word is under seal?", "answer": "x"}


def errors(capsys: pytest.CaptureFixture) -> str:
    return capsys.readouterr().err


# --- a test that is opened only for a pass --------------------------------------------------------


def test_a_missed_target_leaves_the_test_sealed(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    workspace.write_rows("sealed.jsonl", [SEALED])
    evaluation = {"max_tokens": 4, "test_tasks": ["qa:sealed.jsonl"], "test_on": "pass"}
    assert workspace.run("run", evaluation=evaluation, max_rounds=1) == 0
    printed = capsys.readouterr()
    assert "sealed test: qa:sealed.jsonl, 1 question, opened only when the gate" in printed.err
    for said in (printed.out, printed.err, (workspace.folder / "run/eval_report.md").read_text()):
        assert "Sealed test: it stayed sealed, since the gate has not passed" in said
    assert workspace.store("run").test_opened() is None
    # so it is extended, and opened where a round passes
    run_dir = str(workspace.folder / "run")
    assert main(["--resume", run_dir, "--set", "max_rounds=2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["test_stayed_sealed"] is True
    assert workspace.store("run").num_rounds == 2
    passing = {"evaluation": evaluation, "max_rounds": 1, "eval_threshold": 0.0}
    assert workspace.run("passed", **passing) == 0
    assert workspace.store("passed").test_result() is not None
    assert "stayed sealed" not in capsys.readouterr().out


def test_a_test_for_the_winner_is_never_opened_by_the_run(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    """However it ends, and the rows are held against it all the same."""
    workspace.write_rows("sealed.jsonl", [{"question": row(3)["instruction"], "answer": "x"}])
    evaluation = {"max_tokens": 4, "test_tasks": ["qa:sealed.jsonl"], "test_on": "winner"}
    passing = {"evaluation": evaluation, "max_rounds": 1, "eval_threshold": 0.0}
    assert workspace.run("run", **passing) == 0
    printed = capsys.readouterr()
    assert "1 question, opened only when a study names this run its winner" in printed.err
    for said in (printed.out, printed.err, (workspace.folder / "run/eval_report.md").read_text()):
        assert "Sealed test: it stayed sealed, since evaluation.test_on is winner" in said
    assert workspace.store("run").test_opened() is None
    dropped = (workspace.folder / "run/data_dropped.jsonl").read_text()
    assert "qa:sealed.jsonl" in dropped


@pytest.mark.parametrize("test_on", ["pass", "winner"])
def test_there_must_be_a_test_to_open(
    workspace: Workspace, capsys: pytest.CaptureFixture, test_on: str
) -> None:
    assert workspace.run("run", evaluation={"test_on": test_on}) == 2
    assert f"evaluation.test_on is {test_on}, and there is no sealed test" in errors(capsys)


# --- weights of another run -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, llama_dir: Path) -> Workspace:
    """A run of two rounds in runs/p of the workspace's folder, and rows and questions of others."""
    workspace = Workspace(tmp_path_factory.mktemp("parent"), llama_dir)
    workspace.settings["mining"] = {"strategy": "topics"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.folder)  # as messages name it by its way from here
        assert workspace.run("runs/p", steps_per_round=2) == 0
    workspace.write_rows("more.jsonl", [row(i) for i in range(200, 208)])
    return workspace


@pytest.fixture
def parent(trained: Workspace, workspace: Workspace) -> Workspace:
    """The same in the folder of the test, which may change it."""
    shutil.copytree(trained.folder, workspace.folder, dirs_exist_ok=True)
    workspace.settings["mining"] = trained.settings["mining"]
    return workspace


def child(workspace: Workspace, run_dir: str, *flags: str, **changes: Any) -> int:
    settings = {"start_from": "runs/p@round_01", "train_file": "more.jsonl", "max_rounds": 1}
    return workspace.run(run_dir, *flags, **{**settings, **changes})


def tensors_of(workspace: Workspace, run_dir: str, round_no: int, kind: str) -> dict[str, Any]:
    weights = workspace.weights(run_dir, round_no)
    return {name: tensor for name, tensor in weights.items() if name.startswith(kind)}


def first_event(workspace: Workspace, run_dir: str) -> dict[str, Any]:
    return workspace.events(run_dir)[0]


@pytest.mark.trains
def test_a_run_starts_from_the_weights_of_another(
    parent: Workspace, capsys: pytest.CaptureFixture
) -> None:
    before = (parent.folder / "runs/p/ledger.jsonl").read_bytes()
    capsys.readouterr()
    assert child(parent, "runs/c") == 0
    printed = capsys.readouterr()
    assert "start: runs/p@round_01 (run " in printed.err
    assert "with a new optimizer; round 0 measures it" in printed.err
    assert "Baseline 0.0000 (n=10) of runs/p@round_01" in printed.err
    assert "No round scored above runs/p@round_01." in printed.out
    assert "renderer: llama3 (by default: that of what the run starts from)" in printed.err
    saved = parent.store("runs/p").checkpoint(1)
    own = parent.store("runs/c").checkpoint(0)
    assert saved is not None and own is not None and own.step == 0
    # its round 0 is these weights, without the optimizer, and measures them
    adapters = [tensors_of(parent, *one, "adapter") for one in (("runs/p", 1), ("runs/c", 0))]
    assert same_bits(*adapters)
    assert not tensors_of(parent, "runs/c", 0, "optimizer")
    was, baseline = parent.store("runs/p").result(1), parent.store("runs/c").result(0)
    assert was is not None and baseline is not None
    assert baseline.checkpoint == own.sampler_path
    assert [s.answer for s in baseline.samples] == [s.answer for s in was.samples]
    # the ledger, the report and --list name them
    started_from = first_event(parent, "runs/c")["started_from"]
    assert (
        started_from["parent"]
        | {
            "name": "runs/p@round_01",
            "state_path": saved.state_path,
            "run_id": parent.store("runs/p").run_id,
            "run_dir": str(parent.folder / "runs/p"),
            "round": 1,
            "step": 2,
        }
        == started_from["parent"]
    )
    assert own.parent == saved.state_path
    report = (parent.folder / "runs/c/eval_report.md").read_text()
    assert "| dev, baseline (runs/p@round_01) |" in report
    assert f"`{saved.state_path}`, with a new optimizer." in report
    assert main(["--list", str(parent.folder / "runs/c")]) == 0
    assert f"Started from runs/p@round_01 (run {started_from['parent']['run_id']}" in (
        capsys.readouterr().out
    )
    # and the parent is as it was
    assert (parent.folder / "runs/p/ledger.jsonl").read_bytes() == before


def test_a_round_that_passes_below_its_start_is_said_to_be(
    parent: Workspace, capsys: pytest.CaptureFixture
) -> None:
    """The grader finds all of round 0 right, and half of what comes later."""
    (parent.folder / "fading.py").write_text(
        "calls = []\n"
        "def grade(answer, targets):\n"
        "    calls.append(answer)\n"
        "    return 1.0 if len(calls) <= 10 else 0.5\n"
    )
    questions = [
        {"question": f"Which one fades at {i}?", "answer": "x", "grader": "fading.py@grade"}
        for i in range(10)
    ]
    parent.write_rows("fading.jsonl", questions)
    changes = {"eval_tasks": ["qa:fading.jsonl"], "eval_threshold": 0.5}
    assert child(parent, "runs/c", **changes) == 0
    said = capsys.readouterr().out
    below = "round 1 is below runs/p@round_01 (0.5000 < 1)"
    assert f"Target met: 0.5000 >= 0.5; {below}. Stopping." in said
    assert (
        "Keep runs/p@round_01 until a run beats it: it scored 1.0000, and round 1 0.5000." in said
    )
    own = parent.store("runs/c").checkpoint(0)
    report = (parent.folder / "runs/c/eval_report.md").read_text()
    assert own is not None
    assert (
        f"By its score runs/p@round_01 is the better one, kept as round 0: `{own.sampler_path}"
        in (report)
    )
    assert "## What to try next" in report


@pytest.mark.trains
def test_the_optimizer_is_taken_over_where_that_is_asked_for(
    parent: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also from another working directory: the run is looked for beside the config file."""
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert child(parent, "runs/c", start_from_optimizer=True) == 0
    assert same_bits(parent.weights("runs/p", 1), parent.weights("runs/c", 0))
    assert tensors_of(parent, "runs/c", 0, "optimizer")


@pytest.mark.trains
def test_it_goes_on_without_its_parent(parent: Workspace, capsys: pytest.CaptureFixture) -> None:
    assert child(parent, "whole", max_rounds=2) == 0
    assert child(parent, "runs/c") == 0
    shutil.move(parent.folder / "runs/p", parent.folder / "away")
    run_dir = str(parent.folder / "runs/c")
    assert main(["--resume", run_dir, "--set", "max_rounds=2"]) == 0
    assert same_bits(parent.weights("whole", 2), parent.weights("runs/c", 2))
    # killed as soon as it had the weights
    shutil.copytree(parent.folder / "whole", parent.folder / "cut")
    lines = (parent.folder / "cut/ledger.jsonl").read_text().splitlines(keepends=True)
    assert [json.loads(line)["type"] for line in lines[:2]] == ["run_started", "checkpoint"]
    (parent.folder / "cut/ledger.jsonl").write_text("".join(lines[:2]))
    assert main(["--resume", str(parent.folder / "cut")]) == 0
    for round_no in (1, 2):
        assert same_bits(parent.weights("whole", round_no), parent.weights("cut", round_no))
    # back to what it was started from
    assert main(["--resume", f"{run_dir}@round_00", "--set", "max_rounds=1"]) == 0
    assert same_bits(parent.weights("whole", 1), parent.weights("runs/c", 1))
    capsys.readouterr()
    settings = ["--config", str(parent.folder / "config.json"), "--evaluate", f"{run_dir}@round_00"]
    assert main([*settings, "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["checkpoints"]
    own = parent.store("runs/c").checkpoint(0)
    assert own is not None and one["path"] == own.sampler_path


@pytest.mark.trains
def test_a_run_that_was_ended_before_it_had_the_weights(
    parent: Workspace, capsys: pytest.CaptureFixture
) -> None:
    assert child(parent, "runs/c") == 0
    ledger = parent.folder / "runs/c/ledger.jsonl"
    ledger.write_text(ledger.read_text().splitlines(keepends=True)[0])
    shutil.rmtree(parent.folder / "runs/c/checkpoints")
    away = parent.folder / "away"
    shutil.move(parent.folder / "runs/p", away)
    capsys.readouterr()
    assert main(["--resume", str(parent.folder / "runs/c")]) == 2
    said = errors(capsys)
    assert "ended before it had saved these weights itself. Move that run's directory" in said
    shutil.move(away, parent.folder / "runs/p")
    assert main(["--resume", str(parent.folder / "runs/c")]) == 0
    adapters = [tensors_of(parent, *one, "adapter") for one in (("runs/p", 1), ("runs/c", 0))]
    assert same_bits(*adapters)


def test_a_ledger_without_these_weights_is_none_of_ours(
    parent: Workspace, capsys: pytest.CaptureFixture
) -> None:
    assert child(parent, "runs/c") == 0
    ledger = parent.folder / "runs/c/ledger.jsonl"
    events = parent.events("runs/c")
    without = [event for event in events if (event["type"], event["round"]) != ("checkpoint", 0)]
    for changed, part in (
        (without, "measured of round 0 without its checkpoint"),
        ([{**events[0], "started_from": None}, *events[1:]], "of a run that began with none"),
    ):
        numbered = [{**event, "seq": seq} for seq, event in enumerate(changed)]
        ledger.write_text("".join(json.dumps(event) + "\n" for event in numbered))
        capsys.readouterr()
        assert main(["--resume", str(parent.folder / "runs/c")]) == 2
        assert part in errors(capsys)


@thorough_only
@pytest.mark.trains
def test_a_child_of_a_child_names_them_all(
    parent: Workspace, capsys: pytest.CaptureFixture
) -> None:
    """Also with the model called otherwise, and by the path of a state."""
    assert child(parent, "runs/c") == 0
    state = parent.store("runs/c").checkpoint(1)
    assert state is not None
    model = str(parent.settings["base_model"])
    capsys.readouterr()
    assert child(parent, "runs/d", start_from=state.state_path, base_model=f"{model}/.") == 0
    origin = parent.store("runs/d").origin
    assert origin is not None
    assert [one.run_id for one in (origin.parent, *origin.ancestors)] == [
        parent.store(f"runs/{name}").run_id for name in "cp"
    ]
    assert "which was started from runs/p@round_01 (run" in capsys.readouterr().err
    assert main(["--resume", str(parent.folder / "runs/d"), "--set", "max_rounds=2"]) == 0
    assert child(parent, "runs/e", start_from="runs/d@round_00", base_model=model) == 0
    adapters = [tensors_of(parent, *one, "adapter") for one in (("runs/c", 1), ("runs/e", 0))]
    assert same_bits(*adapters)


def test_what_does_not_fit_is_refused_by_name(
    parent: Workspace, capsys: pytest.CaptureFixture, qwen_dir: Path
) -> None:
    sampler = parent.store("runs/p").checkpoint(1)
    assert sampler is not None and sampler.sampler_path is not None
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"lora_rank": 8},
            "these weights have lora_rank 4, and the settings lora_rank 8. Set lora",
        ),
        ({"train_mlp": False}, "Set train_mlp to true"),
        ({"renderer_name": "role_colon"}, "Set renderer_name to llama3, or to null"),
        ({"base_model": str(qwen_dir)}, "and the settings' is another one"),
        ({"start_from": "runs/p@round_00"}, "round_00 of this run is the untouched model"),
        ({"start_from": "runs/p@round_07"}, "has no weights of round 7. It has those of 1, 2"),
        ({"start_from": "runs/p@last"}, "'last' names no checkpoint of runs/p"),
        ({"start_from": "runs/none"}, "not a run directory"),
        ({"start_from": "tinker://a:train:0/weights/x"}, "no run below ./runs has this state"),
        ({"start_from": "tinker://a:train:0/sampler_weights/x"}, "Give the state that was saved"),
        ({"start_from": None, "start_from_optimizer": True}, "start_from names no weights"),
    ]
    for changes, part in cases:
        for flags in ((), ("--dry-run",)):
            capsys.readouterr()
            assert child(parent, "runs/c", *flags, **changes) == 2
            assert part in errors(capsys)
    assert not (parent.folder / "runs/c").exists()
    assert child(parent, "runs/c", "--dry-run", start_from=sampler.sampler_path) == 0
    assert f"start: {sampler.sampler_path} (run " in capsys.readouterr().out
    shutil.rmtree(parent.folder / "runs/p/checkpoints")
    assert child(parent, "runs/c", "--dry-run") == 2
    assert "it has expired or was deleted" in errors(capsys)


# --- the sealed test of weights that have a past --------------------------------------------------


def sealed(*questions: str) -> list[dict[str, str]]:
    return [{"question": question, "answer": "x"} for question in questions]


FRESH = "Which word has nobody seen before?"


def dry(workspace: Workspace, capsys: pytest.CaptureFixture, **changes: Any) -> tuple[int, str]:
    evaluation = {"max_tokens": 4, "test_tasks": ["qa:sealed.jsonl"]}
    capsys.readouterr()
    code = child(workspace, "runs/d", "--dry-run", evaluation=evaluation, **changes)
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def test_a_question_that_an_ancestor_knows_is_not_sealed(
    parent: Workspace, capsys: pytest.CaptureFixture
) -> None:
    opened = "Which word did the parent open?"
    parent.write_rows("opened.jsonl", sealed(opened))
    tests = {"max_tokens": 4, "test_tasks": ["qa:opened.jsonl"]}
    assert child(parent, "runs/c", evaluation=tests) == 0
    of_child = {"start_from": "runs/c@round_01", "train_file": "third.jsonl"}
    parent.write_rows("third.jsonl", [row(i) for i in range(300, 308)])
    for question, known in (
        ("Say 3!", "runs/p was trained on train.jsonl line 4 ('Say 3'), which asks the question"),
        ("Say 203", "runs/c was trained on more.jsonl line 4 ('Say 203')"),
        (f"  {opened.upper()}", "which it has opened in its sealed test (qa:opened.jsonl)"),
    ):
        parent.write_rows("sealed.jsonl", sealed(FRESH, question))
        parent.write_rows("questions.jsonl", sealed("Another dev question?"))
        code, said = dry(parent, capsys, **of_child)
        assert code == 2 and known in said and "the test is not sealed for these weights" in said
    # what its parent was evaluated on chose the weights
    parent.write_rows("sealed.jsonl", sealed(FRESH, "Which word stands at place 3?"))
    code, said = dry(parent, capsys, **of_child)
    assert code == 2 and "was evaluated on (qa:questions.jsonl)" in said
    # of several all are counted, and the first ones named
    places = [f"Which word stands at place {i}?" for i in range(7)]
    parent.write_rows("sealed.jsonl", sealed(FRESH, *places))
    code, said = dry(parent, capsys, **of_child)
    assert code == 2 and "runs/c knows 7 questions of it, so the test is not sealed" in said
    assert all(f"sealed.jsonl line {i} ('Which word stands at" in said for i in range(2, 7))
    assert "sealed.jsonl line 7" not in said and "; and 2 more. Take them out" in said
    parent.write_rows("sealed.jsonl", sealed(FRESH, "Say 3", "Say 201", "Say 203", "Say 205"))
    code, said = dry(parent, capsys, **of_child)
    assert code == 2 and all(f"more.jsonl line {i} ('Say 20" in said for i in (2, 4, 6))
    assert "not sealed for these weights (3 rows of what it was trained on)" in said
    parent.write_rows("sealed.jsonl", sealed(FRESH))
    code, said = dry(parent, capsys, **of_child)
    assert code == 0 and "cannot be told" not in said and "warning: runs/" not in said
    # of questions that rounds are decided by it is only said
    parent.write_rows("questions.jsonl", sealed("Another dev question?", "Say 203"))
    code, said = dry(parent, capsys, **of_child)
    assert (
        code == 0 and "runs/c was trained on questions of eval_tasks, in 1 row (the first: " in said
    )


def test_rows_that_are_gone_are_known_by_their_first_words(
    parent: Workspace, capsys: pytest.CaptureFixture
) -> None:
    rows = (parent.folder / "train.jsonl").read_text().splitlines(keepends=True)
    (parent.folder / "train.jsonl").write_text("".join(rows[5:]))
    parent.write_rows("sealed.jsonl", sealed(FRESH, "Say 3"))
    code, said = dry(parent, capsys)
    assert code == 2 and "was trained on train.jsonl line 4 ('Say 3')" in said
    parent.write_rows("sealed.jsonl", sealed(FRESH))
    code, said = dry(parent, capsys)
    assert code == 0
    assert "sealed test: whether it is unseen cannot be told in full: " in said
    assert re.search(r"runs/p: \d of the \d+ rows that it trained on are not in its files", said)
    # rows that were added since change nothing, and an ancestor that is gone is said
    (parent.folder / "train.jsonl").write_text("".join(rows) + json.dumps(row(99)) + "\n")
    assert "cannot be told" not in dry(parent, capsys)[1]
    assert child(parent, "runs/c") == 0
    shutil.move(parent.folder / "runs/p", parent.folder / "away")
    parent.write_rows("third.jsonl", [row(i) for i in range(300, 308)])
    of_child = {"start_from": "runs/c@round_01", "train_file": "third.jsonl"}
    code, said = dry(parent, capsys, **of_child)
    assert code == 0 and f"this run is not at {parent.folder / 'runs/p'} any more" in said


def test_an_opened_test_names_the_way_on(parent: Workspace, capsys: pytest.CaptureFixture) -> None:
    parent.write_rows("sealed.jsonl", sealed(FRESH))
    tests = {"max_tokens": 4, "test_tasks": ["qa:sealed.jsonl"]}
    assert child(parent, "runs/c", evaluation=tests) == 0
    run_dir = str(parent.folder / "runs/c")
    capsys.readouterr()
    assert main(["--resume", run_dir, "--set", "max_rounds=2"]) == 2
    assert f"a config with start_from: {run_dir}@best and an evaluation.test_tasks" in errors(
        capsys
    )
    assert main(["--resume", run_dir]) == 0
    assert f"start a new run with start_from: {run_dir}@best" in errors(capsys)
    # and that is a way
    parent.write_rows("other.jsonl", sealed("Which word comes next, then?"))
    tests["test_tasks"] = ["qa:other.jsonl"]
    parent.write_rows("third.jsonl", [row(i) for i in range(300, 308)])
    changes = {"start_from": f"{run_dir}@best", "train_file": "third.jsonl"}
    assert child(parent, "runs/d", evaluation=tests, **changes) == 0


# --- a path of no known run -----------------------------------------------------------------------


@pytest.mark.trains
def test_a_bare_path_on_a_service(
    workspace: Workspace,
    llama_dir: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sdk_client import KEY, adapter_of, standalone

    workspace.write_rows("sealed.jsonl", sealed(FRESH))
    workspace.settings["mining"] = {"strategy": "topics"}
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    with standalone([llama_dir], workspace.folder / "saved") as (_, address, _):
        on_service = {"base_url": address, "evaluation": {"max_tokens": 4}, "max_rounds": 1}
        assert workspace.run("there", **on_service) == 0
        saved = workspace.store("there").checkpoint(1)  # no run below ./runs
        assert saved is not None
        tests = {"max_tokens": 4, "test_tasks": ["qa:sealed.jsonl"]}
        on_service |= {"start_from": saved.state_path, "evaluation": tests}
        capsys.readouterr()
        assert workspace.run("new", lora_rank=8, **on_service) == 2
        assert "these weights have lora_rank 4" in errors(capsys)
        assert workspace.run("new", **{**on_service, "start_from": f"{saved.state_path}x"}) == 2
        assert "the service does not have it" in errors(capsys)
        with monkeypatch.context() as patched:
            patched.setenv("TINKER_API_KEY", f"{KEY}x")
            assert workspace.run("new", **on_service) == 1
            assert "refuses the key" in errors(capsys)
        assert not (workspace.folder / "new").exists()
        assert workspace.run("new", **on_service) == 0
        assert "of no run that is known here, so what it was trained on is not known" in (
            errors(capsys)
        )
        origin, own = workspace.store("new").origin, workspace.store("new").checkpoint(0)
        assert origin is not None and own is not None
        assert origin.parent.run_id is None and len(origin.unknown) == 1
        adapters = [
            adapter_of(workspace.folder / "saved", s) for s in (saved.state_path, own.state_path)
        ]
        assert same_bits(*adapters)
