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
                f"another{'' if example.has_answer else '; FILE.py@FUNCTION needs none'}."
            )


def reference_of(example: Example) -> str | None:
    """What a row answers in the end; None where it only asks."""
    return example.messages[-1].content if example.has_answer else None


def question_of(example: Example) -> str:
    """The turn that a row answers, or is to answer, in the end."""
    asked = example.messages[:-1] if example.has_answer else example.messages
    return asked[-1].text if asked else ""


def describe_reward(reward: Reward, rows: ExampleTable) -> Iterator[str]:
    """Yield what a row's own answer is worth, or without one its question, given as an answer.
    Raises `ConfigError` where that cannot be told."""
    tried = next((one for one in rows if one.has_answer), rows[0])
    where = f"{tried.source} line {tried.line_no}"
    worth = check_reward(reward, question_of(tried), reference_of(tried), where)
    what = "own answer" if tried.has_answer else "question, given as an answer,"
    yield f"reward: {reward.name}; the {what} of {where} is worth {worth:g}"
    if num_without := sum(not one.has_answer for one in rows):
        yield (
            f"train_file: {num_without} of {len(rows)} rows have no answer; for these "
            f"{reward.name} gets an empty list"
        )
