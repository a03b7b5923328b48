"""Reinforcement learning from rewards that a program gives: the answers that earn more than the
others of their group become likelier.

Each step samples a group of answers to each of its prompts from the weights as they are, and takes
one policy-gradient step by their advantages, centred in each group. A group whose answers are all
wrong is sampled once more; one whose answers are all worth the same teaches nothing and is left
out, and a step of such groups alone has no gradient, so that no optimizer step is taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from data_selector import Selection
from errors import TrainingError
from ledger.rollouts import RolledGroup, RolledSample
from loop.methods.conversations import Talking, hold_conversations
from loop.methods.kept_rollouts import AnsweredStep, Answering, KeptRollouts, Trainable
from loop.methods.method import StepInFlight, StepResult, Workplace
from loop.methods.rollouts import (
    Answer,
    Asking,
    Prompt,
    answer_measures,
    datums_of,
    num_read_tokens,
    rolled_sample,
    sample_groups,
    sampler_now,
    sampler_trainer_kl,
    seeds_of,
    trained_by,
    trajectories_of,
)
from loop.methods.scoring import KeptScores, ask_all, sample_logprobs
from loop.planning.environments import room_of
from scores.intervals import mean
from scores.learnable import has_variance, is_solved
from simple_eval import MAX_FAILED_SHARE
from storage.journal import Journal
from user_code.modules import keeping_the_place
from user_code.own_graders import Verdict

if TYPE_CHECKING:
    import tinker
    import torch

# Nats a token between sampler and trainer; the cookbook's healthy runs stay below.
HEALTHY_KL = 0.01


class _Judged(NamedTuple):
    """A prompt's answers and what each is worth."""

    answers: list[Answer]
    verdicts: list[Verdict]

    @property
    def rewards(self) -> list[float | None]:
        """A malformed answer is worth 0, or the least of its group where that is less: what cannot
        be read must not be worth more than what is wrong."""
        known = [one.score for one in self.verdicts if one.problem is None]
        return [
            None
            if verdict.problem is not None
            else min(0.0, *known)
            if _is_unreadable(answer)
            else verdict.score
            for answer, verdict in zip(self.answers, self.verdicts, strict=True)
        ]


