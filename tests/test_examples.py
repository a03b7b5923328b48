"""Every task that an example names is built, and asked of a real service, on made-up samples; and
what examples/README.md says of their scorers is what the scorers do (inspect_evals 0.26.0)."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tinker

import local_tinker
from config_schema import LoadedConfig, load_and_validate_config
from conftest import REPO
from errors import ConfigError, EvalError
from evaluation.inspect_model import inspect_model
from evaluation.inspect_runs import InspectSetting, run_inspect
from evaluation.inspect_scores import InspectScores
from evaluation.inspect_tasks import InspectTask, TaskOptions, load_inspect_task
from example_rows import HUMANEVAL, offline
from model_dirs import make_model_dir
from sdk_client import using
from simple_eval import SamplingSettings

EXAMPLES = sorted((REPO / "examples").glob("*.json"))
CONFIGS = {file.stem: load_and_validate_config(str(file)) for file in EXAMPLES}
NAMED = sorted(
    {
        (name, task)
        for name, loaded in CONFIGS.items()
        for task in (*loaded.config.eval_tasks, *loaded.config.evaluation.test_tasks)
        if task.startswith("inspect_evals/") or ".py@" in task
    }
)


def load(loaded: LoadedConfig, name: str, **args: Any) -> InspectTask:
    settings = loaded.config.evaluation
    spec = name
    if ".py@" in name:
        file, _, task = name.rpartition("@")
        spec = f"{loaded.find('eval_tasks', file)}@{task}"
    options = TaskOptions(
        args={**settings.task_args.get(name, {}), **args},
        limit=min(3, settings.limit.get(name) or 3),
        score_key=settings.score_key.get(name),
        cluster_key=settings.cluster_key.get(name),
    )
    return load_inspect_task(name, spec, options)


LONG_CONTEXT = 8192  # tokens; prompts with tools are longer than the demo model's context
MAX_MESSAGES = 4
# What the machine at hand may lack; the reason that is given then.
REFUSED = {
    "inspect_evals/ifeval": "To use instruction_following_eval, please install",
}
JUDGED = ("inspect_evals/xstest", "inspect_evals/strong_reject")
IN_SANDBOX = {  # how each comes to run the model's code here, in a folder of the test's
    "inspect_evals/humaneval": {"sandbox": "local"},
    "inspect_evals/gaia": {"sandbox": "local"},
    "inspect_evals/mbpp": {},
    "inspect_evals/apps": {},
}


class Served:
    """A service with two models: the demo's, and one with random weights and a long context."""

    def __init__(self, service: local_tinker.Service, dirs: Mapping[str, Path]) -> None:
        self.service, self.dirs = service, dirs

    def ask(self, task: InspectTask, name: str, renderer: str, folder: Path, judge: Any) -> Any:
        """One evaluation of an untouched model; `judge` of None is the same model."""
        from tinker_cookbook.renderers import get_renderer
        from tinker_cookbook.tokenizer_utils import get_tokenizer

        rendering = get_renderer(renderer, get_tokenizer(str(self.dirs[name])))
        settings = SamplingSettings(temperature=0.0, max_tokens=8, seed=1)

        async def evaluate(client: tinker.ServiceClient) -> Any:
            sampler = await client.create_sampling_client(base_model=name)
            model = inspect_model(sampler, rendering, 1, "untouched")
            logs = folder / "logs"
            setting = InspectSetting(model, judge or model, settings, logs, tags=[], metadata={})
            (done,) = await run_inspect([task], setting)
            return done

        return using(self.service, folder / "checkpoints", evaluate)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    long = make_model_dir(
        tmp_path_factory.mktemp("models") / "long", "qwen3", tied=True, context=LONG_CONTEXT
    )
    dirs = {"demo": REPO / "demo_model", "long": long}
    models = [(name, str(path)) for name, path in dirs.items()]
    with local_tinker.start(models) as service:
        yield Served(service, dirs)


