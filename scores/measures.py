"""What the methods measure of a step, in words: how a name is written in a line, over a curve and
in a list of words, and which of them come first. Pure.

A measure that is not known here is shown by its own name, after the others: none is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from errors import one_line

MAX_NAME_CHARS = 40


class MeasureWords(NamedTuple):
    """How a measure is called in a line of a terminal, over a curve, and what it is."""

    short: str
    title: str
    meaning: str
    leads: bool = False  # stands for a step where there is room for one number alone


# In the order in which they are told; the first that a step has stands for it where one has room.
KNOWN: dict[str, MeasureWords] = {
    "margin": MeasureWords(
        "margin",
        "margin",
        "beta times by how much more likely than under the reference the chosen answer has become "
        "against the rejected one, in nats: 0 before any training",
        leads=True,
    ),
    "accuracy": MeasureWords(
        "accuracy", "pairs with a margin above 0", "the share of a step's pairs whose margin is > 0"
    ),
    "reward": MeasureWords(
        "reward", "reward", "the mean reward of the answers sampled for a step", leads=True
    ),
    "reverse_kl": MeasureWords(
        "KL to teacher",
        "reverse KL to the teacher, nats a token",
        "how far the student's sampled tokens are from what the teacher would say, estimated from "
        "them: 0 where both agree",
        leads=True,
    ),
    "forward_kl": MeasureWords(
        "KL to teacher",
        "forward KL from the teacher, nats a token",
        "how far the student is from the teacher's likeliest tokens at each token of the teacher's "
        "answers: 0 where both agree",
        leads=True,
    ),
    "truncated_share": MeasureWords(
        "truncated", "share truncated", "the share of a step's sampled answers that were cut off"
    ),
    "kl": MeasureWords(
        "KL",
        "KL to the reference, nats an answer",
        "how far the weights have moved from the reference on the answers of the rows, by the "
        "squares of the change",
    ),
    "chosen_gain": MeasureWords(
        "chosen gain",
        "gain of the chosen answers, nats a token",
        "what the log-probability of the chosen answers is above the reference's; below 0 they "
        "have become less likely",
    ),
    "kl_start": MeasureWords(
        "KL",
        "KL to the start, nats a token",
        "how far the weights have moved from those that the run started from",
    ),
    "kl_sampler_trainer": MeasureWords(
        "KL sampler/trainer",
        "KL of the sampler to the trainer, nats a token",
        "by how much what sampled the answers and what is trained on them disagree on the same "
        "weights: healthy below 0.01",
    ),
    "constant_share": MeasureWords(
        "groups alike",
        "share of groups without variance",
        "the share of a step's groups whose answers all have one reward, from which nothing is "
        "learned",
    ),
    "learnable_groups": MeasureWords(
        "groups that teach",
        "groups with variance",
        "a step's groups whose answers are worth different things; those alone are trained on",
    ),
    "resampled_groups": MeasureWords(
        "resampled", "groups sampled twice", "a step's groups whose first answers were all wrong"
    ),
    "failed_rewards": MeasureWords(
        "without reward",
        "answers without a reward",
        "a step's answers that the reward failed on, which are left out",
    ),
    "answer_tokens": MeasureWords(
        "length", "length of sampled answers, tokens", "the mean length of a step's answers"
    ),
    "turns": MeasureWords(
        "turns", "turns of a conversation", "the mean number of answers in a step's conversations"
    ),
    "entropy": MeasureWords(
        "entropy",
        "entropy, nats a token",
        "how unsure the model is of its tokens; near 0 it says the same thing always",
    ),
    "chosen_logprob": MeasureWords(
        "chosen",
        "log-probability of the chosen answers, a token",
        "of the better answers; preference training may lower it all the same",
    ),
    "rejected_logprob": MeasureWords(
        "rejected", "log-probability of the rejected answers, a token", "of the worse answers"
    ),
}


def words_of(name: str) -> MeasureWords:
    """How a measure is written; one that is not known here by its own name."""
    shown = one_line(name, MAX_NAME_CHARS)
    return KNOWN.get(name) or MeasureWords(shown, shown, "")


def names_in(steps: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of the measures that the `step` events have, in the order that they are told in."""
    there = {name for step in steps for name in step.get("measures", {})}
    return [name for name in KNOWN if name in there] + sorted(there - KNOWN.keys())


def values_of(steps: Iterable[Mapping[str, Any]], name: str) -> list[float]:
    """The values of one measure, of the steps that have it."""
    return [step["measures"][name] for step in steps if name in step.get("measures", {})]


def main_of(steps: Sequence[Mapping[str, Any]]) -> tuple[str, list[float]]:
    """What stands for steps where one curve has room: the measure of their method that leads, else
    the loss a token; with its name in a line."""
    name = leading(steps)
    if name is not None:
        return words_of(name).short, values_of(steps, name)
    return "loss", [step["nll"] for step in steps]


def leading(steps: Iterable[Mapping[str, Any]]) -> str | None:
    """The measure that stands for steps; None where it is the loss a token."""
    return next((name for name in names_in(steps) if words_of(name).leads), None)


# --- methods --------------------------------------------------------------------------------------


class MethodWords(NamedTuple):
    """A method as reports speak of it."""

    name: str  # as a setting
    title: str
    learns_rows: bool  # `nll` is the loss of answers that are to become likely
    is_sampled: bool  # trained on answers that the model that is trained has sampled
    unit: str  # what an example is in a step
    nll_is: str  # what `nll` is the negative log-probability of, as the title of a curve
    minimised: str  # what `loss` is


SFT = MethodWords(
    "sft",
    "Supervised fine-tuning",
    True,
    False,
    "examples",
    "training loss",
    "the cross-entropy of the rows' answers, each row counting alike",
)
DPO = MethodWords(
    "dpo",
    "Direct preference optimization (DPO)",
    False,
    False,
    "pairs",
    "loss of the chosen answers",
    "-log sigmoid of the margin, on average over the pairs",
)
RL = MethodWords(
    "rl",
    "Reinforcement learning from verifiable rewards",
    False,
    True,
    "prompts",
    "surprise at its own sampled answers",
    "the policy-gradient loss that rl.loss names, of rewards less the mean of their group",
)
ON_POLICY = MethodWords(
    "distill",
    "On-policy distillation",
    False,
    True,
    "prompts",
    "surprise at its own sampled answers",
    "the reverse KL to the teacher, by the policy-gradient loss importance_sampling",
)
OFF_POLICY = MethodWords(
    "distill",
    "Off-policy distillation",
    True,
    False,
    "prompts",
    "loss of the teacher's answers",
    "the cross-entropy of the teacher's answers, as tokens (hard) or as its distribution at each "
    "of them (soft), each row counting alike",
)


def method_words(config: Mapping[str, Any]) -> MethodWords:
    """The method that settings name, given as JSON; of runs before there were others, `sft`."""
    name, group = config.get("method", "sft"), config.get("distill")
    if name == "distill":
        way = group.get("way") if isinstance(group, Mapping) else None
        return OFF_POLICY if way == "off_policy" else ON_POLICY
    return {"dpo": DPO, "rl": RL}.get(str(name), SFT)


def settings_text(config: Mapping[str, Any]) -> str:
    """The settings of the method's own group, as `name value`; empty where it has none."""
    group = config.get(config.get("method", "sft")) or {}
    return ", ".join(f"{key} {_value(value)}" for key, value in group.items() if value is not None)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return one_line(str(value), MAX_NAME_CHARS * 2)
