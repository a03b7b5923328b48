"""The real loop over the embedded service, from the command line to the bytes on disk."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import evalops_client
import forked
import local_tinker
from commands import offered_models
from conftest import REPO, thorough_only
from data_loader import load_examples
from fake_evalops import (
    GARBAGE,
    HANG,
    OK_C,
    OK_P,
    RATE_LIMITED,
    SLASH_REDIRECT,
    Reply,
    as_json,
    fake_evalops,
)
from ledger.store import RunStore
from rows.sources import Source
from rows.words import normalise
from trainer_with_eval import main

pytestmark = pytest.mark.core

TOPICS = ("sums", "names")

# At this rate 40 steps teach the tiny model one answer, and 40 more another, without a swing: any
# kernels of torch give the same losses to three digits, and what is asserted of the scores holds at
# 0.8 and 1.2 times the rate as well. At twice the rate the losses of a round differ by factors.
SMOOTH_RATE = 0.0025


class Workspace:
    """A folder with config, data and questions for a tiny model; runs the command in-process."""

    def __init__(self, folder: Path, model_dir: Path) -> None:
        self.folder = folder
        self.write_rows("train.jsonl", [row(i) for i in range(10)])
        self.write_rows("pool.jsonl", [row(i) for i in range(100, 130)])
        questions = [
            {"question": f"Which word stands at place {i}?", "answer": "x", "topic": TOPICS[i % 2]}
            for i in range(10)
        ]
        self.write_rows("questions.jsonl", questions)
        self.settings: dict[str, Any] = {
            "base_model": str(model_dir),
            "train_file": "train.jsonl",
            "eval_tasks": ["qa:questions.jsonl"],
            "learning_rate": 0.01,
            "lr_decay": 0.5,
            "lora_rank": 4,
            "batch_size": 4,
            "steps_per_round": 3,
            "max_rounds": 2,
            "eval_threshold": 1.0,
            "evaluation": {"max_tokens": 4},
            "mining": {"pool_file": "pool.jsonl", "replay_share": 0.25},
        }

    def write_rows(self, name: str, rows: list[dict]) -> None:
        (self.folder / name).write_text("\n".join(map(json.dumps, rows)) + "\n")

    def arguments(self, run_dir: str, **changes: Any) -> list[str]:
        (self.folder / "config.json").write_text(json.dumps({**self.settings, **changes}))
        return [
            "--config",
            str(self.folder / "config.json"),
            "--run-dir",
            str(self.folder / run_dir),
        ]

    def run(self, run_dir: str, *flags: str, **changes: Any) -> int:
        return main([*self.arguments(run_dir, **changes), *flags])

    def store(self, run_dir: str) -> RunStore:
        return RunStore.open(self.folder / run_dir)

    def events(self, run_dir: str) -> list[dict]:
        lines = (self.folder / run_dir / "ledger.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def weights(self, run_dir: str, round_no: int) -> dict[str, torch.Tensor]:
        checkpoint = self.store(run_dir).checkpoint(round_no)
        assert checkpoint is not None
        run_id, kind, name = checkpoint.state_path.removeprefix("tinker://").split("/")
        folder = self.folder / run_dir / "checkpoints" / run_id.replace(":", "_") / kind / name
        return {
            f"{file}:{key}": tensor
            for file in ("adapter_model", "optimizer")
            for key, tensor in load_file(folder / f"{file}.safetensors").items()
        }


def row(number: int) -> dict[str, str]:
    return {"instruction": f"Say {number}", "output": str(number), "topic": TOPICS[number % 2]}


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# --- before it begins --------------------------------------------------------------------------


def test_a_dry_run_asks_a_service_for_its_models(
    workspace: Workspace,
    service: local_tinker.Service,
    llama_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Also with the SDK of self-hosted engines, which spells it otherwise."""
    monkeypatch.setenv("TINKER_API_KEY", service.open_folder(workspace.folder / "checkpoints"))
    monkeypatch.setattr(offered_models, "LIMIT_S", 60)  # the other tests' load is no part of it
    assert workspace.run("run", "--dry-run", "--json", base_url=service.base_url) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["service"]["was_asked"] is True
    assert answer["service"]["base_model_is_served"] is True
    listed = {one["name"]: one["context"] for one in answer["service"]["models"]}
    assert listed[str(llama_dir)] == listed["llama"] == 512


# --- the whole way -----------------------------------------------------------------------------


