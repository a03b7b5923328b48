"""The command as an impatient user meets it: one message, the right exit code, no traceback."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from commands.boundary import in_loop
from conftest import REPO
from errors import ConfigError
from services.place import choose_service, why_here
from trainer_with_eval import main

MINIMAL = {"base_model": "nobody/nothing", "train_file": "t.jsonl", "eval_tasks": ["simple_qa"]}
KEY = {"TINKER_API_KEY": "tml-x"}


@pytest.mark.parametrize(
    ("local", "base_url", "env", "is_dir", "expected"),
    [
        (True, "http://x", {**KEY, "TINKER_BASE_URL": "http://y"}, False, ("embedded", None)),
        (
            False,
            "http://x",
            {**KEY, "TINKER_BASE_URL": "http://y"},
            True,
            ("compatible", "http://x"),
        ),
        (False, None, {**KEY, "TINKER_BASE_URL": "http://y"}, True, ("compatible", "http://y")),
        (False, None, KEY, True, ("embedded", None)),
        (False, None, KEY, False, ("tinker", None)),
    ],
)
def test_the_first_rule_that_applies_decides_where_it_runs(
    local: bool, base_url: str | None, env: dict[str, str], is_dir: bool, expected: tuple
) -> None:
    model_dir = Path("dir") if is_dir else None
    choice = choose_service(base_url, "nobody/nothing", model_dir, env, local=local)
    assert (choice.kind, choice.base_url) == expected
    assert choice.reason


def test_a_run_that_began_here_is_resumed_here() -> None:
    """Its weights are in its directory, so a key that was set meanwhile must not move it."""
    choices = [
        choose_service(None, "nobody/nothing", None, KEY, local=False, here=why_here(begun_on))
        for begun_on in ("embedded", "tinker")
    ]
    assert [choice.kind for choice in choices] == ["embedded", "tinker"]


@pytest.mark.parametrize(
    ("env", "base_url", "part"),
    [
        ({}, None, "There is nowhere to train 'nobody/nothing'"),
        ({}, "http://x", "TINKER_API_KEY is not set: base_url in the config is http://x"),
        ({"TINKER_API_KEY": "sk-x"}, None, "does not start with tml-"),
    ],
)
def test_no_place_to_run_names_the_remedies(
    env: dict[str, str], base_url: str | None, part: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_service(base_url, "nobody/nothing", None, env, local=False)
    assert part in str(caught.value)
    assert "sk-x" not in str(caught.value)


def write(folder: Path, name: str, content: object) -> str:
    file = folder / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(file)


GOOD_ROW = json.dumps({"instruction": "q", "output": "a"}) + "\n"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({}, ["There is nowhere to train", "TINKER_API_KEY", "base_url", "--local"]),
        ({"lora_rnk": 3}, ["lora_rnk is not a setting", "lora_rank"]),
        ({"train_file": "gone.jsonl", "base_model": "MODEL"}, ["train_file names 'gone.jsonl'"]),
        ({"train_file": "bad.jsonl", "base_model": "MODEL"}, ["bad.jsonl", "line 1"]),
        ({"train_file": "empty.jsonl", "base_model": "MODEL"}, ["empty.jsonl: the file is empty"]),
        (
            {"eval_tasks": ["qa:gone.jsonl"], "base_model": "MODEL"},
            ["eval_tasks names 'gone.jsonl'"],
        ),
        ({"eval_tasks": ["qa:bad.jsonl"], "base_model": "MODEL"}, ["bad.jsonl: 1 problem: line 1"]),
        ({"renderer_name": "llama4", "base_model": "MODEL"}, ["'llama4' cannot be used"]),
        ({"warmup_steps": 2}, ["warmup_steps 2 is more than a third of the 3 steps"]),
        ({"lora_rank": "x"}, ["lora_rank", "integer"]),
        ({"use_recommended_lr": True, "base_model": "MODEL"}, ["no recommended learning rate"]),
        ({"base_model": "folder"}, ["holds no config.json"]),
        ({"base_model": "x" * 300}, ["There is nowhere to train"]),
        ({"train_file": "x" * 300, "base_model": "MODEL"}, ["but there is no such file"]),
        ({"seed": "1"}, ["seed: input should be a valid integer", "a string"]),
        ({"learning_rate": True}, ["learning_rate: input should be a valid number"]),
        ({"mining": {"pool_file": "t.jsonl"}, "base_model": "MODEL"}, ["nothing to mine"]),
    ],
)
def test_bad_input_is_one_message_and_exit_2(
    tmp_path: Path,
    llama_dir: Path,
    capsys: pytest.CaptureFixture,
    change: dict,
    parts: list[str],
) -> None:
    write(tmp_path, "t.jsonl", GOOD_ROW)
    write(tmp_path, "bad.jsonl", "nonsense\n")
    write(tmp_path, "empty.jsonl", "")
    (tmp_path / "folder").mkdir()
    config = {**MINIMAL, **change}
    if config["base_model"] == "MODEL":
        config["base_model"] = str(llama_dir)
    assert main(["--config", write(tmp_path, "c.json", config)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (message,) = [line for line in output.err.splitlines() if line.startswith("error: ")]
    for part in parts:
        assert part in message
    assert "Traceback" not in output.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "--config is missing"),
        (["--evaluate", "gone"], "--evaluate asks the questions of a config"),
        (["--config", "gone.json"], "gone.json: there is no such file"),
        (["--resume"], "--resume without a RUN_DIR needs --config"),
        (["--resume", "gone"], "not a run directory"),
        (["--resume", __file__, "--config", str(REPO / "demo_config.json")], "not a run directory"),
        (["--resume", "gone", "--run-dir", "x"], "exclude each other"),
        (["--beside"], "--beside is for --chat"),
        (["--chat", "gone"], "gone: not a run directory"),
        (["--chat", "gone", "--gate", "--evaluate", "x"], "--chat stands alone, and --evaluate, "),
        (["--chat", "gone", "--set", "max_rounds=2"], "max_rounds changes nothing in how"),
        (["--chat", "tinker://a/sampler_weights/b"], "Give the config that they were trained with"),
    ],
)
def test_bad_arguments(capsys: pytest.CaptureFixture, arguments: list[str], part: str) -> None:
    assert main(arguments) == 2
    assert part in capsys.readouterr().err


def test_an_address_where_nothing_listens_is_said_at_once(
    tmp_path: Path,
    llama_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-x")
    write(tmp_path, "t.jsonl", GOOD_ROW)
    config = write(tmp_path, "c.json", {**MINIMAL, "base_model": str(llama_dir)})
    for address, said in (
        ("http://127.0.0.1:9", "Nothing answers at http://127.0.0.1:9"),
        ("http://127.0.0.1:nine", "found 'http://127.0.0.1:nine'"),
        ("nonsense", "base_url: input should be an address such as"),
    ):
        assert main(["--config", config, "--set", f"base_url={address}"]) == 2
        assert said in capsys.readouterr().err
    monkeypatch.setenv("TINKER_BASE_URL", "http://me:sk-x@127.0.0.1:9")
    assert main(["--config", config]) == 2
    assert "found '[hidden]@127.0.0.1:9'" in (said := capsys.readouterr().err)
    assert "sk-x" not in said
    assert not (tmp_path / "runs").exists()


def test_a_run_directory_in_use_is_refused(
    tmp_path: Path, llama_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    write(tmp_path, "t.jsonl", GOOD_ROW)
    config = write(tmp_path, "c.json", {**MINIMAL, "base_model": str(llama_dir)})
    assert main(["--config", config, "--run-dir", str(tmp_path)]) == 2
    assert "not an empty directory" in capsys.readouterr().err


def test_errors_are_json_too_when_json_is_asked_for(capsys: pytest.CaptureFixture) -> None:
    assert main(["--config", "gone.json", "--json"]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["exit_code"] == 2
    assert "gone.json" in answer["error"]


@pytest.mark.parametrize("name", ["eval_loop_config.json", "demo_config.tinker.json"])
def test_dry_run_needs_no_key_and_names_what_it_could_not_check(
    capsys: pytest.CaptureFixture, name: str
) -> None:
    assert main(["--config", str(REPO / name), "--dry-run", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    told = "\n".join(answer["plan"])
    assert "train_file: 20 examples of 20 rows" in told
    assert "evaluation: simple_qa, 100 questions" in told
    assert any("There is nowhere to train" in what for what in answer["not_checked"])
    assert any("whether it serves base_model" in what for what in answer["not_checked"])


def test_dry_run_of_the_demo_shows_renderer_tokens_and_schedule(
    capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    assert main(["--config", str(REPO / "demo_config.json"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "service: embedded (base_model 'demo_model' is a directory)" in told
    assert "renderer: llama3 (renderer_name)" in told
    assert "warm-up 1 step (by default)" in told
    assert re.search(r"LoRA rank 16: [\d,]+ parameters >= [\d,]+ loss tokens", told)
    assert [line.split()[:2] for line in told.splitlines() if re.match(r"\s+\d\s+\d+-", line)] == [
        ["1", "0-4"],
        ["2", "5-9"],
        ["3", "10-14"],
    ]
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_is_frozen() -> None:
    """A new flag is a decision: it changes this list, README.md and the issue that asks for it."""
    outcome = subprocess.run(
        [sys.executable, str(REPO / "trainer_with_eval.py"), "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
    )
    flags = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", outcome.stdout.split("epilog")[0]))
    assert flags >= {"--config", "--set", "--run-dir", "--resume", "--local", "--dry-run"}
    assert flags == {
        *("-h", "--help", "--config", "--set", "--run-dir", "--resume", "--local", "--dry-run"),
        *("--preview", "--gate", "--json", "-v", "--verbose", "--evaluate", "--list", "--alert"),
        *("--init", "--power", "--summary", "--junit", "--registry", "--chat"),
        *("--beside", "--check-service"),
    }


def test_help_and_schema_errors_load_nothing_heavy(tmp_path: Path) -> None:
    """What makes them answer at once: neither torch, transformers nor tinker is imported."""
    config = write(tmp_path, "c.json", {**MINIMAL, "lora_rnk": 1})
    for arguments in (["--help"], ["--config", config], ["--config", "gone.json"]):
        code = (
            "import sys, trainer_with_eval as t\n"
            "try: t.main(sys.argv[1:])\n"
            "except SystemExit: pass\n"
            "heavy = {'torch', 'transformers', 'tinker', 'tinker_cookbook', 'inspect_ai', 'rich'}\n"
            "print('heavy:', sorted(heavy & set(sys.modules)))"
        )
        outcome = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPO)},
        )
        assert outcome.stdout.splitlines()[-1] == "heavy: []", outcome.stderr


def test_ctrl_c_is_heard_after_a_loop_that_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inspect puts such a loop in the place of asyncio's."""
    left_open = asyncio.new_event_loop()
    monkeypatch.setattr(asyncio, "run", left_open.run_until_complete)

    async def work() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: None)

    before = signal.getsignal(signal.SIGTERM)
    try:
        in_loop(work())
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        left_open.close()
        signal.signal(signal.SIGTERM, before)
