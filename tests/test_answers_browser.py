"""Questions and answers as a reader has them: in a real browser, by mouse, keys and links.

Without a Chromium, or without axe for what it judges, these are skipped and say so.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from answer_runs import (
    FAILED,
    GUARD,
    LOSS,
    NUM_QUESTIONS,
    ODD_TEXTS,
    SCORED,
    answers_run,
    begun,
    record_round,
    scored_samples,
)
from browser import AXE, DESK, PHONE, Browser, BrowserPage, Size, found_browser
from ledger.store import RunStore
from loop.run_page.answer_parts import FOLDER, encoded
from loop.run_page.answers import INDEX, answers_at, answers_of
from loop.run_page.page import PAGE, write_page
from loop.run_page.viewed import viewed
from pages.charts import LineChart, Point, Series
from pages.document import Column, Document, Figure, Paragraph, Table
from pages.html import html_page
from pages.ticks import Axis
from scores.results import Measured, SampleResult, task_result

PROGRAM = found_browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium was found on this machine")
SHOWN = "document.querySelector('.samples ol, .samples table')"
STATUS = "#answers-browser [role=status]"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with Browser(PROGRAM, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its page, and `charts.html`, where points of a chart lead to the answers."""
    store = answers_run(tmp_path_factory.mktemp("answers") / "run")
    write_page(store)
    answers = answers_of(viewed(store))
    points = [
        Point(number, 0.3 * number, None, None, f"round {number}", answers_at(number))
        for number in range(3)
    ]
    chart = LineChart(Axis("round"), Axis("score"), [Series("score", points)])
    numbers = Table("Scores", [Column("round")], [["0"], ["1"], ["2"]])
    figure = Figure("Score", "By round.", chart, numbers)
    text = Paragraph("A long page. " * 400)
    document = Document("Run", [figure, text, answers.section, Paragraph("The end.")])
    store.write_text("charts.html", html_page(document, answers.behaviour))
    store.close()
    return store.run_dir


@pytest.fixture
def shown(browser: Browser, run_dir: Path) -> Iterator[BrowserPage]:
    """All of round 2, and at the end no complaint of the browser's and nothing asked for."""
    page = browser.page((run_dir / PAGE).as_uri() + "#answers/2")
    page.until(SHOWN)
    yield page
    assert page.problems == []
    assert {urlsplit(address)._replace(fragment="").geturl() for address in page.requests} == {
        (run_dir / PAGE).as_uri()
    }
    page.close()


def chosen(page: BrowserPage) -> dict[str, str]:
    """What the address says of the answers."""
    path, _, query = page.value("location.hash").partition("?")
    return {"round": path.rpartition("/")[2]} | {
        key: one[0] for key, one in parse_qs(query).items()
    }


def counts(page: BrowserPage) -> dict[str, int]:
    """What stands beside each filter that is offered."""
    said = [text for text in page.texts("#answers-browser fieldset label") if text]
    found = [re.fullmatch(r"(.*\S)\s+\(([\d,]+)\)", text) for text in said]
    return {one[1]: int(one[2].replace(",", "")) for one in found if one}


def pick(page: BrowserPage, key: str) -> None:
    page.click(f"#answers-browser input[value={key}]")
    page.until(f"location.hash.includes('show={key}')")


def until_status(page: BrowserPage, words: str) -> None:
    page.until(f"document.querySelector('{STATUS}').innerText.includes({json.dumps(words)})")


def recorded(run_dir: Path, number: int, task: str = SCORED) -> list[SampleResult]:
    found = RunStore.open(run_dir).measured(number)
    return [one for of in found.tasks if of.name == task for one in of.samples]


# --- what is shown --------------------------------------------------------------------------------


def test_counts_beside_the_filters_are_the_runs_own(shown: BrowserPage, run_dir: Path) -> None:
    now, before = recorded(run_dir, 2), recorded(run_dir, 1)
    pairs = list(zip(now, before, strict=True))
    assert counts(shown) == {
        "All": NUM_QUESTIONS,
        "Wrong": sum(one.score < 1 for one in now),
        "Partly right": 1,
        "Newly right": sum(one.score == 1 and was.score < 1 for one, was in pairs),
        "Newly wrong": sum(one.score < 1 and was.score == 1 for one, was in pairs),
        "Score rose": sum(one.score > was.score for one, was in pairs),
        "Score fell": sum(one.score < was.score for one, was in pairs),
        "Changed answer": sum(one.answer != was.answer for one, was in pairs),
        "Truncated": sum(one.truncated for one in now),
        "Malformed": 1,
        "Failed": 1,
    }


