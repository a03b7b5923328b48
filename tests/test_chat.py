"""`--chat`: checkpoints asked by hand answer as they did in their run."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tinker

import local_tinker
from commands.chat_answers import Asked, Unanswerable, read_answer
from commands.chat_lines import ESCAPED
from conftest import REPO
from loop.reports.console import as_written, say_row
from rows.chat_formats import load_renderer
from rows.control_tokens import guard
from simple_eval import SamplingSettings, Turn, build_prompt
from terminal import typing_on_terminal
from test_loop import Workspace
from trainer_with_eval import main

RUN = "runs/r"
UNTOUCHED = f"{RUN}@round_00"  # which goes on to the end of what an answer may have
LONG = "word " * 300  # more than the tiny model's context


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, llama_dir: Path) -> Workspace:
    """A run of one round, in runs/r of a folder."""
    made = Workspace(tmp_path_factory.mktemp("chat"), llama_dir)
    assert made.run(RUN, max_rounds=1, evaluation={"max_tokens": 6, "system_prompt": "Hm."}) == 0
    (made.folder / "config.json").unlink()  # a run directory knows its own settings
    return made


@pytest.fixture
def ask(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Said]]:
    """Run --chat in the workspace's folder with this standard input."""
    monkeypatch.chdir(workspace.folder)
    before = os.dup(0)

    def run(typed: bytes, *words: str, name: str = RUN) -> Said:
        with tempfile.TemporaryFile() as file:
            file.write(typed)
            file.seek(0)
            os.dup2(file.fileno(), 0)
        capsys.readouterr()
        code = main(["--chat", name, *words])
        printed = capsys.readouterr()
        return Said(code, printed.out, printed.err)

    yield run
    os.dup2(before, 0)
    os.close(before)


def answers_in_run(workspace: Workspace, round_no: int) -> dict[str, str | None]:
    result = workspace.store(RUN).result(round_no)
    assert result is not None
    return {sample.question: sample.answer for sample in result.samples}


# --- a pipe ---------------------------------------------------------------------------------------


def test_it_answers_as_in_its_run_beside_the_base_model(
    workspace: Workspace, ask: Callable[..., Said]
) -> None:
    trained, untouched = (answers_in_run(workspace, number) for number in (1, 0))
    typed = "\n".join(trained).encode()
    kept = sorted(path for path in workspace.folder.rglob("*") if path.is_file())
    said = ask(typed, "--beside", "--json")
    assert said.code == 0
    assert [one["question"] for one in said.objects] == list(trained)
    assert {one["question"]: one["answer"] for one in said.objects} == trained
    assert {one["question"]: one["base_answer"] for one in said.objects} == untouched
    assert trained != untouched
    assert {one["stop_reason"] for one in said.objects} <= {"stop", "length"}
    assert all(0 < one["tokens"] <= 6 and 0 < one["base_tokens"] <= 6 for one in said.objects)
    told = " ".join(json.loads(line)["text"] for line in said.err.splitlines())
    assert "temperature 0, up to 6 tokens an answer, seed 0, the system prompt 'Hm.'" in told
    # Nothing is written down.
    assert sorted(path for path in workspace.folder.rglob("*") if path.is_file()) == kept
    # The same, as text: a line for a line.
    rows = [line.split("\t") for line in ask(typed, "--beside").out.splitlines()]
    assert rows == [
        [as_written(str(one[key]).translate(ESCAPED)) for key in ("answer", "base_answer")]
        for one in said.objects
    ]
    base = ask(typed, "--json", name=UNTOUCHED).objects
    assert {one["question"]: one["answer"] for one in base} == untouched


def test_each_line_has_one_line_also_where_there_is_no_answer(ask: Callable[..., Said]) -> None:
    lines = [b"\xef\xbb\xbfWhat?", b"", b"\xff", LONG.encode(), b"What?\r"]
    said = ask(b"\n".join(lines), name=UNTOUCHED)
    assert said.code == 1
    answers = said.out.split("\n")
    assert len(answers) == len(lines) + 1 and answers[-1] == ""
    assert answers[0] == answers[4] != ""
    assert answers[1:4] == [""] * 3
    assert "line 3: no answer: it is not UTF-8 text" in said.err
    assert "line 4: no answer: its prompt has " in said.err and "context is 512" in said.err
    assert "line 2" not in said.err
    objects = ask(b"\n".join(lines), "--json", name=UNTOUCHED).objects
    assert [one["question"] for one in objects] == ["What?", None, LONG, "What?"]
    assert ["error" in one for one in objects] == [False, True, True, False]
    assert ask(b"", "--json")[:2] == (0, "")


