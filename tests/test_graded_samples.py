"""Samples of question files: what counts as said, malformed and truncated, and by which graders."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker

from grading.graders import GRADING
from rows.chat_formats import load_renderer
from scores.results import SampleResult, protocol_hash
from simple_eval import _graded, build_prompt, load_questions
from test_loop import Workspace
from trainer_with_eval import main

QUESTION = {"question": "What is 4 + 5?", "answer": "9", "id": "q"}


def sample_of(
    folder: Path, model_dir: Path, renderer_name: str, said: str, **changes: Any
) -> SampleResult:
    """One answer as the service would return it, graded in a chat format."""
    file = folder / "q.jsonl"
    file.write_text(json.dumps({**QUESTION, **changes.pop("row", {})}))
    task = load_questions("qa:q.jsonl", file)
    renderer = load_renderer(renderer_name, str(model_dir))
    prompt = build_prompt(renderer, task.questions[0].turns)
    tokens = renderer.tokenizer.encode(said, add_special_tokens=False)
    reason = changes.pop("stop_reason", "stop")
    sequence = tinker.SampledSequence(reason, "0", tokens_np=np.array(tokens))
    return asyncio.run(_graded(task, task.questions[0], 1, renderer, sequence, prompt))


def marks(sample: SampleResult) -> tuple[float, bool, bool]:
    return sample.score, sample.truncated, sample.malformed


ENDS = {"llama3": "<|eot_id|>", "role_colon": "\n\nUser:", "qwen3": "<|im_end|>"}


@pytest.mark.parametrize("name", ENDS)
def test_reasoning_is_no_part_of_an_answer_in_any_chat_format(
    name: str, tmp_path: Path, llama_dir: Path, qwen_dir: Path
) -> None:
    model_dir, end = (qwen_dir if name == "qwen3" else llama_dir), ENDS[name]

    def judged(said: str, **changes: Any) -> tuple[float, bool, bool]:
        return marks(sample_of(tmp_path, model_dir, name, said, **changes))

    assert judged(f"<think>maybe 4</think> It is 9.{end}") == (1.0, False, False)
    assert judged(f"<think>maybe 9</think> It is 4.{end}") == (0.0, False, False)
    assert judged(f"maybe 9</think> It is 4.{end}") == (0.0, False, False)
    assert judged(f"5 <think>9</think>4<think>9</think> 8{end}") == (0.0, False, False)
    # a trace that never ends has no answer: cut, or ended by the model
    assert judged("<think>\nmaybe 9", stop_reason="length") == (0.0, True, False)
    assert judged(f"<think>\nmaybe 9{end}") == (0.0, False, True)
    # what is malformed scores 0 whatever it says; what is cut is graded as it stands
    assert judged("It is 9.") == (0.0, False, True)
    assert judged("It is 9.", stop_reason="length") == (1.0, True, False)


def test_what_was_said_is_kept_as_it_was(tmp_path: Path, llama_dir: Path) -> None:
    sample = sample_of(tmp_path, llama_dir, "llama3", "<think>9</think>**4**<|eot_id|>")
    assert sample.answer == "<think>9</think>**4**"
    assert sample_of(tmp_path, llama_dir, "llama3", "It is 9.").answer == "It is 9."


def test_a_prompt_that_opens_the_trace_is_part_of_it(tmp_path: Path, qwen_dir: Path) -> None:
    def judged(said: str, **changes: Any) -> tuple[float, bool, bool]:
        return marks(sample_of(tmp_path, qwen_dir, "qwen3_5", said, **changes))

    assert judged("maybe 9<|im_end|>") == (0.0, False, True)
    assert judged("maybe 9", stop_reason="length") == (0.0, True, False)
    assert judged("maybe 4\n</think>\n\n9<|im_end|>") == (1.0, False, False)
    closed = sample_of(tmp_path, qwen_dir, "qwen3_disable_thinking", "9<|im_end|>")
    assert marks(closed) == (1.0, False, False)


# --- rows -----------------------------------------------------------------------------------------


def test_a_number_is_as_good_as_its_digits(tmp_path: Path, llama_dir: Path) -> None:
    for answer, texts in ((9, ("9",)), (9.0, ("9.0",)), ([8, "9"], ("8", "9"))):
        row = {"answer": answer, "grader": "numeric"}
        sample = sample_of(tmp_path, llama_dir, "llama3", "It is 9.<|eot_id|>", row=row)
        assert (sample.expected, sample.score) == (texts, 1.0)


# --- versions -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, llama_dir: Path) -> Workspace:
    """A run of one round, in runs/r of a folder."""
    made = Workspace(tmp_path_factory.mktemp("graded"), llama_dir)
    made.settings |= {"max_rounds": 1}
    assert made.run("runs/r") == 0
    return made


def rewrite(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("recorded", [None, GRADING - 1, GRADING + 1])
def test_a_run_of_other_graders_is_not_resumed(
    begun: Workspace, capsys: pytest.CaptureFixture, recorded: int | None
) -> None:
    file = begun.folder / "runs/r/data_manifest.json"
    before = file.read_text()
    assert json.loads(before)["grading"] == GRADING
    # a version that recorded no number had the first
    rewrite(file, lambda m: m.pop("grading") if recorded is None else m.update(grading=recorded))
    try:
        capsys.readouterr()
        arguments = ["--resume", str(begun.folder / "runs/r"), "--set", "max_rounds=2"]
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert f"graded by version {recorded or 1} of the graders" in said
        assert f"has version {GRADING}" in said and "start a new run" in said
    finally:
        file.write_text(before)


def test_scores_of_other_graders_are_another_protocol(
    begun: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(begun.folder)
    evaluate = ["--config", "config.json", "--evaluate", "runs/r@round_01"]
    assert main(evaluate) == 0
    assert "against its evaluation in the run" in capsys.readouterr().out

    def of_before(result: dict[str, Any]) -> None:
        assert result["protocol"].pop("grading") == GRADING
        result["protocol_hash"] = protocol_hash(result["protocol"])

    file = begun.folder / "runs/r/evals/round_01.json"
    before = file.read_text()
    rewrite(file, of_before)
    try:
        assert main(evaluate) == 0
        assert "had another protocol" in capsys.readouterr().out
    finally:
        file.write_text(before)


def test_an_answer_that_cannot_be_worked_out_is_a_failed_sample(
    tmp_path: Path, llama_dir: Path
) -> None:
    row = {"answer": "x^2+x", "grader": "numeric"}

    def judged(said: str) -> SampleResult:
        return sample_of(tmp_path, llama_dir, "llama3", f"{said}<|eot_id|>", row=row)

    sample = judged(r"\boxed{9^{9^{9^{9}}}}")
    assert sample.score == 0.0 and not sample.malformed
    assert sample.error is not None and "could not compare expressions" in sample.error
    assert (judged(r"\boxed{x(x+1)}").score, judged("x").score) == (1.0, 0.0)
