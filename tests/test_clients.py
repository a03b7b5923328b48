"""Programs that we did not write against the service, all of them unmodified.

The cookbook's training loops, its Inspect command and its exports, and the `tinker` command; most
run in processes of their own against `python -m local_tinker`, as a user would start them.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tinker
import torch
from peft import PeftModel
from tinker import types
from transformers import AutoModelForCausalLM

import forked
import local_tinker
from sdk_client import KEY, checkpoint_dir, name_in_environment, standalone

ADAM = types.AdamParams(learning_rate=1e-2, beta1=0.9, beta2=0.95, eps=1e-8)
CHAT_SL_STEPS = 12  # enough that the kill comes long before the end


class Served(NamedTuple):
    """One running service: what it told its user to export, and where it writes."""

    exports: dict[str, str]
    checkpoints: Path
    log: Path
    model: str


class Taught(NamedTuple):
    """What a run saved that learned to answer sums briefly; its client is gone."""

    state_path: str
    sampler_path: str


@pytest.fixture(scope="module")
def served(llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`python -m local_tinker` as another program would start it."""
    home = tmp_path_factory.mktemp("served")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = home / "checkpoints"
    with standalone([llama_dir], folder, "--port", str(port)) as (_, address, log):
        assert address == f"http://127.0.0.1:{port}", tail(log.read_text())
        exports = {"TINKER_BASE_URL": address, "TINKER_API_KEY": KEY}
        yield Served(exports, folder, log, str(llama_dir))


@pytest.fixture(scope="module")
def taught(served: Served) -> Taught:
    """Enough sums that most samples end by themselves, so that rewards differ within a group."""
    from tinker_cookbook.recipes.math_rl.arithmetic_env import ArithmeticEnv
    from tinker_cookbook.renderers import Message
    from tinker_cookbook.supervised.data import conversation_to_datum

    renderer = role_colon(served)
    sums = [(i * 7 % 50, i * 11 % 50) for i in range(8)]
    data = [
        conversation_to_datum(
            [
                *ArithmeticEnv.standard_fewshot_prefix(),
                Message(role="user", content=f"What is {x} + {y}?"),
                Message(role="assistant", content=str(x + y)),
            ],
            renderer,
            max_length=256,
        )
        for x, y in sums
    ]
    client = connect(served)
    run = client.create_lora_training_client(
        served.model, rank=8, seed=1, user_metadata={"renderer_name": "role_colon"}
    ).result()
    pending = []
    for _ in range(60):
        pending += [run.forward_backward(data, "cross_entropy"), run.optim_step(ADAM)]
    for future in pending:
        future.result()
    state_path = run.save_state("taught").result().path
    sampler_path = run.save_weights_for_sampler("taught").result().path
    client.close("success").result()
    return Taught(state_path, sampler_path)


def connect(served: Served) -> tinker.ServiceClient:
    return tinker.ServiceClient(
        base_url=served.exports["TINKER_BASE_URL"], api_key=served.exports["TINKER_API_KEY"]
    )


def role_colon(served: Served) -> Any:
    from tinker_cookbook.renderers import get_renderer
    from tinker_cookbook.tokenizer_utils import get_tokenizer

    return get_renderer("role_colon", get_tokenizer(served.model))


def environment(served: Served, home: Path) -> dict[str, str]:
    """What a user would have exported; caches and states of other libraries stay in `home`."""
    return {
        **os.environ,
        **served.exports,
        "XDG_DATA_HOME": str(home / "xdg_data"),
        "XDG_CACHE_HOME": str(home / "xdg_cache"),
        "INSPECT_EVAL_CTL_SERVER": "false",
    }


def tail(text: str | bytes | None) -> str:
    return (text.decode(errors="replace") if isinstance(text, bytes) else text or "")[-3000:]


def run_client(served: Served, home: Path, *arguments: str, timeout: float = 120) -> str:
    """Run `python *arguments` to its end and return what it printed; fail with its last words."""
    try:
        outcome = forked.run(*arguments, env=environment(served, home), cwd=home, timeout=timeout)
    except subprocess.TimeoutExpired as expired:
        pytest.fail(f"still running after {timeout} s:\n{tail(expired.stderr)}")
    assert outcome.returncode == 0, (
        f"exit {outcome.returncode}:\n{tail(outcome.stderr)}\n"
        f"the service said:\n{tail(served.log.read_text())}"
    )
    return outcome.stdout


