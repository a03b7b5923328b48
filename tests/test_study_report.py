"""The report of a study: three files that say the same, whatever names and numbers it is given."""

from __future__ import annotations

import csv
import hashlib
import io
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import REPO
from page_reading import Page, assert_inert, outside_of_code, tables_in
from scores.intervals import Interval
from studies.findings.analysis import analyse
from studies.findings.findings import Findings
from studies.findings.outcome import StudyOutcome
from studies.reports.report import write_report
from studies.reports.report_trials import Typed
from studies.reports.report_words import minus
from studies.reports.results_csv import (
    AFTER_VARIABLES,
    ALL_TASKS,
    BASELINE,
    BEFORE_VARIABLES,
    PAID,
    guarded,
    results_csv,
)
from study_records import (
    HOSTILE,
    TASKS,
    Shape,
    findings_of,
    measured_result,
    not_run,
    study_outcome,
)

COMMANDS = ("python study.py run STUDY", "python study.py report STUDY")
TYPED = Typed("/somewhere", COMMANDS, "bin/inspect", Path("STUDY"))
HEADINGS = [
    "Answer",
    "Question and hypothesis",
    "Arms",
    "Curves",
    "Paired differences",
    "Groups",
    "Diminishing returns and other claims",
    "Trials not run, dropped or failed",
    "What the gate would have done",
    "The winner and the sealed test",
    "History",
    "Remarks",
    "Tokens and cost",
    "How to reproduce",
]
EMPTY = Shape(ranks=(), has_prompt_arm=False)
SHAPES = {
    "usual": Shape(),
    "empty": EMPTY,
    "one arm": Shape(ranks=(8,), seeds=1, has_prompt_arm=False),
    "one task": Shape(num_tasks=1, seeds=1),
    "64 arms": Shape(ranks=range(1, 65), seeds=1, num_tasks=1, num_questions=12),
    "unknown intervals": Shape(has_intervals=False, num_questions=1),
    "equal scores": Shape(is_equal=True),
    "hostile names": Shape(names=HOSTILE),
}


class Written:
    """A report, read back."""

    def __init__(self, folder: Path, outcome: StudyOutcome, findings: Findings) -> None:
        files = write_report(folder, outcome, findings, TYPED)
        self.html = files.html.read_text(encoding="utf-8")
        self.markdown = files.markdown.read_text(encoding="utf-8")
        with files.csv.open(encoding="utf-8", newline="") as file:
            self.rows = list(csv.DictReader(file))
        self.page = assert_inert(self.html)
        self.tables = list(tables_in(self.markdown))


USUAL = Shape()


def written(folder: Path, shape: Shape = USUAL, **changes: object) -> Written:
    outcome = study_outcome(shape, **changes)
    return Written(folder, outcome, findings_of(outcome, shape))


@pytest.mark.parametrize("is_analysed", [False, True])
@pytest.mark.parametrize("kind", SHAPES)
def test_every_kind_of_study_has_a_report(kind: str, is_analysed: bool, tmp_path: Path) -> None:
    outcome = study_outcome(SHAPES[kind])
    findings = analyse(outcome) if is_analysed else findings_of(outcome, SHAPES[kind])
    report = Written(tmp_path, outcome, findings)
    assert report.page.text_of("h2") == HEADINGS
    assert re.findall(r"^## (.*)$", report.markdown, re.MULTILINE) == HEADINGS
    assert len(report.tables) == len(report.page.named("table"))
    texts = [text.strip() for _, text in report.page.texts]
    assert not {"nan", "None", "inf", "-0.0000"} & set(texts)
    cells = [text for name, text in report.page.texts if name in ("td", "th")]
    assert len(cells) == len(report.page.named("td")) + len(report.page.named("th")), "no blank"


