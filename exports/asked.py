"""What a checkpoint is asked for the self-check: questions of its run, and sample texts.

The questions are those of the run's evaluation, as its files hold them while they say what was
asked, else as its evals do; where neither can be read, rows that it trained on; of no run that is
known here, built-in ones. What the sealed test asks is never taken, and no code of a task is run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from config_schema import LoadedConfig, validate
from errors import LoopError
from exports.reference import OWN_QUESTIONS
from exports.source import Source as Exported
from ledger.finding import config_file_of
from ledger.store import RunStore
from loop.planning.row_files import load_rows
from rows.examples import Example
from rows.opened_files import is_text
from rows.sources import Source, read_rows
from scores.results import SampleResult
from settings.task_names import is_inspect_task
from simple_eval import (
    DEFAULT_MAX_TOKENS,
    ROLES,
    SIMPLE_QA,
    Question,
    Turn,
    parse_question,
    turns_asked,
)

T = TypeVar("T")

NUM_QUESTIONS = 100
NUM_CONVERSATIONS = 20
NUM_TEXTS = 50


class AskedQuestion(NamedTuple):
    """A question with all that comes before it, and an answer that is right or was trained on."""

    id: str
    group: tuple[str, str | None]  # its task and its topic
    turns: tuple[Turn, ...]
    answer: str


@dataclass(frozen=True)
class Asked:
    """What there is to ask of a checkpoint. `notes` are sentences on what could not be taken."""

    questions: tuple[AskedQuestion, ...]
    origin: str
    max_tokens: int = DEFAULT_MAX_TOKENS
    notes: tuple[str, ...] = ()


def asked_of(source: Exported) -> Asked:
    """Find the questions of the checkpoint's run."""
    if source.store is None:
        return Asked(BUILT_IN, "built-in questions, since its run is not known here")
    config = source.store.settled_config()["config"]
    evaluation = config.get("evaluation") or {}
    max_tokens = evaluation.get("max_tokens") or DEFAULT_MAX_TOKENS
    notes: list[str] = []
    round_no = 0 if source.checkpoint is None else source.checkpoint.round
    recorded = _recorded(source.store, round_no, notes)
    questions: list[AskedQuestion] = []
    for name in config.get("eval_tasks") or []:
        if not name.startswith(("nll:", "pref:")):  # which ask nothing
            questions += _of_task(source.store, name, recorded.get(name, []), notes)
    prompt = evaluation.get("system_prompt")
    questions = [one._replace(turns=tuple(turns_asked(one.turns, prompt))) for one in questions]
    origin = OWN_QUESTIONS
    if not questions:
        questions = list(_of_rows(source.store, notes))
        origin = "rows of the run's training, since no question of its evaluation can be read"
    if not questions:
        questions = list(BUILT_IN)
        origin = "built-in questions, since neither questions nor rows of the run can be read"
    return Asked(tuple(questions), origin, max_tokens, tuple(notes))


def spread(items: Sequence[T], group_of: Callable[[T], Hashable], number: int) -> list[T]:
    """So many of the items, each group in its turn, and in their own order. Pure."""
    groups: dict[Hashable, list[int]] = {}
    for place, item in enumerate(items):
        groups.setdefault(group_of(item), []).append(place)
    turns = min(max(map(len, groups.values()), default=0), number)  # each gives one at least
    in_turn = [places[turn] for turn in range(turns) for places in groups.values()
               if turn < len(places)]  # fmt: skip
    return [items[place] for place in sorted(in_turn[:number])]


# --- the run's evaluation -------------------------------------------------------------------------


def _recorded(store: RunStore, round_no: int, notes: list[str]) -> dict[str, list[SampleResult]]:
    """By task, what the evals of the checkpoint and of the start say was asked."""
    found: dict[str, list[SampleResult]] = {}
    for number in dict.fromkeys((round_no, 0)):
        try:
            result = store.result(number)
        except LoopError as error:
            notes.append(f"Its evaluation of round {number} cannot be read: {error}")
            continue
        for task in () if result is None else result.tasks:
            found.setdefault(task.name, [one for one in task.samples if one.repeat == 1])
    return found


def _of_task(
    store: RunStore, name: str, recorded: Sequence[SampleResult], notes: list[str]
) -> Iterator[AskedQuestion]:
    """The questions of a task, with the turns before them where its file still says them."""
    in_file: dict[str, Question] = {}
    if not is_inspect_task(name):
        path = _file_of(store, name)
        try:
            rows = read_rows(Source(path.name, path))
            parsed = (parse_question(row) for row in rows)
            in_file = {f"{name}/{one.id}": one for one in parsed}
        except (LoopError, ValueError) as error:
            notes.append(f"{name}: its questions are taken from the evals, since {error}")
    if not recorded:
        for key, one in in_file.items():
            yield AskedQuestion(key, (name, one.topic), one.turns, one.answers[0])
        return
    num_alone = 0
    for sample in recorded:
        one = in_file.get(sample.id)
        turns: tuple[Turn, ...] = (Turn("user", sample.question),)
        if one is not None and one.question == sample.question:
            turns = one.turns
        elif not (sample.question.strip() and is_text(sample.question)):
            continue
        else:
            num_alone += 1
        answer = next((text for text in sample.expected if text and is_text(text)), "Yes.")
        yield AskedQuestion(sample.id, (name, sample.topic), turns, answer)
    if num_alone:
        notes.append(
            f"{name}: {num_alone} of {len(recorded)} questions are asked as the evals hold them, "
            "the last message alone, since no question file says what came before it."
        )


