"""The loss functions against the published formulas, written out here as plain loops."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch

from local_tinker.losses import LOSSES, check_loss, is_trained, loss_sum, required_inputs
from local_tinker.wire import UserError

INF, NAN = math.inf, math.nan
LENGTHS = (7, 1, 12, 5)

# Non-default configs besides the defaults; dro has none.
CASES: list[tuple[str, dict[str, float]]] = [
    ("cross_entropy", {}),
    ("importance_sampling", {}),
    ("ppo", {}),
    ("ppo", {"clip_low_threshold": 0.5, "clip_high_threshold": 1.1}),
    ("cispo", {}),
    ("cispo", {"clip_low_threshold": 0.6, "clip_high_threshold": 1.3}),
    ("dro", {"beta": 0.05}),
    ("dro", {"beta": 1.5}),
    ("gspo", {}),
    ("gspo", {"clip_low_threshold": 0.9, "clip_high_threshold": 1.05}),
]
every_case = pytest.mark.parametrize(("loss_fn", "config"), CASES)


# --- one row of each loss, in loops ---------------------------------------------------------------


def clip(value: float, config: Mapping[str, float]) -> float:
    return max(config["clip_low_threshold"], min(config["clip_high_threshold"], value))


def reference_row(
    loss_fn: str,
    config: Mapping[str, float],
    lp: np.ndarray,
    frozen_lp: np.ndarray,
    row: Mapping[str, np.ndarray],
) -> float:
    """The loss of one row; where a formula says detach, it reads `frozen_lp` in place of `lp`."""
    if loss_fn == "cross_entropy":
        return -sum(float(w * x) for w, x in zip(row["weights"].flat, lp.flat, strict=True))
    q, advantages, total = row["logprobs"], row["advantages"], 0.0
    chosen = [t for t in range(len(lp)) if loss_fn == "gspo" and row["sequence_ratio_mask"][t] != 0]
    s = math.exp(sum(frozen_lp[t] - q[t] for t in chosen) / len(chosen)) if chosen else 1.0
    for t in range(len(lp)):
        advantage, ratio = float(advantages[t]), math.exp(lp[t] - q[t])
        match loss_fn:
            case "importance_sampling":
                total += ratio * advantage
            case "ppo":
                total += min(ratio * advantage, clip(ratio, config) * advantage)
            case "cispo":
                total += clip(math.exp(frozen_lp[t] - q[t]), config) * lp[t] * advantage
            case "dro":
                total += lp[t] * advantage - 0.5 * config["beta"] * (lp[t] - q[t]) ** 2
            case "gspo":
                s_t = s * math.exp(lp[t] - frozen_lp[t])
                total += min(s_t * advantage, clip(s_t, config) * advantage)
            case _:
                raise AssertionError(loss_fn)
    return -total


# --- random rows, one after another --------------------------------------------------------------


def random_rows(seed: int, loss_fn: str, num_targets: int | None = None) -> list[dict]:
    """Rows of LENGTHS with every input of a loss, and with `lp`, the current log-probabilities."""
    generator = np.random.default_rng(seed)
    rows = []
    for number, length in enumerate(LENGTHS):
        shape = (length,) if num_targets is None else (length, num_targets)
        lp = -generator.exponential(1.5, shape)
        mask = (generator.random(length) < 0.7).astype(float)
        mask[0] = 1.0
        # gspo's ratio averages over a row, so each row gets its own drift: 0.74 to 1.35.
        drift = 0.2 * number - 0.3
        row = {
            "lp": lp,
            "weights": generator.normal(size=shape),
            "logprobs": lp - drift - 0.4 * generator.normal(size=shape),
            "advantages": generator.normal(size=length),
            "sequence_ratio_mask": mask,
        }
        rows.append({name: row[name] for name in ("lp", *required_inputs(loss_fn))})
    return rows


def loss_and_gradients(
    loss_fn: str,
    config: Mapping[str, float],
    rows: list[dict],
    dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss and its gradient for each row; asserts that none is where `is_trained` says so."""
    resolved = check_loss(loss_fn, config)
    arrays = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    tensors = {name: torch.tensor(array, dtype=dtype) for name, array in arrays.items()}
    logprobs = tensors.pop("lp").requires_grad_()
    lengths = [len(row["lp"]) for row in rows]
    loss = loss_sum(loss_fn, resolved, logprobs, tensors, lengths)
    assert loss.shape == ()
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert torch.all(gradient[~torch.from_numpy(is_trained(loss_fn, resolved, arrays))] == 0)
    return loss.detach(), list(gradient.split(lengths))