def test_a_sample_is_shown_with_all_that_is_known(shown: BrowserPage) -> None:
    pick(shown, "partly")
    (item,) = shown.texts(".samples li")
    assert [line for line in item.split("\n") if line] == [
        "What is number 40?",
        "Expected",
        "number 40",
        "score rose",
        "Round 1: partly right, score 0.5",
        "half of it",
        "20 tokens read, 3 sampled; other scorers: f1: 0.5",
        "Round 2: partly right, score 0.75",
        "half of it",
        "20 tokens read, 3 sampled; other scorers: f1: 0.5",
        "q040, topic a & b=c#d",
    ]
    pick(shown, "failed")
    assert "wrong, score 0, failed" in shown.text(".samples li")
    assert "the <b>grader</b> gave up" in shown.text(".samples .error")
    assert "(no answer)" in shown.text(".samples li")
    pick(shown, "malformed")
    assert "wrong, score 0, malformed" in shown.text(".samples li")
    assert "No expected answer is known." in shown.text(".samples li")
    assert shown.text("#answers-browser a[href^=evals]") == "evals/round_02.json"
    log = "#answers-browser a[href='inspect_logs/2026%20a%26b_simple_qa.eval']"
    assert shown.text(log) == "inspect_logs/2026 a&b_simple_qa.eval"
    assert shown.text("#answers-browser code") == "inspect view --log-dir inspect_logs"


def test_pages_of_fifty(shown: BrowserPage) -> None:
    assert shown.text(STATUS) == f"1 to 50 of {NUM_QUESTIONS} samples."
    questions = shown.texts(".samples h3")
    back, on = "nav[aria-label='Pages of samples'] button", "nav[aria-label*=below] button + *+ *"
    assert len(questions) == 50
    shown.click(back)  # there is none before
    shown.click(on)
    until_status(shown, "51 to 100 of")
    assert chosen(shown)["page"] == "2"
    assert shown.value("document.querySelector('.samples ol').start") == 51
    shown.click(on)
    until_status(shown, f"101 to {NUM_QUESTIONS} of")
    shown.click(on)
    assert chosen(shown)["page"] == "3"
    shown.click(back)
    until_status(shown, "51 to 100 of")
    assert not set(questions) & set(shown.texts(".samples h3"))


def test_filters_topic_and_search_narrow_each_other(shown: BrowserPage, run_dir: Path) -> None:
    now = recorded(run_dir, 2)
    pick(shown, "wrong")
    shown.value("document.querySelector('[name=answers-topic]').focus()")
    shown.press("a")  # the topic that begins with it
    until_status(shown, "topic a & b=c#d")
    of_topic = [one for one in now if one.topic == "a & b=c#d"]
    assert counts(shown)["All"] == len(of_topic)
    assert counts(shown)["Wrong"] == sum(one.score < 1 for one in of_topic)
    shown.click("[name=answers-find]")
    shown.type("NUMBER 10")
    found = [one for one in of_topic if "number 10" in one.question]
    until_status(shown, f"{sum(one.score < 1 for one in found)} of {NUM_QUESTIONS} samples: wrong")
    assert counts(shown)["All"] == len(found) > 0
    assert chosen(shown) == {
        "round": "2", "task": SCORED, "show": "wrong", "topic": "a & b=c#d", "find": "NUMBER 10",
    }  # fmt: skip
    shown.type("nothing of the kind")
    until_status(shown, f"None of {NUM_QUESTIONS} samples: wrong, topic a & b=c#d, with")


def test_a_long_answer_is_shown_whole_when_asked_for(shown: BrowserPage) -> None:
    shown.click("[name=answers-find]")
    shown.type("q043")
    until_status(shown, "q043")
    assert shown.texts(".more") == ["Show all 5,007 characters"] * 2
    shown.click(".answer .more")
    assert len(shown.texts(".more")) == 1
    assert len(shown.value("document.querySelector('.given').textContent")) == 5007


# --- going about ----------------------------------------------------------------------------------


