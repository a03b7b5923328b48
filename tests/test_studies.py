"""Studies: what is generated of an experiment.yaml, what is refused, and what check says."""

from __future__ import annotations

import io
import json
import os
import runpy
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import forked
import study
from config_schema import load_and_validate_config
from conftest import REPO
from errors import ConfigError
from settings.yaml_file import dump_yaml, read_yaml
from studies.design.experiment import load_study
from studies.design.task_files import tasks_in

TASK = """\
from inspect_ai import Task, task
import inspect_ai as ia
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import includes

raise RuntimeError("a task file is read, not run")

@task
def domain_qa(split="test", max_samples=None):
    return Task(dataset=MemoryDataset([Sample(input="Say x", target="x")]), scorer=includes())

def helper():
    return domain_qa()
"""

TINKER = """\
experiment:
  name: ranks
  framework: tinker
  question: How does rank matter?
variables:
  lora_rank: [8, 16]
controls:
  base_model: somebody/model
  dataset: data/train.jsonl
  learning_rate: 3e-4
  lora_alpha: 32
  epochs: 3
evaluation:
  tasks_dir: evals/
  tasks:
    - name: domain
      file: domain_qa.py
      function: domain_qa
      args:
        split: test
"""

BASE = """\
output_dir: below
model:
  _component_: torchtune.models.llama3_2.lora_llama3_2_1b
  lora_rank: 64
  lora_alpha: 128
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: weights
  checkpoint_files: [model.safetensors]
  model_type: LLAMA3_2
  output_dir: ${output_dir}
dataset:
  _component_: torchtune.datasets.alpaca_cleaned_dataset
  packed: false
seed: null
batch_size: 4
optimizer:
  _component_: torch.optim.AdamW
  lr: 3e-4
lr_scheduler:
  num_warmup_steps: 100
epochs: 1
max_steps_per_epoch: null
gradient_accumulation_steps: 8
metric_logger:
  _component_: torchtune.training.metric_logging.DiskLogger
  log_dir: ${output_dir}/logs
"""

TORCHTUNE = """\
experiment:
  name: ranks
  framework: torchtune
framework_config:
  base_config_file: base.yaml
variables:
  lora_rank: [8, 16]
controls:
  learning_rate: 3e-4
  lora_alpha: 32
  epochs: 3
  batch_size: 2
  dataset: data/alpaca.json
  _override:
    checkpointer:
      output_dir: ${output_dir}/hf_model
evaluation:
  tasks:
    - name: domain
      file: domain_qa.py
      function: domain_qa
"""


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


