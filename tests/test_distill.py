"""Distillation: what it learns from, what it refuses, what it keeps, and its numbers by hand."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import tinker
import torch

from conftest import REPO
from data_loader import load_examples
from data_selector import Mining, Rows, Selection, Signals, select_first, select_next
from errors import ConfigError, RunStoreError
from ledger.events import impossibility
from ledger.records import Ancestor, Origin, Teacher
from ledger.rollouts import RolledGroup, RolledSample, read_rollouts
from ledger.run_directory import RunDirectory
from ledger.taught_answers import SoftTargets, TaughtAnswers, TopTokens
from loop.methods.off_policy import datum_of, mean_entropy, usable
from loop.methods.on_policy import measures_of, with_kl_advantages
from loop.methods.rollouts import Prompt, datums_of
from loop.methods.sft import batch_loss
from loop.methods.teaching import _decoded, _Read, normalised
from loop.planning.teacher import refuse_same_weights
from rows.examples import Example, ExampleTable, Message
from rows.sources import Source
from scores.learnable import distance_of
from storage.journal import Journal
from test_loop import Workspace, row, same_bits
from trainer_with_eval import main

TEACHER = {"teacher": "teacher@round_01", "group_size": 2, "max_tokens": 6}


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory, llama_dir: Path) -> Path:
    """The run of a teacher that has learnt to answer, and mostly stops where it should."""
    made = Workspace(tmp_path_factory.mktemp("teacher"), llama_dir)
    changes = {"max_rounds": 1, "steps_per_round": 12, "learning_rate": 0.02}
    assert made.run("teacher", **changes) == 0
    return made.folder / "teacher"


@pytest.fixture
def taught(workspace: Workspace, teacher_dir: Path) -> Workspace:
    """A workspace with a teacher in it."""
    shutil.copytree(teacher_dir, workspace.folder / "teacher")
    workspace.settings |= {"method": "distill", "distill": TEACHER, "steps_per_round": 2}
    return workspace


def steps_of(workspace: Workspace, run_dir: str) -> list[dict[str, Any]]:
    return [one for one in workspace.events(run_dir) if one["type"] == "step"]


# --- the numbers, by hand -------------------------------------------------------------------------


def prompt_of_tokens(*tokens: int, weight: float = 1.0) -> Prompt:
    return Prompt("a" * 64, "q", "r", tinker.ModelInput.from_ints(list(tokens)), weight)


def judged(tokens: list[int], student: list[float], teacher: list[float]) -> RolledSample:
    return RolledSample(tokens, student, "", False, None, 0.0, teacher)


def test_an_advantage_is_what_a_token_takes_from_the_reverse_kl() -> None:
    prompts = [prompt_of_tokens(7, 8, 9, weight=2.0)]
    group = RolledGroup(
        "a" * 64, "q", "r", [judged([4, 5], [-1.0, -2.0], [-1.5, -0.5]), judged([6], [-0.5], [-3])]
    )
    datums = datums_of(prompts, [group], [torch.zeros(2)])
    made = with_kl_advantages(datums, prompts, [group])
    first, second = (one.loss_fn_inputs["advantages"].to_torch().tolist() for one in made)
    assert first == [0, 0, 2 * (-1.5 + 1.0), 2 * (-0.5 + 2.0)]
    assert second == [0, 0, 2 * (-3 + 0.5)]
    measures = measures_of([group])
    assert measures["reverse_kl"] == pytest.approx((0.5 - 1.5 + 2.5) / 3)
    assert measures["entropy"] == pytest.approx(3.5 / 3)
    assert (measures["answer_tokens"], measures["truncated_share"]) == (1.5, 0)


def test_advantages_are_the_cookbooks() -> None:
    from tinker_cookbook.distillation.train_on_policy import incorporate_kl_penalty

    class Teacher:
        async def compute_logprobs_async(self, prompt: tinker.ModelInput) -> list[float | None]:
            return [None, *(-0.25 * token for token in prompt.to_ints()[1:])]

    prompts = [prompt_of_tokens(7, 8)]
    answers = [([4, 5, 6], [-1.0, -2.0, -0.125]), ([3], [-0.5])]
    samples = [judged(tokens, lps, [-0.25 * one for one in tokens]) for tokens, lps in answers]
    group = RolledGroup("a" * 64, "q", "r", samples)
    theirs = datums_of(prompts, [group], [torch.zeros(2)])
    clients: Any = [Teacher()] * 2
    said = asyncio.run(incorporate_kl_penalty(theirs, clients, [0, 0], 1.0, 0.0))
    ours = with_kl_advantages(datums_of(prompts, [group], [torch.zeros(2)]), prompts, [group])
    for one, other in zip(ours, theirs, strict=True):
        advantages = (datum.loss_fn_inputs["advantages"].to_torch() for datum in (one, other))
        assert torch.equal(*advantages)
    assert measures_of([group])["reverse_kl"] == pytest.approx(said["teacher_kl"])


def test_soft_targets_are_the_teachers_distribution_at_each_token() -> None:
    logprobs = np.log(np.array([[0.6, 0.2], [0.45, 0.45]], np.float32))
    soft = normalised(TopTokens(np.array([[4, 1], [5, 2]]), logprobs))
    datum = datum_of(prompt_of_tokens(7, 8, 9), [4, 5], 0.5, soft)
    inputs = datum.loss_fn_inputs
    assert datum.model_input.to_ints() == [7, 8, 9, 4]
    assert inputs["target_tokens"].to_numpy().tolist() == [[8, 8], [9, 9], [4, 1], [5, 2]]
    weights = inputs["weights"].to_numpy()
    assert weights == pytest.approx(np.array([[0, 0], [0, 0], [0.1875, 0.0625], [0.125, 0.125]]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert mean_entropy([soft]) == pytest.approx((entropy + math.log(2)) / 2)
    # a student that is the teacher has the entropy as its loss, so that the forward KL is 0
    student = np.zeros((4, 2), np.float32)
    student[2:] = np.log(soft.probs_TK)
    loss, nll = batch_loss([student], [weights], total_weight=0.5)
    assert loss == pytest.approx(nll) == pytest.approx(mean_entropy([soft]))


@pytest.mark.parametrize(
    ("start", "path", "told", "is_refused"),
    [
        (None, None, None, True),
        (None, None, "Be brief.", False),
        (None, "tinker://a/sampler_weights/x", None, False),
        ("tinker://a/weights/x", "tinker://a/sampler_weights/x", None, True),
        ("tinker://a/weights/x", "tinker://a/sampler_weights/y", None, False),
        ("tinker://a/weights/x", None, None, False),
    ],
)
def test_weights_that_the_student_begins_as_teach_nothing(
    start: str | None, path: str | None, told: str | None, is_refused: bool
) -> None:
    teacher = Teacher("t", None, "/model", path)
    origin = None if start is None else Origin(Ancestor("s", start), False)
    refused = pytest.raises(ConfigError, match="nothing to learn")
    with refused if is_refused else contextlib.nullcontext():
        refuse_same_weights(teacher, origin, "/model", told)


def test_hard_targets_are_the_answers_tokens() -> None:
    datum = datum_of(prompt_of_tokens(7, 8, 9), [4, 5], 1.0, None)
    assert datum.loss_fn_inputs["target_tokens"].to_numpy().tolist() == [8, 9, 4, 5]
    assert datum.loss_fn_inputs["weights"].to_numpy().tolist() == [0, 0, 0.5, 0.5]


def test_rows_are_drawn_by_their_distance_from_the_teacher() -> None:
    known = {"a": 3.0, "b": -0.5, "c": 0.5}
    assert distance_of("a", known).weight == 3
    assert distance_of("b", known).weight == pytest.approx(0.1)
    assert distance_of("new", known).weight == pytest.approx(1.0)
    assert distance_of("new", {}).weight == distance_of("other", {}).weight > 0
    rows = ExampleTable(
        Example("", (Message("user", f"q {n}"), Message("assistant", "a")), "f", n, None)
        for n in range(40)
    )
    mining = Mining(strategy="loss", replay_share=0.0, by_teacher=True)
    assert not mining.needs_losses and not mining.needs_losses_before
    far = {one: 100.0 if n < 8 else 0.0 for n, one in enumerate(rows.ids)}
    previous = Selection(1, 0, (), {}, {}, 0, {})
    signals = Signals(distances=far)
    made = select_next(previous, Rows(rows, ExampleTable()), signals, mining, num_slots=8)
    assert sum(far[pick.example_id] > 0 for pick in made.picks) >= 6
    assert any("reverse KL 100 nats" in pick.reason for pick in made.picks)


# --- whole runs -----------------------------------------------------------------------------------


@pytest.mark.trains
@pytest.mark.parametrize("targets", ["soft", "hard"])
def test_off_policy_learns_what_the_teacher_answers(taught: Workspace, targets: str) -> None:
    distill = {**TEACHER, "way": "off_policy", "targets": targets}
    taught.write_rows("train.jsonl", [{**row(i), "output": "a wrong answer"} for i in range(10)])
    assert taught.run("run", distill=distill, max_rounds=2) == 0
    events = taught.events("run")
    answered = [one for one in events if one["type"] == "answered"]
    assert answered[0]["num_answers"] == 2 * answered[0]["num_rows"]
    assert answered[0]["num_sampled_tokens"] > 0
    # a row is answered once, however often it is drawn
    groups = [
        json.loads(line)
        for one in answered
        for line in (taught.folder / "run" / one["file"]).read_text().splitlines()
    ]
    ids = [one["example_id"] for one in groups]
    steps = steps_of(taught, "run")
    assert len(ids) == len(set(ids)) and set(ids) == {i for s in steps for i in s["example_ids"]}
    measures = steps[-1]["measures"]
    assert ("forward_kl" in measures) == (targets == "soft")
    assert 0 <= measures["truncated_share"] <= 1
    read = [one for one in events if one["type"] == "targets_read"]
    assert bool(read) == (targets == "soft")
    assert not any(one.get("num_prompt_tokens") for one in steps)  # what is kept costs nothing
    if targets == "soft":  # each answer that can be trained on is read once, in one request
        by_row = {
            g["example_id"]: [
                len(s["tokens"]) for s in g["samples"] if s["tokens"] and not s["is_truncated"]
            ]
            for g in groups
        }
        assert sum(one["num_sampled_tokens"] for one in read) == sum(map(len, by_row.values()))
        kept = SoftTargets(taught.store("run"))
        assert set(kept.known()) == {one for one, lengths in by_row.items() if lengths}
        lengths = {one: sum(by_row[one]) for one in kept.known()}
        assert kept.of(lengths).keys() == lengths.keys()
    teacher = taught.store("run").settled_config()["resolved"]["teacher"]
    checkpoint, selection = taught.store("teacher").checkpoint(1), taught.store("run").selection(2)
    assert checkpoint is not None and selection is not None
    assert teacher["path"] == checkpoint.sampler_path
    assert set(teacher["sha256"]) == {"adapter_config.json", "adapter_model.safetensors"}
    assert not any(one["type"] == "losses_measured" for one in events)
    assert all("loss" not in pick.reason for pick in selection.picks)


@pytest.mark.trains
def test_on_policy_is_judged_by_the_teacher(taught: Workspace) -> None:
    distill = {**TEACHER, "teacher_prompt": "Answer in one word."}
    assert taught.run("run", distill=distill, start_from="teacher@round_01", max_rounds=2) == 0
    steps = steps_of(taught, "run")
    for one in steps:
        groups = read_rollouts(taught.folder / "run", one["step"])
        assert groups is not None
        for sample in (sample for group in groups for sample in group.samples):
            assert sample.teacher_logprobs is not None
            assert len(sample.teacher_logprobs) == len(sample.tokens)
        assert one["measures"]["reverse_kl"] == pytest.approx(measures_of(groups)["reverse_kl"])
        assert abs(one["measures"]["kl_sampler_trainer"]) < 0.01
        samples = [sample for group in groups for sample in group.samples]
        num_judged = sum(bool(sample.tokens) for sample in samples)  # a token each comes with it
        assert one["num_sampled_tokens"] == sum(len(s.tokens) for s in samples) + num_judged
        assert one["loss"] == pytest.approx(one["measures"]["reverse_kl"], abs=1e-4)  # a token
    selection = taught.store("run").selection(2)
    assert selection is not None
    reasons = [pick.reason for pick in selection.picks if pick.weight is not None]
    assert reasons and all("teacher" in one for one in reasons)


@pytest.mark.trains
def test_a_run_takes_no_more_tokens_than_its_plan_says(
    taught: Workspace, capsys: pytest.CaptureFixture
) -> None:
    """Also where the rows that are drawn are the longest ones."""
    rows = [row(i) for i in range(20)]
    rows[0]["instruction"] += " word" * 40
    taught.write_rows("train.jsonl", rows)
    table = load_examples([Source("train.jsonl", taught.folder / "train.jsonl")]).examples
    long_id = next(iter(table.ids))
    drawn = {n: select_first(table, num_slots=2, seed=n).picks for n in range(100)}
    seed = next(n for n, picks in drawn.items() if long_id in [p.example_id for p in picks])
    changes: dict[str, Any] = {"steps_per_round": 1, "max_rounds": 1, "batch_size": 2}
    changes |= {"mining": {}, "seed": seed}
    assert taught.run("plan", "--dry-run", **changes) == 0
    said = "".join(capsys.readouterr())
    assert taught.run("run", **changes) == 0
    used = taught.store("run").usage()
    tokens = r"at most ([\d,]+) trained, ([\d,]+) prompt and ([\d,]+) sampled"
    found = re.search(tokens, said)
    assert found is not None
    most = [int(one.replace(",", "")) for one in found.groups()]
    assert used.train_tokens <= most[0]
    assert used.prompt_tokens <= most[1] and used.sampled_tokens <= most[2]


@pytest.mark.trains
def test_a_teacher_that_is_the_student_has_nothing_to_say(taught: Workspace) -> None:
    """The student starts as its teacher, so that their log-probabilities are the same. Where the
    weights are known to be one the run is refused; here the student's are of a run alike."""
    changes: dict[str, Any] = {"max_rounds": 1, "steps_per_round": 1}
    assert taught.run("run", start_from="teacher@round_01", **changes) == 2
    alike = {"method": "sft", "distill": None, "max_rounds": 1, "steps_per_round": 12}
    assert taught.run("twin", learning_rate=0.02, **alike) == 0
    changes["start_from"] = "twin@round_01"
    assert taught.run("run", **changes) == 0
    (step,) = steps_of(taught, "run")
    assert step["measures"]["reverse_kl"] == pytest.approx(0, abs=1e-4)
    assert taught.run("soft", **changes, distill={**TEACHER, "way": "off_policy"}) == 0
    (step,) = steps_of(taught, "soft")
    assert 0 <= step["measures"]["forward_kl"] < 0.1  # what lies beyond the likeliest tokens