def test_by_keyboard_alone(shown: BrowserPage) -> None:
    focused = "document.activeElement"
    assert shown.value(f"{focused}.id") == "answers"
    shown.press("Tab")
    assert shown.value(f"{focused}.name") == "answers-task"
    shown.press("Tab", "ArrowUp")  # round 1
    shown.until("location.hash.startsWith('#answers/1?')")
    until_status(shown, "1 to 50")
    assert shown.value(f"{focused}.name") == "answers-round"
    shown.press("Tab", "ArrowDown")  # compared with nothing
    shown.until("location.hash.includes('vs=none')")
    assert "Newly right" not in counts(shown)
    shown.press("Tab", "Tab", "Tab")
    assert shown.value(f"{focused}.value") == "all"
    shown.press("ArrowDown")
    shown.until("location.hash.includes('show=wrong')")
    assert shown.value(f"{focused}.value") == "wrong" and shown.value(f"{focused}.checked")
    shown.press("Tab", "Tab", "Tab")  # two links of the round
    while shown.value(f"{focused}.innerText") != "Next":
        shown.press("Tab")
    shown.press("Enter")
    shown.until("location.hash.includes('page=2')")
    assert shown.value(f"{focused}.className") == "samples"


def test_the_back_button_and_an_address_bring_it_all_back(
    shown: BrowserPage, browser: Browser
) -> None:
    first = shown.value("location.hash")
    pick(shown, "newly-wrong")
    words = shown.text(STATUS)
    address = shown.value("location.href")
    pick(shown, "truncated")
    shown.back()
    until_status(shown, words)
    assert shown.value("document.querySelector('[name=answers-show]:checked').value") == (
        "newly-wrong"
    )
    shown.back()
    shown.until(f"location.hash === {json.dumps(first)}")
    until_status(shown, "1 to 50")
    shown.value("history.forward()")
    until_status(shown, words)
    other = browser.page(address)
    other.until(SHOWN)
    assert other.text(STATUS) == words
    assert other.texts(".samples h3") == shown.texts(".samples h3")
    other.close()


def test_a_point_of_a_chart_leads_to_its_answers(browser: Browser, run_dir: Path) -> None:
    page = browser.page((run_dir / "charts.html").as_uri())
    assert page.value("document.querySelector('.samples').childElementCount") == 0
    page.click(".chart a[href='#answers/1']")
    page.until(SHOWN)
    assert "Round 1" in page.text(".samples .answer + .answer")
    at_heading = "Math.abs(document.getElementById('answers').getBoundingClientRect().top) < 40"
    page.until(at_heading)
    page.value("scrollTo(0, 0)")
    page.click(".chart a[href='#answers/1']")  # the same again
    page.until(at_heading)
    page.click(".chart a[href='#answers/0']")
    page.until("location.hash === '#answers/0'")
    page.until("document.querySelector('.samples .alone')")
    page.click("nav a[href='#answers']")  # the recommended round, what is wrong
    until_status(page, ": wrong")
    assert page.value("document.querySelector('[name=answers-round]').value") == "2"
    assert page.problems == []
    page.close()


def test_what_nobody_looks_at_is_not_decoded(browser: Browser, run_dir: Path) -> None:
    page = browser.page((run_dir / "charts.html").as_uri())
    assert page.text(STATUS) == ""
    page.value("document.getElementById('answers-browser').scrollIntoView()")
    until_status(page, ": wrong")
    page.close()


# --- tasks of other kinds, and what was not run ---------------------------------------------------


def opened(browser: Browser, run_dir: Path, fragment: str) -> BrowserPage:
    page = browser.page((run_dir / PAGE).as_uri() + fragment)
    page.until(f"document.querySelector('{STATUS}').innerText !== ''")
    page.until(f"!document.querySelector('{STATUS}').innerText.startsWith('Reading')")
    assert page.problems == []
    return page


def test_repeats_of_a_question_stand_together(browser: Browser, run_dir: Path) -> None:
    page = opened(browser, run_dir, answers_at(0, GUARD) + "&show=all")
    assert counts(page)["All"] == 120
    assert page.text(STATUS) == "1 to 51 of 120 samples."  # whole questions
    repeats = page.texts(".samples li:first-child .change")
    assert repeats == ["Repeat 1 of 3", "Repeat 2 of 3", "Repeat 3 of 3"]
    pick(page, "wrong")
    assert page.texts(".samples li:first-child .change") == ["Repeat 2 of 3"]
    page.close()


def test_held_out_rows_are_listed_with_their_losses(browser: Browser, run_dir: Path) -> None:
    page = opened(browser, run_dir, answers_at(2, LOSS))
    assert list(counts(page)) == ["All", "Loss rose", "Loss fell"]
    rows = page.value(
        "[...document.querySelectorAll('.samples tbody tr')].slice(0, 2)"
        ".map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    assert rows == [
        ["row0", "chat", "10", "3.2000", "3.1000", "+0.1000"],
        ["row1", "chat", "10", "3.0000", "3.0000", "0.0000"],
    ]
    pick(page, "rose")
    assert page.text(STATUS) == "24 of 70 rows: loss rose."
    page.close()


