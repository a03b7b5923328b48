"""The built-in evaluator: question files, asked of one checkpoint by real sampling, graded plainly.

A question is `{"question", "answer" (a string or a list of accepted ones), "system"?, "messages"?,
"topic"?, "cluster"?, "grader"?, "id"?}`, or a training row of a question and its answer; `messages`
is a conversation that ends with the question, and questions of one cluster (variants of each other)
count as dependent. A truncated answer is graded as it stands, a malformed one scores 0, and so does
a sample that failed; all three are counted. Too many failures make the evaluation fail, and then
there is no score.
"""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from errors import SENT_AGAIN, DataError, EvalError, ServiceError
from grading.graders import GRADERS, grade, problem_with
from grading.math_process import NotJudged
from grading.reasoning import LONGEST_MARKER, opens_reasoning, without_reasoning
from rows.accepted_answers import accepted_answers
from rows.opened_files import is_text
from rows.rendering import Rendering
from rows.row_keys import CHOICE_KEYS, CONTEXT_KEYS, as_question, is_answer_key
from rows.sources import Row, Source, read_rows, sha256_of
from rows.tool_calls import decoded, is_blank
from scores.results import SampleResult
from services.at_once import in_order
from storage.journal import Journal
from user_code.finding import code_of
from user_code.own_graders import OwnGrader, Verdict, grader_files, is_own_grader, load_own_graders

if TYPE_CHECKING:
    import tinker
    from tinker_cookbook.renderers import Message, Renderer

SIMPLE_QA = Path(__file__).resolve().parent / "evals" / "simple_qa.jsonl"
MAX_FAILED_SHARE = 0.1
MAX_LINES_NAMED = 5  # of one problem of a question file
DEFAULT_MAX_TOKENS = 64
QUESTION_KEYS = (*("question", "answer", "system", "messages", "topic", "cluster", "grader", "id"),)
OTHER_NAMES = {  # what other formats call it -> what it is called here
    **dict.fromkeys(("category", "subject", "subtopic", "label"), "topic"),
    **dict.fromkeys(("prompt", "instruction", "input", "query"), "question"),
    **dict.fromkeys(
        ("answers", "target", "output", "completion", "expected", "response"), "answer"
    ),
    **dict.fromkeys(("conversation", "conversations", "turns"), "messages"),
    **dict.fromkeys(("scorer", "metric"), "grader"),
    **dict.fromkeys(("system_prompt",), "system"),
    **dict.fromkeys(("group",), "cluster"),
}
ROLES = ("system", "user", "assistant")


class Turn(NamedTuple):
    """One turn of what is asked; `role` is among `ROLES`."""

    role: str
    content: str


@dataclass(frozen=True)
class Question:
    """One question of a task. `id` is the row's own, or a hash of all that is asked.

    `question` is the last turn, `turns` are all of them, a system prompt and the question included.
    """

    id: str
    question: str
    turns: tuple[Turn, ...]
    line_no: int
    answers: tuple[str, ...]
    topic: str | None
    grader: str
    cluster: str | None = None


class QuestionTask(NamedTuple):
    """A named question file, read and checked."""

    name: str
    path: Path
    sha256: str  # of the file and of the code of its own graders
    questions: tuple[Question, ...]
    graders: Mapping[str, OwnGrader] = MappingProxyType({})
    code: Mapping[str, str] = MappingProxyType({})  # their Python files, with their sha256


@dataclass(frozen=True)
class SamplingSettings:
    """How answers are sampled; part of the protocol that a score stands for."""

    temperature: float
    max_tokens: int | None  # None: the default of the task's kind
    seed: int
    num_repeats: int = 1
    concurrency: int = 128
    system_prompt: str | None = None  # before every question


@dataclass(frozen=True)
class Sampler:
    """One checkpoint, ready to be measured, and what its scores depend on besides."""

    name: str  # in logs
    client: tinker.SamplingClient
    renderer: Renderer
    rendering: Rendering
    settings: SamplingSettings


# --- questions ------------------------------------------------------------------------------------


def load_questions(name: str, path: Path) -> QuestionTask:
    """Read a question file. Raises `DataError` with file and line for the first wrong rows.

    Unlike training rows, questions are never dropped: a score over fewer questions than the file
    holds would not be the score that was asked for.
    """
    source = Source(path.name, path)
    questions: list[Question] = []
    wrong: dict[str, list[int]] = {}
    for row in read_rows(source):
        try:
            questions.append(parse_question(row))
        except ValueError as error:
            wrong.setdefault(str(error), []).append(row.line_no)
    problems = [f"{_lines(lines)}: {problem}" for problem, lines in wrong.items()]
    first: dict[str, Question] = {}
    for question in questions:
        if (other := first.setdefault(question.id, question)) is not question:
            problems.append(_same_id(question, other))
    if problems:
        raise DataError(
            f"{path}: {_counted(len(problems))}: {'; '.join(problems[:5])}. Expected one JSON "
            'object per line with "question" (or "messages") and "answer"; correct these rows.'
        )
    if not questions:
        raise DataError(f"{path}: the file holds no question. Give one JSON object per line.")
    graders, code = load_own_graders(path, (question.grader for question in questions))
    sha256 = _digest(sha256_of(source), code)
    return QuestionTask(name, path, sha256, tuple(questions), graders, code)


