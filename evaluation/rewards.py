"""What answers are worth in reinforcement learning: a grader of question files, a function of a
Python file, or a scorer of Inspect's.

A reward is a number of any size; 1 and more is right, 0 and less is wrong. What a user's code
raises, or gives that is no number, is data: the answer has no reward then, with the reason.
"""

from __future__ import annotations

import contextlib
import numbers
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import ConfigError, one_line
from grading.graders import GRADERS, grade, problem_with
from grading.math_process import NotJudged
from user_code.modules import keeping_the_place, waited_for
from user_code.own_graders import (
    MAX_REWARD,
    OwnGrader,
    Verdict,
    load_file,
    usable,
)

if TYPE_CHECKING:
    from inspect_ai.scorer import Scorer

# Of the question, the answer, and the row's own answer, where it has one.
Judge = Callable[[str, str, str | None], Awaitable[Verdict]]


@dataclass(frozen=True)
class Reward:
    """A reward, ready to be asked, with several answers at once inside of one `keeping_the_place`;
    `code` are the user's files that it is made of, with their sha256."""

    name: str
    judge: Judge
    code: Mapping[str, str] = field(default_factory=dict)
    needs_reference: bool = True  # it compares with the row's own answer

    def problem_with(self, reference: str | None) -> str | None:
        """Why no answer can be held against a row's own; None where it can."""
        if reference is None:
            return "there is none to compare with" if self.needs_reference else None
        return problem_with(self.name, reference) if self.name in GRADERS else None


def load_reward(name: str, where: Path, file: Path | None) -> Reward:
    """The reward that the settings in `where` name; a `file` in its name is run. Raises
    `ConfigError`."""
    if name in GRADERS:
        return Reward(name, _by_grader(name))
    if file is not None:
        loaded = load_file(where, name, file, kind="reward")
        held: Any = getattr(loaded.module, name.rpartition("@")[2], None)
        code = dict(loaded.modules.code)
        if _is_scorer(held):
            return Reward(name, _by_scorer(where, name, held), code)
        function = usable(where, name, held, kind="reward")
        return Reward(
            name,
            _by_own(OwnGrader(name, function, loaded.modules, is_reward=True)),
            code,
            needs_reference=False,
        )
    if "/" in name:
        from inspect_ai._util.registry import registry_lookup

        with contextlib.suppress(ValueError, ImportError):
            installed: Any = registry_lookup("scorer", name)
            if installed is not None:
                return Reward(name, _by_scorer(where, name, installed))
    raise ConfigError(
        f"{where}: rl.reward is {name!r}, and there is none of this name. Known are "
        f"{', '.join(GRADERS)}, FILE.py@FUNCTION with a function of an answer and a list of the "
        "accepted ones or a @scorer of Inspect's, and installed scorers, as inspect_ai/match."
    )


def check_reward(reward: Reward, question: str, reference: str | None, where: str) -> float:
    """What a row's own answer is worth, or, where it has none, its question as an answer. Raises
    `ConfigError` where it cannot be told; `where` names the row."""
    with keeping_the_place():
        verdict = waited_for(_judged(reward, question, reference))
    if verdict.problem is not None:
        tried = "own answer" if reference is not None else "question, given as an answer,"
        raise ConfigError(
            f"rl.reward: it gives nothing for the row's {tried} in {where}: {verdict.problem}. "
            "Mend it, or name another."
        )
    return verdict.score


async def _judged(reward: Reward, question: str, reference: str | None) -> Verdict:
    return await reward.judge(question, question if reference is None else reference, reference)


# --- the kinds ------------------------------------------------------------------------------------


def _by_grader(name: str) -> Judge:
    async def judge(question: str, answer: str, reference: str | None) -> Verdict:
        assert reference is not None, "a row without one is refused"
        try:
            return Verdict(float(await grade(name, answer, [reference])))
        except NotJudged as error:
            return Verdict(0.0, str(error))

    return judge


def _by_own(own: OwnGrader) -> Judge:
    async def judge(question: str, answer: str, reference: str | None) -> Verdict:
        return await own.verdict(answer, [] if reference is None else [reference])

    return judge


def _is_scorer(held: Any) -> bool:
    if "inspect_ai" not in sys.modules:  # which a file with a scorer has imported
        return False
    from inspect_ai._util.registry import is_registry_object, registry_info

    return callable(held) and is_registry_object(held) and registry_info(held).type == "scorer"


def _by_scorer(where: Path, name: str, make: Callable[[], Scorer]) -> Judge:
    """By a scorer with its default arguments, which sees the question, the answer and the target.

    It has no model: what asks one to grade raises when it is tried.
    """
    from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ModelName, ModelOutput
    from inspect_ai.scorer import Target
    from inspect_ai.solver import TaskState

    try:
        scorer = make()
    except Exception as error:  # it is anybody's code, and may raise anything
        said = one_line(f"{type(error).__name__}: {error}")
        raise ConfigError(
            f"{where}: rl.reward {name} cannot be made without arguments: {said}. Give it defaults."
        ) from error

    async def judge(question: str, answer: str, reference: str | None) -> Verdict:
        assert reference is not None, "a row without one is refused"
        state = TaskState(
            model=ModelName("none/trained"),
            sample_id=1,
            epoch=1,
            input=question,
            messages=[ChatMessageUser(content=question), ChatMessageAssistant(content=answer)],
            target=Target([reference]),
            output=ModelOutput.from_content("none/trained", answer),
            completed=True,
        )
        try:
            score = await scorer(state, Target([reference]))
            return _verdict_of(name, None if score is None else score.value)
        except SystemExit as error:
            return Verdict(0.0, f"the reward {name} ended with SystemExit: {error}")
        except Exception as error:  # as above
            return Verdict(0.0, f"the reward {name} raised {_said(error)}")

    return judge


def _said(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}", 300)


def _verdict_of(name: str, value: Any) -> Verdict:
    """A scorer's value as a reward: a number, or one of Inspect's letters."""
    from inspect_ai.scorer import CORRECT, INCORRECT, NOANSWER, PARTIAL

    letters = {CORRECT: 1.0, PARTIAL: 0.5, INCORRECT: 0.0, NOANSWER: 0.0}
    if isinstance(value, str) and value in letters:
        return Verdict(letters[value])
    if isinstance(value, numbers.Real) and abs(float(value)) <= MAX_REWARD:
        return Verdict(float(value))
    return Verdict(0.0, f"the reward {name} gave {one_line(repr(value), 80)}, which is no number")
