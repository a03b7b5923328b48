"""Inspect tasks on the embedded service: what their logs say is what the records say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tinker
from inspect_ai.log import EvalLog, read_eval_log

import local_tinker
from errors import ConfigError, EvalError
from evaluation.inspect_model import inspect_model
from evaluation.inspect_runs import InspectSetting, run_inspect
from evaluation.inspect_scores import InspectScores, scores_of
from evaluation.inspect_tasks import InspectTask, TaskOptions, load_inspect_task
from scores.results import SampleResult
from sdk_client import using
from simple_eval import SamplingSettings

TASKS = """
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import get_model
from inspect_ai.scorer import Score, includes, mean, model_graded_qa, scorer
from inspect_ai.solver import generate, solver


def samples(number, word="thing"):
    return MemoryDataset(
        [
            Sample(
                id=f"s{i}",
                input=f"Name {word} {i}.",
                target="ae"[i % 2],
                metadata={"topic": f"topic {i % 2}", "cluster": f"c{i // 2}", "origin": i // 3},
            )
            for i in range(number)
        ],
        name="things",
    )


@solver
def crash(spared):
    async def solve(state, generate):
        if int(state.sample_id[1:]) >= spared:
            raise ValueError(f"{state.sample_id} cannot be asked")
        return await generate(state)

    return solve


@scorer(metrics={"*": [mean()]})  # which values, only its scores show
def two_values():
    async def score(state, target):
        return Score(value={"right": 1.0, "length": 0.25})

    return score


@scorer(metrics={"right": [mean()], "length": [mean()]})
def two_known_values():
    async def score(state, target):
        return Score(value={"right": 1.0, "length": 0.25})

    return score


@task
def known():
    return Task(dataset=samples(2, "river"), solver=generate(), scorer=two_known_values())


@scorer(metrics=[mean()])
def percent():
    async def score(state, target):
        return Score(value=80)

    return score


@task
def things(number: int = 6, word: str = "thing"):
    return Task(dataset=samples(number, word), solver=generate(), scorer=includes())


@task
def crashing(number: int = 20, spared: int = 19):
    return Task(dataset=samples(number, "fruit"), solver=crash(spared), scorer=includes())


@task
def several():
    return Task(dataset=samples(2, "river"), solver=generate(), scorer=two_values())


@task
def outside():
    return Task(dataset=samples(2), solver=generate(), scorer=percent())


@scorer(metrics=[mean()])
def saying(value):
    async def score(state, target):
        return Score(value=value)

    return score


@task
def worded():
    return Task(dataset=samples(2), solver=generate(), scorer=saying("maybe"))


@task
def listed():
    return Task(dataset=samples(2), solver=generate(), scorer=saying([1, 0]))


@task
def unscored():
    return Task(dataset=samples(2), solver=generate())


@task
def twice():
    again = MemoryDataset([*samples(2), *samples(1)], name="twice")
    return Task(dataset=again, solver=generate(), scorer=includes())


@scorer(metrics=[mean()])
def by_hand():
    async def score(state, target):
        answer = await get_model(role="grader").generate("Is it right?")
        return Score(value=len(answer.completion) % 2)

    return score


@task
def judged_by_hand():
    return Task(dataset=samples(2), solver=generate(), scorer=by_hand())


@task
def judged():
    return Task(dataset=samples(2), solver=generate(), scorer=model_graded_qa())


@task
def empty():
    return Task(dataset=samples(2).filter(lambda sample: False), solver=generate())
"""
SAMPLED = SamplingSettings(temperature=1.0, max_tokens=12, seed=5, num_repeats=3)
METADATA = {"run": "r1", "round": 2}


class Evaluated(NamedTuple):
    """What a task came to, and its log read back."""

    scores: InspectScores
    log: EvalLog


@pytest.fixture(scope="module")
def tasks_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tasks") / "tasks.py"
    file.write_text(TASKS)
    return file


def load(file: Path, name: str = "things", **options: Any) -> InspectTask:
    settings = {"args": {}, "limit": None, "score_key": None, "cluster_key": None, **options}
    return load_inspect_task(f"tasks.py@{name}", f"{file}@{name}", TaskOptions(**settings))


def run(
    service: local_tinker.Service,
    llama_dir: Path,
    folder: Path,
    tasks: Sequence[InspectTask],
    settings: SamplingSettings,
) -> list[Evaluated]:
    """One evaluation of the untouched model, as a round makes it."""
    from tinker_cookbook.renderers import get_renderer
    from tinker_cookbook.tokenizer_utils import get_tokenizer

    renderer = get_renderer("llama3", get_tokenizer(str(llama_dir)))

    async def evaluate(client: tinker.ServiceClient) -> list[InspectScores]:
        sampler = await client.create_sampling_client(base_model="llama")
        setting = InspectSetting(
            inspect_model(sampler, renderer, settings.seed, "untouched"),
            None,
            settings,
            log_dir=folder / "inspect_logs",
            tags=["loop", "round 2"],
            metadata=METADATA,
        )
        done = await run_inspect(tasks, setting)
        for scores in done:
            if not isinstance(scores, InspectScores):
                raise scores
        return [scores for scores in done if isinstance(scores, InspectScores)]

    done = using(service, folder / "checkpoints", evaluate)
    return [Evaluated(scores, read_eval_log(str(scores.log))) for scores in done]


@pytest.fixture(scope="module")
def sampled(
    service: local_tinker.Service,
    llama_dir: Path,
    tasks_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Evaluated]:
    """Three tasks in one evaluation, every question asked three times."""
    tasks = [
        load(tasks_file, cluster_key="origin"),
        load(tasks_file, "crashing"),
        load(tasks_file, "several", score_key="length"),
    ]
    done = run(service, llama_dir, tmp_path_factory.mktemp("sampled"), tasks, SAMPLED)
    return {task.name.removeprefix("tasks.py@"): one for task, one in zip(tasks, done, strict=True)}


def answers_of(samples: Sequence[SampleResult]) -> dict[str, list[str | None]]:
    answers = defaultdict(list)
    for sample in samples:
        answers[sample.id].append(sample.answer)
    return {id_: sorted(given, key=str) for id_, given in answers.items()}


# --- loading --------------------------------------------------------------------------------------


def test_loading_gives_questions_topics_and_a_hash_of_all_that_is_asked(tasks_file: Path) -> None:
    task = load(tasks_file)
    assert task.questions == tuple(f"Name thing {i}." for i in range(6))
    assert [sample.id for sample in task.task.dataset] == [f"s{i}" for i in range(6)]
    assert task.topics == {"topic 0", "topic 1"}
    assert load(tasks_file).sha256 == task.sha256
    shorter, reworded = load(tasks_file, limit=2), load(tasks_file, args={"word": "animal"})
    assert shorter.questions == task.questions[:2]
    assert reworded.questions[0] == "Name animal 0."
    spelled_out = load(tasks_file, args={"number": 6})
    hashes = {one.sha256 for one in (task, shorter, reworded, spelled_out)}
    assert len(hashes) == 4
    assert len(load(tasks_file, limit=100).questions) == 6


def test_a_model_graded_task_is_known_as_one(tasks_file: Path, tmp_path: Path) -> None:
    assert load(tasks_file, "judged").uses_grader
    plain = tmp_path / "plain.py"
    plain.write_text(TASKS.replace('role="grader"', 'role="grader", default="openai/gpt-4o"'))
    assert not load(plain, "judged_by_hand").uses_grader
    assert not load(tasks_file).uses_grader
    # whose code has to be looked at, to see that the evaluated model would grade itself
    assert load(tasks_file, "judged_by_hand").uses_grader


@pytest.mark.parametrize(
    ("spec", "args", "part"),
    [
        ("missing.py@things", {}, "missing.py"),
        (
            "tasks.py@nothing",
            {},
            "its tasks are known, things, crashing, several, outside,",
        ),
        ("no_such_package/nothing", {}, "no_such_package"),
        ("tasks.py@empty", {}, "no samples"),
        ("tasks.py@unscored", {}, "no scorer"),
        ("tasks.py@twice", {}, "two samples have the id 's0'"),
        ("own.py@things", {}, "names a model of its own, mockllm/model, which would answer"),
        ("raising.py@things", {}, "the hub is down"),
        ("lacking.py@things", {}, "no_such_module"),
        ("gated.py@things", {}, "Exception: ask for access"),
        ("tasks.py@things", {"colour": "red"}, "'colour', which the task does not take; it takes"),
        ("tasks.py@things", {"numbr": 3}, "did you mean number?"),
    ],
)
def test_a_task_that_cannot_be_loaded_is_named_with_the_reason(
    tmp_path: Path, spec: str, args: dict[str, Any], part: str
) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    decorated = "from inspect_ai import Task, task\n\n\n@task\ndef things():\n"
    (tmp_path / "raising.py").write_text(f"{decorated}    raise RuntimeError('the hub is down')\n")
    (tmp_path / "gated.py").write_text(f"{decorated}    raise Exception('ask for access')\n")
    own = TASKS.replace("scorer=includes())", 'scorer=includes(), model="mockllm/model")', 1)
    (tmp_path / "own.py").write_text(own)
    (tmp_path / "lacking.py").write_text(f"import no_such_module\n{decorated}    return Task()\n")
    path = str(tmp_path / spec) if ".py@" in spec else spec
    with pytest.raises(ConfigError) as caught:
        load_inspect_task(spec, path, TaskOptions(args))
    assert str(caught.value).startswith(f"{spec}: ")
    assert part in str(caught.value)


def test_a_cluster_key_that_no_sample_has_is_refused(tasks_file: Path) -> None:
    assert load(tasks_file, cluster_key="origin").num_clusters == 2
    assert load(tasks_file).num_clusters == 3
    with pytest.raises(ConfigError, match=r"'famly', which no sample has .* cluster, origin, top"):
        load(tasks_file, cluster_key="famly")


def test_samples_without_a_cluster_stand_alone(tmp_path: Path) -> None:
    unset = TASKS.replace('"cluster": ', '"cluster": None, "other": ')
    (tmp_path / "tasks.py").write_text(unset)
    assert load(tmp_path / "tasks.py").num_clusters == 6


def test_a_changed_scorer_changes_the_hash(tasks_file: Path, tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS.replace("len(answer.completion) % 2", "1"))
    assert load(tmp_path / "tasks.py").sha256 != load(tasks_file).sha256
    assert load(tasks_file, score_key="includes").sha256 != load(tasks_file).sha256


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("@task\ndef other(:\n", "SyntaxError: "),
        ("from inspect_ai import Task\n", "it has no function under @task"),
        ("from inspect_ai import task\n\n\n@task\ndef other(): ...\n", "its tasks are other"),
    ],
)
def test_a_task_is_never_taken_from_another_file(
    tasks_file: Path, tmp_path: Path, text: str, part: str
) -> None:
    load(tasks_file)
    (tmp_path / "others.py").write_text(text)
    with pytest.raises(ConfigError, match=r"others\.py") as caught:
        load(tmp_path / "others.py")
    assert part in str(caught.value)


def test_a_task_may_be_imported_and_two_files_may_have_tasks_of_one_name(
    tasks_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "my_library.py").write_text(TASKS.replace("Name", "Find"))
    (tmp_path / "own.py").write_text(
        "from inspect_ai import Task, task\nfrom my_library import samples, things\n\n\n"
        "@task\ndef other():\n    return Task(dataset=samples(1))\n"
    )
    (mine, theirs) = load(tmp_path / "own.py", "things"), load(tasks_file, "things")
    assert (mine.questions[0], theirs.questions[0]) == ("Find thing 0.", "Name thing 0.")


# --- running --------------------------------------------------------------------------------------


def test_records_say_what_the_log_says(sampled: dict[str, Evaluated]) -> None:
    scores, log = sampled["things"]
    assert log.status == "success"
    assert set(log.eval.tags or []) == {"loop", "round 2"}  # Inspect keeps them as a set
    assert METADATA.items() <= (log.eval.metadata or {}).items()
    assert log.samples is not None and len(log.samples) == 18
    made = {(sample.id, sample.repeat): sample for sample in scores.samples}
    assert len(made) == 18
    for logged in log.samples:
        sample = made[f"tasks.py@things/{logged.id}", logged.epoch]
        assert logged.scores is not None
        assert sample.score == (logged.scores["includes"].value == "C")
        assert sample.answer == logged.output.completion
        assert (sample.question, sample.expected) == (logged.input, (logged.target,))
        number = int(str(logged.id)[1:])
        assert (sample.topic, sample.cluster) == (f"topic {number % 2}", str(number // 3))
        assert sample.num_prompt_tokens > 10
        assert 0 < sample.num_sampled_tokens <= 12
        assert sample.error is None
    shares = [sample.score for sample in scores.samples]
    assert 0 < sum(shares) < len(shares)  # otherwise the comparison above would show little
    assert scores.metrics["includes/accuracy"] == pytest.approx(sum(shares) / len(shares))


def test_repeats_differ_and_are_the_same_ones_in_the_next_evaluation(
    service: local_tinker.Service,
    llama_dir: Path,
    tasks_file: Path,
    sampled: dict[str, Evaluated],
    tmp_path: Path,
) -> None:
    first = sampled["things"].scores.samples
    answers = answers_of(first)
    assert all(len(set(given)) == 3 for given in answers.values())
    for id_ in answers:
        assert sorted(sample.repeat for sample in first if sample.id == id_) == [1, 2, 3]
    (again,) = run(service, llama_dir, tmp_path, [load(tasks_file)], SAMPLED)
    assert answers_of(again.scores.samples) == answers
    other_seed = replace(SAMPLED, seed=6)
    (other,) = run(service, llama_dir, tmp_path, [load(tasks_file)], other_seed)
    assert answers_of(other.scores.samples) != answers


@pytest.mark.parametrize(("max_tokens", "all_truncated"), [(2, True), (150, False)])
def test_truncated_answers_are_marked_here_and_in_the_log(
    service: local_tinker.Service,
    llama_dir: Path,
    tasks_file: Path,
    tmp_path: Path,
    max_tokens: int,
    all_truncated: bool,
) -> None:
    settings = SamplingSettings(temperature=1.0, max_tokens=max_tokens, seed=5)
    (done,) = run(service, llama_dir, tmp_path, [load(tasks_file)], settings)
    assert done.log.samples is not None
    stop_reasons = {f"tasks.py@things/{s.id}": s.output.stop_reason for s in done.log.samples}
    for sample in done.scores.samples:
        assert sample.truncated == (stop_reasons[sample.id] == "max_tokens")
        assert sample.truncated == (sample.num_sampled_tokens == max_tokens)
        assert not sample.malformed
    num_truncated = sum(sample.truncated for sample in done.scores.samples)
    assert num_truncated == 6 if all_truncated else 0 < num_truncated < 6


def test_a_crashed_sample_stays_in_the_denominator(sampled: dict[str, Evaluated]) -> None:
    scores, log = sampled["crashing"]
    assert log.status == "success"
    assert len(scores.samples) == 3 * 20
    crashed = [sample for sample in scores.samples if sample.error is not None]
    assert [(sample.id, sample.score) for sample in crashed] == [("tasks.py@crashing/s19", 0.0)] * 3
    assert {sample.repeat for sample in crashed} == {1, 2, 3}
    assert all("s19 cannot be asked" in (sample.error or "") for sample in crashed)
    assert all(sample.answer for sample in scores.samples if sample.error is None)


def test_a_scorer_with_several_values_needs_a_score_key(
    sampled: dict[str, Evaluated], tasks_file: Path
) -> None:
    scores, log = sampled["several"]
    assert {sample.score for sample in scores.samples} == {0.25}
    with pytest.raises(ConfigError, match=r"several values and none is named"):
        scores_of(load(tasks_file, "several"), log)
    with pytest.raises(ConfigError, match=r"no value 'wrong'.*It gives right, length") as caught:
        scores_of(load(tasks_file, "several", score_key="wrong"), log)
    assert 'evaluation.score_key = {"tasks.py@several": ...}' in str(caught.value)
    with pytest.raises(ConfigError, match=r"no value 'wrong'.*It gives includes"):
        scores_of(load(tasks_file, score_key="wrong"), sampled["things"].log)
    by_scorer = scores_of(load(tasks_file, score_key="includes"), sampled["things"].log)
    assert [one.score for one in by_scorer.samples] == [
        one.score for one in sampled["things"].scores.samples
    ]


def test_values_that_a_scorer_announces_are_asked_for_before_the_first_step(
    tasks_file: Path,
) -> None:
    for key, said in ((None, "several values and none is named"), ("lenght", "no value 'lenght'")):
        with pytest.raises(ConfigError, match=said) as caught:
            load(tasks_file, "known", score_key=key)
        assert "it gives right, length" in str(caught.value)
    for key in ("right", "length", "two_known_values"):
        assert load(tasks_file, "known", score_key=key).score_key == key


@pytest.mark.parametrize(
    ("name", "args", "parts"),
    [
        ("crashing", {"number": 6, "spared": 2}, ["4 of 6 samples failed", "s2 cannot be asked"]),
        ("crashing", {"number": 6, "spared": 0}, ["6 of 6 samples failed"]),
        ("several", {}, ["right, length"]),
        ("outside", {}, ["has the score 80", "between 0 and 1"]),
        ("worded", {}, ["sample s0", "the scorer gave no score: 'maybe'", "every sample"]),
        ("listed", {}, ["sample s0", "the scorer gave no score: [1, 0]", "every sample"]),
    ],
)
def test_what_gives_no_score_is_an_error_that_names_the_task(
    service: local_tinker.Service,
    llama_dir: Path,
    tasks_file: Path,
    tmp_path: Path,
    name: str,
    args: dict[str, Any],
    parts: list[str],
) -> None:
    settings = SamplingSettings(temperature=0.0, max_tokens=2, seed=5)
    with pytest.raises((EvalError, ConfigError)) as caught:
        run(service, llama_dir, tmp_path, [load(tasks_file, name, args=args)], settings)
    assert str(caught.value).startswith(f"tasks.py@{name}: ")
    for part in parts:
        assert part in str(caught.value)