@pytest.mark.trains
@pytest.mark.parametrize(
    ("way", "num_taken"), [("on_policy", 2), ("on_policy", 0), ("off_policy", 2)]
)
def test_a_killed_run_ends_as_an_uninterrupted_one(
    taught: Workspace, way: str, num_taken: int
) -> None:
    changes: dict[str, Any] = {"distill": {**TEACHER, "way": way}, "max_rounds": 1}
    assert taught.run("whole", **changes) == 0
    shutil.copytree(taught.folder / "whole", taught.folder / "killed")
    ledger = taught.folder / "killed" / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    cut = [json.loads(line)["type"] for line in lines].index("step") + num_taken
    ledger.write_text("".join(lines[:cut]))  # so many steps were taken, and none was saved
    assert main(["--resume", str(taught.folder / "killed")]) == 0
    assert same_bits(taught.weights("whole", 1), taught.weights("killed", 1))
    store = taught.store("killed")
    assert impossibility(store.effective()) is None
    # what was sampled was not sampled again
    kinds = ("answered", "targets_read", "step")
    again = [one for one in taught.events("killed")[cut:] if one["type"] in kinds]
    assert {one["type"] for one in again} == {"step"}
    if way == "on_policy":
        # and was counted once: here, where the ledger did not have the step yet
        assert [one.get("counted_before", False) for one in again][:2] == [bool(num_taken)] * 2
    used, whole = store.usage(), taught.store("whole").usage()
    assert (used.prompt_tokens, used.sampled_tokens) == (whole.prompt_tokens, whole.sampled_tokens)
    again_trained = store.spent_again().train_tokens  # which is told when the run is resumed
    assert used.train_tokens == whole.train_tokens + again_trained
    assert bool(again_trained) == bool(num_taken)


