"""What a service refuses for now or lets wait in its queue: seen, shown, and recorded."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker
from tinker.lib.api_future_impl import QueueState

import local_tinker
from fault_proxy import First, fault_proxy
from ledger.store import RunStore
from loop.reports.live import Beside, Now
from loop.reports.progress import Progress
from loop.reports.waits import before_text, now_text, told_text
from loop.rounds import waiting
from loop.rounds.waiting import Waits
from run_records import begun
from sdk_client import new_run
from services import held_up as held_up_module
from services.faults import explain
from services.held_up import CALM_S, GIVEN_UP_S, LASTING_S, SELDOM_S, HoldUps, Total, watching
from services.keys import UNHEARD, Keys
from services.sdk import open_clients
from studies.work.screen import Screen
from test_loop import Workspace
from test_study_run import StudyFolder

ADDRESS = "http://127.0.0.1:1"
STEP = f"{ADDRESS}/api/v1/forward_backward"
RETRIEVE = f"{ADDRESS}/api/v1/retrieve_future"
HOSTILE = "no room \x1b[2J\u202e<b>key tml-secret</b>\nnext " + "x" * 500


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def answered(held: HoldUps, url: str, *statuses: int) -> None:
    for status in statuses:
        held.answered(url, status)


# --- what is known of a service -------------------------------------------------------------------


def test_refused_requests_are_counted_told_of_once_they_last_and_once_they_are_over(
    clock: Clock,
) -> None:
    held = HoldUps(ADDRESS, clock)
    answered(held, STEP, 200, 429, 429)
    (one,) = held.now()
    assert (one.what, one.num_refused, one.num_recent) == ("rate_limit", 2, 2)
    assert now_text([one]) == (
        "the service limits the rate: 2 requests refused in the last minute, asked again"
    )
    assert held.told(0) == []
    clock.now += LASTING_S
    answered(held, STEP, 429)
    (lasting,) = held.told(0)
    assert told_text(lasting) == (
        "the service limits the rate: 2 requests refused in the last minute, asked again; for 10 s "
        "now"
    )
    clock.now += 5
    answered(held, STEP, 200)
    assert held.told(lasting.number + 1) == []  # another may be refused at once
    clock.now += CALM_S
    (over,) = held.told(lasting.number + 1)
    assert told_text(over) == "over: the service limited the rate for 15 s, 3 requests refused"
    assert held.now() == []
    assert held.totals() == {"rate_limit": Total(3, 0, 1, 15.0, "")}


def test_a_pause_says_why_and_one_that_goes_on_is_told_of_seldom(clock: Clock) -> None:
    held = HoldUps(ADDRESS, clock)
    for _ in range(int(2 * SELDOM_S / 30)):
        held.queued("paused_capacity", "no GPU is free")
        clock.now += 30
    told = held.told(0)
    assert len(told) == 2
    assert told_text(told[0]) == ("the service is short of capacity: no GPU is free; waiting 30 s")
    held.queued("active", None)
    clock.now += CALM_S
    assert told_text(held.told(0)[-1]) == "over: the service was short of capacity for 10 min"
    held.queued("paused_by_the_moon", None)
    assert now_text(held.now()) == "the service lets requests wait; waiting 1 s"


def test_what_others_wait_for_goes_on_only_once_all_of_it_does(clock: Clock) -> None:
    held = HoldUps(ADDRESS, clock)
    answered(held, STEP, 503)
    answered(held, f"{ADDRESS}/api/v1/asample", 503, 200)
    clock.now += CALM_S
    (one,) = held.now()
    assert one.num_refused == 2
    answered(held, STEP, 200)
    clock.now += CALM_S
    assert held.now() == []


def test_what_the_sdk_has_given_up_is_over(clock: Clock) -> None:
    held = HoldUps(ADDRESS, clock)
    answered(held, STEP, 429)
    clock.now += 30
    answered(held, STEP, 429)
    clock.now += GIVEN_UP_S
    assert held.now() == []
    assert held.totals()["rate_limit"] == Total(2, 0, 1, 30.0, "")


def test_time_that_was_recorded_and_turns_out_shorter_is_in_no_later_event(
    clock: Clock, tmp_path: Path
) -> None:
    held, store = HoldUps(ADDRESS, clock), RunStore.create(tmp_path / "run", {})
    waits = waiting.Waits(held, store, Progress(verbose=False), Keys())
    for moment in (0, 29, 60, 200):  # the SDK asks no more after the second one, nor the last
        clock.now = 1000.0 + moment
        if moment != 60:
            answered(held, STEP, 500)
        waits.record(0)
    for seconds in (20, 40):
        clock.now += seconds
        answered(held, STEP, 500)
        waits.record(0)
    store.close()
    events = list(RunStore.open(tmp_path / "run").events("held_up"))
    assert [one["num_refused"] for one in events] == [1, 1, 0, 1, 1, 1]
    assert [one["seconds"] for one in events] == [0.0, 29.0, 31.0, 0.0, 0.0, 29.0]
    assert sum(one["seconds"] for one in events) == held.totals()["failing"].seconds == 89.0


def test_what_is_recorded_of_a_hold_up_is_never_taken_back_nor_lost_between_rounds(
    clock: Clock, tmp_path: Path
) -> None:
    held, store = HoldUps(ADDRESS, clock), begun(tmp_path / "run")
    waits = Waits(held, store, Progress(verbose=False), Keys())

    def recorded() -> list[tuple[int, float]]:
        return [(one["num_refused"], one["seconds"]) for one in store.ever("held_up")]

    answered(held, STEP, 429)
    clock.now += GIVEN_UP_S - 10
    waits.record(1)  # another run's request, which has not been given up yet
    clock.now += 20
    assert held.totals()["rate_limit"].seconds == 0
    answered(held, STEP, 429)
    clock.now += 3
    waits.record(2)
    assert recorded() == [(1, GIVEN_UP_S - 10), (1, 0.0)]
    # One that lasts, of which each round has too little to tell.
    held.queued("paused_capacity", "full")
    for number in range(3, 6):
        clock.now += LASTING_S / 2 + 1
        waits.record(number)
    (event,) = (one for one in store.ever("held_up") if one["what"] == "capacity")
    assert event["seconds"] == 2 * (LASTING_S / 2 + 1) and event["reason"] == "full"
    store.close()


def test_the_queue_moves_where_a_result_comes_though_nobody_says_so(clock: Clock) -> None:
    held = HoldUps(ADDRESS, clock)
    held.queued("paused_rate_limit", None)
    answered(held, RETRIEVE, 408)  # which is how it is told
    clock.now += CALM_S
    assert len(held.now()) == 1
    answered(held, RETRIEVE, 200)
    clock.now += CALM_S
    assert held.now() == []


@pytest.mark.parametrize(
    ("base_url", "url", "status", "is_seen"),
    [
        (ADDRESS, STEP, 429, True),
        (ADDRESS + "/", STEP, 402, True),
        (ADDRESS, STEP, 400, False),  # refused for good, and raised
        (ADDRESS, "http://127.0.0.1:11/api/v1/asample", 429, False),
        (ADDRESS, f"{ADDRESS}/api/v1/session_heartbeat", 500, False),
        (ADDRESS, f"{ADDRESS}/api/v1/telemetry", 429, False),
        (
            None,
            "https://tinker.thinkingmachines.dev/services/tinker-prod/api/v1/asample",
            429,
            True,
        ),
        (None, STEP, 429, False),
        # As httpx spells what a person wrote otherwise.
        ("HTTPS://Engine.Example:443/v", "https://engine.example/v/api/v1/asample", 429, True),
        ("http://LOCALHOST:80", "http://localhost/api/v1/asample", 429, True),
    ],
)
def test_only_what_is_asked_of_the_service_and_awaited_is_seen(
    base_url: str | None, url: str, status: int, is_seen: bool
) -> None:
    held = HoldUps(base_url)
    answered(held, url, status)
    assert bool(held.now()) is is_seen


def test_what_a_service_says_is_one_printable_line(clock: Clock) -> None:
    held = HoldUps(ADDRESS, clock)
    held.queued("paused_capacity", HOSTILE)
    (one,) = held.now()
    assert one.reason.isprintable() and len(one.reason) <= 160
    assert one.reason.startswith("no room [2J <b>key tml-secret</b> next xxx")


def test_the_live_row_keeps_what_goes_on_and_says_why_it_stands() -> None:
    said = "the service limits the rate: 14 requests refused in the last minute, asked again"
    row = Beside(Now("round 1 step 3/20", since=0.0), lambda: said)
    assert row.shown(1.0) == f"round 1 step 3/20, {said}"
    assert row.shown(1.0, 60).startswith("round 1 step 3/20, the service limits the rate: 14")
    assert len(row.shown(1.0, 60)) <= 60
    assert Beside(Now("round 1", since=0.0), lambda: "").shown(1.0, 60) == "round 1"


def test_an_error_says_what_the_service_held_up_before(clock: Clock) -> None:
    held = HoldUps(ADDRESS, clock)
    answered(held, STEP, 429, 429)
    clock.now += 300
    answered(held, STEP, 429)
    response = httpx.Response(429, request=httpx.Request("POST", STEP))
    error = tinker.RateLimitError("too much", response=response, body=None)
    answered(held, STEP, 429)
    clock.now += 30
    explained = explain(error, ADDRESS, before_text(held.now()))
    assert explained is not None
    assert "(RateLimitError: too much). Before that it limited the rate for " in str(explained)
    assert before_text([]) == ""


# --- where it is seen -----------------------------------------------------------------------------


def test_httpx_says_no_more_than_it_did_and_is_left_as_it_was(
    service: local_tinker.Service, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("httpx")
    level, filters = logger.level, list(logger.filters)
    with contextlib.ExitStack() as first_trial, contextlib.ExitStack() as second_trial:
        held = first_trial.enter_context(watching(service.base_url))
        assert second_trial.enter_context(watching(service.base_url + "/")) is held
        held.queued("paused_capacity", None)
        httpx.get(f"{service.base_url}/api/v1/retrieve_future")  # not found, and so no answer
        assert held.totals()["capacity"].num_queued == 1
        assert caplog.records == []
        logger.setLevel(logging.WARNING)  # as Inspect does
        held_up_module.keep_watching()
        assert logger.isEnabledFor(logging.INFO)
        first_trial.close()  # the one that began first ends first
        assert logger.filters != filters
    assert (logger.level, logger.filters, UNHEARD) == (level, filters, set())


@pytest.mark.core
def test_the_sdk_has_what_the_observers_are_put_into(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    """Fails where an SDK has it no longer; services/sdk.py is then to be brought up to it."""

    async def main() -> tuple[Any, Any]:
        held = HoldUps(service.base_url)
        clients = open_clients(service.base_url, service.open_folder(tmp_path), held)
        try:
            run = await new_run(clients.service)
            sampler = await run.save_weights_and_get_sampling_client()
            inner = getattr(run, "_client", None) or run.__dict__["_client"]
            for _ in range(2):  # of an older SDK it is within another one
                inner = inner.__dict__.get("_client", inner)
            assert type(inner._queue_state_logger).__name__ == "_Observer"
            told = sampler.__dict__.get("_client", sampler)
            told.on_queue_state_change(QueueState.PAUSED_CAPACITY, "none is free")
            inner._queue_state_logger.on_queue_state_change(QueueState.PAUSED_RATE_LIMIT, None)
            return held.now(), run
        finally:
            await clients.service.close("success")

    held, _ = asyncio.run(main())
    assert [one.what for one in held] == ["rate_limit", "capacity"]
    assert held[1].reason == "none is free"


# --- runs -----------------------------------------------------------------------------------------

REASON = "no GPU is free \x1b[2J\u202e<b>for KEY</b>"
FORWARD_BACKWARD, OPTIM_STEP, SAMPLE = (
    f"/api/v1/{name}".encode() for name in ("forward_backward", "optim_step", "asample")
)
BILLING = b"402 Payment Required"


def first(path: bytes, number: int, status: bytes = b"429 Too Many Requests") -> First:
    return First(path, number, status)


def paused(of_type: bytes, state: str, key: str) -> First:
    path, reason = RETRIEVE.removeprefix(ADDRESS).encode(), REASON.replace("KEY", key)
    return First(path, 2, queue_state=state, reason=reason, of_type=of_type, held_s=0.3)


@pytest.fixture
def soon_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hold-up lasts long enough once it has been there for a moment."""
    monkeypatch.setattr(held_up_module, "LASTING_S", 0.0)
    monkeypatch.setattr(held_up_module, "CALM_S", 0.1)
    monkeypatch.setattr(waiting, "LASTING_S", 0.0)
    monkeypatch.setattr(waiting, "LOOK_S", 0.05)


