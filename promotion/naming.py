"""Aliases that move and entries that are taken out of use, by hand: what is refused, and what is
said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from errors import LoopError, RegistryError
from ledger.registry_file import CHAMPION, PREFIX, Promoted, Registry
from ledger.registry_writing import RegistryWriter, Who, refuse_alias, writing


class Changed(NamedTuple):
    """What was changed: a sentence, and the same for programs."""

    sentence: str
    record: dict[str, Any]
    num_cut_bytes: int  # of a line that a kill had torn

    @classmethod
    def by(cls, writer: RegistryWriter, sentence: str, **record: Any) -> Changed:
        return cls(sentence, {**record, "head": writer.registry.head}, writer.num_cut_bytes)


def move_alias(path: Path, reference: str, alias: str, who: Who, forced: str | None) -> Changed:
    """Let an alias stand for an entry. Raises `RegistryError`; nothing is changed then."""
    refuse_alias(alias)
    Registry.read(path).find(reference)
    with writing(path) as writer:
        entry = writer.registry.find(reference)
        was = writer.registry.alias_of(entry.name, alias)
        if was == entry:
            raise RegistryError(f"{entry.reference} is {alias} already. Nothing was changed.")
        if (retired := writer.registry.retired(entry)) is not None:
            raise RegistryError(
                f"{entry.reference} was retired on {retired.time[:10]} ({retired.reason}), so "
                "nothing may stand for it. Name another version, or promote its checkpoint again."
            )
        _refuse_unforced(entry.name, alias, was, forced)
        writer.move_alias(entry, alias, who, forced)
        sentence = f"{PREFIX}{entry.name}@{alias} is {entry.reference}{_before(was)}"
        return Changed.by(writer, sentence, **_record(entry.name, alias, was, entry), forced=forced)


def remove_alias(path: Path, reference: str, alias: str, who: Who, forced: str | None) -> Changed:
    """Take an alias away from a name, or from the entry that it stands for. Raises
    `RegistryError`; nothing is changed then."""
    Registry.read(path)
    with writing(path) as writer:
        registry, name = writer.registry, reference.removeprefix(PREFIX)
        entry = None if name in registry.names else registry.find(reference)
        name = name if entry is None else entry.name
        was = registry.alias_of(name, alias)
        if was is None or entry not in (None, was):
            now = "nothing" if was is None else was.reference
            raise RegistryError(
                f"{PREFIX}{name}@{alias:.80} stands for {now}, so this is nothing to remove. "
                "Nothing was changed."
            )
        _refuse_unforced(name, alias, was, forced)
        writer.remove_alias(name, alias, who, forced)
        sentence = f"{PREFIX}{name}@{alias} stands for nothing any more{_before(was)}"
        return Changed.by(writer, sentence, **_record(name, alias, was, None), forced=forced)


def _record(name: str, alias: str, was: Promoted | None, now: Promoted | None) -> dict[str, Any]:
    before, after = (None if one is None else one.reference for one in (was, now))
    return {"name": name, "alias": alias, "before": before, "now": after}


def _before(was: Promoted | None) -> str:
    return "" if was is None else f"; it was {was.reference}"


def _refuse_unforced(name: str, alias: str, was: Promoted | None, forced: str | None) -> None:
    """Raise `RegistryError` for `champion` moved by hand without a reason."""
    if alias != CHAMPION or forced is not None:
        return
    before = "nothing" if was is None else was.reference
    raise RegistryError(
        f"{CHAMPION} of {name} (now {before}) is what promotions are compared with, and moving it "
        f"by hand compares nothing. Promote the checkpoint: registry.py promote CHECKPOINT {name}; "
        'or give --force "REASON", for example to go back to an older version, which is recorded.'
    )


def retire(path: Path, reference: str, reason: str, who: Who) -> Changed:
    """Take an entry out of use. Raises `RegistryError`; nothing is changed then."""
    from promotion.keeping import let_go  # which loads the SDK

    Registry.read(path).find(reference)
    with writing(path) as writer:
        registry = writer.registry
        entry = registry.find(reference)
        if (already := registry.retired(entry)) is not None:
            raise RegistryError(
                f"{entry.reference} was retired on {already.time[:10]} already: {already.reason}"
            )
        if aliases := registry.aliases_of(entry):
            raise RegistryError(
                f"{entry.reference} is {', '.join(aliases)} still, and whoever asks for that would "
                "get what is out of use. Let another entry be it first: promote one, move it by "
                f"registry.py alias {entry.name}@N {aliases[0]}, or take it away with --remove."
            )
        writer.retire(entry, reason, who)
        try:
            said = let_go(writer.registry, entry)
        except LoopError as error:  # the run may be gone, and is not needed any more
            said = f"Its weights were not found: {error}"
        sentence = f"{entry.reference} is retired. {said}"
        record = {"reference": entry.reference, "reason": reason, "run_dir": entry.run_dir}
        paths = {"sampler_path": entry.sampler_path, "state_path": entry.state_path}
        return Changed.by(writer, sentence, **record, **paths)
