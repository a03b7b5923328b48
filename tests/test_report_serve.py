"""`report.py --serve`: what is shown over HTTP, what is followed, and what is refused."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import REPO
from ledger.glance import LedgerWatch
from ledger.run_directory import LOCK
from ledger.store import RunStore
from loop.run_page.folders import runs_below
from page_reading import Page
from report_runs import Made, lengthen, made_run, make_evaluation, make_run
from scores.wording import interval_text
from study_records import HOSTILE

STOPPED_S = 20


class Served:
    """The real command in a process of its own, and a client of it."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.folder = folder
        command = [sys.executable, str(REPO / "report.py"), "--serve", str(folder), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--json", *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "COLUMNS": "100"},
        )
        assert self.process.stdout is not None
        self.address = json.loads(self.process.stdout.readline())["address"]
        self.port = int(self.address.rstrip("/").rpartition(":")[2])
        self.client = httpx.Client(base_url=self.address, trust_env=False, timeout=60)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.client.get(path, headers=headers)

    def close(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=STOPPED_S)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served") / "runs"
    folder.mkdir()
    made_run(folder / "first")
    made_run(folder / "second", Made(seed=1, log="inspect_logs/a.json"))
    (folder / "second/inspect_logs").mkdir()
    (folder / "second/inspect_logs/a.json").write_text('"a log"')
    made_run(folder / "killed", Made(shares=(0.1, 0.4), is_finished=False))
    make_evaluation(folder / "checked")
    made_run(folder / "damaged")
    with open(folder / "damaged/ledger.jsonl", "a") as ledger:
        ledger.write("nonsense\n")
    study = folder / "ranks"
    study.mkdir()
    (study / "experiment.yaml").touch()
    (study / "report.html").write_text("<p>ranks</p><script>alert(1)</script>")
    made_run(study / "results/run_000", Made(shares=(0.1, 0.9)))
    running = Served(folder)
    yield running
    running.close()


def rows_of(page: str) -> dict[str, list[str]]:
    """The rows of a page's tables by their link's text, without markup."""
    found = {}
    for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL):
        cells = [
            re.sub(r"<[^>]*>", "", cell)
            for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        ]
        found[cells[0]] = cells
    return found


# --- what is shown --------------------------------------------------------------------------------


def test_the_list_says_of_each_run_what_its_ledger_does(served: Served) -> None:
    answer = served.get("/")
    assert answer.status_code == 200
    rows = rows_of(answer.text)
    for name in ("first", "second", "run_000"):
        (run_dir,) = served.folder.rglob(name)
        store = RunStore.open(run_dir)
        decision = store.last_decision()
        assert decision is not None
        best = store.result(decision.best_round)
        assert best is not None
        _, run_name, _, state, base_model, rounds, score, sentence, tokens = rows[name]
        assert (run_name, state, base_model) == (name, "finished", "nobody/nothing")
        assert rounds == str(store.num_rounds)
        assert score == f"{best.score:.4f} {interval_text(best.interval)}"
        assert sentence.replace("&lt;", "<").replace("&gt;", ">") == decision.sentence
        assert tokens == f"{store.usage().tokens:,}"
    assert rows["killed"][3].startswith("stopped without a word")
    assert rows["checked"][5] == "evaluation"
    (problem,) = [cells[1] for name, cells in rows.items() if name.endswith("runs/damaged")]
    assert re.search(r"damaged/ledger.jsonl line \d+: not a ledger event", problem)
    page = Page(answer.text)
    assert page.text_of("h2") == ["Runs", "Study ranks", "Evaluations", "Damaged"]


def test_every_link_of_the_list_leads_somewhere(served: Served) -> None:
    page = Page(served.get("/").text)
    links = [a["href"] for a in page.named("a") if not a["href"].startswith("#")]
    assert {"run/first/", "run/ranks/results/run_000/", "study/ranks/report.html"} <= set(links)
    for link in links:
        assert served.get(f"/{link}").status_code == 200, link


