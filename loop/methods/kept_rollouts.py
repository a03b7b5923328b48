"""The answers of a run's steps on disk, so that a step that is taken again trains on what was paid
for.

A step's answers are written whole before the step is trained. They stand for the weights that gave
them: each file holds a digest of all that led to it (the settings, the step before with its answers
and its rate, the prompts), and one that does not fit is sampled anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from errors import RunStoreError
from ledger.rollouts import (
    RolledGroup,
    RolloutsFile,
    read_rollouts,
    rollouts_file,
    rollouts_journal,
    write_rollouts,
)
from loop.methods.method import StepInFlight, StepResult, Workplace
from loop.methods.rollouts import (
    Prompt,
    Trained,
    num_sampled_tokens,
    prompt_of,
    submit_policy_step,
)
from services.watched_client import NUM_SAMPLED_TO_SCORE
from storage.journal import Journal

if TYPE_CHECKING:
    import tinker


class _Before(NamedTuple):
    """The step that the weights had last: the digest of its answers, and its rate."""

    step: int
    digest: str
    lr: float


class StepAnswers(NamedTuple):
    """The groups that a step is trained on, one for each of its prompts, and what is told of them:
    their file, and whether an earlier event has counted what they cost."""

    groups: list[RolledGroup]
    file: RolloutsFile
    counted_before: bool


class Trainable(NamedTuple):
    """What a step's answers are trained as, and what they tell. `num_read` are the tokens that were
    read for them without a gradient, and `num_scored` how often weights were asked for
    log-probabilities of them."""

    datums: list[tinker.Datum]
    measures: dict[str, float]
    num_read: int
    num_scored: int


class Answering(NamedTuple):
    """How a step's answers come about, what they are trained as, and by which loss."""

    sample: Callable[
        [tinker.TrainingClient, int, Sequence[Prompt], Journal], Awaitable[list[RolledGroup]]
    ]
    trainable: Callable[[Sequence[Prompt], list[RolledGroup]], Awaitable[Trainable]]
    loss: str


class AnsweredStep(NamedTuple):
    """What a step on sampled answers keeps until it is finished."""

    trainable: Trainable
    kept: StepAnswers

    @property
    def datums(self) -> list[tinker.Datum]:
        return self.trainable.datums

    @property
    def num_tokens(self) -> int:
        """Those that are trained on."""
        return sum(one.model_input.length for one in self.datums)

    @property
    def num_sampled_tokens(self) -> int:
        scored = NUM_SAMPLED_TO_SCORE * self.trainable.num_scored
        return num_sampled_tokens(self.kept.groups) + scored

    def result(self, trained: Trained | None, measures: Mapping[str, float]) -> StepResult:
        """What came of it, the loss in nats a token; `trained` is None where nothing was."""
        made = self.trainable
        masks = [one.loss_fn_inputs["mask"].to_numpy() for one in made.datums]
        num_loss_tokens = sum(int((mask > 0).sum()) for mask in masks)
        return StepResult(
            loss=0.0 if trained is None else trained.loss / num_loss_tokens,
            nll=0.0 if trained is None else trained.nll,
            num_tokens=self.num_tokens,
            num_loss_tokens=num_loss_tokens,
            measures={**made.measures, **measures},
            num_prompt_tokens=made.num_read,
            num_sampled_tokens=self.num_sampled_tokens,
            rollouts=self.kept.file._asdict(),
            counted_before=self.kept.counted_before,
        )


