"""What a checkpoint has to show before the registry takes it: on the weights of real runs, and on
results made by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

import local_tinker
import trainer_with_eval
from errors import ConfigError, Interrupted, RegistryError, ServiceError
from ledger.registry_file import Promoted, Registry
from ledger.registry_weights import digest_of, digests_of_weights, weights_dir
from ledger.registry_writing import who, writing
from ledger.run_directory import CONFIG, LEDGER
from ledger.store import RunStore
from loop.rounds.keeping import care_for
from promotion.comparing import compare_names, pair, why_incomparable
from promotion.entry import summary_of
from promotion.evidence import find_candidate
from promotion.keeping import let_go
from promotion.notices import parse_then
from promotion.promoting import Outcome, promote
from promotion.rules import guard_objections, has_no_threshold, judge_candidate
from promotion.showing import describe, history_of, shown_of
from promotion.staleness import freshness, freshness_of
from promotion.weighing import Request
from registry_records import promoted
from run_records import finished
from scores.decision import Gate
from scores.results import EvalResult, Measured, SampleResult, eval_result, task_result
from services.keys import taken
from test_checkpoint_eval import LEARNED
from test_loop import Workspace

FILE = Path("registry.jsonl")
BY = who("a test", ["registry.py", "promote"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, llama_dir: Path) -> Workspace:
    """A folder with a run whose round 1 passes its gate, and whose round 2 unlearned it."""
    made = Workspace(tmp_path_factory.mktemp("promoted"), llama_dir)
    ask = "Which word stands at {} {}?".format
    for name, answer in (("train", "x"), ("pool", "q")):
        rows = [{"instruction": ask("spot", i), "output": answer} for i in range(40)]
        made.write_rows(f"{name}.jsonl", rows)
    made.write_rows(
        "questions.jsonl", [{"question": ask("place", i), "answer": "x"} for i in range(12)]
    )
    gate = {**LEARNED["gate"], "stop": False}
    made.settings |= {**LEARNED, "eval_threshold": 0.5, "gate": gate}
    assert made.run("runs/r") == 0
    return made


@pytest.fixture
def folder(trained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder, to be changed, where the command line is."""
    copied = tmp_path / "w"
    shutil.copytree(trained.folder, copied)
    monkeypatch.chdir(copied)
    return copied


def ask_for(checkpoint: str, name: str = "support", **changes: Any) -> Outcome:
    """Promote a checkpoint, as the command line would."""
    request = Request(checkpoint, name, FILE, BY)
    with taken() as keys:
        return promote(replace(request, **changes), keys, lambda text: None)


def kinds(outcome: Outcome) -> list[str]:
    return [one.kind for one in outcome.objections]


def last_event() -> dict[str, Any]:
    return json.loads(FILE.read_text().splitlines()[-1])


def edit_ledger(run_dir: Path, change: Callable[[dict[str, Any]], None]) -> None:
    events = [json.loads(line) for line in (run_dir / LEDGER).read_text().splitlines()]
    for event in events:
        change(event)
    (run_dir / LEDGER).write_text("".join(f"{json.dumps(event)}\n" for event in events))


# --- what is promoted -----------------------------------------------------------------------------


def test_the_first_promotion_says_all_that_tells_what_it_is(folder: Path) -> None:
    outcome = ask_for("runs/r")
    assert (outcome.exit_code, kinds(outcome), outcome.before) == (0, [], None)
    entry, store = Registry.read(FILE).find("registry:champion"), RunStore.open(Path("runs/r"))
    checkpoint, result = store.checkpoint(1), store.result(1)
    assert checkpoint is not None and result is not None and checkpoint.sampler_path is not None
    assert (entry.run_id, entry.run_dir, entry.round) == (store.run_id, "runs/r", 1)
    assert (entry.sampler_path, entry.state_path) == (
        checkpoint.sampler_path,
        checkpoint.state_path,
    )
    now = digests_of_weights(store.run_dir, checkpoint.sampler_path)
    assert entry.weights_sha256 == now == store.measured_weights(1, result.names)[0]
    assert entry.lora["rank"] == checkpoint.lora_rank == 4
    assert entry.results["score"] == result.score
    assert entry.results["protocol_hash"] == result.protocol_hash
    assert entry.results["file"] == "evals/round_01.json"
    assert entry.results["file_sha256"] == digest_of(Path("runs/r/evals/round_01.json"))
    assert entry.results["tasks"]["qa:questions.jsonl"]["n"] == 12
    assert entry.data_sha256 == digest_of(Path("runs/r/data_manifest.json"))
    assert entry.base_sha256 and "model.safetensors" in entry.base_sha256
    assert (entry.parent, entry.against, entry.forced) == (None, None, None)
    assert (entry.promoted_by, entry.command) == ("a test", ["registry.py", "promote"])
    assert freshness_of(Registry.read(FILE), entry).stale == []
    assert "there was no support@champion before" in outcome.lines[1]