def test_both_renderings_hold_the_same_cells(tmp_path: Path) -> None:
    report = written(tmp_path)
    in_html = [text for name, text in report.page.texts if name in ("td", "th")]
    in_markdown = [
        cell.replace("\\", "")
        for rows in report.tables
        for number, row in enumerate(rows)
        if number != 1
        for cell in row
    ]
    assert in_html == in_markdown


def test_hostile_names_stand_in_the_report_as_plain_text(tmp_path: Path) -> None:
    report = written(
        tmp_path,
        SHAPES["hostile names"],
        question=HOSTILE[0],
        hypothesis=HOSTILE[1],
        name=HOSTILE[2],
        warnings=list(HOSTILE),
        budget_sentence=HOSTILE[0],
    )
    assert HOSTILE[0] in report.page.text_of("th")
    assert f"Question: {HOSTILE[0]}" in report.page.text_of("p")
    assert not re.search(r"(?<!\\)[<`]", outside_of_code(report.markdown))
    arms = {row["arm"] for row in report.rows}
    assert HOSTILE[1] in arms and f"'{HOSTILE[3]}" in arms


def caption_of(report: Written, start: str) -> str:
    return next(text for _, text in report.page.texts if text.startswith(start))


def test_the_table_of_arms_has_every_number(tmp_path: Path) -> None:
    report = written(tmp_path)
    titles, _, *rows = report.tables[0]
    best = dict(zip(titles, rows[0], strict=True))
    assert best["arm"] == "lora_rank=64"
    assert best["score (0 to 1)"] == "0.7361" and best["95% interval"] == "[0.64, 0.84]"
    assert best["group"] == "ab"
    assert best["minus base model"] == "+0.6083"
    assert best["95% interval of it"] == "[+0.49, +0.70]"
    assert best["p (Holm)"] == "0.06"
    assert best["tokens"] == "43,680" and best["cost (USD)"] == r"\$0.04"
    assert best["domain (n=60)"] == "0.7667"
    control = dict(zip(titles, rows[-1], strict=True))
    assert control["minus base model"] == "control" and control["p (Holm)"] == "n/a"
    # What all share is said once, and is no column.
    caption = caption_of(report, "Arms, best first")
    assert "n is 120" in caption and "seeds of each trained arm: 3" in caption
    assert "intervals of trained arms are of the setting" in caption
    assert not {"n (questions)", "seeds", "the interval is of", "note"} & set(titles)
    assert len(titles) <= 14


def test_what_rows_share_is_said_once_in_both_renderings(tmp_path: Path) -> None:
    report = written(tmp_path)
    pairs = next(rows for rows in report.tables if rows[0][:2] == ["one", "minus other"])
    assert "in words" not in pairs[0] and "n (questions in both)" not in pairs[0]
    for text in (report.markdown, "".join(text for _, text in report.page.texts)):
        assert re.search(r"All pairs of arms. Alike: n is 120; ", text.replace("\\", ""))
    (opener,) = (text for text in report.page.text_of("summary") if text.startswith("All pairs"))
    assert re.fullmatch(r"All pairs of arms \(\d+ rows\)", opener)


def test_a_point_has_a_price_where_its_gain_is_told_apart(tmp_path: Path) -> None:
    found = findings_of(study_outcome(USUAL), USUAL)
    sure = [replace(one, is_told_apart=True) for one in found.against_control]
    one = [replace(sure[0], is_told_apart=False), *sure[1:]]
    report = Written(tmp_path, study_outcome(USUAL), replace(found, against_control=one))
    titles, _, *rows = report.tables[0]
    prices = {row[0]: dict(zip(titles, row, strict=True)) for row in rows}
    assert prices[sure[0].one]["tokens per point"] == "unsure"
    assert prices[sure[1].one]["tokens per point"] not in ("unsure", "n/a")


def test_the_winner_is_said_to_be_no_more_than_the_best_of_these_numbers(tmp_path: Path) -> None:
    outcome = study_outcome(USUAL)
    won = outcome.arms[0].trials[0].run_id
    outcome = replace(outcome, winner=won, winner_sentence=f"The winner is {won}.")
    report = Written(tmp_path, outcome, analyse(outcome))
    alike = f"The winner is {won}. It was chosen by its score, and its arm cannot be told apart"
    assert alike in report.markdown