def write_jsonl(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(file)


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that another process may be writing at this moment."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines(True) if line.endswith("\n")]


def num_optimizer_steps(served: Served, tinker_path: str) -> int:
    file = checkpoint_dir(served.checkpoints, tinker_path) / "checkpoint.json"
    return json.loads(file.read_text())["num_optimizer_steps"]


def is_finite(*values: float) -> bool:
    return all(math.isfinite(value) for value in values)


# --- the cookbook's training loops -----------------------------------------------------------


def test_chat_sl_goes_on_from_its_checkpoint_after_being_killed(
    served: Served, tmp_path: Path
) -> None:
    """SIGKILL in mid-run, then the same command again: it resumes weights, optimizer and count."""
    rows = [
        {"messages": [{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": "a"}]}
        for i in range(2 * CHAT_SL_STEPS)
    ]
    log = tmp_path / "log"
    settings = {
        "model_name": served.model,
        "dataset": write_jsonl(tmp_path / "chats.jsonl", rows),
        "renderer_name": "role_colon",
        "batch_size": 4,
        "max_length": 128,
        "lora_rank": 4,
        "num_epochs": 2,
        "learning_rate": 0.005,
        "eval_every": 0,
        "save_every": 1,
        "log_path": str(log),
        "behavior_if_log_dir_exists": "resume",
    }
    command = ["-m", "tinker_cookbook.recipes.chat_sl.train"]
    command += [f"{key}={value}" for key, value in settings.items()]

    with (tmp_path / "killed.log").open("w") as output:
        process = forked.Process(
            *command,
            env=environment(served, tmp_path),
            cwd=tmp_path,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 90
        while not any("state_path" in record for record in read_jsonl(log / "checkpoints.jsonl")):
            still_going = process.poll() is None and time.monotonic() < deadline
            if not still_going:
                process.kill()
                pytest.fail(tail((tmp_path / "killed.log").read_text()))
            time.sleep(0.01)
        process.kill()
        assert process.wait(20) == -signal.SIGKILL

    before = read_jsonl(log / "checkpoints.jsonl")
    num_logged_before = len(read_jsonl(log / "metrics.jsonl"))
    resumed_from = before[-1]
    assert all(record["name"] != "final" for record in before)
    assert num_logged_before < CHAT_SL_STEPS

    run_client(served, tmp_path, *command)

    per_epoch = CHAT_SL_STEPS // 2
    first_step = resumed_from.get("epoch", 0) * per_epoch + resumed_from["batch"]
    metrics = read_jsonl(log / "metrics.jsonl")
    resumed = metrics[num_logged_before:]
    assert [row["step"] for row in resumed] == list(range(first_step, CHAT_SL_STEPS))
    assert {row["step"] for row in metrics} == set(range(CHAT_SL_STEPS))
    losses = [row["train_mean_nll"] for row in metrics]
    assert is_finite(*losses)
    assert losses[-1] < resumed[0]["train_mean_nll"] < losses[0]

    last = read_jsonl(log / "checkpoints.jsonl")[-1]
    assert (last["name"], last["epoch"], last["batch"]) == ("final", 2, 0)
    assert checkpoint_dir(served.checkpoints, last["sampler_path"]).is_dir()
    # The service counts the optimizer's steps, over both processes.
    assert num_optimizer_steps(served, last["state_path"]) == (
        num_optimizer_steps(served, resumed_from["state_path"]) + len(resumed)
    )


# Libraries' threads abort a process now and then while it ends; what it did is done by then.
LEAVE = """
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)
"""

DPO_DRIVER = """
import os
import sys
from tinker_cookbook.preference import train_dpo
from tinker_cookbook.preference.dpo_datasets import DPODatasetBuilderFromComparisons
from tinker_cookbook.preference.preference_datasets import ComparisonBuilderFromJsonl
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig

model, comparisons, log_path = sys.argv[1:]
train_dpo.main(
    train_dpo.Config(
        log_path=log_path,
        model_name=model,
        recipe_name="test",
        renderer_name="role_colon",
        dataset_builder=DPODatasetBuilderFromComparisons(
            comparison_builder=ComparisonBuilderFromJsonl(train_path=comparisons),
            common_config=ChatDatasetBuilderCommonConfig(
                model_name_for_tokenizer=model,
                renderer_name="role_colon",
                max_length=128,
                batch_size=4,
            ),
        ),
        learning_rate=0.005,
        lr_schedule="constant",
        dpo_beta=0.5,
        lora_rank=4,
        save_every=0,
        eval_every=0,
        infrequent_eval_every=0,
    )
)
"""


def test_dpo_starts_at_ln_2_and_prefers_what_it_is_told_to(served: Served, tmp_path: Path) -> None:
    """At the start policy and reference agree, so the loss is ln 2 whatever the model."""
    rows = []
    for i in range(12):
        yes = [{"role": "assistant", "content": "yes"}]
        no = [{"role": "assistant", "content": "a longer no"}]
        answers = {"completion_A": yes, "completion_B": no}
        if i % 2:  # the label must count, not the place
            answers = {"completion_A": no, "completion_B": yes}
        prompt = [{"role": "user", "content": f"word {i}"}]
        rows.append(
            {
                "comparison": {"prompt_conversation": prompt, **answers},
                "label": "B" if i % 2 else "A",
            }
        )
    (tmp_path / "driver.py").write_text(DPO_DRIVER + LEAVE)
    comparisons = write_jsonl(tmp_path / "comparisons.jsonl", rows)
    log = tmp_path / "log"
    run_client(served, tmp_path, "driver.py", served.model, comparisons, str(log))

    metrics = read_jsonl(log / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [0, 1, 2]
    losses = [row["dpo_loss"] for row in metrics]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)
    assert losses[0] > losses[1] > losses[2]
    names = ["accuracy", "margin", "chosen_reward", "rejected_reward"]
    assert is_finite(*(row[name] for row in metrics for name in names))
    assert metrics[0]["margin"] == pytest.approx(0.0, abs=1e-3)
    assert metrics[-1]["accuracy"] == 1.0
    (last,) = read_jsonl(log / "checkpoints.jsonl")
    assert num_optimizer_steps(served, last["state_path"]) == 3


RL_DRIVER = """
import asyncio
import os
import sys
from tinker_cookbook.recipes.math_rl.arithmetic_env import ArithmeticDatasetBuilder
from tinker_cookbook.rl import train

model, start, loss_fn, log_path = sys.argv[1:]
asyncio.run(
    train.main(
        train.Config(
            model_name=model,
            recipe_name="test",
            renderer_name="role_colon",
            load_checkpoint_path=start,
            dataset_builder=ArithmeticDatasetBuilder(
                batch_size=4,
                model_name_for_tokenizer=model,
                renderer_name="role_colon",
                n_batches=2,
                group_size=6,
            ),
            loss_fn=loss_fn,
            learning_rate=0.001,
            max_tokens=20,
            compute_post_kl=True,
            log_path=log_path,
            eval_every=0,
            save_every=1,
        )
    )
)
"""


@pytest.mark.parametrize("loss_fn", ["importance_sampling", "ppo"])
def test_rl_trains_on_samples_whose_logprobs_are_the_trainers(
    served: Served, taught: Taught, tmp_path: Path, loss_fn: types.LossFnType
) -> None:
    """From a saved state, in rounds of sampling, training and new samplers."""
    (tmp_path / "driver.py").write_text(RL_DRIVER + LEAVE)
    log = tmp_path / "log"
    run_client(served, tmp_path, "driver.py", served.model, taught.state_path, loss_fn, str(log))
    metrics = read_jsonl(log / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [0, 1]
    for row in metrics:
        assert is_finite(row["env/all/reward/total"], row["optim/entropy"])
        assert abs(row["optim/kl_sample_train_v1"]) < 1e-3
        # Half the mean square: the mean alone could vanish by cancellation.
        assert row["optim/kl_sample_train_v2"] < 1e-6
    # Groups of equal rewards have no advantages; without a mixed one nothing is trained.
    mixed = [row for row in metrics if row["env/all/by_group/frac_mixed"] > 0]
    assert mixed
    for row in mixed:
        assert row["grad_norm"] > 0
        assert row["kl_pre_post_v2"] > 1e-6  # the samplers before and after the step differ
    last = read_jsonl(log / "checkpoints.jsonl")[-1]
    assert (last["name"], last["batch"]) == ("final", 2)
    assert num_optimizer_steps(served, last["state_path"]) == 2
    assert checkpoint_dir(served.checkpoints, last["sampler_path"]).is_dir()


# --- Inspect ---------------------------------------------------------------------------------

INSPECT_TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import includes


@task
def sums() -> Task:
    samples = [
        Sample(id=f"sum-{i}", input=f"What is {i} + {i}?", target=str(2 * i)) for i in range(5)
    ]
    return Task(dataset=MemoryDataset(samples, name="sums"), scorer=includes())
"""


def test_inspect_scores_the_saved_weights_by_path(
    served: Served, taught: Taught, tmp_path: Path
) -> None:
    """The cookbook's eval command finds model and renderer from the path, and samples as we do."""
    from inspect_ai.log import list_eval_logs, read_eval_log

    (tmp_path / "sums.py").write_text(INSPECT_TASK)
    run_client(
        served,
        tmp_path,
        *("-m", "tinker_cookbook.eval.run_inspect_evals"),
        f"model_path={taught.sampler_path}",
        "tasks=sums.py@sums",
        "temperature=0.0",
        "max_tokens=12",
        f"log_dir={tmp_path / 'logs'}",
    )
    (info,) = list_eval_logs(str(tmp_path / "logs"))
    log = read_eval_log(info)
    assert log.status == "success", log.error
    assert log.results is not None and log.samples is not None
    assert (log.results.total_samples, log.results.completed_samples) == (5, 5)
    assert log.results.scores[0].scored_samples == 5
    assert is_finite(log.results.scores[0].metrics["accuracy"].value)

    renderer = role_colon(served)
    client = connect(served)
    sampler = client.create_sampling_client(taught.sampler_path).result()
    for sample in log.samples:
        prompt = renderer.build_generation_prompt([{"role": "user", "content": sample.input}])
        params = types.SamplingParams(
            temperature=0.0, max_tokens=12, stop=renderer.get_stop_sequences()
        )
        made = sampler.sample(prompt, 1, params).result().sequences[0]
        message, _ = renderer.parse_response(list(made.tokens))
        assert sample.output.completion == message["content"]
    client.close("success").result()


# --- exports ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "fixture", "train_unembed"),
    [("llama", "llama_dir", True), ("qwen3", "qwen_dir", False)],
)
def test_exported_models_compute_what_the_service_computes(
    service: local_tinker.Service,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    model: str,
    fixture: str,
    train_unembed: bool,
) -> None:
    """Merged and as a PEFT adapter, from state and from sampler weights."""
    from tinker_cookbook import weights

    tokens = [[5, 6, 7, 8, 9, 30, 31], [10, 11, 12]]
    data = [
        types.Datum(
            model_input=types.ModelInput.from_ints(one[:-1]),
            loss_fn_inputs={
                "target_tokens": types.TensorData.from_numpy(np.array(one[1:])),
                "weights": types.TensorData.from_numpy(np.ones(len(one) - 1, np.float32)),
            },
        )
        for one in tokens
    ]
    client = tinker.ServiceClient(
        base_url=service.base_url, api_key=service.open_folder(tmp_path / "checkpoints")
    )
    run = client.create_lora_training_client(
        model, rank=4, seed=1, train_unembed=train_unembed
    ).result()
    for _ in range(5):
        run.forward_backward(data, "cross_entropy").result()
        run.optim_step(ADAM).result()
    output = run.forward(data, "cross_entropy").result()
    expected = [made["logprobs"].to_numpy() for made in output.loss_fn_outputs]
    saved = {
        "state": run.save_state("x").result().path,
        "sampler": run.save_weights_for_sampler("x").result().path,
    }
    client.close("success").result()

    base_dir = str(request.getfixturevalue(fixture))
    base = AutoModelForCausalLM.from_pretrained(base_dir)
    # The comparison below would be empty if training had changed nothing.
    assert max(np.abs(logprobs(base, tokens)[0] - expected[0])) > 0.1
    for kind, path in saved.items():
        adapter = str(checkpoint_dir(tmp_path / "checkpoints", path))
        peft = str(tmp_path / f"{kind}_peft")
        weights.build_lora_adapter(base_model=base_dir, adapter_path=adapter, output_path=peft)
        base = AutoModelForCausalLM.from_pretrained(base_dir)
        exported: list[torch.nn.Module] = [PeftModel.from_pretrained(base, peft)]
        for strategy in ("shard", "full"):
            merged = str(tmp_path / f"{kind}_{strategy}")
            weights.build_hf_model(
                base_model=base_dir,
                adapter_path=adapter,
                output_path=merged,
                dtype="float32",
                merge_strategy=strategy,
            )
            exported.append(AutoModelForCausalLM.from_pretrained(merged))
        for one in exported:
            for made, wanted in zip(logprobs(one, tokens), expected, strict=True):
                np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-4)


def logprobs(model: torch.nn.Module, sequences: list[list[int]]) -> list[np.ndarray]:
    """The log-probability of each token after the first, computed with transformers alone."""
    made = []
    for tokens in sequences:
        inputs, targets = torch.tensor([tokens[:-1]]), torch.tensor(tokens[1:])
        with torch.no_grad():
            rows = model(inputs).logits[0].log_softmax(-1)
        made.append(rows.gather(-1, targets[:, None]).squeeze(-1).numpy())
    return made


# --- the `tinker` command --------------------------------------------------------------------


def test_the_tinker_command_lists_expires_and_deletes(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose client has gone is still listed, with what it saved."""
    from click.testing import CliRunner
    from tinker.cli.__main__ import main_cli

    client = connect(served)
    runs = [
        client.create_lora_training_client(
            served.model, rank=rank, seed=1, user_metadata={"note": f"rank {rank}"}
        ).result()
        for rank in (2, 3)
    ]
    run_id, other_id = (run.get_info().model_id for run in runs)
    kept = runs[0].save_state("kept").result().path
    sampler = runs[0].save_weights_for_sampler("shown").result().path
    others = runs[1].save_state("others").result().path
    client.close("success").result()

    printed = run_client(
        served, tmp_path, *("-m", "tinker.cli", "--format", "json", "run", "list", "--limit=0")
    )
    listed = {run["training_run_id"]: run for run in json.loads(printed)["runs"]}
    assert [listed[one]["lora_rank"] for one in (run_id, other_id)] == [2, 3]
    assert {listed[one]["base_model"] for one in (run_id, other_id)} == {served.model}

    # The same command without a process of its own: each would spend 3 s on imports.
    name_in_environment(monkeypatch, *served.exports.values())

    def tinker_cli(*arguments: str) -> Any:
        outcome = CliRunner().invoke(main_cli, ["--format", "json", *arguments])
        assert outcome.exit_code == 0, (arguments, outcome.exception, tail(outcome.output))
        return json.loads(outcome.stdout) if outcome.stdout.strip() else None

    def checkpoints_of(one: str) -> dict[str, dict[str, Any]]:
        listed = tinker_cli("checkpoint", "list", "--run-id", one)
        assert listed["run_id"] == one
        return {checkpoint["tinker_path"]: checkpoint for checkpoint in listed["checkpoints"]}

    info = tinker_cli("run", "info", run_id)
    assert (info["training_run_id"], info["is_lora"], info["lora_rank"]) == (run_id, True, 2)
    assert info["user_metadata"] == {"note": "rank 2"}
    assert info["last_checkpoint"]["tinker_path"] == kept
    assert info["last_sampler_checkpoint"]["tinker_path"] == sampler

    found = checkpoints_of(run_id)
    assert {path: (c["checkpoint_id"], c["checkpoint_type"]) for path, c in found.items()} == {
        kept: ("weights/kept", "training"),
        sampler: ("sampler_weights/shown", "sampler"),
    }
    everything = tinker_cli("checkpoint", "list", "--limit=0")["checkpoints"]
    assert {kept, sampler, others} <= {checkpoint["tinker_path"] for checkpoint in everything}

    assert tinker_cli("checkpoint", "set-ttl", kept, "--ttl", "3600") is None
    shown = tinker_cli("checkpoint", "info", kept)
    assert (shown["tinker_path"], shown["lora_rank"]) == (kept, 2)
    assert shown["size_bytes"] > 0
    assert shown["expires_at"] is not None
    left = datetime.fromisoformat(shown["expires_at"]) - datetime.now(UTC)
    assert 3400 < left.total_seconds() <= 3600
    assert tinker_cli("checkpoint", "set-ttl", kept, "--remove") is None
    assert checkpoints_of(run_id)[kept]["expires_at"] is None

    assert tinker_cli("checkpoint", "delete", kept, "--yes") == {"deleted_count": 1, "failed": []}
    assert set(checkpoints_of(run_id)) == {sampler}
    assert not checkpoint_dir(served.checkpoints, kept).exists()
    assert set(checkpoints_of(other_id)) == {others}
