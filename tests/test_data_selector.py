"""What a round trains on: shares exact, nothing twice, everything reproducible and explained."""

from collections import Counter

import pytest

from data_loader import Example, ExampleTable, Message
from data_selector import (
    Mining,
    Selection,
    Signals,
    allocate,
    failure_rate,
    select_first,
    select_next,
    walk,
)
from eval_result import TopicScore

TOPICS = {"easy": TopicScore(20, 1.0), "hard": TopicScore(20, 19.0)}


def examples(prefix: str, count: int, topics: tuple[str | None, ...] = ("easy", "hard")):
    return ExampleTable(
        Example(
            id=f"{prefix}{i}",
            messages=(Message("user", f"{prefix}{i}"), Message("assistant", "a")),
            source=prefix,
            line_no=i,
            topic=topics[i % len(topics)],
        )
        for i in range(count)
    )


TRAIN, POOL = examples("t", 10), examples("p", 200)


def next_round(
    previous: Selection, pool=POOL, topics=TOPICS, slots=40, replay=0.25, signals=None, **mining
) -> Selection:
    chosen = Mining(replay_share=replay, **mining)
    known = signals or Signals(topics)
    return select_next(previous, TRAIN, pool, known, chosen, num_slots=slots)


def test_first_round_walks_whole_passes_of_the_shuffle() -> None:
    first = select_first(TRAIN, num_slots=25, seed=3)
    ids = [pick.example_id for pick in first.picks]
    assert sorted(ids[:10]) == sorted(ids[10:20]) == sorted(e.id for e in TRAIN)
    assert ids[:10] != ids[10:20]
    assert first.train_cursor == 25
    assert ids == [p.example_id for p in select_first(TRAIN, num_slots=25, seed=3).picks]
    assert ids != [p.example_id for p in select_first(TRAIN, num_slots=25, seed=4).picks]


def test_the_walk_goes_on_where_the_cursor_stands() -> None:
    whole = [e.id for e in walk(TRAIN, 0, 0, 33)]
    parts = [e.id for start, n in ((0, 7), (7, 13), (20, 13)) for e in walk(TRAIN, 0, start, n)]
    assert parts == whole


def test_weighted_sources_take_turns_and_each_is_walked_whole() -> None:
    both = ExampleTable([*examples("a", 30), *examples("b", 5)])
    weights = {"a": 1.0, "b": 3.0, "gone": 2.0}
    whole = walk(both, 0, 0, 80, weights)
    parts = [e for start, n in ((0, 33), (33, 47)) for e in walk(both, 0, start, n, weights)]
    assert parts == whole
    for number in range(1, 81):
        drawn = sum(example.source == "b" for example in whole[:number])
        assert abs(drawn - 0.75 * number) <= 1
    of_b = [example.id for example in whole if example.source == "b"]
    assert all(len(set(of_b[i : i + 5])) == 5 for i in range(0, 60, 5))  # passes are whole
    of_a = [example.id for example in whole if example.source == "a"]
    assert len(set(of_a)) == len(of_a) == 20


def test_later_round_has_exact_shares_and_replay_continues_the_walk() -> None:
    first = select_first(TRAIN, num_slots=15, seed=0)
    second = next_round(first)
    assert second.shares == {"replay": 10, "pool": 30}
    assert len(second.picks) == 40
    replayed = Counter(p.example_id for p in second.picks if p.source == "replay")
    assert replayed == Counter(e.id for e in walk(TRAIN, 0, 15, 10))
    assert second.train_cursor == 25


def test_failing_topics_get_their_share_and_reasons_say_why() -> None:
    second = next_round(select_first(TRAIN, num_slots=40, seed=0))
    # smoothed failure rates 2/22 and 20/22 of 30 slots: 2.7 and 27.3
    assert second.topic_slots == {"easy": 3, "hard": 27}
    mined = [p for p in second.picks if p.source == "pool"]
    assert {p.reason for p in mined if p.topic == "hard"} == {
        "topic hard: 19 of 20 questions failed"
    }
    assert all(p.reason for p in second.picks)
    assert {p.weight for p in mined if p.topic == "hard"} == {round(20 / 22, 6)}


