"""The text of `eval_NNN.py`: a script that evaluates one trial's weights, alone.

For tinker it is the loop's own evaluation; for torchtune, Inspect on the merged Hugging Face
weights of the last epoch, in an environment of torchtune's that need not have this project.
"""

from __future__ import annotations

import os
import pprint
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent.parent

_TINKER = '''\
"""Evaluates one trial of a study; written by `study.py generate`, which writes it anew."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = (HERE / {project!r}).resolve()
TRIAL = {trial}

if not (PROJECT / "study.py").is_file():
    sys.exit(f"error: {{PROJECT}}: study.py is no longer there. Generate the study again.")
sys.path.insert(0, str(PROJECT))

from studies.work.evaluating import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(HERE, TRIAL, sys.argv[1:]))
'''

_TORCHTUNE = '''\
"""Evaluates one trial of a study; written by `study.py generate`, which writes it anew.

It needs inspect-ai, transformers, accelerate and torch, and the trial's weights.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TRIAL = {trial}


def last_epoch(folder):
    found = [p for p in folder.glob("epoch_*") if p.name.removeprefix("epoch_").isdigit()]
    if not found:
        sys.exit(f"error: {{folder}}: no epoch_N folder of weights. Train the trial first: "
                 f"tune run RECIPE --config {{HERE / TRIAL['train']}}")
    return max(found, key=lambda p: int(p.name.removeprefix("epoch_")))


def merged_alone(epoch, view):
    """The epoch's files without the adapter's, which would be applied a second time."""
    files = [p for p in epoch.iterdir() if not p.name.startswith("adapter_")]
    if not any(p.suffix in (".safetensors", ".bin") for p in files):
        sys.exit(f"error: {{epoch}}: no merged weights, only an adapter. Train with "
                 "save_adapter_weights_only: false.")
    for file in files:
        (view / file.name).symlink_to(file)


def write_results(task, log, epoch, folder):
    scores = log.results.scores
    samples = {{}}
    for sample in log.samples:
        samples[str(sample.id)] = {{k: v.value for k, v in (sample.scores or {{}}).items()}}
    metrics = {{s.name: {{k: m.value for k, m in s.metrics.items()}} for s in scores}}
    found = {{k: TRIAL[k] for k in ("study", "run", "params", "seed", "train_sha256")}}
    found |= task
    found |= {{"checkpoint": str(epoch), "metrics": metrics, "n": log.results.total_samples}}
    found |= {{"log": Path(log.location).name, "samples": samples}}
    temporary = folder / "results.json.tmp"
    temporary.write_text(json.dumps(found, indent=1, default=str) + "\\n", encoding="utf-8")
    os.replace(temporary, folder / "results.json")


def main():
    from inspect_ai import eval as evaluate

    epoch, num_failed = last_epoch(Path(TRIAL["weights"])), 0
    with tempfile.TemporaryDirectory() as view:
        merged_alone(epoch, Path(view))
        for task in TRIAL["tasks"]:
            folder = (HERE / TRIAL["eval_results"] / task["task"]).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            (log,) = evaluate(
                f"{{(HERE / task['file']).resolve()}}@{{task['registered']}}",
                model="hf/" + TRIAL["run"],
                model_args={{"model_path": view}},
                task_args=task["args"],
                log_dir=str(folder),
            )
            if log.status == "success":
                write_results(task, log, epoch, folder)
            else:
                num_failed += 1
                told = f"{{task['task']}}: {{log.status}}; see {{log.location}}"
                print(f"error: {{told}}", file=sys.stderr)
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
'''


def tinker_script(configs_dir: Path, trial: Mapping[str, Any]) -> str:
    """The script of a trial of this project's loop."""
    # Inside the project it moves along; from elsewhere there is but one way to name it.
    is_inside = configs_dir.is_relative_to(PROJECT)
    project = os.path.relpath(PROJECT, configs_dir) if is_inside else str(PROJECT)
    return _TINKER.format(project=project, trial=_literal(trial))


def torchtune_script(trial: Mapping[str, Any]) -> str:
    """The script of a trial of torchtune's."""
    return _TORCHTUNE.format(trial=_literal(trial))


def _literal(values: Mapping[str, Any]) -> str:
    return pprint.pformat(dict(values), width=96, sort_dicts=False)
