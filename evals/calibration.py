"""How well the model's stated probabilities fit the truth of plain statements.

The model gives the probability that a statement is true; every statement comes with a false twin
(`metadata["cluster"]`), so that half are true and always saying one thing gains nothing. The score
of a sample is 1 - (p - y)^2, with y = 1 for a true statement: one minus its Brier score. Saying 0.5
to everything scores 0.75, so read the mean together with `accuracy_at_half`. An answer without a
readable probability scores 0 and is counted; no probability is made up for it.

This measures what the model says, not the probabilities of its tokens, and on easy, well-known
facts. With 10 bins and some hundred answers the calibration error has a noise of several points and
is never below 0 by chance; compare it between checkpoints on the same questions only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import (
    Metric,
    SampleScore,
    Score,
    Scorer,
    Target,
    mean,
    metric,
    scorer,
    stderr,
)
from inspect_ai.solver import TaskState, generate

PAIRS_FILE = Path(__file__).resolve().parent / "calibration.jsonl"
NUM_BINS = 10
INSTRUCTION = (
    "How likely is it that this statement is true? Give one line in the form "
    '"Probability: P", where P is a number from 0 (certainly false) to 1 (certainly true).'
)


class Forecast(NamedTuple):
    """A stated probability that something is true, and whether it is (1 or 0)."""

    probability: float
    truth: int


# --- reading the answer ---------------------------------------------------------------------------

# A number, perhaps in percent, that is not the first part of a fraction, a range or a longer one.
_NUMBER = (
    r"(\d+(?:\.\d+)?|\.\d+)((?: ?%)?+)(?![\w/%]|[.,:-]\d)(?!\s*(?:-|/|to|and|or|out of)\s*\.?\d)"
)
_STATED = re.compile(rf"probability[^\d\n.%-]{{0,20}}{_NUMBER}", re.IGNORECASE)
_BARE = re.compile(rf"{_NUMBER}\.?", re.IGNORECASE)


def read_probability(answer: str) -> float | None:
    """Read the last stated probability; None where there is none from 0 to 1.

    It stands after the word "probability", or the whole answer is nothing but a number.
    """
    text = answer.replace("*", "").strip()
    matches = list(_STATED.finditer(text))
    match = matches[-1] if matches else _BARE.fullmatch(text)
    if match is None:
        return None
    probability = float(match[1]) / (100 if match[2] else 1)
    return probability if probability <= 1 else None


# --- metrics --------------------------------------------------------------------------------------


def brier(forecasts: Sequence[Forecast]) -> float:
    """Mean squared distance of probability and truth: 0 is best, 0.25 is always saying 0.5."""
    return sum((f.probability - f.truth) ** 2 for f in forecasts) / len(forecasts)


def calibration_error(forecasts: Sequence[Forecast], num_bins: int = NUM_BINS) -> float:
    """Expected calibration error: the mean over forecasts of |mean p - share of true| in their bin.

    Bins of equal width over the probability of "true", as in Naeini et al. 2015 (AAAI, "Obtaining
    Well Calibrated Probabilities Using Bayesian Binning"). Guo et al. 2017 (ICML, "On Calibration
    of Modern Neural Networks") bin the confidence in the predicted class instead. A bin holds its
    lower edge; the last also holds 1.
    """
    bins: list[list[Forecast]] = [[] for _ in range(num_bins)]
    for forecast in forecasts:
        # Rounding, since 0.29 * 100 is 28.999999999999996.
        index = int(round(forecast.probability * num_bins, 9))
        bins[min(index, num_bins - 1)].append(forecast)
    gaps = (abs(sum(f.probability for f in one) - sum(f.truth for f in one)) for one in bins)
    return sum(gaps) / len(forecasts)


def half_accuracy(forecasts: Sequence[Forecast]) -> float:
    """Share of forecasts on the right side of 0.5; exactly 0.5 counts half."""
    right = (
        0.5 if f.probability == 0.5 else float((f.probability > 0.5) == (f.truth == 1))
        for f in forecasts
    )
    return sum(right) / len(forecasts)


def forecasts_of(scores: Sequence[SampleScore]) -> list[Forecast]:
    """Take the forecasts out of the scores; answers without a probability have none.

    With several epochs Inspect keeps the details of the first, so these are the first epoch's.
    """
    details = [one.score.metadata or {} for one in scores]
    return [
        Forecast(one["probability"], one["truth"])
        for one in details
        if one.get("probability") is not None
    ]


def _over_forecasts(function: Callable[[Sequence[Forecast]], float]) -> Metric:
    def compute(scores: list[SampleScore]) -> float:
        forecasts = forecasts_of(scores)
        return function(forecasts) if forecasts else float("nan")

    return compute


@metric
def brier_score() -> Metric:
    """Brier score of the answers with a probability; NaN where there are none."""
    return _over_forecasts(brier)


@metric
def expected_calibration_error() -> Metric:
    """Expected calibration error of the answers with a probability; NaN where there are none."""
    return _over_forecasts(calibration_error)


@metric
def accuracy_at_half() -> Metric:
    """Share of the answers with a probability that are on the right side of 0.5; NaN for none."""
    return _over_forecasts(half_accuracy)


@metric
def num_without_probability() -> Metric:
    """Number of answers without a readable probability."""

    def compute(scores: list[SampleScore]) -> int:
        return len(scores) - len(forecasts_of(scores))

    return compute


# --- task -----------------------------------------------------------------------------------------


def load_samples(path: Path = PAIRS_FILE) -> list[Sample]:
    """Read the pairs; each makes a true and a false statement."""
    samples: list[Sample] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        pair = json.loads(line)
        for truth in ("true", "false"):
            samples.append(
                Sample(
                    id=f"{pair['id']}-{truth}",
                    input=f"Statement: {pair[truth]}\n\n{INSTRUCTION}",
                    target=truth,
                    metadata={"topic": pair["topic"], "cluster": pair["id"]},
                )
            )
    return samples


@task
def calibration() -> Task:
    """Ask for the probability of every statement."""
    return Task(
        dataset=MemoryDataset(load_samples(), name="calibration"),
        solver=generate(),
        scorer=one_minus_brier(),
        version=1,
    )


@scorer(
    metrics=[
        mean(),
        stderr(cluster="cluster"),
        brier_score(),
        expected_calibration_error(),
        accuracy_at_half(),
        num_without_probability(),
    ]
)
def one_minus_brier() -> Scorer:
    """Score 1 - (p - y)^2, and 0 where no probability can be read."""

    async def score(state: TaskState, target: Target) -> Score:
        answer = state.output.completion
        truth = int(target.text == "true")
        probability = read_probability(answer)
        value = 0.0 if probability is None else 1 - (probability - truth) ** 2
        return Score(
            value=value,
            answer=answer,
            metadata={"probability": probability, "truth": truth},
        )

    return score
