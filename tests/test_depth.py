"""How many steps are in flight: what decides it, what holds it, and that no number hangs on it."""

from __future__ import annotations

import json
import signal
import subprocess
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import forked
import local_tinker
from config_schema import validate
from conftest import REPO
from fault_proxy import Delay, FaultProxy, fault_proxy
from loop.planning.steps import most_in_flight
from loop.rounds.depth import FEWEST, Depth, Pipelined, depth_for
from settings.sameness import CHANGEABLE_ON_RESUME
from test_fault_proxy import weights_and_optimizer
from test_loop import Workspace, same_bits, wait_for

# --- what decides it ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latency_s", "gap_s", "depth"),
    [
        (0.05, 0.05, 3),  # no delay: one is worked on, and another waits
        (0.15, 0.05, 5),  # 50 ms there and 50 ms back
        (0.55, 0.05, 15),
        (2.05, 0.05, 53),
        (2.05, 2.0, 3),  # long steps hide any delay
    ],
)
def test_the_depth_is_what_keeps_a_service_busy(latency_s: float, gap_s: float, depth: int) -> None:
    assert depth_for(latency_s, gap_s) == depth
    assert depth_for(latency_s, gap_s) * gap_s > latency_s


@dataclass
class Far:
    """A service that works on one step at a time, as far away as `delay_s` there and back, and a
    client that sends a step as soon as the depth allows it."""

    delay_s: float
    step_s: float
    now_s: float = 0.0
    free_s: float = 0.0  # when the service has done all that was sent
    idle_s: float = 0.0

    def train(self, depth: Depth, num_steps: int, warmup_s: float = 0.0) -> list[int]:
        """The depth at each step of a round; `idle_s` counts from the 50th on."""
        depth.begin_round()
        self.free_s = self.now_s + self.delay_s / 2 + warmup_s
        depths, in_flight = [], []
        for number in range(num_steps):
            depth.sent(self.now_s)
            begins_s = max(self.free_s, self.now_s + self.delay_s / 2)
            self.idle_s += begins_s - self.free_s if number >= 50 else 0.0
            self.free_s = begins_s + self.step_s
            in_flight.append(self.free_s + self.delay_s / 2)
            while len(in_flight) > (0 if number + 1 == num_steps else depth.number - 1):
                self.now_s = max(self.now_s, in_flight.pop(0))
                depth.came(self.now_s)
            depths.append(depth.number)
        return depths


