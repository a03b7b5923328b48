"""What a round trains on: shares exact, nothing twice, everything reproducible and explained."""

import random
from collections import Counter

import pytest

from data_loader import clean_split
from data_selector import (
    CandidateLoss,
    Mining,
    Rows,
    Selection,
    Signals,
    allocate,
    candidates,
    failure_rate,
    learnable,
    noisiest,
    select_first,
    select_next,
)
from rows.contamination import EvalText, EvalTexts
from rows.examples import Example, ExampleTable, Message
from rows.shuffles import walk
from rows.similarity import Likeness
from scores.results import TopicScore

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
    return select_next(previous, Rows(TRAIN, pool), known, chosen, num_slots=slots)


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


@pytest.mark.parametrize("has_pool", [False, True])
@pytest.mark.parametrize("weights", [None, {"a": 1.0, "b": 2.5}])
def test_rounds_that_only_replay_are_one_round_in_parts(
    has_pool: bool, weights: dict[str, float] | None
) -> None:
    """The same rows in the same order, whatever was failed and measured in between."""
    train = ExampleTable([*examples("a", 7), *examples("b", 4)])
    rows = Rows(train, POOL if has_pool else ExampleTable(()), weights)
    whole = select_first(train, num_slots=52, seed=3, weights=weights)
    selection = select_first(train, num_slots=13, seed=3, weights=weights)
    picks = [pick.example_id for pick in selection.picks]
    for _ in range(3):
        losses = {"a1": CandidateLoss(5.0, 6.0), "p3": CandidateLoss(1.0, 6.0)}
        signals = Signals(TOPICS, losses, suspects=frozenset(["a2"]))
        selection = select_next(selection, rows, signals, Mining(replay_share=1), num_slots=13)
        assert selection.shares == {"replay": 13}
        picks += [pick.example_id for pick in selection.picks]
    assert picks == [pick.example_id for pick in whole.picks]
    assert selection.train_cursor == whole.train_cursor


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
    for _ in range(7):
        selection = next_round(selection, strategy="uniform")
        drawn += [p.example_id for p in selection.picks if p.source == "pool"]
    # 7 rounds of 30 are 210 draws from 200: each once, and ten of them once more
    assert sorted(Counter(drawn).values()) == [1] * 190 + [2] * 10
    assert len(set(drawn[:180])) == 180
    assert selection.times_drawn == Counter(drawn)


def test_a_topic_is_gone_through_again_and_weighs_less_then() -> None:
    small = ExampleTable([*examples("p", 18, ("hard",)), *examples("q", 100, ("easy",))])
    topics = {"easy": TopicScore(20, 9.0), "hard": TopicScore(20, 19.0)}
    selection = select_first(TRAIN, num_slots=40, seed=0)
    slots, drawn = [], Counter[str]()
    for _ in range(4):
        selection = next_round(selection, pool=small, topics=topics)
        slots.append(selection.topic_slots["hard"])
        picks = [p.example_id for p in selection.picks if p.topic == "hard" and p.weight]
        assert len(set(picks)) == len(picks)
        drawn.update(picks)
        assert max(drawn.values()) - min(drawn[small.id_of(i)] for i in range(18)) <= 1
    # of 30: 20/22 to 10/22, then 20/22/(1 + 18/18) to 10/22/(1 + 12/100), and so on
    assert slots[:2] == [18, 16]
    assert slots[1] > slots[2] > slots[3] > 9


def test_a_topic_that_does_not_move_weighs_less() -> None:
    first = select_first(TRAIN, num_slots=40, seed=0)
    second = next_round(first, signals=Signals(TOPICS, stalled={"hard": 2}), strategy="topics")
    # 2/22 to 20/22 * 0.3**2, of 30 slots
    assert second.topic_slots == {"easy": 16, "hard": 14}
    reasons = {p.reason for p in second.picks if p.topic == "hard" and p.source == "pool"}
    assert reasons == {"topic hard: 19 of 20 questions failed, and more of its rows did not help"}


