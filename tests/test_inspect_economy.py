"""Evaluating with Inspect at less cost: the same logs, and all is as before at the end."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import importlib
import logging
import os
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tinker
from inspect_ai.log import EvalLog, EvalSample, read_eval_log

import local_tinker
from evaluation import inspect_runs
from evaluation.inspect_economy import OF_SAMPLE, REPLACEMENTS, economy
from evaluation.inspect_model import inspect_model
from evaluation.inspect_runs import InspectSetting, run_inspect
from evaluation.inspect_scores import InspectScores
from evaluation.inspect_tasks import TaskOptions, load_inspect_task
from sdk_client import using
from simple_eval import SamplingSettings

REPO = Path(__file__).resolve().parent.parent
TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, prompt_template, solver


@solver
def noting():
    async def solve(state, generate):
        state.metadata["seen"]["times"] += 1
        state.store.set("question", state.input_text)
        state.messages[-1].metadata = {"noted": True}
        if state.sample_id == "s3":
            raise ValueError("s3 cannot be asked")
        return state

    return solve


@task
def things():
    long = "A long question that is kept once and referred to wherever it is said again: " * 3
    samples = [
        Sample(id=f"s{i}", input=f"{long}{i}?", target="a", metadata={"seen": {"times": 0}})
        for i in range(30)
    ]
    talk = [ChatMessageSystem(content="Be brief."), ChatMessageUser(content=long)]
    samples.append(Sample(id="talk", input=talk, target="e", metadata={"seen": {"times": 0}}))
    return Task(
        dataset=MemoryDataset(samples, name="things"),
        solver=[noting(), prompt_template("Answer: {prompt}"), generate()],
        scorer=includes(),
    )
"""
SETTINGS = SamplingSettings(temperature=1.0, max_tokens=8, seed=3, num_repeats=2)
CHANGING = {  # from one evaluation to the next
    "uuid", "id", "span_id", "parent_id", "timestamp", "working_start", "completed", "time",
    "working_time", "started_at", "completed_at", "total_time", "message_id", "traceback",
    "traceback_ansi", "created",
}  # fmt: skip


class Done(NamedTuple):
    log: EvalLog
    scores: InspectScores


def evaluated(service: local_tinker.Service, llama_dir: Path, folder: Path) -> Done:
    from tinker_cookbook.renderers import get_renderer
    from tinker_cookbook.tokenizer_utils import get_tokenizer

    file = folder / "tasks.py"
    file.write_text(TASK)
    task = load_inspect_task("tasks.py@things", f"{file}@things", TaskOptions())
    renderer = get_renderer("llama3", get_tokenizer(str(llama_dir)))

    async def evaluate(client: tinker.ServiceClient) -> InspectScores:
        sampler = await client.create_sampling_client(base_model="llama")
        model = inspect_model(sampler, renderer, SETTINGS.seed, "untouched")
        setting = InspectSetting(model, None, SETTINGS, folder / "logs", ["test"], {"run": "r1"})
        (scores,) = await run_inspect([task], setting)
        assert isinstance(scores, InspectScores), scores
        return scores

    scores = using(service, folder / "checkpoints", evaluate)
    return Done(read_eval_log(str(scores.log), resolve_attachments=True), scores)


