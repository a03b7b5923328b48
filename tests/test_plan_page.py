"""The plan before a run: the catalogue of benchmarks, its parts, the page, the pilot's command."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from conftest import REPO
from evaluation.benchmarks import BENCHMARKS, READ_IN, benchmark_of
from evaluation.inspect_tasks import TaskOptions, load_inspect_task
from evaluation.tasks import EvalTask
from ledger.store import RunStore
from loop.plan_page.capacity import Method, capacity, describe
from loop.plan_page.pilot import pilot_steps
from loop.plan_page.serving import adapter_of, ways_of
from loop.plan_page.suite import asked_of
from loop.reports.console import shown_python
from loop.reports.lines import money, wrapped
from page_reading import Page, assert_inert
from settings.groups import EvaluationSettings
from test_loop import Workspace, row
from trainer_with_eval import main

# --- the catalogue --------------------------------------------------------------------------------


def test_the_catalogue_is_of_the_installed_benchmarks() -> None:
    """Names, versions, sandboxes and arguments are those of the package itself."""
    import inspect
    from importlib.metadata import version

    from inspect_ai._util.registry import registry_lookup
    from inspect_evals.metadata import load_eval_metadata

    assert f"inspect_evals {version('inspect_evals')}" == READ_IN
    for name, benchmark in BENCHMARKS.items():
        listed = load_eval_metadata(benchmark.folder)
        assert name in [task.name for task in listed.tasks], name
        assert str(listed.version) == benchmark.version, name
        function = registry_lookup("task", f"inspect_evals/{name}")
        assert callable(function), name
        parameters = inspect.signature(function).parameters
        for argument in (benchmark.shots_argument, benchmark.reasons_argument):
            assert argument is None or argument in parameters, name
        if benchmark.shots_argument is not None:
            assert parameters[benchmark.shots_argument].default == benchmark.shots


def test_arguments_change_how_a_benchmark_asks() -> None:
    gsm8k, mmlu = BENCHMARKS["gsm8k"], BENCHMARKS["mmlu_0_shot"]
    assert gsm8k.asks({}) == "10 examples in the prompt, asks for steps before the answer"
    assert gsm8k.asks({"fewshot": False}).startswith("no examples")
    assert gsm8k.asks({"fewshot": 1}).startswith("1 example in")
    assert mmlu.asks({}) == "no examples in the prompt, asks for the answer at once"
    assert mmlu.asks({"cot": True}).endswith("asks for steps before the answer")
    assert gsm8k.asks({"fewshot": "many"}).startswith("many examples")


@pytest.mark.parametrize("name", ["simple_qa", "gsm8k", "inspect_evals/no_such", "qa:gsm8k.jsonl"])
def test_what_is_not_in_the_catalogue_has_no_entry(name: str) -> None:
    assert benchmark_of(name) is None
    assert benchmark_of("inspect_evals/gsm8k") is BENCHMARKS["gsm8k"]


BENCHMARK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import match

@task
def gsm8k(fewshot: int = 10, version: str = "2-A"):
    samples = [Sample(input="What is 2 + 2?", target="4")]
    return Task(dataset=samples, scorer=match(), metadata={"full_task_version": version})
"""


@pytest.mark.parametrize(("version", "shown"), [("2-A", "2-A"), ("3-B", "3-B (what is said here")])
def test_a_public_benchmark_is_told_of_with_its_arguments_and_the_version_that_is_loaded(
    tmp_path: Path, version: str, shown: str
) -> None:
    """Its questions need the hub, so here a file of the same name and arguments is loaded."""
    (tmp_path / "task.py").write_text(BENCHMARK)
    name, args = "inspect_evals/gsm8k", {"fewshot": 3, "version": version}
    work = load_inspect_task(name, f"{tmp_path / 'task.py'}@gsm8k", TaskOptions(args=args))
    settings = EvaluationSettings(task_args={name: args}, limit={name: 1})
    told = asked_of(settings, EvalTask(name, 2, "guard", 1, work))
    assert told.measures == BENCHMARKS["gsm8k"].measures
    assert told.asks == "3 examples in the prompt, asks for steps before the answer"
    assert (told.version or "").startswith(shown)
    assert (told.role, told.layer, told.limit, told.judge) == ("guard", 2, 1, None)
    assert told.needs == ("its data comes from the hub",)


# --- the plan of a run ----------------------------------------------------------------------------


