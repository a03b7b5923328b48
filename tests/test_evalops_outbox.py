"""The outbox: a round is on disk before it is sent, sent until it is confirmed, and never lost."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import evalops_client
from conftest import REPO
from errors import RunStoreError, StorageError
from evalops_client import EvalOpsClient, main, retry_pause_s
from fake_evalops import (
    CONFLICT,
    DRIP,
    GARBAGE,
    HANG,
    IN_PROGRESS,
    OK_P,
    TORN,
    UNAVAILABLE,
    FakeEvalOps,
    Recorded,
    Reply,
    as_json,
    fake_evalops,
)
from ledger.run_directory import OUTBOX
from ledger.store import RunStore
from loop.rounds.deliverer import Deliverer
from services.evalops_outbox import (
    MAX_BYTES,
    EvalOpsError,
    Outbox,
    RoundReport,
    build_payload,
    make_record,
)
from test_evalops_client import KEY, REPORT, SUITE, assert_no_key, idempotency_key
from test_run_store import MANIFEST


@pytest.fixture(scope="module")
def server() -> Iterator[FakeEvalOps]:
    with fake_evalops() as fake:
        yield fake


@pytest.fixture
def evalops(server: FakeEvalOps, monkeypatch: pytest.MonkeyPatch) -> FakeEvalOps:
    server.play(OK_P)
    server.honours_keys = True
    monkeypatch.setenv("EVALOPS_API_KEY", KEY)
    monkeypatch.setenv("EVALOPS_API_URL", server.url)
    monkeypatch.setattr(evalops_client, "FIRST_BACKOFF_S", 0.0)
    return server


@pytest.fixture
def dead_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    resolved = {"config": {"evalops_api_url": None}, "config_hash": "abc"}
    opened = RunStore.create(tmp_path / "run", resolved)
    opened.record_start(MANIFEST, [], "abc")
    yield opened
    opened.close()


def report(store: RunStore, round_no: int) -> RoundReport:
    return replace(REPORT, run_id=store.run_id, round=round_no)


def fill(store: RunStore, *rounds: int, suite_id: str = SUITE) -> list[Path]:
    """Put rounds into the outbox and return the files there."""
    outbox = Outbox(store.run_dir / OUTBOX, store.run_id)
    for round_no in rounds:
        outbox.put(report(store, round_no), suite_id)
    return sorted((store.run_dir / "evalops").iterdir())


class Delivering:
    """A deliverer on a store, and what it warned of."""

    def __init__(self, store: RunStore, url: str, timeout_s: float = 5.0) -> None:
        self.store = store
        self.warnings: list[str] = []
        self.deliverer = Deliverer(
            EvalOpsClient(KEY, url, timeout_s),
            Outbox(store.run_dir / OUTBOX, store.run_id),
            SUITE,
            delivered=store.delivered_keys(),
            record=store.record_delivery,
            warn=self.warnings.append,
        )

    def put(self, round_no: int) -> None:
        self.deliverer.put(report(self.store, round_no))


def run_rounds(
    store: RunStore, url: str, *rounds: int, timeout_s: float = 5.0, bound_s: float = 30.0
) -> tuple[int, list[str]]:
    """Deliver rounds as a run does, each pass ending before the next put; (left, warnings)."""

    async def run() -> tuple[int, list[str]]:
        delivering = Delivering(store, url, timeout_s)
        delivering.deliverer.start()
        for round_no in rounds:
            delivering.put(round_no)
        return await delivering.deliverer.finish(bound_s), delivering.warnings

    return asyncio.run(run())


def deliveries(store: RunStore) -> list[tuple[int, bool, str | None]]:
    return [(e["round"], e["ok"], e["detail"]) for e in store.events("evalops")]


def posted(evalops: FakeEvalOps) -> list[tuple[int, str]]:
    """Round and run of each request."""
    bodies = [json.loads(request.body)["config"]["metadata"] for request in evalops.requests]
    return [(metadata["round"], metadata["runId"]) for metadata in bodies]


# What lies on disk


def test_a_record_holds_exactly_what_is_sent(store: RunStore) -> None:
    (file,) = fill(store, 2)
    key = idempotency_key(report(store, 2), SUITE)
    assert file.name == f"round_02-{key[:12]}.json"
    assert json.loads(file.read_text()) == {
        "key": key,
        "suite_id": SUITE,
        "round": 2,
        "payload": build_payload(report(store, 2), SUITE),
    }
    (record,), warnings = Outbox(store.run_dir / OUTBOX, store.run_id).records()
    assert record == make_record(build_payload(report(store, 2), SUITE))
    assert warnings == []


def test_the_first_record_of_a_key_stands(store: RunStore) -> None:
    (file,) = fill(store, 2)
    before = file.read_bytes()
    outbox = Outbox(store.run_dir / OUTBOX, store.run_id)
    outbox.put(replace(report(store, 2), score=0.1, decision="Taken again."), SUITE)
    assert file.read_bytes() == before
    outbox.put(report(store, 2), "suite-2")  # another key
    assert len(list(file.parent.iterdir())) == 2


def test_what_a_killed_put_left_is_no_record_and_not_in_the_way(store: RunStore) -> None:
    (file,) = fill(store, 2)
    torn = file.with_name(file.name + ".tmp")
    file.rename(torn)
    torn.write_bytes(torn.read_bytes()[:50])
    assert Outbox(store.run_dir / OUTBOX, store.run_id).records() == ([], [])
    assert fill(store, 2) == [file]
    assert len(Outbox(store.run_dir / OUTBOX, store.run_id).records()[0]) == 1


def test_a_round_that_cannot_be_sent_or_stored_is_an_evalops_error(
    store: RunStore, tmp_path: Path
) -> None:
    outbox = Outbox(store.run_dir / OUTBOX, store.run_id)
    with pytest.raises(EvalOpsError, match="is not sent round 2: Out of range float values"):
        outbox.put(replace(report(store, 2), score=float("nan")), SUITE)
    assert not (store.run_dir / "evalops").exists()
    (store.run_dir / "evalops").write_text("in the way")
    with pytest.raises(EvalOpsError, match=r"round_02-.*: File exists.* The round itself is safe"):
        outbox.put(report(store, 2), SUITE)
    (store.run_dir / "evalops").unlink()
    fill(store, 2)
    (store.run_dir / "evalops").rename(tmp_path / "elsewhere")
    (store.run_dir / "evalops").symlink_to(tmp_path / "elsewhere")
    assert outbox.records()[0] == [] and "it is a link" in outbox.records()[1][0]


def test_a_record_is_on_disk_before_the_first_request(
    store: RunStore, evalops: FakeEvalOps
) -> None:
    seen: list[dict[str, Any]] = []

    def look(request: Recorded) -> None:
        (file,) = (store.run_dir / "evalops").iterdir()
        seen.append(json.loads(file.read_text()))

    evalops.on_request = look
    assert run_rounds(store, evalops.url, 2) == (0, [])
    assert [one["payload"] for one in seen] == [json.loads(evalops.requests[0].body)]
    assert seen[0]["key"] == evalops.requests[0].headers["idempotency-key"]


# Delivery in the background


def test_each_round_is_posted_once_in_order_and_proved_in_the_ledger(
    store: RunStore, evalops: FakeEvalOps
) -> None:
    assert run_rounds(store, evalops.url, 0, 1, 2) == (0, [])
    assert posted(evalops) == [(n, store.run_id) for n in range(3)]
    assert deliveries(store) == [(0, True, "run-1"), (1, True, "run-2"), (2, True, "run-3")]
    keys = {idempotency_key(report(store, n), SUITE) for n in range(3)}
    assert store.delivered_keys() == keys == set(evalops.accepted)
    assert len(list((store.run_dir / "evalops").iterdir())) == 3  # the files are kept
    assert run_rounds(store, evalops.url, 0, 1, 2) == (0, [])  # a resumed run puts them again
    assert len(evalops.requests) == 3


def test_what_an_earlier_process_left_is_sent_at_the_start(
    store: RunStore, evalops: FakeEvalOps
) -> None:
    fill(store, 3, 1, 10)
    assert run_rounds(store, evalops.url) == (0, [])
    assert [round_no for round_no, _ in posted(evalops)] == [1, 3, 10]


def test_only_records_of_its_suite_are_sent(store: RunStore, evalops: FakeEvalOps) -> None:
    fill(store, 0, suite_id="suite-2")
    assert run_rounds(store, evalops.url, 1) == (0, [])
    assert [round_no for round_no, _ in posted(evalops)] == [1]


def test_put_waits_for_nothing_and_each_put_begins_a_pass(
    store: RunStore, evalops: FakeEvalOps
) -> None:
    async def run() -> None:
        delivering = Delivering(store, evalops.url)
        delivering.deliverer.start()
        for number in range(3):
            delivering.put(number)
            assert len(evalops.requests) == number  # nothing was sent inside put
            while len(store.delivered_keys()) == number:
                await asyncio.sleep(0.01)
        assert await delivering.deliverer.finish(30.0) == 0

    asyncio.run(asyncio.wait_for(run(), 60))
    assert [ok for _, ok, _ in deliveries(store)] == [True] * 3


@pytest.mark.parametrize("reply", [HANG, DRIP], ids=["silent", "dripping"])
def test_finish_is_bounded_and_names_what_is_left(
    store: RunStore, evalops: FakeEvalOps, reply: Reply
) -> None:
    evalops.go_on(reply)

    async def run() -> tuple[int, list[str]]:
        delivering = Delivering(store, evalops.url, timeout_s=3600)
        delivering.deliverer.start()
        delivering.put(1)
        delivering.put(2)
        while not evalops.requests:
            await asyncio.sleep(0.01)
        return await delivering.deliverer.finish(bound_s=0.6), delivering.warnings

    left, warnings = asyncio.run(asyncio.wait_for(run(), 60))  # for ever, without a bound
    assert left == 2
    (warning,) = warnings
    assert warning.startswith("EvalOps: undelivered: round 1, 2, kept in ")
    assert warning.endswith(f"evalops_client.py sync {store.run_dir}")
    assert deliveries(store) == [] and len(evalops.requests) == 1
    evalops.go_on(OK_P)
    assert run_rounds(store, evalops.url) == (0, [])
    assert set(evalops.accepted.values()) == {1}


def test_close_leaves_at_once(store: RunStore, evalops: FakeEvalOps) -> None:
    evalops.go_on(HANG)

    async def run() -> list[str]:
        delivering = Delivering(store, evalops.url, timeout_s=3600)
        delivering.deliverer.start()
        delivering.put(1)
        while not evalops.requests:
            await asyncio.sleep(0.01)
        delivering.deliverer.close()
        delivering.deliverer.close()
        return delivering.warnings

    assert asyncio.run(asyncio.wait_for(run(), 60)) == []
    assert deliveries(store) == []
    assert len(Outbox(store.run_dir / OUTBOX, store.run_id).records()[0]) == 1


# Failures


def test_a_server_that_is_down_all_the_time_then_sync_delivers_each_once(
    store: RunStore, evalops: FakeEvalOps, dead_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    left, warnings = run_rounds(store, dead_url, 0, 1, 2)
    assert left == 3
    assert [ok for _, ok, _ in deliveries(store)] == [False] * 3
    for number, warning in enumerate(warnings[:3]):
        assert warning.startswith(f"EvalOps did not confirm the round: POST {dead_url}/api/v1/")
        assert warning.endswith(f"Round {number} is sent again later.")
    assert len(warnings) == 4 and "undelivered: round 0, 1, 2, kept in" in warnings[3]
    store.close()

    assert main(["sync", str(store.run_dir)]) == 0
    assert capsys.readouterr().out == (
        f"sending to {evalops.url}/api/v1/test-runs\n"
        "round 0 to suite suite-1: delivered (run-1)\n"
        "round 1 to suite suite-1: delivered (run-2)\n"
        "round 2 to suite suite-1: delivered (run-3)\n"
        "3 delivered now, 0 before, 0 not delivered.\n"
    )
    assert main(["sync", str(store.run_dir)]) == 0
    assert "0 delivered now, 3 before, 0 not delivered." in capsys.readouterr().out
    assert posted(evalops) == [(n, store.run_id) for n in range(3)]
    assert len(evalops.accepted) == 3


def test_a_flapping_server_is_sent_each_round_once(store: RunStore, evalops: FakeEvalOps) -> None:
    evalops.flap(UNAVAILABLE, OK_P)
    assert run_rounds(store, evalops.url, 0, 1, 2, 3) == (0, [])
    assert [n for n, _ in posted(evalops)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [ok for _, ok, _ in deliveries(store)] == [True] * 4
    assert list(evalops.accepted.values()) == [1] * 4


@pytest.mark.parametrize(
    "reply",
    [
        as_json({"error": "rate_limit_exceeded"}, 429, retry_after="0"),
        as_json({"error": "rate_limit_exceeded"}, 429, retry_after="1"),
        UNAVAILABLE,
        Reply(500),
        Reply(408),
        Reply(425),
        GARBAGE,
        TORN,
        IN_PROGRESS,
    ],
    ids=["429 now", "429 in 1 s", "503", "500", "408", "425", "garbage", "torn", "in progress"],
)
def test_a_temporary_failure_is_followed_by_another_attempt(
    store: RunStore, evalops: FakeEvalOps, reply: Reply
) -> None:
    evalops.go_on(reply, OK_P)
    assert run_rounds(store, evalops.url, 1) == (0, [])
    first, second = evalops.requests
    assert first.body == second.body
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert deliveries(store) == [(1, True, "run-1")]
    assert list(evalops.accepted.values()) == [1]


def test_an_answer_that_does_not_come_in_time_is_asked_for_again(
    store: RunStore, evalops: FakeEvalOps
) -> None:
    evalops.go_on(HANG, DRIP, OK_P)  # both accept the round and never say so
    assert run_rounds(store, evalops.url, 1, timeout_s=1.0) == (0, [])
    assert len(evalops.requests) >= 3
    assert len({request.body for request in evalops.requests}) == 1
    assert deliveries(store) == [(1, True, "run-1")]
    assert list(evalops.accepted.values()) == [1]


def test_attempts_end_and_the_next_put_begins_again(store: RunStore, evalops: FakeEvalOps) -> None:
    async def run() -> tuple[int, list[str]]:
        evalops.go_on(UNAVAILABLE)
        delivering = Delivering(store, evalops.url)
        delivering.deliverer.start()
        delivering.put(0)
        while not delivering.warnings:
            await asyncio.sleep(0.01)
        assert len(evalops.requests) == 4
        evalops.go_on(OK_P)
        delivering.put(1)
        return await delivering.deliverer.finish(30.0), delivering.warnings

    left, warnings = asyncio.run(asyncio.wait_for(run(), 60))
    assert left == 0 and len(warnings) == 1
    assert [(n, ok) for n, ok, _ in deliveries(store)] == [(0, False), (0, True), (1, True)]
    assert len(evalops.requests) == 6


def test_a_wait_beyond_the_bound_leaves_the_round_to_the_next_pass(
    store: RunStore, evalops: FakeEvalOps
) -> None:
    evalops.go_on(as_json({"error": "rate_limit_exceeded"}, 429, retry_after="61"), OK_P)

    async def run() -> list[str]:
        delivering = Delivering(store, evalops.url)
        delivering.deliverer.start()
        delivering.put(0)
        while not delivering.warnings:
            await asyncio.sleep(0.01)
        assert len(evalops.requests) == 1
        assert await delivering.deliverer.finish(30.0) == 0
        return delivering.warnings

    (warning,) = asyncio.run(asyncio.wait_for(run(), 60))
    assert "EvalOps limits the rate of calls" in warning
    assert [(n, ok) for n, ok, _ in deliveries(store)] == [(0, False), (0, True)]


def test_the_same_failure_of_a_round_is_told_once_and_another_one_too(
    store: RunStore, evalops: FakeEvalOps
) -> None:
    async def run() -> None:
        delivering = Delivering(store, evalops.url)
        delivering.deliverer.start()
        for status, num_told in ((500, 1), (500, 1), (502, 2)):
            evalops.play(Reply(status))
            delivering.put(0)
            while len(evalops.requests) < 4 or len(delivering.warnings) < num_told:
                await asyncio.sleep(0.01)
        delivering.deliverer.close()

    asyncio.run(asyncio.wait_for(run(), 60))
    told = [(detail or "").split("gave ")[1][:8] for _, _, detail in deliveries(store)]
    assert told == ["HTTP 500", "HTTP 502"]


@pytest.mark.parametrize(
    "reply",
    [Reply(400), Reply(401), Reply(403), Reply(404), Reply(409), Reply(422), Reply(302)],
    ids=["400", "401", "403", "404", "409", "422", "302"],
)
def test_a_refusal_is_not_repeated_in_this_process(
    store: RunStore, evalops: FakeEvalOps, reply: Reply
) -> None:
    evalops.go_on(reply)
    left, warnings = run_rounds(store, evalops.url, 0, 1)
    assert left == 2
    assert [n for n, _ in posted(evalops)] == [0, 1]
    assert [(n, ok) for n, ok, _ in deliveries(store)] == [(0, False), (1, False)]
    assert warnings[0].endswith("Round 0 stays in the outbox.") and len(warnings) == 3
    evalops.go_on(OK_P)
    assert run_rounds(store, evalops.url) == (0, [])  # but by the next one


def test_a_conflict_counts_as_delivered_for_the_first_record_stands(
    store: RunStore, evalops: FakeEvalOps
) -> None:
    evalops.go_on(CONFLICT)
    assert run_rounds(store, evalops.url, 1) == (0, [])
    detail = "accepted before under this key with another body; the first record stands"
    assert deliveries(store) == [(1, True, detail)]
    assert len(evalops.requests) == 1


def test_a_kill_between_the_answer_and_the_ledger_sends_the_same_once_more(
    store: RunStore, evalops: FakeEvalOps
) -> None:
    fill(store, 1)
    (record,), _ = Outbox(store.run_dir / OUTBOX, store.run_id).records()
    asyncio.run(EvalOpsClient(KEY, evalops.url).post_record(record))
    assert deliveries(store) == []  # the kill
    store.close()
    assert main(["sync", str(store.run_dir)]) == 0
    first, second = evalops.requests
    assert first.body == second.body == record.body
    assert {r.headers["idempotency-key"] for r in (first, second)} == {record.key}
    assert list(evalops.accepted.values()) == [1]
    assert deliveries(RunStore.open(store.run_dir)) == [(1, True, "run-1")]


def full_disk(round_no: int, key: str, detail: str | None, *, ok: bool) -> None:
    raise StorageError("ledger.jsonl: the disk refused to write it: No space left on device.")


def deliverer_on_a_full_disk(store: RunStore, url: str, warnings: list[str]) -> Deliverer:
    return Deliverer(
        EvalOpsClient(KEY, url),
        Outbox(store.run_dir / OUTBOX, store.run_id),
        SUITE,
        delivered=set(),
        record=full_disk,
        warn=warnings.append,
    )


def test_a_delivery_that_cannot_be_recorded_is_raised_at_the_end(
    store: RunStore, evalops: FakeEvalOps
) -> None:
    warnings: list[str] = []

    async def run() -> None:
        deliverer = deliverer_on_a_full_disk(store, evalops.url, warnings)
        deliverer.start()
        deliverer.put(report(store, 1))
        try:
            await deliverer.finish(30.0)
        finally:
            deliverer.close()

    with pytest.raises(StorageError, match="No space left"):
        asyncio.run(run())
    assert warnings == []


def test_on_an_interruption_it_is_a_warning(store: RunStore, evalops: FakeEvalOps) -> None:
    warnings: list[str] = []

    async def run() -> None:
        others = asyncio.all_tasks()
        deliverer = deliverer_on_a_full_disk(store, evalops.url, warnings)
        deliverer.start()
        deliverer.put(report(store, 1))
        while asyncio.all_tasks() - others:
            await asyncio.sleep(0.01)
        deliverer.close()

    asyncio.run(asyncio.wait_for(run(), 60))
    (warning,) = warnings
    assert warning.startswith("EvalOps: deliveries could not be recorded: ")


@pytest.mark.parametrize(
    ("attempt", "error", "least_s", "most_s"),
    [
        (1, EvalOpsError("x", is_temporary=True), 0.0, 0.5),
        (2, EvalOpsError("x", is_temporary=True), 0.0, 1.0),
        (3, EvalOpsError("x", is_temporary=True), 0.0, 2.0),
        (1, EvalOpsError("x", is_temporary=True, retry_after_s=60.0), 60.0, 60.0),
        (3, EvalOpsError("x", is_temporary=True, retry_after_s=1.5), 1.5, 2.0),
    ],
)
def test_pauses_double_with_full_jitter_and_heed_the_server(
    attempt: int, error: EvalOpsError, least_s: float, most_s: float
) -> None:
    drawn = (retry_pause_s(error, attempt) for _ in range(200))
    pauses = [pause for pause in drawn if pause is not None]
    assert len(pauses) == 200
    assert least_s <= min(pauses) and max(pauses) <= most_s
    assert max(pauses) - min(pauses) >= (most_s - least_s) * 0.9


def test_the_pauses_leave_the_draws_of_the_run_alone() -> None:
    before = random.getstate()
    retry_pause_s(EvalOpsError("x", is_temporary=True), 1)
    assert random.getstate() == before


@pytest.mark.parametrize(
    ("attempt", "error"),
    [
        (1, EvalOpsError("x")),
        (4, EvalOpsError("x", is_temporary=True)),
        (1, EvalOpsError("x", is_temporary=True, retry_after_s=60.5)),
    ],
)
def test_when_to_give_up_for_now(attempt: int, error: EvalOpsError) -> None:
    assert retry_pause_s(error, attempt) is None


# Files that are no records


def rewritten(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def for_another_suite(file: Path) -> None:
    stored = json.loads(file.read_text())
    rewritten(file, payload={**stored["payload"], "testSuiteId": "theirs"})


def moved(file: Path) -> None:
    file.rename(file.with_name("round_07-000000000000.json"))


def linked(file: Path) -> None:
    outside = file.parent.parent.parent / "outside.json"
    file.rename(outside)
    file.symlink_to(outside)


def a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def of_another_run(file: Path) -> None:
    other = make_record(build_payload(replace(REPORT, run_id="other"), SUITE))
    file.unlink()
    (file.parent / other.file_name).write_text(json.dumps(asdict(other)))


NOT_ITS_PAYLOAD = "ValueError: its name, key, suite or round is not that of its payload"
NOT_A_FILE = "ValueError: it is a link, not a regular file, or over 1048576 bytes"
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "not JSON": (lambda file: file.write_text("{"), "JSONDecodeError: Expecting property name"),
    "not text": (lambda file: file.write_bytes(b"\xff\xfe\x00"), "UnicodeDecodeError: "),
    "a list": (lambda file: file.write_text("[1]"), "TypeError: "),
    "a field more": (lambda file: rewritten(file, url="http://h"), NOT_ITS_PAYLOAD),
    "another key": (lambda file: rewritten(file, key="0" * 64), NOT_ITS_PAYLOAD),
    "another suite": (lambda file: rewritten(file, suite_id="s"), NOT_ITS_PAYLOAD),
    "another round": (lambda file: rewritten(file, round=3), NOT_ITS_PAYLOAD),
    "no suite": (lambda file: rewritten(file, suite_id=7), NOT_ITS_PAYLOAD),
    "a true round": (lambda file: rewritten(file, round=True), NOT_ITS_PAYLOAD),
    "payload for another suite": (for_another_suite, NOT_ITS_PAYLOAD),
    "payload of text": (lambda file: rewritten(file, payload="x"), "TypeError: "),
    "no payload": (lambda file: file.write_text('{"key": 1}'), "KeyError: 'payload'"),
    "a number too large": (
        lambda file: file.write_text(file.read_text().replace("0.8,", "1e999,")),
        "ValueError: Out of range float values",
    ),
    "deep": (lambda file: file.write_text("[" * 100_000), "RecursionError: maximum recursion"),
    "huge": (lambda file: file.write_text(" " * (MAX_BYTES + 1)), NOT_A_FILE),
    "another name": (moved, NOT_ITS_PAYLOAD),
    "a link": (linked, NOT_A_FILE),
    "a pipe": (a_pipe, NOT_A_FILE),
    "a folder": (a_folder, NOT_A_FILE),
    "of another run": (of_another_run, "ValueError: it is of another run"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_is_no_record_is_named_and_passed_over(
    store: RunStore, evalops: FakeEvalOps, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, problem = HOSTILE[kind]
    (file,) = fill(store, 2)
    spoil(file)
    left, (warning,) = run_rounds(store, evalops.url, 1)
    assert left == 0
    assert [n for n, _ in posted(evalops)] == [1]
    folder = f"{store.run_dir}/evalops/round_0"
    assert warning.startswith(folder)
    assert f": not a record of this run's outbox ({problem}" in warning
    assert warning.endswith("Nothing of it is sent. Remove it, or restore it from a copy.")
    store.close()
    assert main(["sync", str(store.run_dir)]) == 1  # a round may be in it that nobody sent
    output = capsys.readouterr()
    assert f"warning: {warning}\n" == output.err
    assert output.out.endswith("0 delivered now, 1 before, 1 not delivered.\n")
    assert len(evalops.requests) == 1


def test_a_file_name_cannot_write_on_the_terminal(store: RunStore) -> None:
    (file,) = fill(store, 2)
    file.rename(file.with_name("round_02\x1b[31m\n.json"))
    _, (warning,) = Outbox(store.run_dir / OUTBOX, store.run_id).records()
    assert "\x1b" not in warning and "\n" not in warning


# The sync command


def test_sync_sends_to_the_suite_that_each_record_names(
    store: RunStore, evalops: FakeEvalOps, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(store, 0, 1)
    fill(store, 0, suite_id="suite-2")
    store.close()
    assert main(["sync", str(store.run_dir)]) == 0
    suites = [json.loads(request.body)["testSuiteId"] for request in evalops.requests]
    assert sorted(suites) == ["suite-1", "suite-1", "suite-2"]
    assert "round 0 to suite suite-2: delivered" in capsys.readouterr().out


def test_sync_says_what_it_could_not_deliver(
    store: RunStore, evalops: FakeEvalOps, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(store, 0, 1)
    store.close()
    evalops.go_on(Reply(404), OK_P)
    assert main(["sync", str(store.run_dir)]) == 1
    _, first, second, total = capsys.readouterr().out.splitlines()
    assert first.startswith("round 0 to suite suite-1: not delivered (EvalOps did not confirm")
    assert second == "round 1 to suite suite-1: delivered (run-1)"
    assert total == "1 delivered now, 0 before, 1 not delivered."
    events = deliveries(RunStore.open(store.run_dir))
    assert [(n, ok) for n, ok, _ in events] == [(0, False), (1, True)]


def test_sync_goes_to_the_recorded_address(
    store: RunStore, evalops: FakeEvalOps, monkeypatch: pytest.MonkeyPatch, dead_url: str
) -> None:
    fill(store, 0)
    store.write_json("config.resolved.json", {"config": {"evalops_api_url": evalops.url}})
    store.close()
    monkeypatch.setenv("EVALOPS_API_URL", dead_url)
    assert main(["sync", str(store.run_dir)]) == 0
    assert len(evalops.requests) == 1


def test_sync_refuses_what_it_cannot_use(
    store: RunStore,
    evalops: FakeEvalOps,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def complaint(run_dir: Path) -> str:
        assert main(["sync", str(run_dir)]) == 2
        output = capsys.readouterr()
        assert output.out == "" and output.err.startswith("error: ")
        assert output.err.count("\n") == 1
        return output.err

    fill(store, 0)
    assert "another process is at work on this run" in complaint(store.run_dir)
    store.close()
    assert "not a run directory" in complaint(tmp_path)
    RunStore.create(tmp_path / "killed", {"config": {}}).close()
    assert "the run has not started" in complaint(tmp_path / "killed")
    monkeypatch.setenv("EVALOPS_API_URL", "http://evalops.example")
    assert "Plain http, which shows the key to the network" in complaint(store.run_dir)
    monkeypatch.delenv("EVALOPS_API_KEY")
    assert "EVALOPS_API_KEY is not set" in complaint(store.run_dir)
    assert evalops.requests == []
    with pytest.raises(RunStoreError):
        RunStore.open(tmp_path)
    RunStore.open(store.run_dir, to_resume=True).close()  # the lock was let go each time


def test_sync_as_a_command_imports_nothing_heavy_and_shows_no_key(
    store: RunStore, evalops: FakeEvalOps
) -> None:
    fill(store, 0)
    store.close()
    code = (
        "import sys, evalops_client\n"
        f"code = evalops_client.main(['sync', {str(store.run_dir)!r}])\n"
        "heavy = {'torch', 'transformers', 'tinker', 'inspect_ai', 'datasets', 'sklearn'}\n"
        "print(sorted(heavy & set(sys.modules)), code)\n"
    )
    environment = {**os.environ, "EVALOPS_API_KEY": KEY, "EVALOPS_API_URL": evalops.url}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, env=environment, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[] 0", done.stderr
    assert_no_key(done.stdout + done.stderr)
    again = subprocess.run(
        [sys.executable, "evalops_client.py", "sync", str(store.run_dir)],
        cwd=REPO,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0
    assert "0 delivered now, 1 before, 0 not delivered." in again.stdout


@pytest.mark.parametrize(
    "reply",
    [
        as_json({"data": {"id": f"run {KEY}", "status": KEY}}),
        as_json({"error": f"you sent Bearer {KEY}"}, 500),
        as_json({"error": f"you sent Bearer {KEY}"}, 401),
        Reply(200, KEY.encode()),
    ],
    ids=["in the answer", "in a temporary failure", "in a refusal", "in garbage"],
)
def test_the_key_is_in_nothing_that_is_written_or_said(
    store: RunStore, evalops: FakeEvalOps, reply: Reply, capsys: pytest.CaptureFixture[str]
) -> None:
    evalops.go_on(reply)
    _, warnings = run_rounds(store, evalops.url, 0, 1)
    store.close()
    main(["sync", str(store.run_dir)])
    output = capsys.readouterr()
    assert_no_key("".join(warnings) + output.out + output.err)
    files = [file for file in store.run_dir.rglob("*") if file.is_file()]
    assert len(files) >= 4
    for file in files:
        assert_no_key(file.read_bytes().decode())
