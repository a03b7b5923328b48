"""What curves are called: a table of shapes, and real runs that were made to go wrong."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from scores.diagnosis import Curves, HeldOutPoint, diagnose
from scores.results import (
    EvalResult,
    HeldOutRow,
    Measured,
    SampleResult,
    eval_result,
    held_out_loss,
    task_result,
)
from test_loop import Workspace, row

VOCAB_SIZE = 128_256  # a blind guess has 11.76 nats
SMALL = 512  # and 6.24


def sample(topic: str, number: int, score: float) -> SampleResult:
    name = f"t/{topic}{number}"
    return SampleResult(name, topic, "q?", ("x",), "y", score, False, False, None)


def result(
    round_no: int,
    topics: Mapping[str, tuple[int, int]] | None = None,
    nll: Sequence[float] | None = None,
) -> EvalResult:
    """Topics as (right, asked); held-out losses of rows with 10 loss tokens each."""
    samples = [
        sample(topic, i, float(i < right))
        for topic, (right, asked) in (topics or {"all": (8, 10)}).items()
        for i in range(asked)
    ]
    rows = [HeldOutRow(f"r{i}", None, 10 * one, 10, 30) for i, one in enumerate(nll or [])]
    losses = (held_out_loss("nll:v", rows, 100),) if rows else ()
    return eval_result(round_no, None, Measured((task_result("t", samples),), losses), {})


def said(
    losses: Sequence[float],
    *results: EvalResult,
    points: Sequence[HeldOutPoint] = (),
    vocab_size: int = VOCAB_SIZE,
) -> str:
    *lineage, last = results or (result(0), result(1))
    return diagnose(Curves(losses, points, 0.003, 16, vocab_size), lineage, last).sentence


FALLING = [4.0, 3.5, 3.0, 2.5, 2.0, 1.5, 1.0, 0.8]
TOO_HIGH = "the learning rate 0.003 is too high, or rows of this round are bad."


@pytest.mark.parametrize(
    ("losses", "part"),
    [
        (
            FALLING,
            "The training loss went from 3.750 to 0.900 a token in this round, means of its first "
            "and last 2 steps (certainty has 0, a blind guess 11.76).",
        ),
        ([3.0, 2.0, 9.0], "The training loss is 3.000 a token ("),  # too few steps for more
        (FALLING[::-1], "rose from 0.900 to 3.750 a token: the learning rate 0.003 is too"),
        ([2.0, 2.1, 2.5, 9.0, 30.0], "is exploding, from 2.000 to 30.000"),
        ([2.0, 5.0, 1.0, 4.0], "went from"),  # noise
        ([2843.0, 2400.0, 1900.0, 1367.0], "is exploding, at "),  # though it falls
        ([90.0, 60.0, 40.0, 30.0], "went from"),  # rows that contradict what was learned
        ([0.01, 0.02, 0.03, 0.04] * 2, "went from"),  # tiny losses do not explode
        ([4.0, 4.1] * 8, "stayed at 4.050 a token for 16 steps: the learning rate 0.003 or"),
        ([4.0, 4.1] * 3, "went from 4.000 to 4.100"),  # too few steps to say
        ([3.0, 5.0] * 8, "went from"),  # too noisy to say
        ([0.3, 0.31] * 8, "went from"),  # low and unchanged is not stuck high
    ],
)
def test_training_losses(losses: Sequence[float], part: str) -> None:
    assert part in said(losses)


def moved(first: str, last: str, num: int = 1) -> str:
    means = f", means of its first and last {num} steps" if num > 1 else ""
    return f"The training loss went from {first} to {last} a token in this round{means}"


def ended(first: str, last: str, num_last: int, num_first: int = 1) -> str:
    """With a bad batch in the last quarter, of which the end is then no mean."""
    former = f", the former the mean of its first {num_first} steps" if num_first > 1 else ""
    return moved(first, last) + f"{former}, the latter the median of its last {num_last} steps"


def exploded(first: str, last: str) -> str:
    return f"The training loss is exploding, from {first} to {last} a token"


LATTER = moved("5.000", "4.000") + ", the latter the mean of its last 3 steps"
GUESS = ", where a blind guess has 6.24"


@pytest.mark.parametrize(
    ("losses", "sentence"),
    [
        # the end is far above the start or a blind guess, however the way there looks
        ([5.7, 17.1, 304.8, 1531.8, 401.8, 517.9, 426.4, 106.8], exploded("5.700", "401.800")),
        ([0.3] * 3 + [2.0, 9.0, 0.4, 6.0, 5.9, 6.1], exploded("0.300", "6.000")),  # 20 times
        ([3.0, 2.9, 2.8, *[60.0, 55.0] * 4], exploded("3.000", "57.500")),  # a spike that stays
        ([1.5, *[6.1, 5.9] * 10], exploded("1.500", "5.980")),  # all in the first step
        ([2.5, *[6.1, 5.9] * 10], exploded("2.500", "5.980")),  # and less far
        ([0.5] * 380 + [50.0] * 20, exploded("0.500", "50.000")),  # in the last steps of many
        ([2.0, 5.0, 2.5, 9.0, 4.0, 16.0, 7.0, 25.0], exploded("2.000", "16.000")),  # swinging
        ([9.0, 2.0, 2.0, 30.0, 31.0, 32.0], exploded("2.000", "32.000")),  # after one bad batch
        ([5.0, 300.0], exploded("5.000", "300.000")),  # no step after the first contradicts it
        ([5.0, 300.0, 400.0], exploded("5.000", "400.000")),
        ([5.0, 300.0, 500.0, 400.0], exploded("5.000", "400.000")),
        # a round that an exploded one came before
        ([400.0], "The training loss is exploding, at 400.000 a token"),
        ([400.0, 420.0, 400.0] * 3, "The training loss is exploding, at 400.000 a token"),
    ],
)
def test_a_round_that_ends_far_above_its_start_is_called_exploding(
    losses: Sequence[float], sentence: str
) -> None:
    last = float(sentence.split(" a token")[0].split()[-1])
    guess = GUESS if last > 6.24 else ""
    assert said(losses, vocab_size=SMALL) == f"{sentence}{guess}: {TOO_HIGH}"


@pytest.mark.parametrize(
    ("losses", "sentence"),
    [
        (FALLING, moved("3.750", "0.900", 2)),
        ([5.0, 4.9, 60.0, 20.0, *[4.0] * 8], LATTER + ", with a spike to 60.000"),
        # one bad batch at the end is not the end
        ([5.0, 5.0, 300.0], "The training loss is 5.000 a token, with a spike to 300.000"),
        ([4.0, 5.0, 4.5, 30.0], ended("4.000", "4.500", 2) + ", with a spike to 30.000"),
        ([4.0, 5.0, 4.5, 4.0, 30.0], ended("4.000", "4.000", 2) + ", with a spike to 30.000"),
        ([*FALLING, 30.0], ended("3.750", "1.000", 4, 2) + ", with a spike to 30.000"),
        (
            [*[5.0, 5.1, 1.0] * 13, 100.0],
            ended("3.830", "5.000", 5, 10) + ", with a spike to 100.000",
        ),
        ([2.0, 5.0, 1.0, 4.0] * 5, moved("2.800", "3.200", 5)),  # around a level
        ([5.0, 7.0, 4.5, 8.0] * 4, moved("6.125", "6.125", 4)),  # around a blind guess
        # rows that contradict what was learned begin above a blind guess, and fall
        ([20.0, 18.0, 16.0, 14.0, 13.5, 13.0], moved("20.000", "13.000") + GUESS),
        # low whatever it was: 3 of 4 tokens would be drawn right, and some batch has a new row
        ([0.01] * 10 + [0.3] * 10, moved("0.010", "0.300", 5)),
        # short rounds
        ([5.0], "The training loss is 5.000 a token"),
        ([7.0], "The training loss is 7.000 a token" + GUESS),
        ([5.0, 4.0], "The training loss is 4.500 a token"),
        ([5.0, 4.0, 4.5], "The training loss is 4.500 a token"),
        ([5.0, 4.0, 3.0, 3.5, 3.2], moved("5.000", "3.200")),
    ],
)
def test_a_round_whose_end_is_normal_is_not_called_exploding(
    losses: Sequence[float], sentence: str
) -> None:
    scale = "" if GUESS in sentence else " (certainty has 0, a blind guess 6.24)"
    assert said(losses, vocab_size=SMALL) == f"{sentence}{scale}."


def test_a_flat_loss_is_stuck_unless_the_first_step_raised_it() -> None:
    near_a_guess = said([6.3, 6.2, 6.35, 6.25] * 3, vocab_size=SMALL)
    assert "stayed at 6.275 a token for 12 steps, where a blind guess has 6.24" in near_a_guess
    assert "is too low" in near_a_guess
    assert "is too low" not in said([3.5, *[6.1, 5.9] * 10], vocab_size=SMALL)


def of_four_rows(rng: random.Random) -> float:
    """Noise of a batch: the mean of four exponential losses, a deviation of a half."""
    return rng.gammavariate(4, 1 / 4)


def of_tenths(rng: random.Random) -> float:
    return 1 + rng.gauss(0, 0.1)


def of_thirds(rng: random.Random) -> float:
    return max(0.01, 1 + rng.gauss(0, 0.3))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 5, 8, 40])
@pytest.mark.parametrize(
    ("noise", "begin", "fall", "most_called"),
    [
        (of_tenths, 2.0, 0.4, 0),  # of 100
        (of_thirds, 2.0, 0.4, 3),
        (of_four_rows, 2.0, 0.4, 5),
        (of_four_rows, 0.3, 0.0, 3),
        (of_tenths, 6.2, 0.1, 0),  # untrained, at a blind guess
        (of_four_rows, 2.0, 0.0, 12),  # where half the rounds rise: a sure trend is one in 20
    ],
)
def test_noise_between_batches_is_rarely_called_a_problem(
    noise: Callable[[random.Random], float],
    begin: float,
    fall: float,
    most_called: int,
    num_steps: int,
    seed: int,
) -> None:
    rng = random.Random(seed)
    called = 0
    for _ in range(100):
        levels = [begin * (1 - fall * step / max(1, num_steps - 1)) for step in range(num_steps)]
        sentence = said([level * noise(rng) for level in levels], vocab_size=SMALL)
        called += "too high" in sentence or ("too low" in sentence and fall == 0.4)
    assert called <= most_called


def test_a_held_out_loss_that_rises_beyond_noise_is_overfitting() -> None:
    base = result(0, nll=[4.0, 4.2, 3.9, 4.1, 4.0])
    best = result(1, nll=[2.0, 2.2, 1.9, 2.1, 2.0])
    worse = result(2, nll=[2.3, 2.5, 2.2, 2.4, 2.3])
    noisy = result(2, nll=[2.8, 1.9, 1.6, 2.2, 2.4])
    hardly = result(2, nll=[2.01, 2.21, 1.91, 2.11, 2.01])
    sentence = said(FALLING, base, best, worse)
    assert "held-out loss of nll:v rose to 2.340 a token from 2.040 after round 1" in sentence
    assert "overfitting" in sentence
    for other in (noisy, hardly):
        assert "overfitting" not in said(FALLING, base, best, other)
    assert "overfitting" not in said(FALLING, base, best)
    # after a rollback to the baseline, round 1 is not what round 2 came from
    assert "overfitting" not in said(FALLING, base, worse)


def test_too_few_rows_are_not_judged() -> None:
    base, after = result(0, nll=[2.0, 2.1]), result(1, nll=[9.0, 9.1])
    assert "overfitting" not in said(FALLING, base, after, points=[HeldOutPoint("nll:v", 1, 1.0)])


def test_a_rise_inside_the_round_is_seen_against_its_lowest_point() -> None:
    base, after = result(0, nll=[4.0] * 5), result(1, nll=[2.2] * 5)
    points = [HeldOutPoint("nll:v", 4, 1.9), HeldOutPoint("nll:v", 8, 2.1)]
    assert "from 1.900 after 4 steps: overfitting" in said(FALLING, base, after, points=points)
    other = [HeldOutPoint("nll:w", 4, 1.0)]
    assert "overfitting" not in said(FALLING, base, after, points=other)


def test_an_exploding_run_is_not_called_overfitting() -> None:
    base, after = result(0, nll=[2.0] * 5), result(1, nll=[9.0] * 5)
    assert said(FALLING[::-1], base, after).startswith("The training loss rose")
    assert "overfitting" not in said(FALLING[::-1], base, after)


NO_GAIN = "no more questions were answered right than before training in "


def test_topics_in_which_nothing_was_gained_are_named_beside_what_was_learned() -> None:
    base = result(0, {"rivers": (0, 8), "sums": (1, 8), "few": (0, 4), "known": (8, 8)})
    after = result(1, {"rivers": (0, 8), "sums": (7, 8), "few": (0, 4), "known": (8, 8)})
    course = "The training loss went from 3.750 to 0.900 a token in this round, means of its first "
    course += "and last 2 steps (certainty has 0, a blind guess 11.76); the form of the answers "
    course += "was learned, but "
    assert said(FALLING, base, after) == f"{course}{NO_GAIN}rivers (0 of 8)."
    fewer = result(1, {"rivers": (0, 8), "sums": (0, 8), "few": (0, 4), "known": (8, 8)})
    assert said(FALLING, base, fewer).endswith(
        f"{NO_GAIN}rivers (0 of 8), sums (0 of 8, 1 before)."
    )
    nothing = result(1, {"rivers": (0, 8), "sums": (1, 8), "few": (0, 4)})
    assert said(FALLING, base, nothing).endswith(f"{NO_GAIN}any of 2 topics.")
    many = dict.fromkeys([f"topic{i}" for i in range(6)], (0, 5))
    sentence = said(FALLING, result(0, many), result(1, {**many, "topic5": (5, 5)}))
    assert "topic0 (0 of 5), topic1 (0 of 5)" in sentence
    assert sentence.endswith("and 2 topics more.")
    # of one step, or of a loss that stays, it is not known that a form was learned
    for flat in ([4.0], [4.0, 4.1, 3.9, 4.0]):
        assert "form" not in said(flat, base, after)
        assert f"; {NO_GAIN}rivers" in said(flat, base, after)


def test_topics_that_fell_since_the_round_before_are_named_though_the_score_rose() -> None:
    base = result(0, {"bills": (0, 10), "sums": (0, 10)})
    before = result(1, {"bills": (6, 10), "sums": (1, 10)})
    after = result(2, {"bills": (0, 10), "sums": (9, 10)})
    fell = "fewer were right than after round 1 in bills (0 of 10, 6 before)"
    assert said(FALLING, base, before, after).endswith(f"{NO_GAIN}bills (0 of 10); {fell}.")
    fewer = result(2, {"bills": (1, 10), "sums": (9, 10)})  # 5 of 10 lost in one of two
    assert "fewer were right" not in said(FALLING, base, before, fewer)
    # the more topics there are, the sooner one of them falls as far by chance
    others = {f"topic{i}": (5, 10) for i in range(18)}
    first = result(1, {"bills": (6, 10), "sums": (1, 10), **others})
    second = result(2, {"bills": (0, 10), "sums": (9, 10), **others})
    assert "fewer were right" not in said(FALLING, result(0), first, second)
    # the first round's weights come from the baseline, of which the other clause tells
    began = result(0, {"bills": (6, 10), "sums": (1, 10)})
    assert "fewer were right" not in said(FALLING, began, after)
    other = result(2, {"new": (0, 10)})
    assert "fewer were right" not in said(FALLING, base, before, other)


def test_what_is_found_is_named_by_kind_too() -> None:
    base, nothing = result(0, {"rivers": (0, 8)}), result(1, {"rivers": (0, 8)})
    for losses, results, kinds in (
        (FALLING, (result(0), result(1, {"all": (9, 10)})), ()),
        (FALLING, (base, nothing), ("no_gain",)),
        (FALLING[::-1], (base, nothing), ("too_high", "no_gain")),
        ([4.0, 4.1] * 8, (base, nothing), ("stuck", "no_gain")),
        (
            FALLING,
            (result(0, nll=[2.0] * 5), result(1, {"all": (9, 10)}, [9.0] * 5)),
            ("overfitting",),
        ),
    ):
        *lineage, last = results
        assert diagnose(Curves(losses, (), 0.003, 16, VOCAB_SIZE), lineage, last).kinds == kinds


def test_repeats_of_a_question_are_one_question() -> None:
    def repeated(round_no: int) -> EvalResult:
        samples = [replace(sample("rivers", 1, 0.0), repeat=i) for i in range(1, 6)]
        return eval_result(round_no, None, Measured((task_result("t", samples),)), {})

    assert "rivers" not in said(FALLING, repeated(0), repeated(1))


# --- real runs ------------------------------------------------------------------------------------


def diagnosis_of(workspace: Workspace, **changes: object) -> str:
    assert workspace.run("run", max_rounds=1, eval_tasks=["qa:one.jsonl"], **changes) == 0
    sentence = workspace.store("run").diagnosis(1)
    assert sentence is not None
    return sentence


@pytest.fixture
def workspace(tmp_path: Path, llama_dir: Path) -> Workspace:
    made = Workspace(tmp_path, llama_dir)
    made.write_rows("one.jsonl", [{"question": "Which word stands at place 1?", "answer": "x"}])
    return made


def test_a_rate_that_is_next_to_nothing_is_diagnosed(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    sentence = diagnosis_of(workspace, learning_rate=1e-9, min_lr=0.0, steps_per_round=40)
    assert "stayed at" in sentence
    assert "the learning rate 9.96e-10 or lora_rank 4 is too low" in sentence
    assert f"  {sentence}\n" in capsys.readouterr().err
    assert sentence in (workspace.folder / "run" / "eval_report.md").read_text()


@pytest.mark.trains
def test_a_rate_that_is_far_too_high_is_diagnosed(workspace: Workspace) -> None:
    """Where the loss goes is chaos; that it ends far above a blind guess is not."""
    sentence = diagnosis_of(workspace, learning_rate=1.0, steps_per_round=8, warmup_steps=0)
    assert sentence.startswith("The training loss is exploding, from ")
    assert ", where a blind guess has " in sentence
    assert "the learning rate 1 is too high" in sentence


@pytest.mark.trains
def test_learning_the_rows_by_heart_is_diagnosed(workspace: Workspace) -> None:
    """Held-out rows with other answers than the training rows: their loss falls, then rises."""
    workspace.write_rows("train.jsonl", [row(i) for i in range(4)])
    workspace.write_rows("val.jsonl", [row(i) for i in range(300, 310)])
    sentence = diagnosis_of(
        workspace,
        val_file="val.jsonl",
        steps_per_round=40,
        learning_rate=0.003,
        evaluation={"max_tokens": 4, "held_out_every_steps": 5},
    )
    assert "overfitting" in sentence
    points = workspace.store("run").held_out_points(1)
    assert [point.step for point in points] == [5, 10, 15, 20, 25, 30, 35]
    lowest = min(points, key=lambda point: point.nll)
    assert points[1].nll > 1.2 * lowest.nll < points[-1].nll / 1.2  # it falls, then rises
    assert f"from {lowest.nll:.3f} after {lowest.step} steps" in sentence