@pytest.mark.trains
def test_soft_targets_are_kept_answer_by_answer(taught: Workspace) -> None:
    """A run that is killed while the teacher reads asks for no answer again that was read."""
    changes: dict[str, Any] = {"distill": {**TEACHER, "way": "off_policy"}, "max_rounds": 1}
    assert taught.run("whole", **changes) == 0
    whole, killed = taught.folder / "whole", taught.folder / "killed"
    shutil.copytree(whole, killed)
    (read,) = (one for one in taught.events("whole") if one["type"] == "targets_read")
    lines = (killed / "ledger.jsonl").read_text().splitlines(keepends=True)
    (killed / "ledger.jsonl").write_text("".join(lines[: read["seq"]]))
    (killed / read["file"]).unlink()
    kept = SoftTargets(taught.store("whole"))
    groups = TaughtAnswers(taught.store("whole")).of(kept.known())
    example_id, group = next(iter(groups.items()))
    top = kept.of({example_id: sum(len(one.tokens) for one in usable(group))})[example_id]
    length = len(usable(group)[0].tokens)
    changed = top.logprobs_TK[:length] - 1  # to tell it by
    tokens, logprobs = (
        base64.b64encode(part.tobytes()).decode() for part in (top.tokens_TK[:length], changed)
    )
    SoftTargets(taught.store("killed")).journal().add(
        f"targets/{example_id}/0",
        {"tokens": tokens, "logprobs": logprobs, "num_tokens": length},
        num_prompt_tokens=10_000,
        num_sampled_tokens=1,
    )
    assert main(["--resume", str(killed)]) == 0
    kept = SoftTargets(taught.store("killed"))
    assert example_id in kept.known()
    again = kept.of({example_id: len(top.tokens_TK)})[example_id].logprobs_TK
    assert np.array_equal(again[:length], changed)
    assert np.array_equal(again[length:], top.logprobs_TK[length:])
    (now,) = (one for one in taught.events("killed") if one["type"] == "targets_read")
    assert 10_000 < now["num_prompt_tokens"] < 10_000 + read["num_prompt_tokens"]
    assert now["num_sampled_tokens"] == read["num_sampled_tokens"]
    assert not list((killed / "rollouts").glob("*.partial.jsonl"))
    file = killed / now["file"]
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(RunStoreError, match="sha256"):
        SoftTargets(taught.store("killed")).known()