def one_row(**values: list[float]) -> list[dict]:
    return [{name: np.array(value) for name, value in values.items()}]


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_case
def test_value_is_the_sum_of_the_rows(
    loss_fn: str, config: dict[str, float], dtype: torch.dtype
) -> None:
    resolved = check_loss(loss_fn, config)
    for seed in range(5):
        rows = random_rows(seed, loss_fn)
        expected = sum(reference_row(loss_fn, resolved, r["lp"], r["lp"], r) for r in rows)
        loss, _ = loss_and_gradients(loss_fn, config, rows, dtype)
        assert float(loss) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_cross_entropy_with_several_targets_per_position() -> None:
    rows = random_rows(3, "cross_entropy", num_targets=4)
    expected = sum(reference_row("cross_entropy", {}, r["lp"], r["lp"], r) for r in rows)
    loss, gradients = loss_and_gradients("cross_entropy", {}, rows)
    assert float(loss) == pytest.approx(expected, abs=1e-9)
    for gradient, row in zip(gradients, rows, strict=True):
        np.testing.assert_array_equal(gradient, -row["weights"])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),  # unclipped: on-policy it is the plain policy gradient
        (1.5, 2.0, -2.4, 0.0),  # good and already likelier: stopped at 1.2
        (1.5, -2.0, 3.0, 3.0),  # bad and likelier: pushed back in full
        (0.5, 2.0, -1.0, -1.0),  # good and less likely: pulled up in full
        (0.5, -2.0, 1.6, 0.0),  # bad and already less likely: stopped at 0.8
    ],
)
@pytest.mark.parametrize("loss_fn", ["ppo", "gspo"])
def test_the_clip_stops_only_what_has_gone_far_enough(
    loss_fn: str, ratio: float, advantage: float, loss: float, gradient: float
) -> None:
    rows = one_row(lp=[-1.0], logprobs=[-1.0 - math.log(ratio)], advantages=[advantage])
    if loss_fn == "gspo":  # a row of one token has a sequence ratio that is the token's own
        rows[0]["sequence_ratio_mask"] = np.ones(1)
    value, gradients = loss_and_gradients(loss_fn, {}, rows)
    assert float(value) == pytest.approx(loss)
    assert float(gradients[0]) == pytest.approx(gradient)


def test_cispo_by_hand_keeps_the_gradient_of_clipped_tokens() -> None:
    rows = one_row(
        lp=[-1.0, -2.0], logprobs=[-1.0 - math.log(8), -2.0 + math.log(2)], advantages=[3.0, -1.0]
    )
    loss, gradients = loss_and_gradients("cispo", {}, rows)
    assert float(loss) == pytest.approx(-(4 * -1.0 * 3.0 + 0.5 * -2.0 * -1.0))
    assert gradients[0].tolist() == pytest.approx([-12.0, 0.5])


def test_dro_by_hand_pulls_back_where_the_advantage_is_zero() -> None:
    rows = one_row(lp=[-1.0, -2.0], logprobs=[-1.5, -5.0], advantages=[2.0, 0.0])
    loss, gradients = loss_and_gradients("dro", {"beta": 0.1}, rows)
    assert float(loss) == pytest.approx(2.0 + 0.05 * (0.25 + 9.0))
    assert gradients[0].tolist() == pytest.approx([-2.0 + 0.05, 0.3])


def test_gspo_by_hand_averages_where_the_mask_is_not_zero() -> None:
    """The mask says which tokens count, not how much: 5 counts as 1. Each row has its own ratio."""
    rows = [
        *one_row(
            lp=[-1.0, -1.0, -1.0],
            logprobs=[-1.1, -1.2, -9.0],
            advantages=[1.0, 0.0, 2.0],
            sequence_ratio_mask=[5.0, 1.0, 0.0],
        ),
        *one_row(
            lp=[-1.0], logprobs=[-0.9], advantages=[-1.0], sequence_ratio_mask=[1.0]
        ),
    ]  # fmt: skip
    loss, gradients = loss_and_gradients("gspo", {}, rows)
    first, second = math.exp(0.15), math.exp(-0.1)
    assert float(loss) == pytest.approx(-3 * first + second)
    assert gradients[0].tolist() == pytest.approx([-first, 0.0, -2 * first])
    assert gradients[1].tolist() == pytest.approx([second])