def test_a_topic_that_cannot_fill_its_slots_leaves_them_to_the_others() -> None:
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
        first,
        Rows(train, ExampleTable()),
        Signals(TOPICS),
        Mining(replay_share=0.25),
        num_slots=40,
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


# --- strategies ----------------------------------------------------------------------------------


def losses_by_number(now: dict[int, float], before: float = 10.0) -> dict[str, CandidateLoss]:
    """Losses of pool rows by their position."""
    return {POOL.id_of(number): CandidateLoss(loss, before) for number, loss in now.items()}


def mined(selection: Selection) -> list[int]:
    found = [POOL.find(pick.example_id) for pick in selection.picks if pick.source == "pool"]
    assert None not in found
    return [number for number in found if number is not None]


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [
        (0.01, 10.0, 0.01 * 0.999**2),  # known
        (2.5, 10.0, 2.5 * 0.75**2),
        (9.0, 10.0, 9.0 * 0.1**2),  # hardly touched by training
        (10.0, 10.0, 0.0),
        (14.0, 10.0, 0.0),  # training made it less likely: probably wrong
        (1.0, 0.0, 0.0),
    ],
)
def test_what_can_be_learnt_of_a_row(now: float, before: float, expected: float) -> None:
    assert learnable(CandidateLoss(now, before)) == pytest.approx(expected)


