"""What must not hang on which SDK is installed.

requirements.txt has one, requirements-selfhosted.txt another, which is older than cookbook 0.5.8
asks for.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from concurrent.futures import Future
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
import tinker

from conftest import REPO
from data_loader import load_examples
from errors import ServiceError
from loop.rounds.refusing import is_plain_sum
from loop.rounds.training import sampler_path_in_full
from rows.chat_formats import load_renderer
from rows.rendering import Rendering
from rows.sources import Source
from services.sdk import PRESENT_SPELLING, NotInThisSdk, _OlderRest, is_older
from services.watched_client import for_each_token
from simple_eval import build_prompt, load_questions

pytestmark = pytest.mark.core

# Of all demo rows and questions, with both sets.
DATUMS = "d3c647b11d0ba62f"
PROMPTS = "54ebd127e3734d26"


def hashed(arrays: list[np.ndarray]) -> str:
    found = hashlib.sha256()
    for one in arrays:
        found.update(f"{one.dtype.str}{one.shape}".encode() + one.tobytes())
    return found.hexdigest()[:16]


def test_the_demos_tokens_and_weights_hang_on_no_sdk() -> None:
    renderer = load_renderer("llama3", str(REPO / "demo_model"))
    rendering = Rendering(renderer, 2048, None)
    files = [Source("rows", REPO / name) for name in ("demo_data.jsonl", "demo_pool.jsonl")]
    table = rendering.render_all(load_examples(files).examples)
    assert len(table.examples) == 693
    datums = [rendering[one.id].datum for one in table.examples]
    arrays = [
        array
        for datum in datums
        for array in (
            np.asarray(datum.model_input.to_ints(), dtype="<i8"),
            datum.loss_fn_inputs["target_tokens"].to_numpy().astype("<i8"),
            datum.loss_fn_inputs["weights"].to_numpy().astype("<f4"),
        )
    ]
    assert hashed(arrays) == DATUMS
    prompts = [
        np.asarray(build_prompt(renderer, question.turns).to_ints(), dtype="<i8")
        for name in ("simple_qa", "simple_qa_test")
        for question in load_questions(name, REPO / "evals" / f"{name}.jsonl").questions
    ]
    assert len(prompts) == 220
    assert hashed(prompts) == PROMPTS


def test_the_sdk_is_one_of_the_two_sets() -> None:
    present = re.search(r"^tinker==(\S+)", (REPO / "requirements.txt").read_text(), re.MULTILINE)
    older = re.search(
        r"^tinker==(\S+)", (REPO / "requirements-selfhosted.txt").read_text(), re.MULTILINE
    )
    assert present is not None
    assert older is not None
    assert tinker.__version__ in (present[1], older[1])
    assert version("tinker") == tinker.__version__
    assert is_older(older[1])
    assert not is_older(present[1])
    assert not is_older("1.0.0")
    assert PRESENT_SPELLING == (0, 38)


def test_an_older_rest_client_is_asked_by_what_can_be_awaited() -> None:
    """The SDK warns, with a stack, of each method that is called in a loop and waits."""

    class Rest:
        def list_checkpoints(self, run_id: str) -> None:
            raise AssertionError("a loop would wait for it")

        async def list_checkpoints_async(self, run_id: str) -> str:
            return run_id

        def get_weights_info_by_tinker_path(self, path: str) -> Future[str]:
            found: Future[str] = Future()
            found.set_result(path)
            return found

    async def ask() -> list[str]:
        rest: Any = _OlderRest(Rest(), None)
        with pytest.raises(NotInThisSdk, match="has no get_external_weights_urls"):
            await rest.get_external_weights_urls("path")
        return [
            await rest.list_checkpoints("run"),
            await rest.get_weights_info_by_tinker_path("path"),
        ]

    assert asyncio.run(ask()) == ["run", "path"]


def test_a_prompts_logprobs_are_one_for_each_token_or_refused() -> None:
    assert for_each_token([None, -1.0, -2.0], 3) == [None, -1.0, -2.0]
    assert for_each_token([-1.0, -2.0], 3) == [None, -1.0, -2.0]
    with pytest.raises(ServiceError, match="gave 1 log-probabilities for a prompt of 3 tokens"):
        for_each_token([-1.0], 3)
    with pytest.raises(ServiceError, match="gave 4"):
        for_each_token([None, -1.0, -2.0, -3.0], 3)


def test_sampler_paths_are_spelled_as_the_protocol_does() -> None:
    full = "tinker://model_1/sampler_weights/round_01"
    assert sampler_path_in_full("tinker://model_1/round_01") == full
    assert sampler_path_in_full(full) == full


def test_a_loss_is_a_plain_sum_or_is_none() -> None:
    logprobs, weights = [-1.0, -3.0], [2.0, 2.0]
    assert is_plain_sum({"loss:sum": 8.0}, logprobs, weights)
    assert not is_plain_sum({"loss:sum": 2.0}, logprobs, weights)  # a mean over the weights
    assert not is_plain_sum({}, logprobs, weights)