def test_columns_that_differ_are_shown(tmp_path: Path) -> None:
    outcome = study_outcome(USUAL)
    found = findings_of(outcome, USUAL)
    fewer = replace(found.arms[0], num_seeds=1, is_of_setting=False, note="2 of 3 trials not done")
    report = Written(tmp_path, outcome, replace(found, arms=[fewer, *found.arms[1:]]))
    titles, _, first, *_ = report.tables[0]
    row = dict(zip(titles, first, strict=True))
    assert row["seeds"] == "1" and row["the interval is of"] == "this checkpoint"
    assert f"- {fewer.name}: 2 of 3 trials not done." in report.markdown.replace("\\", "")


def test_what_is_unknown_is_called_so(tmp_path: Path) -> None:
    outcome = study_outcome(Shape(seeds=1))
    trial = outcome.arms[0].trials[0]
    bare = replace(trial, status="missing", result=None, checkpoint=None, cost_usd=None, curve=())
    arms = [replace(outcome.arms[0], trials=[bare]), *outcome.arms[1:]]
    outcome = replace(outcome, arms=arms)
    report = Written(tmp_path, outcome, findings_of(outcome, SHAPES["unknown intervals"]))
    titles, _, first, *_ = report.tables[0]
    row = dict(zip(titles, first, strict=True))
    assert row["95% interval"] == row["p (Holm)"] == "unknown"
    missing = next(rows for rows in report.tables if rows[0][3] == "status" and len(rows[0]) == 6)
    assert missing[2][3:] == ["not run", "no reason is recorded", "not run"]
    every = next(rows for rows in report.tables if rows[0][-1] == "weights (sampler path)")
    of_it = dict(zip(every[0], every[2], strict=True))
    assert of_it["status"] == of_it["score (0 to 1)"] == "not run"
    assert of_it["cost (USD)"] == of_it["weights (sampler path)"] == "unknown"
    assert "3 of these 5 cost" in report.markdown


def test_intervals_of_few_seeds_are_said_to_be_of_checkpoints(tmp_path: Path) -> None:
    for seeds, of_what in ((1, "this checkpoint"), (2, "these 2 checkpoints")):
        report = written(tmp_path, Shape(seeds=seeds))
        caption = caption_of(report, "Arms, best first")
        assert f"intervals of trained arms are of {of_what}" in caption


def test_trials_without_a_result_are_listed_with_the_reason(tmp_path: Path) -> None:
    outcome = study_outcome()
    first, *others = outcome.arms[0].trials
    dropped = replace(first, status="dropped", why="Behind after round 1.")
    failed = replace(others[0], status="failed", why="", result=None)
    arm = replace(outcome.arms[0], trials=[dropped, failed, *others[1:]])
    outcome = replace(outcome, arms=[arm, *outcome.arms[1:]])
    more = [not_run(failed.run_id, "The disk was full."), not_run("run_099", "")]
    findings = findings_of(outcome, not_run=more)
    report = Written(tmp_path, outcome, findings)
    (rows,) = (rows for rows in report.tables if rows[0][4:5] == ["why"])
    one, other, third = rows[2:]
    assert one[:2] == ["run_000", "lora_rank=8"]
    assert one[3] == "dropped before the end" and one[4] == "Behind after round 1."
    assert re.fullmatch(r"0\.\d{4} \[0\.\d\d, 0\.\d\d\], n=120", one[5])
    assert other[3:] == ["failed", "The disk was full.", "not run"]
    assert third[0] == "run_099" and third[4] == "no reason is recorded"