@pytest.mark.trains
def test_a_run_that_misses_its_target(workspace: Workspace, capsys: pytest.CaptureFixture) -> None:
    assert workspace.run("run") == 0
    events = workspace.events("run")
    evaluate = ["measured", "evaluated", "decided"]
    train = ["selected", "step", "step", "step", "checkpoint"]
    explain = ["diagnosed", "topics"]
    assert [event["type"] for event in events] == [
        "run_started",
        *evaluate,
        *(train + evaluate + ["checkpoint_kept"] + explain),
        "losses_measured",
        *(train + evaluate + explain),
        "run_finished",
    ]
    # exactly steps_per_round steps, at the rates of the formula: warm-up resolves to 0 of 6 steps
    steps = [event for event in events if event["type"] == "step"]
    assert [event["step"] for event in steps] == [0, 1, 2, 3, 4, 5]
    rates = [event["lr"] for event in steps]
    assert rates[0] == 0.01
    assert rates[3] == pytest.approx(0.005, rel=1e-4)
    assert all(len(event["example_ids"]) == 4 for event in steps)
    assert all(event["num_loss_tokens"] > 0 for event in steps)
    assert steps[-1]["loss"] < steps[0]["loss"] - 1.0  # 5.7 to 3.3
    decided = [event for event in events if event["type"] == "decided"]
    assert [event["action"] for event in decided] == ["continue", "continue", "stop_rounds"]
    assert [event["lr_multiplier"] for event in decided] == [1.0, 0.5, 1.0]

    output = capsys.readouterr()
    assert output.out.split("\n", 4)[4].startswith(
        "Target not met: 0.0000 < 1 after 2 of 2 rounds. Stopping.\n"
    )
    assert "Best checkpoint: round 1" in output.out
    assert "round 2: 3 steps, loss " in output.err


def test_what_is_trained_on(workspace: Workspace) -> None:
    """Round 1 walks the training file; round 2 replays a quarter, the rest is from the pool."""
    assert workspace.run("run") == 0
    first = json.loads((workspace.folder / "run/selections/round_01.json").read_text())
    second = json.loads((workspace.folder / "run/selections/round_02.json").read_text())
    train_ids, pool_ids = (
        {e.id for e in load_examples([Source(name, workspace.folder / name)]).examples}
        for name in ("train.jsonl", "pool.jsonl")
    )
    ids = [pick["example_id"] for pick in first["picks"]]
    assert set(ids[:10]) == train_ids
    assert len(ids) == 12
    assert second["shares"] == {"replay": 3, "pool": 9}
    mined = [pick for pick in second["picks"] if pick["source"] == "pool"]
    assert {pick["example_id"] for pick in mined} <= pool_ids
    assert all("5 of 5 questions failed" in pick["reason"] for pick in mined)
    # what the ledger says was trained is what was selected, in that order
    steps = [e for e in workspace.events("run") if e["type"] == "step"]
    trained = [example_id for step in steps[3:] for example_id in step["example_ids"]]
    assert trained == [pick["example_id"] for pick in second["picks"]]


def test_every_score_is_the_mean_of_graded_samples(workspace: Workspace) -> None:
    assert workspace.run("run", max_rounds=1) == 0
    for name in ("round_00", "round_01"):
        result = json.loads((workspace.folder / f"run/evals/{name}.json").read_text())
        samples = result["tasks"][0]["samples"]
        assert result["n"] == len(samples) == 10
        assert result["score"] == sum(s["score"] for s in samples) / 10
        assert all(s["answer"] is not None for s in samples)
    assert result["checkpoint"].endswith("/sampler_weights/round_01")