@pytest.mark.parametrize("delay_s", [0.0, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("warmup_s", [0.0, 10.0])
def test_a_service_is_busy_from_the_50th_step_on(delay_s: float, warmup_s: float) -> None:
    far, depth = Far(delay_s, 0.05), Depth(64)
    depths = far.train(depth, 400, warmup_s)
    assert far.idle_s <= 0.02 * 350 * 0.05
    # what the first steps waited for once is not taken for a delay, but for what lay before them
    least = max(FEWEST, depth_for(delay_s + 0.05, 0.05))
    most = max(least, depth_for(delay_s + (FEWEST if warmup_s else 1) * 0.05, 0.05))
    assert least <= depths[-1] <= most
    # the next round begins with it
    assert far.train(depth, 400)[0] == depths[-1]


def test_the_depth_stays_within_its_bound_and_measures_each_round_anew() -> None:
    for most in (1, 2, 4, 16):
        depth = Depth(most)
        assert depth.number == min(most, FEWEST)
        assert set(Far(2.0, 0.05).train(depth, 100)) <= set(range(1, most + 1))
        assert depth.number == most
        measured = depth.take_measure()
        assert measured.most_in_flight == most
        assert measured.latency_ms == pytest.approx(2050)
        assert depth.take_measure().most_in_flight == 0
        Far(0.0, 0.05).train(depth, 100)  # the service has come near
        assert depth.number == min(most, FEWEST)


def test_nothing_is_told_of_too_few_steps_nor_of_what_lies_between_them() -> None:
    depth = Depth(8)
    assert depth.take_measure() == Pipelined(0)
    for number in range(8):
        depth.sent(float(number))
        depth.came(number + 0.5)
        depth.paused()  # a save came back after each
    assert depth.take_measure() == Pipelined(1, 500.0)
    assert depth.number == FEWEST


@pytest.mark.parametrize(
    ("method", "most", "in_flight"),
    [
        ({}, 64, 64),
        ({}, 1, 1),
        ({"method": "dpo"}, 64, 64),
        ({"method": "rl", "rl": {"reward": "r.py@f"}}, 64, 1),
        ({"method": "distill", "distill": {"teacher": "t"}}, 64, 2),
        ({"method": "distill", "distill": {"teacher": "t"}}, 1, 1),
        ({"method": "distill", "distill": {"teacher": "t", "way": "off_policy"}}, 16, 16),
    ],
)
def test_methods_that_sample_from_current_weights_are_not_run_ahead_of(
    method: dict[str, Any], most: int, in_flight: int
) -> None:
    raw = {"base_model": "m", "train_file": "t.jsonl", "eval_tasks": ["simple_qa"], **method}
    assert (
        most_in_flight(validate({**raw, "data": {"max_steps_in_flight": most}}, "a test"))
        == in_flight
    )
    assert "data.max_steps_in_flight" in CHANGEABLE_ON_RESUME


# --- the loop -------------------------------------------------------------------------------------

ONE_ROUND = {"steps_per_round": 24, "max_rounds": 1, "checkpoint_every_steps": 10}
TIMES = ("time", "worked", "run_id", "latency_ms", "expires_at")


@dataclass(frozen=True)
class Trained:
    """A run without times and ids, its adapter and optimizer, and what was measured."""

    ledger: list[dict[str, Any]]
    weights: dict[str, torch.Tensor]
    pipeline: list[dict[str, Any]]


def trained(workspace: Workspace, run_dir: str) -> Trained:
    events = workspace.events(run_dir)
    saved = [event for event in events if event["type"] == "checkpoint"]
    assert len(saved) == 3  # two inside the round and its end
    folder = workspace.folder / f"{run_dir}-weights"
    weights = weights_and_optimizer(folder, saved[-1]["state_path"])
    pipeline = [event.pop("pipeline") for event in saved]
    runs = {event["state_path"].split("/")[2] for event in saved}
    text = json.dumps([{k: v for k, v in e.items() if k not in TIMES} for e in events])
    for one in runs:
        text = text.replace(one, "RUN")
    return Trained(json.loads(text), weights, pipeline)


def train(
    workspace: Workspace, service: local_tinker.Service, most: int, delay: Delay
) -> tuple[Trained, FaultProxy]:
    run_dir = f"at-most-{most}"
    with (
        pytest.MonkeyPatch.context() as patch,
        fault_proxy(service.base_url, delay=delay) as proxy,
    ):
        key = service.open_folder(workspace.folder / f"{run_dir}-weights")
        patch.setenv("TINKER_API_KEY", key)
        changes = {**ONE_ROUND, "data": {"max_steps_in_flight": most}, "base_url": proxy.url}
        assert workspace.run(run_dir, **changes) == 0
    return trained(workspace, run_dir), proxy


@pytest.mark.trains
def test_the_depth_changes_no_bit_and_is_counted_at_the_service(
    workspace: Workspace, service: local_tinker.Service
) -> None:
    one, few, many = (
        train(workspace, service, most, Delay(of_results_s=seconds))
        for most, seconds in ((1, 0.0), (4, 0.0), (16, 1.0))
    )
    assert one[1].most_in_flight == 1
    assert 1 < few[1].most_in_flight <= 4
    assert 4 < many[1].most_in_flight <= 16
    for run, proxy in (one, few, many):
        assert run.ledger == one[0].ledger
        assert same_bits(run.weights, one[0].weights)
        assert proxy.num_steps == 24
        # what was sent is more than what the service has accepted already
        assert max(m["most_in_flight"] for m in run.pipeline) >= proxy.most_in_flight
    assert many[0].pipeline[-1]["latency_ms"] > 1000


@pytest.mark.trains
def test_ctrl_c_sends_no_step_more_and_loses_none(
    workspace: Workspace, service: local_tinker.Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", service.open_folder(workspace.folder / "weights"))
    with fault_proxy(service.base_url, delay=Delay(of_results_s=1.0)) as proxy:
        changes = {"steps_per_round": 500, "max_rounds": 1, "base_url": proxy.url}
        process = forked.Process(
            REPO / "trainer_with_eval.py",
            *workspace.arguments("run", **changes),
            stderr=subprocess.PIPE,
            cwd=workspace.folder,
        )
        wait_for(process, workspace.folder / "run/ledger.jsonl", "step", FEWEST + 2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert proxy.most_in_flight > FEWEST
    checkpoint = workspace.store("run").last_checkpoint()
    assert checkpoint is not None
    assert checkpoint.step == len(list(workspace.store("run").events("step"))) == proxy.num_steps


def test_the_plan_says_what_a_bad_step_may_cost(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    def told(**changes: Any) -> tuple[str, dict[str, Any]]:
        capsys.readouterr()
        assert workspace.run("run", "--dry-run", "--json", **changes) == 0
        plan = json.loads(capsys.readouterr().out)
        return "\n".join(plan["plan"]), plan["cost"]["in_vain"]

    text, in_vain = told(steps_per_round=100, max_rounds=2)
    assert in_vain["steps"] == 63
    assert f"up to 63 steps late, so that up to 63 more steps, about {in_vain['tokens']:,}" in text
    assert told(steps_per_round=5)[1]["steps"] == 4  # no step is in flight between rounds
    text, in_vain = told(data={"max_steps_in_flight": 1})
    assert not any(in_vain.values()) and "steps late" not in text
