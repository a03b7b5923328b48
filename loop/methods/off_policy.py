"""Off-policy distillation: the teacher answers, and the student learns its answers by
cross-entropy, as tokens (hard) or as the teacher's distribution at each of them (soft).

A row is answered once in a run, `distill.group_size` times, and what the teacher finds likely in
its answers is read once; answers that were cut at
`distill.max_tokens` are counted and left out, and each row counts alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_selector import Selection
from errors import TrainingError
from ledger.rollouts import RolledGroup, RolledSample
from ledger.taught_answers import SoftTargets, TaughtAnswers, TopTokens
from loop.methods.method import StepInFlight, StepResult, Workplace, adam_params, parts_of
from loop.methods.rollouts import (
    Answer,
    Asking,
    Prompt,
    prompt_of,
    rolled_sample,
    sample_groups,
    seed_of,
)
from loop.methods.sft import batch_loss
from loop.methods.teaching import (
    Likeliest,
    normalised,
    open_teacher,
    read_targets,
    settings_of,
    teacher_prompt_of,
)

if TYPE_CHECKING:
    import numpy as np
    import tinker

TEMPERATURE = 1.0  # of the teacher's answers: its own distribution


@dataclass(frozen=True)
class _Made:
    """What a submitted step keeps until it is finished."""

    datums: list[tinker.Datum]
    total_weight: float
    entropy: float | None  # of the soft targets, mean over tokens in nats; None of hard ones
    measures: dict[str, float]


class OffPolicy:
    """Cross-entropy on the teacher's answers."""

    learns_answers = True

    def __init__(self, workplace: Workplace) -> None:
        self._workplace, self._plan = workplace, workplace.plan
        self._answers = TaughtAnswers(workplace.store)
        self._targets = SoftTargets(workplace.store)
        self._is_soft = (settings_of(self._plan).targets or "soft") == "soft"
        self._groups: dict[str, RolledGroup] = {}
        self._teacher: tinker.SamplingClient | None = None

    async def begin_round(self, selection: Selection) -> None:
        """Have the rows answered that are not yet, all at once, and what the teacher finds likely
        at each token of the answers."""
        ids = list(dict.fromkeys(pick.example_id for pick in selection.picks))
        groups = self._answers.of(ids)
        left = [one for one in ids if one not in groups]
        if left:
            groups |= await self._answered(selection.round, left)
        self._groups = groups
        self._refuse_unanswered(selection)
        if self._is_soft:
            await self._read_targets(selection.round, ids)

    async def _opened(self) -> tinker.SamplingClient:
        """The teacher, opened where it has anything to say: not where all of it is kept."""
        if self._teacher is None:
            self._teacher = await open_teacher(self._workplace)
        return self._teacher

    async def _answered(self, round_no: int, ids: Sequence[str]) -> dict[str, RolledGroup]:
        """The teacher's answers to these rows, kept one by one, and recorded together."""
        plan, settings = self._plan, settings_of(self._plan)
        teacher = await self._opened()
        journal = self._answers.journal()
        asking = Asking(settings.group_size, settings.max_tokens, TEMPERATURE)
        counted = self._workplace.progress.counter("the teacher answers rows", len(ids))
        groups: dict[str, RolledGroup] = {}
        prompts = [teacher_prompt_of(plan, example_id) for example_id in ids]
        size = plan.config.evaluation.concurrency
        for start in range(0, len(prompts), size):
            some = prompts[start : start + size]
            seeds = [seed_of(plan.config.seed, 0, one.example_id, 1) for one in some]
            made = await sample_groups(plan, teacher, some, asking, seeds, journal)
            for prompt, answers in zip(some, made, strict=True):
                groups[prompt.example_id] = _group_of(prompt, answers)
                counted()
        self._answers.record(round_no, [groups[one] for one in ids], journal)
        return groups

    async def _read_targets(self, round_no: int, ids: Sequence[str]) -> None:
        """Have read what was not yet, answer by answer, and record it together."""
        known = self._targets.known()
        left = {one: usable(self._groups[one]) for one in ids if one not in known}
        left = {one: answers for one, answers in left.items() if answers}
        if not left:
            return
        journal = self._targets.journal()
        self._workplace.progress.live(f"the teacher reads its answers to {len(left):,} rows")
        made = await read_targets(self._plan, await self._opened(), left, journal)
        self._targets.record(round_no, made, journal)
        self._targets.known()

    def _refuse_unanswered(self, selection: Selection) -> None:
        """Raise `TrainingError` for a step without an answer that can be trained on."""
        size, max_tokens = self._plan.config.batch_size, settings_of(self._plan).max_tokens
        ids = [pick.example_id for pick in selection.picks]
        for start in range(0, len(ids), size):
            groups = [self._groups[one] for one in ids[start : start + size]]
            if not any(usable(group) for group in groups):
                raise TrainingError(
                    f"All of the teacher's answers to {len(groups)} rows of round "
                    f"{selection.round} were empty or cut at distill.max_tokens, {max_tokens} "
                    "tokens, so there is nothing to train a step on. Start a new run with a higher "
                    "distill.max_tokens."
                )

    async def submit(
        self, client: tinker.TrainingClient, step: int, example_ids: list[str], lr: float
    ) -> StepInFlight:
        made = self._made(example_ids)
        config = self._plan.config
        forward_backwards = [
            client.forward_backward(list(part), "cross_entropy")
            for part in parts_of(made.datums, config.data.accumulate)
        ]
        optim_step = client.optim_step(adam_params(config, lr))
        num_tokens = sum(one.model_input.length for one in made.datums)
        return StepInFlight(step, lr, example_ids, forward_backwards, optim_step, num_tokens, made)

    def _made(self, example_ids: Sequence[str]) -> _Made:
        plan = self._plan
        groups = [self._groups[one] for one in example_ids]
        pairs = [(group, one) for group in groups for one in usable(group)]
        answers = [one for _, one in pairs]
        prompts = {one: prompt_of(plan, one) for one in example_ids}
        soft = self._soft(groups) if self._is_soft else [None] * len(pairs)
        weights = [prompts[g.example_id].weight / len(usable(g)) for g, _ in pairs]
        datums = [
            datum_of(prompts[group.example_id], answer.tokens, weight, targets)
            for (group, answer), weight, targets in zip(pairs, weights, soft, strict=True)
        ]
        num_answers = sum(len(group.samples) for group in groups)
        measures = {
            "answer_tokens": sum(len(one.tokens) for one in answers) / len(answers),
            "truncated_share": 1 - len(answers) / num_answers,
        }
        known = [one for one in soft if one is not None]
        entropy = mean_entropy(known) if known else None
        return _Made(datums, math.fsum(weights), entropy, measures)

    def _soft(self, groups: Sequence[RolledGroup]) -> list[Likeliest]:
        """The targets of each usable answer of these groups, in their order."""
        lengths = {g.example_id: sum(len(one.tokens) for one in usable(g)) for g in groups}
        kept = self._targets.of({one: number for one, number in lengths.items() if number})
        found = []
        for group in groups:
            begin = 0
            for answer in usable(group):
                part = slice(begin, begin := begin + len(answer.tokens))
                top = kept[group.example_id]
                found.append(normalised(TopTokens(top.tokens_TK[part], top.logprobs_TK[part])))
        return found

    async def finish(self, pending: StepInFlight) -> StepResult:
        made: _Made = pending.made
        outputs = [await future for future in pending.forward_backwards]
        weights = [one.loss_fn_inputs["weights"].to_numpy() for one in made.datums]
        loss, nll = batch_loss(
            [one["logprobs"].to_numpy() for output in outputs for one in output.loss_fn_outputs],
            weights,
            made.total_weight,
        )
        measures = dict(made.measures)
        if made.entropy is not None:
            measures["forward_kl"] = nll - made.entropy
        return StepResult(
            loss,
            nll,
            num_tokens=pending.num_tokens,
            num_loss_tokens=sum(num_loss_tokens(one) for one in weights),
            measures=measures,
        )


