"""What was sent and never recorded is counted: steps and answers that a kill or a fault leaves."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import local_tinker
from errors import RunStoreError
from fault_proxy import Delay, FaultProxy, fault_proxy
from ledger.records import Usage
from ledger.sent import SENT, Sent
from ledger.store import RunStore
from local_tinker.engine import Engine
from local_tinker.training import ForwardResult, TrainingRun
from local_tinker.wire import ForwardBackward
from services.counted_client import Tokens
from standstill import GIVE_UP_S, Standstill
from storage.totals import Totals, read_totals
from test_loop import Workspace, row, start
from test_paid_tokens import Taken, taken  # noqa: F401
from trainer_with_eval import main

NAMES = Tokens._fields


def wait_until(is_met: Callable[[], bool], what: str) -> None:
    give_up_at = time.monotonic() + GIVE_UP_S
    while not is_met():
        assert time.monotonic() < give_up_at, what
        time.sleep(0.01)


# --- the file -------------------------------------------------------------------------------------


def test_totals_are_there_for_another_reader_at_each_moment(tmp_path: Path) -> None:
    path = tmp_path / "totals.json"
    assert read_totals(path, ("a", "b")) is None
    totals = Totals(path, {"a": 3, "b": 0})
    size = path.stat().st_size
    is_over = threading.Event()

    def write() -> None:
        for _ in range(2_000):
            totals.add({"a": 1, "b": 10**6})
        is_over.set()

    threads = [threading.Thread(target=write) for _ in range(2)]
    for one in threads:
        one.start()
    while not is_over.is_set():
        found = read_totals(path, ("a", "b"))
        assert found is not None and found["b"] == (found["a"] - 3) * 10**6
    for one in threads:
        one.join()
    assert read_totals(path, ("a", "b")) == {"a": 4_003, "b": 4_000 * 10**6}
    assert path.stat().st_size == size
    # Another process goes on with it; a power cut may have taken what the ledger has all the same.
    assert Totals(path, {"a": 5_000, "b": 0}).now == {"a": 5_000, "b": 4_000 * 10**6}


def test_a_line_that_a_person_wrote_is_written_over_whole(tmp_path: Path) -> None:
    path, number = tmp_path / "totals.json", {"a": 7, "b": 10**17 - 1}
    for text in (json.dumps(number), json.dumps({**number, "why": "w" * 200}, indent=40)):
        path.write_text(text)
        totals = Totals(path, {"a": 0, "b": 0})
        totals.add({"a": 1, "b": 1})
        totals.add({"b": -1})
        assert read_totals(path, ("a", "b")) == {"a": 8, "b": 10**17 - 1}


TOO_LONG = json.dumps(dict.fromkeys(NAMES, 10**17))  # which no more could be added to for long


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"train_tokens": -1}', '{"train_tokens": "1"}', TOO_LONG]
)
def test_a_file_that_holds_something_else_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / SENT).write_text(text)
    nothing = Usage(0, 0, 0, 0.0)
    for act in (
        lambda: Sent(tmp_path).in_vain(nothing),
        lambda: Sent(tmp_path).note(Tokens(1), nothing, lambda: nothing),
    ):
        with pytest.raises(RunStoreError, match=r"sent\.json: cannot be read.* or remove it"):
            act()


def test_what_is_sent_and_not_recorded_is_paid_for_in_vain(tmp_path: Path) -> None:
    used = Usage(100, 20, 7, 1.5)
    sent = Sent(tmp_path)
    assert sent.in_vain(used).tokens == 0  # of a run of a version that noted nothing
    sent.note(Tokens(train_tokens=40), used, lambda: used)
    sent.note(Tokens(prompt_tokens=5, sampled_tokens=64), used, lambda: used)
    assert sent.in_vain(used) == Sent(tmp_path).in_vain(used) == Usage(40, 5, 64, 0.0)
    sent.note(Tokens(sampled_tokens=-60), used, lambda: used)  # the answer has come
    assert Sent(tmp_path).in_vain(used) == Usage(40, 5, 4, 0.0)
    assert Sent(tmp_path).in_vain(Usage(140, 25, 11, 2.0)) == Usage(0, 0, 0, 0.0)


def test_a_run_of_a_version_that_noted_nothing_goes_on_from_all_that_it_used(
    tmp_path: Path,
) -> None:
    store = RunStore.create(tmp_path / "run", {})
    store.eval_journal(0, None).add("one", {}, num_prompt_tokens=50, num_sampled_tokens=9)
    store.note_sent(Tokens(prompt_tokens=8, sampled_tokens=6))
    assert store.in_vain() == Usage(0, 8, 6, 0.0)  # the answer that was kept is none of them
    store.close()


# --- a kill ---------------------------------------------------------------------------------------

NUM_PASSED = 8  # passes before the service is held up
IN_FLIGHT = {"steps_per_round": 20, "max_rounds": 1, "checkpoint_every_steps": 5}
STILL = 20  # looks in a row, between which nothing may change


class Gate:
    """Holds up the service's compute thread before a pass over data, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._may_go_on, self.num_passed, counted = threading.Event(), 0, Engine.forward_backward

        def held(engine: Engine, run: TrainingRun, request: ForwardBackward) -> ForwardResult:
            if self.num_passed == NUM_PASSED:
                self._may_go_on.wait(GIVE_UP_S)
            self.num_passed += 1
            return counted(engine, run, request)

        monkeypatch.setattr(Engine, "forward_backward", held)

    def open(self) -> None:
        self._may_go_on.set()