def test_each_measurement_tells_which_files_were_measured(trained: Workspace) -> None:
    store = trained.store("runs/r")
    measured = {event["round"]: event["weights_sha256"] for event in store.events("measured")}
    assert measured[0] is None  # the base model, whose files the manifest has
    for number in (1, 2):
        checkpoint = store.checkpoint(number)
        assert checkpoint is not None and checkpoint.sampler_path is not None
        assert measured[number] == digests_of_weights(store.run_dir, checkpoint.sampler_path)
    assert measured[1] != measured[2]


def test_a_worse_one_is_refused_and_recorded_with_its_numbers(folder: Path) -> None:
    ask_for("runs/r")
    outcome = ask_for("runs/r@round_02")
    assert (outcome.exit_code, kinds(outcome)) == (3, ["gate", "worse"])
    assert outcome.pairing is not None and outcome.pairing.verdict == "lower"
    # by scipy: the questions that moved, as a sign test
    store = RunStore.open(Path("runs/r"))
    before, after = (store.result(number) for number in (1, 2))
    assert before is not None and after is not None
    (was,), (now,) = before.tasks, after.tasks
    moved = [now.scores[one] - was.scores[one] for one in was.scores]
    ups, downs = sum(m > 0 for m in moved), sum(m < 0 for m in moved)
    assert outcome.pairing.difference.mean == pytest.approx(sum(moved) / len(moved))
    expected = stats.binomtest(ups, ups + downs).pvalue
    assert outcome.pairing.difference.p_value == pytest.approx(expected)
    event = last_event()
    assert (event["type"], event["checkpoint"]) == ("refused", "runs/r@round_02")
    assert [one["kind"] for one in event["objections"]] == ["gate", "worse"]
    assert event["objections"][0]["score"] == after.score
    assert event["objections"][1]["difference"] == outcome.pairing.difference.mean
    assert event["against"]["reference"] == "registry:support@1"
    assert [entry.version for entry in Registry.read(FILE).entries] == [1]


def test_a_reason_promotes_it_all_the_same_and_keeps_it_from_expiring(folder: Path) -> None:
    ask_for("runs/r")
    store = RunStore.open(Path("runs/r"))
    second = store.checkpoint(2)
    assert second is not None and second.sampler_path is not None
    paths = [second.state_path, second.sampler_path]
    assert all(one.expires_at for one in store.saved_weights() if one.path in paths)
    outcome = ask_for("runs/r@round_02", force="shown to the board")
    assert (outcome.exit_code, outcome.before) == (0, "registry:support@1")
    assert sorted(outcome.kept) == sorted(paths)
    entry = Registry.read(FILE).find("support@2")
    assert entry.forced == "shown to the board"
    assert [one["kind"] for one in entry.objections] == ["gate", "worse"]
    assert entry.against is not None and entry.against["verdict"] == "lower"
    for path in paths:
        info = json.loads((weights_dir(store.run_dir, path) / "checkpoint.json").read_text())
        assert info["expires_at"] is None
    assert not any(one.expires_at for one in store.saved_weights() if one.path in paths)
    # a run that goes on does not let them expire
    first, promoted = store.checkpoint(1), store.promoted_paths()
    assert first is not None
    assert care_for([first, second], first, paths, (), promoted).release == []
    assert care_for([first, second], first, paths, ()).release == paths
    assert "have no expiry" in let_go(Registry.read(FILE), entry)
    assert set(paths).isdisjoint(store.promoted_paths())


