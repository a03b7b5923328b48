"""`evaluation.system_prompt`: before every question that the service is asked, and nowhere else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tinker
from inspect_ai.log import read_eval_log
from tinker_cookbook.renderers import get_renderer
from tinker_cookbook.renderers.llama3 import Llama3Renderer
from tinker_cookbook.tokenizer_utils import get_tokenizer

import local_tinker
from errors import ConfigError
from evaluation.inspect_model import inspect_model
from evaluation.inspect_runs import InspectSetting, run_inspect
from evaluation.inspect_tasks import TaskOptions, load_inspect_task
from evaluation.tasks import EvalTask, protocol_of
from loop.planning.fitting import refuse_unheard_prompt
from rows.chat_formats import ChatFormat
from rows.rendering import Rendering
from sdk_client import using
from settings.sameness import kept_settings
from simple_eval import Sampler, SamplingSettings, ask_questions, load_questions
from storage.journal import Journal
from test_loop import Workspace, row

SAY = "Answer with\none word."
CHAT = [
    {"role": "user", "content": "Where is it?"},
    {"role": "assistant", "content": "Here."},
    {"role": "user", "content": "And now?"},
]
ROWS: list[dict[str, Any]] = [
    {"question": "Who?", "answer": "x"},
    {"question": "What?", "answer": "x", "system": "Be kind."},
    {"messages": CHAT, "answer": "x"},
    {"messages": [{"role": "system", "content": "Be brief."}, *CHAT], "answer": "x"},
]
TASKS = """
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, system_message

CHAT = [
    ChatMessageUser(content="Where is it?"),
    ChatMessageAssistant(content="Here."),
    ChatMessageUser(content="And now?"),
]

@task
def plain():
    inputs = ["Who?", [ChatMessageSystem(content="Be kind."), ChatMessageUser(content="What?")],
              CHAT, [ChatMessageSystem(content="Be brief."), *CHAT]]
    return Task(dataset=MemoryDataset([Sample(input=i, target="x") for i in inputs]),
                scorer=includes())

@task
def solved():
    return Task(dataset=MemoryDataset([Sample(input="Who?", target="x")]),
                solver=[system_message("Be kind."), generate()], scorer=includes())

@task
def configured():
    return Task(dataset=MemoryDataset([Sample(input="Who?", target="x")]),
                config=GenerateConfig(system_message="Be kind."), scorer=includes())
"""
SYSTEM = "<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>"
USER = "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
TURNS = USER.format("Where is it?") + (
    "<|start_header_id|>assistant<|end_header_id|>\n\nHere.<|eot_id|>" + USER.format("And now?")
)


def asked_with(prompt: str | None) -> list[str]:
    """What the rows, and the samples of the task `plain`, are to be asked as."""
    joined = "" if prompt is None else f"{prompt}\n\n"
    alone = "" if prompt is None else SYSTEM.format(prompt)
    return [
        alone + USER.format("Who?"),
        SYSTEM.format(f"{joined}Be kind.") + USER.format("What?"),
        alone + TURNS,
        SYSTEM.format(f"{joined}Be brief.") + TURNS,
    ]


class Overheard:
    """A sampling client that passes on what it is asked, and keeps it."""

    def __init__(self, client: tinker.SamplingClient, renderer: Any) -> None:
        self._client, self._renderer = client, renderer
        self.asked: Counter[str] = Counter()

    async def sample(self, prompt: tinker.ModelInput, number: int, params: Any) -> Any:
        text = self._renderer.tokenizer.decode(prompt.to_ints())
        text = text.removeprefix("<|begin_of_text|>")
        self.asked[text.removesuffix("<|start_header_id|>assistant<|end_header_id|>\n\n")] += 1
        return await self._client.sample(prompt, number, params)


def settings_with(prompt: str | None) -> SamplingSettings:
    return SamplingSettings(1.0, 3, seed=5, num_repeats=2, system_prompt=prompt)


@pytest.fixture(scope="module")
def renderer(llama_dir: Path) -> Any:
    return get_renderer("llama3", get_tokenizer(str(llama_dir)))


@pytest.mark.parametrize("prompt", [None, SAY])
def test_question_files_are_asked_with_it(
    service: local_tinker.Service, workspace: Workspace, renderer: Any, prompt: str | None
) -> None:
    workspace.write_rows("asked.jsonl", ROWS)
    task = load_questions("qa:asked.jsonl", workspace.folder / "asked.jsonl")

    async def ask(client: tinker.ServiceClient) -> Counter[str]:
        heard: Any = Overheard(await client.create_sampling_client(base_model="llama"), renderer)
        sampler = Sampler("x", heard, renderer, Rendering(renderer, 512), settings_with(prompt))
        samples = await ask_questions(task, sampler, Journal(workspace.folder / "j", "x"))
        assert [sample.error for sample in samples] == [None] * 8
        return heard.asked

    asked = using(service, workspace.folder / "checkpoints", ask)
    assert asked == Counter(dict.fromkeys(asked_with(prompt), 2))


@pytest.mark.parametrize("prompt", [None, SAY])
def test_inspect_tasks_are_asked_with_it(
    service: local_tinker.Service, tmp_path: Path, renderer: Any, prompt: str | None
) -> None:
    """Also where a solver or the task's own settings put a system message first."""
    (tmp_path / "tasks.py").write_text(TASKS)
    options = TaskOptions(args={}, limit=None, score_key=None, cluster_key=None)
    tasks = [
        load_inspect_task(f"tasks.py@{name}", f"{tmp_path / 'tasks.py'}@{name}", options)
        for name in ("plain", "solved", "configured")
    ]
    settings = settings_with(prompt)

    async def ask(client: tinker.ServiceClient) -> Counter[str]:
        heard: Any = Overheard(await client.create_sampling_client(base_model="llama"), renderer)
        model = inspect_model(heard, renderer, settings.seed, "x", system_prompt=prompt)
        setting = InspectSetting(model, None, settings, tmp_path / "logs", ["x"], {})
        for scores in await run_inspect(tasks, setting):
            assert not isinstance(scores, Exception)
            metadata = read_eval_log(str(scores.log), header_only=True).eval.metadata or {}
            assert metadata["sampling"].get("system_prompt") == prompt
            assert ("system_prompt" in metadata["sampling"]) == (prompt is not None)
        return heard.asked

    asked = using(service, tmp_path / "checkpoints", ask)
    joined = "Be kind." if prompt is None else f"{prompt}\n\nBe kind."
    expected = Counter(dict.fromkeys(asked_with(prompt), 2))
    expected[SYSTEM.format(joined) + USER.format("Who?")] += 4  # of both other tasks
    assert asked == expected


