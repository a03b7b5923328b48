"""Which saved weights stay, for how long, and what `--list` shows of them.

The rule: every save expires `checkpoint_ttl_days` after it was made, so what a killed or forgotten
run leaves behind vanishes by itself. The recommended round's weights have no expiry as long as
they are recommended. States inside a round are deleted once the round's own is saved.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from run_store import Checkpoint, SavedWeights


class Care(NamedTuple):
    """What is to be done: paths to keep for good, to let expire, and to delete."""

    keep: list[str]
    release: list[str]
    delete: list[str]


def care_for(
    checkpoints: Sequence[Checkpoint],
    best: Checkpoint,
    kept: Collection[str],
    deleted: Collection[str],
) -> Care:
    """What is to be done once a round is decided, `best` being what it recommends.

    `kept` are the paths that have no expiry now, `deleted` those that are gone.
    """
    wanted = [path for path in (best.state_path, best.sampler_path) if path is not None]
    ended = {one.round for one in checkpoints if one.sampler_path is not None}
    inside = [one for one in checkpoints if one.sampler_path is None and one.round in ended]
    return Care(
        keep=[path for path in wanted if path not in kept],
        release=[path for path in kept if path not in wanted],
        delete=[one.state_path for one in inside if one.state_path not in deleted],
    )


def missing_from(folder: Path, saved: Sequence[SavedWeights]) -> set[str]:
    """Paths whose weights are not in the embedded service's folder any more."""
    missing = set()
    for one in saved:
        parts = one.path.removeprefix("tinker://").split("/")
        is_plain = len(parts) == 3 and not any(part in ("", ".", "..") for part in parts)
        if not (is_plain and (folder / parts[0].replace(":", "_") / parts[1] / parts[2]).is_dir()):
            missing.add(one.path)
    return missing


def listing(
    saved: Sequence[SavedWeights],
    where: str,
    scores: Mapping[int, float],
    best_round: int | None,
    missing: Collection[str],
) -> str:
    """The table that `--list` prints; `missing` are paths that should be on this disk and are not.

    Times are UTC.
    """
    lines = [
        f"Saved weights, {where}. They expire at the time shown, the best round's do not as long "
        "as it is the best.",
        f"{'round':>5} {'step':>6} {'kind':<8} {'score':>6}  {'saved':<16}  {'until':<16}  path",
    ]
    for one in saved:
        is_scored = one.kind == "sampler" and one.round in scores and not one.is_superseded
        score = f"{scores[one.round]:.4f}" if is_scored else ""
        until = "no expiry" if one.expires_at is None else _minute(one.expires_at)
        marks = {
            "best": one.round == best_round and one.kind == "sampler" and not one.is_superseded,
            "superseded": one.is_superseded,
            "NOT THERE": one.path in missing,
        }
        shown = ", ".join(mark for mark, is_so in marks.items() if is_so)
        lines.append(
            f"{one.round:>5} {one.step:>6} {one.kind:<8} {score:>6}  {_minute(one.saved_at):<16}  "
            f"{until:<16}  {one.path}" + (f"  ({shown})" if shown else "")
        )
    return "\n".join(lines)


def _minute(stamp: str) -> str:
    return stamp[:16].replace("T", " ")
