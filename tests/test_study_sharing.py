"""What trials side by side share of a service, counted there: sessions, answers and steps."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tinker

import local_tinker
from commands.boundary import in_loop
from config_schema import validate
from conftest import thorough_only
from fault_proxy import Delay, FaultProxy, fault_proxy
from loop.rounds.depth import FEWEST, Depth, share_of
from loop.rounds.sharing import Sharing
from sdk_client import PROMPT
from services.held_up import HoldUps
from services.keys import taken
from services.sdk import is_older, service_client
from services.shared_clients import MAX_RUNS, SharedClients, SharedSession, Status
from services.watched_client import Stopwatch, watched
from studies.design.generating import bring_up_to_date, generation_of
from studies.work.in_flight import MOST_ANSWERS, files_needed, in_flight_of, sharing_of
from studies.work.record import StudyRecord
from studies.work.running import Work, run_study
from studies.work.screen import Screen
from studies.work.spending import Spending
from studies.work.trial_runs import Floor
from test_depth import Far
from test_study_run import StudyFolder, wait_for

# --- which session a run takes --------------------------------------------------------------------


@pytest.mark.core
def test_runs_share_a_session_until_one_has_left_it(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    url = service.base_url
    mine, others = (service.open_folder(tmp_path / name) for name in ("mine", "others"))

    async def come_and_go() -> None:
        pool, held_up = SharedClients(), HoldUps(url)
        one, beside = await asyncio.gather(*(pool.take(url, mine, held_up) for _ in range(2)))
        assert one is beside
        # Another key, as each run directory has on the embedded service.
        assert await pool.take(url, others, held_up) is not one
        assert pool.leave(one, "success") is None
        # What the first has left there goes with the last one.
        later = await pool.take(url, mine, held_up)
        assert later is not one
        assert pool.leave(one, "success") == "success"
        assert pool.leave(later, "errored") == "errored"
        assert await pool.take(url, mine, held_up) not in (one, later)
        assert mine not in repr(one)

    asyncio.run(come_and_go())


def test_a_session_that_cannot_be_opened_is_left_by_all_who_came(
    service: local_tinker.Service,
) -> None:
    async def come() -> None:
        pool, url = SharedClients(), service.base_url
        came = (pool.take(url, "tml-of-nobody", HoldUps(url)) for _ in range(2))
        failed = await asyncio.gather(*came, return_exceptions=True)
        assert [type(one) for one in failed] == [tinker.AuthenticationError] * 2
        with pytest.raises(tinker.AuthenticationError):  # asked anew
            await pool.take(url, "tml-of-nobody", HoldUps(url))

    asyncio.run(come())


def test_a_session_takes_so_many_runs_and_ends_as_the_worst_of_them(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    pool, key, url = SharedClients(), service.open_folder(tmp_path), service.base_url

    async def come() -> list[SharedSession]:
        return [await pool.take(url, key, HoldUps(url)) for _ in range(2 * MAX_RUNS + 1)]

    sessions = {id(one): one for one in asyncio.run(come())}
    assert [one.num_runs for one in sessions.values()] == [MAX_RUNS, MAX_RUNS, 1]
    first, second, _ = sessions.values()
    statuses: list[Status] = ["success", "interrupted", "errored", "interrupted"]
    ended = [pool.leave(first, statuses[number % 4]) for number in range(MAX_RUNS)]
    assert ended == [None] * (MAX_RUNS - 1) + ["errored"]
    ended = [pool.leave(second, statuses[number < 3]) for number in range(MAX_RUNS)]
    assert ended == [None] * (MAX_RUNS - 1) + ["interrupted"]


# --- how much is in flight ------------------------------------------------------------------------


@pytest.mark.core
def test_requests_wait_for_their_turn_and_that_is_not_timed(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    with fault_proxy(service.base_url, delay=Delay(each_way_s=0.01)) as proxy:
        asyncio.run(_ask_by_turns(proxy, service.open_folder(tmp_path)))
    assert proxy.num_samples == 61
    assert proxy.most_samples == 4


async def _ask_by_turns(proxy: FaultProxy, key: str) -> None:
    client = service_client(proxy.url, key)
    turns, watches = asyncio.Semaphore(4), [Stopwatch(), Stopwatch()]
    samplers = [
        watched(await client.create_sampling_client(base_model="llama"), one.add, str, turns=turns)
        for one in watches
    ]
    prompt = tinker.ModelInput.from_ints(PROMPT)
    params = tinker.SamplingParams(max_tokens=4, temperature=0)
    asked = [one.sample(prompt, 1, params) for _ in range(20) for one in samplers]
    await asyncio.gather(*asked, *(samplers[0].compute_logprobs(prompt) for _ in range(20)))
    assert [one.num_requests for one in watches] == [40, 20]
    # One that has waited for all four turns is timed from its own on.
    for _ in range(4):
        await turns.acquire()
    watches[0].take_mean_ms()
    waiting = asyncio.create_task(samplers[0].compute_logprobs(prompt))  # pyright: ignore
    await asyncio.sleep(0.2)
    assert proxy.num_samples == 60
    began = time.monotonic()
    turns.release()
    await waiting
    assert watches[0].total_s <= time.monotonic() - began
    # One that is called off while it waits leaves the turns to the others.
    await turns.acquire()
    waiting = asyncio.create_task(samplers[0].compute_logprobs(prompt))  # pyright: ignore
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    turns.release()
    await asyncio.wait_for(turns.acquire(), 10)
    await client.close("success")


def test_runs_that_train_at_once_share_the_steps_in_flight() -> None:
    assert share_of(64, 1, 0) == 64
    assert share_of(64, 4, 0) == 16 == share_of(64, 4, 48)
    assert share_of(64, 4, 56) == 8  # the others have yet to come down
    assert share_of(64, 4, 64) == FEWEST == share_of(64, 100, 0)
    assert share_of(1, 100, 99) == 1  # and of what samples from current weights, one at a time
    # Each has measured a service that asks for more than there is.
    depths = [Depth(16) for _ in range(2)]
    for one in depths:
        assert Far(2.0, 0.05).train(one, 100)[-1] == 16
        one.begin_round()
    assert depths[0].among(depths[:1]) == 16
    assert [one.among(depths) for one in depths] == [8, 8]
    for _ in range(11):
        depths[0].sent(0.0)
    assert [one.among(depths) for one in depths] == [8, 5]


def test_bounds_are_never_below_the_settings_of_one_trial() -> None:
    raw = {"base_model": "m", "train_file": "t.jsonl", "eval_tasks": ["simple_qa"]}
    usual = validate(raw, "a test")
    more = {"evaluation": {"concurrency": 500}, "data": {"max_steps_in_flight": 100}}
    assert in_flight_of([usual]) == (MOST_ANSWERS, 64)
    most = in_flight_of([usual, validate({**raw, **more}, "a test")])
    assert most == (500, 100)
    # Of a trial more, little more is open, whatever it may ask for.
    assert files_needed(101, most) - files_needed(100, most) < 100
    assert sharing_of([usual], 1).sharing.answer_turns is None


# --- studies --------------------------------------------------------------------------------------


def finished_as(*statuses: str) -> list[str | None]:
    """What sessions are told at their end, in the order in which they were opened."""
    is_told = not is_older(tinker.__version__)  # an older SDK has no word for it
    return [status if is_told else None for status in statuses]


QUESTIONS = [{"question": f"What is thing {i}?", "answer": "x"} for i in range(8)]


@pytest.fixture
def proxy(llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A service with what a study calls its base model, and the key in the environment."""
    with (
        local_tinker.start([(str(llama_dir), str(llama_dir))]) as service,
        fault_proxy(service.base_url, delay=Delay(of_results_s=0.5)) as proxy,
    ):
        monkeypatch.setenv("TINKER_API_KEY", service.open_folder(tmp_path / "kept"))
        yield proxy