def test_the_same_weights_are_promoted_once(folder: Path) -> None:
    assert ask_for("runs/r").exit_code == 0
    shutil.copytree("runs/r", "runs/copy")
    for name in ("runs/r", "runs/copy@best"):
        outcome = ask_for(name)
        assert (outcome.exit_code, kinds(outcome)) == (3, ["same"])
    ask_for("runs/r@round_02", force="x")
    outcome = ask_for("runs/r")
    assert kinds(outcome) == ["same"]
    assert "registry:support@1 already" in outcome.lines[0]


def test_two_at_once(folder: Path) -> None:
    with writing(FILE), pytest.raises(RegistryError, match="another promotion is at work"):
        ask_for("runs/r")
    assert ask_for("runs/r").exit_code == 0


# --- who measured it ------------------------------------------------------------------------------


def test_changed_files_were_not_measured(folder: Path) -> None:
    store = RunStore.open(Path("runs/r"))
    checkpoint = store.checkpoint(1)
    assert checkpoint is not None and checkpoint.sampler_path is not None
    file = weights_dir(store.run_dir, checkpoint.sampler_path) / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    outcome = ask_for("runs/r")
    assert (outcome.exit_code, kinds(outcome)) == (3, ["not_measured"])
    assert "not those that were measured" in outcome.lines[0]
    forced = ask_for("runs/r", force="known")
    assert forced.promoted is not None and forced.promoted.results == {}
    (file.parent / "adapter_config.json").unlink()
    file.unlink()
    with pytest.raises(ConfigError, match="its weights are not there any more"):
        ask_for("runs/r", name="other")


