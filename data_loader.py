"""From files to what is trained on: rows -> Example -> Datum, with every dropped row accounted for.

A row is `{"instruction", "input"?, "output"}` or `{"messages": [{"role", "content"}, ...]}`, and
may carry `topic`. Exact duplicates (over the whole conversation) and rows that hold an evaluation
question are dropped; each dropped row is listed with file, line and reason. Masks come from the
cookbook's renderers: only assistant tokens carry loss.
This file does not see scores and does not choose what to train on.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from errors import ConfigError, DataError, TokenizerError

if TYPE_CHECKING:
    import tinker
    from tinker_cookbook.renderers import Renderer

ROLES = ("system", "user", "assistant")
MAX_REJECTED_SHARE = 0.5  # a file that loses more of its rows to errors is probably the wrong file
MIN_CONTAINED_WORDS = 4  # shorter questions only count as contained when they are the whole turn
OPERATORS = frozenset("+-*/=<>^%×÷")  # noqa: RUF001 (the multiplication sign is meant)


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """One training row. `id` is the sha256 of its canonical messages and of nothing else."""

    id: str
    messages: tuple[Message, ...]
    source: str
    line_no: int
    topic: str | None


@dataclass(frozen=True)
class DroppedRow:
    """A row that is not trained on, and why."""

    file: str
    line_no: int
    kind: str  # "rejected", "duplicate", "contaminated" or "no_loss_tokens"
    reason: str


@dataclass(frozen=True)
class DatumInfo:
    """What is known of a rendered example."""

    example_id: str
    num_tokens: int
    num_loss_tokens: int
    truncated: bool


class RenderedExample(NamedTuple):
    """A datum as the service takes it, and what is known of it."""

    datum: tinker.Datum
    info: DatumInfo


class LoadedFile(NamedTuple):
    """The usable rows of one file, in file order, and the others."""

    path: Path
    sha256: str
    num_rows: int
    examples: tuple[Example, ...]
    dropped: tuple[DroppedRow, ...]


# --- rows -> Example ---------------------------------------------------------------------------


class Lines(NamedTuple):
    """The lines of a JSONL file that hold something, with their numbers from 1."""

    sha256: str
    lines: list[tuple[int, bytes]]


def read_lines(path: Path) -> Lines:
    """Read a JSONL file. Raises `DataError` when it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    # Split on newlines only: splitlines would also cut at characters that JSON strings may hold.
    numbered = enumerate(content.split(b"\n"), start=1)
    return Lines(
        hashlib.sha256(content).hexdigest(),
        [(number, line) for number, line in numbered if line.strip()],
    )


def load_examples(path: Path) -> LoadedFile:
    """Read a JSONL file of training rows.

    Raises `DataError` when the file cannot be read, holds no row, or loses most rows to errors.
    """
    file = read_lines(path)
    examples: list[Example] = []
    dropped: list[DroppedRow] = []
    first_line: dict[str, int] = {}
    for line_no, line in file.lines:
        try:
            example = parse_row(line, path.name, line_no)
        except ValueError as error:
            dropped.append(DroppedRow(path.name, line_no, "rejected", str(error)))
            continue
        if example.id in first_line:
            reason = f"the same conversation as line {first_line[example.id]}"
            dropped.append(DroppedRow(path.name, line_no, "duplicate", reason))
            continue
        first_line[example.id] = line_no
        examples.append(example)
    _refuse_unusable(path, len(file.lines), examples, dropped)
    return LoadedFile(path, file.sha256, len(file.lines), tuple(examples), tuple(dropped))


def _refuse_unusable(
    path: Path, num_rows: int, examples: list[Example], dropped: list[DroppedRow]
) -> None:
    if num_rows == 0:
        raise DataError(f"{path}: the file is empty. Give a JSONL file with one example per line.")
    rejected = [row for row in dropped if row.kind == "rejected"]
    if not examples or len(rejected) > MAX_REJECTED_SHARE * num_rows:
        shown = " ".join(f"Line {row.line_no}: {row.reason}." for row in rejected[:3])
        raise DataError(
            f"{path}: {len(rejected)} of {num_rows} rows cannot be used. {shown} Expected one JSON "
            'object per line with "instruction" and "output", or "messages".'
        )