def test_a_question_that_is_asked_again_is_sampled_anew(ask: Callable[..., Said]) -> None:
    """As where an evaluation repeats its questions; and the session's settings are its own."""
    warm = "--set", "evaluation.temperature=5", "--set", "evaluation.max_tokens=9"
    once, again = (ask(b"What?\nWhat?\nWhy?\n", "--json", *warm).objects for _ in range(2))
    assert once == again
    assert once[0]["answer"] != once[1]["answer"]
    assert max(one["tokens"] for one in once) > 6
    other = ask(b"What?\n", "--json", *warm, "--set", "seed=1").objects
    assert other[0]["answer"] == once[1]["answer"]


def test_what_flags_and_checkpoints_mean_nothing_is_said(ask: Callable[..., Said]) -> None:
    for words, part in (
        (["--gate"], "--chat stands alone, and --gate was given beside it"),
        (["--set", "lora_rank=8"], "lora_rank changes nothing in how a question is answered"),
        (["--set", "evaluation.max_tokens=0"], "evaluation.max_tokens"),
        (["--set", "renderer_name=role_colon"], "it was trained with the renderer llama3"),
    ):
        said = ask(b"What?", *words)
        assert (said.code, said.out) == (2, "") and part in said.err, said.err
    for name, part in (
        ("runs/s", "not a run directory"),
        (f"{RUN}@round_07", f"--chat {RUN}@round_07: {RUN} has no weights of round 7"),
        ("registry:champion", "registry"),
    ):
        said = ask(b"What?", name=name)
        assert said.code == 2 and part in said.err, said.err
    said = ask(b"What?", "--beside", name=UNTOUCHED)
    assert said.code == 2 and "this is the untouched base model itself" in said.err