def test_gspo_without_any_masked_token_takes_the_row_as_on_policy() -> None:
    rows = one_row(
        lp=[-1.0, -2.0], logprobs=[-3.0, -0.5], advantages=[2.0, -0.5], sequence_ratio_mask=[0.0, 0]
    )
    loss, gradients = loss_and_gradients("gspo", {}, rows)
    assert float(loss) == pytest.approx(-1.5)
    assert gradients[0].tolist() == pytest.approx([-2.0, 0.5])


# --- gradients ------------------------------------------------------------------------------------


def central_differences(function: Callable[[np.ndarray], float], point: np.ndarray) -> np.ndarray:
    step, result = 1e-5, np.zeros_like(point)
    for index in np.ndindex(point.shape):
        offset = np.zeros_like(point)
        offset[index] = step
        result[index] = (function(point + offset) - function(point - offset)) / (2 * step)
    return result


def distance_to_kink(
    loss_fn: str, config: Mapping[str, float], row: Mapping[str, np.ndarray]
) -> float:
    """How far the ratios that are clipped with a gradient lie from the thresholds."""
    if loss_fn not in ("ppo", "gspo"):
        return INF
    log_ratios = row["lp"] - row["logprobs"]
    if loss_fn == "gspo":
        log_ratios = log_ratios[row["sequence_ratio_mask"] != 0].mean(keepdims=True)
    return min(abs(math.exp(x) - edge) for x in log_ratios for edge in config.values())


@every_case
def test_gradient_matches_finite_differences(loss_fn: str, config: dict[str, float]) -> None:
    """Detached factors stay frozen at the point itself while the rest of the formula moves."""
    resolved = check_loss(loss_fn, config)
    rows = random_rows(11, loss_fn)
    _, gradients = loss_and_gradients(loss_fn, config, rows)
    clipped = 0
    for gradient, row in zip(gradients, rows, strict=True):
        assert distance_to_kink(loss_fn, resolved, row) > 1e-4

        def surrogate(lp: np.ndarray, row: dict = row) -> float:
            return reference_row(loss_fn, resolved, lp, row["lp"], row)

        expected = central_differences(surrogate, row["lp"])
        np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-6, atol=1e-8)
        clipped += int((gradient == 0).sum())
    if loss_fn in ("ppo", "gspo"):  # the rows must reach both sides of the clip
        assert 0 < clipped < sum(LENGTHS)


@pytest.mark.parametrize("loss_fn", ["cispo", "gspo"])
def test_detached_factors_have_no_gradient(loss_fn: str) -> None:
    """The derivative of the whole formula, nothing frozen, is another one."""
    resolved = check_loss(loss_fn, {})
    row = random_rows(11, loss_fn)[2]
    _, gradients = loss_and_gradients(loss_fn, {}, [row])
    whole = central_differences(lambda lp: reference_row(loss_fn, resolved, lp, lp, row), row["lp"])
    assert np.abs(gradients[0].numpy() - whole).max() > 0.1


# --- positions that count for nothing -------------------------------------------------------------


def test_zero_weight_silences_an_impossible_target() -> None:
    rows = one_row(lp=[-1.0, -INF, -2.0], weights=[1.0, 0.0, -0.5])
    loss, gradients = loss_and_gradients("cross_entropy", {}, rows)
    assert float(loss) == 0.0  # 1 * 1 - 0.5 * 2
    assert gradients[0].tolist() == [-1.0, 0.0, 0.5]


@pytest.mark.parametrize(("lp", "q"), [(-INF, -1.0), (-1.0, -INF), (-INF, -INF), (-1.0, -1e4)])
@pytest.mark.parametrize("loss_fn", ["importance_sampling", "ppo", "cispo", "gspo"])
def test_zero_advantage_silences_an_infinite_ratio(loss_fn: str, lp: float, q: float) -> None:
    rows = random_rows(7, loss_fn)[:1]
    quiet = {name: np.append(value, 0.0) for name, value in rows[0].items()}
    quiet["lp"][-1], quiet["logprobs"][-1] = lp, q
    expected_loss, expected = loss_and_gradients(loss_fn, {}, rows)
    loss, gradients = loss_and_gradients(loss_fn, {}, [quiet])
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-12)
    assert gradients[0].tolist() == pytest.approx([*expected[0].tolist(), 0.0], rel=1e-12)


def test_dro_has_an_infinite_loss_not_nan_for_an_impossible_token() -> None:
    rows = one_row(lp=[-INF, -1.0], logprobs=[-1.0, -2.0], advantages=[0.0, 1.0])
    loss, gradients = loss_and_gradients("dro", {"beta": 0.1}, rows)
    assert float(loss) == INF
    assert gradients[0].tolist() == pytest.approx([-INF, -0.9])
    loss, gradients = loss_and_gradients("dro", {"beta": 0}, rows)
    assert float(loss) == 1.0
    assert gradients[0].tolist() == [0.0, -1.0]