def command(*arguments: str) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = study.main(list(arguments))
    return Outcome(code, out.getvalue(), err.getvalue())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study for the loop, valid as it stands."""
    made = tmp_path / "ranks"
    (made / "evals").mkdir(parents=True)
    (made / "data").mkdir()
    (made / "evals" / "domain_qa.py").write_text(TASK)
    write_rows(made, 64)
    (made / "base.yaml").write_text(BASE)
    (made / "r.json").write_text('{"max_rounds": 2}')
    (made / "experiment.yaml").write_text(TINKER)
    return made


def write_rows(folder: Path, number: int) -> None:
    rows = [{"instruction": f"Say {i}", "input": "", "output": str(i)} for i in range(number)]
    (folder / "data" / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "data" / "alpaca.json").write_text(json.dumps(rows))


def change(folder: Path, old: str, new: str, text: str = TINKER) -> None:
    assert old in text
    (folder / "experiment.yaml").write_text(text.replace(old, new))


def refused(folder: Path) -> str:
    """The one paragraph that a study is refused with, and nothing written."""
    outcome = command("generate", str(folder))
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert not (folder / "configs").exists()
    *warnings, line = outcome.err.splitlines()
    assert all(one.startswith("warning: ") for one in warnings)
    assert line.startswith("error: ")
    return line


# --- generate -------------------------------------------------------------------------------------


def test_a_study_becomes_configs_scripts_and_a_map(folder: Path) -> None:
    assert command("generate", str(folder)).code == 0
    configs = folder / "configs"
    assert sorted(path.name for path in configs.iterdir()) == [
        "eval_000.py",
        "eval_001.py",
        "run_mapping.yaml",
        "train_000.json",
        "train_001.json",
    ]
    for number, rank in enumerate((8, 16)):
        loaded = load_and_validate_config(configs / f"train_{number:03d}.json")
        config = loaded.config
        assert (config.lora_rank, config.num_epochs, config.learning_rate) == (rank, 3, 3e-4)
        assert (config.max_rounds, config.lr_decay) == (1, 1)
        assert (config.gate.rollback, config.gate.stop) == (False, False)
        assert loaded.find("train_file", str(config.train_file)).name == "train.jsonl"
        (task,) = config.eval_tasks
        assert config.evaluation.task_args == {task: {"split": "test"}}
        assert loaded.find("eval_tasks", task.rpartition("@")[0]).name == "domain_qa.py"
        compile((configs / f"eval_{number:03d}.py").read_text(), "eval", "exec")
    recorded = yaml.safe_load((configs / "run_mapping.yaml").read_text())
    assert recorded["total_runs"] == 2
    assert [run["params"] for run in recorded["runs"]] == [{"lora_rank": 8}, {"lora_rank": 16}]
    assert recorded["runs"][1]["results"] == "../results/run_001"
    assert set(recorded["inputs"]) == {"experiment.yaml", "data/train.jsonl", "evals/domain_qa.py"}


def numbers_of(folder: Path) -> dict[int, tuple[Any, ...]]:
    """The parameters and the seed that each number of the map stands for."""
    recorded = yaml.safe_load((folder / "configs" / "run_mapping.yaml").read_text())
    return {int(run["id"][4:]): (*run["params"].values(), run["seed"]) for run in recorded["runs"]}


def test_all_products_in_order_with_more_seeds_behind(folder: Path) -> None:
    more = "lora_rank: [8, 16]\n  batch_size: [2, 4]"
    text = TINKER.replace("epochs: 3", "epochs: 3\n  seed: 5")
    change(folder, "lora_rank: [8, 16]", more, text)
    command("generate", str(folder))
    first = yaml.safe_load((folder / "configs" / "run_mapping.yaml").read_text())["runs"]
    assert [tuple(run["params"].values()) for run in first] == [(8, 2), (8, 4), (16, 2), (16, 4)]
    text = (folder / "experiment.yaml").read_text()
    (folder / "experiment.yaml").write_text(text + "study:\n  seeds: 3\n")
    assert command("generate", str(folder), "--force").code == 0
    runs = yaml.safe_load((folder / "configs" / "run_mapping.yaml").read_text())["runs"]
    assert [run["params"] for run in runs] == [run["params"] for run in first] * 3
    assert [run["seed"] for run in runs] == [5] * 4 + [6] * 4 + [7] * 4
    config = load_and_validate_config(folder / "configs" / "train_011.json").config
    assert (config.seed, config.run_name) == (7, "ranks-run_011")


def test_a_dry_run_writes_nothing_and_shows_what_it_would(folder: Path) -> None:
    outcome = command("generate", str(folder), "--dry-run")
    assert outcome.code == 0
    assert "train_001.json" in outcome.out and '"lora_rank": 8' in outcome.out
    assert not (folder / "configs").exists()


def test_what_is_there_is_overwritten_by_force_alone(folder: Path) -> None:
    command("generate", str(folder))
    file = folder / "configs" / "train_001.json"
    before = file.read_text()
    again = command("generate", str(folder))
    assert again.code == 0 and "nothing is written" in again.out
    file.write_text("by hand")
    outcome = command("generate", str(folder))
    assert outcome.code == 2
    assert "train_001.json" in outcome.err and "--force" in outcome.err
    assert file.read_text() == "by hand"
    assert command("generate", str(folder), "--force").code == 0
    assert file.read_text() == before


def test_files_of_an_earlier_generate_are_named(folder: Path) -> None:
    command("generate", str(folder))
    change(folder, "[8, 16]", "[8]")
    outcome = command("generate", str(folder), "--force")
    assert outcome.code == 0
    for name in ("train_001.json", "eval_001.py"):
        assert f"{name}: left over from an earlier generate" in outcome.err
        assert name in command("check", str(folder)).out
    assert "train_000.json: left over" not in outcome.err


def test_a_hundred_trials_are_asked_about(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(folder, "[8, 16]", str(list(range(1, 101))))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))  # which is no terminal
    assert "--force" in refused(folder)
    change(folder, "[8, 16]", str(list(range(1, 100))))
    assert command("generate", str(folder)).code == 0


def test_a_person_may_say_no(folder: Path) -> None:
    change(folder, "[8, 16]", str(list(range(1, 101))))
    for answer, code in ((b"n\n", 2), (b"\n", 2), (b"y\n", 0)):
        own, other = os.openpty()
        os.write(own, answer)
        program = (REPO / "study.py", "generate", folder)
        with (
            os.fdopen(other, "rb", buffering=0) as terminal,
            forked.Process(*program, stdin=terminal, stderr=subprocess.PIPE) as process,
        ):
            _, said = process.communicate(120)
        os.close(own)
        assert process.returncode == code, said
        assert "100 trials would be generated" in said
        assert (folder / "configs").exists() == (code == 0)


def test_the_example_generates(tmp_path: Path) -> None:
    """The study of ranks that the repository has, as it stands."""
    outcome = command("generate", str(REPO / "examples" / "lora_rank_with_eval"), "--dry-run")
    assert outcome.code == 0
    assert "12 trials" in outcome.out
    assert "lora_alpha is 32 for every lora_rank" in outcome.err
    ignored = subprocess.run(
        ["git", "check-ignore", "-q", "examples/lora_rank_with_eval/configs/train_000.json"],
        cwd=REPO,
        check=False,
    )
    assert ignored.returncode == 0


def test_settings_may_come_from_a_config_of_the_loop(folder: Path) -> None:
    (folder / "shared").mkdir()
    own = {"base_model": "a/b", "train_file": "../data/train.jsonl", "batch_size": 4}
    (folder / "shared" / "own.json").write_text(json.dumps(own))
    section = "framework_config:\n  base_config_file: shared/own.json\nvariables:"
    text = TINKER.replace("  base_model: somebody/model\n  dataset: data/train.jsonl\n", "")
    (folder / "experiment.yaml").write_text(text.replace("variables:", section))
    assert command("generate", str(folder)).code == 0
    loaded = load_and_validate_config(folder / "configs" / "train_000.json")
    assert (loaded.config.base_model, loaded.config.batch_size) == ("a/b", 4)
    loaded.find("train_file", str(loaded.config.train_file))


def test_names_of_tasks_stand_for_them_in_settings(folder: Path) -> None:
    change(folder, "epochs: 3", "epochs: 3\n  evaluation:\n    limit: {domain: 7}")
    command("generate", str(folder))
    config = load_and_validate_config(folder / "configs" / "train_000.json").config
    assert config.evaluation.limit == {config.eval_tasks[0]: 7}


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "line", "parts"),
    [
        ("file: domain_qa.py", "file: other.py", 17, ["other.py", "there are domain_qa.py"]),
        ("function: domain_qa", "function: domain_q", 18, ["domain_q", "Did you mean domain_qa?"]),
        ("function: domain_qa", "function: helper", 18, ["is not under @task", "domain_qa"]),
        ("split: test", "spilt: test", 20, ["no argument spilt", "split, max_samples"]),
        ("epochs: 3", "lora_rank: 8", 12, ["variables.lora_rank (line 6)", "Keep one"]),
        ("epochs: 3", "epochs: 3\n  num_epochs: 2", 13, ["both num_epochs"]),
        ("lora_rank: [8, 16]", "epochs: [1, 2]", 12, ["variables.epochs (line 6)"]),
        ("[8, 16]", "[]", 6, ["empty list"]),
        ("[8, 16]", "8", 6, ["no list", "controls"]),
        ("[8, 16]", "[8, 8.0]", 6, ["twice", "study.seeds"]),
        ("[8, 16]", "[8, 0]", 6, ["run_001", "lora_rank"]),
        ("epochs: 3", "epochz: 3", 12, ["epochz", "did you mean epochs?"]),
        ("epochs: 3", "gate: {rul: mean}", 12, ["gate.rul", "did you mean gate.rule?"]),
        ("epochs: 3", "epochs: three", 12, ["num_epochs", "number"]),
        ("epochs: 3", "epochs: yes", 12, ["yes is a truth in YAML 1.1", "quotes"]),
        ("epochs: 3", "epochs: .inf", 12, ["no finite number"]),
        ("epochs: 3", "epochs: 3\n  epochs: 4", 13, ["stands twice", "line 12"]),
        ("epochs: 3", "packed: true", 12, ["packed is torchtune's"]),
        ("epochs: 3", "_override: {checkpointer: {a: 1}}", 12, ["checkpointer", "torchtune's"]),
        ("epochs: 3", "run_name: x", 12, ["the study names its trials"]),
        ("epochs: 3", "eval_tasks: [simple_qa]", 12, ["evaluation.tasks"]),
        ("epochs: 3", "val_file: ${output_dir}/x", 12, ["${output_dir}", "Write the value"]),
        ("epochs: 3", 'eval_tasks: ["${x}"]', 12, ["evaluation.tasks"]),
        ("epochs: 3", 'data: {columns: {a: ["${x}"]}}', 12, ["${x}", "Write the value"]),
        ("epochs: 3", "start_from: runs/none@best", 12, ["start_from", "study's folder"]),
        ("epochs: 3", "evaluation: {limit: {domian: 3}}", 12, ["evaluation.limit", "domian"]),
        ("epochs: 3", "evaluation: {test_tasks: [qa:no.jsonl]}", 12, ["test_tasks", "no.jsonl"]),
        ("epochs: 3", "evaluation: {test_on: pass}", 12, ['test_on is "pass"', "winner alone"]),
        ("epochs: 3", "_override: {evaluation: {test_on: end}}", 12, ["winner alone", "Take it"]),
        ("[8, 16]", "[8]\n  evaluation: [{test_on: end}]", 7, ["for its winner alone"]),
        ("[8, 16]", "[8]\n  evaluation.test_tasks: [[simple_qa]]", 7, ["in controls"]),
        ("epochs: 3", "evaluation: {test_on: winner}", 12, ["no sealed test to open"]),
        (
            *("epochs: 3", "evaluation: {test_tasks: [evals/domain_qa.py@domain_qa]}", 12),
            ["is domain of evaluation.tasks", "take it out"],
        ),
        ("evaluation:", "output:\n  results_dir: Configs\nevaluation:", 14, ["one folder"]),
        ("epochs: 3", "val_file: none.jsonl", 12, ["val_file", "none.jsonl", "study's folder"]),
        ("lora_alpha: 32", "lora_alpha: 16", 11, ["32 / lora_rank", "changes the scale"]),
        ("lora_alpha: 32", "lora_alpha: true", 11, ["32 / lora_rank"]),
        ("data/train.jsonl", "data/none.jsonl", 9, ["data/none.jsonl", "there is no"]),
        ("somebody/model", "../nothing", 8, ["../nothing", "no such directory"]),
        ("  base_model: somebody/model\n", "", 7, ["base_model is missing", "controls"]),
        ("name: ranks", "name: a/b", 2, ["experiment.name", "letters"]),
        ("name: domain\n", "name: ../x\n", 16, ["tasks.0.name", "files and folders"]),
        ("framework: tinker", "framework: trl", 3, ["experiment.framework"]),
        ("question:", "questoin:", 4, ["questoin", "did you mean question?"]),
        ("variables:", "variabels:", 5, ["variabels", "did you mean variables?"]),
        ("tasks_dir: evals/", "tasks_dir: tasks/", 14, ["no folder", "Make it"]),
        ("tasks_dir: evals/", "merge_adapters: true", 14, ["merge_adapters", "export.py"]),
        ("tasks_dir: evals/", "model_format: hf", 14, ["model_format", "Write adapter"]),
        ("tasks_dir: evals/", "checkpoint: first", 14, ["'last' or 'best'"]),
        ("evaluation:", "output:\n  results_dir: ../x\nevaluation:", 14, ["results_dir"]),
        ("evaluation:", "output:\n  results_dir: configs/x\nevaluation:", 14, ["one lies in"]),
        ("evaluation:", "study:\n  sed: 3\nevaluation:", 14, ["sed", "did you mean seeds?"]),
        ("evaluation:", "study:\n  seeds: 0\nevaluation:", 14, ["study.seeds"]),
        ("evaluation:", "study:\n  stop: early\nevaluation:", 14, ["study.stop", "halving"]),
        (
            "evaluation:",
            "study: {stop: halving}\nevaluation:",
            13,
            ["max_rounds is 1", "2 or more"],
        ),
        ("epochs: 3", "max_rounds: 1\nstudy: {stop: halving}", 12, ["max_rounds is 1"]),
        (
            *("[8, 16]", "[8]\n  max_rounds: [2, 3]\nstudy: {stop: halving}", 7),
            ["max_rounds cannot vary", "in controls"],
        ),
        (
            *(
                "[8, 16]",
                "[8]\nstudy: {stop: halving}\nframework_config: {base_config_file: r.json}",
                5,
            ),
            ["one combination", "more values"],
        ),
        *(
            ("[8, 16]", f"{values}\nstudy:\n  expects:\n    {said}", 9, parts)
            for values, said, parts in (
                ("[8, 16]", "lora_rnk: [rises]", ["no variable", "did you mean lora_rank?"]),
                ("[8, 16]", "base_model: [differs]", ["no variable", "known are lora_rank"]),
                ("[8, 16]", "lora_rank: [rises, falls]", ["both rises and falls", "Keep one"]),
                ("[8, 16]", "lora_rank: [differs, same]", ["both same and differs"]),
                ("[8, 9, 10]", "lora_rank: [diminishing, falls]", ["both falls and diminishing"]),
                ("[8, 16]", "lora_rank: [rises, rises]", ["a claim twice"]),
                ("[8, 16]", "lora_rank: [diminishing]", ["only 3 values or more", "has 2"]),
                ("[8]", "lora_rank: [same]", ["only 2 values or more", "has 1"]),
                ("[8, 16]", "x: []", ["expects.x", "at least one"]),
                ("[8, 16]", "lora_rank: rises", ["a list goes here"]),
                ("[8, 16]", "lora_rank: [grows]", ["'rises', 'falls'"]),
            )
        ),
        (
            *("[8, 16]", "[8]\n  train_mlp: [true, false]\nstudy: {expects: {train_mlp: [rises]}}"),
            *(8, ["is of numbers", "has the value true", "differs or same"]),
        ),
        *(
            ("evaluation:", f"study:\n  budget: {given}\nevaluation:", 14, parts)
            for given, parts in (
                ("{usd: 5}", ["study.budget.usd is set but study.budget.prices is not"]),
                (
                    '{usd: 5, prices: {as_of: "2026-01-01", usd_per_million_tokens: {}}}',
                    ["study.budget.prices", "no entry for 'somebody/model'"],
                ),
                ("{usd: 0}", ["study.budget.usd", "greater than 0"]),
            )
        ),
        ("epochs: 3", "budget: {usd: 5}", 12, ["budget.usd is set but budget.prices is not"]),
        ("evaluation:", "study:\n  arms: [{nam: a}]\nevaluation:", 14, ["did you mean name?"]),
        ("evaluation:", "study:\n  budget: {token: 5}\nevaluation:", 14, ["did you mean tokens?"]),
        ("evaluation:", "study:\n  arms: [{name: a, checkpoint: x}]\nevaluation:", 14, ["folder"]),
    ],
)
def test_a_wrong_file_is_one_message_with_its_line(
    folder: Path, old: str, new: str, line: int, parts: list[str]
) -> None:
    change(folder, old, new)
    message = refused(folder)
    assert f"experiment.yaml line {line}: " in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "it holds nothing"),
        (b"- a\n", "it holds a list"),
        (b"experiment: [1\nb: 2\n", "line 2 column 2: not valid YAML"),
        (b"experiment: \xff\n", "line 1: not UTF-8"),
        (b'experiment: "\\ud800"\n', "line 1: half of a surrogate pair"),
        (b'experiment: "\\0"\n', "line 1: a control character"),
        (b"experiment: !!python/object/apply:os.system [x]\n", "line 1: the tag"),
        (b"a: &a [*a]\n", "nested more than"),
        (b"a: " + b"[" * 2000, "nested more than"),
        (b"<<: {a: 1}\n", "merge keys"),
        (b"1: a\n", "a key is a word"),
        (b"a: 1e999\n", "too large for a number"),
        (b"a: 010\n", "octal in YAML 1.1"),
        (b"a: 1\n---\nb: 2\n", "another document"),
        (b"a: b\n" * 70_000, "longer than 256 KiB"),
    ],
)
def test_a_hostile_file_is_one_message(folder: Path, content: bytes, part: str) -> None:
    (folder / "experiment.yaml").write_bytes(content)
    assert part in refused(folder)


def test_a_bomb_of_aliases_is_bounded(folder: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    (folder / "experiment.yaml").write_text("\n".join(lines))
    assert "with its aliases followed" in refused(folder)


def test_too_many_trials_are_counted_and_not_made(folder: Path) -> None:
    values = str(list(range(1, 201)))
    change(folder, "lora_rank: [8, 16]", f"lora_rank: {values}\n  batch_size: {values}")
    assert "200 lora_rank x 200 batch_size with 1 seed come to 40,000 trials" in refused(folder)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for name in ("nothing", "x" * 300, "a\nb"):
        outcome = command("generate", str(tmp_path / name))
        assert outcome.code == 2 and "there is no such folder" in outcome.err
    assert "there is no such file" in command("check", str(tmp_path)).err


def test_numbers_and_texts_come_back_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text('a: 3e-4\nb: 2025-11-09\nc: "3e-4"\nd: ~\ne: !!str 5\nf: "yes"\ng: -1\n')
    content = read_yaml(file, "a file").content
    assert content == {
        **{"a": 3e-4, "b": "2025-11-09", "c": "3e-4", "d": None, "e": "5", "f": "yes", "g": -1}
    }
    file.write_text(dump_yaml(content))
    assert read_yaml(file, "a file").content == content


# --- task files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("from inspect_ai import task\n@task\ndef a(): ...", ["a"]),
        ("from inspect_ai import task\n@task(name='b')\ndef a(): ...", ["b"]),
        ("import inspect_ai as ia\n@ia.task\ndef a(): ...", ["a"]),
        ("import inspect_ai\n@inspect_ai.task(version=2)\ndef a(): ...", ["a"]),
        ("from inspect_ai import task as t\n@other\n@t\ndef a(): ...", ["a"]),
        ("from inspect_ai import task\nif True:\n  @task\n  def a(): ...", ["a"]),
        ("from inspect_ai import task\ntry:\n  x\nexcept E:\n  @task\n  def a(): ...", ["a"]),
        ("from inspect_ai import task\n@task\ndef a(): ...\ndef a(): ...", []),
        ("from inspect_ai import task\nclass C:\n  @task\n  def a(self): ...", []),
        ("def a(): ...", []),
    ],
)
def test_tasks_are_found_without_running_anything(source: str, names: list[str]) -> None:
    assert [one.registered for one in tasks_in(source.encode()).tasks] == names


@pytest.mark.parametrize(
    ("signature", "args", "part"),
    [
        ("a", "{}", "needs the argument a"),
        ("*, a", "{}", "needs the argument a"),
        ("a, /", "{a: 1}", "takes no argument a"),
        ("*a", "{a: 1}", "takes no argument a"),
        ("**k", "{a: 1}", None),
        ("a, b=1", "{a: 1}", None),
    ],
)
def test_arguments_are_those_that_the_task_takes(
    folder: Path, signature: str, args: str, part: str | None
) -> None:
    source = f"from inspect_ai import task\n@task\ndef domain_qa({signature}): ...\n"
    (folder / "evals" / "domain_qa.py").write_text(source)
    change(folder, "args:\n        split: test", f"args: {args}")
    if part is None:
        assert command("generate", str(folder)).code == 0
    else:
        assert part in refused(folder)


def test_a_task_file_that_is_no_python(folder: Path) -> None:
    (folder / "evals" / "domain_qa.py").write_text("def broken(:\n")
    assert "domain_qa.py line 1: not valid Python" in refused(folder)
    (folder / "evals" / "domain_qa.py").write_bytes(b"\0\xff")
    assert "domain_qa.py" in refused(folder)


# --- torchtune ------------------------------------------------------------------------------------


def test_torchtune_configs_are_merged_onto_a_base(folder: Path) -> None:
    (folder / "experiment.yaml").write_text(TORCHTUNE)
    outcome = command("generate", str(folder))
    assert outcome.code == 0, outcome.err
    text = (folder / "configs" / "train_001.yaml").read_text()
    made = yaml.safe_load(text)
    assert "64 rows: 4 steps an epoch, 12 in all" in text
    assert made["model"] == {
        "_component_": "torchtune.models.llama3_2.lora_llama3_2_1b",
        "lora_rank": 16,
        "lora_alpha": 32,
    }
    assert made["output_dir"] == str(folder / "results" / "run_001")
    assert made["optimizer"]["lr"] == 3e-4 and (made["epochs"], made["batch_size"]) == (3, 2)
    assert made["dataset"]["train_on_input"] is False
    assert made["dataset"]["source"] == "json"
    assert made["dataset"]["data_files"] == str(folder / "data" / "alpaca.json")
    assert made["checkpointer"]["output_dir"] == "${output_dir}/hf_model"
    assert "num_warmup_steps 100" in outcome.err
    assert "lora_alpha is 32 for every lora_rank" in outcome.err
    script = runpy.run_path(str(folder / "configs" / "eval_001.py"))
    assert script["TRIAL"]["weights"] == str(folder / "results" / "run_001" / "hf_model")


@pytest.mark.parametrize("name", ["run", "status", "report"])
def test_what_is_of_the_loop_alone_says_so(folder: Path, name: str) -> None:
    (folder / "experiment.yaml").write_text(TORCHTUNE)
    outcome = command(name, str(folder))
    assert outcome.code == 2 and "framework is torchtune" in outcome.err


@pytest.mark.parametrize(
    ("old", "new", "line", "parts"),
    [
        ("  batch_size: 2\n", "", 4, ["20 rows", "5 batches", "batch_size 4", "no step"]),
        ("epochs: 3", "epochz: 3", 11, ["epochz", "did you mean epochs?"]),
        ("evaluation:", "study: {stop: halving}\nevaluation:", 17, ["not run here", "Take it out"]),
        ("output_dir: ${", "outputdir: ${", 16, ["checkpointer.outputdir", "mean output_dir?"]),
        ("${output_dir}", "${outputdir}", 16, ["has no outputdir", "did you mean output_dir?"]),
        ("${output_dir}/", "${output_dir/", 16, ["not closed"]),
        ("${output_dir}/hf_model", "shared/weights", 16, ["overwrite each other's weights"]),
        ("${output_dir}/hf_model", "${oc.env:HOME}/x", 16, ["overwrite each other's weights"]),
        ("${output_dir}", "${checkpointer.output_dir}", 16, ["leads back to itself"]),
        ("${output_dir}/hf_model", "${}", 16, ["names nothing"]),
        ("[8, 16]", "[8, 0.5]", 7, ["lora_rank is 0.5", "whole numbers"]),
        ("base.yaml\nvariables", "data/alpaca.json\nvariables", 0, ["it holds a list"]),
        ("  lora_alpha: 32\n", "", 7, ["without lora_alpha"]),
        ("epochs: 3", "epochs: three", 11, ["epochs", "a text", "a number"]),
        ("epochs: 3", "max_steps_per_epoch: x", 11, ["max_steps_per_epoch", "whole number"]),
        ("epochs: 3", "output_dir: x", 11, ["the trial's own"]),
        ("epochs: 3", "dataset_template: x", 11, ["tokenizer.prompt_template"]),
        ("epochs: 3", "save_adapter_weights_only: true", 11, ["merged weights"]),
        ("data/alpaca.json", "data/none.json", 13, ["there is no"]),
        ("base_config_file: base.yaml", "base_config: a/b", 5, ["--no-deps", "tune cp"]),
        ("base_config_file: base.yaml", "base_config_file: b.yaml", 5, ["there is no"]),
        ("evaluation:", "evaluation:\n  checkpoint: best", 18, ["scores nothing"]),
        ("evaluation:", "evaluation:\n  model_format: adapter", 18, ["model_format: hf"]),
    ],
)
def test_a_wrong_torchtune_study_is_one_message(
    folder: Path, old: str, new: str, line: int, parts: list[str]
) -> None:
    write_rows(folder, 20)
    change(folder, old, new, TORCHTUNE)
    message = refused(folder)
    assert line == 0 or f"experiment.yaml line {line}: " in message
    assert all(part in message for part in parts), message


def test_a_missing_checkpointer_is_a_warning_with_the_lines(folder: Path) -> None:
    base = BASE.replace("FullModelHFCheckpointer", "FullModelMetaCheckpointer")
    (folder / "base.yaml").write_text(base)
    (folder / "experiment.yaml").write_text(TORCHTUNE)
    outcome = command("generate", str(folder))
    assert outcome.code == 0
    assert "_component_: torchtune.training.FullModelHFCheckpointer" in outcome.err


def test_another_component_takes_the_place_of_the_whole(folder: Path) -> None:
    logger = "metric_logger:\n      _component_: x.WandBLogger\n      project: p\n    checkpointer:"
    change(folder, "checkpointer:", logger, TORCHTUNE)
    outcome = command("generate", str(folder))
    made = yaml.safe_load((folder / "configs" / "train_000.yaml").read_text())
    assert made["metric_logger"] == {"_component_": "x.WandBLogger", "project": "p"}
    assert "with it goes log_dir" in outcome.err


def test_a_checkpointer_may_be_added(folder: Path) -> None:
    base = BASE.partition("checkpointer:")[0] + "dataset: {}\nbatch_size: 1\nepochs: 1\n"
    (folder / "base.yaml").write_text(base)
    text = TORCHTUNE.replace("  learning_rate: 3e-4\n", "")
    own = "checkpointer:\n      _component_: torchtune.training.FullModelHFCheckpointer\n      "
    change(folder, "checkpointer:\n      ", own, text)
    outcome = command("generate", str(folder))
    assert outcome.code == 0, outcome.err
    assert "lacks checkpoint_dir, checkpoint_files, model_type" in outcome.err
    change(folder, "checkpointer:\n      ", own.replace("ointer:", "ointr:"), text)
    assert "did you mean checkpointer?" in command("generate", str(folder)).err


def test_keys_inside_of_varied_values_are_checked(folder: Path) -> None:
    text = TORCHTUNE.replace("  learning_rate: 3e-4\n", "")
    change(folder, "[8, 16]", "[8]\n  optimizer: [{lr: 0.1}, {lrr: 0.2}]", text)
    message = refused(folder)
    assert "line 8: optimizer.lrr" in message and "did you mean lr?" in message
    change(folder, "[8, 16]", "[8]\n  optimizer: [{lr: 0.1}, {lr: 0.2}]", text)
    assert command("generate", str(folder)).code == 0
    made = yaml.safe_load((folder / "configs" / "train_001.yaml").read_text())
    assert made["optimizer"] == {"_component_": "torch.optim.AdamW", "lr": 0.2}


def test_seeds_count_up_from_what_the_base_has(folder: Path) -> None:
    (folder / "base.yaml").write_text(BASE.replace("seed: null", "seed: 40"))
    (folder / "experiment.yaml").write_text(TORCHTUNE + "study:\n  seeds: 2\n")
    assert command("generate", str(folder)).code == 0
    seeds = [
        yaml.safe_load((folder / "configs" / f"train_00{i}.yaml").read_text())["seed"]
        for i in range(4)
    ]
    assert seeds == [40, 40, 41, 41]


def test_a_stock_config_is_read_without_importing_torchtune(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an installed distribution, which is found by its list of files."""
    site = tmp_path / "site"
    (site / "recipes" / "configs" / "small").mkdir(parents=True)
    (site / "torchtune").mkdir()
    (site / "torchtune" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (site / "recipes" / "configs" / "small" / "lora.yaml").write_text(BASE)
    info = site / "torchtune-0.6.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchtune\nVersion: 0.6.1\n")
    (info / "RECORD").write_text("recipes/configs/small/lora.yaml,,\ntorchtune/__init__.py,,\n")
    monkeypatch.syspath_prepend(str(site))
    change(folder, "base_config_file: base.yaml", "base_config: small/lora", TORCHTUNE)
    assert command("generate", str(folder)).code == 0
    assert (folder / "configs" / "train_000.yaml").is_file()
    change(folder, "base_config_file: base.yaml", "base_config: small/lore", TORCHTUNE)
    outcome = command("check", str(folder))
    assert outcome.code == 2 and "did you mean small/lora?" in outcome.err


