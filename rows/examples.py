"""Examples and dropped rows, as many as there are: kept on disk in the order of their rows.

What comes in is a row whose shape is known; what a row may look like is `data_loader`'s.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import weakref
from abc import abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeVar, overload

T = TypeVar("T")

SPOOL_BYTES = 64 * 2**20  # kept in memory; what is more goes to a temporary file


class ToolCall(NamedTuple):
    """A call that the assistant makes; `arguments` is a JSON object as text."""

    name: str
    arguments: str
    id: str | None = None


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str  # "system", "user", "assistant" or "tool"
    content: str  # empty where an assistant's turn is calls alone
    reasoning: str | None = None
    calls: tuple[ToolCall, ...] = ()
    name: str | None = None  # the tool that answers, ...
    call_id: str | None = None  # ... and which call
    weight: float | None = None  # of its loss, relative to the row's other messages

    @property
    def text(self) -> str:
        """All that the message says, for comparing rows."""
        if self.reasoning is None and not self.calls:
            return self.content
        calls = (f"{call.name} {call.arguments}" for call in self.calls)
        return "\n".join(filter(None, (self.reasoning, self.content, *calls)))


@dataclass(frozen=True)
class Example:
    """One training row. `id` is the sha256 of what it trains on: of its messages, and of tools and
    weights where it has them."""

    id: str
    messages: tuple[Message, ...]
    source: str
    line_no: int
    topic: str | None
    tools: str | None = None  # the functions on offer, a JSON list as text
    weight: float = 1.0  # its loss is multiplied by it
    rejected: Message | None = None  # of a pair: what the last message is preferred to

    @property
    def has_answer(self) -> bool:
        """Whether its last message is an answer; else it holds what is asked alone."""
        return self.messages[-1].role == "assistant"

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """(role, all that is said) of each message, and of the rejected answer after them."""
        said = self.messages if self.rejected is None else (*self.messages, self.rejected)
        return tuple((message.role, message.text) for message in said)


@dataclass(frozen=True)
class DroppedRow:
    """A row that is not trained on, and why; `similar` ones are only listed, and trained on."""

    file: str
    line_no: int
    kind: str  # "rejected", "duplicate", "contaminated", "no_loss_tokens", "similar", ...
    reason: str
    text: str | None = None  # what of the row was compared ...
    other: str | None = None  # ... with what


class _Spool:
    """Byte strings by their number, in memory while they are few and in a temporary file after."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._ends = array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, item: bytes) -> None:
        self._file.seek(self._ends[-1])
        self._file.write(item)
        self._ends.append(self._ends[-1] + len(item))

    def __getitem__(self, index: int) -> bytes:
        start, end = self._ends[index], self._ends[index + 1]
        self._file.seek(start)
        return self._file.read(end - start)