def _file_of(store: RunStore, name: str) -> Path:
    """Where a task's question file lies now."""
    recorded = store.settled_config()["files"].get(f"eval_tasks.{name}")
    path = store.now_at(Path(recorded or name.removeprefix("qa:")))
    with contextlib.suppress(OSError, ValueError):  # a name that no file can have
        if name == "simple_qa" and not path.is_file():
            return SIMPLE_QA
    return path


# --- rows -----------------------------------------------------------------------------------------


def _of_rows(store: RunStore, notes: list[str]) -> Iterator[AskedQuestion]:
    """The rows that the run trained on, as questions; all that it was given where it took no
    step."""
    recorded = store.settled_config()
    file = config_file_of(recorded, store)
    try:
        loaded = LoadedConfig(validate(recorded["config"], str(store.run_dir)), file, file.parent)
        examples = load_rows(loaded, "train_file", loaded.config.train_file).examples
    except LoopError as error:
        notes.append(f"Its training rows cannot be read: {error}")
        return
    trained = store.trained_ids()
    places = [place for place in range(len(examples)) if examples.id_of(place) in trained]
    chosen = spread(places or range(len(examples)), examples.topic_of, NUM_QUESTIONS)
    for place in chosen:
        if (question := _of_row(examples[place])) is not None:
            yield question


def _of_row(row: Example) -> AskedQuestion | None:
    """A row as a question and its answer; None for one that is more than plain turns."""
    *before, last = row.messages
    plain = all(one.role in ROLES and not one.calls and one.reasoning is None for one in before)
    if not (before and plain and row.tools is None and before[-1].role == "user"):
        return None
    if last.role != "assistant" or last.calls or not last.content.strip():
        return None
    turns = tuple(Turn(one.role, one.content) for one in before)
    return AskedQuestion(
        f"{row.source} line {row.line_no}", ("rows", row.topic), turns, last.content
    )


# --- built in -------------------------------------------------------------------------------------

_PAIRS = (
    ("What is 17 + 25?", "42"),
    ("Name the capital of France.", "Paris"),
    ("Which planet is closest to the sun?", "Mercury"),
    ("Write the word 'river' backwards.", "revir"),
    ("How many days has a leap year?", "366"),
    ("Give a synonym of 'quick'.", "Fast"),
    ("What colour do blue and yellow make?", "Green"),
    ("Translate 'good morning' into German.", "Guten Morgen"),
    ("Is 91 a prime number? Answer yes or no, with a reason.", "No. 91 is 7 times 13."),
    ("What does a thermometer measure?", "Temperature"),
    ("Finish the list: Monday, Tuesday, Wednesday,", "Thursday"),
    ("How many metres are 3.5 km?", "3500"),
    ("What is the chemical formula of water?", "H2O"),
    ("Write a line of Python that prints 'hello'.", 'print("hello")'),
    ("Say in one sentence why the sky is blue.", "Air scatters blue light more than red light."),
    ("What is the opposite of 'ancient'?", "Modern"),
    ("Round 2.718 to one decimal.", "2.7"),
    ("Which is larger, 3/4 or 2/3?", "3/4"),
    ("Spell the number 15.", "fifteen"),
    ("Answer as JSON: the name Ada, the year 1815.", '{"name": "Ada", "year": 1815}'),
)
BUILT_IN = tuple(
    AskedQuestion(f"built-in/{number}", ("built-in", None), (Turn("user", question),), answer)
    for number, (question, answer) in enumerate(_PAIRS, start=1)
)

# Where tokenizers differ most: spaces, line ends, digits, and what is not Latin.
AWKWARD = (
    *("a", " a", "a ", "  two  spaces  inside  ", "\ttabs\tinside\t", "one\nline\n\nand two\n"),
    *(" \n ", "windows\r\nline ends\r\n", "trailing newline\n", "\n\n\nleading newlines"),
    *("0 1 12 123 1234 12345 1234567890", "3.14159 -2.5e-10 1,000,000 50%", "12:30 2026-11-29"),
    *("\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3002", "\u4e2d\u6587\uff0c\u6807\u70b9\u3002"),
    *("\ud55c\uad6d\uc5b4 \ubb38\uc7a5", "cafe\u0301 vs caf\u00e9"),
    *("\u0928\u092e\u0938\u094d\u0924\u0947",),
    *("\U0001f600\U0001f44d\U0001f3fd", "\U0001f468\u200d\U0001f469\u200d\U0001f467 family"),
    *("\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd", "\u0645\u0631\u062d\u0628\u0627 123"),
    *("it's don't we'll I'M THEY'RE", "CamelCase snake_case kebab-case", "x" * 40),
    *("<b>html</b> &amp; </script>", '{"json": [1, 2.0, null]}'),
    *("def f(x):\n    return x ** 2\n",),
    *("\u00a0no-break\u2003em space\u200bzero width", "\u2018quotes\u2019 \u2014 dash \u2026"),
)  # fmt: skip
