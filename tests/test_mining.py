"""What is known of rows before they are chosen: topics, likeness, losses, suspects."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from conftest import pairs
from data_selector import CandidateLoss, MeasuredLosses
from loop.rounds.signals import Suspicions, likeness_of, stalled_topics, topics_of
from rows.examples import Example, ExampleTable, Message
from scores.diagnosis import TopicReport
from scores.results import EvalResult, Measured, SampleResult, eval_result, task_result
from test_loop import TOPICS, Workspace, row
from trainer_with_eval import main


def rows(*pairs: tuple[str, str | None]) -> ExampleTable:
    return ExampleTable(
        Example("", (Message("user", asked), Message("assistant", "a")), "f", number, topic)
        for number, (asked, topic) in enumerate(pairs)
    )


def result(*samples: tuple[str, str | None, float]) -> EvalResult:
    made = [
        SampleResult(f"t/{i}", topic, question, ("x",), "y", score, False, False, None)
        for i, (question, topic, score) in enumerate(samples)
    ]
    return eval_result(1, None, Measured((task_result("t", made),)), {})


CAPITALS = [f"What is the capital of land{i}?" for i in range(40)]
SUMS = [f"Add the numbers {i} and {i + 1}" for i in range(40)]


def test_topics_are_the_rows_own_where_both_have_them() -> None:
    table = rows(("q", "a"), ("r", "b"))
    topics = topics_of(table, result(("q", "a", 0.0)), 0)
    assert topics.rows is table
    assert topics.scores(result(("q", "a", 0.0), ("r", "b", 1.0)))["a"].num_failures == 1


@pytest.mark.parametrize("own", [None, "given"])
def test_topics_are_found_in_the_words_where_rows_or_questions_have_none(own: str | None) -> None:
    table = rows(*((asked, own) for asked in [*CAPITALS, *SUMS]))
    asked = result(
        ("What is the capital of Spain?", None, 0.0), ("Add the numbers 3 and 9", None, 1.0)
    )
    topics = topics_of(table, asked, 0)
    of_capitals = {topics.rows.topic_of(i) for i in range(40)}
    of_sums = {topics.rows.topic_of(i) for i in range(40, 80)}
    assert not of_capitals & of_sums
    assert any("capital" in (topic or "") for topic in of_capitals)
    scores = topics.scores(asked)
    (failed,) = [topic for topic, score in scores.items() if score.num_failures]
    assert failed in of_capitals
    again = topics_of(table, asked, 0)
    assert [again.rows.topic_of(i) for i in range(80)] == [
        topics.rows.topic_of(i) for i in range(80)
    ]


@pytest.mark.parametrize("texts", [["2 + 3"], ["?", "?!", "?"], ["same"] * 50, ["a b", "c d"] * 9])
def test_topics_of_hardly_any_words(texts: list[str]) -> None:
    table = rows(*((f"{text} {number % 1}", None) for number, text in enumerate(texts)))
    topics = topics_of(table, result(("2 + 2", None, 0.0), ("ü", None, 1.0)), 0)
    assert all(topics.rows.topic_of(i) for i in range(len(table)))
    assert sum(score.n for score in topics.scores(result(("x", None, 0.0))).values()) == 1


def test_likeness_names_the_failed_question_that_a_row_is_likest_to() -> None:
    table = rows(*((asked, None) for asked in [*CAPITALS[:5], *SUMS[:5]]))
    asked = result(
        ("What is the capital of Spain?", None, 0.0), ("Add the numbers 3 and 9", None, 1.0)
    )
    likeness = likeness_of(table, range(10), asked)
    capital, other = likeness[table.id_of(0)], likeness[table.id_of(7)]
    assert capital.question == "What is the capital of Spain?"
    assert 1 >= capital.score > 0.3 > other.score
    assert likeness_of(table, range(10), result(("q", None, 1.0))) == {}  # nothing was failed


def test_suspects_are_unlikely_under_every_checkpoint_at_least_two() -> None:
    first = {f"r{i}": CandidateLoss(1.0) for i in range(30)}
    first |= {name: CandidateLoss(9.0) for name in ("a", "b", "c")}
    second = {**first, "b": CandidateLoss(0.5), "d": CandidateLoss(9.0)}
    third = {**second, "b": CandidateLoss(9.0)}

    def suspects(*rounds: tuple[int, dict[str, CandidateLoss]]) -> frozenset[str]:
        return Suspicions().among(
            [MeasuredLosses(n, checkpoint, one) for n, (checkpoint, one) in enumerate(rounds)]
        )

    assert suspects((1, first)) == frozenset()
    assert suspects((1, first), (2, second)) == {"a", "c"}  # b was learnt, d asked once
    assert "b" not in suspects((1, first), (2, second), (3, third))
    # after a rollback the same checkpoint is asked again, which tells nothing new
    assert suspects((1, first), (1, first)) == frozenset()


def test_what_is_unlikely_is_told_within_each_topic() -> None:
    """All of a topic that is not learnt yet has high losses, and is not wrong for that."""
    table = rows(*((f"q{i}", "known" if i % 2 else "unknown") for i in range(60)))
    losses = {table.id_of(i): CandidateLoss((0.1 if i % 2 else 6.0) + i / 1000) for i in range(60)}
    both = [MeasuredLosses(n, n, losses) for n in (1, 2)]
    assert {table.find(one) for one in Suspicions().among(both)} == {48, 50, 52, 54, 56, 58}
    expected = {54, 56, 58, 55, 57, 59}
    assert {table.find(one) for one in Suspicions().among(both, table)} == expected


def report(score: float, change: float, num_added: int, topic: str = "t") -> TopicReport:
    return TopicReport(topic, score, None, 10, change, num_added)


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([report(0.2, 0.0, 3), report(0.2, -0.1, 1)], {"t": 2}),
        ([report(0.2, 0.0, 3), report(0.3, 0.1, 3)], {}),  # it moves
        ([report(1.0, 0.0, 3)], {}),  # there is nothing to move
        ([report(0.2, 0.0, 0)], {}),  # nothing was tried
        ([report(0.2, 0.0, 3)] * 3 + [report(0.2, 0.0, 0)], {"t": 2}),  # it is tried again
        ([report(0.2, 0.0, 3), report(0.2, 0.0, 3, "other")], {"t": 1, "other": 1}),
    ],
)
def test_topics_that_do_not_move(reports: list[TopicReport], expected: dict[str, int]) -> None:
    assert stalled_topics([[one] for one in reports]) == expected


# --- in the loop ----------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["uniform", "similar", "loss", "hybrid"])
def test_every_strategy_runs_and_is_recorded(workspace: Workspace, strategy: str) -> None:
    mining = {"pool_file": "pool.jsonl", "strategy": strategy, "num_candidates": 20}
    assert workspace.run("run", mining=mining, max_rounds=3) == 0
    store = workspace.store("run")
    measured = [event["round"] for event in store.events("losses_measured")]
    assert measured == ([2, 3] if strategy in ("loss", "hybrid") else [])
    for number, start, losses in store.measured_losses():
        assert start == number - 1
        assert len(losses) == 20
        chosen = json.loads(
            (workspace.folder / f"run/selections/round_{number:02d}.json").read_text()
        )
        picked = {pick["example_id"] for pick in chosen["picks"] if pick["source"] == "pool"}
        assert picked <= set(losses)
        assert all(loss.now > 0 for loss in losses.values())
        assert all((loss.before or 0) > 0 for loss in losses.values()) == (strategy == "loss")
    if measured:
        # under the untouched model both rounds find the same losses, under trained weights others
        (*_, first), (*_, second) = store.measured_losses()
        shared = sorted(set(first) & set(second))
        assert [first[one].before for one in shared] == [second[one].before for one in shared]
        assert [first[one].now for one in shared] != [second[one].now for one in shared]
        spent = sum(event["num_prompt_tokens"] for event in store.events("losses_measured"))
        assert store.usage().prompt_tokens > spent > 0


@pytest.mark.parametrize(
    ("strategy", "pool"), pairs(["loss", "hybrid", "similar"], ["pool.jsonl", None])
)
def test_a_pool_that_is_used_up_is_measured_again(
    workspace: Workspace, strategy: str, pool: str | None
) -> None:
    workspace.write_rows("pool.jsonl", [row(i) for i in range(100, 109)])  # 9 slots of a round
    mining = {"pool_file": pool, "strategy": strategy, "replay_share": 0.25}
    assert workspace.run("run", mining=mining, max_rounds=4) == 0
    assert workspace.store("run").num_rounds == 4
    for one in workspace.store("run").measured_losses():
        assert len(one.losses) == (10 if pool is None else 9)


def test_a_run_killed_after_losses_were_measured_chooses_the_same(workspace: Workspace) -> None:
    mining = {"pool_file": "pool.jsonl", "strategy": "hybrid"}
    for name in ("whole", "cut"):
        assert workspace.run(name, mining=mining) == 0
    ledger = workspace.folder / "cut/ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if json.loads(line)["type"] == "losses_measured")
    ledger.write_text("".join(lines[: at + 1]))
    assert main(["--resume", str(workspace.folder / "cut")]) == 0
    whole, cut = (workspace.store(name).selection(2) for name in ("whole", "cut"))
    assert whole is not None and cut is not None
    assert replace(cut) == replace(whole)
    assert len(list(workspace.store("cut").events("losses_measured"))) == 1


@pytest.mark.parametrize("pool", ["pool.jsonl", None])
def test_topics_are_found_where_the_data_name_none(workspace: Workspace, pool: str | None) -> None:
    plain = [{k: v for k, v in row(i).items() if k != "topic"} for i in range(100, 200)]
    workspace.write_rows("pool.jsonl", plain)
    if pool is None:
        workspace.write_rows("train.jsonl", plain)
    mining = {"pool_file": pool, "replay_share": 0.25}
    assert workspace.run("run", mining=mining) == 0
    selection = workspace.store("run").selection(2)
    assert selection is not None
    drawn = [pick for pick in selection.picks if pick.source != "replay"]
    assert all(pick.topic for pick in drawn)
    assert all(pick.reason.startswith(("topic ", "no question of this topic")) for pick in drawn)


def test_each_round_says_how_its_topics_stand(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    assert workspace.run("run") == 0
    store = workspace.store("run")
    second, selection = store.topics(2), store.selection(2)
    result, before = store.result(2), store.result(1)
    assert second is not None and selection is not None
    assert result is not None and before is not None
    assert [one.topic for one in second] == ["names", "sums"]
    for one in second:
        assert one.n == 5
        assert one.interval is not None and one.interval.low <= one.score <= one.interval.high
        assert one.num_added == selection.added_by_topic[one.topic]
        scores = [
            [sample.score for sample in of_round.samples if sample.topic == one.topic]
            for of_round in (result, before)
        ]
        assert one.score == pytest.approx(sum(scores[0]) / 5)
        assert one.change == pytest.approx(sum(scores[0]) / 5 - sum(scores[1]) / 5)
    told = capsys.readouterr().err
    lines = [line for line in told.splitlines() if "weakest" in line]
    assert lines[0] == "  weakest topics (right answers): names 0 of 5, sums 0 of 5"
    assert len(lines) == 2
    report = (workspace.folder / "run/eval_report.md").read_text()
    assert "## Topics of round 1, the weakest first" in report
    assert "| questions | change on the baseline | examples added |" in report


def test_the_report_says_which_round_a_change_of_topics_is_on(workspace: Workspace) -> None:
    """The one that the weights came from, which is the baseline of the first round alone."""
    (workspace.folder / "rising.py").write_text(
        "calls = []\n"
        "def grade(answer, targets):\n"
        "    calls.append(answer)\n"
        "    return (len(calls) - 1) // 10 / 4\n"
    )
    questions = [
        {"question": f"Which one rises at {i}?", "answer": "x", "topic": topic,
         "grader": "rising.py@grade"}
        for i in range(10)
        for topic in [TOPICS[i % 2]]
    ]  # fmt: skip
    workspace.write_rows("rising.jsonl", questions)
    assert workspace.run("run", eval_tasks=["qa:rising.jsonl"]) == 0
    report = (workspace.folder / "run/eval_report.md").read_text()
    assert "## Topics of round 2, the weakest first" in report
    assert "| questions | change on round 1 | examples added |" in report
    assert report.count("| +0.25 |") == len(TOPICS)