@pytest.fixture
def folder(tmp_path: Path, llama_dir: Path, proxy: FaultProxy) -> StudyFolder:
    """A study of questions of a file, on the service behind the proxy."""
    folder = StudyFolder(tmp_path / "study", llama_dir)
    (folder.folder / "qa.jsonl").write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    folder.experiment["evaluation"] = {}
    folder.write(controls={"base_url": proxy.url, "eval_tasks": ["qa:qa.jsonl"]})
    return folder


def run_bounded(folder: StudyFolder, num_parallel: int, sharing: Sharing) -> None:
    """Run a study whose trials share what they are given."""
    generation = generation_of(folder.folder)
    bring_up_to_date(generation)
    record = StudyRecord.open(generation.study.results_dir)
    rows = {one.trial.run_id: one.trial.shown for one in generation.trials}
    with taken() as keys:
        screen = Screen(
            rows, redacted=keys.redacted, logs_dir=folder.folder / "logs", how_to_continue="",
            verbose=False,
        )  # fmt: skip
        budget = generation.study.experiment.study.budget
        floor = Floor(keys, screen, is_local=False, num_parallel=num_parallel, sharing=sharing)
        try:
            in_loop(run_study(Work(generation, record, floor, Spending(budget)), []))
        finally:
            floor.close()
            screen.close()
            record.close()


