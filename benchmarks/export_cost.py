"""What an export of a model of published size takes: seconds, processor time, memory, disk.

    .venv/bin/python benchmarks/export_cost.py [--size 135M] [--formats peft merged ...]

Makes a Llama model with random weights in the shape of a known one (benchmarks/model_sizes.py;
bfloat16 on disk), with a small tokenizer that llama.cpp reads alike, takes one training step by a
run of the product with 20 questions, and exports its round with `export.py`, each format in a
process of its own. Random weights cost what trained ones do.

Memory is the most that was resident at one time in the process of `export.py` and those it starts
(the embedded service is a thread of it, llama.cpp a process), looked up ten times a second as the
proportional share (`Pss`), so that no page counts twice. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "tests"), str(REPO / "benchmarks")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TINKER_TELEMETRY", "0")

from model_sizes import GIB, SHAPES, Shape, short  # noqa: E402

NUM_QUESTIONS = 20
MAX_TOKENS = 16
MAX_S = 1200.0  # of one export
LOOK_S = 0.1
FORMS = {
    "peft": ("--format", "peft"),
    "peft --fold-unembed": ("--format", "peft", "--fold-unembed"),
    "merged": ("--format", "merged"),
    "gguf f16": ("--format", "gguf", "--quantization", "f16"),
    "gguf q8_0": ("--format", "gguf", "--quantization", "q8_0"),
}


class Cost(NamedTuple):
    """What one export took. `refusal` is its last words where it failed."""

    form: str
    seconds: float
    cpu_s: float
    peak_bytes: int
    disk_bytes: int
    refusal: str = ""


def make_model(directory: Path, shape: Shape) -> None:
    """Random weights of that shape, in bfloat16 on disk."""
    import torch

    from llama_models import (  # pyright: ignore[reportMissingImports] (of tests/)
        KINDS,
        Kind,
        make_llama_model,
        make_tokenizer,
    )

    kind = Kind(
        "Llama",
        "llama-3",
        {
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_value_heads,
            "tie_word_embeddings": shape.is_tied,
            "initializer_range": 0.02,
        },
        num_padded=shape.vocab - len(make_tokenizer("llama-3")),
    )
    KINDS[shape.like] = kind
    torch.set_default_dtype(torch.bfloat16)
    make_llama_model(directory, shape.like)
    torch.set_default_dtype(torch.float32)


def trained_run(folder: Path) -> Path:
    """One step on two rows, by a run of the product."""
    rows = (REPO / "demo_pool.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "rows.jsonl").write_text("\n".join(rows[:4]) + "\n", encoding="utf-8")
    questions = (REPO / "evals" / "simple_qa.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "questions.jsonl").write_text(
        "\n".join(questions[:NUM_QUESTIONS]) + "\n", encoding="utf-8"
    )
    config: dict[str, Any] = {
        "run_name": "cost",
        "base_model": "model",
        "train_file": "rows.jsonl",
        "eval_tasks": ["qa:questions.jsonl"],
        "learning_rate": 0.001,
        "batch_size": 2,
        "steps_per_round": 1,
        "max_rounds": 1,
        "eval_threshold": 1.0,
        "evaluation": {"max_tokens": MAX_TOKENS},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    program = [sys.executable, str(REPO / "trainer_with_eval.py")]
    arguments = ["--config", str(folder / "config.json"), "--local", "--run-dir"]
    done = subprocess.run(
        [*program, *arguments, str(folder / "run")], capture_output=True, text=True, cwd=folder
    )
    if not (folder / "run").is_dir() or done.returncode not in (0, 1):
        raise SystemExit(f"the run ended with {done.returncode}:\n{done.stderr}")
    return folder / "run"


def cost_of(form: str, run_dir: Path, out: Path) -> Cost:
    """Export, and look at what the processes hold meanwhile."""
    command = [sys.executable, str(REPO / "export.py"), f"{run_dir}@round_01", str(out)]
    before, begun = _children_s(), time.monotonic()
    peak = 0
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen([*command, *FORMS[form]], stdout=said, stderr=said) as process,
    ):
        while process.poll() is None:
            peak = max(peak, sum(_pss(one) for one in _family(process.pid)))
            if time.monotonic() - begun > MAX_S:
                process.kill()
            time.sleep(LOOK_S)
        seconds = time.monotonic() - begun
        said.seek(0)
        words = " ".join(said.read().split())
    files = [path for path in out.rglob("*") if path.is_file()] if out.is_dir() else []
    size = sum(path.stat().st_size for path in files)
    shutil.rmtree(out, ignore_errors=True)
    sys.stderr.write(f"{form}: {words[-3000:]}\n")
    refusal = words[-500:] if process.returncode else ""
    return Cost(form, seconds, _children_s() - before, peak, size, refusal)


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _family(pid: int) -> Iterator[int]:
    """A process and all that it has started, as far as they are there."""
    yield pid
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _family(int(child))
    except OSError:  # it has ended meanwhile
        return


def _pss(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line[:4] == "Pss:")


def table(costs: Sequence[Cost]) -> str:
    lines = ["| format | seconds (processor time) | peak | on disk |", "|---|---|---|---|"]
    for one in costs:
        took = f"{short(one.seconds)} s ({short(one.cpu_s)} s)"
        disk = one.refusal or f"{one.disk_bytes / 1e6:,.0f} MB"
        lines.append(f"| {one.form} | {took} | {one.peak_bytes / GIB:.2f} GiB | {disk} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=list(SHAPES), default="135M")
    parser.add_argument("--formats", nargs="+", choices=list(FORMS), default=list(FORMS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        make_model(folder / "model", SHAPES[given.size])
        run_dir = trained_run(folder)
        costs = [cost_of(form, run_dir, folder / "export") for form in given.formats]
    sys.stdout.write(f"{table(costs)}\n")


if __name__ == "__main__":
    main()
