"""The models of benchmarks/export_matrix.py: made, trained by a run of the product, and asked."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

REPO = Path(__file__).resolve().parent.parent
NUM_ROWS = 60
MAX_TOKENS = 16
DEMO = "demo"
UNTIED = "llama_untied"  # with Llama 3's tokenizer, where the tests' has GPT-2's


class Row(NamedTuple):
    """A row of the matrix: which model, and what of it is trained."""

    name: str
    kind: str  # of tests/llama_models.py, or the demo's
    train_unembed: bool = True
    dtype: str = "float32"
    renderer: str | None = None  # None: the one that agrees with the model's template


ROWS = (
    Row("demo model", DEMO, renderer="llama3"),
    Row("Llama", UNTIED),
    Row("Llama, no unembedding", UNTIED, False),
    Row("Llama, tied", "llama_tied"),
    Row("Llama, tied, no unembedding", "llama_tied", False),
    Row("Llama, bfloat16", UNTIED, dtype="bfloat16"),
    Row("Llama, GPT-2's tokenizer", "llama", renderer="llama3"),
    Row("Qwen2, tied", "qwen2"),
    Row("Qwen3", "qwen3"),
    Row("Qwen3, no unembedding", "qwen3", False),
    Row("Qwen3, tied", "qwen3_tied"),
    Row("Qwen3, tied, no unembedding", "qwen3_tied", False),
    Row("Qwen3 with experts", "qwen3_moe"),
)


class Trained(NamedTuple):
    """A finished run, and what its service answers at temperature 0 with the best weights."""

    folder: Path
    run_dir: Path
    model_dir: Path
    conversations: list[list[dict[str, str]]]
    answers: list[list[int]]  # tokens, without what ends an answer
    score: float
    num_agreeing: int  # with what the run's evaluation has recorded


def make_model(row: Row, folder: Path) -> Path:
    """A model directory of the row's kind."""
    directory = folder / "model"
    if row.kind == DEMO:
        shutil.copytree(REPO / "demo_model", directory, ignore=shutil.ignore_patterns("*.py"))
        return directory
    from llama_models import (  # pyright: ignore[reportMissingImports] (of tests/)
        KINDS,
        Kind,
        make_llama_model,
    )

    KINDS.setdefault(UNTIED, Kind("Llama", "llama-3", {"num_key_value_heads": 4}, num_padded=7))
    make_llama_model(directory, row.kind)
    if row.dtype != "float32":
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        model.to(getattr(torch, row.dtype)).save_pretrained(directory)
    return directory


def trained(row: Row, folder: Path) -> Trained:
    """Train the row's model by a run of two rounds, and ask its service the run's questions."""
    folder.mkdir(parents=True)
    model_dir, run_dir = make_model(row, folder), folder / "run"
    pool = (REPO / "demo_pool.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "rows.jsonl").write_text("\n".join(pool[:NUM_ROWS]) + "\n", encoding="utf-8")
    shutil.copy(REPO / "evals" / "simple_qa.jsonl", folder / "questions.jsonl")
    config: dict[str, Any] = {
        "run_name": re.sub(r"\W+", "-", row.name),
        "base_model": "model",
        "train_file": "rows.jsonl",
        "eval_tasks": ["qa:questions.jsonl"],
        "learning_rate": 0.003,
        "steps_per_round": 10,
        "max_rounds": 2,
        "eval_threshold": 1.0,
        "train_unembed": row.train_unembed,
        "evaluation": {"max_tokens": MAX_TOKENS},
    }
    if row.renderer is not None:
        config["renderer_name"] = row.renderer
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    from trainer_with_eval import main

    arguments = ["--config", str(folder / "config.json"), "--local", "--run-dir", str(run_dir)]
    called(main, arguments)
    return _asked(folder, run_dir, model_dir)


class Said(NamedTuple):
    code: int
    stdout: str
    stderr: str


def called(main: Any, arguments: Sequence[str], *, may_fail: bool = False) -> Said:
    """Run a command of the product in this process."""
    printed, progress = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(progress):
        code = main(list(arguments))
    if code and not may_fail:
        raise SystemExit(f"exit code {code}: {' '.join(arguments)}\n{progress.getvalue()}")
    return Said(code, printed.getvalue(), progress.getvalue())


def _asked(folder: Path, run_dir: Path, model_dir: Path) -> Trained:
    from ledger.store import RunStore

    store = RunStore.open(run_dir)
    decision = store.last_decision()
    assert decision is not None
    result, checkpoint = store.result(decision.best_round), store.checkpoint(decision.best_round)
    assert result is not None and checkpoint is not None and checkpoint.sampler_path is not None
    conversations = [[{"role": "user", "content": one.question}] for one in result.samples]
    with _sampling(run_dir, model_dir, checkpoint.base_model) as open_path:
        answers, texts = open_path(checkpoint.sampler_path, checkpoint.renderer, conversations)
    agreeing = sum(
        text == sample.answer for text, sample in zip(texts, result.samples, strict=True)
    )
    store.close()
    return Trained(folder, run_dir, model_dir, conversations, answers, result.score, agreeing)


@contextlib.contextmanager
def _sampling(run_dir: Path, model_dir: Path, name: str) -> Iterator[Any]:
    """The embedded service on a run's weights, and a function that asks it."""
    import tinker
    from tinker_cookbook import renderers
    from transformers import AutoTokenizer

    import local_tinker

    with local_tinker.start([(name, str(model_dir))]) as service:
        key = service.open_folder(run_dir / "checkpoints")
        client = tinker.ServiceClient(base_url=service.base_url, api_key=key)

        def ask(
            path: str, renderer_name: str, conversations: Sequence[Any]
        ) -> tuple[list[list[int]], list[str]]:
            tokenizer = AutoTokenizer.from_pretrained(model_dir)
            renderer = renderers.get_renderer(renderer_name, tokenizer)
            sampler = client.create_sampling_client(model_path=path).result()
            params = tinker.SamplingParams(
                max_tokens=MAX_TOKENS, temperature=0.0, stop=renderer.get_stop_sequences()
            )
            prompts = [renderer.build_generation_prompt(one) for one in conversations]
            futures = [sampler.sample(prompt, 1, params) for prompt in prompts]
            sequences = [future.result().sequences[0] for future in futures]
            tokens = [
                list(one.tokens[:-1] if one.stop_reason == "stop" else one.tokens)
                for one in sequences
            ]
            said = [renderer.parse_response(list(one.tokens))[0] for one in sequences]
            return tokens, [renderers.get_text_content(message) for message in said]

        yield ask
        client.close("success").result()


sys.path[:0] = [str(REPO), str(REPO / "tests")]
