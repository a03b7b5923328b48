"""Compare the embedded service with the same work written directly in torch, transformers and peft.

    .venv/bin/python benchmarks/service_throughput.py [--repeats 3]

Training: LoRA steps of the demo configuration, pipelined over HTTP against `python -m local_tinker`
in a process of its own; against a plain loop over a PEFT model. Both start from the same adapter,
and the losses of every step have to agree. Sampling: greedy answers of saved weights, all questions
submitted at once; against batches of `generate`. The answers have to be the same. Answers are
measured as the demo gives them, of a few tokens, where the way through the SDK and HTTP is most of
the time, and without a stop, of as many tokens as the demo allows.
Everything runs on the CPU, both sides with the service's own number of threads and of slots, and
they take turns. Prints a Markdown table; a missed target is said in it and is not an error.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import math
import os
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from service_soak import Running
from service_soak import service as running_service

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

if TYPE_CHECKING:
    import tinker
    import torch

    from config_schema import LoadedConfig

CONFIG_FILE = REPO / "demo_config.json"
MODEL_DIR = REPO / "demo_model"
NUM_STEPS = 200
NUM_WARMUP_STEPS = 10
NUM_QUESTIONS = 256
NUM_WARMUP_QUESTIONS = 32
QUESTION_FILES = ("evals/simple_qa.jsonl", "evals/simple_qa_test.jsonl", "demo_pool.jsonl")
LEARNING_RATE = 3e-4  # a tenth of the demo's, at which rounding would grow over so many steps
LOSS_TOLERANCE = 1e-3  # relative
LOSS_SCALE = 1.0  # below it the tolerance is absolute: losses of learnt rows come close to 0
MIN_SAME_ANSWERS = 0.99  # ties of two logits may fall either way
TRAINING_TARGET = 1.5
SAMPLING_TARGET = 1.0
INITIAL, TRAINED = "initial", "trained"  # names of saved weights


class Row(NamedTuple):
    """One training sequence as plain lists: inputs, targets and the targets' weights."""

    tokens: list[int]
    targets: list[int]
    weights: list[float]


class Adam(NamedTuple):
    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float


class Work(NamedTuple):
    """What both sides do, rendered beforehand."""

    batches: list[list[tinker.Datum]]
    prompts: list[tinker.ModelInput]
    stop: list[int]
    max_tokens: int
    adam: Adam
    lora_rank: int
    seed: int


class Training(NamedTuple):
    """Seconds of the steps after the warm-up, and the loss of every step."""

    seconds: float
    losses: list[float]


class Answers(NamedTuple):
    seconds: float
    tokens: list[list[int]]


# --- the work -------------------------------------------------------------------------------------


def make_work() -> Work:
    """Render the demo's rows and questions as the loop and its evaluator do."""
    from config_schema import load_and_validate_config
    from hyperparam_utils import ADAM_BETAS, ADAM_EPS
    from rows.chat_formats import load_renderer
    from simple_eval import DEFAULT_MAX_TOKENS

    loaded = load_and_validate_config(CONFIG_FILE)
    config = loaded.config
    renderer = load_renderer(config.renderer_name or "", str(MODEL_DIR))
    stop = [int(token) for token in renderer.get_stop_sequences()]
    prompts = [
        renderer.build_generation_prompt([{"role": "user", "content": question}])
        for question in make_questions()
    ]
    adam = Adam(LEARNING_RATE, *ADAM_BETAS, ADAM_EPS, config.weight_decay)
    return Work(
        batches=make_batches(loaded, renderer),
        prompts=prompts,
        stop=stop,
        max_tokens=DEFAULT_MAX_TOKENS,
        adam=adam,
        lora_rank=config.lora_rank,
        seed=config.seed,
    )