@pytest.fixture(scope="module")
def cheap(
    service: local_tinker.Service, llama_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Done:
    return evaluated(service, llama_dir, tmp_path_factory.mktemp("cheap"))


def without_changing(value: Any) -> Any:
    """A log's part without ids and times, but for whether they are there."""
    if isinstance(value, dict):
        changed = {"value", "replaced"} if str(value.get("path")).endswith("/time") else set()
        return {
            key: value is None if key in CHANGING | changed else without_changing(value)
            for key, value in value.items()
        }
    return [without_changing(one) for one in value] if isinstance(value, list) else value


def parts_of(samples: list[EvalSample]) -> list[Any]:
    """What samples say, with `id` only where it is the sample's own."""
    return [
        {"id": sample.id, **without_changing(sample.model_dump(mode="json"))} for sample in samples
    ]


# --- what is recorded -----------------------------------------------------------------------------


def test_logs_say_what_they_say_without_it(
    cheap: Done,
    service: local_tinker.Service,
    llama_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inspect_runs, "economy", contextlib.nullcontext)
    plain = evaluated(service, llama_dir, tmp_path)
    assert [one.id for one in cheap.scores.samples] == [one.id for one in plain.scores.samples]
    assert cheap.scores.samples == plain.scores.samples
    assert cheap.scores.metrics == plain.scores.metrics
    assert cheap.log.status == plain.log.status == "success"
    assert cheap.log.results is not None and plain.log.results is not None
    assert cheap.log.results.model_dump() == plain.log.results.model_dump()
    ours, theirs = parts_of(cheap.log.samples or []), parts_of(plain.log.samples or [])
    assert len(ours) == 62
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == other


def test_every_event_is_in_the_log(cheap: Done) -> None:
    by_id = {(sample.id, sample.epoch): sample for sample in cheap.log.samples or []}
    kinds = [event.event for event in by_id["s0", 1].events]
    for kind in ("sample_init", "span_begin", "span_end", "state", "store", "model", "score"):
        assert kind in kinds
    (asked,) = [event for event in by_id["s0", 1].events if event.event == "model"]
    assert asked.input[-1].text.startswith("Answer: A long question")  # and not a reference
    assert asked.output.completion == by_id["s0", 1].output.completion
    failed = by_id["s3", 2]
    assert failed.error is not None and "s3 cannot be asked" in failed.error.message
    assert "error" in [event.event for event in failed.events]


def test_the_ids_of_a_log_are_different_ones(cheap: Done) -> None:
    events = [event for sample in cheap.log.samples or [] for event in sample.events]
    ids = [event.uuid for event in events]
    assert len(set(ids)) == len(ids) > 500
    assert all(id_ is not None and len(id_) == 22 for id_ in ids)


def test_what_scores_are_read_from_is_what_the_log_says(cheap: Done) -> None:
    whole = read_eval_log(str(cheap.scores.log))
    read = asyncio.run(inspect_runs._read_scored(cheap.scores.log))
    left_out = {"events": [], "events_data": None, "attachments": {}, "timelines": None}
    assert read.samples == [one.model_copy(update=left_out) for one in whole.samples or []]
    assert read.eval == whole.eval and read.results == whole.results
    assert read.location == whole.location


@pytest.mark.parametrize(
    ("num_samples", "waiting"), [(1, 1), (9, 1), (50, 5), (1000, 32), (10_000, 200)]
)
def test_few_samples_wait_to_be_written(num_samples: int, waiting: int) -> None:
    assert inspect_runs._log_buffer(num_samples) == waiting


# --- replacements ---------------------------------------------------------------------------------


def around() -> list[Any]:
    """All that `economy` changes for a while."""
    values = [getattr(importlib.import_module(one.module), one.name) for one in REPLACEMENTS]
    table = getattr(copy, "_deepcopy_dispatch")  # noqa: B009
    return [*values, table[dict], gc.get_threshold(), logging.getLogger("inspect_ai").level]


def test_this_version_of_inspect_has_every_name_and_gets_it_back() -> None:
    with economy():  # Inspect sets up its logging once
        pass
    before = around()
    with pytest.raises(ZeroDivisionError), economy():
        assert not any(mine == other for mine, other in zip(around(), before, strict=True))
        raise ZeroDivisionError
    assert around() == before


def test_no_trace_is_written_and_no_client_is_waited_for() -> None:
    from inspect_ai._util.logger import _logHandler
    from inspect_ai._util.trace import trace_action
    from inspect_ai.agent._acp.transport import acp_session
    from inspect_ai.agent._acp.transport_noop import NoOpAcpTransport

    made = []
    factory = logging.getLogRecordFactory()
    logging.setLogRecordFactory(lambda *args, **kwargs: made.append(args) or factory(*args))

    async def session() -> bool:
        async with acp_session() as opened:
            return isinstance(opened, NoOpAcpTransport)

    try:
        with economy():
            with trace_action(logging.getLogger("inspect_ai.model"), "Model", "generate"):
                pass
            handler = _logHandler["handler"]
            assert handler is not None and handler.trace_logger is None
            assert asyncio.run(session())
    finally:
        logging.setLogRecordFactory(factory)
    assert made == []


def test_a_process_that_evaluates_leaves_no_trace_file(tmp_path: Path) -> None:
    program = (
        "from evaluation.inspect_economy import economy\n"
        "import logging\n"
        "with economy():\n"
        "    logging.getLogger('inspect_ai.model').warning('said and not traced')\n"
    )
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path), "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == "" and "Traceback" not in done.stdout
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


