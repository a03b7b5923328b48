"""On-policy distillation: the student answers, and the teacher says how likely it finds each token.

The advantage of a token is the teacher's log-probability of it minus that with which the student
sampled it, the negative of what the token adds to the reverse KL from student to teacher (as in
Lu and Thinking Machines Lab 2025, "On-policy distillation"); the loss is importance_sampling. No
token is discounted by those after it. Answers are sampled at temperature 1, and those that were cut
at `distill.max_tokens` are judged like the others, and counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from data_selector import Selection
from ledger.rollouts import RolledGroup, RolledSample
from loop.methods.kept_rollouts import AnsweredStep, Answering, KeptRollouts, Trainable
from loop.methods.method import StepInFlight, StepResult, Workplace
from loop.methods.rollouts import (
    Asking,
    Prompt,
    answer_measures,
    datums_of,
    rolled_sample,
    sample_groups,
    sampler_now,
    sampler_trainer_kl,
    seeds_of,
    trained_by,
)
from loop.methods.teaching import (
    open_teacher,
    score_answers,
    settings_of,
    teacher_of,
    teacher_prompt_of,
)
from scores.intervals import mean
from storage.journal import Journal

if TYPE_CHECKING:
    import tinker
    import torch

TEMPERATURE = 1.0  # at another one the reverse KL would be that of another student
LOSS = "importance_sampling"


class OnPolicy:
    """Reverse KL to the teacher on the student's own answers."""

    learns_answers = False  # what is sampled becomes unlikely as well as likely

    def __init__(self, workplace: Workplace) -> None:
        self._workplace, self._plan = workplace, workplace.plan
        settings, teacher = settings_of(self._plan), teacher_of(self._plan)
        led_to = settings.model_dump(mode="json") | {"sha256": teacher.sha256}
        self._kept = KeptRollouts(workplace, {"method": "distill", **led_to})
        self._teacher: tinker.SamplingClient | None = None

    async def begin_round(self, selection: Selection) -> None:
        """Open the teacher, once."""
        self._kept.begin_round(selection.round)
        if self._teacher is None:
            self._teacher = await open_teacher(self._workplace)

    async def submit(
        self, client: tinker.TrainingClient, step: int, example_ids: list[str], lr: float
    ) -> StepInFlight:
        pending = StepInFlight(step, lr, example_ids, [], None, 0)
        answering = Answering(self._sampled, self._trainable, LOSS)
        return await self._kept.submit(client, pending, answering)

    async def _trainable(
        self, prompts: Sequence[Prompt], groups: Sequence[RolledGroup]
    ) -> Trainable:
        datums = with_kl_advantages(datums_of(prompts, groups, _zeros(groups)), prompts, groups)
        num_scored = sum(bool(one.tokens) for group in groups for one in group.samples)
        num_read = self._num_read(prompts, groups)
        return Trainable(datums, measures_of(groups), num_read, num_scored)

    async def _sampled(
        self, client: tinker.TrainingClient, step: int, prompts: Sequence[Prompt], journal: Journal
    ) -> list[RolledGroup]:
        """The student's answers to a step's prompts, and the teacher's word on each token."""
        plan, settings = self._plan, settings_of(self._plan)
        assert self._teacher is not None, "the round has begun"
        asking = Asking(settings.group_size, settings.max_tokens, TEMPERATURE)
        sampler = await sampler_now(self._workplace, client)
        seeds = seeds_of(plan, step, prompts)
        made = await sample_groups(plan, sampler, prompts, asking, seeds, journal)
        flat = [(prompt, one) for prompt, some in zip(prompts, made, strict=True) for one in some]
        asked = [teacher_prompt_of(plan, prompt.example_id) for prompt, _ in flat]
        answers = [one.tokens for _, one in flat]
        said = await score_answers(plan, self._teacher, asked, answers, journal)
        scores = list(said)
        groups = []
        for prompt, answers in zip(prompts, made, strict=True):
            samples = []
            for answer in answers:
                judged = replace(rolled_sample(answer, None), teacher_logprobs=scores.pop(0))
                advantages = kl_advantages(judged)
                mean = math.fsum(advantages) / len(advantages) if advantages else 0.0
                samples.append(replace(judged, advantage=mean))
            groups.append(
                RolledGroup(prompt.example_id, prompt.question, prompt.reference, samples)
            )
        return groups

    async def finish(self, pending: StepInFlight) -> StepResult:
        made: AnsweredStep = pending.made
        if not made.datums:
            return made.result(None, {})
        trained = await trained_by(pending, made.datums)
        kl, _ = sampler_trainer_kl(made.datums, trained.logprobs)
        return made.result(trained, {"kl_sampler_trainer": kl})

    def _num_read(self, prompts: Sequence[Prompt], groups: Sequence[RolledGroup]) -> int:
        """Tokens that student and teacher read for the answers to a step's prompts."""
        number = sum(prompt.tokens.length for prompt in prompts)
        for prompt, group in zip(prompts, groups, strict=True):
            length = teacher_prompt_of(self._plan, prompt.example_id).tokens.length
            number += sum(length + len(one.tokens) for one in group.samples if one.tokens)
        return number


def kl_advantages(sample: RolledSample) -> list[float]:
    """By token, the teacher's log-probability minus the student's, in nats."""
    assert sample.teacher_logprobs is not None, "the teacher has judged it"
    pairs = zip(sample.teacher_logprobs, sample.logprobs, strict=True)
    return [of_teacher - of_student for of_teacher, of_student in pairs]


def with_kl_advantages(
    datums: Sequence[tinker.Datum], prompts: Sequence[Prompt], groups: Sequence[RolledGroup]
) -> list[tinker.Datum]:
    """The datums of `datums_of` with the advantage of each token, times its row's weight."""
    import tinker
    import torch

    pairs = zip(prompts, groups, strict=True)
    judged = [(prompt.weight, one) for prompt, g in pairs for one in g.samples if one.tokens]
    made = []
    for datum, (weight, sample) in zip(datums, judged, strict=True):
        mask = datum.loss_fn_inputs["mask"].to_torch() > 0
        advantages = torch.zeros(len(mask), dtype=torch.float32)
        advantages[mask] = weight * torch.tensor(kl_advantages(sample), dtype=torch.float32)
        inputs = dict(datum.loss_fn_inputs)
        inputs["advantages"] = tinker.TensorData.from_torch(advantages)
        made.append(tinker.Datum(model_input=datum.model_input, loss_fn_inputs=inputs))
    return made


def measures_of(groups: Sequence[RolledGroup]) -> dict[str, float]:
    """Reverse KL to the teacher and entropy in nats a token, mean length, share of cut answers; the
    first two are means over the sampled tokens."""
    samples = [one for group in groups for one in group.samples]
    by_token = [value for one in samples for value in kl_advantages(one)]
    found = {"reverse_kl": -mean(by_token)} if by_token else {}
    return found | answer_measures(samples)


def _zeros(groups: Sequence[RolledGroup]) -> list[torch.Tensor]:
    import torch

    return [torch.zeros(len(group.samples)) for group in groups]