def parse_row(line: bytes, source: str, line_no: int) -> Example:
    """Parse one line. Raises `ValueError` with the reason when it is not a training row."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError("not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at column {error.colno}") from None
    except (RecursionError, ValueError) as error:
        raise ValueError(f"not usable JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    topic = row.get("topic")
    if topic is not None:
        topic = _text(topic, '"topic"')
    messages = _messages_of(row)
    canonical = json.dumps([list(message) for message in messages], ensure_ascii=False)
    example_id = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
    return Example(example_id, messages, source, line_no, topic)


def _messages_of(row: Mapping[str, Any]) -> tuple[Message, ...]:
    if "messages" in row:
        return _checked_messages(row["messages"])
    if "instruction" not in row or "output" not in row:
        found = ", ".join(sorted(map(str, row))[:8]) or "none"
        raise ValueError(f'expected "messages" or "instruction"+"output", found keys: {found}')
    instruction = _text(row["instruction"], '"instruction"')
    extra = row.get("input")
    if extra not in (None, ""):
        instruction = instruction + "\n\n" + _text(extra, '"input"')
    return (Message("user", instruction), Message("assistant", _text(row["output"], '"output"')))


def _checked_messages(raw: Any) -> tuple[Message, ...]:
    if not isinstance(raw, list) or not raw:
        raise ValueError('"messages" is not a list with at least one message')
    messages = []
    for index, item in enumerate(raw):
        if not isinstance(item, dict) or item.get("role") not in ROLES:
            raise ValueError(f"message {index} has no role among {', '.join(ROLES)}")
        messages.append(
            Message(item["role"], _text(item.get("content"), f"message {index}'s content"))
        )
    if messages[-1].role != "assistant":
        raise ValueError("the last message is not the assistant's, so there is nothing to train on")
    if not any(message.role == "user" for message in messages):
        raise ValueError("there is no user message")
    return tuple(messages)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} is not a string")
    if not value.strip():
        raise ValueError(f"{what} is empty")
    if any(0xD800 <= ord(character) <= 0xDFFF for character in value):
        raise ValueError(f"{what} holds a lone surrogate, which no tokenizer can encode")
    return value


# --- contamination -------------------------------------------------------------------------------


def normalise(text: str) -> str:
    """Reduce a text to what identifies a question: words, and marks that have meaning in numbers.

    NFKC, case folded, punctuation and repeated spaces removed; digits stay, and so do operators and
    marks that stand beside a digit ("2 + 3", "3.5", "-4"), so that different sums stay different.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    after = _next_visible(folded)
    before = ""  # the last character that was not a space
    kept: list[str] = []
    for position, character in enumerate(folded):
        if character.isalnum() or unicodedata.category(character).startswith("M"):
            kept.append(character)
        elif character in OPERATORS and (before.isdigit() or after[position].isdigit()):
            kept.append(f" {character} ")
        elif character in ".,:" and _stands_between_digits(folded, position):
            kept.append(character)
        else:
            kept.append(" ")
        if not character.isspace():
            before = character
    return " ".join("".join(kept).split())


def _next_visible(text: str) -> list[str]:
    """For each position the next character after it that is not a space, "" at the end."""
    after = [""] * len(text)
    following = ""
    for position in range(len(text) - 1, -1, -1):
        after[position] = following
        if not text[position].isspace():
            following = text[position]
    return after


def _stands_between_digits(text: str, position: int) -> bool:
    return text[position - 1 : position].isdigit() and text[position + 1 : position + 2].isdigit()


class HeldOutQuestions:
    """The questions of all evaluation tasks, ready to be looked for in training rows.

    The rule: a user turn that is the same question after `normalise`, or that contains a question
    of at least four words, on whole words.
    """

    def __init__(self, questions: Iterable[str]) -> None:
        self._whole: dict[str, str] = {}
        self._by_first_words: dict[tuple[str, ...], list[tuple[list[str], str]]] = {}
        for question in questions:
            normal = normalise(question)
            words = normal.split()
            self._whole.setdefault(normal, question)
            if len(words) >= MIN_CONTAINED_WORDS:
                first = tuple(words[:MIN_CONTAINED_WORDS])
                self._by_first_words.setdefault(first, []).append((words, question))

    def find_in(self, example: Example) -> str | None:
        """Return the question that one of the example's user turns holds, or None."""
        for message in example.messages:
            if message.role == "user":
                found = self._find_in_turn(message.content)
                if found is not None:
                    return found
        return None

    def _find_in_turn(self, turn: str) -> str | None:
        normal = normalise(turn)
        if normal in self._whole:
            return self._whole[normal]
        words = normal.split()
        for start in range(len(words) - MIN_CONTAINED_WORDS + 1):
            first = tuple(words[start : start + MIN_CONTAINED_WORDS])
            for question_words, question in self._by_first_words.get(first, ()):
                if words[start : start + len(question_words)] == question_words:
                    return question
        return None