def nested(levels: int) -> Any:
    value: Any = "deep"
    for _ in range(levels):
        value = [value]
    return value


def test_depths_and_references_are_found_as_inspect_finds_them() -> None:
    _condense: Any = importlib.import_module("inspect_ai.log._condense")

    values = [nested(levels) for levels in range(240, 260)]
    values += [
        {"a": "attachment://1f", "b": ["attachment://2f", {"c": "attachment://3f"}]},
        {"a": "see attachment://1f", "attachment://2f": "no value"},
        {
            "a": 'he said "attachment://1f"',
            "b": 'attachment://with "quotes"',
            "c": '"attachment://',
        },
        {"a": b"\xff", "b": "attachment://2f"},
        {"a": object(), "b": ("attachment://2f",), "c": {"attachment://3f"}},
    ]
    deep, refs = _condense.exceeds_max_depth, _condense.attachment_refs_from_value
    expected = [(deep(value, 250), refs(value)) for value in values]
    with economy():
        deep, refs = _condense.exceeds_max_depth, _condense.attachment_refs_from_value
        assert [(deep(value, 250), refs(value)) for value in values] == expected
    assert {is_deep for is_deep, _ in expected} == {True, False}


def test_copies_are_whole_and_apart() -> None:
    from inspect_ai.model import ChatMessageUser, ModelName
    from inspect_ai.scorer import Target
    from inspect_ai.solver import TaskState

    run: Any = importlib.import_module("inspect_ai._eval.task.run")
    messages: Any = [ChatMessageUser(content="one")]
    metadata = {"a": [1], "b": {"c": None}}
    state = TaskState(
        ModelName("a/b"), "s1", 1, messages, messages, Target(["x"]), metadata=metadata
    )
    loop: dict[str, Any] = {"a": 1}
    loop["self"] = loop
    with economy():
        made = run.deepcopy(state)
        again = copy.deepcopy(loop)
    assert again["self"] is again is not loop
    assert made.input == messages and made.metadata == metadata and list(made.target) == ["x"]
    assert made.messages == messages and made.uuid == state.uuid
    made.metadata["b"]["c"] = 2
    made.messages[0].content = "two"
    made.target.target.append("y")
    assert metadata["b"]["c"] is None and messages[0].content == "one" and len(state.target) == 1
    # What is not copied was made for the state, or cannot be changed.
    fresh = {"_store", "_output", "_message_limit", "_token_limit", "_cost_limit", "choices"}
    rest = {"_tools", "_model", "_sample_id", "_epoch", "_completed", "_uuid", "_scores"}
    assert set(vars(state)) == {*OF_SAMPLE, *fresh, *rest}


def test_ids_and_shortened_texts_are_as_they_were() -> None:
    from inspect_ai.log._util import thin_text

    texts = ["", " a  b\n\tc ", "word " * 300, "x" * 2000, "a-b " * 255, "\u2028a\u00a0b"]
    expected = [thin_text(text) for text in texts]
    with economy():
        assert [thin_text(text) for text in texts] == expected
        ids: Any = importlib.import_module("shortuuid.main")
        made = [ids._uu.uuid4() for _ in range(600)]
        assert ids._uu.uuid5 is uuid.uuid5
    assert len(set(made)) == 600
    assert all(one == uuid.UUID(str(one)) and one.version == 4 for one in made)
    assert textwrap.shorten("a  b", width=5) == "a b"
