"""What to try next after a run that missed its target, from what it shows. Pure.

Each is a rule of thumb with the figures that it rests on; none is a promise. What says why no round
can have passed comes first, then what the curves show, then what the scores do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from scores.decision import (
    EXTENDABLE,
    MAX_FLAWED_SHARE,
    Decision,
    Gate,
    broken_guard,
    is_below_baseline,
)
from scores.diagnosis import Kind, TopicReport
from scores.measures import DPO, OFF_POLICY, ON_POLICY, RL, SFT, MethodWords
from scores.resolution import TaskSize, out_of_reach
from scores.results import EvalResult

NUM_STEPS = 3
NUM_TOPICS = 3
LOWER, RAISE = 3.0, 10.0  # from a rate that was too high or too low to the next one to try
MAX_TOPIC_CHARS = 40
KNOWN_NATS = 0.05  # a token of loss that leaves nothing to learn: the right one has 0.95
STOPS_EARLY = 2.0  # times as long as the rows' answers is longer than one that ends as they do


class Trained(NamedTuple):
    """What training came to by the end of the last round."""

    learning_rate: float
    num_steps: int = 0
    last_loss: float | None = None  # in nats a token, of rows like those that would come next
    answer_tokens: float | None = None  # with loss, of a row, on average


class Missed(NamedTuple):
    """What is known of a run that missed its target."""

    decision: Decision
    gate: Gate
    results: Sequence[EvalResult]  # the baseline first
    kinds: Collection[Kind]  # problems that the last round's curves show
    topics: Sequence[TopicReport]  # of the best round
    trained: Trained
    max_tokens: int | None  # of an answer, as the settings have it
    method: MethodWords = SFT
    went_on_from: int | None = None  # of the last round; None for the round before it
    has_unused_pool: bool = False  # mining.pool_file of a run that began elsewhere, never drawn


class WaysOn(NamedTuple):
    """How the run can go on: the command that resumes it, None where it cannot be trained further;
    and, as JSON, what a new config names to begin with its weights, None where no setting does."""

    command: str | None
    start_from: str | None


def next_steps(missed: Missed, ways: WaysOn) -> list[str]:
    """The first few things to try, each a sentence.

    None for a run that met its target, unless what it began with scored higher, or rows that it was
    to learn were never drawn.
    """
    if missed.decision.action == "stop_passed":
        return [*_after_lower_score(missed, _best_of(missed)), *_after_unused_pool(missed)]
    return list(islice(_steps(missed, ways), NUM_STEPS))


def _best_of(missed: Missed) -> EvalResult:
    return next(one for one in missed.results if one.round == missed.decision.best_round)


def _steps(missed: Missed, ways: WaysOn) -> Iterator[str]:
    best = _best_of(missed)
    sizes = [TaskSize(one.n, one.num_clusters or one.n) for one in best.scored_tasks]
    if (why := out_of_reach(missed.gate, sizes)) is not None:
        yield f"The gate is out of reach: {why}"
    yield from _after_flaws(missed, best)
    guard = broken_guard(best, missed.results[0], missed.gate)
    if guard is not None:
        yield (
            f"Keep the guard: {guard}. Lower learning_rate or steps_per_round in a new run, or mix "
            "rows of what it asks into train_file."
        )
    yield from _after_lower_score(missed, best)
    yield from _after_unused_pool(missed)
    yield from _after_curves(missed)
    if "too_high" not in missed.kinds:
        yield from _more_rounds(missed, ways)
    yield from _after_topics(missed, best)
    interval = best.interval
    if interval is not None and interval.low <= missed.gate.threshold <= interval.high:
        yield (
            f"Ask more questions: {best.n} cannot tell {best.score:.2f} from the threshold "
            f"{missed.gate.threshold:g}, which lies within the score's interval."
        )
    if best.score <= missed.results[0].score:
        if (moved := _margins_moved(missed.results[0], best)) is not None:
            yield moved
        else:
            yield (
                f"Compare the form of the answers: round {best.round} did not beat "
                f"{missed.gate.baseline}. {FORM[missed.method]}"
            )
    yield (
        f"Read the wrong answers in evals/round_{best.round:02d}.json, and add "
        f"{ADDED[missed.method]}."
    )


FORM = {
    SFT: "Rows should ask and answer as the questions do (--preview shows rows, evals/ the "
    "answers).",
    DPO: "Chosen answers should be what the questions take for right (--preview shows pairs, "
    "evals/ the answers).",
    RL: "The reward should pay for what the questions take for right, in the same form (rollouts/ "
    "has the answers that it paid for, evals/ those to the questions).",
}
FORM[ON_POLICY] = FORM[OFF_POLICY] = (
    "The teacher should answer as the questions take for right, which --evaluate tells of it."
)
ADDED = {
    SFT: "rows to train_file that answer such questions",
    DPO: "pairs to train_file whose chosen answers do better",
    RL: "prompts like such questions to train_file",
}
ADDED[ON_POLICY] = ADDED[OFF_POLICY] = ADDED[RL]


def _margins_moved(start: EvalResult, best: EvalResult) -> str | None:
    """Of held-out pairs that are judged as before, though their margin rose: what hides it."""
    before = {task.name: task.metrics.get("margin") for task in start.scored_tasks}
    for task in best.scored_tasks:
        now, then = task.metrics.get("margin"), before.get(task.name)
        is_of_pairs = any("rejected_logprob" in one.other_scores for one in task.samples)
        if is_of_pairs and now is not None and then is not None and now > then:
            return (
                f"Look at the margin beside the score: over the pairs of {task.name} the chosen "
                f"answers are {_likelier(now)} than the rejected ones on average, and before "
                f"training {_likelier(then)}. A sum favours short answers; where the chosen ones "
                "are longer, pairs of like length or a task that reads the model's own answers "
                "tell more."
            )
    return None


def _likelier(margin: float) -> str:
    return f"{abs(margin):.1f} nats {'likelier' if margin >= 0 else 'less likely'}"


def _after_lower_score(missed: Missed, best: EvalResult) -> Iterator[str]:
    """What the run began with, where it scored higher than what is recommended."""
    start, baseline = missed.results[0], missed.gate.baseline
    if not is_below_baseline(best, start):
        return
    remedy = ""
    if missed.gate.threshold <= start.score < 1:
        remedy = " Set eval_threshold above its score in a new run, so that no round passes below."
    yield (
        f"Keep {baseline} until a run beats it: it scored {start.score:.4f}, and round "
        f"{best.round} {best.score:.4f}.{remedy}"
    )


def _after_unused_pool(missed: Missed) -> Iterator[str]:
    """Rows for later rounds, of a run that went on from a checkpoint and had none."""
    if missed.has_unused_pool:
        yield (
            "Train on the rows of mining.pool_file: none of them was, as rounds draw from it from "
            f"round 2 on and the run ended with round {missed.decision.round}. Name the file as a "
            "source of train_file in a new run."
        )


def _after_flaws(missed: Missed, best: EvalResult) -> Iterator[str]:
    """Answers that were cut off, where training is not about to end them anyway."""
    num_samples = len(best.samples)
    before, cut = missed.results[0].num_truncated, best.num_truncated
    if cut <= MAX_FLAWED_SHARE * num_samples or cut <= before / 2:
        return
    asked = (task.max_tokens for task in best.scored_tasks if task.num_truncated)
    longest = max((one for one in asked if one is not None), default=missed.max_tokens)
    limit = "evaluation.max_tokens" + ("" if longest is None else f" {longest}")
    were_cut = f"{cut} of {num_samples} were cut off at {limit}"
    of_rows = missed.trained.answer_tokens
    if longest is not None and of_rows is not None and STOPS_EARLY * of_rows <= longest:
        yield (
            f"Teach answers to end: {were_cut}, and those that were trained on have about "
            f"{of_rows:.0f} tokens, so the model has not learned to stop. Give it more steps or a "
            "higher learning_rate; longer answers would only ramble on "
            f"(evals/round_{best.round:02d}.json)."
        )
        return
    higher = "" if longest is None else f" (--set evaluation.max_tokens={2 * longest})"
    yield (
        f"Let answers be longer: {were_cut}. Start a new run with more{higher}, unless "
        f"evals/round_{best.round:02d}.json shows that they ramble."
    )


def _after_curves(missed: Missed) -> Iterator[str]:
    rate = missed.trained.learning_rate
    if "too_high" in missed.kinds:
        yield (
            f"Lower the learning rate: the {missed.method.nll_is} rose at {rate:g}. Start a new "
            f"run with --set learning_rate={rate / LOWER:.2g}."
        )
    if "stuck" in missed.kinds:
        yield (
            f"Raise the learning rate: the {missed.method.nll_is} stayed where it was at {rate:g}. "
            f"Start a new run with --set learning_rate={rate * RAISE:.2g}, or with a higher "
            "lora_rank."
        )
    if "reward_only" in missed.kinds:
        yield (
            "Read the best paid answers in rollouts/: the reward rises and the score does not, so "
            "it may be earned in a way that was not meant. Mend the reward in a new run, or hold "
            "the weights back with rl.kl_coef."
        )
    if "no_variance" in missed.kinds:
        yield (
            "Give prompts that are sometimes answered right: in the last round all answers to each "
            "prompt were worth the same. Start from supervised weights (start_from) where all are "
            "wrong, take harder rows where all are right, or raise rl.group_size."
        )
    if "overfitting" in missed.kinds:
        yield (
            "Train less on these rows, or on more of them: the held-out loss rises. Start a new "
            "run with fewer steps_per_round or a lower learning_rate."
        )


def _more_rounds(missed: Missed, ways: WaysOn) -> Iterator[str]:
    """Going on, where the last round still gained or learned and only a bound ended the run."""
    decision, gate, trained = missed.decision, missed.gate, missed.trained
    *_, before, last = missed.results
    if missed.went_on_from is not None:
        before = next(one for one in missed.results if one.round == missed.went_on_from)
    moved = f"the last round raised the score from {before.score:.4f} to {last.score:.4f}"
    if last.score <= before.score:
        if {"stuck", "overfitting", "reward_only", "no_variance"} & set(missed.kinds):
            return
        moved = f"nothing in the curves speaks against it, though the score is {last.score:.4f}"
        moved += f" after {before.score:.4f}"
    if decision.action not in EXTENDABLE or decision.action == "stop_plateau":
        return
    if trained.last_loss is not None and trained.last_loss < KNOWN_NATS:
        yield (
            f"Train on other rows: the training loss is down to {trained.last_loss:.2g} a token, "
            "so these are known by heart and more rounds of them teach next to nothing. Add some "
            "that answer what was answered wrong to train_file or mining.pool_file, in a new run."
        )
        return
    if ways.command is None:
        if ways.start_from is not None:
            yield (
                f'Go on from the best weights in a new config: "start_from": '
                f"{ways.start_from}; {moved}. The sealed test of this run has been opened, so "
                "give it a new one."
            )
        return
    if decision.action == "stop_rounds" and trained.num_steps < gate.max_steps:
        change = f"max_rounds={gate.max_rounds + 2}"
        yield f"Train more rounds: {moved}. Go on with: {ways.command} --set {change}"
        return
    bound = re.search(r"of budget\.(\w+) ", decision.sentence)
    limits = {"tokens": gate.max_tokens, "minutes": gate.max_minutes, "usd": gate.max_usd}
    if bound is not None and (limit := limits.get(bound[1])) is not None:
        change = f"budget.{bound[1]}={json.dumps(2 * limit)}"
        yield f"Raise the budget: {moved}. Go on with: {ways.command} --set {change}"
    else:
        yield f"Take more steps: {moved}. Start a new run with max_steps over {gate.max_steps}."


def _after_topics(missed: Missed, best: EvalResult) -> Iterator[str]:
    # A topic of one question says nothing of the topic.
    weak = [one for one in missed.topics if one.n > 1 and one.score < best.score][:NUM_TOPICS]
    if not weak:
        return
    named = ", ".join(
        f"{one.topic[:MAX_TOPIC_CHARS]} ({one.score * one.n:.4g} of {one.n} right)" for one in weak
    )
    yield (
        f"Add rows of the weakest topics to train_file or mining.pool_file: {named}. Round "
        f"{best.round} drew {sum(one.num_added for one in weak)} rows of them."
    )
