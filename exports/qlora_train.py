"""Train the adapter again without Tinker: QLoRA, on a base model in 4-bit NF4.

    python qlora_train.py [--data FILE ...] [--base DIR] [--out FOLDER]

It needs torch, transformers, peft, bitsandbytes and tinker-cookbook (whose renderer writes the
rows as they were trained on), and what lies beside it: `run.json`, with the batches and learning
rates as the run recorded them, and `peft_config.json`. A data file is known by its sha256.

The same as in the run: the adapter's shape, the chat format and which tokens carry loss, the
longest example, the rows of each step in their order, each step's learning rate, AdamW and its
settings, and the loss (of each row the mean over its loss tokens; of a step the sum over its rows).

Not the same: the base model is rounded to 4 bits, so this is another model (--no-quantization
trains on it as it is); weights and activations may be held in other types; the adapter of a run on
another service than the embedded one began with other random numbers. Rows with tools, images or
weights of messages are refused, and control tokens spelt out in a text are read as such, where the
run read them as text. A run that went on from other weights begins here with --adapter FOLDER. What
else differs stands in `run.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

HERE = Path(__file__).resolve().parent
PAIRS = (("instruction", "output"), ("prompt", "completion"), ("input", "output"))
TRAINED_ROLES = ("system", "user", "assistant")
LOG = logging.getLogger("qlora_train")
say = LOG.info


class Step(NamedTuple):
    """One optimizer step: its learning rate and the messages of its rows, each with a weight."""

    lr: float
    rows: list[tuple[list[dict[str, str]], float]]
    recorded_nll: float | None


def main() -> None:
    logging.basicConfig(format="%(message)s")
    LOG.setLevel(logging.INFO)
    arguments = _arguments()
    run: dict[str, Any] = json.loads((HERE / "run.json").read_text(encoding="utf-8"))
    for note in run["notes"]:
        say("not the same as in the run: %s", note)
    steps = list(_steps(run, arguments))[: arguments.steps]
    torch.manual_seed(run["seed"])
    base = arguments.base or run["base_model"]
    model = _adapted(_base_model(base, arguments), arguments)
    train(model, steps, _Rendered(base, run), run["adam"])
    model.save_pretrained(arguments.out, save_embedding_layers=False)  # only what was trained
    say("adapter: %s", arguments.out)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--base", help="directory or hub name of the base model; default: the run's"
    )
    parser.add_argument("--data", nargs="+", help="data files; default: where the run had them")
    parser.add_argument("--out", default="qlora-adapter", help="where the adapter is saved")
    parser.add_argument("--adapter", help="go on from this adapter, in PEFT's layout")
    parser.add_argument("--steps", type=int, help="so many steps and no more")
    parser.add_argument("--no-quantization", action="store_true", help="the base model as it is")
    parser.add_argument(
        "--other-data", action="store_true", help="take all rows of --data, shuffled, as they come"
    )
    return parser.parse_args()


# --- the model ------------------------------------------------------------------------------------


def _base_model(base: str, arguments: argparse.Namespace) -> Any:
    from transformers import AutoModelForCausalLM

    has_gpu = torch.cuda.is_available()
    place = {"device_map": {"": 0}} if has_gpu else {}
    if arguments.no_quantization:
        return AutoModelForCausalLM.from_pretrained(base, **place)
    from peft import prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    is_half = has_gpu and torch.cuda.is_bf16_supported()
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if is_half else torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=quantization, **(place or {"device_map": "cpu"})
    )
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=has_gpu)


def _adapted(model: Any, arguments: argparse.Namespace) -> Any:
    from peft import LoraConfig, PeftModel, get_peft_model

    if arguments.adapter is not None:
        return PeftModel.from_pretrained(model, arguments.adapter, is_trainable=True)
    config = json.loads((HERE / "peft_config.json").read_text(encoding="utf-8"))
    return get_peft_model(model, LoraConfig(**config))


# --- the rows -------------------------------------------------------------------------------------


def _steps(run: dict[str, Any], arguments: argparse.Namespace) -> Iterator[Step]:
    if arguments.other_data or any(step["rows"] is None for step in run["steps"]):
        yield from _shuffled(run, arguments)
        return
    expected = [file["path"] for file in run["files"]]
    names = arguments.data or [name for name in expected if Path(name).is_file()]
    found = {hashlib.sha256(Path(name).read_bytes()).hexdigest(): name for name in names}
    missing = [file["path"] for file in run["files"] if file["sha256"] not in found]
    if missing:
        raise SystemExit(
            f"{', '.join(missing)}: no data file here has the sha256 that the run recorded for it, "
            "so its lines are not known. Give the files with --data FILE [FILE ...], or take other "
            "rows, without the run's batches, with --other-data."
        )
    lines = [_lines(found[file["sha256"]]) for file in run["files"]]
    columns = [file["columns"] for file in run["files"]]
    for step in run["steps"]:
        rows = [_row(lines[file][line - 1], line, columns[file]) for file, line in step["rows"]]
        yield Step(step["lr"], rows, step["nll"])


def _shuffled(run: dict[str, Any], arguments: argparse.Namespace) -> Iterator[Step]:
    """All rows again and again, each time in another order, at the run's learning rates."""
    if not (arguments.data and arguments.other_data):
        raise SystemExit(
            "Which rows the run took is not recorded in a way that can be read here; give data "
            "files as JSON lines with --data FILE --other-data."
        )
    rows = [
        _row(line, number, {})
        for name in arguments.data
        for number, line in enumerate(_lines(name), 1)
        if line.strip()
    ]
    if not rows:
        raise SystemExit(f"{', '.join(arguments.data)}: there is no row in it.")
    order, dice = list[int](), random.Random(run["seed"])
    for step in run["steps"]:
        while len(order) < run["batch_size"]:
            order += dice.sample(range(len(rows)), len(rows))
        taken, order = order[: run["batch_size"]], order[run["batch_size"] :]
        yield Step(step["lr"], [rows[one] for one in taken], None)


