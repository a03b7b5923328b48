"""System prompts and conversations in question files: asked, kept out of training, told apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.domain_qa import domain_qa
from evaluation.inspect_tasks import TaskOptions, load_inspect_task
from evaluation.tasks import EvalTask
from loop.planning.inputs import eval_texts_of
from rows.chat_formats import load_renderer
from simple_eval import build_prompt, load_questions
from test_loop import Workspace

LONG = "Tell me which of the seven small wooden boxes on the left shelf holds the blue key."
CHAT = [
    {"role": "user", "content": LONG},
    {"role": "assistant", "content": "The third."},
    {"role": "user", "content": "And which of them holds the red one?"},
]
ROWS: list[dict[str, Any]] = [
    {"question": "Where is the key?", "answer": "x", "system": "Answer with one word only."},
    {"messages": CHAT, "answer": "x"},
]


CHATS = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageTool, ChatMessageUser
from inspect_ai.scorer import includes

@task
def chats() -> Task:
    plain = [ChatMessageSystem(content="Be brief."), ChatMessageUser(content="Where?")]
    used = [ChatMessageUser(content="When?"), ChatMessageTool(content="At noon.")]
    silent = [ChatMessageSystem(content="Begin.")]
    samples = [Sample(input=one, target="a") for one in (plain, used, silent, "How?")]
    return Task(dataset=samples, scorer=includes())
"""


def task_of(
    workspace: Workspace, rows: list[dict[str, Any]], name: str = "asked.jsonl"
) -> EvalTask:
    workspace.write_rows(name, rows)
    work = load_questions(f"qa:{name}", workspace.folder / name)
    return EvalTask(f"qa:{name}", 3, "score", 1, work)


def test_the_model_sees_what_the_file_holds(workspace: Workspace, llama_dir: Path) -> None:
    task = task_of(workspace, ROWS)
    renderer = load_renderer("llama3", str(llama_dir))
    asked = [
        str(renderer.tokenizer.decode(build_prompt(renderer, one.turns).to_ints()))
        for one in task.asked
    ]
    header = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>".format
    assert asked[0].endswith(
        header("system", "Answer with one word only.")
        + header("user", "Where is the key?")
        + "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert header("assistant", "The third.") + header("user", CHAT[2]["content"]) in asked[1]
    # and so it does on the service: the system prompt's tokens are among those of the request
    workspace.write_rows(
        "questions.jsonl", [ROWS[0], {"question": "Where is the key?", "answer": "x"}]
    )
    assert workspace.run("run", max_rounds=1, steps_per_round=1) == 0
    result = workspace.store("run").result(0)
    assert result is not None
    told, plain = result.samples
    assert told.question == plain.question and told.id != plain.id
    assert told.num_prompt_tokens > plain.num_prompt_tokens + 20


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("And which of them holds the red one?", "contaminated"),
        (LONG, "similar"),
        ("Where is the key?", "contaminated"),
        ("Say a word.", None),
    ],
)
def test_what_is_asked_is_not_trained_on(workspace: Workspace, text: str, kind: str | None) -> None:
    texts = eval_texts_of([task_of(workspace, ROWS)], [], keeps_near=False)
    hit = texts.find_in("00", [("user", text), ("assistant", "no")])
    assert (None if hit is None else hit.kind) == kind


def test_a_system_prompt_may_be_that_of_the_training_rows(workspace: Workspace) -> None:
    system = "You are the clerk of a small shop who sorts every letter into one of six trays."
    texts = eval_texts_of(
        [task_of(workspace, [{**ROWS[0], "system": system}])], [], keeps_near=False
    )
    row = [("system", system), ("user", "Say a."), ("assistant", "a")]
    assert texts.find_in("00", row) is None


def test_another_system_prompt_is_another_evaluation_and_no_sealed_question(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    one = task_of(workspace, ROWS[:1]).work
    other = task_of(workspace, [{**ROWS[0], "system": "Answer at length."}]).work
    assert one.sha256 != other.sha256
    workspace.write_rows("questions.jsonl", ROWS)
    sealed = {"evaluation": {"test_tasks": ["qa:sealed.jsonl"]}}
    workspace.write_rows("sealed.jsonl", [{"question": "Where is the key?", "answer": "x"}])
    assert workspace.run("run", "--dry-run", **sealed) == 2
    assert "so the test is not sealed" in capsys.readouterr().err
    # of several all are counted, and the first ones are named by where they stand
    rows = [{"question": f"Which is {i}?", "answer": "x"} for i in range(8)]
    workspace.write_rows("questions.jsonl", rows[1:])
    workspace.write_rows("sealed.jsonl", rows)
    assert workspace.run("run", "--dry-run", **sealed) == 2
    told = capsys.readouterr().err
    assert "7 questions of the sealed test are asked every round as well" in told
    for i in range(1, 6):
        assert f"sealed.jsonl line {i + 1} ('Which is {i}?') stands in " in told
        assert f"questions.jsonl line {i}" in told
    assert "; and 2 more. Take them out of one of the two." in told
    workspace.write_rows("questions.jsonl", ROWS)
    # the same last words after another conversation are another question
    chat = [{"role": "user", "content": "Is it a?"}, *CHAT[1:]]
    workspace.write_rows("sealed.jsonl", [{"messages": chat, "answer": "x"}])
    assert workspace.run("run", "--dry-run", **sealed) == 0


def test_the_inspect_task_of_question_files_asks_them_too(workspace: Workspace) -> None:
    file = workspace.folder / "asked.jsonl"
    workspace.write_rows("asked.jsonl", [*ROWS, {"question": "Plain?", "answer": "x"}])
    told, chat, plain = domain_qa(str(file)).dataset
    assert [(one.role, one.text) for one in told.input] == [  # pyright: ignore
        ("system", "Answer with one word only."),
        ("user", "Where is the key?"),
    ]
    assert [one.role for one in chat.input] == ["user", "assistant", "user"]  # pyright: ignore
    assert plain.input == "Plain?"
    assert json.loads(file.read_text().splitlines()[1])["messages"] == CHAT


def test_of_inspect_samples_the_plain_text_is_what_is_asked(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    """What is more than that stands for its last question; a sample may have none."""
    (workspace.folder / "chats.py").write_text(CHATS)
    spec = f"{workspace.folder / 'chats.py'}@chats"
    work = load_inspect_task("chats.py@chats", spec, TaskOptions())
    asked = list(EvalTask("chats.py@chats", 3, "score", 1, work).asked)
    assert [one.where for one in asked] == [f"chats.py@chats: sample {i}" for i in range(1, 5)]
    assert [one.turns for one in asked] == [
        (("system", "Be brief."), ("user", "Where?")),
        (("user", "When?"),),
        (("system", "Begin."),),
        (("user", "How?"),),
    ]
    text = CHATS.replace("Where?", "Who?").replace("When?", "Why?").replace("How?", "What?")
    (workspace.folder / "sealed.py").write_text(text)
    changes = {
        "eval_tasks": ["chats.py@chats"],
        "evaluation": {"test_tasks": ["sealed.py@chats"], "max_tokens": 4},
    }
    code = workspace.run("run", "--dry-run", **changes)
    assert code == 0, capsys.readouterr().err