@pytest.mark.core
def test_six_trials_at_once_have_one_session_and_share_what_is_in_flight(
    folder: StudyFolder, proxy: FaultProxy
) -> None:
    # What is sampled to train on waits for its turn as well.
    rl = {"method": "rl", "rl.reward": "numeric", "rl.group_size": 2, "rl.max_tokens": 3}
    rl |= {"steps_per_round": 1, "batch_size": 4}
    folder.write(variables={"lora_rank": [1, 2, 3, 4, 6, 8]}, controls=rl)
    run_bounded(folder, 6, Sharing(most_answers=5))
    assert len(folder.record("trial_done")) == 6
    assert list(proxy.sessions.values()) == finished_as("success")
    # one baseline, and of each trial a step (and more where all of it is alike) and a round
    assert proxy.num_samples >= len(QUESTIONS) + 6 * (4 + len(QUESTIONS))
    assert 1 < proxy.most_samples <= 5


def test_after_a_trial_has_failed_the_next_has_another_session(
    tmp_path: Path, llama_dir: Path, proxy: FaultProxy
) -> None:
    folder = StudyFolder(tmp_path / "study", llama_dir)
    folder.write(controls={"base_url": proxy.url, "steps_per_round": 1})
    folder.break_grader_of("run_000")
    assert folder.run("--parallel", "2") == 1
    assert [e["run"] for e in folder.record("trial_failed")] == ["run_000"]
    assert list(proxy.sessions.values()) == finished_as("errored", "success")


@pytest.mark.core
def test_two_trials_share_the_steps_in_flight(folder: StudyFolder, proxy: FaultProxy) -> None:
    changes: dict[str, Any] = {"data.max_steps_in_flight": 12, "steps_per_round": 24}
    folder.write(variables={"lora_rank": [2, 4]}, controls=changes)
    run_bounded(folder, 2, Sharing())
    assert len(folder.record("trial_done")) == 2
    assert proxy.num_steps == 48
    # the first may have come to all of them before the second began, which has the fewest then
    assert proxy.most_in_flight <= 12 + FEWEST


@thorough_only  # what is its own is that they leave one session; test_study_run.py has the rest
def test_ctrl_c_saves_all_trials_of_a_session(folder: StudyFolder, proxy: FaultProxy) -> None:
    folder.write(controls={"steps_per_round": 400})
    runs = [f"run_{number:03d}" for number in range(3)]
    with folder.program("--parallel", "3") as process:
        for run in runs:
            wait_for(process, folder.folder / f"results/{run}/ledger.jsonl", '"type": "step"')
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(120)
    assert process.returncode == 130, said
    assert "Traceback" not in said and "error:" not in said
    saved = [folder.store(run).last_checkpoint() for run in runs]
    steps = [len(list(folder.store(run).events("step"))) for run in runs]
    assert [one and one.step for one in saved] == steps and sum(steps) == proxy.num_steps
    assert list(proxy.sessions.values()) == finished_as("interrupted")
