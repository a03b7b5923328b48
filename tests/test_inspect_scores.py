"""One bad sample is one failed sample; limits, reasoning and reducers of Inspect's tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tinker

import local_tinker
from errors import ConfigError, EvalError
from evaluation.inspect_model import Asked, _mark, inspect_model
from evaluation.inspect_runs import InspectSetting, run_inspect
from evaluation.inspect_scores import InspectScores
from evaluation.inspect_tasks import TaskOptions, load_inspect_task
from sdk_client import using
from simple_eval import SamplingSettings

TASKS = """
import math
from inspect_ai import Epochs, Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageUser, GenerateConfig
from inspect_ai.scorer import Score, mean, scorer
from inspect_ai.solver import generate, solver

BAD = {
    "none": None,
    "nan": Score(value=math.nan, explanation="no grade found"),
    "inf": Score(value=math.inf),
    "unscored": Score.unscored(explanation="the judge refused"),
    "word": Score(value="maybe"),
    "list": Score(value=[1, 0]),
    "dict": Score(value={"other": 1}),
    "over": Score(value=1.25),
    "under": Score(value=-0.5),
    "rounded": Score(value=1.0000001192092896),
    "rounded down": Score(value=-1e-7),
    "minus zero": Score(value=-0.0),
    "bool": Score(value=True),
}


def asked(number=12):
    return [Sample(id=i, input=f"Say the word number {i}.", target="x") for i in range(number)]


@scorer(metrics=[mean()])
def sometimes(bad, every):
    async def score(state, target):
        if state.sample_id % every == 0:
            if bad == "raise":
                raise ValueError("the scorer is at fault")
            return 0.5 if bad == "no score" else BAD[bad]
        return Score(value=0.5)

    return score


@scorer(metrics={"em": [mean()], "f1": [mean()]})
def two(bad):
    async def score(state, target):
        if state.sample_id == 0:
            if bad == "key missing":
                return Score(value={"em": 1})
            if bad == "key nan":
                return Score(value={"em": 1, "f1": math.nan})
            return BAD[bad]
        return Score(value={"em": 0, "f1": 1})

    return score


@scorer(metrics=[mean()])
def strict():
    async def score(state, target):
        return None if state.sample_id == 0 else Score(value=0)

    return score


@scorer(metrics=[mean()])
def lenient():
    async def score(state, target):
        return Score(value=1, explanation="generous")

    return score


@solver
def scored_by_solver():
    async def solve(state, generate):
        state.scores = {"solved": Score(value=1)}
        return await generate(state)

    return solve


@solver
def twice(first_tokens):
    async def solve(state, generate):
        state = await generate(state, max_tokens=first_tokens)
        state.messages.append(ChatMessageUser(content="Once more."))
        state.output.choices[0].stop_reason = "stop"
        return await generate(state)

    return solve


def of(scorers, solvers=None, **options):
    return Task(dataset=asked(), solver=solvers or generate(), scorer=scorers, **options)


@task
def some(bad: str, every: int = 12):
    return of(sometimes(bad, every))


@task
def keyed(bad: str):
    return of(two(bad))


@task
def several():
    return of([strict(), lenient()])


@task
def before():
    return of([strict(), lenient()], [scored_by_solver()])


@task
def limited(kind: str):
    limits = {"token": {"token_limit": 5}, "message": {"message_limit": 2},
              "cut": {}, "none": {}}[kind]
    return of(lenient(), [twice(2 if kind == "cut" else 100)],
              config=GenerateConfig(max_tokens=100), **limits)


@task
def reduced():
    return of(lenient(), epochs=Epochs(5, ["mean", "pass_at_1", "pass_at_2", "pass_at_5"]))
