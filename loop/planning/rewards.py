"""What gives the rewards of a run, before the first step: found, loaded, and tried on a row."""

from __future__ import annotations

from collections.abc import Iterator

from config_schema import LoadedConfig
from errors import DataError
from evaluation.environments import Environment, load_environment
from evaluation.rewards import Reward, check_reward, load_reward
from rows.examples import Example, ExampleTable
from user_code.own_graders import is_own_grader


def reward_of(loaded: LoadedConfig) -> Reward | None:
    """The reward that the settings name; None where another method trains. Raises `ConfigError`."""
    settings = loaded.config.rl
    if settings is None or settings.reward is None:
        return None
    file = None
    if is_own_grader(settings.reward):
        file = loaded.find("rl.reward", settings.reward.rpartition("@")[0])
    return load_reward(settings.reward, loaded.file, file)


def environment_of(loaded: LoadedConfig) -> Environment | None:
    """The environment that the settings name; None where there is none. Raises `ConfigError`."""
    settings = loaded.config.rl
    if settings is None or settings.environment is None:
        return None
    file = loaded.find("rl.environment", settings.environment.rpartition("@")[0])
    return load_environment(settings.environment, loaded.file, file)


def refuse_unfit_references(reward: Reward, rows: ExampleTable) -> None:
    """Raise `DataError`, with file and line, for a row whose own answer no other can be held
    against."""
    for example in rows:
        if (problem := reward.problem_with(reference_of(example))) is not None:
            raise DataError(
                f"{example.source} line {example.line_no}: rl.reward is {reward.name}, and of the "
                f"row's answer {problem}. Correct the row, leave it out, or set rl.reward to "
                "another."
            )


def reference_of(example: Example) -> str:
    """What a row answers in the end."""
    return next(one.content for one in reversed(example.messages) if one.role == "assistant")


def question_of(example: Example) -> str:
    """The turn that a row answers in the end."""
    last = max(i for i, one in enumerate(example.messages) if one.role == "assistant")
    return example.messages[last - 1].text if last else ""


def describe_reward(reward: Reward, rows: ExampleTable) -> Iterator[str]:
    """Yield what a row's own answer is worth. Raises `ConfigError` where that cannot be told."""
    first = rows[0]
    where = f"{first.source} line {first.line_no}"
    worth = check_reward(reward, question_of(first), reference_of(first), where)
    yield f"reward: {reward.name}; the own answer of {where} is worth {worth:g}"
