"""What cannot fit the model is refused before the first request, also by the dry run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from errors import ConfigError
from loop.planning.fitting import limits_of, unchecked_fit
from rows.sources import Source, sha256_of
from test_loop import Workspace, row
from trainer_with_eval import main

TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes

@task
def words() -> Task:
    samples = [Sample(input="a?", target="a"), Sample(id="long", input="b" * 600, target="b")]
    return Task(dataset=samples, scorer=includes())
"""


def refused(workspace: Workspace, capsys: pytest.CaptureFixture, **changes: Any) -> str:
    """The one paragraph that dry run and run end with, before there is a run directory."""
    capsys.readouterr()
    said = []
    for flags in (["--dry-run"], []):
        assert workspace.run("run", *flags, **changes) == 2
        said.append(capsys.readouterr().err.strip().splitlines()[-1])
    assert said[0] == said[1]
    assert not (workspace.folder / "run").exists()
    return said[0]


def change_config(model_dir: Path, target: Path, **changes: Any) -> Path:
    shutil.copytree(model_dir, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    return target


def long_row(number: int, num_chars: int = 700) -> dict[str, str]:
    return {"instruction": f"Say {number}", "output": f"{number} " + "z" * num_chars}


# --- the limits -----------------------------------------------------------------------------------


def test_limits_are_read_from_the_models_config(llama_dir: Path, tmp_path: Path) -> None:
    limits = limits_of(llama_dir)
    assert (limits.context, limits.num_embeddings) == (512, 300)
    nested = change_config(
        llama_dir, tmp_path / "nested", text_config={"max_position_embeddings": 64, "vocab_size": 9}
    )
    assert (limits_of(nested).context, limits_of(nested).num_embeddings) == (64, 9)
    odd = change_config(llama_dir, tmp_path / "odd", max_position_embeddings="many", vocab_size=-1)
    assert (limits_of(odd).context, limits_of(odd).num_embeddings) == (None, None)
    assert limits_of(None).context is None
    assert limits_of(None).cut_at(2048) == 2048
    assert unchecked_fit(limits_of(None), ())[0].startswith("whether rows and questions fit")
    (tmp_path / "odd" / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="not a JSON object"):
        limits_of(odd)


# --- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["train_file", "mining.pool_file", "nll:val.jsonl"])
def test_a_row_beyond_the_context_is_refused_with_file_and_line(
    workspace: Workspace, capsys: pytest.CaptureFixture, key: str
) -> None:
    file = {"train_file": "train.jsonl", "mining.pool_file": "pool.jsonl"}.get(key, "val.jsonl")
    workspace.write_rows("val.jsonl", [row(900)])
    workspace.write_rows(file, [row(700), row(701), long_row(702), long_row(703)])
    longest = 512 if key == "train_file" else 511  # of what is measured a token more is asked
    message = refused(workspace, capsys, val_file="val.jsonl")
    assert f"{file} line 3: this row of {key} is too long for the model's context of 512" in message
    assert ("511 can have their loss measured" in message) == (longest == 511)
    assert "as are 1 more" in message
    assert f"max_seq_length is 2048. Set max_seq_length to {longest} or less" in message
    changes = {"val_file": "val.jsonl", "max_seq_length": longest}
    assert workspace.run("run", "--dry-run", **changes) == 0
    printed = capsys.readouterr().out
    assert f"longer than max_seq_length {longest}" in printed or key == "nll:val.jsonl"


@pytest.mark.trains
def test_rows_are_trained_on_and_measured_up_to_the_context(workspace: Workspace) -> None:
    workspace.write_rows("val.jsonl", [row(900), long_row(901)])
    workspace.write_rows("pool.jsonl", [long_row(number) for number in range(100, 130)])
    changes = {"val_file": "val.jsonl", "max_seq_length": 511, "steps_per_round": 1}
    assert workspace.run("run", **changes) == 0
    assert len([e for e in workspace.events("run") if e["type"] == "losses_measured"]) == 1


def test_a_longer_max_seq_length_does_no_harm_while_no_row_needs_it(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    assert workspace.run("run", "--dry-run", max_seq_length=100_000) == 0
    assert "truncated" not in capsys.readouterr().out


@pytest.mark.trains
def test_a_run_that_an_older_version_began_on_such_rows_goes_on(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    """It had ended before the round that drew such a row, and would for ever."""
    assert workspace.run("run", max_seq_length=64, steps_per_round=1, max_rounds=1) == 0
    long = [long_row(number) for number in range(100, 130)]
    workspace.write_rows("pool.jsonl", long)
    run_dir = workspace.folder / "run"
    resolved = json.loads((run_dir / "config.resolved.json").read_text())
    resolved["config"]["max_seq_length"] = 2048
    (run_dir / "config.resolved.json").write_text(json.dumps(resolved))
    manifest = json.loads((run_dir / "data_manifest.json").read_text())
    pool = Source("pool.jsonl", workspace.folder / "pool.jsonl")
    manifest["files"]["mining.pool_file"]["sha256"] = sha256_of(pool)
    manifest["examples"]["mining.pool_file"]["num_examples"] = len(long)
    del manifest["examples"]["mining.pool_file"]["sha256"]  # which that version did not record
    (run_dir / "data_manifest.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    assert main(["--resume", str(run_dir), "--set", "max_rounds=2"]) == 0
    said = capsys.readouterr().err
    assert "truncated: 30 examples are longer than the model's context of 511" in said


# --- questions ------------------------------------------------------------------------------------


def test_a_question_that_leaves_no_room_for_its_answer_is_refused(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    questions = [{"question": "a?", "answer": "x"}, {"question": "b" * 440, "answer": "x"}]
    workspace.write_rows("questions.jsonl", questions)
    message = refused(workspace, capsys, evaluation={"max_tokens": 100})
    assert "questions.jsonl line 2: its prompt of " in message
    assert "and an answer of up to 100 are more than the model's context of 512 tokens" in message
    left = int(message.split("set evaluation.max_tokens to ")[1].split()[0])
    changes = {"evaluation": {"max_tokens": left}}
    assert workspace.run("run", "--dry-run", **changes) == 0
    questions[1] = {"question": "what?", "answer": "x", "system": "s" * 600}
    workspace.write_rows("sealed.jsonl", questions[1:])
    workspace.write_rows("questions.jsonl", questions[:1])
    sealed = {"evaluation": {"test_tasks": ["qa:sealed.jsonl"]}}
    message = refused(workspace, capsys, **sealed)
    assert "sealed.jsonl line 1: its prompt has " in message
    assert "leaves no room for an answer" in message


def test_of_inspect_tasks_the_inputs_are_checked_and_the_rest_is_said_to_be_unchecked(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    (workspace.folder / "words.py").write_text(TASK)
    tasks = {"eval_tasks": ["words.py@words"], "evaluation": {}}
    message = refused(workspace, capsys, **tasks)
    assert "words.py@words: sample long: its prompt has " in message
    tasks["evaluation"] = {"limit": {"words.py@words": 1}}
    assert workspace.run("run", "--dry-run", **tasks) == 0
    printed = capsys.readouterr().out
    assert "whether what the solver of words.py@words adds to the inputs" in printed


# --- token ids ------------------------------------------------------------------------------------


def test_a_token_that_the_model_has_no_embedding_for_is_refused_where_it_is_used(
    workspace: Workspace, llama_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    model_dir = shutil.copytree(llama_dir, workspace.folder / "grown")
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(model_dir)
    changes = {"base_model": str(model_dir)}
    assert workspace.run("run", "--dry-run", **changes) == 0  # nothing has it
    workspace.write_rows("pool.jsonl", [row(100), {"instruction": "Say", "output": "a <new> b"}])
    message = refused(workspace, capsys, **changes)
    assert "pool.jsonl line 2: mining.pool_file holds the token '<new>' with the id 300" in message
    assert "the model's embedding has 300 rows" in message
    workspace.write_rows("pool.jsonl", [row(100)])
    workspace.write_rows("questions.jsonl", [{"question": "What is <new>?", "answer": "x"}])
    message = refused(workspace, capsys, **changes)
    assert "questions.jsonl line 1: the question holds the token '<new>'" in message