# --- check ----------------------------------------------------------------------------------------


def states(folder: Path) -> list[dict[str, Any]]:
    return json.loads(command("check", str(folder), "--json").out)["trials"]


def test_check_says_what_is_missing_and_stale(folder: Path) -> None:
    assert {one["config"]["state"] for one in states(folder)} == {"missing"}
    command("generate", str(folder))
    assert {one["config"]["state"] for one in states(folder)} == {"done"}
    assert {one["training"]["state"] for one in states(folder)} == {"missing"}
    change(folder, "[8, 16]", "[8, 32]")
    assert [(one["run"], one["config"]["state"]) for one in states(folder)] == [
        ("run_000", "done"),
        ("run_002", "missing"),
    ]
    told = command("check", str(folder)).out
    assert "changed since the study was generated: experiment.yaml" in told
    change(folder, "epochs: 3", "epochs: 2")
    assert [one["config"]["state"] for one in states(folder)] == ["stale", "stale"]
    write_rows(folder, 65)
    assert "data/train.jsonl" in command("check", str(folder)).out


def test_every_command_is_offered_and_tells_of_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        study.main(["--help"])
    assert set(study.COMMANDS) <= set(capsys.readouterr().out.split())
    for name in study.COMMANDS:
        with pytest.raises(SystemExit):
            study.main([name, "--help"])
        assert "the folder of experiment.yaml" in capsys.readouterr().out