def _lines(name: str) -> list[str]:
    return Path(name).read_bytes().decode("utf-8-sig", errors="replace").split("\n")


def _row(line: str, number: int, columns: dict[str, str]) -> tuple[list[dict[str, str]], float]:
    """The messages of a row and its weight."""
    try:
        row = json.loads(line)
        theirs = {theirs: ours for ours, theirs in columns.items()}
        row = {theirs.get(key, key): value for key, value in row.items() if value is not None}
        row.pop("topic", None)
        weight = float(row.pop("weight", 1.0))
        system = row.pop("system", None)
        messages = row.pop("messages", None)
        if messages is None:
            asked, answered = next(pair for pair in PAIRS if row.keys() >= set(pair))
            question, answer = row.pop(asked), row.pop(answered)
            messages = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        if system is not None:
            messages = [{"role": "system", "content": system}, *messages]
        if row or not all(_is_plain(message) for message in messages):
            raise ValueError
    except (ValueError, AttributeError, TypeError, StopIteration):
        raise SystemExit(
            f"line {number}: this script reads rows of JSON with `messages` of role and content, "
            f"or of {' or '.join('+'.join(pair) for pair in PAIRS)}, with `system`, `topic` and "
            f"`weight` at most, and this one is otherwise: {line[:80]!r}. Write the file in that "
            "form and take it with --data FILE --other-data."
        ) from None
    return messages, weight


def _is_plain(message: Any) -> bool:
    return (
        message.keys() == {"role", "content"}
        and message["role"] in TRAINED_ROLES
        and isinstance(message["content"], str)
        and "<think>" not in message["content"]
    )


class _Rendered:
    """Rows in tokens, and the weight of each token in the loss."""

    def __init__(self, base: str, run: dict[str, Any]) -> None:
        import transformers
        from tinker_cookbook.renderers import TrainOnWhat, get_renderer

        # AutoTokenizer, but where that loses the spaces of texts.
        tokenizer = getattr(transformers, run["tokenizer"]).from_pretrained(base)
        self.renderer = get_renderer(run["renderer"], tokenizer, model_name=base)
        self.train_on = TrainOnWhat(run["train_on"])
        self.max_length: int = run["max_seq_length"]

    def __call__(self, messages: list[Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inputs, targets, and weights that sum to 1 (or to 0, where no token carries loss)."""
        from tinker_cookbook.supervised.common import datum_from_model_input_weights

        rendered, weights = self.renderer.build_supervised_example(messages, self.train_on)
        datum = datum_from_model_input_weights(
            rendered, weights, max_length=self.max_length, reduction="mean"
        )
        told = datum.loss_fn_inputs
        inputs = torch.tensor(datum.model_input.to_ints())
        return inputs, told["target_tokens"].to_torch(), told["weights"].to_torch()


# --- training -------------------------------------------------------------------------------------


def train(model: Any, steps: Sequence[Step], rendered: _Rendered, adam: dict[str, Any]) -> None:
    """Take the steps, a row at a time; what a step says is the mean over its loss tokens."""
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=0.0,
        betas=tuple(adam["betas"]),
        eps=adam["eps"],
        weight_decay=adam["weight_decay"],
    )
    model.train()
    for number, step in enumerate(steps, 1):
        total, num_tokens = 0.0, 0
        for messages, weight in step.rows:
            inputs, targets, weights = (one.to(model.device) for one in rendered(messages))
            logits = model(input_ids=inputs[None]).logits[0].float()
            nlls = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
            (weight * (nlls * weights).sum()).backward()
            total += float(nlls.detach()[weights > 0].sum())
            num_tokens += int((weights > 0).sum())
        for group in optimizer.param_groups:
            group["lr"] = step.lr
        optimizer.step()
        optimizer.zero_grad()
        nll = total / max(num_tokens, 1)
        recorded = "" if step.recorded_nll is None else f" (in the run {step.recorded_nll:.4f})"
        say("step %d of %d: loss %.4f a token%s, lr %g", number, len(steps), nll, recorded, step.lr)
        if not math.isfinite(nll):
            raise SystemExit("The loss is not finite. Nothing is saved.")


if __name__ == "__main__":
    main()