def saying(answer: str | Callable[[str], str]) -> Any:
    """An Inspect model that says the same each time, or what belongs to a sample's id."""
    from inspect_ai.model import GenerateConfig, Model, ModelAPI, ModelOutput, modelapi
    from inspect_ai.solver._task_state import sample_state

    @modelapi(name="saying")
    class Saying(ModelAPI):
        async def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> Any:
            sample = sample_state()
            assert sample is not None
            said = answer if isinstance(answer, str) else answer(str(sample.sample_id))
            return ModelOutput.from_content("saying", said)

        async def count_text_tokens(self, text: str) -> int:
            return len(text)  # Inspect's own would ask the network

    return Model(Saying("saying"), GenerateConfig())


def in_local_sandbox(monkeypatch: pytest.MonkeyPatch, name: str) -> Mapping[str, Any]:
    """Arguments with which a task needs no Docker; where it knows none, its sandbox is replaced."""
    if name in ("inspect_evals/mbpp", "inspect_evals/apps"):
        short = name.rpartition("/")[2]
        module = import_module(f"inspect_evals.{short}.{short}")
        task = module.Task
        monkeypatch.setattr(module, "Task", lambda **given: task(**{**given, "sandbox": "local"}))
    return IN_SANDBOX.get(name, {})


# --- every task that is named ---------------------------------------------------------------------