def kill_in_flight(workspace: Workspace, proxy: FaultProxy, gate: Gate, **changes: Any) -> None:
    """Train until the service is held up and has all that was sent; kill the run, and let the
    service do what it has."""
    run_dir, num_still = workspace.folder / "run", 0
    process = start(workspace, "run", base_url=proxy.url, **IN_FLIGHT, **changes)

    def all_has_arrived() -> bool:
        nonlocal num_still
        assert process.poll() is None, process.communicate()
        if gate.num_passed < NUM_PASSED or proxy.num_steps <= NUM_PASSED:
            return False
        steps = list(RunStore.open(run_dir).events("step"))
        (of_step,) = {one["num_tokens"] for one in steps}  # the rows are of one length
        sent = read_totals(run_dir / SENT, Tokens._fields)
        assert sent is not None
        is_all_there = sent["train_tokens"] == proxy.num_steps * of_step
        is_still = len(steps) == NUM_PASSED and is_all_there
        num_still = num_still + 1 if is_still else 0
        return num_still == STILL

    wait_until(all_has_arrived, "the service was not held up with all that was sent")
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    gate.open()


@pytest.mark.parametrize("most", [1, 16])
def test_steps_in_flight_at_a_kill_are_counted_to_the_token(
    workspace: Workspace,
    service: local_tinker.Service,
    taken: Taken,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    most: int,
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", service.open_folder(workspace.folder / "weights"))
    gate = Gate(monkeypatch)
    delay = Delay(of_results_s=0.0 if most == 1 else 0.2)
    with fault_proxy(service.base_url, delay=delay) as proxy:
        kill_in_flight(workspace, proxy, gate, data={"max_steps_in_flight": most})
        num_in_flight = proxy.num_steps - NUM_PASSED
        assert num_in_flight == 1 if most == 1 else num_in_flight > 1
        store = workspace.store("run")
        lost, used = store.in_vain(), store.usage()
        assert lost[:3] == (num_in_flight * next(store.events("step"))["num_tokens"], 0, 0)
        assert store.spent() == used.plus(lost)
        wait_until(lambda: taken.trained >= store.spent().train_tokens, "the service lost a step")
        taken.check(store.spent())
    # A resumption says it, takes these steps again, and counts them once for each time.
    near = ["--set", f"base_url={service.base_url}"]
    assert main(["--resume", str(workspace.folder / "run"), *near]) == 0
    said = f"paid for in vain: at most {lost.train_tokens:,} trained, 0 prompt and 0 sampled tokens"
    assert said in capsys.readouterr().err
    store = workspace.store("run")
    assert store.in_vain() == lost
    taken.check(store.spent())
    assert said[1:] in (workspace.folder / "run/eval_report.md").read_text()
    assert said[1:] in (workspace.folder / "run/report.html").read_text()


def test_answers_in_flight_at_a_kill_count_as_the_longest(
    workspace: Workspace,
    service: local_tinker.Service,
    taken: Taken,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", service.open_folder(workspace.folder / "weights"))
    run_dir, still = workspace.folder / "run", Standstill(monkeypatch)
    changes = {"max_rounds": 1, "evaluation": {"max_tokens": 12}, "base_url": service.base_url}
    process = start(workspace, "run", **changes)

    def all_are_asked() -> bool:
        assert process.poll() is None, process.communicate()
        found = read_totals(run_dir / SENT, Tokens._fields)
        return still.num_advanced == 3 and found is not None and found["sampled_tokens"] == 120

    wait_until(all_are_asked, "not all questions were asked")
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    still.end()
    lost = workspace.store("run").in_vain()
    assert workspace.store("run").usage().tokens == 0
    assert main(["--resume", str(run_dir)]) == 0
    store = workspace.store("run")
    assert store.in_vain() == lost
    (measured,) = store.events("measured", 0)
    assert lost[:3] == (0, measured["num_prompt_tokens"], 10 * 12)  # the ten were asked again
    assert store.spent().train_tokens == taken.trained
    assert store.spent().sampled_tokens >= sum(len(row.tokens) for row in taken.rows)


# --- a probe --------------------------------------------------------------------------------------


def test_what_a_service_is_probed_with_is_in_the_ledger(
    workspace: Workspace,
    service: local_tinker.Service,
    taken: Taken,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", service.open_folder(workspace.folder / "weights"))
    workspace.write_rows("train.jsonl", [{**row(n), "weight": 2.0} for n in range(10)])
    assert workspace.run("run", base_url=service.base_url, max_rounds=1) == 0
    store = workspace.store("run")
    (probed,) = store.events("probed")
    assert probed["num_prompt_tokens"] > 0
    assert store.spent() == store.usage()
    taken.check(store.usage())


# --- a fault of the service -----------------------------------------------------------------------


def test_steps_in_flight_at_a_fault_of_the_service_are_counted(
    workspace: Workspace,
    taken: Taken,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted, num_passes = Engine.forward_backward, 0

    def failing(engine: Engine, run: TrainingRun, request: ForwardBackward) -> ForwardResult:
        nonlocal num_passes
        made = counted(engine, run, request)  # it was computed and billed, and then was lost
        num_passes += 1
        if num_passes == 3:
            raise RuntimeError("out of memory")
        return made

    monkeypatch.setattr(Engine, "forward_backward", failing)
    assert workspace.run("run", steps_per_round=12, max_rounds=1) == 1
    failed = workspace.events("run")[-1]
    assert failed["type"] == "failed" and failed["fault"] == "server_error"
    store = workspace.store("run")
    assert store.usage().train_tokens < taken.trained <= store.spent().train_tokens
    lost = store.in_vain()
    assert main(["--resume", str(workspace.folder / "run")]) == 0
    store = workspace.store("run")
    assert store.in_vain() == lost
    assert store.spent().train_tokens >= taken.trained > store.usage().train_tokens


def test_a_budget_counts_what_was_paid_for_in_vain(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    run_dir = workspace.folder / "run"
    assert workspace.run("run", max_rounds=1) == 0
    (run_dir / SENT).unlink()  # as of a version that noted nothing
    used = workspace.store("run").usage()
    assert workspace.store("run").spent() == used
    Sent(run_dir).note(Tokens(train_tokens=900_000), used, lambda: used)  # a kill left them
    assert workspace.store("run").spent() == used.plus(Usage(900_000, 0, 0, 0.0))
    budget = f"budget.tokens={900_000 + used.tokens}"
    capsys.readouterr()
    more = ["--set", "max_rounds=9", "--set", budget, "--json"]
    assert main(["--resume", str(run_dir), *more]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["action"] == "stop_budget" and told["tokens_in_vain"]["train_tokens"] == 900_000
    assert workspace.store("run").num_rounds == 1
