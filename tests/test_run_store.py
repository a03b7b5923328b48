"""The ledger: torn lines, superseded steps, refusals, and what a resumed run finds."""

import json
import os
from pathlib import Path

import pytest

from data_selector import select_first
from errors import RunStoreError
from ledger.finding import newest_run
from ledger.records import Batch, Checkpoint
from ledger.run_directory import effective_events, new_run_dir
from ledger.store import RunStore
from loop.planning.resumption import refuse_other_data
from scores.decision import Spent, decide
from test_data_selector import TRAIN
from test_decision import GATE, result

pytestmark = pytest.mark.core

MANIFEST = {"files": {"train_file": {"path": "t.jsonl", "sha256": "1"}}, "eval_tasks": {}}


def started(run_dir: Path) -> RunStore:
    store = RunStore.create(run_dir, {"config": {"max_rounds": 1}, "config_hash": "abc"})
    store.record_start(MANIFEST, [], "abc")
    return store


def checkpoint(round_no: int, step: int, *, sampler: bool = True) -> Checkpoint:
    return Checkpoint(
        round=round_no,
        step=step,
        state_path=f"tinker://s:train:0/weights/step_{step}",
        sampler_path=f"tinker://s:train:0/sampler_weights/step_{step}" if sampler else None,
        base_model="m",
        lora_rank=8,
        lora_alpha=32,
        train_attn=True,
        train_mlp=True,
        train_unembed=True,
        renderer="llama3",
        expires_at=None,
    )


def record_steps(store: RunStore, round_no: int, steps: range) -> None:
    for step in steps:
        store.record_batch(round_no, Batch(step, ("a", "b"), 100, 10, 0.1), loss=1.0, nll=2.0)


def test_a_directory_in_use_is_refused_and_a_foreign_one_too(tmp_path: Path) -> None:
    started(tmp_path / "run")
    with pytest.raises(RunStoreError, match="not an empty directory"):
        started(tmp_path / "run")
    with pytest.raises(
        RunStoreError, match=r"not a run directory, it has no config\.resolved\.json"
    ):
        RunStore.open(tmp_path)


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    for run_dir in (tmp_path / os.fsdecode(b"r\xff"), tmp_path / os.fsdecode(b"\xff") / "r"):
        with pytest.raises(RunStoreError, match="is not UTF-8"):
            started(run_dir)
        assert not run_dir.exists()


def test_everything_recorded_is_found_again_by_a_later_process(tmp_path: Path) -> None:
    store = started(tmp_path / "run")
    selection = select_first(TRAIN, num_slots=8, seed=0)
    store.record_selection(selection, 0)
    record_steps(store, 1, range(2))
    store.record_checkpoint(checkpoint(1, 2))
    evaluation = result(1, 40)
    store.record_result(evaluation, 2)
    baseline = result(0, 20)
    decision = decide([baseline], evaluation, Spent(steps=2), GATE)
    store.record_decision(decision, 2)

    later = RunStore.open(tmp_path / "run")
    assert later.run_id == store.run_id
    assert later.selection(1) == selection
    assert later.checkpoint(1) == checkpoint(1, 2)
    assert later.result(1) == evaluation
    assert later.decision(1) == decision
    assert later.scores() == {1: 0.4}
    assert later.last_lr(1) == 0.1
    assert later.steps_taken() == 2
    for missing in (later.selection(2), later.checkpoint(2), later.result(2), later.decision(2)):
        assert missing is None


