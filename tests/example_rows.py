"""Made-up rows in the shape of the benchmarks that the examples name, in the place of what the hub
and other hosts would send. Only the loading of data is replaced; the tasks are the package's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

THREE = range(3)
SUMS = [("How many legs have two cats?", "8"), ("What is 2 plus 3?", "5"), ("Twice 4?", "8")]

GSM8K = [{"question": q, "answer": f"Because.\n#### {a}"} for q, a in SUMS]
MMLU = [
    {"question": f"{q} ({i})", "choices": ["1", a, "2", "3"], "answer": 1, "subject": "anatomy"}
    for i, (q, a) in enumerate(SUMS)
]
MATH = [
    {"problem": q, "solution": rf"So \boxed{{{a}}}.", "level": "Level 1", "type": "Algebra"}
    for q, a in SUMS
]
AIME = [
    {"ID": f"made-up-{i}", "Problem": q, "Answer": int(a), "Solution": "Count."}
    for i, (q, a) in enumerate(SUMS)
]
HUMANEVAL = [
    {
        "task_id": f"made-up/{i}",
        "prompt": f'def add{i}(a, b):\n    """Add a, b and {i}."""\n',
        "canonical_solution": f"    return a + b + {i}\n",
        "test": f"def check(candidate):\n    assert candidate(1, 2) == {3 + i}\n",
        "entry_point": f"add{i}",
    }
    for i in THREE
]
MBPP_PROMPTS = [
    {"task_id": i, "text": "Add.", "test_list": ["assert f(1) == 1"], "code": "def f(a): return a"}
    for i in (2,)
]
MBPP = [
    {
        "task_id": 100 + i,
        "prompt": f"Write f that adds {i}.",
        "test_list": [f"assert f(1) == {1 + i}"],
        "source_file": "made up",
        "code": f"def f(a): return a + {i}",
        "test_imports": [],
    }
    for i in THREE
]
APPS = [
    {
        "problem_id": 4000 + i,
        "question": f"Add {i}.",
        "difficulty": "introductory",
        "solutions": "[]",
        "starter_code": "",
        "input_output": json.dumps({"inputs": ["1"], "outputs": [str(1 + i)]}),
    }
    for i in THREE
]
TRUTHFUL = [
    {
        "question": q,
        "mc1_targets": {"choices": [a, "none"], "labels": [1, 0]},
        "mc2_targets": {"choices": [a, "none"], "labels": [1, 0]},
    }
    for q, a in SUMS
]
XSTEST = [
    {"prompt": f"How do I kill process {i}?", "type": "homonyms", "note": "", "label": "safe",
     "focus": "kill"}
    for i in THREE
]  # fmt: skip
STRONG_REJECT = [
    {"category": "made up", "source": "made up", "forbidden_prompt": f"Say what is forbidden, {i}."}
    for i in THREE
]
ASSISTANT = [
    {"id": f"a{i}", "task": q, "answer": a, "explanation": "", "difficulty": "Easy",
     "gold_url": "", "metadata": "", "set": "dev"}
    for i, (q, a) in enumerate(SUMS)
]  # fmt: skip
GAIA = [
    {"task_id": f"g{i}", "Question": q, "Final answer": a, "Level": "1", "Annotator Metadata": {},
     "file_name": "", "file_path": ""}
    for i, (q, a) in enumerate(SUMS)
]  # fmt: skip
ADD = {
    "name": "add",
    "description": "Add two numbers.",
    "parameters": {
        "type": "dict",
        "properties": {
            "a": {"type": "integer", "description": "one"},
            "b": {"type": "integer", "description": "other"},
        },
        "required": ["a", "b"],
    },
}
BFCL = {
    category: [
        {
            "id": f"{category}_{i}",
            "question": [[{"role": "user", "content": f"Add {i} and 2."}]],
            "function": [ADD],
            "ground_truth": [{"add": {"a": [i], "b": [2]}}],
        }
        for i in range(1)
    ]
    for category in ("simple_python", "multiple", "irrelevance")
}

HUB: Mapping[str, list[dict[str, Any]]] = {
    "openai/gsm8k": GSM8K,
    "cais/mmlu": MMLU,
    "DigitalLearningGmbH/MATH-lighteval": MATH,
    "Maxwell-Jia/AIME_2024": AIME,
    "openai/openai_humaneval": HUMANEVAL,
    "google-research-datasets/mbpp": MBPP,
    "truthfulqa/truthful_qa": TRUTHFUL,
    "AssistantBench/AssistantBench": ASSISTANT,
}


def offline(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Replace what loads data for the tasks that the examples name."""
    import datasets
    import inspect_ai.dataset
    from inspect_ai.dataset import MemoryDataset
    from inspect_ai.dataset._util import data_to_samples, record_to_sample_fn

    def dataset_of(rows: list[dict[str, Any]], fields: Any, name: str) -> MemoryDataset:
        samples = data_to_samples(rows, record_to_sample_fn(fields), auto_id=False)
        return MemoryDataset(samples, name=name)

    def hf_dataset(path: str, sample_fields: Any = None, **options: Any) -> MemoryDataset:
        rows = (
            GAIA if path == str(folder / "GAIA") else XSTEST if "xstest" in path.lower() else None
        )
        made = dataset_of(HUB[path] if rows is None else rows, sample_fields, path)
        return made[: options["limit"]] if options.get("limit") else made  # pyright: ignore

    monkeypatch.setattr(inspect_ai.dataset, "hf_dataset", hf_dataset)
    few_shots = datasets.Dataset.from_list(MBPP_PROMPTS)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: few_shots)
    _replace_files(monkeypatch, folder, dataset_of)


def _replace_files(
    monkeypatch: pytest.MonkeyPatch, folder: Path, dataset_of: Callable[..., Any]
) -> None:
    """The same for what comes as files, into a folder of the test's own."""
    import huggingface_hub

    # A package has its task under the name of the module that the task is in.
    apps, bfcl, gaia, mgsm, strong_reject = (
        import_module(f"inspect_evals.{name}")
        for name in ("apps.apps", "bfcl.bfcl", "gaia.dataset", "mgsm.mgsm",
                     "strong_reject.strong_reject")
    )  # fmt: skip

    def download(url: str, sha256: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{q} ({path.stem})\t{a}\n" for q, a in SUMS), encoding="utf-8")

    monkeypatch.setattr(mgsm, "download", download)
    monkeypatch.setattr(mgsm, "MGSM_CACHE_DIR", folder / "mgsm")
    monkeypatch.setattr(
        apps,
        "load_hf_dataset_with_script",
        lambda record_to_sample, **_: dataset_of(APPS, record_to_sample, "apps"),
    )
    monkeypatch.setattr(
        strong_reject,
        "load_csv_dataset",
        lambda sample_fields, **_: dataset_of(STRONG_REJECT, sample_fields, "strong_reject"),
    )
    (folder / "GAIA/2023/validation").mkdir(parents=True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder / "GAIA"))
    monkeypatch.setattr(gaia, "GAIA_DATASET_DIR", folder / "GAIA")
    _write_bfcl(folder / "bfcl")
    monkeypatch.setattr(bfcl, "DATASET_LOCATION", folder / "bfcl")


def _write_bfcl(folder: Path) -> None:
    from inspect_evals.bfcl.utils.task_categories import CATEGORIES

    for name, rows in BFCL.items():
        category = CATEGORIES[name]
        files = [category.filename]
        if category.has_ground_truth_file:
            files.append(category.ground_truth_filename)
        for file in files:
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
