"""The skill's folder: its page as an agent follows it, its scripts, and the config in YAML.

Every block of SKILL.md is run in an empty folder, in order and in one shell, with the demo model in
the place of a Llama and a local task in the place of benchmarks that need the hub.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import forked
from conftest import REPO, SETTLED
from errors import ConfigError
from ledger.store import RunStore
from loop.planning.training_yaml import NEEDED, SETTINGS, load_settings
from loop.reports.console import resume_command
from loop.rounds.training import save_name
from rows.row_keys import as_question

SKILL = REPO / "skills" / "tinker-llm-chief-officer"
SCRIPTS = SKILL / "scripts"
TEMPLATE = SKILL / "templates" / "training-config.yaml"
LIMIT_S = 900  # for a hang; the page takes a quarter of a minute on two free cores
MAX_SCRIPT_LINES = 60
LR = "0.003"
DEMO_MODEL = str(REPO / "demo_model")
# What stands on the page -> what a machine without network and key has.
IN_PLACE_OF = {
    "meta-llama/Llama-3.1-8B-Instruct": DEMO_MODEL,
    "learning_rate: null": f"learning_rate: {LR}",  # nobody recommends one for the demo model
    "inspect_evals/ifeval,inspect_evals/gsm8k": "opposites.py@opposites",
    "LIMIT=200": "LIMIT=2",
}
TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import includes


@task
def opposites() -> Task:
    words = {"big": "small", "hot": "cold", "wet": "dry"}
    samples = [Sample(input=f"What is the opposite of {a}?", target=b) for a, b in words.items()]
    return Task(dataset=MemoryDataset(samples, name="opposites"), scorer=includes(), version=7)
"""
# The commands of the documents that the skill was made from, as far as they call its scripts; the
# second and the third have their places filled by variables.
OF_THE_SEEDS = (
    "python scripts/sl_trainer.py --config templates/training-config.yaml",
    "chmod +x scripts/run_inspect_evals.sh",
    'MODEL_PATH="$MODEL_PATH" MODEL_NAME="$MODEL_NAME" RENDERER_NAME="$RENDERER_NAME" '
    "./scripts/run_inspect_evals.sh",
    'python -m tinker_cookbook.eval.run_inspect_evals model_path="$MODEL_PATH" '
    'model_name="$MODEL_NAME" renderer_name="$RENDERER_NAME" tasks="$TASKS"',
)