def test_a_runs_page_is_that_of_its_directory(served: Served) -> None:
    answer = served.get("/run/first")
    assert (answer.status_code, answer.headers["location"]) == (308, "/run/first/")
    before = sorted((served.folder / "first").rglob("*"))
    page = served.get("/run/first/").text
    decision = RunStore.open(served.folder / "first").last_decision()
    assert decision is not None
    assert decision.sentence.partition(".")[0].replace("<", "&lt;") in page
    assert sorted((served.folder / "first").rglob("*")) == before  # nothing is written
    broken = served.get("/run/damaged/")
    assert broken.status_code == 422
    assert "damaged/ledger.jsonl line" in broken.text and broken.text.count("\n") == 1
    assert served.get("/run/damaged/state.json").status_code == 422
    assert served.get("/run/checked/").status_code == 200


def test_runs_are_compared_by_their_ids(served: Served) -> None:
    answer = served.get("/compare?run=first&run=second@round_01")
    assert answer.status_code == 200
    text = Page(answer.text).texts
    assert any("first@round_02" in one or "first@round_01" in one for _, one in text)
    for asked, part in (
        ("", "2 to 20 runs can be compared, and 0 are named"),
        ("run=first&run=first", "is the same checkpoint as"),
        ("run=first&run=checked", "it holds an evaluation of checkpoints"),
        ("run=first&run=damaged", "not a ledger event"),
        ("run=first&run=second@round_09", "has not been evaluated"),
    ):
        refused = served.get(f"/compare?{asked}")
        assert refused.status_code == 422 and part in refused.text, asked
    for asked in ("run=first&run=gone", "run=first&run=../served/runs/first", "run=first&run=/etc"):
        assert served.get(f"/compare?{asked}").status_code == 404


def test_what_somebody_else_may_have_written_acts_nowhere(served: Served) -> None:
    report = served.get("/study/ranks/report.html")
    policy = report.headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none'; style-src 'unsafe-inline'")
    assert "script-src" not in policy
    saved = served.get("/run/first/evals/round_01.json")
    assert saved.headers["content-disposition"] == 'attachment; filename="round_01.json"'
    assert saved.headers["content-type"] == "application/octet-stream"
    assert saved.content == (served.folder / "first/evals/round_01.json").read_bytes()
    log = served.get("/run/second/inspect_logs/a.json")
    assert (log.status_code, log.text) == (200, '"a log"')


# --- what is refused ------------------------------------------------------------------------------


ALL_KINDS = ["/", "/run/first/", "/run/first/state.json", "/run/first/evals/round_01.json",
             "/study/ranks/report.html", "/changes.json", "/compare?run=first&run=second",
             "/run/damaged/", "/gone", "/run/gone/"]  # fmt: skip


@pytest.mark.parametrize("path", ALL_KINDS)
def test_every_answer_has_its_headers(served: Served, path: str) -> None:
    for answer in (
        served.get(path),
        served.client.head(path),
        served.client.post(path),
        served.get(path, host="elsewhere.example"),
    ):
        headers = answer.headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and policy.endswith("frame-ancestors 'none'")
        assert "'unsafe-eval'" not in policy and "form-action 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers and "access-control-allow-origin" not in headers
    assert served.client.head(path).content == b""


def test_the_policy_of_an_answer_is_the_pages_own(served: Served) -> None:
    for path in ("/", "/run/first/"):
        answer = served.get(path)
        (own,) = [
            meta["content"]
            for meta in Page(answer.text).named("meta")
            if meta.get("http-equiv") == "Content-Security-Policy"
        ]
        assert answer.headers["content-security-policy"] == f"{own}; frame-ancestors 'none'"
        assert "connect-src 'self'" in own and "'unsafe-inline'" not in own


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:PORT"}, 200),
        ({"host": "LOCALHOST:PORT"}, 200),
        ({"host": "[::1]:PORT"}, 200),
        ({"host": "127.0.0.1"}, 403),
        ({"host": "localhost"}, 403),
        ({"host": "127.0.0.1:1"}, 403),
        ({"host": "attacker.example:PORT"}, 403),
        ({"host": "127.0.0.1.attacker.example:PORT"}, 403),
        ({"host": "127.0.0.1:PORT.attacker.example"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://127.0.0.1:PORT"}, 200),
        ({"origin": "http://localhost:PORT"}, 200),
        ({"origin": "https://127.0.0.1:PORT"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"origin": "http://attacker.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}, 200),
        ({"sec-fetch-site": "none", "sec-fetch-mode": "navigate"}, 200),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),  # a link elsewhere
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),  # an image elsewhere
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}, 403),  # of another port
    ],
)
def test_only_its_own_pages_may_ask(served: Served, headers: dict[str, str], status: int) -> None:
    given = {name: value.replace("PORT", str(served.port)) for name, value in headers.items()}
    for path in ("/", "/run/first/state.json"):
        assert served.client.get(path, headers=given).status_code == status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "ODD"])