def test_numbers_in_the_ledger_are_consecutive_and_lines_are_json(tmp_path: Path) -> None:
    store = started(tmp_path / "run")
    record_steps(store, 1, range(3))
    lines = (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["seq"] for event in events] == [0, 1, 2, 3]
    assert set(events[0]) >= {"seq", "time", "round", "step", "type"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.append("step", loss=float("nan"))


def test_a_torn_last_line_is_cut_off_and_the_next_event_follows_cleanly(tmp_path: Path) -> None:
    store = started(tmp_path / "run")
    record_steps(store, 1, range(1))
    ledger = tmp_path / "run" / "ledger.jsonl"
    whole = ledger.read_bytes()
    ledger.write_bytes(whole + b'{"seq": 2, "type": "st')
    assert RunStore.open(tmp_path / "run").run_id == store.run_id
    assert ledger.read_bytes() != whole  # a reader changes nothing
    store.close()
    later = RunStore.open(tmp_path / "run", to_resume=True)
    assert ledger.read_bytes() == whole
    assert later.append("run_finished")["seq"] == 2
    assert RunStore.open(tmp_path / "run").run_id == store.run_id


def test_a_damaged_line_elsewhere_is_refused(tmp_path: Path) -> None:
    started(tmp_path / "run")
    with open(tmp_path / "run" / "ledger.jsonl", "a") as file:
        file.write("nonsense\n")
    with pytest.raises(RunStoreError, match=r"ledger\.jsonl line 2: not a ledger event"):
        RunStore.open(tmp_path / "run")


def test_steps_after_the_last_checkpoint_are_superseded_but_their_tokens_were_spent(
    tmp_path: Path,
) -> None:
    store = started(tmp_path / "run")
    record_steps(store, 1, range(2))
    store.record_checkpoint(checkpoint(1, 2))
    record_steps(store, 2, range(2, 4))
    store.append("failed", detail="killed here")  # comes after steps that nothing holds

    later = RunStore.open(tmp_path / "run")
    later.mark_resumed({})
    (resumed,) = later.events("resumed")
    assert resumed["durable_seq"] == 3  # run_started 0, steps 1 and 2, checkpoint 3
    assert [event["step"] for event in later.events("step")] == [0, 1]
    record_steps(later, 2, range(2, 4))
    assert [event["step"] for event in later.events("step")] == [0, 1, 2, 3]
    assert later.usage().train_tokens == 600  # six steps of 100 tokens were paid for
    assert [e["step"] for e in RunStore.open(tmp_path / "run").events("step")] == [0, 1, 2, 3]


def test_a_checkpoint_inside_a_round_is_resumed_from_but_does_not_end_the_round(
    tmp_path: Path,
) -> None:
    store = started(tmp_path / "run")
    record_steps(store, 1, range(2))
    store.record_checkpoint(checkpoint(1, 2, sampler=False))
    record_steps(store, 1, range(2, 3))
    store.mark_resumed({})
    assert store.checkpoint(1) is None
    last = store.last_checkpoint()
    assert last is not None
    assert last.step == 2
    assert [event["step"] for event in store.events("step")] == [0, 1]


def test_unusable_checkpoints_are_never_found(tmp_path: Path) -> None:
    store = started(tmp_path / "run")
    store.record_checkpoint(checkpoint(1, 2))
    bad = checkpoint(2, 4)
    store.record_checkpoint(bad)
    store.append("checkpoint_unusable", round=2, step=4, state_path=bad.state_path)
    assert store.checkpoint(2) is None
    assert store.last_checkpoint() == checkpoint(1, 2)
    store.mark_resumed({})  # the round that failed is trained again
    assert list(store.events("checkpoint_unusable")) == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    store = started(tmp_path / "run")
    store.write_json("x.json", {"a": 1})
    with pytest.raises(TypeError):
        store.write_json("x.json", {"a": object()})
    assert json.loads((tmp_path / "run" / "x.json").read_text()) == {"a": 1}


def test_changed_data_are_refused_by_name(tmp_path: Path) -> None:
    store = started(tmp_path / "run")
    refuse_other_data(store, MANIFEST)
    changed = {"files": {"train_file": {"path": "t.jsonl", "sha256": "2"}}, "eval_tasks": {}}
    with pytest.raises(RunStoreError, match="the content of train_file has changed"):
        refuse_other_data(store, changed)


def test_only_one_process_at_a_time_has_a_run(tmp_path: Path) -> None:
    store = started(tmp_path / "run")
    with pytest.raises(RunStoreError, match="another process is at work on this run"):
        RunStore.open(tmp_path / "run", to_resume=True)
    assert RunStore.open(tmp_path / "run").run_id == store.run_id  # reading is free
    store.close()
    RunStore.open(tmp_path / "run", to_resume=True).close()


def test_a_ledger_that_two_wrote_is_refused(tmp_path: Path) -> None:
    started(tmp_path / "run")
    ledger = tmp_path / "run" / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes() * 2)
    with pytest.raises(RunStoreError, match="line 2: not a ledger event"):
        RunStore.open(tmp_path / "run")


def test_what_changed_on_a_resumption_stays_changed(tmp_path: Path) -> None:
    started(tmp_path / "run").mark_resumed({"max_rounds": 5})
    later = RunStore.open(tmp_path / "run")
    changed = {"config": {"max_rounds": 5}, "config_hash": "abc"}
    assert later.resolved_config().items() >= changed.items()


def test_a_run_killed_while_its_directory_was_made_has_not_started(tmp_path: Path) -> None:
    RunStore.create(tmp_path / "run", {"config": {}})
    assert not RunStore.open(tmp_path / "run").has_started


def test_replay_applies_resumptions_in_order() -> None:
    events = [
        {"seq": 0, "type": "run_started"},
        {"seq": 1, "type": "step"},
        {"seq": 2, "type": "resumed", "durable_seq": 0},
        {"seq": 3, "type": "step"},
        {"seq": 4, "type": "checkpoint"},
        {"seq": 5, "type": "step"},
        {"seq": 6, "type": "resumed", "durable_seq": 4},
    ]
    assert [event["seq"] for event in effective_events(events)] == [0, 2, 3, 4, 6]


def test_newest_run_is_found_by_config_hash_and_names_do_not_collide(tmp_path: Path) -> None:
    first = new_run_dir(tmp_path, "demo")
    started(first)
    second = new_run_dir(tmp_path, "demo")
    assert first != second
    started(second)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.resolved.json").write_text("not json")
    assert newest_run(tmp_path, ["abc"]).run_dir in (first, second)
    with pytest.raises(RunStoreError, match="no run with these settings"):
        newest_run(tmp_path, ["xyz"])