@pytest.fixture
def key(
    workspace: Workspace, service: local_tinker.Service, monkeypatch: pytest.MonkeyPatch
) -> str:
    key = service.open_folder(workspace.folder / "weights")
    monkeypatch.setenv("TINKER_API_KEY", key)
    return key


def held_up_events(workspace: Workspace, run_dir: str) -> list[tuple[int, str, int, bool]]:
    return [
        (event["round"], event["what"], event["num_refused"], bool(event["reason"]))
        for event in workspace.events(run_dir)
        if event["type"] == "held_up"
    ]


@pytest.mark.core
@pytest.mark.usefixtures("soon_told")
def test_a_run_says_and_records_what_its_service_held_up(
    workspace: Workspace, service: local_tinker.Service, key: str, capsys: pytest.CaptureFixture
) -> None:
    plan = [
        first(FORWARD_BACKWARD, 2),
        first(OPTIM_STEP, 1, BILLING),
        first(SAMPLE, 1),
        paused(b"ForwardBackward", "paused_capacity", key),
        paused(b"Sample", "paused_rate_limit", key),
    ]
    with fault_proxy(service.base_url, first=plan) as proxy:
        assert workspace.run("run", base_url=proxy.url, max_rounds=1) == 0
    assert [one.number for one in plan] == [0] * 5
    said = capsys.readouterr().err
    assert re.search(r"^the service limits the rate: \d requests? refused in the last", said, re.M)
    assert re.search(
        r"^over: the service limited the rate for \d+ s, 2 requests refused$", said, re.M
    )
    assert re.search(r"^the service is short of capacity: no GPU is free \[2J <b>for ", said, re.M)
    assert re.search(
        r"^over: the service waited until the account's billing was settled", said, re.M
    )
    of_run = held_up_events(workspace, "run")
    assert (0, "rate_limit", 1, True) in of_run
    assert sorted(one for one in of_run if one[0] == 1) == [
        (1, "billing", 1, False),
        (1, "capacity", 0, True),
        (1, "rate_limit", 2, False),
    ]
    folder = workspace.folder / "run"
    report, page = ((folder / name).read_text() for name in ("eval_report.md", "report.html"))
    assert "- The service limited the rate for " in report
    assert ", 3 requests refused and asked again (it said: no GPU is free" in report
    assert "Held up by the service" in page and "was short of capacity" in page
    for text in (said, report, page, (folder / "ledger.jsonl").read_text()):
        assert key not in text and "\x1b" not in text and "\u202e" not in text
    assert "<b>for" not in page