def test_a_run_asks_with_it_and_trains_and_measures_without(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    workspace.write_rows("held.jsonl", [row(500)])
    changes = {"max_rounds": 1, "steps_per_round": 1, "val_file": "held.jsonl"}
    read = {}
    for name, own in (("without", {}), ("with", {"system_prompt": SAY})):
        evaluation = {"max_tokens": 4, **own}
        assert workspace.run(name, **changes, evaluation=evaluation) == 0
        assert (f"the system prompt {SAY.replace(chr(10), ' ')!r}" in capsys.readouterr().err) == (
            name == "with"
        )
        report = (workspace.folder / name / "eval_report.md").read_text()
        told = "Every question was asked with a system prompt before it: Answer with one word."
        assert (told in report) == (name == "with")
        result = workspace.store(name).result(0)
        assert result is not None
        (loss,) = result.held_out
        num_tokens = sum(sample.num_prompt_tokens for sample in result.tasks[0].samples)
        read[name] = (result.protocol_hash, loss.num_prompt_tokens, num_tokens)
    (one, held_one, num_one), (other, held_other, num_other) = read["without"], read["with"]
    assert one != other
    assert held_one == held_other
    assert num_other > num_one


def test_what_is_unset_is_as_it_was_before_there_was_one(workspace: Workspace) -> None:
    workspace.write_rows("asked.jsonl", ROWS)
    work = load_questions("qa:asked.jsonl", workspace.folder / "asked.jsonl")
    tasks = [EvalTask("qa:asked.jsonl", 3, "score", 1, work)]
    assert "system_prompt" not in protocol_of(tasks, settings_with(None), "llama3", None)
    assert protocol_of(tasks, settings_with(SAY), "llama3", None)["system_prompt"] == SAY
    assert kept_settings({"evaluation": {"system_prompt": None}}) == {}
    assert kept_settings({"evaluation": {"system_prompt": SAY}})


def refused(workspace: Workspace, capsys: pytest.CaptureFixture, **changes: Any) -> str:
    assert workspace.run("run", **changes) == 2
    assert not (workspace.folder / "run").exists()
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("prompt", ["", " \n ", "a\0b", "\ud800", 3])
def test_what_is_no_prompt_is_refused(
    workspace: Workspace, capsys: pytest.CaptureFixture, prompt: Any
) -> None:
    evaluation = {"max_tokens": 4, "system_prompt": prompt}
    assert "evaluation.system_prompt" in refused(workspace, capsys, evaluation=evaluation)


def test_a_question_has_to_fit_with_the_prompt_before_it(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    evaluation = {"max_tokens": 4, "system_prompt": "word " * 300}
    message = refused(workspace, capsys, evaluation=evaluation)
    assert "questions.jsonl line 1, with evaluation.system_prompt before it: its prompt" in message


class WithoutSystem(Llama3Renderer):
    """A chat format that has no system message, as some have none."""

    def build_generation_prompt(self, messages: Any, *args: Any, **options: Any) -> Any:
        if messages[0]["role"] == "system":
            raise ValueError("there is no system role")
        return super().build_generation_prompt(messages, *args, **options)


class Deaf(Llama3Renderer):
    """A chat format that leaves out what it has no place for."""

    def build_generation_prompt(self, messages: Any, *args: Any, **options: Any) -> Any:
        heard = [message for message in messages if message["role"] != "system"]
        return super().build_generation_prompt(heard, *args, **options)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (WithoutSystem, "cannot take it: there is no system role"),
        (Deaf, "leaves system messages out"),
        (Llama3Renderer, None),
    ],
)
def test_a_format_without_system_messages_is_refused(
    llama_dir: Path, kind: type[Llama3Renderer], why: str | None
) -> None:
    own = ChatFormat("own", kind(get_tokenizer(str(llama_dir))), "renderer_name")
    refuse_unheard_prompt(own, None)
    if why is None:
        refuse_unheard_prompt(own, SAY)
        return
    with pytest.raises(ConfigError, match=rf"the chat format own {why}\. Choose another"):
        refuse_unheard_prompt(own, SAY)
