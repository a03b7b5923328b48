"""Interrupted, killed, lost, gone back: what was paid for is kept, and the user is told the way."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import forked
import local_tinker
from conftest import IS_THOROUGH, REPO
from ledger.store import RunStore
from loop.rounds.training import SAVE_EVERY_S, is_save_due
from test_loop import Workspace, same_bits, start, wait_for
from trainer_with_eval import main

pytestmark = pytest.mark.core

# Moments of each series; stopped has an Inspect task.
KILL_STUDY = {"plain": 3, "rising": 2, "stopped": 4, "service": 2}
if not IS_THOROUGH:
    KILL_STUDY = {"plain": 2, "rising": 1, "stopped": 2, "service": 1}

TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate
from words import WORD

@task
def letters() -> Task:
    samples = [Sample(id=i, input=f"{WORD} {i}?", target="a") for i in range(40)]
    return Task(dataset=MemoryDataset(samples), solver=generate(), scorer=includes())
"""


def resume(workspace: Workspace, run_dir: str, *flags: str) -> int:
    return main(["--resume", str(workspace.folder / run_dir), *flags])


def kill_when(
    workspace: Workspace, run_dir: str, file: str, num_bytes: int, **changes: Any
) -> None:
    """Start a run and kill it when a file of it has grown to so many bytes."""
    process = start(workspace, run_dir, **changes)
    path, deadline = workspace.folder / run_dir / file, time.monotonic() + 120
    while not (path.exists() and path.stat().st_size >= num_bytes):
        assert process.poll() is None and time.monotonic() < deadline, f"no {file} before the end"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait(20)


# --- the moments of benchmarks/kill_resume.py -----------------------------------------------------


def test_killed_runs_end_as_the_same_run(tmp_path: Path) -> None:
    study, outcomes = REPO / "benchmarks" / "kill_resume.py", tmp_path / "outcomes.json"
    series = [f"{name}:{moments}" for name, moments in KILL_STUDY.items()]
    done = forked.run(study, "--json", outcomes, "--series", *series)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    trials = json.loads(outcomes.read_text())
    found = {name: [differences for *_, differences in of] for name, of in trials.items()}
    assert found == {name: [[]] * moments for name, moments in KILL_STUDY.items()}


# --- inside an evaluation -------------------------------------------------------------------------


def test_graded_samples_are_not_asked_again(workspace: Workspace) -> None:
    questions = [{"question": f"Which word is at {i}?", "answer": "x"} for i in range(200)]
    workspace.write_rows("questions.jsonl", questions)
    changes = {"max_rounds": 1, "evaluation": {"max_tokens": 12}}
    assert workspace.run("whole", **changes) == 0
    kill_when(workspace, "killed", "evals/round_00.partial.jsonl", 5_000, **changes)
    journal = workspace.folder / "killed/evals/round_00.partial.jsonl"
    head, *kept = journal.read_text().splitlines()
    assert json.loads(head) == {"subject": "the base model"}
    assert 0 < len(kept) < 200
    # A kept sample that was changed by hand comes back as it is: it was not asked again.
    first = json.loads(kept[0])
    first["fields"]["answer"] = "kept, not asked"
    journal.write_text("\n".join([head, json.dumps(first), *kept[1:]]) + "\n")
    assert workspace.store("killed").usage().prompt_tokens > 0  # paid for, though not recorded yet
    assert resume(workspace, "killed") == 0
    whole, killed = workspace.store("whole").result(0), workspace.store("killed").result(0)
    assert whole is not None and killed is not None
    answers = {sample.id: sample.answer for sample in killed.samples}
    assert answers.pop(first["fields"]["id"]) == "kept, not asked"
    assert answers.items() <= {sample.id: sample.answer for sample in whole.samples}.items()
    assert not journal.exists()
    assert workspace.store("whole").usage()[:3] == workspace.store("killed").usage()[:3]


