"""The plan before a run: the catalogue of benchmarks, its parts, the page, the pilot's command."""

from __future__ import annotations

import pytest

from evaluation.benchmarks import BENCHMARKS, READ_IN, benchmark_of

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