class Rl:
    """Policy-gradient steps on rewards."""

    learns_answers = False

    def __init__(self, workplace: Workplace) -> None:
        plan = self._plan = workplace.plan
        assert plan.config.rl is not None, "it is the method"
        self._workplace = workplace
        self._settings = plan.config.rl
        self._asking = Asking(
            self._settings.group_size, self._settings.max_tokens, self._settings.temperature
        )
        code = sorted(plan.inputs.rewarding_code.values())
        self._kept = KeptRollouts(workplace, {"config": plan.config_hash, "reward": code})
        self._start: tinker.SamplingClient | None = None
        self._has_warned = False

    async def begin_round(self, selection: Selection) -> None:
        self._kept.begin_round(selection.round)
        self._has_warned = False

    async def submit(
        self, client: tinker.TrainingClient, step: int, example_ids: list[str], lr: float
    ) -> StepInFlight:
        pending = StepInFlight(step, lr, example_ids, [], None, 0)
        answering = Answering(self._sampled, self._trainable, self._settings.loss)
        return await self._kept.submit(client, pending, answering)

    async def _trainable(
        self, prompts: Sequence[Prompt], groups: Sequence[RolledGroup]
    ) -> Trainable:
        pairs = [(p, _only_judged(g)) for p, g in zip(prompts, groups, strict=True) if g.is_used]
        advantages = advantages_of(pairs)
        datums = datums_of([p for p, _ in pairs], [g for _, g in pairs], advantages)
        measures = measures_of(groups, self._settings.group_size)
        num_read = sum(num_read_tokens(p, g) for p, g in zip(prompts, groups, strict=True))
        num_scored = 0
        if self._settings.kl_coef and datums:
            measures["kl_start"] = await self._penalise(datums, pairs)
            num_read += sum(one.model_input.length + 1 for one in datums)
            num_scored = len(datums)
        return Trainable(datums, measures, num_read, num_scored)

    async def finish(self, pending: StepInFlight) -> StepResult:
        made: AnsweredStep = pending.made
        if not made.datums:
            self._workplace.progress.line(
                f"step {pending.step}: no group of answers has any variance in its rewards (mean "
                f"{made.trainable.measures['reward']:.3g}), so there is no gradient, and the "
                "weights stay"
            )
            return made.result(None, {})
        trained = await trained_by(pending, made.datums)
        if self._asking.temperature != 1:  # the trainer's are of another distribution
            return made.result(trained, {})
        kl = self._sampler_kl(pending.step, made, trained.logprobs)
        return made.result(trained, {"kl_sampler_trainer": kl})

    # --- sampling and judging ---------------------------------------------------------------------

    async def _sampled(
        self, client: tinker.TrainingClient, step: int, prompts: Sequence[Prompt], journal: Journal
    ) -> list[RolledGroup]:
        plan, sampler = self._plan, await sampler_now(self._workplace, client)
        firsts = await self._tried(sampler, prompts, seeds_of(plan, step, prompts), journal)
        again = [place for place, one in enumerate(firsts) if _is_all_wrong(one)]
        groups = list(firsts)
        if again:
            asked, new_seeds = [prompts[p] for p in again], seeds_of(plan, step, prompts, 2)
            seconds = await self._tried(sampler, asked, [new_seeds[p] for p in again], journal)
            for place, second in zip(again, seconds, strict=True):
                first = firsts[place]
                groups[place] = _Judged(
                    first.answers + second.answers, first.verdicts + second.verdicts
                )
        self._refuse_failures(step, groups)
        rolled = [
            _rolled(prompt, group, num_tries=1 + (place in again))
            for place, (prompt, group) in enumerate(zip(prompts, groups, strict=True))
        ]
        return await self._scored(prompts, rolled, journal) if self._settings.kl_coef else rolled

    async def _tried(
        self,
        sampler: tinker.SamplingClient,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        journal: Journal,
    ) -> list[_Judged]:
        """A group for each prompt, sampled and judged."""
        plan, environment = self._plan, self._plan.inputs.environment
        if environment is None:
            answers = await sample_groups(plan, sampler, prompts, self._asking, seeds, journal)
            return await self._judged(prompts, answers)
        max_turns = self._settings.max_turns
        assert max_turns is not None, "it has a default beside an environment"
        talking = Talking(environment, self._asking, max_turns, room_of(plan))
        held = await hold_conversations(plan, sampler, prompts, talking, seeds, journal)
        return [
            _Judged([one.answer for one in group], [one.verdict for one in group]) for group in held
        ]

    async def _judged(
        self, prompts: Sequence[Prompt], answers: Sequence[list[Answer]]
    ) -> list[_Judged]:
        reward = self._plan.inputs.reward
        assert reward is not None, "there is a reward or an environment"

        async def judge(prompt: Prompt, answer: Answer) -> Verdict:
            if _is_unreadable(answer):
                return Verdict(0.0)
            assert answer.read.said is not None, "else it cannot be read"
            return await reward.judge(prompt.question, answer.read.said, prompt.reference)

        asked = [prompt for prompt, group in zip(prompts, answers, strict=True) for _ in group]
        given = [answer for group in answers for answer in group]
        with keeping_the_place():
            verdicts = iter(await ask_all(self._plan, judge, asked, given))
        return [_Judged(group, list(itertools.islice(verdicts, len(group)))) for group in answers]

    def _refuse_failures(self, step: int, groups: Sequence[_Judged]) -> None:
        """Raise `TrainingError` where more than a tenth of the answers have no reward."""
        problems = [one.problem for group in groups for one in group.verdicts]
        failed = [one for one in problems if one is not None]
        if len(failed) > MAX_FAILED_SHARE * len(problems):
            key = "rl.reward" if self._plan.inputs.environment is None else "rl.environment"
            raise TrainingError(
                f"{key}: {len(failed)} of the {len(problems)} answers of step {step} have no "
                f"reward, more than {MAX_FAILED_SHARE:.0%}. The first: {failed[0]}. What gives the "
                "rewards is at fault: mend it, and start a new run, which may start from this "
                "run's last checkpoint."
            )

    # --- distances --------------------------------------------------------------------------------

    async def _scored(
        self, prompts: Sequence[Prompt], groups: Sequence[RolledGroup], journal: Journal
    ) -> list[RolledGroup]:
        """Groups that are trained on with the log-probabilities of their answers' tokens under the
        weights that the run started from."""
        if self._start is None:
            began_as = self._workplace.store.checkpoint(0)  # None: the base model
            path = None if began_as is None else began_as.sampler_path
            self._start = await self._workplace.open_sampler(path, None)
        start = self._start
        judged = [
            (prompt, one)
            for prompt, group in zip(prompts, groups, strict=True)
            for one in group.samples
            if group.is_used and one.reward is not None and one.tokens
        ]

        async def score(prompt: Prompt, sample: RolledSample) -> list[float]:
            whose = "the weights of the start"
            return await sample_logprobs(start, prompt, sample, whose, journal)

        asked, samples = [prompt for prompt, _ in judged], [one for _, one in judged]
        scores = await ask_all(self._plan, score, asked, samples)
        found = {id(one): logprobs for one, logprobs in zip(samples, scores, strict=True)}
        return [
            replace(
                group,
                samples=[replace(one, start_logprobs=found.get(id(one))) for one in group.samples],
            )
            for group in groups
        ]

    async def _penalise(
        self, datums: list[tinker.Datum], pairs: Sequence[tuple[Prompt, RolledGroup]]
    ) -> float:
        """Put the KL to the weights that the run started from into the advantages; returns it."""
        from tinker_cookbook.rl.metrics import incorporate_kl_penalty

        scorer: Any = KeptScores(pairs)
        found = await incorporate_kl_penalty(datums, scorer, self._settings.kl_coef, 0.0)
        return found["kl_policy_base"]

    def _sampler_kl(self, step: int, made: AnsweredStep, logprobs: list[torch.Tensor]) -> float:
        kl, half_square = sampler_trainer_kl(made.datums, logprobs)
        if max(abs(kl), half_square) > HEALTHY_KL and not self._has_warned:
            self._has_warned = True
            self._workplace.progress.line(
                f"warning: step {step}: the sampler's and the trainer's log-probabilities of the "
                f"same answers differ, by a KL of {kl:.3g} nats a token (half the mean square "
                f"{half_square:.3g}), and healthy runs stay below {HEALTHY_KL:g}: the answers are "
                "hardly those of the weights that are trained."
            )
        return kl


