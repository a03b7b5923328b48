"""A task as it is measured: its layer, its role, when it is due, and what it asks.

A task's layer follows from its name, its role from its layer: layer 3 (the application's own)
enters the score, layer 2 (public benchmarks) only where there is no layer 3, guards and held-out
losses never. Which is which is settled in planning and handed down.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from evaluation.held_out import HeldOutFile
from evaluation.inspect_model import INSPECT_MAX_TOKENS
from evaluation.inspect_tasks import InspectTask, last_user_text
from evaluation.preferences import PairFile
from grading.graders import GRADING
from rows.contamination import EvalText
from scores.results import Role
from simple_eval import DEFAULT_MAX_TOKENS, ROLES, QuestionTask, SamplingSettings, Turn


class Asked(NamedTuple):
    """One question with all that comes before it, and where it stands."""

    where: str
    turns: tuple[Turn, ...]

    @property
    def of_user(self) -> str:
        return "\n".join(turn.content for turn in self.turns if turn.role == "user")


@dataclass(frozen=True)
class EvalTask:
    """One entry of `eval_tasks`, loaded."""

    name: str
    layer: int
    role: Role
    every: int | Literal["end"]
    work: QuestionTask | InspectTask | HeldOutFile | PairFile

    def is_due(self, round_no: int) -> bool:
        """Whether a round measures it; the baseline also measures what guards are compared with."""
        if self.every == "end":
            return round_no == 0 and self.role == "guard"
        return round_no % self.every == 0

    @property
    def needs_rehearsal(self) -> bool:
        """Whether only a rehearsal shows before the first step what its task lacks."""
        return isinstance(self.work, InspectTask) and not self.is_due(0)

    @property
    def questions(self) -> tuple[str, ...]:
        """What is asked; of held-out conversations those of a single turn."""
        return tuple(text.question for text in self.eval_texts if text.question)

    @property
    def eval_texts(self) -> tuple[EvalText, ...]:
        """What must not be trained on."""
        if isinstance(self.work, QuestionTask):
            return tuple(
                EvalText(self.name, one.question, _other_turns(one.turns), cluster=one.cluster)
                for one in self.work.questions
            )
        return self.work.eval_texts

    @property
    def asked(self) -> Iterator[Asked]:
        """What each sample asks in full, before a solver adds to it; held-out rows ask nothing."""
        if isinstance(self.work, QuestionTask):
            for one in self.work.questions:
                yield Asked(f"{self.work.path} line {one.line_no}", one.turns)
        elif isinstance(self.work, InspectTask):
            for sample in self.work.task.dataset:
                yield Asked(f"{self.name}: sample {sample.id}", _turns_of(sample.input))
        elif isinstance(self.work, PairFile):
            for one in self.work.examples:
                before = (m for m in one.messages[:-1] if m.role in ROLES)
                turns = tuple(Turn(message.role, message.content) for message in before)
                yield Asked(f"{self.work.path} line {one.line_no}", turns)

    @property
    def n(self) -> int:
        """Questions, or held-out conversations or pairs."""
        if isinstance(self.work, HeldOutFile | PairFile):
            return len(self.work.examples)
        return len(self.work.questions)

    @property
    def sample_ids(self) -> frozenset[str]:
        """The ids that its results have."""
        if isinstance(self.work, HeldOutFile):
            return frozenset(example.id for example in self.work.examples)
        if isinstance(self.work, PairFile):
            return frozenset(f"{self.name}/{example.id}" for example in self.work.examples)
        if isinstance(self.work, QuestionTask):
            return frozenset(f"{self.name}/{question.id}" for question in self.work.questions)
        return frozenset(f"{self.name}/{sample.id}" for sample in self.work.task.dataset)

    @property
    def num_clusters(self) -> int:
        """Questions that share no cluster; `n` where none do."""
        if isinstance(self.work, PairFile):
            return len({self.work.clusters.get(one.id, one.id) for one in self.work.examples})
        if isinstance(self.work, QuestionTask):
            return len({question.cluster or question.id for question in self.work.questions})
        return self.work.num_clusters if isinstance(self.work, InspectTask) else self.n

    def num_requests(self, num_repeats: int) -> int:
        """Requests that an evaluation makes, where each question takes one turn."""
        if isinstance(self.work, PairFile):
            return 2 * self.n
        return self.n * (1 if isinstance(self.work, HeldOutFile) else num_repeats)

    def max_tokens(self, of_settings: int | None) -> int | None:
        """The longest answer of one turn that is asked for: what the settings say, else an Inspect
        task's own, else the default; None where nothing is sampled. A solver may ask for more."""
        if isinstance(self.work, HeldOutFile | PairFile):
            return None
        if isinstance(self.work, QuestionTask):
            return of_settings or DEFAULT_MAX_TOKENS
        return of_settings or self.work.task.config.max_tokens or INSPECT_MAX_TOKENS

    @property
    def topics(self) -> frozenset[str]:
        if isinstance(self.work, QuestionTask):
            return frozenset(q.topic for q in self.work.questions if q.topic is not None)
        if isinstance(self.work, InspectTask):
            return self.work.topics
        return frozenset(e.topic for e in self.work.examples if e.topic is not None)


def _turns_of(messages: Any) -> tuple[Turn, ...]:
    """The input of an Inspect sample; where it is more than plain text of known roles, what the
    user says last."""
    if isinstance(messages, str):
        return (Turn("user", messages),)
    if all(one.role in ROLES and isinstance(one.content, str) for one in messages):
        return tuple(Turn(one.role, one.text) for one in messages)
    return (Turn("user", last_user_text(messages)),)


def _other_turns(turns: Sequence[Turn]) -> tuple[str, ...]:
    """What stands before the question; a system prompt may be that of the training rows too."""
    return tuple(turn.content for turn in turns[:-1] if turn.role != "system")


def protocol_of(
    tasks: Sequence[EvalTask],
    settings: SamplingSettings,
    renderer_name: str,
    grader_model: str | None,
) -> dict[str, Any]:
    """Everything that changes a score; results with one protocol can be compared. What runs of
    earlier versions could not have is named only where it is used."""
    prompt = settings.system_prompt
    return {
        **({} if prompt is None else {"system_prompt": prompt}),
        "renderer": renderer_name,
        "temperature": settings.temperature,
        "max_tokens": settings.max_tokens,
        "num_repeats": settings.num_repeats,
        "seed": settings.seed,
        "grader_model": grader_model,
        "grading": GRADING,
        "tasks": {task.name: _task_protocol(task) for task in tasks},
    }


def _task_protocol(task: EvalTask) -> dict[str, Any]:
    told = {"sha256": task.work.sha256, "role": task.role}
    if isinstance(task.work, PairFile):  # what data.columns made of the file
        told["pairs_sha256"] = task.work.examples.sha256
    return told