def digest_of(path: Path) -> str:
    """The `sha256` that a question file would be loaded with; no grader's code is run. Raises
    `DataError` and `OSError`."""
    code: dict[str, str] = {}
    for file in grader_files_of(path):
        code |= code_of(file)
    return _digest(sha256_of(Source(path.name, path)), code)


def _digest(of_file: str, code: Mapping[str, str]) -> str:
    if not code:
        return of_file
    return hashlib.sha256(json.dumps([of_file, *sorted(code.values())]).encode()).hexdigest()


def _lines(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"line {numbers[0]}"
    more = ", ..." if len(numbers) > MAX_LINES_NAMED else ""
    return f"lines {', '.join(map(str, numbers[:MAX_LINES_NAMED]))}{more} ({len(numbers)} of them)"


def _counted(number: int) -> str:
    return "1 problem" if number == 1 else f"{number} problems"


def grader_files_of(path: Path) -> list[Path]:
    """The Python files that the rows of a question file name as graders; none of them is run."""
    rows = (row.fields or {} for row in read_rows(Source(path.name, path)))
    return grader_files((str(fields.get("grader")) for fields in rows), path.parent)


def _same_id(question: Question, other: Question) -> str:
    if question.turns == other.turns:
        return f"the question {question.question!r} (id {question.id}) stands twice"
    return (
        f"line {question.line_no}: {question.question!r} has the id {question.id!r}, which is that "
        f"of {other.question!r} in line {other.line_no}; give one of them another id"
    )


def parse_question(row: Row) -> Question:
    """Read one row. Raises `ValueError` with the reason."""
    if row.fields is None:
        raise ValueError(row.problem)
    given = as_question(row.fields)  # Parquet gives each row the keys of all, most of them blank
    unknown = {key for key in given if key not in QUESTION_KEYS and is_blank(given[key])}
    fields = {k: v for k, v in given.items() if v is not None and k not in unknown}
    _refuse_unknown(fields)
    turns = _turns(fields)
    if not is_text(json.dumps(fields, ensure_ascii=False)):
        raise ValueError("it holds a lone surrogate, which is not text")
    answers = accepted_answers(fields.get("answer"))
    grader = fields.get("grader", "includes")
    if not isinstance(grader, str) or not (grader in GRADERS or is_own_grader(grader)):
        raise ValueError(
            f'"grader" is {grader!r}; known are {", ".join(GRADERS)}, and FILE.py@FUNCTION'
        )
    is_known = grader in GRADERS
    problems = (problem_with(grader, one) for one in answers if is_known)
    problem = next((found for found in problems if found is not None), None)
    if problem is not None:
        raise ValueError(f'"grader" is {grader}, and of "answer" {problem}')
    topic, cluster, own_id = (_name(fields, key) for key in ("topic", "cluster", "id"))
    question = turns[-1].content
    # A question alone has the hash of its text, as it had before there could be more.
    asked = question if len(turns) == 1 else json.dumps(turns, ensure_ascii=False)
    question_id = own_id or hashlib.sha256(asked.encode()).hexdigest()[:16]
    return Question(question_id, question, turns, row.line_no, answers, topic, grader, cluster)


def _refuse_unknown(fields: Mapping[str, Any]) -> None:
    unknown = sorted(set(fields) - set(QUESTION_KEYS))
    choices = next((key for key in unknown if key in CHOICE_KEYS), None)
    if choices is not None:
        raise ValueError(
            f"unknown key {choices!r}: what there is to choose from is asked as part of the "
            'question; write it there, and as "answer" what the model is to say, such as the letter'
        )
    context = next((key for key in unknown if key in CONTEXT_KEYS), None)
    if context is not None and "question" in fields:
        raise ValueError(f"unknown key {context!r}: if the answer rests on it, write it into the "
                         "question; if not, take it out")  # fmt: skip
    if unknown:
        near = difflib.get_close_matches(unknown[0], QUESTION_KEYS, n=1, cutoff=0.6)
        meant = OTHER_NAMES.get(unknown[0].lower()) or next(iter(near), None)
        meant = meant or ("answer" if is_answer_key(unknown[0]) else None)
        hint = f"did you mean {meant}? Known" if meant else "known"
        raise ValueError(f"unknown key {unknown[0]!r}; {hint} are {', '.join(QUESTION_KEYS)}")


def _turns(fields: Mapping[str, Any]) -> tuple[Turn, ...]:
    """All that a row asks, in order. Raises `ValueError` with the reason."""
    question, system, messages = (fields.get(key) for key in ("question", "system", "messages"))
    has_question = isinstance(question, str) and bool(question.strip())
    if not has_question and (question is not None or messages is None):
        raise ValueError('"question" is missing, empty or not a string')
    if system is not None and not (isinstance(system, str) and system.strip()):
        raise ValueError('"system" is empty or not a string')
    turns = [Turn("user", str(question))] if messages is None else _checked_messages(messages)
    if has_question and question != turns[-1].content:
        raise ValueError(
            f'"question" is {question!r}, and "messages" end with {turns[-1].content!r}; they are '
            "the same thing, so leave out one of them"
        )
    if system is not None and turns[0].role == "system" and turns[0].content != system:
        raise ValueError('"system" and the system turn of "messages" differ; leave out one of them')
    if system is not None and turns[0].role != "system":
        turns.insert(0, Turn("system", system))
    return tuple(turns)


def _checked_messages(messages: Any) -> list[Turn]:
    messages = decoded(messages)  # CSV has them as JSON text
    if not isinstance(messages, list) or not messages:
        raise ValueError('"messages" is not a list with at least one message')
    turns = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise ValueError(f'message {index} is not an object with "role" and "content" alone')
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise ValueError(f"message {index} has the role {role!r}; known are {', '.join(ROLES)}")
        if not isinstance(content, str) or not content.strip():
            raise ValueError(f"message {index}'s content is empty or not a string")
        turns.append(Turn(role, content))
    if turns[-1].role != "user":
        raise ValueError(
            'the last message is not the user\'s, so it asks nothing; "answer" holds '
            "what the assistant is to say"
        )
    return turns


def _name(fields: Mapping[str, Any], key: str) -> str | None:
    """What a question is called; a number is a name as well, as in training rows."""
    value = fields.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None or (isinstance(value, str) and value):
        return value
    raise ValueError(f'"{key}" must be a non-empty string, or a number, where it is given')


# --- asking ---------------------------------------------------------------------------------------


def build_prompt(
    renderer: Renderer, turns: Sequence[Turn], system_prompt: str | None = None
) -> tinker.ModelInput:
    """The tokens that ask, in a chat format, with a system prompt put before the turns. Raises
    `ValueError` for what the format cannot say."""
    return renderer.build_generation_prompt(
        [{"role": turn.role, "content": turn.content} for turn in turns_asked(turns, system_prompt)]
    )


def turns_asked(turns: Sequence[Turn], system_prompt: str | None) -> list[Turn]:
    """A question's turns with the system prompt for all questions before them."""
    if system_prompt is None:
        return list(turns)
    has_own = bool(turns) and turns[0].role == "system"
    said = joined_prompt(system_prompt, turns[0].content) if has_own else system_prompt
    return [Turn("system", said), *turns[has_own:]]


def joined_prompt(system_prompt: str, of_question: str) -> str:
    """One system message of the prompt for all questions and a question's own."""
    return f"{system_prompt}\n\n{of_question}"


async def ask_questions(
    task: QuestionTask,
    sampler: Sampler,
    journal: Journal,
    on_graded: Callable[[SampleResult], None] = lambda sample: None,
) -> tuple[SampleResult, ...]:
    """Ask every question of a task, as many times as the settings say, and grade the answers.

    Samples in the journal are not asked again, and each graded one is added to it and told. Raises
    `EvalError` when more than a tenth of the samples failed.
    """
    import tinker

    renderer, settings = sampler.renderer, sampler.settings
    slots = asyncio.Semaphore(settings.concurrency)

    async def ask(asked: tuple[int, Question]) -> SampleResult:
        repeat, question = asked
        key = f"{task.name}/{question.id} {repeat}"
        if (kept := journal.get(key, SampleResult)) is not None:
            return kept
        prompt = build_prompt(renderer, question.turns, settings.system_prompt)
        params = tinker.SamplingParams(
            max_tokens=settings.max_tokens or DEFAULT_MAX_TOKENS,
            temperature=settings.temperature,
            seed=settings.seed + repeat - 1,
            stop=renderer.get_stop_sequences(),
        )
        async with slots:
            try:
                response = await sampler.client.sample(prompt, 1, params)
            except ServiceError as error:
                return _failed(task, question, repeat, str(error))
        sequence = response.sequences[0]
        sample = await _graded(task, question, repeat, renderer, sequence, prompt)
        if sample.error is not None:
            return sample
        on_graded(sample)
        journal.add(
            key,
            asdict(sample),
            num_prompt_tokens=sample.num_prompt_tokens,
            num_sampled_tokens=sample.num_sampled_tokens,
        )
        return sample

    asked = itertools.product(range(1, settings.num_repeats + 1), task.questions)
    samples = await in_order(asked, settings.concurrency, ask)
    refuse_failures(task.name, samples)
    return tuple(samples)


def refuse_failures(name: str, samples: Sequence[SampleResult]) -> None:
    """Raise `EvalError` when more than a tenth of the samples failed: then there is no score."""
    failed = [sample for sample in samples if sample.error is not None]
    if len(failed) > MAX_FAILED_SHARE * len(samples):
        remedy = " Resume the run to ask these of the same checkpoint again."
        if all(SENT_AGAIN in (sample.error or "") for sample in failed):
            remedy = ""
        elif all(sample.answer is not None for sample in failed):
            remedy = (
                " The answers are there, and what grades them is at fault: mend it, and start a "
                "new run, or evaluate this run's checkpoints with --evaluate."
            )
        error = EvalError(
            f"{name}: {len(failed)} of {len(samples)} samples failed, more than "
            f"{MAX_FAILED_SHARE:.0%}, so there is no score. The first: {failed[0].error}.{remedy}"
        )
        # The others are kept, and count once they are part of a result.
        error.num_prompt_tokens = sum(sample.num_prompt_tokens for sample in failed)
        error.num_sampled_tokens = sum(sample.num_sampled_tokens for sample in failed)
        raise error


def said_by(
    renderer: Renderer, prompt: tinker.ModelInput, tokens: Sequence[int], message: Message
) -> str | None:
    """What a parsed message says after its model's reasoning; None where that never ends.

    Of some chat formats the prompt opens the trace, and some renderers take it out of the message:
    whether it was closed is therefore asked of the tokens themselves.
    """
    tail = renderer.tokenizer.decode(prompt.to_ints()[-LONGEST_MARKER:])
    raw = renderer.tokenizer.decode(list(tokens))
    if without_reasoning(str(raw), is_open=opens_reasoning(str(tail))) is None:
        return None
    content = message["content"]
    if isinstance(content, str):
        return without_reasoning(content)
    texts: list[str] = []
    for part in content:
        if part["type"] == "thinking":
            texts.clear()
        elif part["type"] == "text":
            texts.append(part["text"])
    return without_reasoning("".join(texts))


class ReadAnswer(NamedTuple):
    """A sampled answer as graders see it: `said` is its text after its model's reasoning, None
    where that never ends."""

    text: str
    said: str | None
    is_truncated: bool
    is_malformed: bool


def read_answer(
    renderer: Renderer, prompt: tinker.ModelInput, sequence: tinker.SampledSequence
) -> ReadAnswer:
    """Parse what was sampled: a truncated answer counts as it stands, a malformed one as wrong."""
    from tinker_cookbook.renderers import get_text_content

    tokens = list(sequence.tokens)
    message, termination = renderer.parse_response(tokens)
    said = said_by(renderer, prompt, tokens, message)
    is_truncated = sequence.stop_reason == "length"
    is_malformed = not is_truncated and (said is None or not termination.is_clean)
    return ReadAnswer(get_text_content(message), said, is_truncated, is_malformed)


async def _graded(
    task: QuestionTask,
    question: Question,
    repeat: int,
    renderer: Renderer,
    sequence: tinker.SampledSequence,
    prompt: tinker.ModelInput,
) -> SampleResult:
    read = read_answer(renderer, prompt, sequence)
    verdict = Verdict(0.0)
    if read.said is not None and not read.is_malformed:
        verdict = await _verdict(task, question, read.said)
    return SampleResult(
        id=f"{task.name}/{question.id}",
        topic=question.topic,
        question=question.question,
        expected=question.answers,
        answer=read.text,
        score=verdict.score,
        truncated=read.is_truncated,
        malformed=read.is_malformed,
        error=verdict.problem,
        repeat=repeat,
        cluster=question.cluster,
        num_prompt_tokens=prompt.length,
        num_sampled_tokens=len(sequence.tokens),
    )


async def _verdict(task: QuestionTask, question: Question, said: str) -> Verdict:
    if (own := task.graders.get(question.grader)) is not None:
        return await own.verdict(said, question.answers)
    try:
        return Verdict(float(await grade(question.grader, said, question.answers)))
    except NotJudged as error:
        return Verdict(0.0, str(error))


def _failed(task: QuestionTask, question: Question, repeat: int, error: str) -> SampleResult:
    return SampleResult(
        id=f"{task.name}/{question.id}",
        topic=question.topic,
        question=question.question,
        expected=question.answers,
        answer=None,
        score=0.0,
        truncated=False,
        malformed=False,
        error=error,
        repeat=repeat,
        cluster=question.cluster,
    )
