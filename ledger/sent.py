"""What a run has sent to its service, noted before it is sent: what no event tells of is known so.

    sent.json    {"train_tokens": N, "prompt_tokens": N, "sampled_tokens": N}

The totals of the run's life. What they have more than all events and all kept answers was sent and
has been recorded nowhere: it is on its way, or was paid for in vain, as a process was killed, a
service failed or a request did. It is at the most so much, for a service may not have taken all of
it, and an answer that has not come counts as the longest one that was asked for. A step that is
taken again is sent again, so nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from errors import RunStoreError
from ledger.records import Usage
from services.counted_client import Tokens
from storage.totals import Totals, read_totals

SENT = "sent.json"


class Sent:
    """The totals of one run directory; what writes them holds its lock."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / SENT
        self._totals: Totals | None = None

    def note(self, tokens: Tokens, recorded: Usage, used: Callable[[], Usage]) -> None:
        """Add what is about to be sent. `recorded` is what all events tell of by now, of which a
        power cut may have taken the note; `used` has the answers too that are kept for their event,
        and is where a run goes on from that a version began which noted nothing.

        Raises `StorageError`, and `RunStoreError` where the file holds something else.
        """
        if self._totals is None:
            # An answer may be kept and in an event already, so a run that has notes goes by these.
            begins = used() if self._now() is None else recorded
            try:
                self._totals = Totals(self._path, _tokens_of(begins)._asdict())
            except ValueError as error:
                raise self._unreadable(error) from None
        self._totals.add(tokens._asdict())

    def in_vain(self, recorded: Usage) -> Usage:
        """What was sent and is not in what is `recorded`, with answers that are kept to be; nothing
        of a run of a version that noted nothing. Raises `RunStoreError`."""
        sent = self._now()
        if sent is None:
            return Usage(0, 0, 0, 0.0)
        more = (a - b for a, b in zip(sent, _tokens_of(recorded), strict=True))
        return Usage(*(max(0, number) for number in more), minutes=0.0)

    def _now(self) -> Tokens | None:
        if self._totals is not None:
            return Tokens(**self._totals.now)
        try:
            found = read_totals(self._path, Tokens._fields)
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from None
        return None if found is None else Tokens(**found)

    def _unreadable(self, error: Exception) -> RunStoreError:
        return RunStoreError(
            f"{self._path}: cannot be read: {error}. It holds how many tokens the run has sent, "
            "and was changed by something else. Restore it, or remove it: what was sent and never "
            "recorded is then not known any more."
        )


def _tokens_of(used: Usage) -> Tokens:
    return Tokens(used.train_tokens, used.prompt_tokens, used.sampled_tokens)
