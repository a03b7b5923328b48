"""What tests of the service do with the unmodified SDK: open a client, train, sample, read."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tinker
import torch
from safetensors.torch import load_file
from tinker import types

import forked
import local_tinker
from conftest import REPO
from services.sdk import is_older, service_client

KEY = "tml-chosen-for-this-test"
PROMPT = [5, 6, 7, 8]
ADAM = types.AdamParams(learning_rate=1e-2, beta1=0.9, beta2=0.95, eps=1e-8)


def not_with_older_sdk(why: str) -> pytest.MarkDecorator:
    """For what the SDK of requirements-selfhosted.txt cannot ask for."""
    reason = f"tinker {tinker.__version__} {why}"
    return pytest.mark.skipif(is_older(tinker.__version__), reason=reason)


def datum(tokens: list[int], weights: list[float] | None = None) -> types.Datum:
    """Next-token prediction over `tokens`; by default every target weighs 1."""
    inputs: dict[str, Any] = {  # the SDK turns lists into tensors
        "target_tokens": tokens[1:],
        "weights": weights or [1.0] * (len(tokens) - 1),
    }
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)


DATA = [datum([5, 6, 7, 8, 9]), datum([10, 11, 12], [0.0, 0.5])]


def using(
    service: local_tinker.Service,
    folder: Path,
    body: Callable[[tinker.ServiceClient], Coroutine[Any, Any, Any]],
) -> Any:
    """Run `body` with an SDK client whose checkpoints go to `folder`, then finish its session."""

    async def main() -> Any:
        client = service_client(service.base_url, service.open_folder(folder))
        try:
            return await body(client)
        finally:
            await client.close("success")

    return asyncio.run(main())


async def new_run(client: tinker.ServiceClient, model: str = "llama") -> tinker.TrainingClient:
    return await client.create_lora_training_client(model, rank=4, seed=1)


async def train(run: tinker.TrainingClient, num_steps: int) -> None:
    pending = []
    for _ in range(num_steps):
        pending += [run.forward_backward(DATA, "cross_entropy"), run.optim_step(ADAM)]
    for future in pending:
        await future


def checkpoint_dir(folder: Path, tinker_path: str) -> Path:
    run_id, kind, name = tinker_path.removeprefix("tinker://").split("/")
    return folder / run_id.replace(":", "_") / kind / name


def adapter_of(folder: Path, tinker_path: str) -> dict[str, torch.Tensor]:
    return load_file(checkpoint_dir(folder, tinker_path) / "adapter_model.safetensors")


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


async def sample(client: tinker.SamplingClient, prompt: list[int], **params: Any) -> Sequence[Any]:
    num_samples = params.pop("num_samples", 1)
    response = await client.sample(
        types.ModelInput.from_ints(prompt), num_samples, types.SamplingParams(**params)
    )
    return response.sequences


def name_in_environment(monkeypatch: pytest.MonkeyPatch, base_url: str, key: str) -> None:
    """Name a service in the environment, for what looks there: the SDK's command, the cookbook.

    A `RestClient()` of SDK 0.38 is the one that was made first in the process, whatever service the
    environment names since: without a new one it would go on to a service that has ended.
    """
    from tinker.lib.internal_client_holder import sessionless_holder_cache

    monkeypatch.setenv("TINKER_BASE_URL", base_url)
    monkeypatch.setenv("TINKER_API_KEY", key)
    sessionless_holder_cache._holders.pop((None, None), None)


def standalone_program(
    models: list[Path], folder: Path, *options: str, prelude: str | None = None
) -> list[str]:
    """`-m local_tinker` with its options; `prelude` is Python that runs in its process first."""
    program = ["-m", "local_tinker"]
    if prelude is not None:
        then = "import runpy; runpy.run_module('local_tinker', run_name='__main__')"
        program = ["-c", f"{prelude}\n{then}"]
    named = [word for model in models for word in ("--base-model", str(model))]
    return [*program, "--checkpoint-dir", str(folder), *options, *named]


@contextmanager
def standalone(
    models: list[Path],
    folder: Path,
    *options: str,
    prelude: str | None = None,
    is_forked: bool = True,
) -> Iterator[tuple[forked.Process | subprocess.Popen[str], str, Path]]:
    """`python -m local_tinker` with a key of our own: the process, its address and its log.

    Not forked, it is a new interpreter.
    """
    log = folder.with_suffix(".log")
    command = standalone_program(models, folder, *options, prelude=prelude)
    environment = {**os.environ, "PYTHONPATH": str(REPO), "TINKER_API_KEY": KEY}
    read_end, write_end = os.pipe()
    with log.open("w") as log_file, os.fdopen(write_end, "w") as output:
        if is_forked:
            process = forked.Process(*command, stdout=output, stderr=log_file, env=environment)
        else:
            process = subprocess.Popen(
                [sys.executable, *command],
                stdout=output,
                stderr=log_file,
                text=True,
                env=environment,
            )
    with os.fdopen(read_end) as told:
        try:
            address = told.readline().strip().removeprefix("export TINKER_BASE_URL=")
            assert told.readline().strip() == f"export TINKER_API_KEY={KEY}", log.read_text()
            yield process, address, log
        finally:
            process.kill()
            process.wait(20)