class CleanSplit(NamedTuple):
    """Training and pool examples that hold no evaluation question and no row of each other."""

    train: tuple[Example, ...]
    pool: tuple[Example, ...]
    dropped: tuple[DroppedRow, ...]


def clean_split(
    train: Sequence[Example],
    pool: Sequence[Example],
    held_out: HeldOutQuestions,
    held_out_ids: Set[str] = frozenset(),
) -> CleanSplit:
    """Drop what is held out from both, and from the pool what `train_file` has already.

    Raises `DataError` when nothing is left to train on.
    """
    dropped: list[DroppedRow] = []
    train_ids = {example.id for example in train}

    def keep(example: Example, is_pool: bool) -> bool:
        question = held_out.find_in(example)
        if question is not None:
            kind, reason = "contaminated", f"holds the evaluation question {question!r}"
        elif example.id in held_out_ids:
            kind, reason = "contaminated", "the same conversation stands in a held-out file"
        elif is_pool and example.id in train_ids:
            kind, reason = "duplicate", "the same conversation stands in train_file"
        else:
            return True
        dropped.append(DroppedRow(example.source, example.line_no, kind, reason))
        return False

    kept_train = tuple(example for example in train if keep(example, is_pool=False))
    kept_pool = tuple(example for example in pool if keep(example, is_pool=True))
    if pool and not kept_pool:
        raise DataError(
            f"{pool[0].source}: every row holds an evaluation question or stands in train_file, so "
            "there is nothing to mine. Use another mining.pool_file, or leave it out."
        )
    if not kept_train:
        raise DataError(
            f"{train[0].source}: every row holds an evaluation question, so nothing is left to "
            "train on. Train on other rows than those that the evaluation asks."
        )
    return CleanSplit(kept_train, kept_pool, tuple(dropped))


# --- Example -> Datum ----------------------------------------------------------------------------


def load_tokenizer(base_model: str) -> Any:
    """The tokenizer of a hub model or of a model directory.

    Raises `TokenizerError` when there is none on this machine or the hub.
    """
    from tinker_cookbook.tokenizer_utils import get_tokenizer
    from transformers import AutoTokenizer

    try:
        if Path(base_model).is_dir():
            # Not through the cookbook, which loads directories with trust_remote_code.
            return AutoTokenizer.from_pretrained(base_model, trust_remote_code=False)
        return get_tokenizer(base_model)
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise TokenizerError(
            f"base_model {base_model!r}: its tokenizer cannot be loaded: {first_line} "
            "Check the name, the network, or give a model directory."
        ) from None


def resolve_renderer_name(explicit: str | None, base_model: str, *, key: str = "base_model") -> str:
    """The renderer to use: the one named, else the model's recommended one.

    For a model directory the special tokens of its tokenizer tell the chat format.
    Raises `ConfigError` when neither settles it; `key` is the setting that names the model.
    """
    if explicit is not None:
        return explicit
    if Path(base_model).is_dir():
        vocabulary = load_tokenizer(base_model).get_vocab()
        if "<|start_header_id|>" in vocabulary and "<|eot_id|>" in vocabulary:
            return "llama3"
        if "<|im_start|>" in vocabulary and "<|im_end|>" in vocabulary:
            return "qwen3" if "<think>" in vocabulary else "qwen3_instruct"
        what_to_do = (
            "Set renderer_name, for example to role_colon, which works with any tokenizer."
            if key == "base_model"
            else f"Name another model as {key}."
        )
        raise ConfigError(
            f"{key}: the tokenizer in {base_model} has no special tokens of a known chat format. "
            f"{what_to_do}"
        )
    from tinker_cookbook.exceptions import ConfigurationError
    from tinker_cookbook.model_info import get_recommended_renderer_name

    try:
        return get_recommended_renderer_name(base_model)
    except (ConfigurationError, KeyError, ValueError):
        or_set = ", or set renderer_name to the chat format that the model was trained with"
        raise ConfigError(
            f"{key}: the cookbook recommends no renderer for {base_model!r}, which is no directory "
            f"beside the config or here either. Correct {key}"
            f"{or_set if key == 'base_model' else ''}."
        ) from None


