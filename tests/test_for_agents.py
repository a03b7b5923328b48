"""What a program reads of a dry run: the models of a service, tokens, method and suites."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

import forked
import local_tinker
from commands import offered_models
from commands.suites import suites_facts
from commands.use_cases import USE_CASES
from config_schema import LoadedConfig, load_and_validate_config
from conftest import REPO
from data_loader import load_examples
from evaluation.benchmarks import BENCHMARKS
from half_services import mute_service
from loop.plan_page.capacity import judged
from loop.plan_page.method_choice import choice_facts, form_of_rows
from loop.plan_page.models import fit_facts
from loop.plan_page.token_estimate import RowTokens, estimated_tokens
from loop.plan_page.view import OfferedModel
from rows.examples import ExampleTable
from rows.sources import Source
from test_loop import Workspace
from trainer_with_eval import main

KEY = "tml-0123456789abcdef"
HUB_MODEL: dict[str, Any] = {"base_model": "meta-llama/Llama-3.1-8B-Instruct"}
PATIENCE_S = 120  # with a service that does answer, however busy the machine is
BEFORE = ("service", "method_choice", "use_case", "suites")  # also where the rows are refused


def told(
    workspace: Workspace, capsys: pytest.CaptureFixture, code: int = 0, **changes: Any
) -> dict[str, Any]:
    """The one object that a dry run prints."""
    capsys.readouterr()
    assert workspace.run("run", "--dry-run", "--json", **changes) == code
    return json.loads(capsys.readouterr().out)


def documented() -> dict[str, set[str]]:
    """The keys in the tables of docs/plan.md, by the object that a table is of."""
    page = (REPO / "docs/plan.md").read_text(encoding="utf-8")
    text = page.partition("## For an agent\n")[2].partition("\n## ")[0]
    tables: dict[str, set[str]] = {}
    name = ""
    for line in text.splitlines():
        if (heading := re.match(r"(?:Each of )?`(\w+)`[:.,]", line)) is not None:
            name = heading[1]
        elif line.startswith("| `") and not line.startswith(("| `use_case`", "| `suites`")):
            tables.setdefault(name, set()).update(re.findall(r"`(\w+)`", line.split(" | ")[0]))
    (suites,) = (line for line in text.splitlines() if line.startswith("| `suites`"))
    tables["suites"] = set(re.findall(r"`(\w+)`", suites.partition("each task with")[2]))
    return tables


def assert_as_documented(answer: dict[str, Any]) -> None:
    tables = documented()
    assert set(tables) == {"service", "models", "capacity", "method_choice", "suites"}
    for name in ("service", "method_choice", "capacity"):
        assert name not in answer or set(answer[name]) == tables[name], name
    for model in answer["service"]["models"] or []:
        assert set(model) == tables["models"]
    assert set(answer["use_case"]) == {"name", "why"}
    assert set(answer["suites"]) == set(USE_CASES)
    for tasks in answer["suites"].values():
        assert all(set(task) == tables["suites"] for task in tasks)


def test_every_key_is_there_whatever_is_not_known(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    """Of a model that is here, of one that is not, and where the rows are of another method."""
    here = told(workspace, capsys)
    away = told(workspace, capsys, **HUB_MODEL)
    workspace.write_rows("train.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2)
    refused = told(workspace, capsys, 2)
    for answer in (here, away, refused):
        assert_as_documented(answer)
    assert set(here) == set(away)
    assert set(here["model"]) == set(away["model"])
    assert set(refused) == {"error", "exit_code", *BEFORE}
    assert refused["method_choice"]["proposed"] == "dpo"
    assert away["service"]["was_asked"] is False
    assert away["service"]["why_not"] == "no service is chosen yet, so none was asked"
    assert here["service"]["base_model_is_served"] is True
    (model,) = here["service"]["models"]
    assert (model["found"], model["context"], model["trainable"]) == ("base_model", 512, None)
    assert model["adapter_params"] == here["capacity"]["num_params"]
    assert model["num_params"] > 0
    assert model["remarks"] == [
        f"the longest row of {here['capacity']['longest_row_tokens']} tokens fits into its 512"
    ]


def test_models_beside_the_config_and_in_the_cache_are_found_and_others_are_not(
    workspace: Workspace,
    capsys: pytest.CaptureFixture,
    llama_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    beside = workspace.folder / "beside"
    beside.mkdir()
    for file in ("config.json", "model.safetensors"):
        (beside / file).symlink_to(llama_dir / file)
    of_images = workspace.folder / "images"
    of_images.mkdir()
    (of_images / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
    (of_images / "model.safetensors").write_bytes(b"")
    cache = workspace.folder / "cache"
    snapshot = cache / "models--some--Coder-Instruct" / "snapshots" / "0a"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0a")
    for file in ("config.json", "model.safetensors"):
        (snapshot / file).symlink_to(llama_dir / file)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    answer = told(workspace, capsys)
    found = {one["name"]: one["found"] for one in answer["service"]["models"]}
    assert found == {
        str(llama_dir): "base_model",
        "beside": "folder",
        "some/Coder-Instruct": "cache",
    }
    coder = answer["service"]["models"][-1]
    assert (coder["tuned_for"], coder["tuned_for_by"]) == ("code", "the name")
    assert any("models on this machine: " in line for line in answer["plan"])


def test_a_base_model_that_is_nowhere_on_this_machine_is_refused_before_it_is_loaded(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    assert workspace.run("run", "--dry-run", "--json", "--local", **HUB_MODEL) == 2
    answer = json.loads(capsys.readouterr().out)
    assert "is not among what this machine trains" in answer["error"]
    assert "`hf download NAME`" in answer["error"]
    assert answer["service"]["base_model_is_served"] is False


# --- a service that is asked ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["./gone", "/gone/model", "../gone"])
def test_a_path_where_nothing_is_is_no_hub_model(
    workspace: Workspace, capsys: pytest.CaptureFixture, name: str
) -> None:
    refused = told(workspace, capsys, 2, base_model=name)
    assert set(refused) == {"error", "exit_code", *BEFORE}
    assert f"base_model {name!r} is a path, and there is no such directory" in refused["error"]


def test_a_service_is_asked_for_its_models_and_one_that_it_has_not_is_refused(
    workspace: Workspace,
    service: local_tinker.Service,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", service.open_folder(workspace.folder / "c"))
    monkeypatch.setattr(offered_models, "LIMIT_S", PATIENCE_S)
    there: dict[str, Any] = {"base_url": service.base_url, "base_model": "llama"}
    there["renderer_name"] = "llama3"
    answer = told(workspace, capsys, **there)
    assert_as_documented(answer)
    assert answer["service"]["kind"] == "compatible"
    assert answer["service"]["base_model_is_served"] is True
    listed = {one["name"]: one["context"] for one in answer["service"]["models"]}
    assert listed["llama"] == listed["qwen3"] == 512  # and as often by their paths
    assert all(one["trainable"] and one["sampleable"] for one in answer["service"]["models"])
    assert not any("serves base_model" in what for what in answer["not_checked"])
    refused = told(workspace, capsys, 2, **there | {"base_model": "lama"})
    assert "base_model 'lama' is not among what the service" in refused["error"]
    assert "it has llama, " in refused["error"]
    assert_as_documented(refused)
    assert set(refused) >= {"service", "capacity", "commands", "suites"}  # to choose another by


def assert_not_asked(answer: dict[str, Any], part: str) -> None:
    assert_as_documented(answer)
    assert answer["service"]["was_asked"] is False
    assert answer["service"]["models"] is None
    assert part in answer["service"]["why_not"]
    assert any(part in what for what in answer["not_checked"])
    assert answer["capacity"]["tokens_are"] == "counted"


def test_an_address_where_nothing_listens_is_said_and_stops_nothing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    answer = told(workspace, capsys, base_url="http://127.0.0.1:9")
    assert_not_asked(answer, "Nothing answers at")


def test_a_service_that_says_nothing_is_not_waited_for(workspace: Workspace) -> None:
    """In a process of its own, since the SDK makes one client after the other."""
    with mute_service() as address:
        arguments = workspace.arguments("run", base_url=address)
        program = [REPO / "trainer_with_eval.py", *arguments, "--dry-run", "--json"]
        env = {**os.environ, "TINKER_API_KEY": KEY}
        outcome = forked.run(*program, env=env, timeout=200)
    assert outcome.returncode == 0, outcome.stderr
    assert_not_asked(
        json.loads(outcome.stdout), f"gave no answer within {offered_models.LIMIT_S} s"
    )
    assert all(json.loads(line) for line in outcome.stderr.splitlines())  # and nothing beside it


def test_a_key_that_is_refused_is_said_without_the_key(
    workspace: Workspace,
    service: local_tinker.Service,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    monkeypatch.setattr(offered_models, "LIMIT_S", PATIENCE_S)
    answer = told(workspace, capsys, base_url=service.base_url)
    assert "was asked for its models and refused: " in answer["service"]["why_not"]
    assert KEY not in json.dumps(answer)


# --- what fits ------------------------------------------------------------------------------------


def config_of(tmp_path: Path, **changes: Any) -> LoadedConfig:
    settings = {"base_model": "m", "train_file": "t.jsonl", "eval_tasks": ["simple_qa"], **changes}
    (tmp_path / "c.json").write_text(json.dumps(settings))
    return load_and_validate_config(str(tmp_path / "c.json"), [])


def counted(number: int, longest: int | None = None) -> RowTokens:
    return RowTokens(number, number, number, longest, "counted", "counted")


@pytest.mark.parametrize(
    ("name", "size", "tuned_for", "by"),
    [
        ("Qwen/Qwen3-8B", "8B", "chat", "tinker-cookbook"),
        ("Qwen/Qwen3-8B-Base", "8B", "base", "the name"),
        ("meta-llama/Llama-3.1-8B", "8B", "base", "tinker-cookbook"),
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", "30B-A3B", "vision", "the name"),
        ("moonshotai/Kimi-K2-Thinking", "1T-A32B", "reasoning", "the name"),
        ("Qwen/Qwen2.5-Coder-7B-Instruct", None, "code", "the name"),
        ("Qwen/Qwen2.5-Math-7B", None, "math", "the name"),
        ("thinkingmachines/Inkling-Unheard-Of", None, None, None),
        ("somebody/something", None, None, None),
        ("/models/mine", None, None, None),
    ],
)
def test_what_a_name_does_not_say_is_not_known(
    tmp_path: Path, name: str, size: str | None, tuned_for: str | None, by: str | None
) -> None:
    model = OfferedModel(name, "service", None, True, True)
    facts = fit_facts(model, config_of(tmp_path).config, counted(10))
    assert (facts["size"], facts["tuned_for"], facts["tuned_for_by"]) == (size, tuned_for, by)
    assert (facts["adapter_params"] is None) == (size is None)
    assert facts["capacity_verdict"] == ("unknown" if size is None else "room")


@pytest.mark.parametrize(
    ("context", "longest", "fits"),
    [(4096, 300, True), (2048, None, True), (512, 512, True), (512, 513, False), (512, None, None)],
)
def test_whether_rows_fit_a_context_is_told_only_where_it_is_known(
    tmp_path: Path, context: int, longest: int | None, fits: bool | None
) -> None:
    model = OfferedModel("m", "service", context, True, True)
    facts = fit_facts(model, config_of(tmp_path).config, counted(10, longest))
    assert facts["context_fits"] is fits
    assert f"{context:,}" in facts["remarks"][0]


# --- tokens ---------------------------------------------------------------------------------------


def test_the_bounds_of_an_estimate_hold_the_number_that_the_tokenizer_counts(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--config", str(REPO / "demo_config.json"), "--dry-run", "--json"]
    assert main(arguments) == 0
    exact = json.loads(capsys.readouterr().out)["capacity"]
    assert main([*arguments, "--set", f"base_model={HUB_MODEL['base_model']}"]) == 0
    found = json.loads(capsys.readouterr().out)["capacity"]
    assert exact["loss_tokens_from"] == exact["num_loss_tokens"] == exact["loss_tokens_to"]
    assert found["tokens_are"] == "estimated"
    assert found["loss_tokens_from"] < exact["num_loss_tokens"] < found["loss_tokens_to"]
    assert found["num_loss_tokens"] == pytest.approx(exact["num_loss_tokens"], rel=0.6)
    assert "693 of 693 rows" in found["how"]


def test_a_sample_of_many_rows_is_said_and_widens_the_bounds(tmp_path: Path) -> None:
    lines = (
        json.dumps({"instruction": f"q {i}", "output": "x" * (1 + i % 7 * 10)}) for i in range(3000)
    )
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    rows = load_examples([Source("t.jsonl", tmp_path / "t.jsonl")]).examples
    found = estimated_tokens(rows, ExampleTable(), config_of(tmp_path).config)
    num_bytes = sum(len(row.messages[-1].content) for row in rows)
    assert "1,000 of 3,000 rows" in found.how
    assert found.at_least is not None and found.at_most is not None and found.number is not None
    assert found.at_least < num_bytes / 10 < found.number < num_bytes < found.at_most


def test_answers_that_could_be_cut_off_have_no_least_number(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"instruction": "q" * 900, "output": "x" * 90}))
    rows = load_examples([Source("t.jsonl", tmp_path / "t.jsonl")]).examples
    found = estimated_tokens(rows, ExampleTable(), config_of(tmp_path, max_seq_length=64).config)
    assert (found.at_least, found.number, found.at_most) == (0, 27, 64)


@pytest.mark.parametrize(
    ("low", "number", "high", "verdict"),
    [(1, 3, 10, "room"), (101, 300, 900, "below"), (50, 150, 900, "unknown")],
)
def test_an_estimate_has_a_verdict_where_both_bounds_come_to_it(
    low: int, number: int, high: int, verdict: str
) -> None:
    tokens = RowTokens(number, low, high, None, "estimated", "")
    assert judged(100, tokens, 16, "sft").verdict == verdict
    assert judged(100, tokens, 16, "rl").verdict == "low_rank_is_enough"


# --- the method -----------------------------------------------------------------------------------

CHAT = {"instruction": "2 + 2?", "output": "4"}
PAIR = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}
LIKED = {"prompt": "2 + 2?", "completion": "4", "label": True}
DISLIKED = {"prompt": "2 + 2?", "completion": "5", "label": False}
RATED = {"prompt": "2 + 2?", "response": "4", "score": 1}
PROMPT = {"prompt": "2 + 2?"}


@pytest.mark.parametrize(
    ("rows", "form", "proposed"),
    [
        ([CHAT], "chats", "sft"),
        ([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}],
         "chats", "sft"),
        ([{"question": "2 + 2?", "answer": "4"}], "chats", "sft"),  # under other names
        ([LIKED], "chats", "sft"),
        ([PAIR], "pairs", "dpo"),
        ([{"prompt": "a", "chosen_response": "b", "rejected_response": "c"}], "pairs", "dpo"),
        ([LIKED, DISLIKED], "marked", "dpo"),
        ([RATED], "ratings", None),
        ([PROMPT], "prompts", None),
        ([{"messages": [{"role": "user", "content": "a"}]}], "prompts", None),
        ([CHAT, PAIR], "mixed", None),
        ([CHAT] * 30 + [PROMPT], "chats", "sft"),  # one bad row is no form
        ([{"colour": "red"}], "unknown", None),
    ],
)  # fmt: skip
def test_the_method_follows_from_the_form_of_the_rows(
    tmp_path: Path, rows: list[dict[str, Any]], form: str, proposed: str | None
) -> None:
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    loaded = config_of(tmp_path)
    facts = choice_facts(form_of_rows(loaded), loaded.config)
    assert (facts["form"], facts["proposed"]) == (form, proposed)
    assert facts["num_rows_looked_at"] == sum(facts["forms"].values()) == len(rows)
    assert facts["agrees"] is (None if proposed is None else proposed == "sft")
    assert (facts["trade_off"] is None) == (proposed is None)
    assert all(one["method"] != proposed and one["when"] for one in facts["alternatives"])
    assert ("Set method to dpo" in " ".join(facts["warnings"])) == (proposed == "dpo")
    assert ("start_from" in " ".join(facts["warnings"])) == (proposed == "dpo")
    if form == "ratings":
        assert "registry.py feedback" in facts["instead"]


@pytest.mark.parametrize(
    ("changes", "proposed", "part"),
    [
        ({"method": "rl"}, "rl", "(includes)"),
        ({"method": "rl", "rl": {"environment": "e.py@f"}}, "rl", "(e.py@f)"),
        ({"method": "distill", "distill": {"teacher": "big/model"}}, "distill", "(big/model)"),
    ],
)
def test_a_reward_or_a_teacher_makes_rows_prompts(
    tmp_path: Path, changes: dict[str, Any], proposed: str, part: str
) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps(CHAT))
    loaded = config_of(tmp_path, **changes)
    facts = choice_facts(form_of_rows(loaded), loaded.config)
    assert (facts["proposed"], facts["agrees"], facts["warnings"]) == (proposed, True, [])
    assert part in facts["why"]
    assert "sft" in [one["method"] for one in facts["alternatives"]]


def test_rows_that_cannot_be_read_have_a_reason_in_place_of_a_form(tmp_path: Path) -> None:
    loaded = config_of(tmp_path)
    facts = choice_facts(form_of_rows(loaded), loaded.config)
    assert (facts["form"], facts["proposed"], facts["agrees"]) == ("unknown", None, None)
    assert "no such file" in facts["why"]


# --- suites ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tasks", "name"),
    [
        (["simple_qa"], None),
        (["inspect_evals/gsm8k"], None),  # of chat and of math
        (["inspect_evals/humaneval", "inspect_evals/gsm8k"], None),
        (["inspect_evals/humaneval", "inspect_evals/mbpp"], "code"),
        (["inspect_evals/ifeval", "inspect_evals/gsm8k"], "chat"),
        (["inspect_evals/gsm8k", "inspect_evals/math"], "math"),
        (["inspect_evals/bfcl"], "tools"),
        (["inspect_evals/no_such"], None),
    ],
)
def test_a_use_case_is_told_from_its_benchmarks_and_never_guessed(
    tmp_path: Path, tasks: list[str], name: str | None
) -> None:
    config = config_of(tmp_path, eval_tasks=tasks).config
    found = suites_facts(config, tmp_path)
    assert found["use_case"]["name"] == name
    assert found["use_case"]["why"]
    asked = {
        one["task"] for suite in found["suites"].values() for one in suite if one["in_settings"]
    }
    assert asked <= set(tasks)
    for suite in found["suites"].values():
        assert {1, 2, 3} <= {one["layer"] for one in suite}
        for one in suite:
            known = BENCHMARKS.get(one["task"].removeprefix("inspect_evals/"))
            assert one["measures"] and one["why"]
            assert one["version"] == (None if known is None else known.version)
            assert one["needs"] == (() if known is None else known.needs)