def _group_of(prompt: Prompt, answers: Sequence[Answer]) -> RolledGroup:
    samples = [rolled_sample(one, None) for one in answers]
    has_any = any(map(_is_usable, samples))
    return RolledGroup(prompt.example_id, prompt.question, prompt.reference, samples, has_any)


def _is_usable(sample: RolledSample) -> bool:
    return bool(sample.tokens) and not sample.is_truncated


def usable(group: RolledGroup) -> list[RolledSample]:
    """The answers of a group that came to their end, and have a token to learn."""
    return [one for one in group.samples if _is_usable(one)]


def datum_of(
    prompt: Prompt, answer: Sequence[int], weight: float, soft: Likeliest | None
) -> tinker.Datum:
    """A datum whose loss is the mean over an answer's tokens, times `weight`.

    Targets and weights are (N,), or (N, K) of soft targets, for N tokens of input.
    """
    import numpy as np
    import tinker

    tokens = [*prompt.tokens.to_ints(), *answer]
    num_inputs, num_trained = len(tokens) - 1, len(answer)
    shape = (num_inputs,) if soft is None else (num_inputs, soft.tokens_TK.shape[1])
    targets, weights = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    targets[:] = np.array(tokens[1:]) if soft is None else np.array(tokens[1:])[:, None]
    share = weight / num_trained
    if soft is None:
        weights[-num_trained:] = share
    else:
        targets[-num_trained:] = soft.tokens_TK
        weights[-num_trained:] = share * soft.probs_TK
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData.from_numpy(targets),
            "weights": tinker.TensorData.from_numpy(weights),
        },
    )


def num_loss_tokens(weights: np.ndarray) -> int:
    """How many tokens carry loss, of weights (N,) or (N, K)."""
    return int((weights.reshape(len(weights), -1) > 0).any(axis=1).sum())


def mean_entropy(targets: Sequence[Likeliest]) -> float:
    """The mean entropy of soft targets in nats, over all their tokens."""
    import numpy as np

    total, number = 0.0, 0
    for one in targets:
        probs = one.probs_TK
        total -= float((probs * np.log(np.where(probs > 0, probs, 1.0))).sum())
        number += len(probs)
    return total / number
