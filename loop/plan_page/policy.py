"""The usual advice on hyperparameters and evaluation, beside the settings chosen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from hyperparam_utils import Schedule
from loop.plan_page.rates import FLAT, recommended
from loop.plan_page.suite import LAYERS
from loop.plan_page.view import Part, Planned
from loop.planning.methods import batch_text, group_size, words_for
from pages.document import Column, Table
from scores.measures import DPO, ON_POLICY, RL

RANK_TO_START = 32
LOW_RANK = 16
LARGE_BATCH = 128  # what the cookbook's own supervised recipes take; the advice names no number
FAR_RATE = 3  # times another rate, or a part of it
SHORT_RUN = 500  # steps; pilots are advised to have from here to 2,000


# Defaults of the recipes in tinker-cookbook 0.5.8: preference/train_dpo.py; rl_loop, math_rl,
# code_rl and search_tool; distillation.
USUAL_RATES = {DPO: (1e-5, 1e-5), RL: (1e-5, 4e-5), ON_POLICY: (1e-4, 1e-4)}


class Advice(NamedTuple):
    """One line of the policy; `follows`: whether the settings do as it says, None where that
    cannot be told."""

    about: str
    policy: str
    yours: str
    follows: bool | None
    remark: str


def advice_of(view: Planned, verdict: str) -> Iterator[Advice]:
    """Yield the lines of the policy. `verdict` is that on the adapter's room."""
    yield _layers(view)
    yield _rank(view, verdict)
    yield _rate(view)
    yield _schedule(view)
    yield _batch(view)
    yield _length(view)
    yield from _evaluation(view)


def _layers(view: Planned) -> Advice:
    config = view.config
    flags = {
        "MLP": config.train_mlp,
        "attention": config.train_attn,
        "unembedding": config.train_unembed,
    }
    yours = ", ".join(name for name, is_trained in flags.items() if is_trained)
    remark = "" if all(flags.values()) else f"not trained: {_others(flags)}"
    if not config.train_mlp:
        remark += "; without the MLP layers LoRA learns less for as many parameters"
    elif not config.train_unembed:
        remark += ", which makes the adapter easier to serve"
    policy = "MLP, attention and unembedding"
    return Advice("LoRA layers", policy, yours, all(flags.values()), remark)


def _others(flags: dict[str, bool]) -> str:
    return ", ".join(name for name, is_trained in flags.items() if not is_trained)


def _rank(view: Planned, verdict: str) -> Advice:
    rank = view.config.lora_rank
    if verdict == "low_rank_is_enough":
        policy = f"1 to {LOW_RANK}, as this method learns from few bits"
        return Advice("lora_rank", policy, str(rank), rank <= LOW_RANK, "more does no harm")
    room = {
        "room": "the adapter has room for these rows",
        "below": "the adapter has too little room for these rows",
        "far_below": "the adapter has far too little room for these rows",
    }.get(verdict, "whether the adapter has room is not known")
    follows = rank >= RANK_TO_START if verdict not in ("below", "far_below") else False
    policy = f"{RANK_TO_START} to start with, more for many rows"
    return Advice("lora_rank", policy, str(rank), follows, room)


def _rate(view: Planned) -> Advice:
    rate, known = view.inputs.settled.schedule.learning_rate, recommended(view)
    method = words_for(view.config)
    if method in USUAL_RATES:
        low, high = USUAL_RATES[method]
        usual = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        is_near = low / FAR_RATE <= rate <= high * FAR_RATE
        remark = "its models are far larger than a demo's, which take higher rates"
        policy = f"{usual} in the cookbook's own recipes of this method"
        return Advice("learning_rate", policy, f"{rate:g}", is_near, remark)
    policy = "the cookbook's rate for the model, else ten times that of full fine-tuning"
    if known is None:
        remark = "the cookbook has none for this model; a short pilot run tells more"
        return Advice("learning_rate", policy, f"{rate:g}", None, remark)
    is_near = known / FAR_RATE <= rate <= known * FAR_RATE
    remark = f"the cookbook's is {known:.2g}"
    return Advice("learning_rate", policy, f"{rate:g}", is_near, remark)