def test_a_run_that_meets_its_target_stops_at_once(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    assert workspace.run("run", "--gate", "--json", eval_threshold=0.0) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["sentence"] == "Target met: 0.0000 >= 0. Stopping."
    assert (outcome["action"], outcome["best_round"]) == ("stop_passed", 1)
    assert outcome["scores"] == {"0": 0.0, "1": 0.0}
    assert outcome["best_sampler_path"].endswith("/sampler_weights/round_01")
    assert "meets the threshold already" in workspace.events("run")[3]["sentence"]


def test_gate_exits_3_when_the_target_is_missed(workspace: Workspace) -> None:
    assert workspace.run("run", "--gate", max_rounds=1) == 3


def test_max_steps_cuts_a_round_short(workspace: Workspace) -> None:
    assert workspace.run("run", max_steps=4, max_rounds=3) == 0
    events = workspace.events("run")
    assert [e["step"] for e in events if e["type"] == "step"] == [0, 1, 2, 3]
    assert [e["action"] for e in events if e["type"] == "decided"][-1] == "stop_budget"


def test_the_same_seed_gives_the_same_run_and_another_seed_another(workspace: Workspace) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert workspace.run(name, seed=seed, max_rounds=1) == 0
    assert same_bits(workspace.weights("a", 1), workspace.weights("b", 1))
    assert not same_bits(workspace.weights("a", 1), workspace.weights("c", 1))


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(workspace: Workspace) -> None:
    for name, parts in (("whole", 1), ("parts", 2)):
        assert workspace.run(name, data={"accumulate": parts}, max_rounds=1) == 0
    whole, parts = workspace.weights("whole", 1), workspace.weights("parts", 1)
    for key, tensor in whole.items():
        torch.testing.assert_close(tensor, parts[key], rtol=1e-2, atol=1e-4)
    # not merely close to the start: a run on other data ends elsewhere
    assert workspace.run("other", seed=5, max_rounds=1) == 0
    other = workspace.weights("other", 1)
    assert any((whole[k] - other[k]).abs().max() > 1e-3 for k in whole if k in other)


@pytest.mark.trains
def test_a_qwen3_directory_with_its_own_data_trains(
    tmp_path: Path, qwen_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    workspace = Workspace(tmp_path, qwen_dir)
    assert workspace.run("run", "-v", max_rounds=1) == 0
    steps = [e for e in workspace.events("run") if e["type"] == "step"]
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.5  # 5.7 to 4.4
    checkpoint = workspace.store("run").checkpoint(1)
    assert checkpoint is not None
    assert checkpoint.renderer == "qwen3"
    assert "  miss Which word stands at place 3? -> " in capsys.readouterr().err


def test_a_compatible_service_is_reached_by_its_address(
    workspace: Workspace,
    service: local_tinker.Service,
    llama_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """The same run as on the service of its own, over an address and a key from the environment."""
    monkeypatch.setenv("TINKER_API_KEY", service.open_folder(workspace.folder / "elsewhere"))
    assert workspace.run("there", base_url=service.base_url) == 0
    assert "service: compatible (base_url in the config is set)" in capsys.readouterr().err
    assert not (workspace.folder / "there/checkpoints").exists()
    assert workspace.run("here", "--local") == 0
    losses = [[e["loss"] for e in workspace.store(n).events("step")] for n in ("there", "here")]
    assert losses[0] == losses[1]


def test_evaluation_questions_never_enter_training(workspace: Workspace) -> None:
    planted = "please answer: which WORD stands   at place 3, and why"
    workspace.write_rows(
        "pool.jsonl",
        [row(i) for i in range(100, 120)] + [{"instruction": planted, "output": "x"}],
    )
    assert workspace.run("run", max_rounds=1) == 0
    manifest = json.loads((workspace.folder / "run/data_manifest.json").read_text())
    (dropped,) = manifest["dropped"]
    assert (dropped["file"], dropped["line_no"], dropped["kind"]) == (
        "pool.jsonl",
        21,
        "contaminated",
    )
    assert "Which word stands at place 3?" in dropped["reason"]
    assert dropped["text"] == planted
    assert dropped["other"] == "Which word stands at place 3?"
    assert manifest["examples"]["mining.pool_file"]["num_examples"] == 20
    (line,) = (workspace.folder / "run/data_dropped.jsonl").read_text().splitlines()
    assert json.loads(line) == dropped
    assert normalise(planted).startswith("please answer")


# --- killed and resumed ------------------------------------------------------------------------


def start(workspace: Workspace, run_dir: str, **changes: Any) -> forked.Process:
    return forked.Process(
        REPO / "trainer_with_eval.py",
        *workspace.arguments(run_dir, **changes),
        stderr=subprocess.PIPE,
        cwd=workspace.folder,
    )


def wait_for(
    process: forked.Process | subprocess.Popen, ledger: Path, event_type: str, count: int
) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if ledger.exists() and ledger.read_text().count(f'"type": "{event_type}"') >= count:
            return
        time.sleep(0.005)
    raise AssertionError(f"no {event_type} number {count} before the run ended")


def test_interrupted_it_finishes_the_step_saves_and_exits_130(workspace: Workspace) -> None:
    process = start(workspace, "run", steps_per_round=200, max_rounds=1)
    wait_for(process, workspace.folder / "run/ledger.jsonl", "step", 3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted before step" in errors
    assert f"--resume {workspace.folder / 'run'}" in errors
    assert "Traceback" not in errors
    last = workspace.events("run")[-1]
    checkpoint = workspace.store("run").last_checkpoint()
    assert last["type"] == "interrupted"
    assert checkpoint is not None
    assert 3 <= checkpoint.step < 200
    assert len(list(workspace.store("run").events("step"))) == checkpoint.step


def test_resuming_a_finished_run_and_extending_it(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    assert workspace.run("short", max_rounds=1) == 0
    assert workspace.run("long", max_rounds=2) == 0
    run_dir = str(workspace.folder / "short")
    assert main(["--resume", run_dir]) == 0
    assert "Target not met: 0.0000 < 1 after 1 of 1 rounds" in capsys.readouterr().out
    assert main(["--resume", run_dir, "--set", "max_rounds=2"]) == 0
    assert same_bits(workspace.weights("short", 2), workspace.weights("long", 2))
    assert main(["--resume", run_dir, "--set", "seed=5"]) == 2
    assert "seed was 0, is 5" in capsys.readouterr().err


def test_resume_refuses_data_that_changed(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    assert workspace.run("run", max_rounds=1) == 0
    workspace.write_rows("train.jsonl", [row(i) for i in range(11)])
    assert main(["--resume", str(workspace.folder / "run"), "--set", "max_rounds=2"]) == 2
    assert "the content of train_file has changed" in capsys.readouterr().err


# --- failures ----------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_and_its_weights_are_never_used(
    workspace: Workspace, llama_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    broken = workspace.folder / "broken"
    broken.mkdir()
    for file in llama_dir.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    assert workspace.run("run", base_model=str(broken)) == 1
    errors = capsys.readouterr().err
    assert "the loss is nan in round 1, step 0" in errors
    assert "Traceback" not in errors
    types = [event["type"] for event in workspace.events("run")]
    assert types.count("checkpoint_unusable") == 2
    failed = workspace.events("run")[-1]
    assert failed["type"] == "failed"
    # the steps behind the bad one were paid for as well: 3 of 4 rows, as long as each other
    store, plan = workspace.store("run"), 3 * 4
    assert failed["num_tokens"] > 0 and failed["num_tokens"] % plan == 0
    assert store.usage().train_tokens == failed["num_tokens"]
    assert "checkpoint" not in types
    assert workspace.store("run").last_checkpoint() is None
    left = list((workspace.folder / "run/checkpoints").rglob("*.safetensors"))
    assert left == []


def long_question(number: int) -> dict[str, str]:
    """A question that does not fit into the model's context, so that its sample fails."""
    return {"question": f"{number} " + "word " * 1200, "answer": "x"}


def model_of_unknown_context(workspace: Workspace) -> str:
    """A model whose config.json leaves the context to transformers, which says 2048: what is longer
    is not refused before the service does."""
    model_dir = shutil.copytree(workspace.settings["base_model"], workspace.folder / "unknown")
    config = json.loads((model_dir / "config.json").read_text())
    del config["max_position_embeddings"]
    (model_dir / "config.json").write_text(json.dumps(config))
    return str(model_dir)


def test_a_failed_evaluation_has_no_score_and_can_be_resumed(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    workspace.write_rows("questions.jsonl", [{"question": "a?", "answer": "x"}, long_question(1)])
    assert workspace.run("run", base_model=model_of_unknown_context(workspace)) == 1
    errors = capsys.readouterr().err
    assert "1 of 2 samples failed, more than 10%, so there is no score" in errors
    assert "--resume" in errors
    types = [event["type"] for event in workspace.events("run")]
    assert types == ["run_started", "eval_failed"]
    assert [file.name for file in (workspace.folder / "run/evals").iterdir()] == [
        "round_00.partial.jsonl"  # the one that was answered waits there
    ]


def test_a_few_failed_samples_count_as_wrong(workspace: Workspace) -> None:
    questions = [{"question": f"{i}?", "answer": "x"} for i in range(10)]
    workspace.write_rows("questions.jsonl", [*questions, long_question(1)])
    base_model = model_of_unknown_context(workspace)
    assert workspace.run("run", eval_threshold=0.0, base_model=base_model) == 0
    result = workspace.store("run").result(0)
    assert result is not None
    assert (result.n, result.num_failed) == (11, 1)
    assert "BadRequestError" in (result.samples[-1].error or "")


# --- EvalOps -----------------------------------------------------------------------------------


def loop_events(workspace: Workspace, run_dir: str) -> list[tuple[str, int | None]]:
    events = workspace.events(run_dir)
    return [(event["type"], event["round"]) for event in events if event["type"] != "evalops"]


@pytest.mark.parametrize(
    "replies",
    [
        pytest.param([OK_P], marks=thorough_only),
        [as_json({"error": "broken"}, 500), OK_P],
        [SLASH_REDIRECT, OK_C, SLASH_REDIRECT, OK_P],
        pytest.param([RATE_LIMITED, OK_P], marks=thorough_only),
        pytest.param([GARBAGE, GARBAGE, OK_P], marks=thorough_only),
    ],
    ids=["good", "flapping", "redirecting", "limiting", "garbage"],
)
def test_each_round_is_delivered_once_and_the_loop_does_not_notice(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, replies: list[Reply]
) -> None:
    monkeypatch.setenv("EVALOPS_API_KEY", "eoak_of_this_test")
    assert workspace.run("plain") == 0
    with fake_evalops() as server:
        server.play(*replies)
        enabled = {"evalops_enabled": True, "evalops_test_suite_id": "suite-1"}
        assert workspace.run("sent", **enabled, evalops_api_url=server.url) == 0
        delivered = [e["round"] for e in workspace.events("sent") if e.get("ok")]
        keys = {request.headers["idempotency-key"] for request in server.requests}
    assert sorted(delivered) == [0, 1, 2]
    assert len(keys) == 3
    assert loop_events(workspace, "sent") == loop_events(workspace, "plain")
    assert same_bits(workspace.weights("plain", 2), workspace.weights("sent", 2))


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(None, marks=thorough_only),
        HANG,
        pytest.param(as_json({"error": "broken"}, 500), marks=thorough_only),
    ],
)
def test_what_a_server_did_not_take_is_sent_by_sync(
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    reply: Reply | None,
) -> None:
    enabled = {"evalops_enabled": True, "evalops_test_suite_id": "suite-1"}
    assert workspace.run("no-key", **enabled) == 2
    assert "EVALOPS_API_KEY is not set" in capsys.readouterr().err
    monkeypatch.setenv("EVALOPS_API_KEY", "eoak_of_this_test")
    with fake_evalops() as server:
        url = server.url if reply is not None else "http://127.0.0.1:9"  # where nobody listens
        if reply is not None:
            server.play(reply)
        assert workspace.run("run", **enabled, evalops_api_url=url) == 0
        assert "sync" in capsys.readouterr().err
        assert not [event for event in workspace.events("run") if event.get("ok")]
        file = workspace.folder / "run/config.resolved.json"
        resolved = json.loads(file.read_text())
        resolved["config"]["evalops_api_url"] = server.url
        file.write_text(json.dumps(resolved))
        server.play(OK_P)
        assert evalops_client.main(["sync", str(workspace.folder / "run")]) == 0
        assert evalops_client.main(["sync", str(workspace.folder / "run")]) == 0
        sent = [json.loads(request.body)["name"].split(":")[0] for request in server.requests]
    assert sent == [f"Training Round {i}" for i in range(3)]
    assert [event["round"] for event in workspace.events("run") if event.get("ok")] == [0, 1, 2]


# --- two runs in one process ---------------------------------------------------------------------


def start_two(workspace: Workspace, **changes: Any) -> forked.Process:
    config = workspace.arguments("unused", **changes)[1]
    program = REPO / "tests" / "two_runs.py"
    pipe = subprocess.PIPE
    return forked.Process(
        program, config, workspace.folder, stdout=pipe, stderr=pipe, cwd=workspace.folder
    )


def test_two_runs_in_one_process_are_each_as_if_alone(workspace: Workspace) -> None:
    assert workspace.run("alone") == 0
    process = start_two(workspace)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert json.loads(out) == {"ends": ["stop_rounds"] * 2, "levels_put_back": True}
    for name in ("one", "two"):
        assert same_bits(workspace.weights(name, 2), workspace.weights("alone", 2))
        assert workspace.store(name).scores() == workspace.store("alone").scores()


def test_a_signal_is_heard_by_every_run_of_a_process(workspace: Workspace) -> None:
    process = start_two(workspace, steps_per_round=200, max_rounds=1)
    for name in ("one", "two"):
        wait_for(process, workspace.folder / name / "ledger.jsonl", "step", 2)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=120)
    assert json.loads(out) == {"ends": ["interrupted"] * 2, "levels_put_back": True}, errors
    for name in ("one", "two"):
        checkpoint = workspace.store(name).last_checkpoint()
        assert checkpoint is not None and checkpoint.sampler_path is None  # saved inside the round