def make_batches(loaded: LoadedConfig, renderer: Any) -> list[list[tinker.Datum]]:
    """Batches of train_file's rows and then the pool's, shuffled, from the start when they end."""
    from data_loader import load_examples
    from loop.planning.row_files import sources_of
    from rows.rendering import Rendering

    config = loaded.config
    pool = config.mining.pool_file or config.train_file
    sources = sources_of(loaded, "train_file", config.train_file)
    sources += sources_of(loaded, "mining.pool_file", pool)
    rendering = Rendering(renderer, config.max_seq_length)
    kept = rendering.render_all(load_examples(sources).examples).examples
    datums = [rendering[example.id].datum for example in kept]
    random.Random(config.seed).shuffle(datums)
    num_needed = (NUM_WARMUP_STEPS + NUM_STEPS) * config.batch_size
    datums *= math.ceil(num_needed / len(datums))
    return [datums[i : i + config.batch_size] for i in range(0, num_needed, config.batch_size)]


def make_questions() -> list[str]:
    """Different questions: the two evaluation sets, and training rows for what they lack."""
    questions: dict[str, None] = {}
    for name in QUESTION_FILES:
        for line in (REPO / name).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            questions[row["question"] if "question" in row else row["instruction"]] = None
    assert len(questions) >= NUM_QUESTIONS, "the files hold too few questions"
    return list(questions)[:NUM_QUESTIONS]


def plain_row(datum: tinker.Datum) -> Row:
    inputs = datum.loss_fn_inputs
    return Row(
        datum.model_input.to_ints(),
        inputs["target_tokens"].to_numpy().tolist(),
        inputs["weights"].to_numpy().tolist(),
    )


# --- over the service -----------------------------------------------------------------------------


def over_service(served: Running, body: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
    """Run `body` with an SDK client, then finish its session."""
    import tinker

    async def main() -> Any:
        client = tinker.ServiceClient(base_url=served.base_url, api_key=served.api_key)
        try:
            return await body(client)
        finally:
            await client.close("success")

    return asyncio.run(main())


class ServiceTraining(NamedTuple):
    """A training of the service, and the tinker:// paths of its weights before and after it."""

    training: Training
    initial: str
    trained: str


async def train_over_service(client: tinker.ServiceClient, work: Work) -> ServiceTraining:
    """All steps, as many in flight as the loop keeps; a step is submitted before any is awaited."""
    import tinker

    from loop.rounds.training import MAX_STEPS_IN_FLIGHT

    run = await client.create_lora_training_client(
        "demo_model", rank=work.lora_rank, seed=work.seed
    )
    initial = await run.save_weights_for_sampler(INITIAL)
    adam = tinker.AdamParams(**work.adam._asdict())
    losses: list[float] = []

    async def steps(batches: list[list[tinker.Datum]]) -> None:
        in_flight: deque[tuple[Any, Any]] = deque()

        async def finish(num_left: int) -> None:
            while len(in_flight) > num_left:
                forward_backward, optim_step = in_flight.popleft()
                losses.append((await forward_backward).metrics["loss:sum"])
                await optim_step

        for batch in batches:
            forward_backward = run.forward_backward(batch, "cross_entropy")
            in_flight.append((forward_backward, run.optim_step(adam)))
            await finish(MAX_STEPS_IN_FLIGHT)
        await finish(0)

    await steps(work.batches[:NUM_WARMUP_STEPS])
    started = time.perf_counter()
    await steps(work.batches[NUM_WARMUP_STEPS:])
    seconds = time.perf_counter() - started
    trained = await run.save_weights_for_sampler(TRAINED)
    return ServiceTraining(Training(seconds, losses), initial.path, trained.path)


async def sample_over_service(
    client: tinker.ServiceClient, path: str, work: Work, stop: list[int]
) -> Answers:
    """All questions at once, after a first few that load the weights."""
    import tinker

    sampler = await client.create_sampling_client(path)
    params = tinker.SamplingParams(max_tokens=work.max_tokens, temperature=0.0, stop=stop)

    async def ask(prompt: tinker.ModelInput) -> list[int]:
        response = await sampler.sample(prompt, num_samples=1, sampling_params=params)
        return list(response.sequences[0].tokens)

    await asyncio.gather(*(ask(prompt) for prompt in work.prompts[:NUM_WARMUP_QUESTIONS]))
    started = time.perf_counter()
    tokens = await asyncio.gather(*(ask(prompt) for prompt in work.prompts))
    return Answers(time.perf_counter() - started, tokens)


def folder_of(served: Running, path: str) -> Path:
    """Where a tinker:// path stands on disk, in PEFT's layout."""
    run_id, kind, name = path.removeprefix("tinker://").split("/")
    return served.checkpoint_dir / run_id.replace(":", "_") / kind / name


# --- directly, in a process of its own ------------------------------------------------------------


def as_the_service() -> int:
    """Use as many threads as the service does for this model; returns how many slots it uses."""
    import torch

    from local_tinker.engine import Engine
    from local_tinker.sample_requests import MIN_PADDED_LENGTH_TOKENS

    engine = Engine.load("demo_model", str(MODEL_DIR), "cpu")
    torch.set_num_threads(engine.num_threads)
    return engine.num_slots(MIN_PADDED_LENGTH_TOKENS, False)


def load_adapted(folder: Path, *, is_trainable: bool) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    return PeftModel.from_pretrained(model, str(folder), is_trainable=is_trainable).eval()


def train_directly(folder: Path, batches: list[list[Row]], adam: Adam) -> Training:
    """The plain training loop that a person would write."""
    import torch

    model = load_adapted(folder, is_trainable=True)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=adam.learning_rate,
        betas=(adam.beta1, adam.beta2),
        eps=adam.eps,
        weight_decay=adam.weight_decay,
    )
    losses: list[float] = []
    started = time.perf_counter()
    for step, rows in enumerate(batches):
        if step == NUM_WARMUP_STEPS:
            started = time.perf_counter()
        mask_BT = padded([[1] * len(row.tokens) for row in rows])
        targets_BT = padded([row.targets for row in rows])
        weights_BT = padded([row.weights for row in rows])
        logits_BTV = model(
            input_ids=padded([row.tokens for row in rows]), attention_mask=mask_BT, use_cache=False
        ).logits
        logprobs_BT = logits_BTV.log_softmax(-1).gather(-1, targets_BT[..., None]).squeeze(-1)
        loss = -(weights_BT * logprobs_BT).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return Training(time.perf_counter() - started, losses)