def blocks() -> list[str]:
    text = (SKILL / "SKILL.md").read_text(encoding="utf-8")
    return re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def demo_rows(name: str) -> list[dict[str, str]]:
    with open(REPO / name, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [{"input": row["instruction"], "output": row["output"]} for row in rows]


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


# --- the page, block by block ---------------------------------------------------------------------


class Walk(NamedTuple):
    """The folder in which the page was followed, and what each of its blocks printed."""

    folder: Path
    exit_code: int
    printed: dict[str, str]
    errors: str

    def of(self, part: str) -> str:
        """What the one block that has `part` printed."""
        (found,) = (text for block, text in self.printed.items() if part in block)
        return found


def project_in(folder: Path) -> Path:
    """The repository, with a Python in its .venv that begins with everything imported."""
    project = folder / "project"
    (project / ".venv" / "bin").mkdir(parents=True)
    for entry in REPO.iterdir():
        if entry.name not in (".venv", ".git"):
            (project / entry.name).symlink_to(entry)
    python = project / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{forked.__file__}" --as "$@"\n')
    python.chmod(0o755)
    return project


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    away = tmp_path_factory.mktemp("away")
    folder = tmp_path_factory.mktemp("walk")
    project = project_in(away)
    lines, shown = ["set -eu"], blocks()
    for number, block in enumerate(shown):
        for name, instead in IN_PLACE_OF.items():
            block = block.replace(name, instead)
        block = block.replace("/path/to/this/repository", str(project))
        lines += [f"exec >block_{number}.txt", block]
        if number == 0:  # what the user brings, once the folders are there
            lines.append(f'cp -r "{away}/user/." .')
    rows = demo_rows("demo_pool.jsonl")
    write_rows(away / "user" / "data" / "eval.jsonl", rows[:6])
    (away / "user" / "opposites.py").write_text(TASK)
    with open(away / "user" / "data" / "rows.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["input", "output"])
        writer.writeheader()
        writer.writerows(rows[6:66])
    env = {name: value for name, value in os.environ.items() if name not in SETTLED}
    env |= {"HOME": str(away), "PYTHON": str(project / ".venv" / "bin" / "python")}
    with open(folder / "errors.txt", "w") as errors:
        command = ["bash", "-c", "\n".join(lines)]
        process = subprocess.Popen(command, cwd=folder, env=env, stderr=errors, process_group=0)
        try:
            exit_code = process.wait(LIMIT_S)
        finally:  # the service goes on where a block before its end has failed
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    files = [folder / f"block_{number}.txt" for number in range(len(shown))]
    printed = {
        block: file.read_text() for block, file in zip(shown, files, strict=True) if file.is_file()
    }
    return Walk(folder, exit_code, printed, (folder / "errors.txt").read_text())


def the_run(walk: Walk) -> RunStore:
    (run_dir,) = walk.folder.glob("runs/*-first")
    return RunStore.open(run_dir)


@pytest.mark.trains
def test_every_block_of_the_page_is_run_to_its_end(walk: Walk) -> None:
    assert walk.exit_code == 0, walk.errors[-4000:]
    assert len(walk.printed) == len(blocks()) == 14
    assert walk.of("ready") == "ready\n"
    assert "Still open" in (walk.folder / "plan" / "one_pager.md").read_text()
    plan = json.loads((walk.folder / "dry_run.json").read_text())
    assert plan["dry_run"] is True and plan["capacity"]["verdict"]


@pytest.mark.trains
def test_training_prints_its_losses_and_records_its_checkpoints(walk: Walk) -> None:
    store, printed = the_run(walk), walk.of("sl_trainer.py")
    trained = json.loads((store.run_dir / "trained.json").read_text())
    told = re.findall(r"^step (\d+): train_loss (\S+), val_loss (\S+), score", printed, re.M)
    assert [int(step) for step, _, _ in told] == [0, 5, 10]
    assert [one["step"] for one in trained["checkpoints"]] == [5, 10]
    assert told[0][1] == "none"
    for (_, train, val), one in zip(told[1:], trained["checkpoints"], strict=True):
        assert (train, val) == (f"{one['train_loss']:.4f}", f"{one['val_loss']:.4f}")
        assert one["state_path"].endswith(f"/weights/checkpoint-{one['step']:06d}")
    first = list(store.events("step", 1))
    nlls, tokens = [s["nll"] for s in first], [s["num_loss_tokens"] for s in first]
    mean = sum(n * t for n, t in zip(nlls, tokens, strict=True)) / sum(tokens)
    assert trained["checkpoints"][0]["train_loss"] == pytest.approx(mean)
    assert trained["lora"] == {
        **{"rank": 32, "alpha": 32, "train_mlp": True, "train_attn": True, "train_unembed": True},
    }
    assert trained["base_model"] == DEMO_MODEL and trained["data"]["files"]["train_file"]
    assert trained["settings"]["max_steps"] == 10
    decision = store.last_decision()
    assert decision is not None
    assert trained["recommended"]["checkpoint"].endswith(f"@round_{decision.best_round:02d}")
    assert f"sampler_path: {trained['recommended']['sampler_path']}" in printed


@pytest.mark.trains
def test_a_tenth_of_the_rows_is_held_out_where_no_file_is(walk: Walk) -> None:
    result = the_run(walk).result(0)
    assert result is not None
    (held_out,) = result.held_out
    assert held_out.name == "nll:split" and 0 < held_out.n < 20


@pytest.mark.trains
def test_benchmarks_are_run_by_the_cookbook_on_the_runs_own_weights(walk: Walk) -> None:
    summary = json.loads((walk.folder / "inspect-logs" / "first" / "summary.json").read_text())
    (task,) = summary["tasks"]
    assert (task["task"], task["version"], task["status"]) == ("opposites", 7, "success")
    assert task["num_samples"] == task["num_completed"] == task["limit"] == 2
    assert task["generation"]["temperature"] == 0 and task["generation"]["seed"] == 0
    assert set(task["scores"]) == {"includes/accuracy", "includes/stderr"}
    by_hand = walk.folder / "inspect-logs" / "by-hand"
    done = forked.run(SCRIPTS / "read_inspect_logs.py", by_hand, "1", timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    (again,) = json.loads(done.stdout)["tasks"]
    assert (again["task"], again["scores"]) == (task["task"], task["scores"])


@pytest.mark.trains
def test_a_file_of_questions_gives_one_dictionary(walk: Walk) -> None:
    metrics = json.loads(walk.of("eval_offline.py"))
    best = json.loads((the_run(walk).run_dir / "trained.json").read_text())["recommended"]
    assert metrics["model_path"] == best["sampler_path"]
    # The run has asked the same questions of the same weights, in the same way.
    assert (metrics["accuracy"], metrics["num_examples"]) == (best["score"], 6)
    assert metrics["interval_95"] == best["interval"]
    evaluation = RunStore.open(walk.folder / metrics["evaluation_dir"])
    assert evaluation.is_evaluation


@pytest.mark.trains
def test_the_walk_ends_with_a_report_and_a_documented_run(walk: Walk) -> None:
    compared = walk.of("eval_report.md")
    assert "@round_00" in compared and "## Recommended checkpoint" in compared
    assert (the_run(walk).run_dir / "report.html").is_file()
    document = (walk.folder / "examples.md").read_text()
    headings = re.findall(r"^#+ .*$", document, re.MULTILINE)
    assert headings[1:] == [
        "### How it was trained",
        "### Data",
        "### Results",
        "### Which round, and why",
        "### Known failures",
    ]
    assert "LoRA rank 32" in document and "rows.csv" in document
    assert str(walk.folder) not in document


def test_the_commands_of_the_documents_it_was_made_from_are_run() -> None:
    text = " ".join("".join(blocks()).replace("\\\n", " ").split())
    for command in OF_THE_SEEDS:
        assert command in text, command


# --- the scripts ----------------------------------------------------------------------------------


def test_scripts_stay_thin() -> None:
    for script in SCRIPTS.iterdir():
        assert len(script.read_text(encoding="utf-8").splitlines()) <= MAX_SCRIPT_LINES, script.name
        assert os.access(script, os.X_OK), script.name


def config_in(folder: Path, eval_every: int) -> Path:
    """The training config of 6 steps on the demo's data."""
    write_rows(folder / "val.jsonl", demo_rows("demo_pool.jsonl")[:4])
    path = folder / f"every_{eval_every}.yaml"
    path.write_text(
        f"base_model: {DEMO_MODEL}\nrenderer_name: llama3\nrun_name: same\n"
        f"train_file: {REPO / 'demo_data.jsonl'}\nval_file: val.jsonl\n"
        f"train_batch_size: 8\nnum_steps: 6\neval_every: {eval_every}\nlearning_rate: {LR}\n"
    )
    return path


def adapter_of(run_dir: Path, name: str) -> bytes:
    (file,) = run_dir.glob(f"checkpoints/*/sampler_weights/{name}/adapter_model.safetensors")
    return file.read_bytes()


@pytest.mark.trains
def test_the_adapter_is_that_of_the_loop(tmp_path: Path) -> None:
    """Bit for bit, in one round as in several."""
    config = {
        **{"base_model": DEMO_MODEL, "renderer_name": "llama3", "learning_rate": float(LR)},
        **{"train_file": str(REPO / "demo_data.jsonl"), "val_file": "val.jsonl", "max_rounds": 1},
        **{"eval_tasks": ["qa:val.jsonl"], "max_steps": 6, "steps_per_round": 6, "batch_size": 8},
    }
    yaml_files = [config_in(tmp_path, every) for every in (6, 3)]
    for file in yaml_files:
        arguments = ["--config", file, "--run-dir", file.stem]
        done = forked.run(SCRIPTS / "sl_trainer.py", *arguments, cwd=tmp_path, timeout=LIMIT_S)
        assert done.returncode == 0, done.stderr
    rows = [as_question(row) for row in demo_rows("demo_pool.jsonl")[:4]]
    (tmp_path / "loop.json").write_text(json.dumps(config))
    assert rows[0].keys() == {"question", "answer"}
    arguments = ["--config", "loop.json", "--run-dir", "loop"]
    done = forked.run(REPO / "trainer_with_eval.py", *arguments, cwd=tmp_path, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    of_loop = adapter_of(tmp_path / "loop", "round_01")
    assert adapter_of(tmp_path / "every_6", "checkpoint-000006") == of_loop
    assert adapter_of(tmp_path / "every_3", "checkpoint-000006") == of_loop


@pytest.mark.parametrize(
    ("started", "named"),
    [(SCRIPTS / "sl_trainer.py", "sl_trainer.py"), (REPO / "study.py", "trainer_with_eval.py")],
)
def test_what_goes_on_is_the_trainer_that_was_started(
    monkeypatch: pytest.MonkeyPatch, started: Path, named: str
) -> None:
    """The loop's own would go on as well, and leave out the record that the page reads."""
    monkeypatch.setattr(sys, "argv", [str(started)])
    assert re.search(rf"\b{named} --resume run$", resume_command(Path("run")))


@pytest.mark.parametrize(
    ("script", "arguments", "part"),
    [
        ("sl_trainer.py", ["--config", "gone.yaml"], "gone.yaml: there is no such file"),
        ("sl_trainer.py", ["--resume", "gone"], "gone"),
        ("eval_offline.py", ["--model-path", "gone", "--eval-file", "gone"], "--eval-file gone"),
        (
            "eval_offline.py",
            ["--model-path", "tinker://a/sampler_weights/b", "--eval-file", "here.jsonl"],
            "Give --model-name",
        ),
        ("document_run.py", ["gone"], "gone: not a run directory"),
    ],
)
def test_a_mistake_is_one_paragraph_and_exit_2(
    tmp_path: Path, script: str, arguments: list[str], part: str
) -> None:
    write_rows(tmp_path / "here.jsonl", [{"input": "a?", "output": "b"}])
    done = forked.run(SCRIPTS / script, *arguments, cwd=tmp_path, timeout=LIMIT_S)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and part in done.stderr
    assert done.stderr.count("\n") == 1 and not done.stdout


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"PYTHON": "/gone/python"}, "/gone/python: there is no Python"),
        ({"MODEL_PATH": ""}, "MODEL_PATH is not set"),
        ({"MODEL_NAME": ""}, "MODEL_NAME is not set"),
        ({"RENDERER_NAME": ""}, "RENDERER_NAME is not set"),
        ({"TINKER_API_KEY": ""}, "TINKER_API_KEY is not set"),
        ({"LIMIT": "many"}, "LIMIT is many"),
        ({"LOG_DIR": "."}, ". is there already"),
    ],
)
def test_what_benchmarks_lack_is_said_before_they_begin(changed: dict[str, str], part: str) -> None:
    given = {"MODEL_PATH": "tinker://a", "MODEL_NAME": "m", "RENDERER_NAME": "r"}
    env = {**os.environ, "PYTHON": sys.executable, **given, "TINKER_API_KEY": "tml-x", **changed}
    command = ["bash", str(SCRIPTS / "run_inspect_evals.sh")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and part in done.stderr


@pytest.mark.parametrize(
    ("status", "num_completed", "num_tasks"),
    [("error", 0, 1), ("success", 1, 1), ("success", 2, 2)],
)
def test_benchmarks_that_did_not_end_whole_are_no_result(
    tmp_path: Path, status: Any, num_completed: int, num_tasks: int
) -> None:
    from inspect_ai.log import (
        EvalConfig,
        EvalDataset,
        EvalLog,
        EvalResults,
        EvalSpec,
        write_eval_log,
    )

    spec = EvalSpec(
        created="2026-11-30T00:00:00+00:00",
        task="t",
        model="m",
        dataset=EvalDataset(),
        config=EvalConfig(),
    )
    results = EvalResults(total_samples=2, completed_samples=num_completed)
    log = EvalLog(status=status, eval=spec, results=None if status == "error" else results)
    write_eval_log(log, str(tmp_path / "one.eval"))
    script = SCRIPTS / "read_inspect_logs.py"
    done = forked.run(script, tmp_path, str(num_tasks), timeout=LIMIT_S)
    assert done.returncode == 1
    assert "these are no results" in done.stderr
    assert json.loads(done.stdout)["tasks"][0]["status"] == status


# --- the config in YAML ---------------------------------------------------------------------------

GIVEN = {
    **{"base_model": "m", "train_file": "t.jsonl", "val_file": "v.jsonl", "num_steps": 12},
    **{"eval_every": 5},
}


def written(tmp_path: Path, changed: dict[str, Any]) -> Path:
    path = tmp_path / "training-config.yaml"
    path.write_text(yaml.safe_dump({**GIVEN, **changed}, sort_keys=False))
    return path


def test_the_template_has_every_key_and_loads() -> None:
    given = yaml.safe_load(TEMPLATE.read_text())
    assert list(given) and set(given) == set(SETTINGS)
    config = load_settings(TEMPLATE).config
    assert (config.max_steps, config.steps_per_round, config.max_rounds) == (1000, 100, 10)
    assert config.use_recommended_lr and config.lora_rank == 32


def test_each_key_is_its_setting(tmp_path: Path) -> None:
    changed = {
        **{"run_name": "n", "eval_file": "q.jsonl", "lora_rank": 4, "train_mlp": False},
        **{"train_attn": False, "train_unembed": True, "max_seq_len": 77, "train_batch_size": 3},
        **{"learning_rate": 0.5, "weight_decay": 0.25, "seed": 9, "renderer_name": "r"},
        **{"base_url": "http://127.0.0.1:1"},
    }
    config = load_settings(written(tmp_path, changed), ["lora_rank=5"]).config
    values = {setting: getattr(config, setting) for setting in SETTINGS.values()}
    expected = {SETTINGS[key]: value for key, value in {**GIVEN, **changed}.items()}
    assert values == {**expected, "eval_tasks": ["qa:q.jsonl"], "lora_rank": 5}
    assert config.max_rounds == 3  # 5, 5 and 2 steps
    assert (config.lr_decay, config.checkpoint_names) == (1.0, "steps")
    assert not config.gate.stop and not config.gate.rollback
    assert config.mining.replay_share == 1 and not config.use_recommended_lr


def test_nothing_given_is_the_rows_of_val_file_and_the_recommended_rate(tmp_path: Path) -> None:
    config = load_settings(written(tmp_path, {"learning_rate": None})).config
    assert config.eval_tasks == ["qa:v.jsonl"] and config.held_out_tasks == ("nll:v.jsonl",)
    assert config.use_recommended_lr
    changed = {"val_file": None, "eval_file": "q.jsonl"}
    config = load_settings(written(tmp_path, changed)).config
    assert config.held_out_tasks == ("nll:split",) and config.data.val_share == 0.1


def test_what_follows_from_a_key_follows_from_its_override(tmp_path: Path) -> None:
    path = written(tmp_path, {"learning_rate": None})
    config = load_settings(path, ["max_steps=31", "learning_rate=0.01"]).config
    assert config.max_rounds == 7 and config.learning_rate == 0.01
    assert not config.use_recommended_lr
    config = load_settings(path, ["max_steps=31", "max_rounds=2"]).config
    assert config.max_rounds == 2 and config.use_recommended_lr


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"num_stesp": 3}, "line 6: num_stesp is no key of a training config; did you mean num_st"),
        ({"num_epochs": 1}, "line 6: num_epochs is 1, and num_steps says how long"),
        ({"data": {"columns": {}}}, "line 6: data is no key of a training config; what a file"),
        ({"max_steps": 3}, "line 6: max_steps is no key of a training config; here it is called"),
        ({"gate": {"alpha": 0.1}}, "it is a setting, given as an option: --set gate=VALUE"),
        ({"num_steps": None}, "line 4: num_steps is null"),
        ({"num_steps": "many"}, "line 4: num_steps: input should be a valid integer"),
        ({"num_steps": 0}, "line 4: num_steps: input should be greater than"),
        ({"eval_every": -5}, "line 5: eval_every: input should be greater than"),
        ({"train_batch_size": 1.5}, "line 6: train_batch_size: input should be a valid integer"),
        ({"learning_rate": "high"}, "line 6: learning_rate: input should be a valid number"),
        ({"val_file": ["v.jsonl"]}, "line 3: val_file is the name of a file"),
        ({"val_file": None}, "val_file and eval_file are both null"),
        ({"train_file": {}}, "line 2: train_file"),
        ({"max_seq_len": 2}, "line 6: max_seq_len: input should be greater than or equal to 8"),
        ({"lora_rank": 512}, "line 6: lora_rank: input should be less than or equal to 256"),
        ({"num_steps": 10**6, "eval_every": 10}, "line 5: 1,000,000 steps are 100,000 times"),
        ({"base_url": "no address"}, "line 6: base_url: input should be an address"),
    ],
)
def test_what_a_key_cannot_be_is_said_with_file_and_line(
    tmp_path: Path, changed: dict[str, Any], part: str
) -> None:
    path = written(tmp_path, changed)
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    message = str(caught.value)
    assert message.startswith(f"{path} ") and part in message and "\n" not in message


