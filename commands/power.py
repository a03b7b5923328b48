"""`--power FROM TO`: how many questions tell two scores apart, and what a config's can tell."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from commands.opening import refuse_beside
from config_schema import TrainingConfig, validate
from errors import ConfigError
from loop.planning.training_yaml import load_settings
from loop.reports.console import say, tell, width_of
from scores.power import (
    possible_changes,
    questions_needed,
    questions_needed_paired,
    questions_needed_unpaired,
)
from scores.wording import share_text

if TYPE_CHECKING:
    from scores.decision import Gate
    from scores.resolution import TaskSize
    from scores.results import EvalResult

POWER = 0.8  # of finding a difference that is there: 8 of 10 tries
NORMAL = "By the normal distribution; exact tests ask for more, most so near 0 and 1."
MIN_GAP = 1e-4  # closer scores no evaluation tells apart; they would take millions of questions
CELL, GAP = 13, "  "  # columns of a number in the table, and between it and its text
WITH = ("power", "config", "overrides", "json", "verbose")


class Needed(NamedTuple):
    """Questions for one kind of comparison, with one look and with the run's number of looks."""

    kind: str  # threshold, unpaired or paired
    text: str
    changed: float | None  # the share of answers that changes, where it is paired
    one_look: int
    all_looks: int


class Own(NamedTuple):
    """What a config or a run asks, and by which gate."""

    name: str
    gate: Gate
    sizes: Sequence[TaskSize]


class Seen(NamedTuple):
    """Answers that were lost while others were gained, between two evaluations of a run."""

    text: str
    lost: float  # the smaller of both shares


def show_power(args: argparse.Namespace) -> int:
    """Print how many questions it takes; the exit code."""
    refuse_beside(args, "--power", WITH)
    low, high, run_dir = scores_to_tell(args.power)
    own, seen = _own_and_seen(args, run_dir)
    alpha, looks = _alpha_and_looks(own)
    table = needed_for(low, high, alpha, looks, seen)
    if args.json:
        say(json.dumps(_to_json(low, high, table, own, (alpha, looks)), indent=1))
        return 0
    tell(
        f"To tell {high:g} from {low:g} in {POWER * 10:.0f} of 10 tries, with an error of "
        f"{alpha:g} (one-sided):"
    )
    for line in table_lines(table, looks, width_of(sys.stdout)):
        tell(line)
    source = "max_rounds" if own is not None else "the default of max_rounds"
    if looks > 1:
        tell(
            f"{looks:,} looks ({source}) share the error; each alone has {alpha / looks:.2g} of it."
        )
    tell(NORMAL)
    for line in () if own is None else describe_own(own, table, low, high):
        tell(line)
    return 0


def scores_to_tell(words: Sequence[str]) -> tuple[float, float, Path | None]:
    """The two scores and the run directory that `--power` was given. Raises `ConfigError`."""
    example = "Give two scores between 0 and 1, the lower one first, for example --power 0.80 0.85"
    if not 2 <= len(words) <= 3:
        raise ConfigError(
            f"--power takes two scores and at most one run directory, found {len(words)} "
            f"word{'s' * (len(words) != 1)}. {example}."
        )
    low, high = (_score(word, example) for word in words[:2])
    if low > high:
        raise ConfigError(f"--power {words[0]} {words[1]}: the scores fall. {example}.")
    if high - low < MIN_GAP * (1 - 1e-9):  # as 1 - 0.9999 is
        raise ConfigError(
            f"--power {words[0]} {words[1]}: the scores differ by less than {MIN_GAP:g}, which no "
            f"evaluation can tell. {example}."
        )
    return low, high, Path(words[2]) if len(words) == 3 else None


