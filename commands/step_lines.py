"""What a plain supervised run prints every `eval_every` steps, and writes down at its end.

    step 5: train_loss 5.4321, val_loss 5.6582, score 0.0900

A program reads the same from `trained.json` in the run directory: every saved checkpoint with its
losses and score, the recommended one, base model, LoRA layers, data and settings. `finished_event`
is the ledger's event that it was written at: where later ones are, the run has gone on since.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ledger.store import RunStore
from loop.reports.console import say

TRAINED = "trained.json"


class RoundLosses(NamedTuple):
    """Losses in nats per loss token: of the round's training steps, each weighed by its tokens, and
    of the held-out rows after it. None where nothing was trained, or measured."""

    train: float | None
    val: float | None


def step_lines(*, is_quiet: bool) -> Callable[[RunStore, dict[str, Any]], None]:
    """What is to be told of each event of a run; `is_quiet` where stdout is for programs."""

    def watch(store: RunStore, event: dict[str, Any]) -> None:
        if event["type"] == "decided" and not is_quiet:
            say(_line(store, event["round"]))
        if event["type"] == "run_finished":
            record = {**trained_record(store), "finished_event": event["seq"]}
            store.write_json(TRAINED, record)
            if not is_quiet:
                _say_record(store, record)

    return watch


def losses_of(store: RunStore, round_no: int) -> RoundLosses:
    """The losses of a round that was evaluated."""
    steps, result = list(store.events("step", round_no)), store.result(round_no)
    num_tokens = sum(step["num_loss_tokens"] for step in steps)
    total = sum(step["nll"] * step["num_loss_tokens"] for step in steps)
    held_out = () if result is None else result.held_out
    val = held_out[0].nll if held_out else None
    return RoundLosses(total / num_tokens if num_tokens else None, val)


def _line(store: RunStore, round_no: int) -> str:
    result, losses = store.result(round_no), losses_of(store, round_no)
    checkpoint = store.checkpoint(round_no)
    assert result is not None, "it was decided on"
    step = 0 if checkpoint is None else checkpoint.step
    train = "none" if losses.train is None else f"{losses.train:.4f}"
    val = "none" if losses.val is None else f"{losses.val:.4f}"
    return f"step {step}: train_loss {train}, val_loss {val}, score {result.score:.4f}"


def trained_record(store: RunStore) -> dict[str, Any]:
    """What a run that has ended trained, from which rows and settings, and how far each came."""
    decision, recorded = store.last_decision(), store.settled_config()
    assert decision is not None, "a finished run has a decision"
    numbers = [result.round for result in store.results() if store.checkpoint(result.round)]
    checkpoints = {number: _checkpoint_record(store, number) for number in numbers}
    saved = store.checkpoint(decision.best_round)
    assert saved is not None, "what is recommended was trained"
    layers = {name: getattr(saved, name) for name in ("train_mlp", "train_attn", "train_unembed")}
    return {
        "run_dir": str(store.run_dir),
        "run_id": store.run_id,
        "base_model": saved.base_model,
        "renderer_name": saved.renderer,
        "lora": {"rank": saved.lora_rank, "alpha": saved.lora_alpha, **layers},
        "recommended": checkpoints[decision.best_round],
        "checkpoints": list(checkpoints.values()),
        "sentence": decision.sentence,
        "data": store.data_manifest(),
        "settings": recorded["config"],
        "resolved": recorded["resolved"],
    }


def _checkpoint_record(store: RunStore, round_no: int) -> dict[str, Any]:
    saved, result = store.checkpoint(round_no), store.result(round_no)
    assert saved is not None and result is not None, "the caller has looked"
    losses = losses_of(store, round_no)
    return {
        "checkpoint": f"{store.run_dir}@round_{round_no:02d}",
        "step": saved.step,
        "sampler_path": saved.sampler_path,
        "state_path": saved.state_path,
        "train_loss": losses.train,
        "val_loss": losses.val,
        "score": result.score,
        "interval": result.interval,
        "n": result.n,
    }


def _say_record(store: RunStore, record: dict[str, Any]) -> None:
    lora, best = record["lora"], record["recommended"]
    layers = [name for name in ("train_mlp", "train_attn", "train_unembed") if lora[name]]
    data = record["data"]
    named = [f"{key} {one['path']} ({one['num_rows']} rows)" for key, one in data["files"].items()]
    files = ", ".join([*named, *(f"evaluated on {name}" for name in data["eval_tasks"])])
    say(f"recommended: {best['checkpoint']}, step {best['step']}")
    say(f"sampler_path: {best['sampler_path']}")
    say(f"state_path: {best['state_path']}")
    say(f"base_model: {record['base_model']}, renderer_name {record['renderer_name']}")
    say(f"LoRA: rank {lora['rank']}, alpha {lora['alpha']}, {', '.join(layers)}")
    say(f"data: {files}")
    say(f"all of it, with the settings: {store.run_dir / TRAINED}")