def test_a_second_length_is_refused_as_an_option_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--set num_epochs=2: num_steps says how long the run"):
        load_settings(written(tmp_path, {}), ["num_epochs=2"])


def test_columns_are_named_with_their_file(tmp_path: Path) -> None:
    named = {"file": "rows.csv", "columns": {"instruction": "Question", "output": "Answer"}}
    config = load_settings(written(tmp_path, {"train_file": [named]})).config
    (source,) = config.model_dump()["train_file"]
    assert source["columns"] == named["columns"]


def without(key: str) -> Iterator[str]:
    yield from (f"{name}: {value}" for name, value in GIVEN.items() if name != key)


@pytest.mark.parametrize("key", NEEDED)
def test_what_is_missing_is_named(tmp_path: Path, key: str) -> None:
    path = tmp_path / "c.yml"
    path.write_text("\n".join(without(key)))
    with pytest.raises(ConfigError, match=f"{key} is missing"):
        load_settings(path)


def test_a_number_in_exponents_is_one(tmp_path: Path) -> None:
    """YAML 1.1 reads it as a text."""
    path = tmp_path / "c.yaml"
    path.write_text("\n".join([*without(""), "learning_rate: 3e-4"]))
    assert load_settings(path).config.learning_rate == 3e-4


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (0, "checkpoint-000000"),
        (5, "checkpoint-000005"),
        (999, "checkpoint-000999"),
        (1000, "checkpoint-0001k"),
        (5000, "checkpoint-0005k"),
        (12_345, "checkpoint-012345"),
        (120_000, "checkpoint-0120k"),
    ],
)
def test_weights_are_named_by_their_step(step: int, name: str) -> None:
    assert save_name("steps", 3, step, True) == save_name("steps", 3, step, False) == name
    assert save_name("rounds", 3, step, True) == "round_03"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"input": "a?", "output": "b"}, {"question": "a?", "answer": "b"}),
        (
            {"prompt": "a?", "completion": "b", "grader": "exact"},
            {"question": "a?", "answer": "b", "grader": "exact"},
        ),
        # What has a context besides is refused for the key that is left over.
        (
            {"instruction": "a?", "input": "c", "output": "b"},
            {"question": "a?", "input": "c", "answer": "b"},
        ),
        ({"question": "a?", "input": "c", "output": "b"},) * 2,
        ({"input": "a?", "answer": "b"},) * 2,
    ],
)
def test_a_row_with_its_answer_is_a_question(
    fields: dict[str, str], expected: dict[str, str]
) -> None:
    assert as_question(fields) == expected