def test_what_was_not_run_is_shown_as_not_run(browser: Browser, run_dir: Path) -> None:
    page = opened(browser, run_dir, answers_at(2, GUARD))
    assert page.text(STATUS) == (
        f"Not run: {GUARD} was not measured in Round 2. It is measured every 3 rounds."
    )
    assert page.texts(".samples li") == []
    assert page.texts("[name=answers-round] option")[1:3] == [
        "Round 1 (not run)",
        "Round 2 (not run)",
    ]
    page.close()
    page = opened(browser, run_dir, answers_at(3, LOSS))
    assert page.text(STATUS).startswith(f"Not run: {LOSS} was not measured in Round 3.")
    assert FAILED in page.text(STATUS)
    page.close()
    page = opened(browser, run_dir, answers_at(3))  # what it had measured until then
    assert page.text(STATUS) == f"1 to 50 of {NUM_QUESTIONS} samples."
    assert FAILED in page.text("#answers-browser .notes")
    page.close()
    page = opened(browser, run_dir, answers_at(0, GUARD) + "&vs=1")
    assert "Nothing is compared. Not run:" in page.text("#answers-browser .notes")
    page.close()


def test_checkpoints_are_compared_with_the_first(browser: Browser, tmp_path: Path) -> None:
    store = begun(tmp_path / "run", ["runs/a@round_00", "runs/<b>@best", "runs/c@best"])
    for number in range(3):
        record_round(store, number, Measured((task_result(SCORED, scored_samples(number)),)))
    write_page(store)
    page = opened(browser, tmp_path / "run", answers_at(2))
    heads = page.texts(".samples li:first-child .answer .head")
    assert [head.partition(": ")[0] for head in heads] == ["runs/a@round_00", "runs/c@best"]
    assert page.texts("[name=answers-versus] option")[0] == "the first of them: runs/a@round_00"
    page.close()


def test_any_address_shows_something(shown: BrowserPage) -> None:
    found = ("2?vs=none", "2?topic=none", "2?page=999999999", "2?page=0", "", "?x")
    found += ("2?find=" + "x" * 5000,)
    missed = ("99", "abc", "-1", "1e3", "%", "2?task=none", "2?show=none", "2?show=__proto__")
    missed += ("2?vs=77", "2?task=%ff%00&find=%", "2?task=<img src=x onerror=alert(1)>")
    for wish in (*found, *missed):
        hash_text = json.dumps(f"#answers/{wish}")
        shown.value(
            f"document.querySelector('{STATUS}').textContent = '', location.hash = {hash_text}"
        )
        shown.until(f"!['', 'Reading'].includes(document.querySelector('{STATUS}').innerText)")
        notes = shown.text("#answers-browser .notes")
        assert ("There is no " in notes) == (wish in missed), wish
        assert shown.texts("#answers-browser img") == []


def changed_page(run_dir: Path, target: Path, changes: dict[str, str]) -> str:
    """The run's page with other data in it; its address."""
    text = (run_dir / PAGE).read_text()
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    target.write_text(text)
    return target.as_uri()


def test_what_is_cut_or_left_out_is_said(browser: Browser, run_dir: Path, tmp_path: Path) -> None:
    store = RunStore.open(run_dir)
    data = {one.part_id: one.base64_text for one in answers_of(viewed(store)).behaviour.parts}
    small = encoded(store.measured(2), 2_500)
    index = json.loads(base64.b64decode(data[INDEX]))
    index["rounds"][1]["part"] = None
    without = base64.b64encode(json.dumps(index).encode()).decode()
    changes = {data["answers-2"]: small, data[INDEX]: without}
    address = changed_page(run_dir, tmp_path / "page.html", changes)
    page = browser.page(address + "#answers/2?vs=0&show=all")
    page.until(SHOWN)
    notes = page.text("#answers-browser .notes")
    assert re.search(rf"Only the first \d+ of {NUM_QUESTIONS} are in this page; all are in", notes)
    assert "Long texts are cut in this page" in notes
    assert any("cut; whole in evals/round_02.json" in one for one in page.texts(".facts"))
    page.value("location.hash = '#answers/2'")
    page.until("document.querySelector('.samples .alone')")
    why = "Left out of this page, which would be too large: the answers of Round 1. They are in "
    assert f"Nothing is compared. {why}evals/round_01.json." in page.text("#answers-browser .notes")
    page.value("location.hash = '#answers/1'")
    until_status(page, why)
    assert page.problems == []
    page.close()


