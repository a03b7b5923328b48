"""What a run's steps need of a service, asked of those that others have built before the first one.

Tinker's own service and the embedded one are known. Of the rest, docs/engines.md says how they
differ, and this refuses what would train otherwise than the settings say, without a word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import tinker

from errors import ConfigError
from loop.rounds.run import Run

PROBE = "one two three four"
PROBE_WEIGHT = 2.0  # not 1, where a sum and a mean over the weights are the same


async def refuse_other_loss(run: Run, client: tinker.TrainingClient) -> None:
    """Raise `ConfigError` where the run's steps need a loss that is a plain sum, and the service
    does not report the sum of a few tokens' losses as its loss.

    SkyRL's JAX backend divides the loss of each row by the sum of its weights, at least 1e-9, and
    reports none: rows of any weight count alike, and an answer that is to become less likely,
    whose weights are negative, counts a billion times.
    """
    is_elsewhere = run.base_url is not None and run.weights_dir is None
    if not is_elsewhere or (why := needs_plain_sum(run)) is None:
        return
    tokens = run.plan.renderer.tokenizer.encode(PROBE, add_special_tokens=False)
    weights = [PROBE_WEIGHT] * (len(tokens) - 1)
    datum = tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData(data=tokens[1:], dtype="int64"),
            "weights": tinker.TensorData(data=weights, dtype="float32"),
        },
    )
    output = await client.forward([datum], "cross_entropy")
    run.store.append("probed", num_prompt_tokens=datum.model_input.length)  # it is paid for as well
    logprobs = output.loss_fn_outputs[0]["logprobs"].to_numpy().tolist()
    if not is_plain_sum(output.metrics, logprobs, weights):
        found = output.metrics.get("loss:sum", "none at all")
        raise ConfigError(
            f"{why} needs a loss that is a plain sum, and the service at {run.base_url} reports "
            f"{found} as loss:sum of {len(weights)} tokens whose losses sum to "
            f"{plain_sum(logprobs, weights):.4g}. Rows would count otherwise than the settings "
            "say. Use Tinker, the embedded service or another engine; docs/engines.md names them."
        )


def needs_plain_sum(run: Run) -> str | None:
    """What of the settings does; None where each row counts alike, as a mean over it gives."""
    if run.plan.config.method != "sft":
        return f"method {run.plan.config.method}"
    rows = [*run.plan.train.examples, *run.plan.pool.examples]
    if any(row.weight != 1 for row in rows):
        return "a row with a weight of its own"
    return None


def plain_sum(logprobs: Sequence[float], weights: Sequence[float]) -> float:
    return -math.fsum(lp * w for lp, w in zip(logprobs, weights, strict=True))


def is_plain_sum(
    metrics: Mapping[str, float], logprobs: Sequence[float], weights: Sequence[float]
) -> bool:
    """Whether the loss that was reported is the sum of the tokens' losses, in nats."""
    reported = metrics.get("loss:sum")
    return reported is not None and math.isclose(
        reported, plain_sum(logprobs, weights), rel_tol=1e-3
    )