def test_the_sealed_test_is_told_of_whom_it_was_opened_on(tmp_path: Path) -> None:
    sealed = measured_result(0.6, random.Random(5), Shape(), 2)
    sentence = "The winner is run_009 (lora_rank=64)."
    named: dict[str, Any] = {"winner": "run_009", "winner_sentence": sentence}
    report = written(tmp_path, **named, sealed=sealed, sealed_of="run_009")
    told = "The score of run_009 on the sealed test, asked of it alone, is"
    assert sentence in report.markdown
    assert f"{told} {sealed.score:.4f} [" in report.markdown
    assert "a test is opened once" not in report.markdown
    later = written(tmp_path, **named, sealed=sealed, sealed_of="run_002").markdown
    assert "The score of run_002 on the sealed test" in later
    assert "It was opened when run_002 was ahead, and a test is opened once." in later
    assert "has no sealed test" in written(tmp_path, **named).markdown
    unopened = written(tmp_path, has_sealed_test=True).markdown
    assert "The sealed test was not opened." in unopened and "No winner is named" in unopened


def test_the_rest_is_told(tmp_path: Path) -> None:
    report = written(tmp_path, budget_sentence="The study stopped at its budget.")
    for words in (
        "**Of 6 arms lora_rank=64 has the highest score.**",
        "lora_rank=64 scored highest. The others are worse.",
        "The hypothesis is undecided. Read as: the score rises with lora_rank.",
        "- diminishing with lora_rank: 9 seeds",
        "- 2026-01-02T03:04:05Z: The arm prompt was added.",
        "- The study stopped at its budget.",
        "12 trials and 1 arm without training used 100,800 tokens trained, 65,000 read and 12,000 "
        "sampled, 177,800 in all, in 18.4 minutes. 12 of these 13 cost",
        f"sha256 of experiment.yaml: {'ab' * 32}.",
        "```\npython study.py run STUDY\npython study.py report STUDY\n```",
        "```\nbin/inspect view --log-dir STUDY/eval_results\n```",
        "Every command is given in /somewhere.",
        "Round 1: 0.4000 \\< 0.80. It would have gone on",
    ):
        assert words in report.markdown, words


def test_a_folder_of_logs_is_quoted_for_the_shell(tmp_path: Path) -> None:
    report = written(tmp_path, logs_dir="my logs; rm x")
    assert "bin/inspect view --log-dir 'STUDY/my logs; rm x'" in report.markdown
    assert "inspect view" not in written(tmp_path, logs_dir=None).markdown


def test_the_winners_weights_lie_in_a_folder_that_is_named(tmp_path: Path) -> None:
    outcome = study_outcome(USUAL)
    arm = outcome.arms[0]
    trial = replace(arm.trials[0], run_dir="results/run_000")
    arms = [replace(arm, trials=[trial, *arm.trials[1:]]), *outcome.arms[1:]]
    won = replace(outcome, arms=arms, winner="run_000", winner_sentence="The winner is run_000.")
    told = Written(tmp_path, won, findings_of(won)).markdown
    assert f"weights are {trial.checkpoint}" in told
    assert "```\nSTUDY/results/run_000\nSTUDY/results/run_000/eval_report.md\n```" in told
    assert "eval_report" not in written(tmp_path).markdown


def test_words_are_explained_where_they_first_stand(tmp_path: Path) -> None:
    told = written(tmp_path, gate="the default gate, 0.85").markdown
    arms = told[told.index("## Arms") : told.index("| arm |")]
    for words in ("The control is the arm that all others", "Holm's method raises it", "a letter"):
        assert words in arms
    assert "an interval may leave 0 out while p does not tell two arms apart" in arms
    assert "here that is told and not done: the default gate, 0.85." in told


def test_a_difference_is_turned_whole() -> None:
    one = findings_of(study_outcome()).pairs[0]
    turned = minus(one, one.one)
    assert (turned.one, turned.other, turned.mean) == (one.other, one.one, -one.mean)
    assert one.interval is not None
    assert turned.interval == Interval(-one.interval.high, -one.interval.low)
    assert minus(turned, one.one) == turned and minus(turned, one.other) == one


