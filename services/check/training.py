"""What the courses say of how a service trains. Pure: what was measured in, lines out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from services.check.bench import Measured, Refused
from services.check.courses import (
    BETAS,
    GRADIENTS,
    HEAVY,
    HUGE_EPS,
    NO_MOMENTUM,
    SHORT_MEMORY,
    TINY,
    Way,
    decayed_move,
    predicted_move,
)
from services.check.verdicts import Found, Line, Verdict, nearest, worst

MAX_NOISE_FRAC = 0.1  # of a plain step's move, beyond which no ratio means anything
MAX_CURVATURE = 0.15  # of a plain step's move, beyond which ratios are no multiples of steps
SAME_FRAC = 0.02  # of the mean change by a step: two adapters are the same below it
OTHER_FRAC = 5 * SAME_FRAC  # and not the same above
LOSS_FRAC = 0.01  # how far a loss that is said may be from what the log-probabilities give
LOSS_NATS = 1e-5  # and one that is nearly 0
MANY_NOISES = 3  # how far apart the same weights put two numbers now and then

# What the sum of a row's weights is not let fall below, in an engine that divides by it.
FLOOR = 1e-9

Results = Mapping[str, Measured | Refused]


def moves(results: Results, *names: str) -> dict[str, float] | str:
    """How far courses moved the loss, in plain steps, by their names; why not, where one failed."""
    found = {}
    for name in ("plain", *names):
        result = results[name]
        if isinstance(result, Refused):
            return result.said
        found[name] = result.move
    plain, noise = found["plain"], noise_of(results)
    if not plain > 0:
        return f"a plain step does not make the loss fall ({-plain:+.4f} nats a token)"
    if noise > MAX_NOISE_FRAC * plain:
        return (
            f"the same weights give losses that differ by {noise:.4f} nats a token, and a step "
            f"moves it by {plain:.4f}"
        )
    if (curved := _curvature(results, plain)) > MAX_CURVATURE:
        return f"a second step moves the loss by {curved:.0%} more or less than the first"
    return {name: move / plain for name, move in found.items()}


def _curvature(results: Results, plain: float) -> float:
    """How far two steps are from moving the loss twice as far as one; 0 where they were refused."""
    two = results["not decayed"]
    return 0.0 if isinstance(two, Refused) else abs(two.move / plain - 2)


def noise_of(results: Results) -> float:
    """How far the losses of fresh adapters, which are all the base model, are apart, in nats."""
    means = [
        math.fsum(one.before) / len(one.before)
        for one in results.values()
        if isinstance(one, Measured)
    ]
    return max(means) - min(means) if means else 0.0


def token_noise_of(results: Results) -> float:
    """How far single log-probabilities of fresh adapters are apart, in nats: the largest mean
    distance of two of them."""
    first, *others = [one.before for one in results.values() if isinstance(one, Measured)] or [()]
    return max((mean_apart(first, one) for one in others), default=0.0)


def mean_apart(ones: Sequence[float], others: Sequence[float]) -> float:
    """The mean distance of two computations of the same log-probabilities, in nats."""
    return math.fsum(abs(a - b) for a, b in zip(ones, others, strict=True)) / len(ones)


def judged(
    results: Results,
    course: str,
    promised: float,
    broken: Mapping[str, float],
    unit: str = "plain",
) -> Found:
    """Judge the move of one course, in those of another."""
    found = moves(results, course, unit)
    if isinstance(found, str):
        return Found("cannot tell", found)
    if not found[unit] > 0:
        return Found("cannot tell", "the step to compare it with does not make the loss fall")
    plain = results["plain"]
    assert isinstance(plain, Measured), "it has moves"
    noise = noise_of(results) / (found[unit] * plain.move)
    return nearest(found[course] / found[unit], promised, broken, noise)


def training_line(losses: Sequence[float] | Refused) -> Line:
    """Whether the loss of two examples falls; `losses` are those of each step, and the last."""
    affects = "all training"
    if isinstance(losses, Refused):
        return Line("training", "differs", losses.said, affects)
    shown = (
        f"two examples: {losses[0]:.3f} -> {losses[-1]:.3f} nats a token, {len(losses) - 1} steps"
    )
    is_falling = all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    return Line("training", "works" if is_falling else "differs", shown, affects)


def loss_line(results: Results) -> Line:
    """Whether the gradient is that of the plain sum of weight times loss over all tokens."""
    summed, even = predicted_move([HEAVY, 1.0, 1.0]), predicted_move([1.0, 1.0, 1.0])
    found = {
        "negative rows": opposed_rows(results),
        "heavier rows": heavier_rows(results),
        "more rows": judged(
            results, "many rows", summed, {"the loss is a mean over rows or tokens": even}
        ),
        "more tokens": _of_more_tokens(results),
        "loss that is said": said_loss(results),
    }
    verdict = worst(found)
    why = verdict.why
    if verdict.verdict == "works":
        why = "weights, rows and tokens add up, and so does the loss that is said"
    affects = "learning rates, `data.weights`, losses of preferences and rewards"
    return Line("loss is a plain sum", verdict.verdict, why, affects)


def opposed_rows(results: Results) -> Found:
    """Whether a row of negative weights is the opposite of one of positive ones, in sign and
    size."""
    broken = {
        "they are trained on as if their weights were positive": predicted_move([1.0, 1.0]),
        # Divided by the floor where a plain row is divided by its weights, which are more than 1.
        "they are not the negative of rows of positive weights, but far more, as where a row is "
        f"divided by its weights or by {FLOOR:g}": predicted_move([-1 / FLOOR, 1.0]),
    }
    return judged(results, "opposed", predicted_move([-1.0, 1.0]), broken)


def heavier_rows(results: Results) -> Found:
    """Whether a row counts as much as its weights say."""
    even = {"a row's loss is divided by its weights": predicted_move([1.0, 1.0, 1.0])}
    return judged(results, "heavy row", predicted_move([HEAVY, 1.0, 1.0]), even)


def _of_more_tokens(results: Results) -> Found:
    first = results["first"]
    if isinstance(first, Refused):
        return Found("cannot tell", first.said)
    share = 1.0 / len(first.before)
    return judged(
        results,
        "first and tiny",
        predicted_move([1.0, 1.0, 1.0]),
        {
            "a row's loss is divided by the number of its tokens": predicted_move(
                [1.0, share, share]
            )
        },
        unit="first",
    )


def said_loss(results: Results) -> Found:
    """Whether `loss:sum` is the sum that the log-probabilities give."""
    all_said = [
        said for one in results.values() if isinstance(one, Measured) for said in one.losses
    ]
    said = [(one, one.loss) for one in all_said if one.loss is not None]
    if not said:
        return Found("works", "is none: the loop reckons it from the log-probabilities")
    noise = MANY_NOISES * token_noise_of(results)
    far = [
        (loss, one.computed)
        for one, loss in said
        if not abs(loss - one.computed)
        <= max(LOSS_FRAC * abs(one.computed), LOSS_NATS) + noise * one.size
    ]
    if not far:
        return Found("works", "is the sum of the log-probabilities")
    shown = ", ".join(f"{number:.3f}" for number in far[0])
    return Found("differs", f"is not the sum of the log-probabilities ({shown})")


class Ranks(NamedTuple):
    """The rank of the settings, the one that was tried beside it, and what was said to the one that
    was to be, where it was refused."""

    own: int
    other: int
    refused: str = ""


def alpha_line(results: Results, ranks: Ranks, stored_alpha: float | str) -> Line:
    """What alpha does at two ranks, and what the adapter's own configuration says it is, or why
    that is not known."""
    factor = ranks.other / ranks.own
    broken = {
        "alpha grows with the rank": factor,
        "the update is scaled by 1/sqrt(rank), as in rsLoRA": math.sqrt(factor),
        "alpha falls with the rank": 1 / factor,
    }
    found = judged(results, "other rank", 1.0, broken)
    why = f"a step at rank {ranks.other} beside rank {ranks.own}: {found.why}"
    verdict = found.verdict
    if ranks.refused:
        why += f"; {ranks.refused}"
    if isinstance(stored_alpha, str):
        why += f"; its size is not known: {stored_alpha}"
    else:
        why += f"; its adapter_config.json says {stored_alpha:g}"
        if stored_alpha != 32 and verdict == "works":
            verdict = "differs"
    return Line("alpha is 32 at any rank", verdict, why, "learning rates at every rank")


class Told(NamedTuple):
    """In which way gradients are made to differ on a service, or why in none."""

    way: Way | None
    why_none: str = ""


def told_by(results: Results) -> Told:
    """The way to tell what an optimizer remembers: by weights only where these count in sign and
    size, else by what was shown to leave next to nothing of a gradient. `results` need "nothing"
    where the others are no way."""
    failed = {"weights": worst({"sign": opposed_rows(results), "size": heavier_rows(results)})}
    if failed["weights"].verdict == "works":
        return Told("weights")
    failed["clipping"] = clipped(results)
    if failed["clipping"].verdict == "works":
        return Told("clipping")
    if "nothing" in results:
        failed["weights of 0"] = judged(results, "nothing", 0.0, {"they train as any": 1.0})
        if failed["weights of 0"].verdict == "works":
            return Told("weights of 0")
    if len({one.why for one in failed.values()}) == 1:
        return Told(None, failed["weights"].why)
    shown = "; ".join(f"{name}: {one.why}" for name, one in failed.items())
    return Told(None, f"no gradient is another by a factor that is known here: {shown}")


def clipped(results: Results) -> Found:
    """Whether gradients are clipped, by two that are and a plain one."""
    broken = {"gradients are not clipped": predicted_move([1.0, 1.0, 1.0])}
    return judged(results, "clipped", predicted_move([TINY, TINY, 1.0]), broken)


def optimizer_lines(results: Results, decayed_share: float, told: Told) -> list[Line]:
    """Betas, eps, clipping and weight decay, each by steps that differ in it alone."""
    betas = Found("cannot tell", told.why_none)
    if told.way is not None:
        betas = _betas(results, told.way)
    eps = judged(results, "huge eps", 0.0, {"eps is not what was sent": 1.0})
    clipping = clipped(results)
    decay = Found("cannot tell", "its learning rate is too small for a decay that any engine takes")
    if decayed_share > MAX_NOISE_FRAC:
        broken = {
            "weights do not decay": 1.0,
            "the learning rate or the decay is twice what was sent": decayed_move(
                2 * decayed_share
            ),
        }
        promised = decayed_move(decayed_share)
        decay = judged(results, "decayed", promised, broken, "not decayed")
    all_of_it = f"the Adam that the loop asks for: betas {BETAS[0]}/{BETAS[1]}"
    return [
        Line("betas", betas.verdict, betas.why, all_of_it),
        Line("eps", eps.verdict, f"eps {HUGE_EPS:g}: {eps.why}", "the Adam that the loop asks for"),
        Line(
            "clipping",
            clipping.verdict,
            clipping.why,
            "other clients; the loop clips nothing",
            False,
        ),
        Line("weight decay", decay.verdict, decay.why, "`weight_decay`"),
    ]


def _betas(results: Results, way: Way) -> Found:
    """Whether the betas are what was sent, by two gradients that differ in a way."""
    of_first, of_second = GRADIENTS[way]
    kept, dropped = predicted_move(of_first), predicted_move(of_first, NO_MOMENTUM)
    long, short = (predicted_move(of_second, one) for one in (NO_MOMENTUM, SHORT_MEMORY))
    found = worst(
        {
            "beta1 0.9": judged(results, "momentum", kept, {"beta1 is another": dropped}),
            "beta1 0": judged(
                results, "no momentum", dropped, {"beta1 is not what was sent": kept}
            ),
            "beta2 0.95": judged(results, "long memory", long, {"beta2 is another": short}),
            "beta2 0.01": judged(
                results, "short memory", short, {"beta2 is not what was sent": long}
            ),
        }
    )
    return found if way == "weights" else found._replace(why=f"{found.why} (told by {way})")


def flags_line(results: Results) -> Line:
    """Whether the three flags choose what is trained: the moves of the parts add up to the whole's.

    A course that was refused is a difference that changes no score: no run begins.
    """
    affects, parts = (
        "`train_mlp`, `train_attn`, `train_unembed`",
        ("mlp", "attention", "unembedding"),
    )
    failed = {part: one for part in parts if isinstance(one := results[part], Refused)}
    if failed:
        why = "; ".join(f"{part} alone: {one.said}" for part, one in failed.items())
        late = all(one.is_late for one in failed.values())
        return Line("train flags", "cannot tell" if late else "differs", why, affects, False)
    found = moves(results, "all layers", *parts)
    if isinstance(found, str):
        return Line("train flags", "cannot tell", found, affects)
    whole = found["all layers"]
    shares = {part: found[part] / whole for part in parts}
    shown = ", ".join(f"{part} {share:.2f}" for part, share in shares.items())
    total = nearest(sum(shares.values()), 1.0, {"the flags change nothing": 3.0})
    idle = [part for part, share in shares.items() if abs(share) < 1e-3]
    if idle:
        total = Found("differs", f"{' and '.join(idle)} alone moves nothing")
    return Line(
        "train flags", total.verdict, f"of a step of all layers: {shown}; {total.why}", affects
    )


def seed_line(results: Results) -> Line:
    """Whether the seed decides the initial weights, seen after one step."""
    affects = "that a run can be repeated; `seed`, and studies over seeds"
    found = moves(results, "same seed", "other seed")
    if isinstance(found, str):
        return Line("seed", "cannot tell", found, affects, False)
    same, other = (_change(results, "plain", name) for name in ("same seed", "other seed"))
    size = _change(results, "plain", None)
    shown = (
        f"after a step, adapters of one seed differ by {same / size:.1%} of it, of two by "
        f"{other / size:.1%}"
    )
    verdict: Verdict = "works"
    noise = token_noise_of(results)
    if same > SAME_FRAC * size and same <= MANY_NOISES * noise:
        verdict, shown = "cannot tell", f"{shown}; the same weights by {noise / size:.1%}"
    elif same > SAME_FRAC * size and same > other / 2:
        verdict, shown = "differs", f"the seed is ignored: {shown}"
    elif other <= SAME_FRAC * size / 2 and other <= 2 * same:
        verdict, shown = "differs", f"all seeds are one: {shown}"
    elif same > SAME_FRAC * size:
        verdict = "cannot tell"
    return Line("seed", verdict, shown, affects, False)


def _change(results: Results, name: str, other: str | None) -> float:
    """The mean distance of two courses' log-probabilities; None: of a course's own, by its step."""
    one, two = results[name], results[other or name]
    assert isinstance(one, Measured), "the caller has looked"
    assert isinstance(two, Measured), "the caller has looked"
    apart = two.after if other is not None else one.before
    return mean_apart(one.after, apart)


def long_row_line(logprobs: Sequence[float] | Refused, num_targets: int) -> Line:
    """Whether a row as long as the settings allow is read to its end."""
    affects = "`max_seq_length`"
    if isinstance(logprobs, Refused):
        return Line("long rows", logprobs.verdict, logprobs.said, affects, False)
    if len(logprobs) != num_targets:
        why = f"a row of {num_targets} targets is answered with {len(logprobs)} log-probabilities"
        return Line("long rows", "differs", f"cut short: {why}", affects)
    tail = logprobs[-max(1, num_targets // 8) :]
    is_flat = len(tail) > 1 and len({round(one, 9) for one in tail}) == 1
    if not all(map(math.isfinite, tail)) or is_flat:
        return Line(
            "long rows", "differs", "cut short: the last log-probabilities are no values", affects
        )
    return Line("long rows", "works", f"{num_targets} targets are read to the end", affects)