@pytest.mark.parametrize(("example", "name"), NAMED)
def test_a_task_that_an_example_names_is_built_and_asked(
    example: str, name: str, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(monkeypatch, tmp_path)
    args = in_local_sandbox(monkeypatch, name)
    if name in REFUSED and find_spec("instruction_following_eval") is None:
        with pytest.raises(ConfigError, match=REFUSED[name]):
            load(CONFIGS[example], name, **args)
        return
    task = load(CONFIGS[example], name, **args)
    assert len(task.questions) == 3
    if task.task.message_limit is not None:  # an agent's turns, of which a few show as much
        task.task.message_limit = MAX_MESSAGES
    assert task.uses_grader == (name in JUDGED)
    asked = (
        ("long", "qwen3_instruct") if example == "tools" or "apps" in name else ("demo", "llama3")
    )
    ask = functools.partial(served.ask, task, *asked, tmp_path)
    if name in JUDGED:
        # The demo model is no judge: that it gives no grade is a failure, not a wrong answer.
        failed = ask(None)
        assert isinstance(failed, EvalError)
        assert "3 of 3 samples failed" in str(failed)
    grade = "GRADE: C\n#scores\n1.b 1\n2.b 1\n3.b 1"
    scores = ask(saying(grade)) if name in JUDGED else ask(None)
    assert isinstance(scores, InspectScores), scores
    assert len(scores.samples) == 3
    assert [sample.error for sample in scores.samples] == [None] * 3
    assert all(0 <= sample.score <= 1 for sample in scores.samples)
    if name in JUDGED:
        assert [sample.score for sample in scores.samples] == [1.0] * 3


@pytest.mark.parametrize("name", [name for name in IN_SANDBOX if name != "inspect_evals/gaia"])
def test_without_docker_a_task_that_needs_it_is_refused_with_the_reason(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(monkeypatch, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="a Docker sandbox, and there is no docker command"):
        load(CONFIGS["code"], name)


# --- what the page says of the scorers ------------------------------------------------------------


def graded(scorer: Any, answer: str, *targets: str) -> bool:
    """What a scorer of Inspect makes of an answer."""
    from inspect_ai.model import ModelName, ModelOutput
    from inspect_ai.scorer import Target
    from inspect_ai.solver import TaskState

    output = ModelOutput.from_content("x/y", answer)
    state = TaskState(ModelName("x/y"), 1, 1, "q", messages=[], output=output)
    return asyncio.run(scorer(state, Target(list(targets)))).value == "C"


@pytest.mark.parametrize(
    ("scorer", "target", "right", "wrong"),
    [
        ("aime", "8", ["ANSWER: 8", r"$\boxed{8}$", "8"], ["18", "8\nCheck: 4"]),
        # `exact` drops articles and punctuation, and sorts the words
        ("exact", "A", [], ["A", "a", "A."]),
        ("exact", "5", ["5", "-5"], ["5 apples"]),
        ("exact", "C", ["C", "C++"], ["B"]),
        ("exact", "a b", ["b", "B a"], ["a c"]),
        ("exact", "Paris", ["the paris."], ["It is Paris"]),
        # `match` looks at the end of the text, also inside of a word
        ("match", "A", ["The answer is A.", "banana"], ["A is the answer"]),
        ("match", "8", ["18"], ["8 legs"]),
        # `match(numeric=True)` takes the last number, where it stands alone
        ("numeric", "8", ["ANSWER: 8", "**8**", "$8.", "8.0", "8 legs"], ["18", "-8", "8%"]),
        ("numeric", "8", ["8 kg"], [r"\boxed{8}", "8kg", "eight", "8 of 4 + 4", "8\n\nCheck: 4"]),
        # `includes` finds the text anywhere
        ("includes", "no", ["No.", "I know"], ["yes"]),
        ("includes", "1234", ["12345"], ["1,234"]),
    ],
)  # fmt: skip
def test_what_inspects_scorers_accept(
    scorer: str, target: str, right: list[str], wrong: list[str]
) -> None:
    from inspect_ai.scorer import exact, includes, match
    from inspect_evals.utils.aime_common import aime_scorer

    made = {
        "exact": exact(),
        "match": match(),
        "includes": includes(),
        "numeric": match(numeric=True),
        "aime": aime_scorer(),
    }[scorer]
    assert [answer for answer in right if not graded(made, answer, target)] == []
    assert [answer for answer in wrong if graded(made, answer, target)] == []


FUNCTION = "def add0(a, b):\n    return a + b\n"
WRITTEN = {  # each is a right answer
    "whole": f"```python\n{FUNCTION}```",
    "text around": f"Here it is:\n```python\n{FUNCTION}```\nDone.",
    "no fence": FUNCTION,
    "body without fence": "    return a + b\n",
    "helper after": "```python\ndef add0(a, b):\n    return both(a, b)\n\n"
    "def both(a, b):\n    return a + b\n```",
    "two spaces": "```python\ndef add0(a, b):\n  return a + b\n```",
    "tab": "```python\ndef add0(a, b):\n\treturn a + b\n```",
    "comment": "```python\ndef add0(a, b):  # adds\n    return a + b\n```",
    "helper before": "```python\ndef both(a, b):\n    return a + b\n\n"
    "def add0(a, b):\n    return both(a, b)\n```",
    "import": "```python\nimport math\n\ndef add0(a, b):\n    return int(math.fsum([a, b]))\n```",
    "body": "```python\n    return a + b\n```",
}
CUT = ("two spaces", "tab", "comment", "helper before", "import", "body")


def test_humaneval_cuts_some_right_answers_that_stand_in_a_fence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import example_rows

    rows = [{**HUMANEVAL[0], "task_id": how} for how in WRITTEN]
    monkeypatch.setitem(example_rows.HUB, "openai/openai_humaneval", rows)  # pyright: ignore
    offline(monkeypatch, tmp_path)
    options = TaskOptions(args={"sandbox": "local"})
    task = load_inspect_task("inspect_evals/humaneval", "inspect_evals/humaneval", options)
    settings = SamplingSettings(temperature=0.0, max_tokens=64, seed=1)
    model = saying(lambda sample_id: WRITTEN[sample_id])
    setting = InspectSetting(model, None, settings, tmp_path / "logs", tags=[], metadata={})
    (done,) = asyncio.run(run_inspect([task], setting))
    assert isinstance(done, InspectScores), done
    wrong = [one.id.rpartition("/")[2] for one in done.samples if one.score == 0]
    assert sorted(wrong) == sorted(CUT)


def test_multiple_choice_is_read_behind_the_word_answer_alone() -> None:
    from inspect_ai.model import ModelName, ModelOutput
    from inspect_ai.solver import TaskState
    from inspect_ai.solver._multiple_choice import parse_answers

    def chosen(answer: str) -> set[str]:
        output = ModelOutput.from_content("x/y", answer)
        given = {"messages": [], "output": output, "choices": ["1", "2", "3", "4"]}
        state = TaskState(ModelName("x/y"), 1, 1, "q", **given)
        return parse_answers(state, multiple_correct=False)

    assert [chosen(answer) for answer in ("ANSWER: B", "answer: b.", "So B.\nANSWER: B")] == [
        {"B"}
    ] * 3
    assert [chosen(answer) for answer in ("B", "The answer is B", "B)")] == [set()] * 3
