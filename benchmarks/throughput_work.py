"""What both sides of the service's benchmark do: the demo's rows and questions, for any model."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from plain_torch import Adam, Asking, Base, Row  # noqa: E402

if TYPE_CHECKING:
    import tinker

    from config_schema import LoadedConfig

CONFIG_FILE = REPO / "demo_config.json"
DEMO_MODEL = REPO / "demo_model"
QUESTION_FILES = ("evals/simple_qa.jsonl", "evals/simple_qa_test.jsonl", "demo_pool.jsonl")
LEARNING_RATE = 3e-4  # a tenth of the demo's, at which rounding would grow over so many steps


class Work(NamedTuple):
    """Training steps, and prompts; `model` is what the service is told to serve."""

    model: str
    base: Base
    batches: list[list[Row]]
    num_warmup_steps: int
    prompts: list[list[int]]
    stop: list[int]
    adam: Adam
    lora_rank: int
    seed: int

    @property
    def model_name(self) -> str:
        """What clients call the model."""
        return self.model.partition("=")[0]

    @property
    def num_steps(self) -> int:
        """Steps that are timed."""
        return len(self.batches) - self.num_warmup_steps

    def asking(self, max_tokens: int, batch_size: int, *, with_stop: bool) -> Asking:
        return Asking(self.prompts, self.stop if with_stop else [], max_tokens, batch_size)


class Amounts(NamedTuple):
    num_steps: int
    num_warmup_steps: int
    num_questions: int


def make_work(amounts: Amounts) -> Work:
    """Render the demo's rows and questions as the loop and its evaluator do."""
    from config_schema import load_and_validate_config
    from hyperparam_utils import ADAM_BETAS, ADAM_EPS
    from rows.chat_formats import load_renderer

    loaded = load_and_validate_config(CONFIG_FILE)
    config = loaded.config
    renderer = load_renderer(config.renderer_name or "", str(DEMO_MODEL))
    return Work(
        model="demo_model",
        base=Base(DEMO_MODEL),
        batches=make_batches(loaded, renderer, amounts.num_warmup_steps + amounts.num_steps),
        num_warmup_steps=amounts.num_warmup_steps,
        prompts=[
            renderer.build_generation_prompt([{"role": "user", "content": question}]).to_ints()
            for question in make_questions(amounts.num_questions)
        ],
        stop=[int(token) for token in renderer.get_stop_sequences()],
        adam=Adam(LEARNING_RATE, *ADAM_BETAS, ADAM_EPS, config.weight_decay),
        lora_rank=config.lora_rank,
        seed=config.seed,
    )


def make_batches(loaded: LoadedConfig, renderer: Any, num_batches: int) -> list[list[Row]]:
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
    rows = [plain_row(rendering[example.id].datum) for example in kept]
    random.Random(config.seed).shuffle(rows)
    num_needed = num_batches * config.batch_size
    rows *= math.ceil(num_needed / len(rows))
    return [rows[i : i + config.batch_size] for i in range(0, num_needed, config.batch_size)]


def make_questions(num_questions: int) -> list[str]:
    """Different questions: the two evaluation sets, and training rows for what they lack."""
    questions: dict[str, None] = {}
    for name in QUESTION_FILES:
        for line in (REPO / name).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            questions[row["question"] if "question" in row else row["instruction"]] = None
    assert len(questions) >= num_questions, "the files hold too few questions"
    return list(questions)[:num_questions]


def plain_row(datum: tinker.Datum) -> Row:
    inputs = datum.loss_fn_inputs
    return Row(
        datum.model_input.to_ints(),
        inputs["target_tokens"].to_numpy().tolist(),
        inputs["weights"].to_numpy().tolist(),
    )
