"""Train, save, sample and resume through whichever Tinker SDK is installed.

    python benchmarks/sdk_versions_client.py [BASE_MODEL]

The service is named by TINKER_BASE_URL and TINKER_API_KEY. benchmarks/sdk_versions.sh runs this
script once for every SDK version against one service, so it speaks to all of them in one spelling
and imports nothing but the SDK. Prints a line for every stage; the first thing that does not hold
ends it with a traceback and exit code 1.
"""

from __future__ import annotations

import faulthandler
import math
import platform
import sys
import warnings
from concurrent.futures import Future
from itertools import pairwise
from typing import Any

import tinker
from tinker import types

# The SDK repeats a failing sample request for hours; a stage that hangs is a failure here.
TIME_LIMIT_S = 300
# The release that gave the present spelling to everything and began to warn of the earlier one.
MODERN = (0, 38)
STEPS = 4
# Any ids below the vocabulary size do: nothing here reads the text.
SEQUENCES = [
    [17, 204, 33, 81, 950, 17, 204, 33, 81, 951],
    [5, 6, 7, 8, 9, 10, 11, 12],
    [400, 301, 202, 103, 4, 105, 206, 307, 408, 509, 610, 711],
]
PROMPT = SEQUENCES[0][:5]
# Low enough that no step overshoots; at 0.01 the sixth one does.
ADAM = types.AdamParams(learning_rate=0.003)


def sdk_version() -> tuple[int, ...]:
    return tuple(int(part) for part in tinker.__version__.split(".")[:2])


def finished(value: Any) -> Any:
    """Wait where the SDK returned a future.

    The methods that make clients return the client itself before 0.38 and an APIFuture since;
    sample() and compute_logprobs() return a plain concurrent future before 0.38.
    """
    return value.result() if isinstance(value, tinker.APIFuture | Future) else value


def make_data() -> list[types.Datum]:
    return [
        types.Datum(
            model_input=types.ModelInput.from_ints(tokens[:-1]),
            loss_fn_inputs={
                "target_tokens": types.TensorData(data=tokens[1:], dtype="int64"),
                # The first position has no part in the loss, to see that weights arrive as sent.
                "weights": types.TensorData(
                    data=[0.0] + [1.0] * (len(tokens) - 2), dtype="float32"
                ),
            },
        )
        for tokens in SEQUENCES
    ]


def loss_of(output: types.ForwardBackwardOutput, data: list[types.Datum]) -> float:
    """The loss the service reports, having checked it against the log-probabilities it returns."""
    loss = output.metrics["loss:sum"]
    assert len(output.loss_fn_outputs) == len(data), output
    expected = 0.0
    for datum, outputs in zip(data, output.loss_fn_outputs, strict=True):
        weights, logprobs = datum.loss_fn_inputs["weights"].data, outputs["logprobs"].data
        expected -= sum(w * lp for w, lp in zip(weights, logprobs, strict=True))
    assert math.isclose(loss, expected, rel_tol=1e-4), f"loss:sum {loss}, from logprobs {expected}"
    return loss


def train(training: tinker.TrainingClient, steps: int) -> list[float]:
    """Take steps, all of them sent before the first result is waited for; returns their losses."""
    data = make_data()
    pairs = [
        (training.forward_backward(data, "cross_entropy"), training.optim_step(ADAM))
        for _ in range(steps)
    ]
    losses = []
    for forward_backward, optim_step in pairs:
        losses.append(loss_of(forward_backward.result(), data))
        optim_step.result()
    return losses


def forward_loss(training: tinker.TrainingClient) -> float:
    data = make_data()
    return loss_of(training.forward(data, "cross_entropy").result(), data)


