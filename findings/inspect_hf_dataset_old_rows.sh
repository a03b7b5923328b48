#!/usr/bin/env bash
# inspect-ai 0.3.285: `hf_dataset` of a local file gives the rows of the first file of that name for ever:
# after the file has changed, and also in another folder.
#
# Where: dataset/_sources/hf.py keeps what it loaded in the user's cache under a hash of path, name, data_dir,
#   split, revision and the other arguments as they are written, and reads it from there from then on
#   (`cached=True`, the default). The content, its time and the working directory are no part of it;
#   `datasets` itself, which it calls, does notice.
# Why it matters: `hf_dataset("json", data_files="rows.jsonl", split="train")` is how a task reads its own
#   JSONL with a FieldSpec for the hub. A corrected question file is asked uncorrected, and a second project
#   is scored on the first one's questions. Use `json_dataset`, or `cached=False`.
# Seen:
#   inspect-ai 0.3.285, datasets 5.2.0
#   hf_dataset, first:                What does a cow say?
#   hf_dataset, file changed:         What does a cow say?
#   hf_dataset, in another folder:    What does a cow say?
#   cached=False, in another folder:  What does a hen say?
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check \
    inspect-ai==0.3.285 datasets==5.2.0
cd "$work"
export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" XDG_DATA_HOME="$work/data" XDG_CACHE_HOME="$work/cache"
venv/bin/python - 2>/dev/null <<'PY'
import contextlib
import io
import os
from importlib.metadata import version
from pathlib import Path

from inspect_ai.dataset import FieldSpec, hf_dataset


def asked(folder, animal, **options):
    Path(folder).mkdir(exist_ok=True)
    Path(folder, "rows.jsonl").write_text(f'{{"q": "What does a {animal} say?", "a": "x"}}\n')
    before = os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            rows = hf_dataset(
                "json", data_files="rows.jsonl", split="train",
                sample_fields=FieldSpec(input="q", target="a"), **options,
            )
    finally:
        os.chdir(before)
    return rows[0].input


print(f"inspect-ai {version('inspect-ai')}, datasets {version('datasets')}")
for label, folder, animal, options, expected in (
    ("hf_dataset, first:", "one", "cow", {}, "cow"),
    ("hf_dataset, file changed:", "one", "dog", {}, "cow"),
    ("hf_dataset, in another folder:", "two", "hen", {}, "cow"),
    ("cached=False, in another folder:", "two", "hen", {"cached": False}, "hen"),
):
    question = asked(folder, animal, **options)
    print(f"{label:33} {question}")
    if expected not in question:
        print(f"changed: {label} {question}")
        raise SystemExit(1)
PY