class _Lazy(Sequence[T]):
    """A sequence whose items are made when they are asked for."""

    @abstractmethod
    def _at(self, position: int) -> T:
        """The item at a position that there is."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        positions = range(len(self))[index]
        if isinstance(positions, range):
            return [self._at(position) for position in positions]
        return self._at(positions)


class DropLog(_Lazy[DroppedRow]):
    """Dropped rows in the order they were dropped; only their counts are kept in memory."""

    def __init__(self) -> None:
        self._spool = _Spool()
        self.counts: Counter[str] = Counter()

    def append(self, row: DroppedRow) -> None:
        self._spool.append(json.dumps(asdict(row), ensure_ascii=False).encode())
        self.counts[row.kind] += 1

    def __len__(self) -> int:
        return len(self._spool)

    def _at(self, position: int) -> DroppedRow:
        return DroppedRow(**json.loads(self._spool[position].decode()))


class ExampleTable(_Lazy[Example]):
    """Examples by their position: the messages wait in a spool, an index of them is in memory.

    The index takes about 60 bytes an example. Tables made by `take` share the spool.
    """

    def __init__(self, examples: Iterable[Example] = ()) -> None:
        self._spool = _Spool()
        self._rows = array("q")  # position -> number in the spool
        self._keys = bytearray()  # the ids, 32 bytes each
        self._line_nos, self._topic_codes, self._source_codes = array("q"), array("l"), array("l")
        self._topics, self._sources = _Names(), _Names()
        self._positions: dict[bytes, int] | None = None
        for one in examples:
            record = make_record(one.messages, one.topic, one.tools, one.weight, one.rejected)
            self.append(record, one.source, one.line_no)

    def append(self, record: Record, source: str, line_no: int) -> None:
        self._rows.append(len(self._spool))
        self._spool.append(record.canonical)
        self._keys += record.key
        self._line_nos.append(line_no)
        self._topic_codes.append(self._topics.code(record.topic))
        self._source_codes.append(self._sources.code(source))
        self._positions = None

    def __len__(self) -> int:
        return len(self._rows)

    def _at(self, position: int) -> Example:
        kept = json.loads(self._spool[self._rows[position]].decode())  # guesses no encoding
        row = kept if isinstance(kept, dict) else {"messages": kept}
        return Example(
            id=self.id_of(position),
            messages=tuple(map(_message_of, row["messages"])),
            source=self.source_of(position),
            line_no=self._line_nos[position],
            topic=self.topic_of(position),
            tools=row.get("tools"),
            weight=row.get("weight", 1.0),
            rejected=_message_of(row["rejected"]) if "rejected" in row else None,
        )

    def id_of(self, position: int) -> str:
        return self._key_of(position).hex()

    @property
    def ids(self) -> Iterator[str]:
        return (self.id_of(position) for position in range(len(self)))

    def topic_of(self, position: int) -> str | None:
        return self._topics.names[self._topic_codes[position]]

    def source_of(self, position: int) -> str:
        source = self._sources.names[self._source_codes[position]]
        assert source is not None, "every row has a source"
        return source

    def find(self, example_id: str) -> int | None:
        """The position of an example; None where it is not in the table."""
        if self._positions is None:
            self._positions = {self._key_of(position): position for position in range(len(self))}
        try:
            return self._positions.get(bytes.fromhex(example_id))
        except ValueError:  # no id of any row
            return None

    def __contains__(self, example_id: object) -> bool:
        return isinstance(example_id, str) and self.find(example_id) is not None

    @property
    def has_topics(self) -> bool:
        return any(self.topic_of(position) is not None for position in range(len(self)))

    def with_topics(self, topics: Sequence[str]) -> ExampleTable:
        """The same examples with other topics, one for each."""
        changed = self.take(range(len(self)))
        changed._topics = _Names()
        changed._topic_codes = array("l", map(changed._topics.code, topics))
        return changed

    def take(self, positions: Sequence[int]) -> ExampleTable:
        """The examples at these positions, in their order."""
        taken = ExampleTable()
        taken._spool, taken._topics, taken._sources = self._spool, self._topics, self._sources
        taken._rows = array("q", (self._rows[one] for one in positions))
        taken._line_nos = array("q", (self._line_nos[one] for one in positions))
        taken._topic_codes = array("l", (self._topic_codes[one] for one in positions))
        taken._source_codes = array("l", (self._source_codes[one] for one in positions))
        for position in positions:
            taken._keys += self._key_of(position)
        return taken

    @property
    def sha256(self) -> str:
        """The digest of all examples, in their order."""
        return hashlib.sha256(bytes(self._keys)).hexdigest()

    def _key_of(self, position: int) -> bytes:
        return bytes(self._keys[32 * position : 32 * position + 32])


def find_example(example_id: str, *tables: ExampleTable) -> Example | None:
    """An example from the first of the tables that has it; None where none does."""
    for table in tables:
        position = table.find(example_id)
        if position is not None:
            return table[position]
    return None


class _Names:
    """Strings that stand in many rows, kept once each."""

    def __init__(self) -> None:
        self.names: list[str | None] = []
        self._codes: dict[str | None, int] = {}

    def code(self, name: str | None) -> int:
        code = self._codes.get(name)
        if code is None:
            code = self._codes[name] = len(self.names)
            self.names.append(name)
        return code


class Record(NamedTuple):
    """What a row comes to, before it is an example of some file."""

    messages: tuple[Message, ...]
    topic: str | None
    canonical: bytes  # the messages as they are kept and hashed
    key: bytes  # the id's 32 bytes
    tools: str | None = None
    weight: float = 1.0
    rejected: Message | None = None


def make_record(
    messages: tuple[Message, ...],
    topic: str | None,
    tools: str | None = None,
    weight: float = 1.0,
    rejected: Message | None = None,
) -> Record:
    """The record of a conversation; what says nothing beyond role and content has the same
    canonical form, and so the same id, as ever."""
    content = [_kept_of(message) for message in messages]
    of_row: dict[str, Any] = {"tools": tools} if tools is not None else {}
    of_row |= {"weight": weight} if weight != 1 else {}
    of_row |= {"rejected": _kept_of(rejected)} if rejected is not None else {}
    whole = {"messages": content, **of_row} if of_row else content
    canonical = json.dumps(whole, ensure_ascii=False).encode()
    key = hashlib.sha256(canonical).digest()
    return Record(messages, topic, canonical, key, tools, weight, rejected)


_PLAIN = Message("", "")[2:]


def _kept_of(message: Message) -> Sequence[Any]:
    return message[:2] if message[2:] == _PLAIN else [*message[:2], _more_of(message)]


def _more_of(message: Message) -> dict[str, Any]:
    """The fields of a message that say something."""
    defaults = Message._field_defaults
    return {key: one for key, one in message._asdict().items() if one != defaults.get(key, one)}


def _message_of(kept: Sequence[Any]) -> Message:
    role, content, *more = kept
    if not more:
        return Message(role, content)
    fields = {**more[0], "calls": tuple(ToolCall(*call) for call in more[0].get("calls", ()))}
    return Message(role, content, **fields)