def test_a_journal_of_other_weights_is_not_used(workspace: Workspace) -> None:
    assert workspace.run("run", max_rounds=1) == 0
    store = workspace.store("run")
    journal = store.eval_journal(0, "tinker://other:train:0/sampler_weights/round_00")
    journal.add("qa:questions.jsonl/x 1", {"score": 1.0}, num_prompt_tokens=5)
    assert len(store.eval_journal(0, None)) == 0


def test_samples_that_an_inspect_log_has_flushed_are_kept(workspace: Workspace) -> None:
    (workspace.folder / "words.py").write_text('WORD = "Letter"\n')
    (workspace.folder / "letters.py").write_text(TASK)
    changes: dict[str, Any] = {"eval_tasks": ["letters.py@letters"], "max_rounds": 1}
    sampled = {"temperature": 1.0, "num_repeats": 3, "max_tokens": 40}
    changes["evaluation"] = {**sampled, "concurrency": 8}  # so few at once that it can be caught
    assert workspace.run("whole", **changes) == 0
    process = start(workspace, "killed", **changes)
    deadline = time.monotonic() + 120
    while True:  # what is counted stands still, so that it is killed where it was seen
        process.send_signal(signal.SIGSTOP)
        if num_flushed(workspace.folder / "killed") >= 20:
            break
        process.send_signal(signal.SIGCONT)
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    kept = num_flushed(workspace.folder / "killed")
    assert 20 <= kept < 120
    assert resume(workspace, "killed") == 0
    results = [workspace.store(name).result(0) for name in ("whole", "killed")]
    answers = [[(s.id, s.repeat, s.answer) for s in r.samples] for r in results if r is not None]
    assert answers[0] == answers[1]
    assert len(set(answers[0])) == 120
    # The log of the attempt that was killed is gone: the new one has its samples.
    assert len(list((workspace.folder / "killed/inspect_logs").glob("*.eval"))) == 2


def num_flushed(run_dir: Path) -> int:
    """Samples in the first Inspect log of a run that is being written."""
    from inspect_ai.log import read_eval_log_sample_summaries

    logs = sorted((run_dir / "inspect_logs").glob("*.eval"))
    if not logs:
        return 0
    # Inspect replaces the file at each flush, and its reader asks for the size before it opens it;
    # one open sees one of the files whole.
    snapshot = run_dir.with_suffix(".eval")
    snapshot.write_bytes(logs[0].read_bytes())
    return len(read_eval_log_sample_summaries(str(snapshot)))


def test_code_of_a_task_that_has_changed_is_refused_before_it_runs(
    workspace: Workspace,
    capsys: pytest.CaptureFixture,
) -> None:
    helper, canary = workspace.folder / "words.py", workspace.folder / "canary"
    helper.write_text('WORD = "Letter"\n')
    (workspace.folder / "letters.py").write_text(TASK)
    changes: dict[str, Any] = {"eval_tasks": ["letters.py@letters"], "max_rounds": 1}
    assert workspace.run("run", **changes) == 0
    assert resume(workspace, "run") == 0
    printed = capsys.readouterr().err
    assert f"task code: {workspace.folder / 'letters.py'} (sha256 " in printed
    assert f"task code: {helper} (sha256 " in printed
    helper.write_text(f'open({str(canary)!r}, "w").close()\nWORD = "Letter"\n')
    assert resume(workspace, "run", "--set", "max_rounds=2") == 2
    assert f"{helper}: this Python file belongs to a task" in capsys.readouterr().err
    assert not canary.exists()


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_an_evaluation_keeps_what_is_graded(
    workspace: Workspace,
    number: signal.Signals,
) -> None:
    questions = [{"question": f"Which word is at {i}?", "answer": "x"} for i in range(400)]
    workspace.write_rows("questions.jsonl", questions)
    changes = {"max_rounds": 1, "evaluation": {"max_tokens": 12}}
    process = start(workspace, "run", **changes)
    journal = workspace.folder / "run/evals/round_00.partial.jsonl"
    while not (journal.exists() and journal.stat().st_size > 5_000):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert f"--resume {workspace.folder / 'run'}" in errors
    assert workspace.events("run")[-1]["type"] == "interrupted"
    assert len(journal.read_text().splitlines()) > 1


