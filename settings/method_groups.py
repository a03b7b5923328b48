"""The settings of the ways of training other than supervised fine-tuning, a group for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from settings.groups import DataSettings, MiningSettings, Name, Positive, Prompt, Settings
from user_code.own_graders import is_own_grader

MethodName = Literal["sft", "dpo", "rl", "distill"]
METHOD_GROUPS = ("dpo", "rl", "distill")
PolicyLoss = Literal["importance_sampling", "ppo", "cispo", "gspo"]
MAX_TURNS = 4  # of a conversation, where it is not set
CLIPPED_LOSSES = ("ppo", "cispo", "gspo")


class MethodSettings(Settings):
    """The settings of one method; None where another one trains."""


class DpoSettings(MethodSettings):
    """Direct preference optimization."""

    beta: float = Field(
        default=0.1, gt=0, le=100, description="how strongly the reference holds the weights back"
    )


class RlSettings(MethodSettings):
    """Reinforcement learning from rewards that a program gives."""

    reward: Name | None = Field(
        default="includes",
        description=(
            "what an answer is worth beside the row's: a grader of question files, "
            "`FILE.py@FUNCTION` (a number, of which 1 and more is right, or a `@scorer` of "
            "Inspect's), or an installed scorer, as `inspect_ai/match`"
        ),
    )
    environment: Name | None = Field(
        default=None,
        description=(
            "in place of `reward`, `FILE.py@FUNCTION`: a function of a row that gives a message "
            "environment of the cookbook, which answers the model and gives the rewards"
        ),
    )
    max_turns: Positive | None = Field(
        default=None,
        description="of `environment`: most answers of the model in a conversation; default 4",
    )
    group_size: int = Field(default=8, ge=2, le=1024, description="answers sampled for each prompt")
    max_tokens: Positive = Field(default=64, description="longest sampled answer in tokens")
    temperature: float = Field(
        default=1.0,
        gt=0,
        le=2,
        description="of the sampled answers; other than 1 only with `importance_sampling`",
    )
    loss: PolicyLoss = Field(
        default="importance_sampling", description="the policy-gradient loss of the service"
    )
    kl_coef: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="weight of the KL to the weights that the run started from, in the advantages",
    )

    @model_validator(mode="before")
    @classmethod
    def _make_room(cls, data: Any) -> Any:
        """Where there is an environment, there is no reward, and turns have a default."""
        if isinstance(data, dict) and data.get("environment") is not None:
            max_turns = MAX_TURNS if data.get("max_turns") is None else data["max_turns"]
            return {"reward": None, **data, "max_turns": max_turns}
        return data


class DistillSettings(MethodSettings):
    """Distillation from a teacher on the same service."""

    teacher: Name = Field(
        description="a base model of the service, or saved weights as `start_from` names them"
    )
    way: Literal["on_policy", "off_policy"] = Field(
        default="on_policy",
        description=(
            "`on_policy`: the student's answers, judged by the teacher token by token; "
            "`off_policy`: the teacher's answers"
        ),
    )
    teacher_prompt: Prompt | None = Field(
        default=None,
        description=(
            "a system message that the teacher alone hears before each prompt, so that the student "
            "learns to do without it"
        ),
    )
    group_size: Positive = Field(default=4, description="answers sampled for each prompt")
    max_tokens: Positive = Field(default=64, description="longest sampled answer in tokens")
    targets: Literal["hard", "soft"] | None = Field(
        default=None,
        description=(
            "of `off_policy`: `hard`, the teacher's answers; `soft`, at each of their tokens the "
            "teacher's likeliest 20; default `soft`"
        ),
    )


def with_group(data: dict[str, Any]) -> dict[str, Any]:
    """Settings that name a method, with its group, which has defaults."""
    name = data.get("method")
    return {name: {}, **data} if isinstance(name, str) and name in METHOD_GROUPS else data


def _refuse_train_on(method: str, train_on: str | None) -> None:
    if method == "dpo" and train_on not in (None, "last_assistant_message"):
        raise ValueError(
            f"data.train_on is {train_on}, and method dpo trains on the last answer of a pair, "
            "which is what is preferred. Leave data.train_on out."
        )


def check_method(
    method: str,
    groups: Mapping[str, MethodSettings | None],
    data: DataSettings,
    mining: MiningSettings,
) -> None:
    """Raise `ValueError` where settings are given or missing that do not fit the method, or another
    part of the rows is to be trained than it can."""
    _refuse_train_on(method, data.train_on)
    for name, group in groups.items():
        if name != method and group is not None:
            raise ValueError(
                f"{name} is set, and method is {method}, which does not use it. Set method to "
                f"{name}, or take {name} out."
            )
        if name == method and group is None:
            raise ValueError(
                f"{name} is null, and method is {method}. Leave {name} out for its defaults."
            )
    distill = groups["distill"]
    if isinstance(distill, DistillSettings):
        _check_distill(distill, data, mining)
    rl = groups["rl"]
    if isinstance(rl, RlSettings):
        _check_rl(rl, data, mining)


def _check_distill(distill: DistillSettings, data: DataSettings, mining: MiningSettings) -> None:
    _refuse_unused("distill", data, mining)
    if distill.way == "on_policy" and distill.targets is not None:
        raise ValueError(
            f"distill.targets is {distill.targets}, and distill.way is on_policy, where the "
            "student's own answers are trained. Set distill.way to off_policy, or leave "
            "distill.targets out."
        )


def _check_rl(rl: RlSettings, data: DataSettings, mining: MiningSettings) -> None:
    _refuse_unused("rl", data, mining)
    _check_environment(rl)
    if rl.temperature != 1 and rl.kl_coef:
        raise ValueError(
            f"rl.kl_coef is {rl.kl_coef:g} at rl.temperature {rl.temperature:g}, where the "
            "log-probabilities of what was sampled are of another distribution than those that "
            "they would be held against. Set rl.temperature to 1, or rl.kl_coef to 0."
        )
    if rl.temperature != 1 and rl.loss in CLIPPED_LOSSES:
        raise ValueError(
            f"rl.temperature is {rl.temperature:g} with rl.loss {rl.loss}, which clips around the "
            "ratio 1, and answers sampled at another temperature begin with other ratios. Set "
            "rl.temperature to 1, or rl.loss to importance_sampling."
        )


def _check_environment(rl: RlSettings) -> None:
    if rl.environment is None:
        if rl.reward is None:
            raise ValueError(
                "rl.reward is null, and there is no rl.environment, so nothing says what an answer "
                "is worth. Give one of the two."
            )
        if rl.max_turns is not None:
            raise ValueError(
                f"rl.max_turns is {rl.max_turns}, and there is no rl.environment, so each answer "
                "ends its conversation. Leave rl.max_turns out, or set rl.environment."
            )
        return
    if rl.reward is not None:
        raise ValueError(
            f"rl.reward is {rl.reward!r} beside rl.environment, which gives the rewards itself. "
            "Leave one of them out."
        )
    if not is_own_grader(rl.environment):
        raise ValueError(
            f"rl.environment is {rl.environment!r}, and no FILE.py@FUNCTION. Name a function of a "
            "row in a Python file beside these settings."
        )


def _refuse_unused(method: str, data: DataSettings, mining: MiningSettings) -> None:
    """Raise `ValueError` for what means nothing where sampled answers are trained on."""
    unused = {
        "data.train_on": data.train_on is not None,
        "mining.noise_cap": mining.noise_cap != MiningSettings().noise_cap,
        "mining.num_candidates": mining.num_candidates is not None
        and mining.strategy in ("loss", "hybrid"),
    }
    for key, is_set in unused.items():
        if is_set:
            raise ValueError(
                f"{key} is set, and method is {method}, which trains on sampled answers and "
                "measures no losses of rows, so it means nothing. Leave it out."
            )