def test_nothing_can_be_changed(served: Served, method: str) -> None:
    answer = served.client.request(method, "/run/first/")
    assert answer.status_code == 405 and answer.headers["allow"] == "GET, HEAD"


def raw(port: int, path: bytes) -> bytes:
    """An answer to a path as it stands, which a client would have put in order."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as opened:
        opened.sendall(
            b"GET " + path + b" HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n\r\n" % port
        )
        received = b""
        while part := opened.recv(65536):
            received += part
    return received


@pytest.mark.parametrize(
    "path",
    [
        b"/run/first/../../secret.txt",
        b"/run/first/..%2f..%2fsecret.txt",
        b"/run/first/evals/../../../secret.txt",
        b"/run/first/evals/%2e%2e/%2e%2e/%2e%2e/secret.txt",
        b"/run/../secret.txt",
        b"/run//etc/passwd",
        b"/run/first//etc/passwd",
        b"/run/first/evals/test.json",
        b"/run/first/config.resolved.json",
        b"/run/first/data_dropped.jsonl",
        b"/run/first/inspect_logs/sealed.json",
        b"/run/first/checkpoints/x.safetensors",
        b"/run/first/.lock",
        b"/run/first/inspect_logs/link.json",
        b"/run/first/selections/pipe.json",
        b"/run/first/%00",
        b"/run/first/evals/round_01.json%00.txt",
        b"/run/linked/",
        b"/study/../report.html",
        b"/study/linked_report/report.html",
        b"/run/%ff%fe/",
    ],
)
def test_no_path_leads_out(served: Served, path: bytes) -> None:
    secret = served.folder.parent / "secret.txt"
    secret.write_text("SECRET")
    first = served.folder / "first"
    (first / "evals/test.json").write_text("SECRET")
    (first / "inspect_logs").mkdir(exist_ok=True)
    (first / "inspect_logs/sealed.json").write_text('"SECRET"')  # of no round
    if not (served.folder / "linked").is_symlink():
        (served.folder / "linked").symlink_to(first)
        other = served.folder / "linked_report"
        made_run(other / "results/run_000", Made(shares=(0.1,)))
        (other / "experiment.yaml").touch()
        (other / "report.html").symlink_to(secret)
    answer = raw(served.port, path)
    status = answer.split(b" ", 2)[1]
    assert status in (b"404", b"400"), answer[:200]
    assert b"SECRET" not in answer and b"root:" not in answer
    assert served.get("/").status_code == 200


def test_links_inside_of_a_run_are_not_followed(tmp_path: Path) -> None:
    run_dir = made_run(tmp_path / "runs/r")
    (tmp_path / "secret.json").write_text('"SECRET"')
    (run_dir / "inspect_logs").symlink_to(tmp_path)
    os.mkfifo(run_dir / "selections/pipe.json")
    running = Served(tmp_path / "runs")
    try:
        for path in ("inspect_logs/secret.json", "selections/pipe.json", ""):
            answer = running.get(f"/run/r/{path}")
            assert answer.status_code in (404, 422) and "SECRET" not in answer.text
        assert rows_of(running.get("/").text)["r"][3] == "finished"
    finally:
        running.close()


# --- while it serves ------------------------------------------------------------------------------


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "runs").mkdir()
    server = Served(tmp_path / "runs")
    yield server
    server.close()


def test_a_run_that_goes_on_is_followed(running: Served) -> None:
    run_dir = running.folder / "live"
    assert "No runs in" in running.get("/").text
    store = make_run(run_dir, Made(shares=(0.2, 0.4), settings={"max_rounds": 3}))
    shown = wait_until(running, "/run/live/state.json", lambda now: now["state"] == "going on")
    assert (shown["round"], shown["step"], shown["num_decided"]) == (1, 3, 2)
    assert shown["score"] == store.scores()[1] and shown["score_round"] == 1
    assert shown["seconds_since_event"] >= 0
    page = running.get("/run/live/").text
    (made_of,) = re.findall(r"const MADE_OF_SEQ = (-?\d+);", page)
    assert int(made_of) == shown["page_seq"]
    with open(run_dir / "ledger.jsonl", "a") as ledger:
        ledger.write('{"seq": 13, "ti')  # an event that is being written
    assert running.get("/run/live/state.json").json()["page_seq"] == shown["page_seq"]
    assert running.get("/run/live/").status_code == 200
    lines = (run_dir / "ledger.jsonl").read_bytes().rpartition(b"\n")[0] + b"\n"
    (run_dir / "ledger.jsonl").write_bytes(lines)
    lengthen(run_dir, 5)
    now = running.get("/run/live/state.json").json()
    assert (now["round"], now["step"]) == (2, 8)
    assert now["page_seq"] == shown["page_seq"]  # a step is told, and makes no other page
    held = RunStore.open(run_dir)
    held.append("decided", round=1, action="continue", sentence="Another.", lr_multiplier=1.0,
                best_round=1, num_missed_gates=0)  # fmt: skip
    assert running.get("/run/live/state.json").json()["page_seq"] > shown["page_seq"]
    store.close()
    assert running.get("/run/live/state.json").json()["state"] == "stopped"
    held.append("failed", detail="The disk is full.")
    now = running.get("/run/live/state.json").json()
    assert (now["state"], now["detail"]) == ("failed", "The disk is full.")


def wait_until(server: Served, path: str, is_so: Any) -> dict[str, Any]:
    """A run is found within the second for which a listing stands."""
    deadline = time.monotonic() + 20
    while True:
        answer = server.get(path)
        if answer.status_code == 200 and is_so(answer.json()):
            return answer.json()
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.1)


def test_runs_come_go_and_break_while_it_serves(running: Served) -> None:
    made_run(running.folder / "one", Made(shares=(0.1, 0.4)))
    version = running.get("/changes.json").json()["version"]
    wait_until(running, "/changes.json", lambda now: now["version"] != version or "one" in
               rows_of(running.get("/").text))  # fmt: skip
    wait_until(running, "/run/one/state.json", lambda now: True)
    page = running.get("/run/one/").text
    assert running.get("/run/one/").text == page
    # A page is made anew once the ledger was written to.
    with open(running.folder / "one/ledger.jsonl", "a") as ledger:
        ledger.write("nonsense\n")
    assert running.get("/run/one/").status_code == 422
    rows = rows_of(running.get("/").text).values()
    assert any("not a ledger event" in " ".join(row) for row in rows)
    shutil.rmtree(running.folder / "one")
    assert running.get("/run/one/").status_code in (404, 422)
    deadline = time.monotonic() + 20
    while running.get("/run/one/").status_code != 404 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "No runs in" in running.get("/").text


def test_a_run_that_began_a_moment_ago_is_found(running: Served) -> None:
    for name in ("one", "two"):  # each within the second for which the list stands
        running.get("/")
        made_run(running.folder / name)
        assert running.get(f"/run/{name}/state.json").status_code == 200


def test_hostile_names_are_text(running: Served) -> None:
    for number, words in enumerate(HOSTILE):
        name = words.replace("\ud800", "").replace("\x00", "")
        run_dir = running.folder / f"r{number}"
        made_run(run_dir, Made(words=name, shares=(0.1,)))
        config = json.loads((run_dir / "config.resolved.json").read_text())
        config["config"] |= {"run_name": name, "base_model": name}
        (run_dir / "config.resolved.json").write_text(json.dumps(config))
    odd = [running.folder / name for name in ("<b>\"&'", "\u202eafter", "a b@best", "-x")]
    for run_dir in odd:
        made_run(run_dir, Made(shares=(0.1,), settings={"run_name": "odd"}))
    bad = os.fsdecode(os.fsencode(str(running.folder)) + b"/\xff\xfe")
    shutil.copytree(running.folder / "r0", bad)
    time.sleep(1.1)  # for which a listing stands
    answer = running.get("/")
    assert answer.status_code == 200
    page = Page(answer.text)
    assert len(page.named("script")) == 2 and not page.named("img")
    assert not [name for _, given in page.tags for name in given if name.startswith("on")]
    links = [a["href"] for a in page.named("a") if a["href"].startswith("run/")]
    assert len(links) == len(HOSTILE) + len(odd) + 1
    for link in links:
        assert running.get(f"/{link}state.json").status_code == 200, link


# --- the list is quick ----------------------------------------------------------------------------


def test_the_list_is_made_of_ledgers_alone(tmp_path: Path) -> None:
    """Three hundred runs, whose evaluations nobody reads beyond their first lines."""
    first = made_run(tmp_path / "runs/r000", Made(shares=(0.1, 0.9)))
    evals = first / "evals/round_01.json"
    text = evals.read_text()
    place = text.index('"tasks": [')
    evals.write_text(text[:place] + "nothing that can be read")
    for number in range(1, 300):
        shutil.copytree(first, tmp_path / f"runs/r{number:03d}")
    found = runs_below(tmp_path / "runs")
    assert (len(found.found), found.is_whole) == (300, True)
    glances = [LedgerWatch(one.run_dir).look() for one in found.found]
    assert {glance.best.score for glance in glances if glance.best is not None} == {
        RunStore.open(first).scores()[1]
    }
    assert all(glance.best is not None and glance.best.interval is not None for glance in glances)


def test_a_ledger_is_read_on_from_where_it_was(tmp_path: Path) -> None:
    run_dir = made_run(tmp_path / "r", Made(shares=(0.1, 0.4), settings={"max_rounds": 3}))
    watch = LedgerWatch(run_dir)
    before = watch.look()
    lengthen(run_dir, 500)
    after = watch.look()
    assert (after.step, after.num_tokens) == (503, before.num_tokens + 500 * 100)
    assert after == LedgerWatch(run_dir).look()
    # A resumption supersedes what came after the event it names.
    store = RunStore.open(run_dir, to_resume=True)
    store.mark_resumed(store.settled_config()["config"], back_to=0)
    resumed = watch.look()
    assert (resumed.state, resumed.step, resumed.best_round) == ("going on", None, 0)
    assert set(resumed.scores) == {0} == set(store.scores())
    assert resumed.num_tokens == store.usage().tokens
    store.close()
    # One that is written over is read anew.
    lines = (run_dir / "ledger.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "ledger.jsonl").write_text("".join(lines[:4]))
    assert watch.look() == LedgerWatch(run_dir).look()
    (run_dir / "ledger.jsonl").unlink()
    assert watch.look().last is None


def test_a_look_at_a_lock_keeps_nobody_from_a_run(tmp_path: Path) -> None:
    """Who lists runs holds each one's lock for a moment, to see whether somebody else does."""
    run_dir = made_run(tmp_path / "r", Made(shares=(0.1,)))
    looking = open(run_dir / LOCK)  # noqa: SIM115 (closed by another thread)
    fcntl.flock(looking, fcntl.LOCK_SH | fcntl.LOCK_NB)
    threading.Timer(0.01, looking.close).start()
    RunStore.open(run_dir, to_resume=True).close()


# --- beginning and end ----------------------------------------------------------------------------


def test_ctrl_c_ends_it_at_once_and_a_port_in_use_is_said(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    server = Served(tmp_path / "runs")
    with socket.create_connection(("127.0.0.1", server.port)):  # one that never asks
        second = subprocess.run(
            [sys.executable, str(REPO / "report.py"), "--serve", str(tmp_path / "runs"),
             "--port", str(server.port)],
            capture_output=True, text=True,
        )  # fmt: skip
        assert second.returncode == 2
        assert "another process listens there" in second.stderr and "--port 0" in second.stderr
        server.process.send_signal(signal.SIGINT)
        _, err = server.process.communicate(timeout=STOPPED_S)
    assert server.process.returncode == 130
    assert "Traceback" not in err and err.endswith("Interrupted.\n")