# --- groups ---------------------------------------------------------------------------------------


def _is_unreadable(answer: Answer) -> bool:
    return answer.read.said is None or answer.read.is_malformed


def _known(rewards: Sequence[float | None]) -> list[float]:
    return [reward for reward in rewards if reward is not None]


def _is_all_wrong(group: _Judged) -> bool:
    """Whether the answers are all worth the same, and that is not what a right one is worth."""
    rewards = _known(group.rewards)
    return bool(rewards) and not has_variance(rewards) and not is_solved(rewards)


def _rolled(prompt: Prompt, group: _Judged, num_tries: int) -> RolledGroup:
    pairs = zip(group.answers, group.rewards, strict=True)
    samples = [rolled_sample(answer, reward) for answer, reward in pairs]
    is_used = has_variance(_known(group.rewards))
    rolled = RolledGroup(
        prompt.example_id, prompt.question, prompt.reference, samples, is_used, num_tries
    )
    if not is_used:
        return rolled
    (advantages_G,) = advantages_of([(prompt, _only_judged(rolled))])
    values = iter(advantages_G.tolist())
    samples = [
        one if one.reward is None else replace(one, advantage=next(values)) for one in samples
    ]
    return replace(rolled, samples=samples)


def _only_judged(group: RolledGroup) -> RolledGroup:
    """A group without the answers that have no reward."""
    return replace(group, samples=[one for one in group.samples if one.reward is not None])


def advantages_of(pairs: Sequence[tuple[Prompt, RolledGroup]]) -> list[torch.Tensor]:
    """Rewards less their group's mean, a tensor (G,) for each group."""
    from tinker_cookbook.rl.data_processing import compute_advantages

    return compute_advantages([trajectories_of(prompt, group.samples) for prompt, group in pairs])


def measures_of(groups: Sequence[RolledGroup], group_size: int) -> dict[str, float]:
    """What a step's answers tell. Those of a second try are left out, but for being counted: that
    there is one hangs on what the first gave."""
    firsts: list[RolledSample] = [one for group in groups for one in group.samples[:group_size]]
    rewards = _known([one.reward for one in firsts])
    turns = [len(one.turns) for one in firsts if one.turns is not None]
    return {
        "reward": mean(rewards) if rewards else 0.0,
        **answer_measures(firsts),
        "constant_share": mean([float(not group.is_used) for group in groups]),
        "learnable_groups": float(sum(group.is_used for group in groups)),
        "resampled_groups": float(sum(group.num_tries > 1 for group in groups)),
        "failed_rewards": float(sum(one.reward is None for g in groups for one in g.samples)),
        **({"turns": mean(turns)} if turns else {}),
    }