def test_pool_is_drawn_without_replacement_across_rounds_and_then_again() -> None:
    selection = select_first(TRAIN, num_slots=40, seed=0)
    drawn: list[str] = []
    passes = []
    for _ in range(7):
        selection = next_round(selection)
        drawn += [p.example_id for p in selection.picks if p.source == "pool"]
        passes.append(selection.pool_pass)
    # 7 rounds of 30 are 210 draws from 200: each once, and ten of them once more
    assert sorted(Counter(drawn).values()) == [1] * 190 + [2] * 10
    assert len(set(drawn[:180])) == 180
    assert passes == [0, 0, 0, 0, 0, 0, 1]


def test_a_topic_that_runs_out_leaves_its_slots_to_the_others() -> None:
    small = ExampleTable([*examples("p", 5, ("hard",)), *examples("q", 100, ("easy",))])
    second = next_round(select_first(TRAIN, num_slots=40, seed=0), pool=small)
    assert second.topic_slots == {"easy": 25, "hard": 5}


def test_without_topics_picks_are_uniform_and_say_so() -> None:
    plain = examples("p", 100, (None,))
    second = next_round(select_first(TRAIN, num_slots=40, seed=0), pool=plain, topics={})
    reasons = {p.reason for p in second.picks if p.source == "pool"}
    assert reasons == {"uniform: there are no topics to tell hard examples by"}
    assert len({p.example_id for p in second.picks if p.source == "pool"}) == 30


def test_without_a_pool_all_slots_come_from_the_training_file_by_topic() -> None:
    train = examples("t", 100)
    first = select_first(train, num_slots=40, seed=0)
    second = select_next(
        first, train, ExampleTable(), Signals(TOPICS), Mining(replay_share=0.25), num_slots=40
    )
    assert second.shares == {"train": 40}
    assert second.topic_slots == {"easy": 4, "hard": 36}
    assert len({p.example_id for p in second.picks}) == 40


def test_selection_survives_its_file_form_and_goes_on_the_same() -> None:
    second = next_round(select_first(TRAIN, num_slots=40, seed=0))
    restored = Selection.from_json(second.to_json())
    assert restored == second
    assert next_round(restored) == next_round(second)


def test_order_is_mixed_so_that_batches_hold_both_sources() -> None:
    second = next_round(select_first(TRAIN, num_slots=40, seed=0))
    batches = [second.picks[i : i + 8] for i in range(0, 40, 8)]
    assert sum(len({p.source for p in batch}) == 2 for batch in batches) >= 4


@pytest.mark.parametrize(
    ("rates", "available", "count", "expected"),
    [
        ({"a": 0.5, "b": 0.5}, {"a": 9, "b": 9}, 4, {"a": 2, "b": 2}),
        ({"a": 0.5, "b": 0.5}, {"a": 9, "b": 9}, 3, {"a": 2, "b": 1}),
        ({"a": 0.5, "b": 0.3, "c": 0.2}, {"a": 99, "b": 2, "c": 99}, 17, {"a": 11, "b": 2, "c": 4}),
        ({"a": 0.9, "b": 0.1}, {"a": 1, "b": 1}, 10, {"a": 1, "b": 1}),
        ({"a": 0.9, "b": 0.1}, {"a": 5, "b": 5}, 0, {"a": 0, "b": 0}),
    ],
)
def test_allocation(rates: dict, available: dict, count: int, expected: dict) -> None:
    assert allocate(rates, available, count) == expected


def test_failure_rates_are_smoothed() -> None:
    assert failure_rate(None) == 0.5
    assert failure_rate(TopicScore(1, 1.0)) == pytest.approx(2 / 3)
    assert failure_rate(TopicScore(100, 0.0)) == pytest.approx(1 / 102)