def test_a_signal_while_the_end_is_written_loses_nothing(workspace: Workspace) -> None:
    process = start(workspace, "run", max_rounds=1)
    wait_for(process, workspace.folder / "run/ledger.jsonl", "run_finished", 1)
    process.send_signal(signal.SIGINT)  # while the session is being closed
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, 130)  # 130 where nothing but printing was left
    assert "Traceback" not in errors
    assert workspace.events("run")[-1]["type"] == "run_finished"


def test_a_second_signal_leaves_at_once(workspace: Workspace) -> None:
    process = start(workspace, "run", steps_per_round=400, batch_size=8, max_rounds=1)
    wait_for(process, workspace.folder / "run/ledger.jsonl", "step", 3)
    process.send_signal(signal.SIGINT)
    while "once more to leave at once" not in process.said_so_far("stderr"):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    errors = errors.partition("once more to leave at once")[2]
    # It may have been saving already; either way it says how to go on.
    assert f"--resume {workspace.folder / 'run'}" in errors


def test_state_is_saved_inside_long_rounds(workspace: Workspace) -> None:
    by_time, by_steps = (config_of(workspace, n) for n in (None, 3))
    assert not is_save_due(by_time, 9, SAVE_EVERY_S - 1)
    assert is_save_due(by_time, 1, SAVE_EVERY_S)
    assert SAVE_EVERY_S <= 600
    assert [n for n in range(1, 10) if is_save_due(by_steps, n, 0.0)] == [3, 6, 9]


def config_of(workspace: Workspace, every: int | None) -> Any:
    from config_schema import validate

    return validate({**workspace.settings, "checkpoint_every_steps": every}, "a test")


# --- torn, finished, gone back --------------------------------------------------------------------


def test_a_torn_last_line_is_dropped_with_a_message(
    workspace: Workspace,
    capsys: pytest.CaptureFixture,
) -> None:
    assert workspace.run("run", max_rounds=1) == 0
    assert workspace.run("whole", max_rounds=2) == 0
    ledger = workspace.folder / "run/ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-30])
    assert resume(workspace, "run", "--set", "max_rounds=2") == 0
    assert "ledger: dropped a last line of " in capsys.readouterr().err
    assert same_bits(workspace.weights("run", 2), workspace.weights("whole", 2))


def test_a_folder_that_a_kill_left_empty_can_be_used(workspace: Workspace) -> None:
    run_dir = workspace.folder / "run"
    run_dir.mkdir()
    (run_dir / ".lock").touch()
    (run_dir / "config.resolved.json.tmp").write_text("{")
    assert workspace.run("run", max_rounds=1) == 0
    assert run_dir.stat().st_mode & 0o777 == 0o700


def test_a_finished_run_says_so_and_how_it_goes_on(
    workspace: Workspace,
    capsys: pytest.CaptureFixture,
) -> None:
    assert workspace.run("run", max_rounds=1) == 0
    before = workspace.events("run")
    capsys.readouterr()
    assert resume(workspace, "run", "--json") == 0
    output = capsys.readouterr()
    assert "nothing is left to do; to train on, resume it with a higher bound" in output.err
    assert json.loads(output.out)["action"] == "stop_rounds"
    assert workspace.events("run") == before
    assert workspace.run("passed", eval_threshold=0.0) == 0
    assert resume(workspace, "passed", "--gate") == 0
    assert "a run that met its target ends there" in capsys.readouterr().err


def test_going_back_to_a_round_runs_what_came_after_it_again(
    workspace: Workspace,
    capsys: pytest.CaptureFixture,
) -> None:
    assert workspace.run("run", max_rounds=2) == 0
    weights = [workspace.weights("run", n) for n in (1, 2)]
    scores = workspace.store("run").scores()
    assert main(["--resume", str(workspace.folder / "run@round_01")]) == 0
    assert [same_bits(weights[n - 1], workspace.weights("run", n)) for n in (1, 2)] == [True, True]
    assert workspace.store("run").scores() == scores
    types = [event["type"] for event in workspace.events("run")]
    assert types.count("run_finished") == 2
    assert main(["--resume", str(workspace.folder / "run@round_07")]) == 2
    assert "round 7 has not been decided" in capsys.readouterr().err