def padded(rows: list[Any]) -> torch.Tensor:
    """Stack lists of numbers, zeros behind each."""
    import torch

    longest = max(len(row) for row in rows)
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def sample_directly(
    folder: Path, prompts: list[list[int]], stop: list[int], max_tokens: int, batch_size: int
) -> Answers:
    """`generate` over batches that are padded on the left, after one batch to warm up."""
    import torch

    model = load_adapted(folder, is_trainable=False)
    tokens: list[list[int]] = []

    def answer(batch: list[list[int]]) -> None:
        longest = max(len(prompt) for prompt in batch)
        made_BT = model.generate(
            input_ids=torch.tensor([[0] * (longest - len(p)) + p for p in batch]),
            attention_mask=torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in batch]),
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=stop or None,
            pad_token_id=stop[0] if stop else 0,
        )
        for made in made_BT[:, longest:].tolist():
            end = next((place for place, token in enumerate(made) if token in stop), len(made))
            tokens.append(made[: end + 1])

    answer(prompts[:batch_size])
    tokens.clear()
    started = time.perf_counter()
    for start in range(0, len(prompts), batch_size):
        answer(prompts[start : start + batch_size])
    return Answers(time.perf_counter() - started, tokens)


# --- comparing ------------------------------------------------------------------------------------


def check_losses(service: list[float], direct: list[float]) -> float:
    """Return the largest difference. Raises `AssertionError` where a step's losses disagree."""
    differences = [abs(one - other) for one, other in zip(service, direct, strict=True)]
    for step, (difference, loss) in enumerate(zip(differences, direct, strict=True)):
        allowed = LOSS_TOLERANCE * max(abs(loss), LOSS_SCALE)
        assert difference <= allowed, f"step {step}: losses {service[step]} and {loss} differ"
    return max(differences)