def _schedule(view: Planned) -> Advice:
    steps, schedule = view.inputs.settled
    yours = f"cosine, times {schedule.lr_decay:g} at each miss"
    is_flat = schedule.lr(steps.total - 1, 0) >= FLAT * schedule.learning_rate
    decays = schedule.lr_decay < 1 and steps.max_rounds > 1
    remark = _schedule_remark(schedule, is_flat=is_flat, decays=decays)
    return Advice(
        "schedule", "constant, unless with a reason", yours, is_flat and not decays, remark
    )


def _schedule_remark(schedule: Schedule, *, is_flat: bool, decays: bool) -> str:
    parts = []
    if not is_flat:
        parts.append("raise max_steps for a flatter one")
    if decays:
        parts.append("the lower rate after a miss is this loop's; lr_decay 1 turns it off")
    return "; ".join(parts)


def _batch(view: Planned) -> Advice:
    size, num_train = view.config.batch_size, len(view.inputs.split.train)
    if words_for(view.config).is_sampled:
        remark = f"{num_train:,} prompts; {group_size(view.config)} answers each"
        policy = "as many prompts as their rewards need to be told from chance"
        return Advice("batch_size", policy, batch_text(view.config), None, remark)
    is_moderate = size <= min(LARGE_BATCH, max(1, num_train))
    remark = f"{num_train:,} training rows"
    if size > LARGE_BATCH:
        remark = "LoRA bears large batches badly"
    elif not is_moderate:
        remark = f"more than the {num_train:,} training rows"
    return Advice(
        "batch_size", "moderate, raised only with a look at scores", str(size), is_moderate, remark
    )


def _length(view: Planned) -> Advice:
    total = view.inputs.settled.steps.total
    is_short = total <= SHORT_RUN
    remark = "short enough to be its own pilot" if is_short else "the pilot's command is below"
    policy = f"a pilot of {SHORT_RUN} to 2,000 steps before a long run"
    return Advice("length", policy, f"at most {total:,} steps", is_short, remark)


def _evaluation(view: Planned) -> Iterator[Advice]:
    layers = {task.layer for task in view.inputs.tasks}
    missing = [LAYERS[layer] for layer in LAYERS if layer not in layers]
    yours = "; ".join(LAYERS[layer] for layer in LAYERS if layer in layers)
    remark = "" if not missing else f"without: {'; '.join(missing)}"
    policy = "all three"
    yield Advice("layers of evaluation", policy, yours, not missing, remark)
    own = [task.name for task in view.inputs.tasks if task.layer == max(LAYERS)]
    yield Advice(
        "application task",
        "at least one",
        ", ".join(own) or "none",
        bool(own),
        "simple_qa is this project's own set, not your application's"
        if own == ["simple_qa"]
        else "",
    )


def policy_part(view: Planned, verdict: str) -> Part:
    """The table; in the terminal only what differs."""
    advice = list(advice_of(view, verdict))
    lines = [
        f"{one.about}: {one.policy}; here: {one.yours}" for one in advice if one.follows is False
    ]
    follows = {True: "yes", False: "no", None: "cannot be told"}
    columns = [
        Column("About"),
        Column("Advice"),
        Column("Yours"),
        Column("Followed"),
        Column("Remark"),
    ]
    rows = [(one.about, one.policy, one.yours, follows[one.follows], one.remark) for one in advice]
    note = "It is advice to start from, not a rule; where yours differs there may be a reason."
    table = Table("Usual advice beside the settings", columns, rows, note=note)
    title, facts = "Usual advice that the settings do not follow", [one._asdict() for one in advice]
    return Part("policy", title, lines, facts, [table])
