"""How many steps a run takes, at which rates, and how often they go through each source.

With `num_epochs` the steps of a round follow from the number of training rows, which is known when
these are read and rendered. What was settled once is recorded; a resumed run keeps it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import hyperparam_utils
from config_schema import LoadedConfig, TrainingConfig
from data_selector import Mining
from errors import ConfigError
from hyperparam_utils import RunSteps, Schedule
from loop.planning.methods import batch_text, words_for
from rows.examples import ExampleTable
from scores.measures import ON_POLICY, RL

MANY_PASSES = 20  # more of them through a source draw a remark


class SettledSteps(NamedTuple):
    """The steps of a run and their learning rates."""

    steps: RunSteps
    schedule: Schedule


def settle_steps(
    loaded: LoadedConfig, kept: Mapping[str, Any], num_rows: int, learning_rate: float
) -> SettledSteps:
    """Settle the steps of a run that trains on `num_rows` rows of `train_file`.

    `kept` holds a resumed run's resolved values. Raises `ConfigError` for settings that do not fit
    the number of steps.
    """
    config = loaded.config
    per_round = config.steps_per_round or kept.get("steps_per_round")
    if per_round is None:
        assert config.num_epochs is not None, "the schema asks for one of them"
        per_round = hyperparam_utils.steps_for_epochs(
            config.num_epochs, num_rows, config.batch_size, config.max_rounds
        )
    steps = config.steps(per_round)
    warmup_steps = kept.get("warmup_steps")
    if warmup_steps is None:
        try:
            steps.refuse_misfits(config.warmup_steps, config.evaluation.held_out_every_steps)
        except ValueError as error:
            raise ConfigError(
                f"{loaded.file}: num_epochs {config.num_epochs:g} comes to {steps.per_round} steps "
                f"in a round: {error}"
            ) from None
        warmup_steps = hyperparam_utils.resolve_warmup_steps(config.warmup_steps, steps.total)
    schedule = Schedule(
        learning_rate=learning_rate,
        min_lr=config.min_lr,
        lr_decay=config.lr_decay,
        warmup_steps=warmup_steps,
        max_steps=config.max_steps,
    )
    return SettledSteps(steps, schedule)


def most_in_flight(config: TrainingConfig) -> int:
    """The most optimizer steps that may be in flight at once.

    Answers of `rl` are sampled from the weights after the step before, so there is one at a time;
    of on-policy distillation a step is trained while the next one's answers are sampled.
    """
    most = config.data.max_steps_in_flight
    return min(most, {RL: 1, ON_POLICY: 2}.get(words_for(config), most))


def mining_of(config: TrainingConfig) -> Mining:
    """How later rounds choose what they train on."""
    settings = config.mining
    return Mining(
        strategy=settings.strategy,
        replay_share=settings.replay_share,
        new_share=settings.new_share,
        noise_cap=settings.noise_cap,
        num_candidates=settings.num_candidates,
        of_pairs=config.method == "dpo",
        by_rewards=config.method == "rl",
        by_teacher=config.method == "distill",
    )


# --- how often the rows are gone through ----------------------------------------------------------


class Passes(NamedTuple):
    """How often the examples of a run go through a source, where all its steps are taken."""

    source: str
    num_rows: int
    number: float
    is_train: bool  # of train_file, not of the pool


def passes_of(
    config: TrainingConfig,
    steps: RunSteps,
    train: ExampleTable,
    pool: ExampleTable,
    weights: Mapping[str, float],
) -> list[Passes]:
    """How often each source of rows is gone through, on average over its rows.

    The first round and what is replayed go by the `weights` of the training sources where they
    have some, all else by their rows.
    """
    mining, has_pool = mining_of(config), bool(len(pool))
    num_taken = min(steps.per_round, steps.total)
    num_walked, num_mined = num_taken * config.batch_size, 0
    while num_taken < steps.total:
        num_steps = steps.of_next_round(num_taken)
        slots = mining.slots(num_steps * config.batch_size, has_pool)
        num_walked += slots.num_replay
        num_mined += slots.num_hard + slots.num_new
        num_taken += num_steps
    of_train, of_pool = _num_rows(train), _num_rows(pool)
    drawn: dict[str, float] = defaultdict(float)
    for number, shares in (
        (num_walked, {name: weights.get(name, 0) for name in of_train} if weights else of_train),
        (num_mined, of_pool or of_train),
    ):
        total = sum(shares.values())
        for name, share in shares.items():
            drawn[name] += number * share / total
    sizes = of_train | of_pool
    return [Passes(name, n, drawn[name] / n, name in of_train) for name, n in sizes.items()]


def _num_rows(table: ExampleTable) -> dict[str, int]:
    return dict(Counter(table.source_of(position) for position in range(len(table))))


def describe_steps(
    config: TrainingConfig, settled: SettledSteps, passes: list[Passes]
) -> Iterator[str]:
    """Yield the lines about steps and passes, with a remark on what is hardly meant so."""
    steps = settled.steps
    num_warmup = settled.schedule.warmup_steps
    source = "warmup_steps" if config.warmup_steps is not None else "by default"
    of_epochs = f" from num_epochs {config.num_epochs:g}" if config.num_epochs is not None else ""
    yield (
        f"schedule: at most {steps.total} steps "
        f"(max_rounds {steps.max_rounds} x steps_per_round {steps.per_round}{of_epochs}, "
        f"max_steps {steps.max_steps}) of {batch_text(config)}; "
        f"warm-up {num_warmup} step{'s' * (num_warmup != 1)} ({source})"
    )
    told = (f"{one.number:.1f} through the {_rows(one.num_rows)} of {one.source}" for one in passes)
    yield f"passes: at most {', '.join(told)}"
    num_train = sum(one.num_rows for one in passes if one.is_train)
    if config.batch_size > num_train:
        yield (
            f"warning: batch_size {config.batch_size} is larger than the {_rows(num_train)} of "
            "train_file, so one step takes a row more than once. Lower batch_size, or add rows."
        )
    for one in passes:
        if one.number > MANY_PASSES and not words_for(config).is_sampled:
            what = "max_rounds" if steps.per_round == 1 else "steps_per_round"
            what = what if config.num_epochs is None else "num_epochs"
            yield (
                f"warning: {one.number:.1f} passes through {one.source} are more than "
                f"{MANY_PASSES}, and rows that are seen so often are learnt by heart. Lower "
                f"{what}, or add rows."
            )
    num_asked = steps.max_rounds * steps.per_round
    if config.num_epochs is not None and num_asked > steps.total:
        yield (
            f"warning: num_epochs {config.num_epochs:g} comes to {num_asked} steps, and the run "
            f"ends after max_steps {steps.max_steps}. Raise max_steps, or lower num_epochs."
        )


def _rows(number: int) -> str:
    return f"{number:,} row{'s' * (number != 1)}"