# --- curves ---------------------------------------------------------------------------------------


def titles_of(report: Written) -> list[str]:
    return [text for text in report.page.text_of("b") if text.startswith("Score over")]


def test_only_what_varies_is_drawn(tmp_path: Path) -> None:
    report = written(tmp_path)
    assert titles_of(report) == [
        "Score over LoRA parameters, trained",
        "Score over tokens trained on",
    ]
    drawn = re.findall(r"<svg.*?</svg>", report.html, re.DOTALL)[0]
    for text in ("41.5k", "rank 8", "332k", "rank 64", "LoRA parameters, trained (log axis)"):
        assert f">{text}</text>" in drawn
    one = written(tmp_path, SHAPES["one arm"])
    assert titles_of(one) == ["Score over tokens trained on"]
    nothing = written(tmp_path, EMPTY)
    assert "Nothing that can be drawn varies" in nothing.markdown


def test_learning_rates_and_other_numbers_have_curves_of_their_own(tmp_path: Path) -> None:
    outcome = study_outcome()
    arms = []
    for number, arm in enumerate(outcome.arms[:4]):
        rate = (1e-4, 1e-3)[number % 2]
        params = {"lora_rank": 8, "learning_rate": rate, "batch_size": 4 * (1 + number // 2)}
        trials = [
            replace(t, learning_rate=rate, num_lora_params=None, curve=()) for t in arm.trials
        ]
        arms.append(replace(arm, params=params, trials=trials))
    outcome = replace(outcome, arms=arms)
    report = Written(tmp_path, outcome, findings_of(outcome))
    assert titles_of(report) == ["Score over learning rate", "Score over batch_size"]
    drawn = re.findall(r"<svg.*?</svg>", report.html, re.DOTALL)[0]
    assert ">learning rate (log axis)</text>" in drawn
    assert ">batch_size=4</text>" in drawn and ">batch_size=8</text>" in drawn


@pytest.mark.parametrize("odd", [10**400, float("nan"), float("inf"), True, "8", [8], None])
def test_a_value_that_is_no_number_of_an_axis_is_not_drawn(odd: object, tmp_path: Path) -> None:
    outcome = study_outcome()
    values = [1, 2, 4, odd]
    arms = [
        replace(arm, params={"batch_size": value})
        for arm, value in zip(outcome.arms, values, strict=False)
    ]
    outcome = replace(outcome, arms=arms)
    report = Written(tmp_path, outcome, findings_of(outcome))
    drawn = re.findall(r"<svg.*?</svg>", report.html, re.DOTALL)[1]
    assert ">batch_size</text>" in drawn
    assert len(re.findall('class="marker', drawn)) == 3 + 1  # and one in the legend


def test_no_line_joins_an_arm_that_was_dropped_early(tmp_path: Path) -> None:
    outcome = study_outcome()
    trials = [replace(trial, status="dropped", why="Behind.") for trial in outcome.arms[0].trials]
    arms = [replace(outcome.arms[0], trials=trials), *outcome.arms[1:]]
    outcome = replace(outcome, arms=arms)
    report = Written(tmp_path, outcome, analyse(outcome))
    drawn = re.findall(r"<svg.*?</svg>", report.html, re.DOTALL)[0]
    assert ">dropped early</text>" in drawn and ">trained arms</text>" in drawn
    (way,) = re.findall(r'<path d="([^"]*)" class="way', drawn)
    assert way.count("L") == 2
    titles, _, *rows = report.tables[0]
    dropped = next(row for row in rows if row[0] == "lora_rank=8")
    of_it = dict(zip(titles, dropped, strict=True))
    assert of_it["minus base model"] == "not compared"
    assert of_it["group"] == of_it["p (Holm)"] == of_it["tokens per point"] == "n/a"


def test_more_series_than_can_be_told_apart_are_not_drawn(tmp_path: Path) -> None:
    report = written(tmp_path, SHAPES["64 arms"])
    assert "The first 12 of 64 series are drawn; the table has all." in report.markdown


# --- results.csv ----------------------------------------------------------------------------------


def test_the_csv_has_a_row_for_each_task_and_one_for_the_score(tmp_path: Path) -> None:
    report = written(tmp_path)
    assert list(report.rows[0]) == [*BEFORE_VARIABLES, "lora_rank", "prompt", *AFTER_VARIABLES]
    assert len(report.rows) == (13 + 1) * 3
    assert [row["task"] for row in report.rows[:3]] == [ALL_TASKS, *TASKS.values()]
    whole, domain, facts = report.rows[:3]
    parts = (float(domain["score"]) + float(facts["score"])) / 2
    assert float(whole["score"]) == pytest.approx(parts)
    assert 0 <= float(whole["low"]) < float(whole["score"]) < float(whole["high"]) <= 1
    assert (whole["lora_rank"], whole["seed"], whole["status"]) == ("8", "0", "done")
    assert (whole["n"], domain["n"], whole["num_truncated"]) == ("120", "60", "4")
    assert (whole["train_tokens"], whole["minutes"]) == ("8400", "1.5")
    assert whole["checkpoint"] == "tinker://run_000/sampler_weights/round_02"
    prompt = report.rows[-4]
    assert prompt["prompt"] == "Answer in one word." and prompt["cost_usd"] == ""


def test_differences_can_be_reckoned_from_the_csv_alone(tmp_path: Path) -> None:
    outcome = study_outcome(USUAL)
    findings = analyse(outcome)
    report = Written(tmp_path, outcome, findings)
    wholes = [row for row in report.rows if row["task"] == ALL_TASKS]
    (began,) = (row for row in wholes if row["run_id"] == BASELINE)
    assert began["arm"] == findings.control == "base model"
    assert (began["seed"], began["round"], began["status"]) == ("", "0", "done")
    assert not any(began[name] for name in AFTER_VARIABLES[PAID]) and not began["lora_rank"]
    gain = findings.against_control[0]
    scores = [float(row["score"]) for row in wholes if row["arm"] == gain.one]
    assert sum(scores) / len(scores) - float(began["score"]) == pytest.approx(gain.mean)
    # An arm that is the base model stands there itself.
    base = replace(outcome.arms[-1], name="base", params={})
    csv_text = results_csv(replace(outcome, arms=[*outcome.arms[:-1], base]))
    assert BASELINE not in csv_text


def test_answers_that_were_cut_off_have_a_column_where_there_are_any(tmp_path: Path) -> None:
    outcome = study_outcome(USUAL)
    titles, _, *rows = Written(tmp_path, outcome, analyse(outcome)).tables[0]
    counts = {row[0]: dict(zip(titles, row, strict=True)) for row in rows}
    assert counts["lora_rank=64"]["cut off or malformed"] == "12 of 360"
    assert counts["base model"]["cut off or malformed"] == "4 of 120"
    assert "failed" not in titles
    none = [replace(one, num_flawed=0, num_failed=0) for one in analyse(outcome).arms]
    one = [replace(none[0], num_failed=3), *none[1:]]
    titles, _, first, second, *_ = Written(
        tmp_path, outcome, replace(analyse(outcome), arms=one)
    ).tables[0]
    assert "cut off or malformed" not in titles
    assert [row[titles.index("failed")] for row in (first, second)] == ["3 of 360", "none"]


def test_pairs_that_are_not_trained_are_of_these_weights(tmp_path: Path) -> None:
    outcome = study_outcome(USUAL)
    report = Written(tmp_path, outcome, analyse(outcome))
    pairs = next(rows for rows in report.tables if rows[0][:2] == ["one", "minus other"])
    of = {frozenset(row[:2]): row[pairs[0].index("is of")] for row in pairs[2:]}
    assert of[frozenset(("prompt", "base model"))] == "these weights"
    assert of[frozenset(("lora_rank=64", "base model"))] == "the settings"


def test_a_trial_without_a_result_has_one_row_and_no_score(tmp_path: Path) -> None:
    outcome = study_outcome(Shape(ranks=(8,), seeds=1, has_prompt_arm=False))
    trial = replace(outcome.arms[0].trials[0], status="failed", result=None, baseline=None)
    outcome = replace(outcome, arms=[replace(outcome.arms[0], trials=[trial])])
    (row,) = csv.DictReader(io.StringIO(results_csv(outcome)))
    assert (row["task"], row["status"], row["score"], row["n"]) == (ALL_TASKS, "failed", "", "")


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@x", "'@x"),
        (" \t=1", "'=1"),
        ("\r\n=1", "'=1"),
        ("\u200b=1", "'=1"),
        ("\uff1d1", "'\uff1d1"),
        ("a=1", "a=1"),
        ('a,"b"', 'a,"b"'),
    ],
)
def test_no_text_is_a_formula(text: str, cell: str) -> None:
    assert guarded(text) == cell


