"""The service's benchmarks: the server that answers at once, and the check of a GPU on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import tinker
from tinker import types

from conftest import IS_THOROUGH, REPO

sys.path.insert(0, str(REPO / "benchmarks"))

from throughput_client import (  # pyright: ignore[reportMissingImports] (of benchmarks/)
    STEPS_IN_FLIGHT,
    over_service,
    stub_service,
)

from local_tinker.session_routes import CLIENT_CONFIG
from local_tinker.wire import SampledTokens, sample_response
from loop.rounds.depth import FEWEST

KEY = "tml-of-nobody"


@pytest.mark.parametrize("is_polled", [False, True])
def test_the_stub_answers_the_sdk(is_polled: bool) -> None:
    answer = sample_response([SampledTokens([7, 8, 9], [-0.5, -1.0, -1.5], "stop")], None)
    config = json.dumps({**CLIENT_CONFIG, "sample_use_retrieve_futures": is_polled}).encode()

    async def sample(client: tinker.ServiceClient) -> list[types.SampleResponse]:
        sampler = await client.create_sampling_client("tinker://run/sampler_weights/any")
        params = types.SamplingParams(max_tokens=3)
        futures = [sampler.sample(types.ModelInput.from_ints([5]), 1, params) for _ in range(20)]
        return [await future for future in futures]

    with stub_service(answer, config) as base_url:
        responses = over_service(base_url, KEY, sample)
    assert [list(response.sequences[0].tokens) for response in responses] == [[7, 8, 9]] * 20


def test_as_many_steps_are_in_flight_as_in_the_loop() -> None:
    assert STEPS_IN_FLIGHT == FEWEST


@pytest.mark.skipif(not IS_THOROUGH, reason="it takes a minute; ./run_tests.sh --thorough runs it")
def test_the_check_of_a_gpu_passes_on_a_cpu() -> None:
    done = subprocess.run(
        [REPO / "benchmarks" / "gpu_check.sh", "--device", "cpu", "--tiny", "--minutes", "20"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MISSED" not in done.stdout
    assert "log-probabilities against a float32 model" in done.stdout