def test_one_cannot_go_back_behind_an_opened_test(
    workspace: Workspace,
    capsys: pytest.CaptureFixture,
) -> None:
    workspace.write_rows("sealed.jsonl", [{"question": "Sealed, is it?", "answer": "x"}])
    evaluation = {"max_tokens": 4, "test_tasks": ["qa:sealed.jsonl"]}
    assert workspace.run("run", max_rounds=1, evaluation=evaluation) == 0
    assert main(["--resume", str(workspace.folder / "run@round_00")]) == 2
    assert "the sealed test of this run has been opened" in capsys.readouterr().err
    assert resume(workspace, "run") == 0  # and no command that would be refused is recommended
    assert "its sealed test was opened, so it is not trained further" in capsys.readouterr().err


def test_a_state_that_is_gone_is_named_with_what_is_still_there(
    workspace: Workspace,
    capsys: pytest.CaptureFixture,
) -> None:
    process = start(workspace, "run", steps_per_round=3, max_rounds=3)
    wait_for(process, workspace.folder / "run/ledger.jsonl", "checkpoint", 2)
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    store = workspace.store("run")
    newest = store.last_checkpoint()
    assert newest is not None and newest.round == 2
    folder = Path(newest.state_path.removeprefix("tinker://").replace(":", "_"))
    shutil.rmtree(workspace.folder / "run/checkpoints" / folder)
    assert resume(workspace, "run") == 1
    error = capsys.readouterr().err
    assert f"of round 2, step 6 ({newest.state_path}) cannot be loaded: " in error
    assert f"can still go on from {workspace.folder / 'run'}@round_01, " in error
    assert "Continue with" not in error  # the command that would fail again
    assert workspace.events("run")[-1]["fault"] == "checkpoint_gone"
    assert main(["--resume", str(workspace.folder / "run@round_01")]) == 0
    assert workspace.run("whole", steps_per_round=3, max_rounds=3) == 0
    assert same_bits(workspace.weights("run", 3), workspace.weights("whole", 3))


METHODS: dict[str, dict[str, Any]] = {
    "sft": {},
    "dpo": {"train_file": "pairs.jsonl", "mining": {"pool_file": None}},
    "rl": {"rl": {"reward": "includes", "group_size": 2, "max_tokens": 2}},
    "distill": {"distill": {"way": "on_policy", "teacher": "PATH", "max_tokens": 2}},
}


@pytest.mark.parametrize("method", METHODS)
def test_neither_the_method_nor_what_belongs_to_another_changes_on_resumption(
    workspace: Workspace, llama_dir: Path, capsys: pytest.CaptureFixture, method: str
) -> None:
    """With --set alone and beside --config; no other setting is said to be wrong."""
    pairs = [{"prompt": f"Say {i}", "chosen": "a", "rejected": "b"} for i in range(4)]
    workspace.write_rows("pairs.jsonl", pairs)
    changes = json.loads(json.dumps(METHODS[method]).replace("PATH", str(llama_dir)))
    if method == "distill":  # what the student is itself, but for what it hears
        changes["distill"]["teacher_prompt"] = "Say x."
    workspace.settings |= {"max_rounds": 1, "steps_per_round": 1, "method": method, **changes}
    assert workspace.run("run") == 0
    config = ["--config", str(workspace.folder / "config.json")]
    others = [name for name in METHODS if name != method]
    sets = [f"method={other}" for other in others]
    sets += [f"{other}={{}}" for other in others if other != "sft"]
    sets += [f"{other}.max_tokens=3" for other in others if other in ("rl", "distill")]
    capsys.readouterr()
    for index, one in enumerate(sets):
        assert resume(workspace, "run", "--set", one, *(config if index % 2 else [])) == 2
        said = capsys.readouterr().err
        key = one.partition("=")[0]
        assert f"--set {key}: the run was started with method {method}, and neither its" in said
    assert resume(workspace, "run", "--set", f"method={method}", "--set", "max_rounds=1") == 0