def test_variables_keep_their_values_and_columns(tmp_path: Path) -> None:
    values = {
        "learning_rate": -0.5,
        "=x": "=1",
        "'=x": True,
        "task": ["a", 1],
        "task (variable)": None,
    }
    outcome = study_outcome(Shape(ranks=(8,), seeds=1), variables=dict.fromkeys(values, ()))
    arm = replace(outcome.arms[0], params=values)
    rows = list(csv.reader(io.StringIO(results_csv(replace(outcome, arms=[arm])))))
    header, first = rows[0], dict(zip(rows[0], rows[1], strict=True))
    assert len(set(header)) == len(header)
    assert first["learning_rate (variable)"] == "-0.5" and first["learning_rate"] == "0.003"
    assert first["'=x"] == "'=1" and first["'=x (variable)"] == "true"
    assert first["task (variable)"] == '["a", 1]' and first["task (variable) (variable)"] == ""


def test_the_page_explains_every_column() -> None:
    text = (REPO / "docs" / "studies.md").read_text(encoding="utf-8")
    _, _, table = text.partition("| column of `results.csv` |")
    named = []
    for line in table.splitlines()[2:]:
        if not line.startswith("|"):
            break
        first = line.split("|")[1].strip()
        named += re.findall(r"`([^`]+)`", first) or [first]
    assert named == [*BEFORE_VARIABLES, "*the variables*", *AFTER_VARIABLES]


