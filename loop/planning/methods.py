"""What a plan says of the method that trains."""

from __future__ import annotations

from collections.abc import Iterator

from config_schema import TrainingConfig
from scores.measures import DPO, OFF_POLICY, ON_POLICY, RL, SFT, MethodWords, method_words
from scores.measures import settings_text as text_of_settings


def words_for(config: TrainingConfig) -> MethodWords:
    """The method of settings, as reports speak of it."""
    way = None if config.distill is None else {"way": config.distill.way}
    return method_words({"method": config.method, "distill": way})


def describe_method(config: TrainingConfig) -> Iterator[str]:
    """Yield the lines about a method other than supervised fine-tuning, with its settings."""
    method = words_for(config)
    if method is SFT:
        return
    settings = text_of_settings(config.model_dump(mode="json"))
    line = f"method: {config.method}, {method.title[:1].lower()}{method.title[1:]}: {settings}"
    if config.dpo is None:
        yield line
        return
    of = "the untouched base model" if config.start_from is None else config.start_from
    yield f"{line}; its reference is {of}, in all rounds"
    if config.start_from is None:
        yield (
            "warning: method is dpo and there is no start_from: preferences teach which of two "
            "answers is better, not to answer. Train on answers first (method sft), and set "
            "start_from to its checkpoint."
        )


def batch_text(config: TrainingConfig) -> str:
    """What a step trains on."""
    method, size = words_for(config), config.batch_size
    if method in (RL, ON_POLICY):
        return f"{size} prompts with {group_size(config)} sampled answers each"
    if method is OFF_POLICY:
        return f"{size} prompts with {group_size(config)} answers of the teacher each"
    return f"{size} {method.unit}"


def train_on_text(config: TrainingConfig, value: str) -> str:
    """The line about what of a row is trained on, and by which setting; `value` is what carries
    loss in the rows as they are rendered."""
    method, given = words_for(config), config.data.train_on
    told = {
        DPO: "the chosen and the rejected answer of each pair, against each other",
        RL: "the model's own sampled answers, by their rewards; a row's answer is what a reward "
        "may compare with",
        ON_POLICY: "the model's own sampled answers, as the teacher judges them; a row's answer is "
        "not used",
        OFF_POLICY: "the teacher's answers; a row's own is not used",
    }
    if method is not SFT:
        return f"trained on: {told[method]}"
    source = "data.train_on" if given else "by default"
    if given is None and value != "all_assistant_messages":
        source += ", since the chat format writes earlier answers otherwise than they are sampled"
    return f"trained on: {value} ({source})"


def preview_text(config: TrainingConfig, value: str) -> str:
    """What is marked of a row that is shown; `value` is what carries loss in rendered rows."""
    marked = {
        SFT: f"train_on {value}; tokens that carry loss",
        DPO: "method dpo; the two answers that are compared",
        RL: "method rl; what a reward may compare with, and is not trained on,",
        ON_POLICY: "method distill; a row's own answers, which are not used,",
        OFF_POLICY: "method distill; a row's own answers, in whose place the teacher's come,",
    }
    return marked[words_for(config)]


def group_size(config: TrainingConfig) -> int:
    """Answers to one prompt; 1 where none are sampled."""
    group = config.rl or config.distill
    return 1 if group is None else group.group_size