def kept_targets(folder: Path, content: bytes) -> SoftTargets:
    """A run directory's, of one file that holds this and has its own sha256 in the ledger."""
    store = RunDirectory.create(folder, {})
    (folder / "rollouts").mkdir()
    (folder / "rollouts/targets_001.safetensors").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    store.append("targets_read", file="rollouts/targets_001.safetensors", sha256=sha256)
    return SoftTargets(store)


def test_targets_that_are_not_of_the_answers_are_refused_with_their_file(tmp_path: Path) -> None:
    size = (3, 2)
    whole = {"a/tokens": np.zeros(size, np.int32), "a/logprobs": np.zeros(size, np.float32)}
    kept = kept_targets(tmp_path / "whole", safetensors.numpy.save(whole))
    assert list(kept.known()) == ["a"]
    assert kept.of({"a": 3})["a"].tokens_TK.shape == size
    refused = "targets_001.safetensors: .*Restore it, or start a new run"
    with pytest.raises(RunStoreError, match=r"targets_001\.safetensors: .*a is not of 4 tokens"):
        kept.of({"a": 4})
    del whole["a/logprobs"]
    kept = kept_targets(tmp_path / "half", safetensors.numpy.save(whole))
    assert list(kept.known()) == ["a"]
    with pytest.raises(RunStoreError, match=refused):
        kept.of({"a": 3})
    with pytest.raises(RunStoreError, match=refused):
        kept_targets(tmp_path / "none", b"no tensors").known()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tokens": "!", "logprobs": "AAAA", "num_tokens": 2}, "base64"),
        ({"tokens": "", "logprobs": "", "num_tokens": 0}, "of 0 tokens, and the answer has 2"),
        ({"tokens": "AAAA", "logprobs": "AAAA", "num_tokens": 2}, "buffer size"),
        ({"tokens": "AAAAAAAAAAA=", "logprobs": "AAAAAAAAAAA=", "num_tokens": 2}, "reshape"),
    ],
)
def test_targets_that_a_journal_holds_otherwise_are_refused(
    fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        _decoded(_Read(**fields), num_tokens=2, number=3)


@pytest.mark.trains
def test_answers_of_a_round_cut_short_are_not_paid_again(taught: Workspace) -> None:
    changes: dict[str, Any] = {"distill": {**TEACHER, "way": "off_policy"}, "max_rounds": 1}
    assert taught.run("run", **changes) == 0
    run_dir = taught.folder / "run"
    (answered,) = (one for one in taught.events("run") if one["type"] == "answered")
    file = run_dir / answered["file"]
    ids = [json.loads(line)["example_id"] for line in file.read_text().splitlines()]
    store = taught.store("run")
    sampled = store.usage().sampled_tokens
    journal = Journal(file.with_suffix(".partial.jsonl"), "the teacher")  # as a kill leaves it
    journal.add("row", {}, num_prompt_tokens=3, num_sampled_tokens=5)
    assert store.usage().sampled_tokens == sampled + 5
    assert set(TaughtAnswers(store).of([*ids, "f" * 64])) == set(ids)
    assert store.usage().sampled_tokens == sampled
    file.write_text(file.read_text().replace('"is_used": true', '"is_used": false'))
    with pytest.raises(RunStoreError, match="sha256"):
        TaughtAnswers(store).of(ids)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distill", "said"),
    [
        ({"teacher": "BASE"}, "nothing to learn from it"),
        ({"teacher": "teacher@round_07"}, "no weights of round 7"),
        ({"teacher": "absent@best"}, "absent"),
        ({"teacher": "tinker://r/sampler_weights/x"}, "finds weights by their run"),
        ({"teacher": "tinker://r/weights/x"}, "this is a state to train on from"),
        ({**TEACHER, "targets": "soft"}, "distill.targets is soft"),
        ({**TEACHER, "max_tokens": 100_000}, "Sampled answers are not cut"),
        ({"teacher": "OTHER"}, "its tokenizer is not the student's"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(
    workspace: Workspace,
    qwen_dir: Path,
    teacher_dir: Path,
    capsys: pytest.CaptureFixture,
    distill: dict[str, Any],
    said: str,
) -> None:
    shutil.copytree(teacher_dir, workspace.folder / "teacher")
    names = {"BASE": workspace.settings["base_model"], "OTHER": str(qwen_dir)}
    distill = {**distill, "teacher": names.get(distill["teacher"], distill["teacher"])}
    assert workspace.run("run", method="distill", distill=distill) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert said in message
    assert not (workspace.folder / "run").exists()


def test_a_teacher_that_is_priced_otherwise_is_refused(
    workspace: Workspace, qwen_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    price = {"train": 1.0, "prefill": 1.0, "sample": 1.0}
    table = {str(workspace.settings["base_model"]): price}
    budget = {"prices": {"as_of": "2026-11-30", "usd_per_million_tokens": table}}
    settings = {"distill": {"teacher": str(qwen_dir)}, "budget": budget}
    assert workspace.run("run", method="distill", **settings) == 2
    assert "all tokens of a run are priced as those of base_model" in capsys.readouterr().err


def test_another_teacher_under_the_same_name_is_refused(
    taught: Workspace, capsys: pytest.CaptureFixture
) -> None:
    assert taught.run("run", max_rounds=1, steps_per_round=1) == 0
    path = taught.store("run").settled_config()["resolved"]["teacher"]["path"]
    run_id, kind, name = path.removeprefix("tinker://").split("/")
    folder = taught.folder / "teacher" / "checkpoints" / run_id.replace(":", "_") / kind / name
    weights = folder / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    resume = ["--resume", str(taught.folder / "run"), "--set", "max_rounds=2"]
    assert main(resume) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "is not what it was when the run began" in message
    assert "adapter_model.safetensors" in message


@pytest.mark.trains
@pytest.mark.parametrize("way", ["on_policy", "off_policy"])
def test_what_is_held_out_is_never_asked(taught: Workspace, way: str) -> None:
    """Rows that ask what an evaluation asks are dropped before anything is sampled."""
    asked = [{"instruction": f"Which word stands at place {i}?", "output": "x"} for i in range(10)]
    taught.write_rows("train.jsonl", [*asked, *(row(i) for i in range(4))])
    assert taught.run("run", distill={**TEACHER, "way": way}, max_rounds=1) == 0
    files = list((taught.folder / "run" / "rollouts").glob("*.jsonl"))
    assert files
    for file in files:
        assert "Which word stands" not in file.read_text()


@pytest.mark.parametrize("path", sorted((REPO / "examples" / "distill").glob("*.json")), ids=str)
def test_examples_can_be_read(path: Path) -> None:
    from config_schema import load_and_validate_config

    load_and_validate_config(str(path), [])