@pytest.mark.trains
def test_a_run_without_the_record_is_measured_again_by_evaluate(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    edit_ledger(Path("runs/r"), lambda event: event.pop("weights_sha256", None))
    outcome = ask_for("runs/r")
    assert (outcome.exit_code, kinds(outcome)) == (3, ["not_measured"])
    assert "--evaluate runs/r@round_01" in outcome.lines[0]
    command = ["--config", "config.json", "--evaluate", "runs/r@round_01"]
    assert trainer_with_eval.main([*command, "--set", "evaluation.seed_of_none=1"]) == 2
    assert trainer_with_eval.main([*command, "--set", "seed=1"]) == 0  # another protocol
    assert ask_for("runs/r").exit_code == 3
    assert trainer_with_eval.main([*command, "--run-dir", "runs/zz"]) == 0
    outcome = ask_for("runs/r")
    assert (outcome.exit_code, kinds(outcome)) == (0, [])
    assert outcome.promoted is not None
    assert outcome.promoted.results["evaluation_dir"] == "runs/zz"
    assert outcome.promoted.results["file"] == "evals/checkpoint_00.json"


# --- what speaks against it -----------------------------------------------------------------------


def test_results_of_other_questions_or_rows_are_stale(folder: Path) -> None:
    store = RunStore.open(Path("runs/r"))
    assert freshness(store).stale == []
    questions, rows = Path("questions.jsonl").read_text(), Path("train.jsonl").read_text()
    Path("questions.jsonl").write_text(questions.replace("place 3", "place 33"))
    Path("train.jsonl").write_text(f"{rows}\n")
    found = freshness(store).stale
    assert len(found) == 2
    assert found[0].startswith("the questions of qa:questions.jsonl changed since")
    outcome = ask_for("runs/r")
    assert (outcome.exit_code, kinds(outcome)) == (3, ["stale", "stale"])
    Path("questions.jsonl").write_text(questions)
    manifest = Path("runs/r/data_manifest.json")
    manifest.write_text(manifest.read_text().replace("/train.jsonl", "/gone.jsonl"))
    assert freshness(RunStore.open(Path("runs/r"))).stale == []  # what is gone is no change
    outcome = ask_for("runs/r")
    assert outcome.exit_code == 0
    assert any("not checked for changes: the rows of train_file" in one for one in outcome.notes)
    Path("questions.jsonl").write_text("{")
    entry = Registry.read(FILE).find("registry:champion")
    assert len(freshness_of(Registry.read(FILE), entry).stale) == 1


def test_graders_of_the_user_are_part_of_what_was_asked(tmp_path: Path) -> None:
    import simple_eval

    (tmp_path / "own.py").write_text("def right(answer, expected):\n    return 1.0\n")
    asked = {"question": "a?", "answer": "b", "grader": "own.py@right"}
    (tmp_path / "q.jsonl").write_text(json.dumps(asked) + "\n")
    loaded = simple_eval.load_questions("qa:q.jsonl", tmp_path / "q.jsonl")
    assert simple_eval.digest_of(tmp_path / "q.jsonl") == loaded.sha256
    (tmp_path / "own.py").write_text("def right(answer, expected):\n    return 0.0\n")
    assert simple_eval.digest_of(tmp_path / "q.jsonl") != loaded.sha256


def test_what_expired_is_not_promoted_whatever_the_reason(folder: Path) -> None:
    def expire(event: dict[str, Any]) -> None:
        if event["type"] == "checkpoint":
            event["expires_at"] = "2026-01-02T03:04:05Z"

    edit_ledger(Path("runs/r"), expire)
    outcome = ask_for("runs/r@round_02")
    assert "gone" in kinds(outcome)
    assert "have expired at 2026-01-02T03:04:05Z" in outcome.lines[0]
    with pytest.raises(RegistryError, match="No reason brings them back"):
        ask_for("runs/r@round_02", force="x")
    assert Registry.read(FILE).entries == ()
    assert ask_for("runs/r").exit_code == 0  # it has no expiry


def with_settings(run_dir: Path, **changes: Any) -> None:
    """Change what a run says that its settings were."""
    resolved = json.loads((run_dir / CONFIG).read_text())
    for key, value in changes.items():
        group, _, name = key.rpartition("__")
        (resolved["config"][group] if group else resolved["config"])[name] = value
    (run_dir / CONFIG).write_text(json.dumps(resolved))


def test_the_state_to_train_on_from_is_looked_at(folder: Path) -> None:
    checkpoint = RunStore.open(Path("runs/r")).checkpoint(1)
    assert checkpoint is not None
    file = weights_dir(Path("runs/r"), checkpoint.state_path) / "adapter_model.safetensors"
    for change in (lambda: file.write_bytes(b"of another round"), file.unlink):
        change()
        outcome = ask_for("runs/r@round_01")
        assert (outcome.exit_code, kinds(outcome)) == (3, ["state"])
    assert "has no adapter_model.safetensors any more" in outcome.lines[0]


@pytest.mark.parametrize("name", ["tinker://s:train:0/weights/round_01", "runs/r@round_09"])
def test_what_names_no_checkpoint_is_not_called_an_option(name: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=f"^promote {name}: "):
        ask_for(name)


def test_a_guard_of_the_champion_cannot_be_left_away_without_a_word(folder: Path) -> None:
    """A run that asks less would else be free of what the one before was held to."""
    store = RunStore.open(Path("runs/r"))
    result = store.result(2)
    assert result is not None
    told = summary_of(result)
    told["tasks"] |= {
        "qa:guard.jsonl": {"role": "guard", "score": 1.0, "interval": None, "n": 4},
        "qa:more.jsonl": {"role": "score", "score": 1.0, "interval": None, "n": 4},
        "qa:seen.jsonl": {"role": "report", "score": 1.0, "interval": None, "n": 4},
    }
    promoted(FILE, store, "support", 2, results=told)
    outcome = ask_for("runs/r@round_01")
    assert (outcome.exit_code, kinds(outcome)) == (3, ["guard"])
    assert "registry:support@1 was held to guard qa:guard.jsonl, and this run" in outcome.lines[0]
    assert any("was promoted on qa:more.jsonl, which this run" in note for note in outcome.notes)
    outcome = ask_for("runs/r@round_01", force="the guard is not needed any more")
    assert outcome.exit_code == 0 and outcome.pairing is not None


def test_limits_and_a_threshold_that_nobody_set(folder: Path) -> None:
    run_dir, folders = Path("runs/r"), [Path("runs")]
    assert judge_candidate(find_candidate("runs/r", folders, FILE)).objections == ()
    with_settings(run_dir, eval_threshold=0.85, gate__stop=False)
    judged = judge_candidate(find_candidate("runs/r@round_02", folders, FILE))
    assert judged.objections == ()
    assert "no threshold that anybody set" in judged.notes[0]
    num_events = len((run_dir / LEDGER).read_text().splitlines())
    limits = {"type": "limits_checked", "round": 1, "step": 40, "fails": True, "violations": "?"}
    event = {"seq": num_events, "time": "2026-01-02T03:04:05Z", **limits}
    with open(run_dir / LEDGER, "a") as file:
        file.write(json.dumps(event) + "\n")
    judged = judge_candidate(find_candidate("runs/r@round_01", folders, FILE))
    assert [one.kind for one in judged.objections] == ["limits"]


# --- beside a champion that was asked something else ----------------------------------------------


@pytest.fixture(scope="module")
def elsewhere(trained: Workspace, llama_dir: Path) -> Iterator[dict[str, str]]:
    """A second run in the folder, of other questions, on a service that keeps the weights."""
    model = str(llama_dir)
    ask = "Which word stands at spot {}?".format
    trained.write_rows("others.jsonl", [{"question": ask(i), "answer": "x"} for i in range(8)])
    with local_tinker.start([(model, model)]) as service, pytest.MonkeyPatch.context() as patched:
        key = service.open_folder(trained.folder / "kept")
        patched.setenv("TINKER_API_KEY", key)
        changes = {"eval_tasks": ["qa:others.jsonl"], "max_rounds": 1, "steps_per_round": 3}
        settings = {"base_url": service.base_url, "eval_threshold": 0.0, **changes}
        assert trained.run("runs/s", **settings) == 0
        yield {"TINKER_API_KEY": key}


@pytest.mark.trains
def test_a_champion_of_another_protocol_is_measured_again_once(
    elsewhere: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in elsewhere.items():
        monkeypatch.setenv(name, value)
    ask_for("runs/r")
    outcome = ask_for("runs/s", may_evaluate=False)
    assert kinds(outcome) == ["not_compared"]
    assert "qa:others.jsonl was asked of one of them alone" in outcome.lines[0]
    compared = compare_names("runs/s", "registry:champion", FILE, [Path("runs")])
    assert compared.pairing is None and "measured otherwise" in compared.lines[0]
    said: list[str] = []
    with taken() as keys:
        request = Request("runs/s", "support", FILE, BY)
        first = promote(request, keys, said.append)
    assert "registry:support@1 has to be measured again" in said[0]
    (made,) = Path("runs").glob("*-evaluation")
    assert first.pairing is not None
    again = RunStore.open(made).result(0)
    assert again is not None and again.n == 8
    assert first.pairing.other_score == again.score
    # what was measured once is not measured again
    ask_for("runs/r", "another")
    second = ask_for("runs/s", "another", may_evaluate=False)
    assert len(list(Path("runs").glob("*-evaluation"))) == 1
    assert second.pairing is not None
    assert second.pairing.difference == first.pairing.difference
    event = last_event()  # promoted or refused, as training went
    against = event["against"] if event["type"] == "refused" else event["entry"]["against"]
    assert against["evaluation_dir"] == f"runs/{made.name}"
    compared = compare_names("runs/s", "registry:support@1", FILE, [Path("runs")])
    assert compared.pairing is not None
    assert compared.pairing.difference == first.pairing.difference


@pytest.mark.trains
def test_weights_that_a_service_keeps(
    elsewhere: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit = "checkpoint_kept"  # as of a round that the run does not recommend
    edit_ledger(
        Path("runs/s"), lambda e: e.update(type="care_failed") if e["type"] == edit else None
    )
    with pytest.raises(ServiceError, match="nothing was promoted, because its weights expire at"):
        ask_for("runs/s")  # no key
    assert Registry.read(FILE).entries == () if FILE.exists() else True
    for name, value in elsewhere.items():
        monkeypatch.setenv(name, value)
    outcome = ask_for("runs/s")
    assert (outcome.exit_code, len(outcome.kept)) == (0, 2)
    assert outcome.promoted is not None and outcome.promoted.weights_sha256 is None
    assert any("rests on the path" in one for one in outcome.notes)
    assert kinds(ask_for("runs/s")) == ["same"]


# --- what is told ---------------------------------------------------------------------------------


def test_a_command_is_told_what_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-a-key-of-somebody")
    command = "sh -c 'cat > told.json; env > env.txt; cp registry.jsonl then.jsonl'"
    outcome = ask_for("runs/r", then=parse_then(command))
    assert outcome.exit_code == 0
    told = json.loads(Path("told.json").read_text())
    assert (told["reference"], told["name"], told["version"]) == (
        "registry:support@1",
        "support",
        1,
    )
    assert told["aliases_before"] == {"champion": None}
    assert told["aliases_after"] == {"champion": "registry:support@1"}
    assert Path(told["run_dir"]) == Path("runs/r").resolve()
    assert (Path(told["weights_dir"]) / "adapter_model.safetensors").is_file()
    assert "tml-a-key" not in Path("env.txt").read_text()
    assert Registry.read(Path("then.jsonl")).entries  # it was durable before
    assert last_event()["type"] == "notified" and last_event()["ok"] is True


def test_a_command_that_fails_leaves_the_promotion(folder: Path) -> None:
    outcome = ask_for("runs/r", then=parse_then("sh -c 'exit 7'"))
    assert outcome.exit_code == 1
    assert "the command of --then sh ended with exit code 7" in outcome.lines[-1]
    assert Registry.read(FILE).find("support@1").version == 1
    assert last_event()["ok"] is False
    with pytest.raises(ConfigError, match="--then no-such-program"):
        parse_then("no-such-program --now")


def test_a_command_that_is_interrupted_leaves_the_promotion_and_says_so(folder: Path) -> None:
    with pytest.raises(Interrupted, match="is registry:support@1 and support@champion") as asked:
        ask_for("runs/r", then=parse_then("sh -c 'sleep 0.3; kill -INT $PPID; sleep 60'"))
    assert "The command of --then, sh was stopped before its end" in str(asked.value)
    registry = Registry.read(FILE)
    (event,) = history_of(registry, registry.find("support@1"))
    assert (event["type"], event["ok"]) == ("notified", False)
    lines = list(describe(registry, shown_of(registry, registry.find("support@1"))))
    assert "the command of --then was run: sh was stopped before its end" in lines[-1]


# --- comparing, by hand ---------------------------------------------------------------------------


def result(shares: dict[str, list[float]], roles: dict[str, str] | None = None) -> EvalResult:
    tasks = []
    for name, scores in shares.items():
        samples = [
            SampleResult(f"{name}/{n}", None, "q", ("x",), "y", score, False, False, None)
            for n, score in enumerate(scores)
        ]
        role: Any = (roles or {}).get(name, "score")
        tasks.append(task_result(name, samples, role=role))
    protocol = {"renderer": "a", "tasks": {n: {"sha256": n, "role": "score"} for n in shares}}
    return eval_result(1, "tinker://a/sampler_weights/b", Measured(tuple(tasks)), protocol)


@pytest.mark.parametrize(
    ("mine", "theirs", "verdict"),
    [
        ([1] * 40, [1] * 20 + [0] * 20, "better"),
        ([1] * 21 + [0] * 19, [1] * 20 + [0] * 20, "not told apart"),
        ([0, 1] * 20, [1, 0] * 20, "equal"),
        ([1] * 19 + [0] * 21, [1] * 20 + [0] * 20, "lower"),
        ([1] * 2, [0, 1], "not told apart"),
        ([1], [1], "equal"),
    ],
)
def test_verdicts(mine: list[float], theirs: list[float], verdict: str) -> None:
    found = pair("a", result({"t": mine}), "b", result({"t": theirs}))
    assert found.verdict == verdict
    assert found.is_worse == (verdict == "lower")


def test_a_guard_that_fell_beyond_noise_and_one_that_did_not() -> None:
    roles = {"g": "guard"}
    good, bad = [1.0] * 30, [1.0] * 15 + [0.0] * 15
    after = result({"t": [1.0] * 10, "g": bad}, roles)
    before = result({"t": [0.0] * 10, "g": good}, roles)
    found = pair("a", after, "b", before)
    assert (found.verdict, found.is_worse) == ("worse in a guard", True)
    assert "g (guard): 0.5000 against 1.0000, -0.5000 [" in found.sentence
    after = result({"t": [1.0] * 10, "g": [*good[1:], 0.0]}, roles)
    assert pair("a", after, "b", before).verdict == "better"
    unasked = pair("a", result({"t": [1.0] * 10}), "b", before)
    assert unasked.unpaired == ("g",)
    assert unasked.sentence.endswith("; not compared: g.")


def test_a_guard_of_the_run_broke() -> None:
    gate = Gate(0.5, 3, 100, 1.0, guards={"g": 0.1})
    before = result({"t": [0.0] * 10, "g": [1.0] * 10}, {"g": "guard"})
    after = result({"t": [1.0] * 10, "g": [1.0] * 8 + [0.0] * 2}, {"g": "guard"})
    (broken,) = guard_objections(after, before, gate)
    assert broken.said == "guard g fell by 0.2000 from 1.0000 (allowed 0.1, n=10)"
    assert list(guard_objections(after, before, replace(gate, guards={"g": 0.2}))) == []
    for unknown in (None, result({"t": [0.0] * 10})):
        (said,) = guard_objections(after, unknown, gate)
        assert said.said == "what guard g fell from was not measured by its run"


@pytest.mark.parametrize(
    ("gate", "has_none"),
    [
        ({"threshold": 0.0}, True),
        ({"threshold": 0.85, "stops": False}, True),  # nobody set it
        ({"threshold": 0.85}, False),
        ({"threshold": 0.5, "stops": False}, False),
        ({"threshold": 0.0, "rule": "paired"}, False),  # a gain is asked for
    ],
)
def test_a_run_without_threshold(gate: dict[str, Any], has_none: bool) -> None:
    assert has_no_threshold(replace(Gate(0.5, 3, 100, 1.0), **gate)) == has_none


def test_partial_credit_is_paired_as_scipy_does() -> None:
    mine = [0.1 * (n % 11) for n in range(50)]
    theirs = [0.1 * (n % 7) for n in range(50)]
    moved = pair("a", result({"t": mine}), "b", result({"t": theirs})).difference
    expected = stats.ttest_rel(mine, theirs)
    assert moved.p_value == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval(0.95)
    assert moved.interval == pytest.approx((low, high))


def test_the_chat_format_is_the_weights_own_and_all_else_is_asked_alike() -> None:
    one = result({"t": [1.0, 0.0]})
    other = replace(one, protocol={**one.protocol, "renderer": "b"})
    assert why_incomparable(one, other) == []
    other = replace(one, protocol={**one.protocol, "seed": 1})
    assert why_incomparable(one, other) == ["seed: None and 1"]
    assert why_incomparable(one, result({"u": [1.0]})) == [
        "t was asked of one of them alone",
        "u was asked of one of them alone",
    ]
    assert why_incomparable(one, result({"t": [1.0]})) == ["other questions of t"]
    assert why_incomparable(one, replace(one, protocol={"tasks": "x"})) != []


def test_runs_made_by_hand_are_held_to_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(tmp_path / "runs/h")
    with pytest.raises(ConfigError, match="its weights are not there any more"):
        ask_for("runs/h")
    with pytest.raises(ConfigError, match="untouched base model"):
        ask_for("runs/h@round_00")
    assert not FILE.exists() or Registry.read(FILE).entries == ()


def test_an_entry_keeps_what_a_later_version_added(folder: Path) -> None:
    ask_for("runs/r")
    event = last_event()
    entry = Registry.read(FILE).entries[0]
    assert isinstance(entry, Promoted)
    assert event["entry"]["objections"] == []