def _score(word: str, example: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise ConfigError(f"--power {word[:60]!r}: no score between 0 and 1. {example}.")
    return value + 0.0  # -0.0 is shown as 0


def needed_for(
    low: float, high: float, alpha: float, looks: int, seen: Sequence[Seen] = ()
) -> list[Needed]:
    """How many questions each kind of comparison takes."""

    def needed(kind: str, text: str, changed: float | None = None) -> Needed:
        def number(error: float) -> int:
            if kind == "threshold":
                return questions_needed(low, high, error, POWER)
            if changed is None:
                return questions_needed_unpaired(low, high, error, POWER)
            return questions_needed_paired(low, high, changed, error, POWER)

        return Needed(kind, text, changed, number(alpha), number(alpha / looks))

    possible = possible_changes(low, high)
    paired = {
        possible.least: "all for the better",
        (possible.least + possible.independent) / 2: "between both",
        possible.independent: "as of models that have nothing in common",
    }
    of_run = [(min(possible.most, possible.least + 2 * one.lost), one.text) for one in seen]
    return [
        needed("threshold", f"one checkpoint, against the threshold {low:g}"),
        needed("unpaired", "two checkpoints, each asked questions of its own"),
        *(
            needed("paired", f"the same questions, {share:.1%} of answers change: {text}", share)
            for share, text in sorted([*paired.items(), *of_run])
        ),
    ]


def table_lines(table: Sequence[Needed], looks: int, width: int | None = None) -> Iterator[str]:
    """The numbers first, so that no text is too long for 80 columns; on a terminal that has fewer
    each text has the lines below its numbers."""
    num_looks = 2 if looks > 1 else 1
    rows = [(("one look", f"{looks:,} looks"), ["questions (each) for"])]
    for one in table:
        text, colon, which = one.text.partition(": ")
        texts = [f"{text}{colon.rstrip()}", *([f"  {which}"] if which else [])]
        rows.append(((f"{one.one_look:,}", f"{one.all_looks:,}"), texts))
    widest = max(len(text) for _, texts in rows for text in texts)
    has_room = width is None or CELL * num_looks + len(GAP) + widest <= width
    for numbers, texts in rows:
        if has_room:
            figures = "".join(f"{number:>{CELL}}" for number in numbers[:num_looks])
            yield f"{figures}{GAP}{texts[0]}"
            yield from (f"{' ' * len(figures)}{GAP}{text}" for text in texts[1:])
        else:
            yield GAP.join(numbers[:num_looks])
            yield from (f"{GAP}{text}" for text in texts)


# --- what a config or a run can tell --------------------------------------------------------------


def _own_and_seen(args: argparse.Namespace, run_dir: Path | None) -> tuple[Own | None, list[Seen]]:
    from loop.planning.plan import gate_of

    own, seen = None, []
    if run_dir is not None:
        own, seen = _of_run(run_dir)
    if args.config is not None:
        from loop.planning.tasks import load_eval_tasks
        from scores.resolution import TaskSize

        loaded = load_settings(args.config, args.overrides)
        tasks = load_eval_tasks(loaded, loaded.config.scored_tasks)
        sizes = [TaskSize(task.n, task.num_clusters) for task in tasks]
        own = Own(str(args.config), gate_of(loaded.config), sizes)
    elif args.overrides:
        raise ConfigError("--power: --set changes a setting of --config, which is missing.")
    return own, seen


def _of_run(run_dir: Path) -> tuple[Own | None, list[Seen]]:
    """What a run (or an evaluation of checkpoints) asked, and which answers changed in it."""
    from ledger.store import RunStore
    from loop.planning.plan import gate_of
    from scores.resolution import TaskSize

    store = RunStore.open(run_dir)
    config: TrainingConfig = validate(store.settled_config()["config"], str(run_dir))
    results = store.comparable_results() if store.is_evaluation else store.results()
    if not results:
        raise ConfigError(
            f"--power: {run_dir} has no finished evaluation yet, so there are no answers to look "
            "at. Leave it out, or wait for its first."
        )
    sizes = [TaskSize(t.n, t.num_clusters or t.n) for t in results[0].scored_tasks]
    what = "checkpoint" if store.is_evaluation else "round"
    pairs = dict.fromkeys([(0, len(results) - 1), (len(results) - 2, len(results) - 1)])
    seen = []
    for before, after in pairs if len(results) > 1 else ():
        name = f"as from {what} {results[before].round} to {results[after].round} of the run"
        if (lost := lost_share(results[before], results[after])) is not None:
            seen.append(Seen(name, lost))
    return Own(str(run_dir), gate_of(config), sizes), seen


def lost_share(before: EvalResult, after: EvalResult) -> float | None:
    """Of the questions that both were asked, the share that got worse, or better where fewer did;
    None where there is none. A gain adds to what turns either way."""
    up = down = num = 0
    for task in after.scored_tasks:
        other = before.task(task.name)
        for id_ in task.scores.keys() & (other.scores.keys() if other else set()):
            assert other is not None, "it has the question"
            num += 1
            up += task.scores[id_] > other.scores[id_]
            down += task.scores[id_] < other.scores[id_]
    return min(up, down) / num if num else None


def _alpha_and_looks(own: Own | None) -> tuple[float, int]:
    if own is not None:
        return own.gate.alpha, own.gate.max_rounds
    from settings.groups import GateSettings

    return GateSettings().alpha, TrainingConfig.model_fields["max_rounds"].default


def describe_own(own: Own, table: Sequence[Needed], low: float, high: float) -> Iterator[str]:
    """Which comparisons the questions suffice for, and how often a round passes by chance."""
    from scores.resolution import effective_n, gain_chance, out_of_reach, pass_chance

    gate, n, worth = own.gate, sum(size.n for size in own.sizes), effective_n(own.sizes)
    asked = f"{n:,} questions" + ("" if worth == n else f", worth as little as {worth:,}")
    enough = [one.text for one in table if one.all_looks <= worth]
    fits = f"enough, at all looks, for: {'; '.join(enough)}" if enough else "too few for all of it"
    yield f"{own.name}: {asked}; {fits}."
    rule = f"gate.rule {gate.rule} at eval_threshold {gate.threshold:g}"
    chances = (pass_chance(gate, own.sizes, truth) for truth in (high, low))
    first, second = (share_text(chance, digits=1) for chance in chances)
    reached = "reaches the threshold" if gate.rule == "paired" else "passes"
    yield (
        f"{rule}: a round of a model that is really at {high:g} {reached} in {first} of tries, "
        f"one at {low:g} in {second}."
    )
    if gate.rule == "paired":
        possible = possible_changes(low, high)
        shares = possible.independent, possible.least
        chances = (gain_chance(gate, own.sizes, low, high, share) for share in shares)
        rare, often = (share_text(chance, digits=1) for chance in chances)
        yield (
            f"Its other half, a gain above margin {gate.margin:g}, shows in {rare} to "
            f"{often} of rounds really at {high:g} after a baseline at {low:g}: the fewer "
            "answers change, the more often. Both together pass at most as often as the rarer one."
        )
    if (why := out_of_reach(gate, own.sizes)) is not None:
        yield f"warning: {why}"


def _to_json(
    low: float,
    high: float,
    table: Sequence[Needed],
    own: Own | None,
    spent: tuple[float, int],
) -> dict[str, Any]:
    from scores.resolution import effective_n, out_of_reach, pass_chance

    alpha, looks = spent
    outcome: dict[str, Any] = {"from": low, "to": high, "power": POWER, "alpha": alpha}
    outcome["method"] = "normal distribution"
    outcome |= {"looks": looks, "needed": [one._asdict() for one in table], "own": None}
    if own is not None:
        worth = effective_n(own.sizes)
        outcome["own"] = {
            "name": own.name,
            "n": sum(size.n for size in own.sizes),
            "effective_n": worth,
            "rule": own.gate.rule,
            "threshold": own.gate.threshold,
            "is_enough": [one.all_looks <= worth for one in table],
            "pass_chance_of_from": pass_chance(own.gate, own.sizes, low),
            "pass_chance_of_to": pass_chance(own.gate, own.sizes, high),
            "out_of_reach": out_of_reach(own.gate, own.sizes),
        }
    return outcome
