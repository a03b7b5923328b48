"""The files of a study when it changes: whose number is whose, and what is written over what."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from config_schema import load_and_validate_config
from conftest import REPO
from errors import ConfigError
from ledger.store import RunStore
from studies.design.experiment import load_study
from studies.design.generating import bring_up_to_date, generation_of
from studies.design.study_section import check_expectations
from test_studies import (
    BASE,
    TINKER,
    TORCHTUNE,
    change,
    command,
    folder,
    numbers_of,
    states,
    write_rows,
)
from trainer_with_eval import main as train

__all__ = ["folder"]  # the fixture

MORE_SEEDS = "study:\n  seeds: 3\n"


def generated(folder: Path, *flags: str) -> str:
    outcome = command("generate", str(folder), *flags)
    assert outcome.code == 0, outcome.err
    return outcome.err


def refusal(folder: Path, *flags: str) -> str:
    outcome = command("generate", str(folder), *flags)
    assert (outcome.code, outcome.out) == (2, ""), outcome
    return outcome.err.splitlines()[-1]


def mapping_of(folder: Path) -> Path:
    return folder / "configs" / "run_mapping.yaml"


def begin(folder: Path, run: str, params: dict[str, Any], seed: int | None) -> None:
    """A line of the record that a trial was begun."""
    (folder / "results").mkdir(exist_ok=True)
    event = {"type": "trial_begun", "run": run, "params": params, "seed": seed}
    with open(folder / "results" / "study.jsonl", "a") as file:
        file.write(json.dumps({"type": "study_begun"}) + "\n" + json.dumps(event) + "\n")


# --- numbers --------------------------------------------------------------------------------------


def test_a_trial_keeps_its_number_whatever_is_added_dropped_or_moved(folder: Path) -> None:
    generated(folder)
    assert numbers_of(folder) == {0: (8, 0), 1: (16, 0)}
    for values, numbers in (
        ("[4, 8, 16]", {0: (8, 0), 1: (16, 0), 2: (4, 0)}),
        ("[16, 32]", {1: (16, 0), 3: (32, 0)}),
        ("[32]", {3: (32, 0)}),
        ("[64, 32, 8, 4]", {0: (8, 0), 2: (4, 0), 3: (32, 0), 4: (64, 0)}),
    ):
        change(folder, "[8, 16]", values)
        generated(folder)
        assert numbers_of(folder) == numbers
        assert [int(one["run"][4:]) for one in states(folder)] == list(numbers)


def test_more_seeds_leave_the_first_ones_as_they_were(folder: Path) -> None:
    generated(folder)
    names = ("train_000.json", "train_001.json", "eval_000.py", "eval_001.py")
    before = [(folder / "configs" / name).read_text() for name in names]
    (folder / "experiment.yaml").write_text(TINKER + MORE_SEEDS)
    generated(folder)
    assert [(folder / "configs" / name).read_text() for name in names] == before
    assert numbers_of(folder) == {
        **{0: (8, 0), 1: (16, 0), 2: (8, 1), 3: (16, 1), 4: (8, 2), 5: (16, 2)}
    }
    # A first seed that was a replicate keeps that one's number; what counts beyond is new.
    text = (TINKER + MORE_SEEDS).replace("epochs: 3", "epochs: 3\n  seed: 2")
    (folder / "experiment.yaml").write_text(text)
    generated(folder)
    assert numbers_of(folder) == {
        **{4: (8, 2), 5: (16, 2), 6: (8, 3), 7: (16, 3), 8: (8, 4), 9: (16, 4)}
    }
    (folder / "experiment.yaml").write_text(TINKER + MORE_SEEDS)
    generated(folder)
    assert list(numbers_of(folder)) == [0, 1, 2, 3, 4, 5]


def test_seeds_among_the_variables_are_seeds(folder: Path) -> None:
    change(folder, "[8, 16]", "[8]\n  seed: [3, 1]")
    generated(folder)
    change(folder, "[8, 16]", "[8]\n  seed: [1, 2, 3]")
    generated(folder)
    assert numbers_of(folder) == {0: (8, 3, 3), 1: (8, 1, 1), 2: (8, 2, 2)}


def test_torchtunes_seed_by_chance_stays_one(folder: Path) -> None:
    assert "seed: null" in BASE
    (folder / "experiment.yaml").write_text(TORCHTUNE)
    generated(folder)
    before = (folder / "configs" / "train_000.yaml").read_text()
    (folder / "experiment.yaml").write_text(TORCHTUNE + MORE_SEEDS)
    generated(folder)
    assert (folder / "configs" / "train_000.yaml").read_text() == before
    assert [seed for _, seed in numbers_of(folder).values()] == [None, None, 1, 1, 2, 2]
    (folder / "base.yaml").write_text(BASE.replace("seed: null", "seed: 0"))
    (folder / "experiment.yaml").write_text(TORCHTUNE)
    generated(folder)
    assert numbers_of(folder) == {6: (8, 0), 7: (16, 0)}


def test_the_record_says_what_was_paid_for(folder: Path) -> None:
    """Also without the map, and before it where they differ; what a kill tore is no line."""
    begin(folder, "run_004", {"lora_rank": 16}, None)
    begin(folder, "arm_base", {}, None)
    with open(folder / "results" / "study.jsonl", "a") as file:
        file.write('{"type": "trial_beg')
    generated(folder)
    assert numbers_of(folder) == {0: (8, 0), 4: (16, 0)}
    (folder / "results" / "study.jsonl").unlink()
    begin(folder, "run_000", {"lora_rank": 99}, 0)
    generated(folder)
    assert numbers_of(folder) == {1: (8, 0), 4: (16, 0)}
    with open(folder / "results" / "study.jsonl", "a") as file:
        file.write("null\n")
    assert "study.jsonl line 3: it is no line of a study's record" in refusal(folder)


@pytest.mark.parametrize("where", ["results/run_000-evaluation", "eval_results/run_000"])
def test_a_number_with_results_is_given_to_nobody_else(folder: Path, where: str) -> None:
    (folder / where).mkdir(parents=True)
    told = generated(folder)
    assert "nothing says which trial the results of run_000 are of" in told
    assert numbers_of(folder) == {1: (8, 0), 2: (16, 0)}
    assert "nothing says" not in generated(folder)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\xff",
        b"runs: [",
        b"runs: {}\n",
        b"experiment_name: x\n",
        b"runs:\n- {id: run_0, params: {}}\n",
        b"runs:\n- {id: run_000, params: 3}\n",
        b"runs:\n- {id: run_000, params: {a: 1}}\n- {id: run_000, params: {a: 2}}\n",
        b"runs:\n- {id: run_000, params: {a: 1}}\n- {id: run_001, params: {a: 1.0}}\n",
        b"runs: " + b"[" * 5000,
    ],
)
def test_a_damaged_map_is_not_replaced_where_there_are_results(folder: Path, damage: bytes) -> None:
    generated(folder)
    mapping_of(folder).write_bytes(damage)
    assert "run_mapping.yaml" in refusal(folder)
    (folder / "results" / "run_001").mkdir(parents=True)
    for flags in ([], ["--force"]):
        message = refusal(folder, *flags)
        assert "run_mapping.yaml: it cannot be read" in message and "Put back" in message
    assert command("check", str(folder)).code == 2
    assert mapping_of(folder).read_bytes() == damage
    (folder / "results" / "run_001").rmdir()
    assert "--force" in refusal(folder)
    generated(folder, "--force")
    assert list(numbers_of(folder)) == [0, 1]


def test_a_map_of_an_earlier_version_is_understood(folder: Path) -> None:
    """It has no trials that were dropped, and no seed where the study has one alone."""
    change(folder, "epochs: 3", "epochs: 3\n  seed: 7")
    mapping_of(folder).parent.mkdir()
    mapping_of(folder).write_text("runs:\n- id: run_003\n  params: {lora_rank: 16}\n  seed: null\n")
    generated(folder)
    assert numbers_of(folder) == {0: (8, 7), 3: (16, 7)}


# --- the hypothesis -------------------------------------------------------------------------------


def test_a_hypothesis_may_be_said_so_that_it_can_be_tested(folder: Path) -> None:
    varied = "[8, 16, 32.5]\n  train_mlp: [true, false]\n  renderer_name: [a]"
    said = "{lora_rank: [rises, diminishing, differs], train_mlp: [same]}"
    change(folder, "[8, 16]", f"{varied}\nstudy: {{expects: {said}}}")
    expects = load_study(folder).experiment.study.expects
    assert expects == {"lora_rank": ["rises", "diminishing", "differs"], "train_mlp": ["same"]}
    check_expectations(load_study(folder))


# --- what is written over what --------------------------------------------------------------------


def test_only_what_was_edited_by_hand_is_refused(folder: Path) -> None:
    generated(folder)
    change(folder, "epochs: 3", "epochs: 2")
    generated(folder)
    config = folder / "configs" / "train_001.json"
    assert json.loads(config.read_text())["num_epochs"] == 2
    change(folder, "epochs: 3", "epochs: 4")
    for name in ("train_001.json", "eval_001.py", "train_000.json"):
        file = folder / "configs" / name
        before = file.read_bytes()
        # Other ends of lines are an edit as well.
        edited = before.replace(b"\n", b"\r\n") if name == "train_000.json" else b"by hand"
        file.write_bytes(edited)
        assert f"{name}: it is there, neither as generate wrote it" in refusal(folder)
        found = next(one for one in states(folder) if one["run"][4:] in name)
        assert found["config"]["state"] == "stale" and name in found["config"]["why"]
        shown = command("generate", str(folder), "--dry-run").out.splitlines()
        assert any(line.startswith("edited by hand") and name in line for line in shown)
        assert file.read_bytes() == edited
        file.write_bytes(before)
    config.write_text("by hand")
    generated(folder, "--force")
    assert json.loads(config.read_text())["num_epochs"] == 4


def test_an_edit_that_is_what_the_study_says_by_now_is_no_edit(folder: Path) -> None:
    generated(folder)
    config = folder / "configs" / "train_000.json"
    config.write_text(config.read_text().replace('"num_epochs": 3', '"num_epochs": 2'))
    assert "train_000.json" in refusal(folder)
    change(folder, "epochs: 3", "epochs: 2")
    generated(folder)


def test_a_trial_that_comes_back_finds_its_files_as_its_own(folder: Path) -> None:
    generated(folder)
    change(folder, "[8, 16]", "[8]")
    generated(folder)
    change(folder, "epochs: 3", "epochs: 2")
    generated(folder)
    assert json.loads((folder / "configs" / "train_001.json").read_text())["num_epochs"] == 2
    change(folder, "[8, 16]", "[8]")
    generated(folder)
    (folder / "configs" / "train_001.json").write_text("by hand")
    change(folder, "epochs: 3", "epochs: 4")
    assert "train_001.json" in refusal(folder)


def test_files_of_nobody_known_are_kept(folder: Path) -> None:
    (folder / "configs").mkdir()
    (folder / "configs" / "train_001.json").write_text("mine")
    with pytest.raises(ConfigError, match=r"train_001\.json"):
        bring_up_to_date(generation_of(folder))
    assert [path.name for path in (folder / "configs").iterdir()] == ["train_001.json"]
    assert len(bring_up_to_date(generation_of(folder), is_forced=True).edited) == 1
    assert not bring_up_to_date(generation_of(folder)).new


def test_a_generate_that_was_cut_short_left_no_edits(folder: Path) -> None:
    """Nor one that was interrupted because the study had to be changed."""
    for begins in (True, False):
        (folder / "configs" / "train_001.json.tmp").mkdir(parents=True)  # so it cannot be written
        assert command("generate", str(folder)).code == 1
        assert (folder / "configs" / "train_000.json").exists()
        assert mapping_of(folder).exists() != begins
        change(folder, "epochs: 3", "epochs: 4")
        assert command("generate", str(folder)).code == 1
        (folder / "configs" / "train_001.json.tmp").rmdir()
        change(folder, "epochs: 3", "epochs: 2")
        assert "left over" not in generated(folder)
        assert sorted(path.suffix for path in (folder / "configs").iterdir()) == [
            *(".json", ".json", ".py", ".py", ".yaml")
        ]
        change(folder, "epochs: 3", "epochs: 5")


# --- the sealed test ------------------------------------------------------------------------------


def test_every_trial_carries_the_sealed_test_for_the_winner(folder: Path) -> None:
    (folder / "data" / "test.jsonl").write_text('{"question": "Say 70", "answer": "70"}\n')
    (folder / "sealed.py").write_text((folder / "evals" / "domain_qa.py").read_text())
    names = "[qa:data/test.jsonl, sealed.py@domain_qa]"
    settings = f"{{test_tasks: {names}, limit: {{sealed.py@domain_qa: 3, domain: 2}}}}"
    change(folder, "epochs: 3", f"epochs: 3\n  evaluation: {settings}")
    generated(folder)
    for number in (0, 1):
        loaded = load_and_validate_config(folder / "configs" / f"train_{number:03d}.json")
        evaluation = loaded.config.evaluation
        assert evaluation.test_on == "winner"
        assert evaluation.test_tasks == ["qa:../data/test.jsonl", "../sealed.py@domain_qa"]
        assert evaluation.limit == {"../sealed.py@domain_qa": 3, loaded.config.eval_tasks[0]: 2}
        loaded.find("evaluation.test_tasks", "../data/test.jsonl")
    recorded = yaml.safe_load(mapping_of(folder).read_text())
    assert {"data/test.jsonl", "sealed.py"} <= set(recorded["inputs"])


def test_the_sealed_test_may_stand_in_the_base_config(folder: Path) -> None:
    (folder / "shared").mkdir()
    (folder / "shared" / "test.jsonl").write_text('{"question": "Say 70", "answer": "70"}\n')
    section = "framework_config:\n  base_config_file: shared/own.json\nvariables:"
    change(folder, "variables:", section)
    for given, expected in (({}, "winner"), ({"test_on": "end"}, None)):
        own = {"evaluation": {"test_tasks": ["qa:test.jsonl"], **given}}
        (folder / "shared" / "own.json").write_text(json.dumps(own))
        if expected is None:
            assert "own.json: evaluation.test_on is" in refusal(folder)
            continue
        generated(folder)
        config = load_and_validate_config(folder / "configs" / "train_000.json").config
        assert config.evaluation.test_on == expected
        assert config.evaluation.test_tasks == ["qa:../shared/test.jsonl"]


# --- trials of several rounds ---------------------------------------------------------------------


def test_rounds_of_a_trial_are_one_round_in_parts(folder: Path, llama_dir: Path) -> None:
    """Trained: the examples of four rounds are those of one with as many steps, in order."""
    (folder / "questions.jsonl").write_text(
        '{"question": "Say 70", "answer": "70", "topic": "x"}\n'
    )
    text = TINKER.partition("evaluation:")[0].replace("somebody/model", str(llama_dir))
    text = text.replace("[8, 16]", "[8]\n  max_rounds: [1, 4]").replace("epochs: 3", "epochs: 2")
    text += "  eval_tasks: [qa:questions.jsonl]\n  evaluation: {max_tokens: 2}\n"
    (folder / "experiment.yaml").write_text(text)
    generated(folder)
    picks = []
    for number, num_rounds in enumerate((1, 4)):
        config = folder / "configs" / f"train_{number:03d}.json"
        assert ("mining" in json.loads(config.read_text())) == (num_rounds > 1)
        run_dir = folder / "results" / f"run_{number:03d}"
        assert train(["--config", str(config), "--run-dir", str(run_dir)]) == 0
        store = RunStore.open(run_dir)
        assert store.num_rounds == num_rounds
        selections = [store.selection(round_no) for round_no in range(1, num_rounds + 1)]
        assert all(selection is not None for selection in selections)
        picks.append([pick.example_id for one in selections if one for pick in one.picks])
    assert picks[0] == picks[1]
    assert len(picks[0]) == 128


def test_what_a_study_says_of_mining_is_kept(folder: Path) -> None:
    for given, replay_share in (
        ("max_rounds: 2", 1.0),
        ("max_rounds: 2\n  mining: {new_share: 0.5}", 0.2),
        ("max_rounds: 2\n  _override: {mining: {strategy: topics}}", 0.2),
        ("max_rounds: 1", 0.2),
    ):
        change(folder, "epochs: 3", f"epochs: 3\n  {given}")
        generated(folder)
        config = load_and_validate_config(folder / "configs" / "train_000.json").config
        assert config.mining.replay_share == replay_share


def test_halving_has_rounds_to_drop_trials_between(folder: Path) -> None:
    change(folder, "epochs: 3", "epochs: 3\n  max_rounds: 4\nstudy: {stop: halving, seeds: 2}")
    generated(folder)
    assert len(numbers_of(folder)) == 4


# --- arms that are not trained --------------------------------------------------------------------

ARMS = """\
study:
  arms:
    - name: base
    - {name: short, prompt: "Answer with\\none word."}
    - {name: old, checkpoint: old/run@round_02}
    - {name: both, checkpoint: old/run, prompt: Be kind.}
    - {name: far, checkpoint: "tinker://run/sampler_weights/x"}