# --- what is kept where ---------------------------------------------------------------------------


def test_the_best_is_kept_and_the_rest_expire(
    workspace: Workspace,
    capsys: pytest.CaptureFixture,
) -> None:
    changes = {"steps_per_round": 4, "checkpoint_every_steps": 2, "max_rounds": 2}
    assert workspace.run("run", **changes) == 0
    capsys.readouterr()
    assert main(["--list", str(workspace.folder / "run"), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    rows = {(row["round"], row["kind"]): row for row in listed["checkpoints"]}
    # States inside rounds are deleted; both kinds of each round's end are there.
    assert rows.keys() == {(n, kind) for n in (1, 2) for kind in ("state", "sampler")}
    assert listed["missing"] == []
    for (round_no, _), row in rows.items():
        assert row["is_best"] == (round_no == 1)
        assert (row["expires_at"] is None) == (round_no == 1)
        stored = json.loads((folder_of(workspace, row["path"]) / "checkpoint.json").read_text())
        assert (stored["expires_at"] is None) == (round_no == 1)
        days = stored["expires_at"] and (stored["expires_at"] - stored["created_at"]) / 86_400
        assert days is None or days == pytest.approx(30, abs=0.01)
    saved = workspace.store("run").checkpoints()
    assert [one.step for one in saved] == [2, 4, 6, 8]
    assert [one.parent for one in saved] == [None, *(one.state_path for one in saved[:-1])]
    shutil.rmtree(folder_of(workspace, rows[2, "sampler"]["path"]))
    assert main(["--list", str(workspace.folder / "run")]) == 0
    table = capsys.readouterr().out
    assert "no expiry" in table and "(best)" in table
    assert f"{rows[2, 'sampler']['path']}  (NOT THERE)" in table


def folder_of(workspace: Workspace, path: str) -> Path:
    return workspace.folder / "run/checkpoints" / path.removeprefix("tinker://").replace(":", "_")


def test_a_later_best_round_takes_the_place_of_the_earlier(workspace: Workspace) -> None:
    """Pure rule: what is kept follows the recommendation, states inside rounds go."""
    from loop.rounds.keeping import care_for
    from test_run_store import checkpoint

    one, two = checkpoint(1, 4), checkpoint(2, 8)
    care = care_for([one, two], two, [one.state_path, str(one.sampler_path)], set())
    assert care.keep == [two.state_path, two.sampler_path]
    assert care.release == [one.state_path, one.sampler_path]
    assert care.delete == []


def test_the_second_process_on_a_run_is_refused(
    workspace: Workspace,
    capsys: pytest.CaptureFixture,
) -> None:
    assert workspace.run("run", max_rounds=1) == 0
    holder = RunStore.open(workspace.folder / "run", to_resume=True)
    try:
        assert resume(workspace, "run", "--set", "max_rounds=2") == 2
    finally:
        holder.close()
    assert "another process is at work on this run" in capsys.readouterr().err


# --- a service that is lost -----------------------------------------------------------------------


def test_a_lost_session_is_one_message_and_can_be_resumed(
    workspace: Workspace,
    service: local_tinker.Service,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """The address answers, but has nothing of the run any more."""
    monkeypatch.setenv("TINKER_API_KEY", service.open_folder(workspace.folder / "saved"))
    assert workspace.run("run", base_url=service.base_url, max_rounds=1) == 0
    (workspace.folder / "saved").rename(workspace.folder / "elsewhere")
    assert resume(workspace, "run", "--set", "max_rounds=2") == 1
    error = capsys.readouterr().err
    assert f"can still go on from {workspace.folder / 'run'}@round_00 (" in error
    assert "Traceback" not in error and "Unexpected" not in error
    (workspace.folder / "elsewhere").rename(workspace.folder / "saved")
    assert resume(workspace, "run", "--set", "max_rounds=2") == 0
    assert workspace.events("run")[-1]["type"] == "run_finished"