def check_answers(service: list[list[int]], direct: list[list[int]]) -> float:
    """Return the share of same answers. Raises `AssertionError` when it is too small."""
    num_same = sum(one == other for one, other in zip(service, direct, strict=True))
    share = num_same / len(direct)
    assert share >= MIN_SAME_ANSWERS, f"only {num_same} of {len(direct)} answers are the same"
    return share


def line(
    what: str, service: list[float], direct: list[float], count: int, unit: str, target: float
) -> str:
    """A row of the table, from the seconds of each repeat."""
    ratios = [one / other for one, other in zip(service, direct, strict=True)]
    ratio = median(service) / median(direct)
    cells = [what]
    for seconds in (median(service), median(direct)):
        cells.append(f"{seconds:.2f} s, {1000 * seconds / count:.2f} ms per {unit}")
    cells += [f"{ratio:.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"]
    verdict = "target met" if ratio <= target else "target missed"
    cells.append(f"<= {target:g}: {verdict}")
    return f"| {' | '.join(cells)} |"


def measure(served: Running, direct: ProcessPoolExecutor, work: Work, repeats: int) -> list[str]:
    """Both sides by turns; returns the rows of the table and what is to be said about them."""
    rows = [[plain_row(datum) for datum in batch] for batch in work.batches]
    prompts = [prompt.to_ints() for prompt in work.prompts]
    num_slots = direct.submit(as_the_service).result()
    training: tuple[list[float], list[float]] = ([], [])
    worst, trained = 0.0, ""
    for number in range(repeats):
        run = over_service(served, lambda client: train_over_service(client, work))
        initial, trained = folder_of(served, run.initial), run.trained
        plain = direct.submit(train_directly, initial, rows, work.adam).result()
        worst = max(worst, check_losses(run.training.losses, plain.losses))
        training[0].append(run.training.seconds)
        training[1].append(plain.seconds)
        print(
            f"training {number + 1}: {training[0][-1]:.2f} s, directly {training[1][-1]:.2f} s; "
            f"loss {plain.losses[0]:.3f} to {plain.losses[-1]:.3f}",
            file=sys.stderr,
        )
    table = [line(f"{NUM_STEPS} training steps", *training, NUM_STEPS, "step", TRAINING_TARGET)]
    weights, notes = folder_of(served, trained), []
    for kind, stop in (("answers", work.stop), ("long answers", [])):
        sampling: tuple[list[float], list[float]] = ([], [])
        shares, num_tokens = [], 0
        for number in range(repeats):
            asked = over_service(
                served, functools.partial(sample_over_service, path=trained, work=work, stop=stop)
            )
            plain = direct.submit(
                sample_directly, weights, prompts, stop, work.max_tokens, num_slots
            ).result()
            shares.append(check_answers(asked.tokens, plain.tokens))
            num_tokens = sum(len(answer) for answer in plain.tokens)
            sampling[0].append(asked.seconds)
            sampling[1].append(plain.seconds)
            print(
                f"{kind} {number + 1}: {sampling[0][-1]:.2f} s, directly {sampling[1][-1]:.2f} s; "
                f"{num_tokens} tokens",
                file=sys.stderr,
            )
        what = f"{NUM_QUESTIONS} {kind}, {num_tokens / NUM_QUESTIONS:.1f} tokens each"
        table.append(line(what, *sampling, NUM_QUESTIONS, "answer", SAMPLING_TARGET))
        notes.append(f"{min(shares):.1%}")
    return [
        *table,
        "",
        f"Medians of {repeats} runs each, by turns. The losses of all steps differ by at most "
        f"{worst:.1e}; {' and '.join(notes)} of the answers are the same.",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side (default: 3)")
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error("--repeats must be at least 1")
    os.environ.setdefault("TINKER_TELEMETRY", "0")
    for variable in ("NO_PROXY", "no_proxy"):  # the SDK's transport obeys proxies for loopback too
        os.environ[variable] = f"{os.environ.get(variable, '')},127.0.0.1".lstrip(",")
    work = make_work()
    with (
        running_service() as served,
        ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as direct,
    ):
        lines = measure(served, direct, work, args.repeats)
    print("| | over the service | directly | ratio | ratios of the runs | target |")
    print("|---|---|---|---|---|---|")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