def load_renderer(renderer_name: str, base_model: str) -> Renderer:
    """Build the cookbook's renderer over the model's tokenizer.

    Raises `ConfigError` for an unknown name, or when the tokenizer lacks the renderer's tokens.
    """
    from tinker_cookbook.exceptions import RendererError
    from tinker_cookbook.renderers import get_renderer

    tokenizer = load_tokenizer(base_model)
    try:
        renderer = get_renderer(renderer_name, tokenizer, model_name=base_model)
        probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        renderer.build_supervised_example(probe)  # pyright: ignore[reportArgumentType]
        renderer.build_generation_prompt(probe[:1])  # pyright: ignore[reportArgumentType]
        renderer.get_stop_sequences()
    except RendererError as error:
        raise ConfigError(
            f"renderer_name {renderer_name!r} cannot be used: {error} Leave it null for the "
            "model's recommended one, or name one of the cookbook's renderers, such as llama3, "
            "qwen3 or role_colon."
        ) from None
    except (AssertionError, TypeError, ValueError, KeyError):
        raise ConfigError(
            f"renderer_name {renderer_name!r} does not fit {base_model}: its tokenizer lacks "
            "special tokens that this chat format needs. Choose the model's own format, or "
            "role_colon."
        ) from None
    return renderer


class Rendering:
    """Renders examples to datums, once each, and remembers them by id."""

    def __init__(self, renderer: Renderer, max_seq_length: int) -> None:
        from tinker_cookbook.renderers import TrainOnWhat

        self._renderer = renderer
        self._max_seq_length = max_seq_length
        # Renderers that drop earlier reasoning cannot train all turns in one pass: the prefix that
        # earlier turns were trained on is one that sampling never produces.
        self.train_on_what = (
            TrainOnWhat.ALL_ASSISTANT_MESSAGES
            if renderer.has_extension_property
            else TrainOnWhat.LAST_ASSISTANT_MESSAGE
        )
        self._rendered: dict[str, RenderedExample] = {}

    def __getitem__(self, example_id: str) -> RenderedExample:
        return self._rendered[example_id]

    def render_all(
        self, examples: Sequence[Example]
    ) -> tuple[tuple[Example, ...], tuple[DroppedRow, ...]]:
        """Render the examples; returns those that can be trained on, and the dropped ones.

        Raises `DataError` when none is left.
        """
        kept, dropped = [], []
        for example in examples:
            try:
                rendered = self._render(example)
            except ValueError as error:
                reason = f"the renderer refuses it: {error}"
                dropped.append(DroppedRow(example.source, example.line_no, "rejected", reason))
                continue
            if rendered.info.num_loss_tokens == 0:
                reason = f"no answer token within max_seq_length {self._max_seq_length}"
                dropped.append(
                    DroppedRow(example.source, example.line_no, "no_loss_tokens", reason)
                )
                continue
            self._rendered[example.id] = rendered
            kept.append(example)
        if examples and not kept:
            raise DataError(
                f"{examples[0].source}: no row can be trained on; the first fails because "
                f"{dropped[0].reason}. Raise max_seq_length or check the rows."
            )
        return tuple(kept), tuple(dropped)

    def _render(self, example: Example) -> RenderedExample:
        from tinker_cookbook.supervised.common import datum_from_model_input_weights

        messages = [{"role": role, "content": content} for role, content in example.messages]
        model_input, weights = self._renderer.build_supervised_example(
            messages,  # pyright: ignore[reportArgumentType]
            train_on_what=self.train_on_what,
        )
        num_rendered = model_input.length
        # Mean reduction: an example's weights sum to 1, so a long answer counts like a short one.
        datum = datum_from_model_input_weights(
            model_input, weights, max_length=self._max_seq_length, reduction="mean"
        )
        num_loss_tokens = int((datum.loss_fn_inputs["weights"].to_torch() > 0).sum())
        info = DatumInfo(
            example_id=example.id,
            num_tokens=datum.model_input.length,
            num_loss_tokens=num_loss_tokens,
            truncated=num_rendered > self._max_seq_length,
        )
        return RenderedExample(datum, info)