def test_the_upper_clip_holds_when_the_ratio_overflows() -> None:
    rows = one_row(lp=[-1.0, -1.0], logprobs=[-500.0, -1.0], advantages=[2.0, 1.0])
    loss, gradients = loss_and_gradients("ppo", {}, rows, torch.float32)
    assert float(loss) == pytest.approx(-2 * 1.2 - 1)
    assert gradients[0].tolist() == [0.0, -1.0]


def test_gspo_with_an_impossible_token_has_a_ratio_of_zero() -> None:
    for advantage in (2.0, 0.0):  # a token without advantage still belongs to its sequence
        rows = one_row(
            lp=[-INF, -1.0],
            logprobs=[-1.0, -1.0],
            advantages=[advantage, -1.0],
            sequence_ratio_mask=[1.0, 1.0],
        )
        loss, gradients = loss_and_gradients("gspo", {}, rows)
        assert float(loss) == pytest.approx(0.8)
        assert gradients[0].tolist() == [0.0, 0.0]


def test_gspo_with_an_infinite_ratio_is_stopped_by_the_upper_clip() -> None:
    rows = one_row(
        lp=[-1.0, -1.0],
        logprobs=[-INF, -1.0],
        advantages=[0.0, 2.0],
        sequence_ratio_mask=[1.0, 1.0],
    )
    loss, gradients = loss_and_gradients("gspo", {}, rows)
    assert float(loss) == pytest.approx(-2 * 1.2)
    assert gradients[0].tolist() == [0.0, 0.0]


# --- names and configs ----------------------------------------------------------------------------


def test_inputs_and_defaults_are_the_documented_ones() -> None:
    policy = ("logprobs", "advantages")
    assert {name: required_inputs(name) for name in LOSSES} == {
        "cross_entropy": ("weights",),
        "importance_sampling": policy,
        "ppo": policy,
        "cispo": policy,
        "dro": policy,
        "gspo": (*policy, "sequence_ratio_mask"),
    }
    ppo_clip = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
    assert check_loss("cross_entropy", {}) == {}
    assert check_loss("ppo", {}) == check_loss("gspo", {}) == ppo_clip
    assert check_loss("cispo", {}) == {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0}
    assert check_loss("dro", {"beta": 0.05}) == {"beta": 0.05}
    assert check_loss("ppo", {"clip_high_threshold": 2}) == {**ppo_clip, "clip_high_threshold": 2.0}


@pytest.mark.parametrize(
    ("loss_fn", "config", "message"),
    [
        ("crossentropy", {}, "unknown loss function 'crossentropy'; this service has "
         "cross_entropy, importance_sampling, ppo, cispo, dro, gspo"),
        ("stable_reinforce", {"kl_coeff": 0.1}, "loss function 'stable_reinforce' needs records "
         "made while sampling, which this service does not keep; use importance_sampling, ppo, "
         "cispo or gspo"),
        ("custom", {}, "loss function 'custom' is not supported on the server; use "
         "forward_backward_custom, which computes the loss in the client"),
        ("ppo", {"clip_low": 0.8, "beta": 1}, "ppo has no config key beta, clip_low; it has "
         "clip_low_threshold, clip_high_threshold"),
        ("cross_entropy", {"beta": 1}, "cross_entropy has no config key beta; it has none"),
        ("dro", {}, 'dro needs beta, which has no default; set loss_fn_config={"beta": 0.05}'),
        ("dro", {"beta": NAN}, "dro: beta must be a finite number, found nan"),
        ("cispo", {"clip_high_threshold": INF},
         "cispo: clip_high_threshold must be a finite number, found inf"),
        ("gspo", {"clip_low_threshold": "0.8"},
         "gspo: clip_low_threshold must be a finite number, found '0.8'"),
        ("ppo", {"clip_high_threshold": 0.2}, "ppo: clip_low_threshold 0.8 exceeds "
         "clip_high_threshold 0.2; both bound the ratio itself, as in 0.8 and 1.2"),
    ],
)  # fmt: skip
def test_refusals_say_what_to_do(
    loss_fn: str, config: dict[str, float | str], message: str
) -> None:
    with pytest.raises(UserError) as refused:
        check_loss(loss_fn, config)
    assert str(refused.value) == message