class KeptRollouts:
    """The answers of a run's steps on disk. `settings` are all that decides how they come about,
    as JSON: other settings do not take them."""

    def __init__(self, workplace: Workplace, settings: Mapping[str, Any]) -> None:
        self._plan, self._store = workplace.plan, workplace.store
        self._say = workplace.progress.line
        self._settings = dict(settings)
        self._round: int | None = None
        self._before: _Before | None = None
        self._told: dict[tuple[int, str], str] = {}  # by step and what led to it, a file's sha256

    def begin_round(self, round_no: int) -> None:
        """Where a round's weights come from is looked up in the ledger: it may be an earlier one
        than the round before, or a resumed run may begin in its middle."""
        self._round, self._before = round_no, None
        for event in self._store.ever("step"):
            if event.get("rollouts"):
                self._tell(event["step"], event["rollouts"])
        for event in self._store.ever("failed"):
            for one in event.get("rollouts", ()):
                self._tell(one["step"], one["file"])

    def _tell(self, step: int, file: Mapping[str, str]) -> None:
        told = RolloutsFile(**file)
        self._told[step, told.drawn_with] = told.sha256

    async def submit(
        self, client: tinker.TrainingClient, pending: StepInFlight, answering: Answering
    ) -> StepInFlight:
        """Submit a step on its answers: those that are kept, where they came about as they would
        now, or else new ones, which are kept.

        Raises `RunStoreError` for a damaged file.
        """
        prompts = [prompt_of(self._plan, one) for one in pending.example_ids]

        async def sample(journal: Journal) -> list[RolledGroup]:
            return await answering.sample(client, pending.step, prompts, journal)

        kept = await self._of_step(pending.step, pending.example_ids, pending.lr, sample)
        made = await answering.trainable(prompts, kept.groups)
        answered = AnsweredStep(made, kept)
        is_new = not kept.counted_before
        pending = pending._replace(
            num_tokens=answered.num_tokens,
            made=answered,
            num_prompt_tokens=made.num_read * is_new,
            num_sampled_tokens=answered.num_sampled_tokens * is_new,
            rollouts=kept.file._asdict(),
        )
        return submit_policy_step(self._plan, client, pending, made.datums, answering.loss)

    async def _of_step(
        self,
        step: int,
        example_ids: Sequence[str],
        lr: float,
        sample: Callable[[Journal], Awaitable[list[RolledGroup]]],
    ) -> StepAnswers:
        """A step's groups, one for each prompt in their order; what `sample` gives is kept whole in
        the end, and until then what has come of it in the journal that it is given."""
        key = self._key(step, example_ids)
        groups = self._kept(step, key, example_ids)
        counted_before = groups is not None and (step, key) in self._told
        journal = rollouts_journal(self._store, step, key)
        if groups is None:
            groups = [replace(group, drawn_with=key) for group in await sample(journal)]
            assert [group.example_id for group in groups] == list(example_ids), "a group each"
            write_rollouts(self._store, step, groups)
        else:
            self._say(f"step {step}: trained on the answers in {rollouts_file(step)}, as sampled")
        journal.discard()  # also one that a kill left beside its file
        digest = self._digest(step)
        self._before = _Before(step, digest, lr)
        return StepAnswers(groups, RolloutsFile(digest, key), counted_before)

    def _kept(self, step: int, key: str, example_ids: Sequence[str]) -> list[RolledGroup] | None:
        file = self._store.run_dir / rollouts_file(step)
        try:
            groups = read_rollouts(self._store.run_dir, step)
            if groups is None or {group.drawn_with for group in groups} != {key}:
                return None  # sampled from other weights, of steps that were gone back behind
            told = self._told.get((step, key))
            if told is not None and self._digest(step) != told:
                raise ValueError(f"its sha256 is not {told}, as the ledger has it")
            if [group.example_id for group in groups] != list(example_ids):
                raise ValueError("it does not hold the prompts of its step")
            for group in groups:
                if any(len(one.tokens) != len(one.logprobs) for one in group.samples):
                    raise ValueError("an answer has not one log-probability for each token")
        except (OSError, ValueError) as error:
            raise RunStoreError(
                f"{file}: {error}. It holds the answers that step {step} trains on, and was "
                "changed by something else. Restore it, or delete it to have them sampled again."
            ) from None
        return groups

    def _key(self, step: int, example_ids: Sequence[str]) -> str:
        before = self._before if self._before and self._before.step < step else None
        if before is None:
            before = self._before_in_ledger(step)
        origin = self._store.origin
        led_to = {
            "settings": self._settings,
            "start": None if origin is None else origin.parent.state_path,
            "before": before and [before.step, before.digest, before.lr],
            "step": step,
            "prompts": list(example_ids),
        }
        return hashlib.sha256(json.dumps(led_to, sort_keys=True).encode()).hexdigest()[:32]

    def _before_in_ledger(self, step: int) -> _Before | None:
        assert self._round is not None, "a round has begun"
        for number in (self._round, *reversed(self._store.lineage(self._round))):
            steps = [one for one in self._store.events("step", number) if one["step"] < step]
            if steps:
                last = steps[-1]["step"]
                return _Before(last, self._digest(last), steps[-1]["lr"])
        return None

    def _digest(self, step: int) -> str:
        """Of a step's answers, and through the digests in them of all before; of what is not there
        an empty one."""
        file = self._store.run_dir / rollouts_file(step)
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