def test_a_study_knows_its_folder(folder: Path) -> None:
    assert load_study(folder / "experiment.yaml").folder == folder
    with pytest.raises(ConfigError):
        load_study(folder / "data")


# --- a trial from its config to its results -------------------------------------------------------


def test_a_trial_is_trained_evaluated_and_checked(folder: Path, llama_dir: Path) -> None:
    """The commands that `generate` names, on a tiny model; then the data changes."""
    from trainer_with_eval import main as train

    source = TASK.replace('raise RuntimeError("a task file is read, not run")\n', "")
    (folder / "evals" / "domain_qa.py").write_text(source)
    write_rows(folder, 8)
    change(folder, "somebody/model", f"{llama_dir}\n  evaluation: {{max_tokens: 4}}")
    assert command("generate", str(folder)).code == 0
    configs, run_dir = folder / "configs", folder / "results" / "run_000"
    main = runpy.run_path(str(configs / "eval_000.py"))
    told = io.StringIO()
    with redirect_stderr(told):
        assert main["main"](main["HERE"], main["TRIAL"], []) == 2
    assert "run_000 is not trained" in told.getvalue()
    assert train(["--config", str(configs / "train_000.json"), "--run-dir", str(run_dir)]) == 0
    first, second = states(folder)
    assert first["training"]["state"] == "done" and second["training"]["state"] == "missing"
    assert first["tasks"]["domain"]["state"] == "missing"
    assert main["main"](main["HERE"], main["TRIAL"], []) == 0
    results = folder / "eval_results" / "run_000" / "domain"
    found = json.loads((results / "results.json").read_text())
    assert (found["n"], found["params"], found["args"]) == (1, {"lora_rank": 8}, {"split": "test"})
    assert (results / found["log"]).is_file()
    assert set(found["samples"]) == {"1"}
    assert states(folder)[0]["tasks"]["domain"]["state"] == "done"
    # Nothing is asked twice, unless that is what is asked for.
    assert main["main"](main["HERE"], main["TRIAL"], []) == 0
    assert not (folder / "results" / "run_000-evaluation-2").exists()
    text = (folder / "experiment.yaml").read_text()
    (folder / "experiment.yaml").write_text(text.replace("epochs: 3", "epochs: 2"))
    assert states(folder)[0]["training"]["why"] == "trained with another num_epochs"
    (folder / "experiment.yaml").write_text(text)
    (folder / "evals" / "domain_qa.py").write_text(source + "\n# changed\n")
    assert states(folder)[0]["tasks"]["domain"]["state"] == "stale"
    write_rows(folder, 9)
    assert states(folder)[0]["training"]["state"] == "stale"
