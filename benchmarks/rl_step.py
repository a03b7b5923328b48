"""What does a step of reinforcement learning cost beside the same one in plain torch and peft?

    .venv/bin/python benchmarks/rl_step.py [--steps 5] [--prompts 64] [--samples 8] [--tokens 32]

One side is the method as a run takes it: SDK, embedded service, weights saved and opened for
sampling, rewards, files. The other is transformers' `generate`, the same loss and AdamW on a peft
adapter of the same shape, in one process without any of that. Both take the steps in turn, on the
demo model and the same prompts; the medians and their ratio are printed, in seconds and in seconds
of the processor, which company on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
os.environ["TINKER_TELEMETRY"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"

REWARD = "def letters(answer, targets):\n    return float(answer.count('e'))\n"
LR = 1e-5  # that the answers stay much the same
RANK = 16


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    rl = {"reward": "reward.py@letters", "group_size": args.samples, "max_tokens": args.tokens}
    return {
        "base_model": str(REPO / "demo_model"),
        "renderer_name": "llama3",
        "train_file": str(REPO / "demo_pool.jsonl"),
        "eval_tasks": ["simple_qa"],
        "method": "rl",
        "rl": rl,
        "batch_size": args.prompts,
        "lora_rank": RANK,
        "learning_rate": LR,
        "steps_per_round": args.steps + 1,
        "max_rounds": 1,
    }


class Direct:
    """The step in torch, transformers and peft."""

    def __init__(self, plan: Any, args: argparse.Namespace) -> None:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(REPO / "demo_model", dtype=torch.float32)
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        shape = LoraConfig(r=RANK, lora_alpha=32, target_modules=[*targets, "lm_head"])
        self.model = get_peft_model(model, shape)
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        trained = [one for one in self.model.parameters() if one.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=LR, betas=(0.9, 0.95), weight_decay=0.0)
        self.tokenizer, self.args = plan.renderer.tokenizer, args
        self.stops = list(plan.renderer.get_stop_sequences())

    def step(self, prompts: list[list[int]]) -> None:
        import torch

        longest, device = max(map(len, prompts)), self.model.device
        rows = [[0] * (longest - len(one)) + one for one in prompts]
        masks = [[0] * (longest - len(one)) + [1] * len(one) for one in prompts]
        inputs = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}
        with torch.no_grad():
            made = self.model.generate(
                **{name: one.to(device) for name, one in inputs.items()},
                do_sample=True,
                top_k=0,
                max_new_tokens=self.args.tokens,
                num_return_sequences=self.args.samples,
                eos_token_id=self.stops,
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
            )
        tokens_BT = made.sequences[:, longest:]
        sampled_BT = torch.stack(made.logits, 1).float().log_softmax(-1)
        sampled_BT = sampled_BT.gather(-1, tokens_BT[..., None])[..., 0]
        texts = self.tokenizer.batch_decode(tokens_BT)
        rewards = torch.tensor([float(one.count("e")) for one in texts], device=device)
        groups = rewards.view(-1, self.args.samples)
        advantages = (groups - groups.mean(1, keepdim=True)).flatten()
        mask = inputs["attention_mask"].repeat_interleave(self.args.samples, 0).to(device)
        mask = torch.cat([mask, torch.ones_like(tokens_BT)], 1)
        logits = self.model(input_ids=made.sequences, attention_mask=mask).logits[
            :, longest - 1 : -1
        ]
        logprobs = logits.log_softmax(-1).gather(-1, tokens_BT[..., None])[..., 0]
        loss = -((logprobs - sampled_BT).exp() * advantages[:, None]).sum()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Taken(NamedTuple):
    """What a step took, in seconds on the wall and of the processor."""

    wall_s: float
    cpu_s: float


def now() -> Taken:
    return Taken(time.perf_counter(), time.process_time())


def since(began: Taken) -> Taken:
    ended = now()
    return Taken(ended.wall_s - began.wall_s, ended.cpu_s - began.cpu_s)


def ratio_text(what: str, ours: Sequence[float], plain: Sequence[float]) -> str:
    medians = statistics.median(ours), statistics.median(plain)
    return (
        f"median of {what}: ours {medians[0]:.2f}, plain torch and peft {medians[1]:.2f}, "
        f"ratio {medians[0] / medians[1]:.2f}"
    )


async def compare(plan: Any, folder: Path, args: argparse.Namespace) -> None:
    import local_tinker
    from data_selector import select_first
    from ledger.store import RunStore
    from loop.methods.rl import Rl
    from loop.methods.rollouts import prompt_of
    from loop.planning.manifest import data_manifest, dropped_rows, resolved_config
    from loop.reports.progress import Progress
    from loop.rounds.session import connected
    from loop.rounds.training import open_training_client, workplace_of
    from services.keys import Keys
    from services.place import Place, ServiceChoice

    choice = ServiceChoice("embedded", None, "a benchmark")
    store = RunStore.create(folder / "run", resolved_config(plan, choice, {}))
    store.record_start(data_manifest(plan), dropped_rows(plan), plan.config_hash)
    direct = Direct(plan, args)
    num_slots = (args.steps + 1) * args.prompts
    selection = select_first(plan.train.examples, num_slots=num_slots, seed=0)
    ids = [pick.example_id for pick in selection.picks]
    ours: list[Taken] = []
    plain: list[Taken] = []
    with local_tinker.start([(plan.config.base_model, plan.inputs.model_path)]) as service:
        place = Place(choice, service, folder / "run" / "checkpoints", Keys())
        async with connected(plan, store, Progress(verbose=False), place) as run:
            client = await open_training_client(run, None)
            method = Rl(workplace_of(run))
            await method.begin_round(selection)
            for step in range(args.steps + 1):  # the first is not counted
                of_step = ids[step * args.prompts : (step + 1) * args.prompts]
                began = now()
                pending = await method.submit(client, step, of_step, LR)
                result = await method.finish(pending)
                await pending.optim_step
                ours.append(since(began))
                prompts = [prompt_of(plan, one).tokens.to_ints() for one in of_step]
                began = now()
                direct.step(prompts)
                plain.append(since(began))
                print(
                    f"step {step}: ours {ours[-1].wall_s:.2f} s, plain {plain[-1].wall_s:.2f} s, "
                    f"{result.num_sampled_tokens:,} tokens sampled",
                    flush=True,
                )
    for what, place in (("seconds", 0), ("processor seconds", 1)):
        print(ratio_text(what, [one[place] for one in ours[1:]], [one[place] for one in plain[1:]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    args = parser.parse_args()
    from config_schema import load_and_validate_config
    from loop.planning.inputs import read_inputs
    from loop.planning.models import find_model_dir
    from loop.planning.plan import make_plan

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "reward.py").write_text(REWARD)
        (folder / "config.json").write_text(json.dumps(settings_of(args)))
        loaded = load_and_validate_config(str(folder / "config.json"))
        plan = make_plan(read_inputs(loaded, find_model_dir(loaded)))
        asyncio.run(compare(plan, folder, args))


if __name__ == "__main__":
    main()