"""


@pytest.fixture(scope="module")
def tasks_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tasks") / "tasks.py"
    file.write_text(TASKS)
    return file


class Ran(NamedTuple):
    outcome: InspectScores | EvalError | ConfigError

    @property
    def score(self) -> float:
        assert isinstance(self.outcome, InspectScores), self.outcome
        return sum(one.score for one in self.outcome.samples) / len(self.outcome.samples)

    @property
    def errors(self) -> list[str]:
        assert isinstance(self.outcome, InspectScores), self.outcome
        return [one.error for one in self.outcome.samples if one.error is not None]


class Runner(NamedTuple):
    service: local_tinker.Service
    model_dir: Path
    tasks_file: Path
    folder: Path

    def run(self, name: str, max_tokens: int | None = 4, score_key: str | None = None, **args: Any):
        from tinker_cookbook.renderers import get_renderer
        from tinker_cookbook.tokenizer_utils import get_tokenizer

        options = TaskOptions(args=args, score_key=score_key)
        task = load_inspect_task(f"tasks.py@{name}", f"{self.tasks_file}@{name}", options)
        renderer = get_renderer("llama3", get_tokenizer(str(self.model_dir)))

        async def evaluate(client: tinker.ServiceClient) -> Ran:
            sampler = await client.create_sampling_client(base_model="llama")
            setting = InspectSetting(
                inspect_model(sampler, renderer, 0, "untouched"),
                None,
                SamplingSettings(temperature=0.0, max_tokens=max_tokens, seed=5),
                log_dir=self.folder / "inspect_logs",
                tags=[],
                metadata={},
            )
            (done,) = await run_inspect([task], setting)
            return Ran(done)

        return using(self.service, self.folder / "checkpoints", evaluate)


@pytest.fixture
def runner(
    service: local_tinker.Service, llama_dir: Path, tasks_file: Path, tmp_path: Path
) -> Runner:
    return Runner(service, llama_dir, tasks_file, tmp_path)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("none", "gave no score"),
        ("nan", "no grade found"),
        ("inf", "inf"),
        ("unscored", "the judge refused"),
        ("word", "'maybe'"),
        ("list", "[1"),
        ("dict", "several values"),
        ("over", "1.25"),
        ("under", "-0.5"),
        ("raise", "at fault"),
        ("no score", ""),
    ],
)
def test_a_sample_without_a_usable_score_is_one_failed_sample(
    runner: Runner, bad: str, said: str
) -> None:
    ran = runner.run("some", bad=bad)
    assert ran.score == pytest.approx(11 / 12 / 2)
    (error,) = ran.errors
    assert said in error


@pytest.mark.parametrize(
    ("bad", "value"), [("rounded", 1.0), ("rounded down", 0.0), ("minus zero", 0.0), ("bool", 1.0)]
)
def test_a_score_off_by_rounding_is_a_score(runner: Runner, bad: str, value: float) -> None:
    ran = runner.run("some", bad=bad)
    assert not ran.errors
    assert ran.score == pytest.approx((11 / 2 + value) / 12)
    assert isinstance(ran.outcome, InspectScores)
    assert {one.score for one in ran.outcome.samples} == {0.5, value}
    assert "-0.0" not in [repr(one.score) for one in ran.outcome.samples]


@pytest.mark.parametrize("bad", ["over", "word", "list", "dict"])
def test_what_is_so_with_every_sample_is_a_mistake_of_the_scorer(runner: Runner, bad: str) -> None:
    assert isinstance(runner.run("some", bad=bad, every=1).outcome, ConfigError)
    some = runner.run("some", bad=bad, every=2).outcome
    assert type(some) is EvalError and "6 of 12 samples failed" in str(some)


@pytest.mark.parametrize("bad", ["unscored", "nan", "none", "key missing", "key nan", "over"])
def test_of_several_values_one_may_be_missing_in_one_sample(runner: Runner, bad: str) -> None:
    ran = runner.run("keyed", score_key="f1", bad=bad)
    assert ran.score == pytest.approx(11 / 12)
    assert len(ran.errors) == 1


def test_the_first_scorer_counts_also_for_a_sample_that_it_left_out(runner: Runner) -> None:
    for name in ("several", "before"):
        ran = runner.run(name)
        assert ran.score == 0.0
        assert isinstance(ran.outcome, InspectScores)
        (error,) = ran.errors
        assert "strict left it out" in error
        for sample in ran.outcome.samples:
            assert sample.other_scores["lenient"] == 1.0
    named = runner.run("several", score_key="lenient")
    assert named.score == 1.0 and not named.errors
    assert isinstance(named.outcome, InspectScores)
    assert [sample.other_scores for sample in named.outcome.samples][1:] == [{"strict": 0.0}] * 11


@pytest.mark.parametrize(
    ("kind", "is_cut"), [("token", True), ("message", True), ("cut", True), ("none", None)]
)
def test_what_a_limit_cut_short_is_truncated(
    runner: Runner, kind: str, is_cut: bool | None
) -> None:
    from inspect_ai.log import read_eval_log

    outcome = runner.run("limited", max_tokens=None, kind=kind).outcome
    assert isinstance(outcome, InspectScores)
    log = read_eval_log(str(outcome.log))
    for sample, logged in zip(outcome.samples, log.samples or [], strict=True):
        ends = [
            event.output.choices[0].stop_reason
            for event in logged.events
            if event.event == "model" and event.output.choices
        ]
        expected = logged.limit is not None or "max_tokens" in ends
        assert sample.truncated == expected
        assert is_cut is None or expected == is_cut
        assert sample.score == 1.0 or sample.malformed  # graded as it stands


def test_reducers_give_way_to_the_mean_of_the_repeats_that_there_are(runner: Runner) -> None:
    ran = runner.run("reduced")
    assert ran.score == 1.0


@pytest.mark.parametrize("renderer_name", ["llama3", "role_colon", "qwen3"])
def test_what_was_thought_aloud_is_no_part_of_an_answer(
    renderer_name: str, llama_dir: Path, qwen_dir: Path
) -> None:
    from inspect_ai.model import ModelOutput
    from tinker_cookbook.renderers import get_renderer, get_text_content
    from tinker_cookbook.tokenizer_utils import get_tokenizer

    tokenizer = get_tokenizer(str(qwen_dir if renderer_name == "qwen3" else llama_dir))
    renderer = get_renderer(renderer_name, tokenizer)
    prompt = renderer.build_generation_prompt([{"role": "user", "content": "Say 9."}])
    end = renderer.get_stop_sequences()[0]

    def marked(text: str, is_cut: bool = False) -> Any:
        tokens = tokenizer.encode(text, add_special_tokens=False)
        if not is_cut:
            tokens += [end] if isinstance(end, int) else tokenizer.encode(end)
        reason = "length" if is_cut else "stop"
        sequence = tinker.SampledSequence(reason, "0", tokens_np=np.array(tokens))
        message = renderer.parse_response(list(tokens))[0]
        output = ModelOutput.from_content("tinker/x", get_text_content(message))
        _mark(output, Asked(prompt, [sequence]), renderer)
        return output

    closed = marked("<think>maybe 4</think> It is 9.")
    assert closed.completion.strip() == "It is 9."
    assert not (closed.metadata or {}).get("malformed")
    never_closed = marked("<think>\nmaybe 4")
    assert never_closed.completion == ""
    assert never_closed.metadata["malformed"]
    cut = marked("<think>\nmaybe 4", is_cut=True)
    assert cut.completion == "" and cut.choices[0].stop_reason == "max_tokens"
    assert marked("It is 9.").completion.strip() == "It is 9."
