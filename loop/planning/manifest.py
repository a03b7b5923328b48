"""What is written down before the first step: settings, data manifest, dropped and similar rows."""

from __future__ import annotations

import itertools
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from data_loader import LoadedFile
from evaluation.held_out import HeldOutFile
from evaluation.inspect_tasks import InspectTask
from evaluation.preferences import PairFile
from grading.graders import GRADING
from loop.planning.inputs import Inputs, num_dropped
from loop.planning.models import lora_param_count, model_digests, model_files
from loop.planning.plan import Plan
from loop.planning.service_checks import checked
from loop.planning.tasks import relative_code
from loop.planning.teacher import recorded_teacher
from rows.examples import DropLog, DroppedRow
from services.place import ServiceChoice

NUM_LISTED = 100  # dropped rows that the manifest itself lists
LARGE_GB = 4.0  # of a model whose reading is announced
GB_PER_S = 1.0  # of sha256, on a core that others use too; an idle one does nearly twice as much


def resolved_config(
    plan: Plan, choice: ServiceChoice, versions: Mapping[str, str]
) -> dict[str, Any]:
    """What config.resolved.json holds: the settings as used, and what `null` stood for."""
    return {
        "config": plan.config.model_dump(mode="json"),
        "config_hash": plan.config_hash,
        "config_file": str(plan.inputs.loaded.file.resolve()),
        "resolved": {
            "renderer_name": plan.renderer_name,
            "chat_template": str(plan.chat_format.comparison or "not compared"),
            "train_on": plan.rendering.train_on_what.value,
            "grader_renderer_name": plan.grader_format and plan.grader_format.name,
            "learning_rate": plan.schedule.learning_rate,
            "warmup_steps": plan.schedule.warmup_steps,
            "steps_per_round": plan.steps.per_round or None,  # None: nothing is trained
            "service": choice.kind,
            "base_url": choice.base_url,
            "service_check": checked(plan.inputs.loaded.file, choice, plan.config.base_model),
            "num_lora_params": _num_lora_params(plan),
            "teacher": recorded_teacher(plan.inputs.teacher),
        },
        "files": {
            "base_model": plan.inputs.model_path,
            **{name: str(file.source) for name, file in _named_files(plan.inputs).items()},
            **{
                f"eval_tasks.{task.name}": str(task.work.path)
                for task in (*plan.tasks, *plan.test_tasks)
                if not isinstance(task.work, InspectTask)
            },
        },
        "versions": dict(versions),
        "machine": _machine(choice),
    }


def _machine(choice: ServiceChoice) -> dict[str, Any]:
    """Where this process runs; the device is known of the embedded service alone, which takes a
    GPU where torch sees one."""
    device = None
    if choice.kind == "embedded":
        import torch

        is_gpu = torch.cuda.is_available()
        device = torch.cuda.get_device_name() if is_gpu else f"CPU ({platform.machine()})"
    system = f"{platform.system()} {platform.release()}"
    return {"system": system, "num_cpus": os.cpu_count(), "device": device}


def _num_lora_params(plan: Plan) -> int | None:
    is_trained = plan.steps.per_round > 0
    if not is_trained:
        return None
    return lora_param_count(plan.config, plan.inputs.model_dir, plan.origin)


def _named_files(inputs: Inputs) -> dict[str, LoadedFile]:
    """The files of rows by the setting that names them, numbered where it names several."""
    return {
        key if len(data.files) == 1 else f"{key}[{number}]": file
        for key, data in inputs.files.items()
        for number, file in enumerate(data.files)
    }


def dropped_rows(plan: Plan) -> Iterator[DroppedRow]:
    """Every row that is not trained on."""
    return itertools.chain.from_iterable(_drop_logs(plan))


def _drop_logs(plan: Plan) -> list[DropLog]:
    return [*plan.inputs.drop_logs, *plan.dropped_in_rendering]


def with_model_files(plan: Plan, say: Callable[[str], None]) -> Plan:
    """The plan with the digests of its base model's files; of a hub model there are none here.

    All of them are read whole, which is said beforehand where they are large.
    """
    directory = plan.inputs.model_dir
    if directory is None:
        return replace(plan, model_files={})
    files = model_files(directory)
    num_gb = sum(path.stat().st_size for path in files) / 1e9
    if num_gb > LARGE_GB:
        say(
            f"base model: reading the {num_gb:.0f} GB of its {len(files)} files for their sha256, "
            f"about {num_gb / GB_PER_S:.0f} s, so that --resume can tell that they are the same"
        )
    return replace(plan, model_files=model_digests(directory))


def data_manifest(plan: Plan) -> dict[str, Any]:
    """What data_manifest.json holds: counts, hashes, and the first dropped rows with reasons.

    All of them are in data_dropped.jsonl. `sha256` of examples is of those that are kept.
    """
    rendered = {"train_file": plan.train, "mining.pool_file": plan.pool}
    model = {"path": plan.inputs.model_path, "files": plan.model_files}
    folder = plan.inputs.loaded.directory
    return {
        "base_model": None if plan.model_files is None else model,
        "files": {
            name: {
                "path": str(file.source),
                "sha256": file.sha256,
                "num_rows": file.num_rows,
                "unused_keys": dict(file.unused),
            }
            for name, file in _named_files(plan.inputs).items()
        },
        "examples": {
            key: {
                "num_examples": len(rendered[key].examples),
                "sha256": rendered[key].examples.sha256,
                "num_tokens": sum(rendered[key].num_tokens),
                "num_loss_tokens": sum(rendered[key].num_loss_tokens),
                "num_truncated": rendered[key].num_truncated,
            }
            for key in plan.inputs.files
        },
        "eval_tasks": {
            task.name: {
                "path": task.name if isinstance(task.work, InspectTask) else str(task.work.path),
                "sha256": task.work.sha256,
                "num_questions": task.n,
            }
            for task in (*plan.tasks, *plan.test_tasks)
        },
        "code": {
            path: sha256
            for task in (*plan.tasks, *plan.test_tasks)
            if not isinstance(task.work, HeldOutFile | PairFile)
            for path, sha256 in relative_code(task.work.code, folder).items()
        }
        | relative_code(plan.inputs.rewarding_code, folder),
        "grading": GRADING,
        "num_dropped": dict(num_dropped(_drop_logs(plan))),
        "num_similar": plan.inputs.split.similar.counts["similar"],
        "num_other_answers": plan.inputs.split.other_answers.num_rows,
        "dropped": [asdict(row) for row in itertools.islice(dropped_rows(plan), NUM_LISTED)],
    }


def versions() -> dict[str, str]:
    from importlib.metadata import version

    packages = ("tinker", "tinker-cookbook", "torch", "transformers", "peft")
    return {"python": sys.version.split()[0], **{name: version(name) for name in packages}}