def test_where_nothing_was_held_up_nothing_is_said_of_it(
    workspace: Workspace, service: local_tinker.Service, key: str, capsys: pytest.CaptureFixture
) -> None:
    assert workspace.run("run", base_url=service.base_url, max_rounds=1, steps_per_round=1) == 0
    assert "the service limits" not in capsys.readouterr().err
    assert held_up_events(workspace, "run") == []
    assert "Held up" not in (workspace.folder / "run/report.html").read_text()
    assert logging.getLogger("httpx").filters == []


@pytest.mark.usefixtures("soon_told")
def test_the_trials_of_a_study_say_it_once_and_record_it_each(
    tmp_path: Path,
    llama_dir: Path,
    service: local_tinker.Service,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", service.open_folder(tmp_path / "weights"))
    folder = StudyFolder(tmp_path / "study", llama_dir)
    (folder.folder / "qa.jsonl").write_text('{"question": "What is it?", "answer": "x"}\n')
    folder.experiment["evaluation"] = {}
    with fault_proxy(service.base_url, first=[first(FORWARD_BACKWARD, 3)]) as proxy:
        controls = {"base_url": proxy.url, "eval_tasks": ["qa:qa.jsonl"]}
        folder.write(controls=controls, variables={"lora_rank": [2, 4]})
        assert folder.run("--parallel", "2") == 0, capsys.readouterr().err
    said = capsys.readouterr().err.splitlines()
    told = [line for line in said if "the service limit" in line]
    assert told and all(line.startswith(("the service", "over: ")) for line in told)
    assert len(told) == len(set(told))
    logs = [path.read_text() for path in (folder.folder / "results/logs").glob("run_*.log")]
    assert sum("over: the service limited the rate" in log for log in logs) == len(logs) == 2
    found = [list(folder.store(name).ever("held_up")) for name in ("run_000", "run_001")]
    assert all(sum(event["num_refused"] for event in of_one) >= 1 for of_one in found)


@pytest.mark.usefixtures("soon_told")
def test_an_error_comes_with_what_was_held_up_before_it(
    workspace: Workspace, service: local_tinker.Service, key: str, capsys: pytest.CaptureFixture
) -> None:
    plan = [first(FORWARD_BACKWARD, 2), first(FORWARD_BACKWARD, 1, b"401 Unauthorized")]
    with fault_proxy(service.base_url, first=plan) as proxy:
        assert workspace.run("run", base_url=proxy.url, max_rounds=1) == 1
    said = capsys.readouterr().err
    assert re.search(r"\)\. Before that it limited the rate for \d s, 2 requests refused\. ", said)
    assert held_up_events(workspace, "run") == [(1, "rate_limit", 2, False)]
    events = workspace.events("run")
    assert [event["type"] for event in events[-2:]] == ["held_up", "failed"]


def test_the_table_of_a_study_says_it_once_above_its_rows(tmp_path: Path) -> None:
    screen = Screen(
        {"run_000": "rank 2", "run_001": "rank 4"},
        redacted=lambda text: text,
        logs_dir=tmp_path,
        how_to_continue="",
        verbose=False,
    )
    for run_id in screen.rows:
        screen.progress_of(run_id).held_up = lambda: "the service limits the rate"
    title = str(screen.table().title)
    assert title.count("the service limits the rate") == 1