"""


def test_arms_are_asked_as_the_first_trial_is(folder: Path) -> None:
    (folder / "old" / "run").mkdir(parents=True)
    text = TINKER.replace(
        "epochs: 3", "epochs: 3\n  evaluation: {max_tokens: 7, system_prompt: Go}"
    )
    (folder / "experiment.yaml").write_text(text + ARMS)
    arms = generation_of(folder).arms
    generated(folder)
    old = str(folder / "old" / "run")
    assert [(one.name, one.prompt, one.checkpoint) for one in arms] == [
        ("base", None, None),
        ("short", "Answer with\none word.", None),
        ("old", None, f"{old}@round_02"),
        ("both", "Be kind.", f"{old}@best"),
        ("far", None, "tinker://run/sampler_weights/x"),
    ]
    first = json.loads((folder / "configs" / "train_000.json").read_text())
    for arm, prompt in zip(arms, ("Go", arms[1].prompt, "Go", "Be kind.", "Go"), strict=True):
        assert arm.config_file == folder / "configs" / f"arm_{arm.name}.json"
        assert arm.config_file.read_text() == arm.config_text
        assert arm.run_dir == folder / "results" / f"arm_{arm.name}"
        found = json.loads(arm.config_text)
        assert found.pop("run_name") == f"ranks-arm_{arm.name}"
        assert found["evaluation"].pop("system_prompt") == prompt
        evaluation = {**first["evaluation"]}
        del evaluation["system_prompt"]
        assert found == {k: v for k, v in first.items() if k != "run_name"} | {
            "evaluation": evaluation
        }
        assert load_and_validate_config(arm.config_file).config.evaluation.max_tokens == 7
    recorded = yaml.safe_load(mapping_of(folder).read_text())["arms"]
    assert [(one["name"], one["file"], one["results"]) for one in recorded] == [
        (arm.name, f"arm_{arm.name}.json", f"../results/arm_{arm.name}") for arm in arms
    ]
    assert [one["checkpoint"] for one in recorded][2:4] == ["old/run@round_02", "old/run"]
    assert str(folder) not in mapping_of(folder).read_text()


def test_arms_are_evaluated_by_their_configs(
    folder: Path, llama_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    """Weights of a trial as an arm, with a prompt of its own before what the trial was asked."""
    write_rows(folder, 8)
    (folder / "questions.jsonl").write_text(json.dumps({"question": "Say 70", "answer": "70"}))
    text = TINKER.partition("evaluation:")[0].replace("somebody/model", str(llama_dir))
    text += "  eval_tasks: [qa:questions.jsonl]\n  evaluation: {max_tokens: 2}\n"
    (folder / "experiment.yaml").write_text(text)
    generated(folder)
    run_dir, configs = folder / "results" / "run_000", folder / "configs"
    assert train(["--config", str(configs / "train_000.json"), "--run-dir", str(run_dir)]) == 0
    arms = "{name: old, checkpoint: results/run_000, prompt: Be kind.}, {name: same, prompt: Say.}"
    (folder / "experiment.yaml").write_text(f"{text}study: {{arms: [{arms}]}}\n")
    generated(folder)
    num_tokens = {}
    for arm in generation_of(folder).arms:
        checkpoint = arm.checkpoint or f"{run_dir}@round_00"
        arguments = ["--config", str(arm.config_file), "--run-dir", str(arm.run_dir)]
        assert train([*arguments, "--evaluate", checkpoint]) == 0
        assert repr(arm.prompt) in capsys.readouterr().err
        (result,) = RunStore.open(arm.run_dir).comparable_results()
        num_tokens[arm.name] = result.tasks[0].samples[0].num_prompt_tokens
    before = RunStore.open(run_dir).result(0)
    assert before is not None
    assert num_tokens["old"] > num_tokens["same"] > before.tasks[0].samples[0].num_prompt_tokens


def test_an_arm_may_be_added_taken_out_and_brought_back(folder: Path) -> None:
    (folder / "experiment.yaml").write_text(TINKER)
    generated(folder)
    before = (folder / "configs" / "train_000.json").read_text()
    arm = folder / "configs" / "arm_base.json"
    (folder / "experiment.yaml").write_text(TINKER + "study: {arms: [{name: base}]}\n")
    generated(folder)
    assert (folder / "configs" / "train_000.json").read_text() == before
    (folder / "results" / "arm_base").mkdir(parents=True)
    (folder / "experiment.yaml").write_text(TINKER)
    assert "arm_base.json: left over" in generated(folder)
    assert "results/arm_base" in command("check", str(folder)).out
    text = (TINKER + "study: {arms: [{name: base}]}\n").replace("epochs: 3", "epochs: 2")
    (folder / "experiment.yaml").write_text(text)
    generated(folder)
    assert json.loads(arm.read_text())["num_epochs"] == 2
    assert "results/arm_base" not in command("check", str(folder)).out
    arm.write_text("by hand")
    assert "arm_base.json: it is there" in refusal(folder)


@pytest.mark.parametrize(
    ("arms", "varied", "parts"),
    [
        ("[{name: a}, {name: b}]", "", ["b and a are the same", "Take one out"]),
        ("[{name: a, prompt: Go}, {name: b}]", "", ["b and a are the same"]),
        (
            "[{name: a, checkpoint: old/run}, {name: b, checkpoint: ./old/../old/run@best}]",
            *("", ["b and a are the same"]),
        ),
        ("[{name: a}, {name: A, prompt: x}]", "", ["the name A twice"]),
        ('[{name: a, prompt: " "}]', "", ["arms.0.prompt is empty"]),
        ('[{name: a, prompt: "a\\tb\\x85"}]', "", ["control character"]),
        ("[{name: a, checkpoint: old/run@last}]", "", ["arms.0.checkpoint", "RUN_DIR@best"]),
        ("[{name: a, checkpoint: old/none@best}]", "", ["no folder"]),
        ("[{name: a}]", "base_model: [a/b, c/d]", ["base_model varies", "controls"]),
        ("[{name: a}]", "renderer_name: [llama3, qwen3]", ["renderer_name varies"]),
        ("[{name: a}]", "evaluation.temperature: [0.5, 1.0]", ["evaluation.temperature varies"]),
        ("[{name: a}]", "evaluation: [{max_tokens: 1}, {max_tokens: 2}]", ["evaluation varies"]),
    ],
)
def test_arms_that_cannot_be_asked_are_refused(
    folder: Path, arms: str, varied: str, parts: list[str]
) -> None:
    (folder / "old" / "run").mkdir(parents=True)
    text = TINKER.replace("[8, 16]", f"[8, 16]\n  {varied}")
    if "base_model" in varied:
        text = text.replace("  base_model: somebody/model\n", "")
    if not varied:
        text = text.replace("epochs: 3", "epochs: 3\n  evaluation: {system_prompt: Go}")
    (folder / "experiment.yaml").write_text(f"{text}study: {{arms: {arms}}}\n")
    message = refusal(folder)
    assert "experiment.yaml line " in message
    assert all(part in message for part in parts), message
    assert not (folder / "configs").exists()


def test_arms_are_none_of_torchtunes(folder: Path) -> None:
    (folder / "experiment.yaml").write_text(TORCHTUNE + "study: {arms: [{name: base}]}\n")
    assert "Take them out" in refusal(folder)


# --- what a study may cost ------------------------------------------------------------------------


def test_prices_are_of_every_model_under_the_name_that_the_configs_have(folder: Path) -> None:
    prices = "{train: 1, prefill: 0.5, sample: 2}"
    table = f'{{as_of: "2026-01-01", usd_per_million_tokens: {{model: {prices}}}}}'
    (folder / "model").mkdir()
    text = TINKER.replace("somebody/model", "model")
    text = text.replace("epochs: 3", f"epochs: 3\n  budget: {{usd: 1.0, prices: {table}}}")
    (folder / "experiment.yaml").write_text(
        f"{text}study: {{budget: {{usd: 5.0, minutes: 3.0, prices: {table}}}}}\n"
    )
    generated(folder)
    config = load_and_validate_config(folder / "configs" / "train_000.json").config
    assert config.base_model == "../model"
    assert config.budget.prices is not None
    assert list(config.budget.prices.usd_per_million_tokens) == ["../model"]
    (folder / "experiment.yaml").write_text(
        (folder / "experiment.yaml")
        .read_text()
        .replace("  base_model: model\n", "")
        .replace("[8, 16]", "[8, 16]\n  base_model: [model, a/b]")
    )
    assert "study.budget.prices.usd_per_million_tokens has no entry for 'a/b'" in refusal(folder)
    (folder / "experiment.yaml").write_text(TORCHTUNE + "study: {budget: {tokens: 5}}\n")
    assert "study.budget bounds what is run" in refusal(folder)


# --- what the page shows --------------------------------------------------------------------------


def shown(language: str, wanted: str) -> str:
    """The fenced block of the page that has a text."""
    page = (REPO / "docs" / "studies.md").read_text(encoding="utf-8")
    blocks = re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (found,) = (block for block in blocks if wanted in block)
    return found


def test_the_section_and_the_task_of_the_page_make_a_study(folder: Path) -> None:
    whole = yaml.safe_load(shown("yaml", "name: ranks"))
    section = yaml.safe_load(shown("yaml", "stop: halving"))
    assert set(section["study"]) == {"seeds", "arms", "expects", "budget", "stop"}
    task = shown("python", "def capitals")
    assert len(task.splitlines()) <= 12
    (folder / "evals" / "capitals.py").write_text(task)
    whole["variables"]["lora_rank"] = [8, 16, 32]
    whole["controls"] |= {"base_model": str(REPO / "demo_model"), "max_rounds": 4}
    whole["evaluation"]["tasks"] = [
        {"name": "capitals", "file": "capitals.py", "function": "capitals"}
    ]
    (folder / "train.jsonl").write_text(shown("json", "capital of France"))
    (folder / "experiment.yaml").write_text(yaml.safe_dump({**whole, **section}))
    generated(folder)
    assert len(list((folder / "configs").glob("train_*.json"))) == 9
    scope: dict[str, Any] = {}
    exec(compile(task, "capitals.py", "exec"), scope)
    assert [one.target for one in scope["capitals"]().dataset] == ["Rome", "Vienna"]