def test_by_loss_rows_are_drawn_in_proportion_and_never_from_the_noisy_tail() -> None:
    # 60 rows with much to learn, 60 with a third of it, 60 known ones, 20 whose loss rose
    now = {i: 3.0 if i < 60 else 0.8 if i < 120 else 0.001 if i < 180 else 15.0 for i in range(200)}
    counts: Counter[str] = Counter()
    for seed in range(40):
        first = select_first(TRAIN, num_slots=40, seed=seed)
        signals = Signals(losses=losses_by_number(now))
        for number in mined(next_round(first, signals=signals, strategy="loss", noise_cap=0.1)):
            counts["much" if number < 60 else "some" if number < 120 else str(number // 60)] += 1
    assert counts["much"] + counts["some"] == 40 * 30
    share = learnable(CandidateLoss(3.0, 10)) / learnable(CandidateLoss(0.8, 10))
    assert 0.75 * share < counts["much"] / counts["some"] < share  # less, as they run out


def test_the_noisiest_rows_are_those_with_the_highest_losses() -> None:
    losses = losses_by_number({i: float(i) for i in range(20)})
    assert noisiest(losses, 0.1) == {POOL.id_of(19), POOL.id_of(18)}
    assert noisiest(losses, 0.0) == frozenset()
    assert noisiest(losses, 0.2, POOL) == {POOL.id_of(number) for number in (16, 17, 18, 19)}
    odd = losses_by_number({i: 9.0 + i if i % 2 else float(i) for i in range(20)})
    assert noisiest(odd, 0.2, POOL) == {POOL.id_of(number) for number in (16, 18, 17, 19)}
    assert noisiest(odd, 0.2) == {POOL.id_of(number) for number in (13, 15, 17, 19)}
    signals = Signals(losses=losses_by_number({i: 5.0 + i / 10 for i in range(40)}, before=100))
    first = select_first(TRAIN, num_slots=40, seed=0)
    second = next_round(first, signals=signals, strategy="loss", noise_cap=0.25)
    assert set(mined(second)) == set(range(30))


def test_suspects_and_rows_that_were_not_measured_are_not_drawn_as_hard() -> None:
    now = dict.fromkeys(range(50), 3.0)
    suspects = frozenset(POOL.id_of(number) for number in range(10))
    signals = Signals(losses=losses_by_number(now), suspects=suspects)
    first = select_first(TRAIN, num_slots=40, seed=0)
    second = next_round(first, signals=signals, strategy="loss", noise_cap=0.0)
    assert set(mined(second)) <= set(range(10, 50))
    assert second.suspects == tuple(sorted(suspects))
    assert Selection.from_json(second.to_json()) == second


def test_by_likeness_rows_are_drawn_in_proportion_with_the_question_named() -> None:
    likeness = {
        POOL.id_of(number): Likeness(0.8 if number < 50 else 0.2 if number < 150 else 0.0, "Why?")
        for number in range(200)
    }
    counts = Counter()
    for seed in range(40):
        first = select_first(TRAIN, num_slots=40, seed=seed)
        second = next_round(first, signals=Signals(likeness=likeness), strategy="similar")
        assert {p.reason for p in second.picks if p.source == "pool"} <= {
            "0.80 like the failed question 'Why?'",
            "0.20 like the failed question 'Why?'",
        }
        counts.update("like" if number < 50 else "less" for number in mined(second))
    assert 1.5 < counts["like"] / counts["less"] < 2.0  # 50 x 0.8 to 100 x 0.2, as they run out


def test_the_hybrid_takes_topics_by_failures_and_leaves_out_the_noisy_tail_of_each() -> None:
    # even positions are easy, odd ones hard; the losses of the hard ones are higher throughout
    now = {i: (5.0 if i % 2 else 0.1) + i / 1000 for i in range(200)}
    for seed in range(10):
        first = select_first(TRAIN, num_slots=40, seed=seed)
        signals = Signals(TOPICS, losses_by_number(now))
        second = next_round(first, signals=signals, noise_cap=0.3)
        assert second.topic_slots == {"easy": 3, "hard": 27}
        assert max(mined(second)) < 140
    (pick,) = [p for p in second.picks if POOL.find(p.example_id) == mined(second)[0]]
    assert pick.reason.endswith(f"questions failed; loss {now[mined(second)[0]]:.2f} a token")


def test_where_too_few_rows_were_measured_the_others_are_drawn_too() -> None:
    signals = Signals(TOPICS, losses_by_number({i: float(i) for i in range(10)}))
    first = select_first(TRAIN, num_slots=40, seed=0)
    numbers = mined(next_round(first, signals=signals, noise_cap=0.4))
    assert len(set(numbers)) == 30
    assert set(numbers) >= {0, 1, 2, 3, 4, 5}  # of each topic two of five are its tail
    assert not set(numbers) & {6, 7, 8, 9}


def test_new_rows_have_their_own_share() -> None:
    first = select_first(TRAIN, num_slots=40, seed=0)
    second = next_round(first, new_share=0.25)
    reasons = Counter(pick.reason.partition(":")[0] for pick in second.picks)
    assert (reasons["replay"], reasons["new"]) == (10, 10)
    # smoothed failure rates 2/22 and 20/22 of the 20 slots that are left: 1.8 and 18.2
    assert (reasons["topic easy"], reasons["topic hard"]) == (2, 18)


def test_candidates_are_drawn_by_chance_anew_in_each_round() -> None:
    second = next_round(select_first(TRAIN, num_slots=40, seed=0), strategy="loss")
    third = next_round(second, strategy="loss")
    found = [candidates(one, POOL, Signals(), Mining("loss"), 20) for one in (second, third)]
    assert [len(set(one)) for one in found] == [160, 160]  # 8 for each slot
    assert found[0] != found[1]
    assert found[0] == candidates(second, POOL, Signals(), Mining("loss"), 20)
    drawn = {POOL.find(example_id) for example_id in second.times_drawn}
    assert 15 < len(drawn & set(found[0])) < 30  # some of the 30 that were drawn before
    assert len(candidates(second, POOL, Signals(), Mining("similar"), 30)) == 200
    assert candidates(second, POOL, Signals(), Mining("loss"), 0) == []
    suspects = frozenset(POOL.id_of(one) for one in range(50))
    without = candidates(second, POOL, Signals(suspects=suspects), Mining("loss"), 15)
    assert not set(without) & set(range(50))


def test_candidates_are_shared_among_the_topics_as_the_slots_are() -> None:
    second = next_round(select_first(TRAIN, num_slots=40, seed=0), strategy="topics")
    assert second.topic_slots == {"easy": 3, "hard": 27}
    found = candidates(second, POOL, Signals(TOPICS), Mining(num_candidates=40), 10)
    # of 40: 2/22/(1 + 3/100) to 20/22/(1 + 27/100)
    assert Counter(POOL.topic_of(one) for one in found) == {"easy": 4, "hard": 36}


def test_no_row_is_drawn_twice_in_a_round_while_others_may_be_drawn() -> None:
    small = examples("p", 20)
    for seed in range(20):
        first = select_first(TRAIN, num_slots=40, seed=seed)
        second = next_round(first, pool=small, slots=20, replay=0.2, new_share=0.4)
        drawn = [pick.example_id for pick in second.picks if pick.source == "pool"]
        assert len(set(drawn)) == len(drawn) == 16
    losses = {small.id_of(number): CandidateLoss(1.0) for number in (0, 1)}
    second = next_round(first, pool=small, slots=40, replay=0, signals=Signals(losses=losses))
    assert set(Counter(pick.example_id for pick in second.picks).values()) == {2}


@pytest.mark.parametrize("strategy", ["loss", "hybrid"])
def test_the_noisy_tail_is_not_drawn_where_nothing_can_be_learnt_either(strategy: str) -> None:
    now = {i: 12.0 if i < 100 else 11.0 for i in range(200)}  # all rose: nothing can be learnt
    signals = Signals(TOPICS, losses_by_number(now), suspects=frozenset([POOL.id_of(150)]))
    first = select_first(TRAIN, num_slots=40, seed=0)
    second = next_round(first, signals=signals, strategy=strategy, noise_cap=0.5)
    assert set(mined(second)) <= set(range(100, 200)) - {150}


def test_shares_that_come_to_one_leave_no_hard_rows() -> None:
    for slots in (1, 5, 13, 15):
        first = select_first(TRAIN, num_slots=40, seed=0)
        second = next_round(first, slots=slots, replay=0.5, new_share=0.5)
        assert {pick.reason.partition(":")[0] for pick in second.picks} <= {"replay", "new"}


@pytest.mark.parametrize("strategy", ["uniform", "topics", "similar", "loss", "hybrid"])
def test_no_strategy_ever_picks_what_an_evaluation_asks(strategy: str) -> None:
    """Rounds over random data with planted questions: every pick is of the cleaned rows."""
    for seed in range(15):
        rng = random.Random(seed)
        questions = [f"what is the value of item number {i}" for i in range(10)]
        eval_texts = EvalTexts(EvalText("t", q) for q in questions)
        rows = []
        for i in range(120):
            planted = rng.random() < 0.3
            question = rng.choice(questions) if planted else f"tell me about subject {i} please"
            shape = rng.choice(["{}", "{}?", "Please: {}!", "  {}  and why"])
            messages = (
                Message("user", shape.format(question.upper())),
                Message("assistant", f"x{i}"),
            )
            rows.append(Example("", messages, "f", i, rng.choice(["a", "b", None])))
        split = clean_split(ExampleTable(rows[:40]), ExampleTable(rows[40:]), eval_texts)
        losses = {
            one: CandidateLoss(rng.uniform(0, 9), 8.0)
            for one in split.pool.ids
            if rng.random() < 0.8
        }
        likeness = {one: Likeness(rng.random(), "q") for one in split.pool.ids}
        signals = Signals({"a": TopicScore(5, 4.0), "b": TopicScore(5, 1.0)}, losses, likeness)
        selection = select_first(split.train, num_slots=16, seed=seed)
        for _ in range(6):
            chosen = Mining(strategy=strategy, new_share=0.2)  # pyright: ignore[reportArgumentType]
            selection = select_next(
                selection, Rows(split.train, split.pool), signals, chosen, num_slots=16
            )
            assert len(selection.picks) == 16
            for pick in selection.picks:
                table = split.train if pick.example_id in split.train else split.pool
                position = table.find(pick.example_id)
                assert position is not None
                hit = eval_texts.find_in(pick.example_id, table[position].turns)
                assert hit is None or hit.kind == "similar"
