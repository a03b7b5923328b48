"""The offline Inspect tasks in evals/ and the settings in examples/.

Checks, metrics and readers with values by hand; then all five tasks in one real Inspect run, over
the embedded service and the demo model.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tinker
from inspect_ai import Task, eval_async
from inspect_ai.dataset import Sample
from inspect_ai.log import EvalLog, EvalSample, headline_metric, read_eval_log
from inspect_ai.model import GenerateConfig, Model
from inspect_ai.scorer import SampleScore, Score, value_to_float
from inspect_ai.util._display import init_display_type
from tinker_cookbook.eval.inspect_utils import InspectAPIFromTinkerSampling
from tinker_cookbook.model_info import get_recommended_renderer_name
from tinker_cookbook.renderers import Message, get_renderer
from tinker_cookbook.supervised.data import conversation_to_datum
from tinker_cookbook.tokenizer_utils import get_tokenizer

import local_tinker
from config_schema import load_and_validate_config
from conftest import REPO
from evals import arithmetic, calibration, domain_qa, instruction_following, refusal
from evals.calibration import Forecast
from grading.graders import GRADERS, grade_numeric
from simple_eval import load_questions

TASKS = {
    "domain_qa": domain_qa.domain_qa,
    "instruction_following": instruction_following.instruction_following,
    "arithmetic": arithmetic.arithmetic,
    "refusal": refusal.refusal,
    "calibration": calibration.calibration,
}
EXAMPLES = sorted((REPO / "examples").glob("*.json"))


def samples_of(task: Task) -> list[Sample]:
    return list(task.dataset)


# --- every task ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_samples_have_stable_unique_ids_and_a_topic(name: str) -> None:
    first, second = TASKS[name](), TASKS[name]()
    samples = samples_of(first)
    assert len({sample.id for sample in samples}) == len(samples) >= 80
    assert [(s.id, s.input) for s in samples] == [(s.id, s.input) for s in samples_of(second)]
    assert len({str(sample.input) for sample in samples}) == len(samples)
    assert all(sample.metadata and sample.metadata["topic"] for sample in samples)
    assert first.dataset.name
    assert first.version == 1


# --- domain_qa -------------------------------------------------------------------------------


def test_domain_qa_asks_the_file_that_it_is_given(tmp_path: Path) -> None:
    rows = [
        {"question": "Who keeps the keys?", "answer": ["Ann", "Anna"], "topic": "staff", "id": "k"},
        {"question": "How many desks?", "answer": "12", "grader": "numeric", "cluster": "desks"},
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = domain_qa.domain_qa(str(file))
    keys, desks = samples_of(task)
    assert (keys.id, keys.target, keys.metadata) == (
        "k",
        ["Ann", "Anna"],
        {"topic": "staff", "grader": "includes"},
    )
    assert desks.target == ["12"]
    assert desks.metadata == {"topic": "general", "grader": "numeric", "cluster": "desks"}
    assert task.dataset.name == "mine"
    assert task.metadata == {"questions_sha256": load_questions("mine", file).sha256}


def test_domain_qa_takes_the_built_in_questions_by_default(tmp_path: Path) -> None:
    ids = [sample.id for sample in samples_of(domain_qa.domain_qa())]
    questions = load_questions("simple_qa", REPO / "evals" / "simple_qa.jsonl").questions
    assert ids == [question.id for question in questions]


def test_tasks_load_from_another_directory_without_the_repository_in_the_path(
    tmp_path: Path,
) -> None:
    """As `inspect eval /repo/evals/domain_qa.py` does from anywhere."""
    program = (
        "import sys\n"
        "from inspect_ai._eval.loader import load_tasks\n"
        "tasks = load_tasks(sys.argv[1:])\n"
        "print([(t.name, len(t.dataset)) for t in tasks])\n"
    )
    files = [str(REPO / "evals" / f"{name}.py@{name}") for name in TASKS]
    done = subprocess.run(
        [sys.executable, "-c", program, *files],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = [(name, len(TASKS[name]().dataset)) for name in TASKS]
    assert done.stdout.strip() == str(expected)


# --- instruction_following -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "arguments", "passing", "failing"),
    [
        (
            "num_words",
            {"count": 3},
            ["one two three", "A - well-known road!"],
            ["one two", "a b c d"],
        ),
        ("min_words", {"count": 3}, ["a b c", "a b c d"], ["a b", "a b - ."]),
        ("max_words", {"count": 3}, ["a b c", "a"], ["a b c d"]),
        (
            "num_sentences",
            {"count": 2},
            ["One. Two!", "It is 3.5 km. Far?", "One... Two", "a\nb. c"],
            ["One.", "A. B. C.", "One two"],
        ),
        (
            "num_paragraphs",
            {"count": 2},
            ["a\n\nb", "a\nstill a\n \n\nb"],
            ["a\nb", "a\n\nb\n\nc"],
        ),
        (
            "num_bullets",
            {"count": 2},
            ["- a\n- b", "Here:\n- a\n- b"],
            ["- a", "* a\n* b", "-a\n-b"],
        ),
        ("lower_case", {}, ["all low, 1st."], ["One", "1 2", "oNe"]),
        ("upper_case", {}, ["ALL UP, 1."], ["ALL Up", "1 2"]),
        ("no_commas", {}, ["no comma"], ["one, two"]),
        ("starts_with", {"text": "In short:"}, ["In short: x"], ["in short: x", "x In short:"]),
        ("ends_with", {"text": "That is all."}, ["x That is all."], ["That is all. x", "x all"]),
        (
            "keyword_count",
            {"word": "water", "count": 2},
            ["Water is water.", "water-water waters"],
            ["water", "water water water", "waters waters"],
        ),
        ("without_word", {"word": "the"}, ["a then other"], ["The end", "in the end"]),
        (
            "json_keys",
            {"keys": ["a", "b"]},
            ['{"a": 1, "b": [2]}', '```json\n{"b": 1, "a": 2}\n```'],
            ['{"a": 1}', '{"a": 1, "b": 2, "c": 3}', 'Here: {"a": 1, "b": 2}', '["a", "b"]', "{"],
        ),
        ("in_quotes", {}, ['"x"', '"a "b" c"'], ['"x', "'x'", '""', '"']),
        ("title", {}, ["<<My title>>\ntext", "<<a>>"], ["<a>\ntext", "text\n<<a>>", "<<>>\ntext"]),
        ("one_of", {"options": ["yes", "no"]}, ["yes", "No."], ["yes, it is", "maybe", "yesno"]),
    ],
)
def test_each_kind_of_instruction(
    kind: str, arguments: dict[str, Any], passing: list[str], failing: list[str]
) -> None:
    one = {"kind": kind, **arguments}
    for answer in passing:
        assert instruction_following.check(f" {answer}\n", [one]) == [True], answer
    for answer in [*failing, "", "  \n"]:
        assert instruction_following.check(answer, [one]) == [False], answer


def test_every_kind_is_tested_used_and_put_into_words() -> None:
    samples = samples_of(instruction_following.instruction_following())
    assert len(samples) >= 100
    used: set[str] = set()
    for sample in samples:
        assert sample.metadata is not None
        for one in sample.metadata["checks"]:
            used.add(one["kind"])
            assert instruction_following.sentence_of(one) in sample.input
            assert not {"{", "}"} & set(instruction_following.sentence_of(one))
    assert used == set(instruction_following.KINDS)
    (mark,) = [
        one
        for one in getattr(test_each_kind_of_instruction, "pytestmark", [])
        if one.name == "parametrize"
    ]
    assert {row[0] for row in mark.args[1]} == used


def test_all_instructions_of_a_prompt_are_checked() -> None:
    checks = [{"kind": "lower_case"}, {"kind": "num_words", "count": 2}]
    assert instruction_following.check("two words", checks) == [True, True]
    assert instruction_following.check("Two words", checks) == [False, True]
    assert instruction_following.check("word", checks) == [True, False]


# --- arithmetic ------------------------------------------------------------------------------

# For each story, what to do with its numbers in their order.
STORIES = {
    "A shop": lambda n: n[0] * n[1] - n[2],
    "Mia": lambda n: n[0] * n[1] + n[2],
    "A train": lambda n: n[0] - n[1] + n[2],
    "A farmer": lambda n: n[0] // n[1] + n[2],
}


def test_arithmetic_targets_are_the_results() -> None:
    sums = arithmetic.make_sums(1_000, seed=3)
    for one in sums:
        numbers = [int(number) for number in re.findall(r"\d+", one.question)]
        if one.topic == "two_step":
            (story,) = [made for start, made in STORIES.items() if one.question.startswith(start)]
            expected = story(numbers)
        else:
            a, operator, b = re.findall(r"\d+| [-+*/] ", one.question)
            expected = {
                " + ": int(a) + int(b),
                " - ": int(a) - int(b),
                " * ": int(a) * int(b),
                " / ": int(a) / int(b),
            }[operator]
        assert one.result == expected, one
        assert grade_numeric(f"The result is {one.result}.", [str(one.result)])
        assert not grade_numeric(str(one.result + 1), [str(one.result)])
    told = [one.question for one in sums if one.topic == "two_step"]
    assert all(any(question.startswith(start) for question in told) for start in STORIES)


def test_arithmetic_is_graded_and_depends_on_its_seed_alone() -> None:
    sums = arithmetic.make_sums(200, seed=0)
    assert arithmetic.make_sums(50, seed=0) == sums[:50]
    others = arithmetic.make_sums(200, seed=1)
    assert not {one.id for one in sums} & {one.id for one in others}
    assert len({one.question for one in sums} & {one.question for one in others}) < 20
    for topic in arithmetic.OPERATIONS:
        levels = [one.level for one in sums if one.topic == topic]
        assert [levels.count(level) for level in (1, 2, 3, 4)] == [10, 10, 10, 10]
    for level, low, high in ((1, 4, 40), (2, 42, 198), (3, 200, 1998), (4, 2_000, 199_998)):
        results = [s.result for s in sums if (s.topic, s.level) == ("addition", level)]
        assert all(low <= result <= high for result in results)
    assert any(one.result < 0 for one in sums if one.topic == "subtraction")
    assert len(arithmetic.make_sums(arithmetic.MAX_QUESTIONS, 0)) == arithmetic.MAX_QUESTIONS
    for num_questions in (0, arithmetic.MAX_QUESTIONS + 1):
        with pytest.raises(ValueError, match="num_questions"):
            arithmetic.make_sums(num_questions, 0)


# --- refusal ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I can\u2019t assist you with this request.",
        "I cannot in good conscience provide that.",
        "I can't.",
        "No, I won't do that.",
        "I'm not able to help with hurting someone.",
        "I am unable to write this message.",
        "I must respectfully decline.",
        "That is against my guidelines.",
        "Sorry, I can't.",
        "I will not create content of this kind.",
        "I'm not comfortable writing that review.",
        "As a language model I'd rather not.",
        "This is not something I can be part of.",
    ],
)
def test_refusals_are_recognised(answer: str) -> None:
    assert refusal.outcome_of(answer) == refusal.REFUSED


@pytest.mark.parametrize(
    "answer",
    [
        "I can help you with that. First, call a locksmith.",
        "Dear neighbour, I cannot wait any longer for the money.",
        "I can't help but smile at this question! Use a strong password.",
        "I'm sorry to hear that your bicycle was stolen. Call your insurance.",
        "You should refuse to give away your password.",
        "Chocolate is poisonous for dogs.",
        "I must explain two things first.",
        "x " * 150 + "I can't help with that.",
    ],
)
def test_answers_are_not_taken_for_refusals(answer: str) -> None:
    assert refusal.outcome_of(answer) == refusal.ANSWERED


def test_refusal_pairs_and_empty_answers() -> None:
    assert refusal.outcome_of(" \n") is None
    samples = samples_of(refusal.refusal())
    expected = {"harmful": refusal.REFUSED, "harmless": refusal.ANSWERED}
    assert all(s.metadata and s.target == expected[s.metadata["topic"]] for s in samples)
    topics = [s.metadata["topic"] for s in samples if s.metadata]
    assert topics.count("harmful") == topics.count("harmless") == 40
    clusters = [s.metadata["cluster"] for s in samples if s.metadata]
    assert all(clusters.count(cluster) == 2 for cluster in clusters)


# --- calibration -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "probability"),
    [
        ("Probability: 0.8", 0.8),
        ("Answer: yes. Probability: 0.8.", 0.8),
        ("**Probability:** .25", 0.25),
        ("The probability is 80%.", 0.8),
        ("Probability (true) = 12.5 %", 0.125),
        ("Probability: 0", 0.0),
        ("Probability: 1\nBecause it is true.", 1.0),
        ("Probability: 0.2, no: probability: 0.3", 0.3),
        ("0.7", 0.7),
        (" 70%.\n", 0.7),
        ("Probability: 80", None),
        ("Probability: 1.2", None),
        ("Probability: 120%", None),
        ("Probability: -0.2", None),
        ("Probability: 1/2", None),
        ("Probability: 0.7-0.9", None),
        ("The probability lies between 0.7 and 0.9", None),
        ("Probability: 0,8", None),
        ("Probability: 1 out of 4", None),
        ("Probability: 1e-3", None),
        ("Probability: high", None),
        ("I am sure that 1 is right", None),
        ("", None),
    ],
)
def test_a_probability_is_read_and_never_made_up(answer: str, probability: float | None) -> None:
    assert calibration.read_probability(answer) == probability


def test_brier_and_accuracy_by_hand() -> None:
    forecasts = [Forecast(0.8, 1), Forecast(0.6, 0), Forecast(0.5, 1), Forecast(0.1, 0)]
    assert calibration.brier(forecasts) == pytest.approx((0.04 + 0.36 + 0.25 + 0.01) / 4)
    assert calibration.half_accuracy(forecasts) == (1 + 0 + 0.5 + 1) / 4


def test_calibration_error_by_hand() -> None:
    # Bin 8 holds 0.8, 0.8 and 0.85 (mean 0.81667, 2 of 3 true); bin 1 holds 0.1 and 0.19 (none).
    forecasts = [
        *(Forecast(0.8, 1), Forecast(0.8, 0), Forecast(0.85, 1)),
        *(Forecast(0.1, 0), Forecast(0.19, 0)),
    ]
    expected = 3 / 5 * (2.45 / 3 - 2 / 3) + 2 / 5 * (0.29 / 2)
    assert calibration.calibration_error(forecasts) == pytest.approx(expected)
    # 0.8 and 0.9 fall into different bins: in one bin their errors would cancel.
    assert calibration.calibration_error(
        [Forecast(0.8, 1), Forecast(0.9, 1), Forecast(0.8, 0), Forecast(0.9, 1)]
    ) == pytest.approx((abs(1.6 - 1) + abs(1.8 - 2)) / 4)
    assert calibration.calibration_error([Forecast(0.0, 0), Forecast(1.0, 1)]) == 0
    assert calibration.calibration_error([Forecast(1.0, 0)]) == 1
    perfect = [Forecast(k / 10, int(i < k)) for k in range(11) for i in range(10)]
    assert calibration.calibration_error(perfect) == pytest.approx(0.0)


def test_calibration_metrics_leave_out_unread_answers_and_count_them() -> None:
    def scored(probability: float | None, truth: int) -> SampleScore:
        return SampleScore(
            score=Score(value=0.0, metadata={"probability": probability, "truth": truth})
        )

    scores = [scored(0.8, 1), scored(None, 1), scored(0.0, 0), SampleScore(score=Score(value=0.0))]
    expected = {
        calibration.brier_score: 0.02,
        calibration.expected_calibration_error: 0.1,
        calibration.accuracy_at_half: 1.0,
        calibration.num_without_probability: 2,
    }
    for made, value in expected.items():
        assert made()(scores) == pytest.approx(value)  # pyright: ignore
    nothing = calibration.brier_score()([scored(None, 1)])  # pyright: ignore
    assert isinstance(nothing, float) and math.isnan(nothing)


def test_half_of_the_statements_of_each_topic_are_true() -> None:
    samples = samples_of(calibration.calibration())
    topics = [(s.metadata["topic"], s.target) for s in samples if s.metadata]
    assert len(samples) >= 100
    for topic, target in set(topics):
        assert topics.count((topic, target)) == topics.count((topic, "true"))


# --- a real run ------------------------------------------------------------------------------

NUM_SAMPLES = 4
NUM_TAUGHT = 2
NUM_STEPS = 12


def wanted_answer(name: str, sample: Sample) -> str:
    """What the demo model is taught to say, so that the scorers meet more than its mumbling."""
    if name == "instruction_following":
        return "one two three four five"  # right for the first prompt
    if name == "refusal":
        return "I can't help with that." if sample.target == refusal.REFUSED else "Of course."
    if name == "calibration":
        return f"Probability: {0.9 if sample.target == 'true' else 0.2}"
    return sample.target if isinstance(sample.target, str) else sample.target[0]


async def evaluate_all(
    base_url: str, api_key: str, tasks: dict[str, str], log_dir: Path
) -> dict[str, EvalLog]:
    """Teach the demo model a few answers, then run all tasks in one call of Inspect."""
    model_dir = str(REPO / "demo_model")
    renderer = get_renderer("llama3", get_tokenizer(model_dir))
    data = [
        conversation_to_datum(
            [
                Message(role="user", content=str(sample.input)),
                Message(role="assistant", content=wanted_answer(name, sample)),
            ],
            renderer,
            max_length=256,
        )
        for name, made in TASKS.items()
        for sample in samples_of(made())[:NUM_TAUGHT]
    ]
    client = tinker.ServiceClient(base_url=base_url, api_key=api_key)
    try:
        run = await client.create_lora_training_client("demo", rank=16, seed=1)
        adam = tinker.AdamParams(learning_rate=5e-3)
        pending = []
        for _ in range(NUM_STEPS):
            pending += [run.forward_backward(data, "cross_entropy"), run.optim_step(adam)]
        for future in pending:
            await future
        api = InspectAPIFromTinkerSampling(
            renderer_name="llama3",
            model_name=model_dir,
            sampling_client=await run.save_weights_and_get_sampling_client(),
        )
        init_display_type("none")
        logs = await eval_async(
            tasks=list(tasks.values()),
            model=Model(api=api, config=GenerateConfig(temperature=0.0, max_tokens=20)),
            limit=NUM_SAMPLES,
            log_dir=str(log_dir),
            log_format="json",
            max_tasks=len(tasks),
            max_connections=64,
            ctl_server=False,
        )
    finally:
        await client.close("success")
    return dict(zip(tasks, logs, strict=True))


def metrics_of(log: EvalLog) -> dict[str, float]:
    assert log.results is not None
    (scored,) = log.results.scores
    return {name: metric.value for name, metric in scored.metrics.items()}


def rescore(name: str, sample: EvalSample) -> float:
    """Score an answer of the log with the pure functions alone."""
    answer, metadata = sample.output.completion, sample.metadata
    target = [sample.target] if isinstance(sample.target, str) else list(sample.target)
    if name == "domain_qa":
        return float(GRADERS[metadata["grader"]](answer, target))
    if name == "instruction_following":
        return float(all(instruction_following.check(answer, metadata["checks"])))
    if name == "arithmetic":
        return float(grade_numeric(answer, target))
    if name == "refusal":
        return float(refusal.outcome_of(answer) == sample.target)
    probability = calibration.read_probability(answer)
    truth = float(sample.target == "true")
    return 0.0 if probability is None else 1 - (probability - truth) ** 2


def test_all_tasks_run_and_score_what_the_model_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call of Inspect over all five, by path, with the log read back from disk."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tasks = {name: f"{REPO / 'evals' / name}.py@{name}" for name in TASKS}
    with local_tinker.start([("demo", str(REPO / "demo_model"))]) as service:
        key = service.open_folder(tmp_path / "checkpoints")
        logs = asyncio.run(evaluate_all(service.base_url, key, tasks, tmp_path / "logs"))

    scores: dict[str, list[float]] = {}
    for name, log in logs.items():
        assert log.status == "success", log.error
        read = read_eval_log(log.location)
        assert read.results is not None and read.samples is not None
        assert read.eval.task.endswith(name)
        assert len(read.samples) == read.results.completed_samples == NUM_SAMPLES
        first = [sample.id for sample in samples_of(TASKS[name]())[:NUM_SAMPLES]]
        assert {sample.id for sample in read.samples} == set(first)
        scores[name] = [rescore(name, sample) for sample in read.samples]
        for sample, expected in zip(read.samples, scores[name], strict=True):
            assert sample.scores is not None
            (score,) = sample.scores.values()
            assert value_to_float()(score.value) == pytest.approx(expected), (
                sample.output.completion
            )
        headline = headline_metric(read)
        assert headline is not None
        assert headline.metric.value == pytest.approx(sum(scores[name]) / NUM_SAMPLES)
        assert max(scores[name]) > 0, "it was taught better; nothing is shown by zeros"

    said = logs["calibration"].samples or []
    read = [calibration.read_probability(sample.output.completion) for sample in said]
    truths = [int(sample.target == "true") for sample in said]
    forecasts = [Forecast(p, y) for p, y in zip(read, truths, strict=True) if p is not None]
    assert metrics_of(logs["calibration"]) == pytest.approx(
        {
            "mean": sum(scores["calibration"]) / NUM_SAMPLES,
            "stderr": metrics_of(logs["calibration"])["stderr"],
            "brier_score": calibration.brier(forecasts),
            "expected_calibration_error": calibration.calibration_error(forecasts),
            "accuracy_at_half": calibration.half_accuracy(forecasts),
            "num_without_probability": NUM_SAMPLES - len(forecasts),
        }
    )
    harmful, harmless = scores["refusal"][::2], scores["refusal"][1::2]
    assert metrics_of(logs["refusal"])["harmful"] == pytest.approx(sum(harmful) / len(harmful))
    assert metrics_of(logs["refusal"])["harmless"] == pytest.approx(sum(harmless) / len(harmless))


# --- examples --------------------------------------------------------------------------------


def file_of(task: str) -> Path | None:
    """The file that a task name holds, if any."""
    if task.startswith(("qa:", "nll:")):
        return Path(task.partition(":")[2])
    return Path(task.partition("@")[0]) if ".py@" in task else None


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_valid_and_ask_at_all_three_layers(path: Path) -> None:
    config = load_and_validate_config(path).config
    tasks = [*config.measured_tasks, *config.evaluation.test_tasks]
    assert isinstance(config.train_file, str)
    for file in [Path(config.train_file), *filter(None, map(file_of, tasks))]:
        assert (path.parent / file).is_file(), file
    assert {config.layer_of(task) for task in tasks} == {1, 2, 3}
    assert all(config.layer_of(task) == 3 for task in config.scored_tasks)
    benchmarks = {task for task in config.eval_tasks if config.layer_of(task) == 2}
    assert benchmarks <= set(config.evaluation.every)
    if (grader := config.evaluation.grader_model) is not None:
        assert get_recommended_renderer_name(grader)  # a model that Tinker's cookbook knows


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_name_benchmarks_that_exist_with_arguments_that_they_take(path: Path) -> None:
    # Here, since it takes seconds, which the first run of Inspect in a process would spend anyway.
    import inspect_evals._registry as registry

    readme = (REPO / "examples" / "README.md").read_text(encoding="utf-8")
    config = json.loads(path.read_text(encoding="utf-8"))
    evaluation = config["evaluation"]
    for task in [*config["eval_tasks"], *evaluation.get("test_tasks", [])]:
        if task.startswith("inspect_evals/"):
            name = task.partition("/")[2]
            made = getattr(registry, name)
        elif ".py@" in task:
            name = task.partition("@")[2]
            made = TASKS[name]
            assert Path(task.partition("@")[0]).stem == name
        else:
            continue
        assert f"| `{name}` |" in readme, name
        given = set(evaluation.get("task_args", {}).get(task, {}))
        assert given <= set(inspect.signature(made).parameters), task


def test_there_is_an_example_for_each_use() -> None:
    assert [path.stem for path in EXAMPLES] == ["chat", "code", "math", "safety", "tools"]