def test_a_page_of_a_report_has_a_heading_for_each_link(tmp_path: Path) -> None:
    page: Page = written(tmp_path).page
    assert page.text_of("a") == ["Skip the contents", *HEADINGS]


def test_the_sample_is_a_report_of_the_example_as_it_is() -> None:
    example = REPO / "examples" / "lora_rank_with_eval"
    sample = {name: (example / "sample" / name).read_text() for name in SAMPLE}
    experiment = hashlib.sha256((example / "experiment.yaml").read_bytes()).hexdigest()
    assert all(experiment in sample[name] for name in ("report.md", "report.html"))
    assert re.findall(r"^## (.*)$", sample["report.md"], re.MULTILINE) == HEADINGS
    headline = re.search(r"^\*\*(.*)\*\*$", sample["report.md"], re.MULTILINE)
    told = re.search(
        r"<!-- study-answer -->\n(.*)<!-- /study-answer -->",
        (REPO / "docs" / "studies.md").read_text(),
        re.DOTALL,
    )
    assert headline is not None and told is not None
    assert " ".join(told[1].replace("> ", "").split()) == headline[1]
    assert str(REPO) not in "".join(sample.values())
    rows = list(csv.DictReader(sample["results.csv"].splitlines()))
    assert [row["lora_rank"] for row in rows if row["task"] == "(all)" and row["seed"] == "42"][
        -4:
    ] == ["8", "16", "32", "64"]


SAMPLE = ("report.html", "report.md", "results.csv")