def planned(workspace: Workspace, capsys: pytest.CaptureFixture, **changes: Any) -> dict[str, Any]:
    """The plan as --json has it."""
    capsys.readouterr()
    assert workspace.run("run", "--dry-run", "--json", **changes) == 0
    return json.loads(capsys.readouterr().out)


def risks_in(plan: dict[str, Any]) -> set[str]:
    return {one["name"] for one in plan["risks"]}


def test_the_plan_of_the_demo_fits_on_a_page_and_says_what_is_known(
    capsys: pytest.CaptureFixture,
) -> None:
    assert main(["--config", str(REPO / "demo_config.json"), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = "\n".join(wrapped(line, 80, f"{shown_python()} ") for line in lines).splitlines()
    assert len(shown) <= 70
    headings = [line for line in lines if not line.startswith(" ")]
    assert headings == [
        *("Look at these first", "Model and place", "Rows", "Room in the adapter"),
        *("Steps and learning rate", "Evaluation", "Tokens, time and price"),
        "Usual advice that the settings do not follow",
        "Can it be used with (vLLM was never run here)",
        *("Next", "not checked:"),
    ]
    told = "\n".join(lines)
    assert "a rate of full fine-tuning times 10 is LoRA's: 0.003 is 0.0003 there" in told
    assert "lora_rank: 32 to start with, more for many rows; here: 16" in told
    assert "price: none, as it trains on this machine" in told
    assert "time: not known" in told


def test_named_values_are_those_of_the_lines_and_of_the_page(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    plan = planned(workspace, capsys)
    assert set(plan) == {
        *("dry_run", "plan", "not_checked", "summary", "warnings", "risks", "model", "data"),
        *("capacity", "schedule", "evaluation", "cost", "policy", "serving", "commands"),
        *("service", "method_choice", "use_case", "suites"),
    }
    capacity, schedule = plan["capacity"], plan["schedule"]
    said = f"{capacity['num_params']:,} parameters >= {capacity['num_loss_tokens']:,} loss tokens"
    assert any(said in line for line in plan["plan"])
    assert [one["first_step"] for one in schedule["rounds"]] == [0, 3]
    assert schedule["rounds"][1]["first_lr"] == pytest.approx(0.005, rel=1e-3)
    assert plan["data"]["files"]["train_file"]["num_examples"] == 10
    assert {"no_guard", "small_dev_set", "no_sealed_test", "threshold_out_of_reach"} <= risks_in(
        plan
    )
    row = plan["model"]["rows"][0]
    assert row["row"].startswith("train.jsonl line 1: ")
    assert {weight for _, weight in row["pieces"]} == {0.0, 1.0}
    (task,) = plan["evaluation"]["tasks"]
    assert (task["task"], task["layer"], task["role"]) == ("qa:questions.jsonl", 3, "decides")
    text = (workspace.folder / "config.plan" / "plan.html").read_text(encoding="utf-8")
    places = [workspace.folder, Path(workspace.settings["base_model"]).parent, REPO, Path.home()]
    page = Page(text)
    words = " ".join(" ".join(text.split()) for _, text in page.texts)
    for line in plan["plan"]:
        if not line.lstrip()[:1].isdigit() and not line.startswith(
            ("round  ", "page: ", "lists: ")
        ):
            for place in places:
                assert f"{place}/" not in text
                line = line.replace(f"{place}/", "")
            assert " ".join(line.split()) in words, line


HOSTILE = "</script><script>alert(1)</script> \u2028 \u202e <b>&amp; \u05d0"


def test_a_key_that_stands_in_the_settings_is_on_no_plan(
    workspace: Workspace, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "tml-0123456789abcdef"
    monkeypatch.setenv("TINKER_API_KEY", key)
    flags = ["--dry-run", "--set", f"run_name={key}"]
    assert workspace.run("run", *flags) == 0
    told = capsys.readouterr()
    page = (workspace.folder / "config.plan" / "plan.html").read_text(encoding="utf-8")
    assert key not in told.out + told.err + page
    assert "[redacted]" in page


def test_nothing_that_rows_say_acts_on_the_page(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    rows = [{"instruction": f"{HOSTILE} {i}", "output": HOSTILE} for i in range(3)]
    workspace.write_rows("train.jsonl", rows)
    assert workspace.run("run", "--dry-run", run_name="odd") == 0
    text = (workspace.folder / "config.plan" / "plan.html").read_text(encoding="utf-8")
    assert_inert(text)
    assert "alert(1)" in text  # as text


@pytest.mark.parametrize(
    ("changes", "risk"),
    [
        ({"train_mlp": False}, "attention_only"),
        ({"batch_size": 129}, "large_batch"),
        ({"eval_threshold": 0}, "threshold_met"),
        ({"steps_per_round": 20}, "few_rows_many_passes"),
        ({"evaluation": {"layers": {"qa:questions.jsonl": 2}}}, "no_application_task"),
    ],
)
def test_a_risk_is_named_where_the_settings_have_it(
    workspace: Workspace, capsys: pytest.CaptureFixture, changes: dict[str, Any], risk: str
) -> None:
    assert risk not in risks_in(planned(workspace, capsys))
    assert risk in risks_in(planned(workspace, capsys, **changes))


def test_most_rows_dropped_and_a_model_that_judges_itself_are_risks(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    workspace.write_rows("train.jsonl", [row(1)] * 91)
    judged = {"grader_model": workspace.settings["base_model"], "max_tokens": 4}
    plan = planned(workspace, capsys, evaluation=judged)
    assert {"most_rows_dropped", "judge_is_the_model"} <= risks_in(plan)


# --- capacity and serving: decisions alone --------------------------------------------------------


@pytest.mark.parametrize(
    ("num_params", "num_tokens", "method", "verdict", "rank"),
    [
        (1000, 1000, "sft", "room", 16),
        (999, 1000, "sft", "below", 17),
        (99, 1000, "sft", "far_below", 162),
        (1, 1000, "sft", "far_below", None),
        (None, 1000, "sft", "unknown", None),
        (1, 1000, "rl", "low_rank_is_enough", None),
        (1, 1000, "distillation", "low_rank_is_enough", None),
    ],
)
def test_an_adapters_room_is_judged_by_the_method(
    num_params: int | None, num_tokens: int, method: Method, verdict: str, rank: int | None
) -> None:
    found = capacity(num_params, num_tokens, 16, "", method)
    assert (found.verdict, found.rank_needed) == (verdict, rank)
    told = " ".join(describe(found))
    assert ("what helps" in told) == (verdict in ("below", "far_below"))
    assert ("its adapter has fewer parameters" in told) == ("what helps" in told)


@pytest.mark.parametrize(
    ("model", "train_unembed", "verdicts"),  # of PEFT, merged, vLLM, llama.cpp
    [
        ({"model_type": "llama", "tie_word_embeddings": False}, True, "yes yes yes not known"),
        ({"model_type": "qwen3", "tie_word_embeddings": False}, True, "yes yes no not known"),
        ({"model_type": "qwen3", "tie_word_embeddings": True}, True, "yes yes no not known"),
        ({"model_type": "qwen3", "tie_word_embeddings": True}, False, "yes yes yes not known"),
        ({"model_type": "gemma2"}, True, "yes yes no no"),
        ({"model_type": "qwen3_5_text"}, True, "yes yes no no"),
        ({"model_type": "qwen3_moe", "num_experts": 8}, False, "yes yes no not known"),
        ({"model_type": "mixtral", "num_local_experts": 8}, False, "yes yes no no"),
        ({"model_type": 7, "tie_word_embeddings": "x"}, True, "yes yes not known not known"),
        (None, True, "yes yes not known not known"),
        (None, False, "yes yes not known not known"),
    ],
)
def test_whether_the_adapter_can_be_served_follows_from_the_models_config(
    model: dict[str, Any] | None, train_unembed: bool, verdicts: str
) -> None:
    ways = ways_of(adapter_of(model, 16, train_unembed=train_unembed))
    assert " ".join(one.verdict for one in ways) == verdicts
    for one in ways:
        assert one.verdict != "no" or one.remedy
        assert train_unembed or "train_unembed" not in one.remedy


# --- prices ---------------------------------------------------------------------------------------

PRICES = {"train": 2, "prefill": 0.5, "cached_prefill": 0.05, "sample": 1}


def test_dollars_follow_from_the_table_that_a_file_holds(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    table = {
        "as_of": "2026-11-01",
        "usd_per_million_tokens": {workspace.settings["base_model"]: PRICES},
    }
    (workspace.folder / "prices.json").write_text(json.dumps(table))
    plan = planned(workspace, capsys, budget={"prices": "prices.json", "usd": 1e-9})
    cost = plan["cost"]
    assert cost["prices"] == {"as_of": "2026-11-01", "source": "prices.json", **PRICES}
    tokens = cost["tokens"]
    dollars = (2 * tokens["trained"] + tokens["prompt"] / 2 + tokens["sampled"]) / 1e6
    assert cost["dollars"]["total"] == pytest.approx(dollars)
    assert cost["dollars_per_round"] == pytest.approx(dollars / 2)
    assert any("more than budget.usd 1e-09" in line for line in plan["warnings"])
    assert any("by the prices of 2026-11-01, prices.json" in line for line in plan["plan"])


def test_an_amount_is_shown_as_one() -> None:
    amounts = [0.0, -0.0, 0.001, 0.5, 1234.5, 1e300]
    assert [money(one) for one in amounts] == [
        "$0.00",
        "$0.00",
        "$0.001",
        "$0.50",
        "$1,234.50",
        "$1e+300",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "budget.prices names 'prices.json', but there is no such file"),
        ("[1]", "a table of prices is one JSON object, found a list"),
        ("{", "not valid JSON"),
        ('{"as_of": "2026-11-01"}', "budget.prices.usd_per_million_tokens is missing"),
        ('{"as_of": "soon", "usd_per_million_tokens": {}}', "budget.prices.as_of"),
        ('{"as_of": "2026-02-30", "usd_per_million_tokens": {}}', "a day of the calendar"),
        (
            '{"as_of": "2026-11-01", "usd_per_million_tokens": {"m": {"train": -1}}}',
            "budget.prices.usd_per_million_tokens.m.train",
        ),
    ],
)
def test_a_file_that_is_no_table_of_prices_is_refused(
    workspace: Workspace, capsys: pytest.CaptureFixture, content: str | None, message: str
) -> None:
    if content is not None:
        (workspace.folder / "prices.json").write_text(content)
    assert workspace.run("run", "--dry-run", budget={"prices": "prices.json"}) == 2
    assert message in capsys.readouterr().err


# --- the commands, and what an earlier run tells --------------------------------------------------


@pytest.mark.trains
def test_the_pilot_is_a_run_that_tells_how_long_the_run_takes(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    """Its command is run as it stands, and the next plan has its speed and its baseline."""
    workspace.write_rows("test.jsonl", [{"question": "What is sealed here?", "answer": "x"}])
    changes = {
        "eval_threshold": 0.0,
        "steps_per_round": None,
        "num_epochs": 8,
        "warmup_steps": 2,
        "evaluation": {"max_tokens": 4, "test_tasks": ["qa:test.jsonl"], "test_on": "pass"},
    }
    plan = planned(workspace, capsys, **changes)
    assert plan["cost"]["seconds"] is None
    pilot = shlex.split(plan["commands"]["pilot"])
    assert plan["commands"]["pilot_steps"] == 5
    assert {"evaluation.test_tasks=[]", "num_epochs=null", "warmup_steps=null"} <= set(pilot)
    assert main(pilot[2:]) == 0
    store = RunStore.open(Path("runs") / "run-pilot")
    assert len(list(store.events("step"))) == 5
    assert store.test_result() is None
    plan = planned(workspace, capsys, **changes)
    assert plan["cost"]["speed_of"]["run"] == "run-pilot"
    assert plan["cost"]["seconds"] > 0
    assert any("of run-pilot, the newest run of this model" in line for line in plan["plan"])
    assert plan["commands"]["pilot"].endswith("runs/run-pilot-2")
    assert planned(workspace, capsys, **changes, lora_rank=8)["cost"]["seconds"] is None
    shutil.move("runs/run-pilot", "runs/moved")
    assert planned(workspace, capsys, **changes)["cost"]["seconds"] is None
    capsys.readouterr()
    table = {"as_of": "2026-11-01", "usd_per_million_tokens": {}}
    (workspace.folder / "prices.json").write_text(json.dumps(table))
    priced = ["--set", "budget.prices=prices.json"]
    assert main(["--resume", "runs/moved", "--dry-run", *priced]) == 0
    assert "no pilot run: the run has begun" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("total", "steps"), [(1, 1), (4, 4), (15, 5), (100, 10), (5_000, 500), (10**6, 500)]
)
def test_a_pilot_is_a_tenth_of_its_run(total: int, steps: int) -> None:
    assert pilot_steps(total) == steps


def test_many_rounds_are_shown_in_part_and_kept_in_full(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    plan = planned(workspace, capsys, max_rounds=400, steps_per_round=1)
    assert len(plan["schedule"]["rounds"]) == 400
    assert "  ... 390 rounds more ..." in plan["plan"]
    page = (workspace.folder / "config.plan" / "plan.html").read_text(encoding="utf-8")
    assert "The learning rate of each round (400 rows)" in page
    assert len(page) < 200_000