def sample(sampling: tinker.SamplingClient) -> types.SampledSequence:
    response = finished(
        sampling.sample(
            prompt=types.ModelInput.from_ints(PROMPT),
            num_samples=1,
            sampling_params=types.SamplingParams(max_tokens=8, temperature=0.0, seed=3),
        )
    )
    (sequence,) = response.sequences
    assert sequence.tokens, sequence
    assert sequence.logprobs is not None, sequence
    assert len(sequence.logprobs) == len(sequence.tokens), sequence
    assert all(lp <= 0 for lp in sequence.logprobs), sequence.logprobs
    return sequence


def assert_same_sequence(one: types.SampledSequence, other: types.SampledSequence) -> None:
    assert one.tokens == other.tokens, f"tokens {one.tokens} and {other.tokens}"
    pairs = list(zip(one.logprobs or [], other.logprobs or [], strict=True))
    assert all(math.isclose(a, b, abs_tol=1e-6) for a, b in pairs), f"logprobs differ: {pairs}"


def assert_same_loss(original: float, resumed: float) -> None:
    same = math.isclose(original, resumed, rel_tol=1e-6)
    assert same, f"loss {original} in the original run, {resumed} in the resumed one"


def stage(text: str) -> None:
    print(text, flush=True)


def main(base_model: str) -> None:
    service = tinker.ServiceClient()
    training: tinker.TrainingClient = finished(
        service.create_lora_training_client(base_model=base_model, rank=4, seed=1)
    )
    stage(
        f"tinker {tinker.__version__} on Python {platform.python_version()}: "
        "training client of rank 4, seed 1"
    )

    losses = train(training, STEPS)
    falling = all(after < before for before, after in pairwise(losses))
    assert falling, f"the loss does not fall: {losses}"
    stage(f"{STEPS} pipelined steps: loss {', '.join(f'{loss:.4f}' for loss in losses)}")

    state_path = training.save_state("state").result().path
    stage(f"save_state: {state_path}")

    sampler_path = training.save_weights_for_sampler("sampler").result().path
    stage(f"save_weights_for_sampler: {sampler_path}")

    sampling: tinker.SamplingClient = finished(
        service.create_sampling_client(model_path=sampler_path)
    )
    first = sample(sampling)
    assert_same_sequence(first, sample(sampling))
    stage(f"greedy sample, twice the same: tokens {first.tokens}")

    logprobs = finished(sampling.compute_logprobs(types.ModelInput.from_ints(PROMPT)))
    assert len(logprobs) == len(PROMPT), f"{len(PROMPT)} tokens, logprobs {logprobs}"
    assert logprobs[0] is None, f"the first token has a logprob: {logprobs}"
    assert all(lp is not None and lp <= 0 for lp in logprobs[1:]), f"logprobs {logprobs}"
    stage(f"compute_logprobs: None, then {len(logprobs) - 1} numbers")

    current: tinker.SamplingClient = finished(training.save_weights_and_get_sampling_client())
    # No step was taken since the named save, so these weights are the same ones.
    assert_same_sequence(first, sample(current))
    stage("save_weights_and_get_sampling_client: the same sample")

    (loss_before,) = train(training, 1)
    loss_after = forward_loss(training)
    assert loss_after < loss_before, f"the loss does not fall: {[loss_before, loss_after]}"
    resumed: tinker.TrainingClient = finished(
        service.create_training_client_from_state_with_optimizer(state_path)
    )
    (resumed_before,) = train(resumed, 1)
    assert_same_loss(loss_before, resumed_before)
    # Equal only where the optimizer's moments came back too: they shape the step in between.
    assert_same_loss(loss_after, forward_loss(resumed))
    stage(f"resumed with optimizer: loss {loss_after:.6f} after one more step, in both runs")

    if hasattr(service, "close"):  # 0.25 leaves sessions open
        finished(service.close("success"))
        stage("session closed")


if __name__ == "__main__":
    faulthandler.dump_traceback_later(TIME_LIMIT_S, exit=True)
    if sdk_version() >= MODERN:
        # The SDK announces with this category what it is going to remove.
        warnings.simplefilter("error", FutureWarning)
    main(sys.argv[1] if len(sys.argv) > 1 else "demo_model")