# --- hostile texts --------------------------------------------------------------------------------


def test_hostile_texts_do_nothing(shown: BrowserPage) -> None:
    shown.click("[name=answers-find]")
    shown.type("Odd ")
    until_status(shown, f"{len(ODD_TEXTS)} of")
    within = "document.querySelector('.samples')"
    allowed = {"BUTTON", "B", "DETAILS", "DIV", "H3", "LI", "OL", "P", "SPAN", "SUMMARY"}
    tags = shown.value(f"[...{within}.querySelectorAll('*')].map((one) => one.tagName)")
    assert set(tags) <= allowed
    seen = shown.value(
        f"[...{within}.querySelectorAll('*')].flatMap((one) => [...one.attributes])"
        ".map((one) => one.name)"
    )
    assert set(seen) <= {"class", "dir", "start", "type"}
    text = shown.value(f"{within}.textContent")
    assert "</script></style></svg><script>alert(1)</script>" in text
    # What cannot be seen is named; joiners inside of emoji stay what they are.
    assert not set(text) & set(
        "\u202e\u2028\u2066\u2069\u200f\u0007\u001b\u0000\u0085\u009b\r\u200b"
    )
    marked = " ".join(shown.texts(".unseen"))
    named = ("U+202E", "U+0000 x 3", "U+0007", "U+001B", "U+2028", "U+E0041", "U+000D", "U+200B")
    assert not [name for name in named if name not in marked]
    assert "\U0001f468\u200d\U0001f469\u200d\U0001f467" in text
    assert "(empty)" in text and "(white space alone, 4 characters)" in text


def test_a_part_that_somebody_changed_is_said_to_be_unreadable(
    browser: Browser, run_dir: Path, tmp_path: Path
) -> None:
    part = (run_dir / FOLDER / "round_02.txt").read_text().split()[-1]
    bomb = base64.b64encode(gzip.compress(bytes(60_000_000), 9)).decode()
    shape = base64.b64encode(gzip.compress(b'{"tasks": [null], "held_out": 3}')).decode()
    for other in (part[: len(part) // 2 // 4 * 4], "AAAA", shape, bomb):
        address = changed_page(run_dir, tmp_path / "page.html", {part: other})
        page = browser.page(address + "#answers/2")
        until_status(page, "cannot be read")
        assert "evals/round_02.json" in page.text(STATUS)
        assert page.problems == []
        page.close()


def test_a_browser_that_cannot_decode_names_the_files(browser: Browser, run_dir: Path) -> None:
    page = browser.page("about:blank")
    page.call("Page.addScriptToEvaluateOnNewDocument", source="delete window.DecompressionStream")
    page.open((run_dir / PAGE).as_uri() + "#answers/2")
    assert "no DecompressionStream" in page.text(STATUS)
    assert "evals/round_02.json" in page.text(STATUS)
    page.close()


def test_without_scripts_the_files_are_named(browser: Browser, run_dir: Path) -> None:
    page = browser.page("about:blank")
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    page.open((run_dir / PAGE).as_uri())
    assert "evals/" in page.text("#answers-browser")
    page.close()


# --- how it looks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("is_dark", [False, True])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_it_fits_and_axe_finds_no_serious_fault(
    browser: Browser, run_dir: Path, size: Size, is_dark: bool
) -> None:
    address = (run_dir / PAGE).as_uri() + "#answers/2?find=odd"  # few, with all that is special
    page = browser.page(address, size, is_dark=is_dark)
    page.until(SHOWN)
    assert page.value("document.documentElement.scrollWidth") <= size.width
    tops = page.value(
        "[...document.querySelectorAll('.samples li:first-child .answer')]"
        ".map((one) => one.getBoundingClientRect().top)"
    )
    assert (tops[0] == tops[1]) == (size is DESK)  # side by side, or one above the other
    if not AXE.is_file():
        pytest.skip(f"no axe-core in {AXE.parent.name}/ to judge it: run .ci/browser.sh")
    assert page.serious_faults() == []
    page.value("location.hash = " + json.dumps(answers_at(2, LOSS)))
    page.until("document.querySelector('.samples table')")
    assert page.value("document.documentElement.scrollWidth") <= size.width
    assert page.serious_faults() == []
    page.close()