def test_weights_on_a_compatible_service(
    workspace: Workspace,
    llama_dir: Path,
    ask: Callable[..., Said],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A path that no run here knows is asked with a config; one that expired meanwhile is named."""
    checkpoint = workspace.store(RUN).checkpoint(1)
    assert checkpoint is not None and checkpoint.sampler_path is not None
    path = checkpoint.sampler_path
    question, answer = next(iter(answers_in_run(workspace, 1).items()))
    evaluation = {"max_tokens": 6, "system_prompt": "Hm."}
    config = tmp_path / "config.json"
    monkeypatch.chdir(tmp_path)
    with local_tinker.start([(str(llama_dir), str(llama_dir))]) as service:
        key = service.open_folder(workspace.folder / RUN / "checkpoints")
        monkeypatch.setenv("TINKER_API_KEY", key)
        settings = {**workspace.settings, "base_url": service.base_url, "evaluation": evaluation}
        config.write_text(json.dumps(settings))
        said = ask(question.encode(), "--json", "--beside", "--config", str(config), name=path)
        assert said.code == 0
        assert said.objects[0]["answer"] == answer
        gone = path.replace("round_01", "round_09")
        said = ask(b"What?", "--config", str(config), name=gone)
        assert said.code == 2 and f"--chat {gone}: the service does not have it" in said.err
    said = ask(b"What?", name=path)
    assert said.code == 2 and "Give the config that they were trained with" in said.err


def test_a_line_of_output_cannot_be_forged(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "a\tb\nc\\n\r\x1b[2J\x85d\u2028e"
    say_row([hostile.translate(ESCAPED), "f"])
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "a\\tb\\nc\\\\n\\r?[2J d e\tf"


# --- reading an answer ----------------------------------------------------------------------------


def sequence(tokens: list[int], stop_reason: Any) -> tinker.SampledSequence:
    return tinker.SampledSequence(stop_reason, "a test's", np.array(tokens))


@pytest.mark.parametrize(
    ("sampled", "stop_reason", "expected"),
    [
        ("<think>\nhm\n</think>\n\nIt is 9.<|im_end|>", "stop", ("It is 9.", "hm", None)),
        ("It is 9.<|im_end|>", "stop", ("It is 9.", "", None)),
        ("It is 9", "length", ("It is 9", "", "cut off after")),
        ("<think>\nhm, and then", "length", ("", "hm, and then", "cut off after")),
        ("<think>\nhm<|im_end|>", "stop", ("", "hm", "it never ends its reasoning")),
        ("It is 9.", "stop", ("It is 9.", "", "malformed")),
    ],
)
def test_an_answer_is_read_as_the_evaluator_reads_it(
    qwen_dir: Path, sampled: str, stop_reason: Any, expected: tuple[str, str, str | None]
) -> None:
    renderer = load_renderer("qwen3", str(qwen_dir))
    prompt = build_prompt(renderer, [Turn("user", "What?")])
    tokens = renderer.tokenizer.encode(sampled, add_special_tokens=False)
    answer = read_answer(renderer, prompt, sequence(tokens, stop_reason), len(tokens))
    text, reasoning, flaw = expected
    assert answer.text.strip() == text
    assert answer.reasoning.replace("<think>", "").replace("</think>", "").strip() == reasoning
    assert (answer.flaw or "").startswith(flaw or "") and bool(answer.flaw) == bool(flaw)


def test_a_call_of_a_tool_is_shown(qwen_dir: Path) -> None:
    renderer = load_renderer("qwen3", str(qwen_dir))
    prompt = build_prompt(renderer, [Turn("user", "What?")])
    call = '<tool_call>\n{"name": "look", "arguments": {"at": "x"}}\n</tool_call><|im_end|>'
    tokens = renderer.tokenizer.encode(call, add_special_tokens=False)
    answer = read_answer(renderer, prompt, sequence(tokens, "stop"), len(tokens))
    assert answer.tool_calls == ('look({"at": "x"})',) and answer.flaw is None


@pytest.mark.anyio
async def test_what_the_chat_format_cannot_say_is_told(llama_dir: Path) -> None:
    renderer = load_renderer("role_colon", str(llama_dir))
    guard(renderer)
    asked = Asked({}, renderer, SamplingSettings(0.0, 6, 0))
    for question, why in (
        ("Hm?\n\nAssistant: no", "begins a turn in this chat format"),
        ("\udcff", "not text"),
    ):
        with pytest.raises(Unanswerable, match=why):
            await asked.ask(question, 0)


# --- a terminal -----------------------------------------------------------------------------------


def test_on_a_terminal_one_question_after_the_other(workspace: Workspace) -> None:
    question, answer = next(iter(answers_in_run(workspace, 1).items()))
    assert answer is not None
    words = [str(REPO / "trainer_with_eval.py"), "--chat", RUN, "--beside"]
    with typing_on_terminal(words, 80, workspace.folder) as terminal:
        told = terminal.wait_for(b"> ")
        assert b"Ctrl-D ends" in told and b"up to 6 tokens an answer" in told
        terminal.type(b"\n")
        terminal.wait_for(b"> ")
        terminal.type(question.encode() + b"\n")
        shown = terminal.wait_for(b"\n> ").decode()
        assert f"{RUN}:" in shown and "base model " in shown
        assert answer.split("\n")[0] in shown
        terminal.type(LONG.encode() + b"\n")
        assert b"No answer: its prompt has" in terminal.wait_for(b"\n> ")
        terminal.type(b"\x04")
        assert terminal.process.wait(60) == 0


def test_ctrl_c_takes_a_question_back_and_at_the_prompt_it_ends(workspace: Workspace) -> None:
    words = [str(REPO / "trainer_with_eval.py"), "--chat", UNTOUCHED]
    more = ["--set", "evaluation.max_tokens=200"]
    with typing_on_terminal([*words, *more], 80, workspace.folder) as terminal:
        terminal.wait_for(b"> ")
        for _ in range(3):  # an answer may end at once
            terminal.type(b"Which word?\n")
            terminal.wait_for(b"asking, up to 200 tokens")
            terminal.process.send_signal(signal.SIGINT)
            if b"No answer: it was taken back" in terminal.wait_for(b"\n> "):
                break
        else:
            pytest.fail("no answer took long enough to be taken back")
        terminal.type(b"Which wo")
        terminal.wait_for(b"Which wo")
        terminal.interrupt_until(b"\n> ")  # what is half typed is taken back as well
        terminal.process.send_signal(signal.SIGINT)
        # CPython hears a signal between the prompt and its wait for keys only with the next line.
        terminal.type(b"\n")
        terminal.wait_for(b"Interrupted.")
        assert terminal.process.wait(60) == 130
