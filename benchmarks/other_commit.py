"""Is a run of another commit the same run here, begun here or there?

    .venv/bin/python benchmarks/other_commit.py COMMIT [--kills 4] [--seed 0]

The demo is run whole by the code of the commit and by the code here. Then the commit's code is
killed at random steps, and the code here resumes what it left. Compared, as by kill_resume.py, are
the tensors of every checkpoint, evaluations, selections, manifest and effective ledger; the
what is said otherwise since is left out. Runs one process at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "benchmarks"), str(REPO / "tests")]

from kill_resume import differences  # noqa: E402

# Topics of the demo's rows of which 2cbdb46 drops some that are kept since: a run with these is
# refused on resumption.
OTHERWISE_CLEANED = ("young_animals", "colors")


def prepare(folder: Path) -> Path:
    """The demo's settings and files in a folder that belongs to neither code."""
    config = json.loads((REPO / "demo_config.json").read_text())
    for name in (config["train_file"], config["mining"]["pool_file"]):
        lines = (REPO / name).read_text().splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["topic"] not in OTHERWISE_CLEANED]
        (folder / name).write_text("".join(kept))
    shutil.copytree(REPO / "evals", folder / "evals")
    config |= {"base_model": str(REPO / "demo_model"), "checkpoint_every_steps": 2}
    config |= {"eval_threshold": 0.99, "eval_tasks": ["qa:evals/simple_qa.jsonl"]}
    file = folder / "config.json"
    file.write_text(json.dumps(config))
    return file


def start(tree: Path, *arguments: str | Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(tree / "trainer_with_eval.py"), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finished(process: subprocess.Popen[bytes]) -> None:
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(said.decode())


def num_events(run_dir: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return (run_dir / "ledger.jsonl").read_bytes().count(b"\n")
    return 0


def without_known_changes(run_dir: Path) -> None:
    """Take out what is said otherwise since, or is recorded since: the sentences of diagnoses, the
    lists of rows that are left out or similar, where picks are to be looked up, what `null` became,
    and the digests of the base model."""
    file = run_dir / "ledger.jsonl"
    events = [json.loads(line) for line in file.read_text().splitlines()]
    for event in events:
        if event["type"] == "diagnosed":
            event["sentence"] = ""
    file.write_text("".join(json.dumps(event) + "\n" for event in events))
    for name in ("data_dropped.jsonl", "data_similar.jsonl"):
        (run_dir / name).write_text("")
    file = run_dir / "data_manifest.json"
    manifest = json.loads(file.read_text())
    for key in ("dropped", "num_dropped", "num_similar", "base_model"):
        manifest.pop(key, None)
    for of_file in manifest["files"].values():
        of_file.pop("unused_keys", None)
    for examples in manifest["examples"].values():
        examples.pop("sha256", None)
    file.write_text(json.dumps(manifest))
    file = run_dir / "config.resolved.json"
    settled = json.loads(file.read_text())
    settled["config"].pop("num_epochs", None)
    for key in ("train_on", "chat_template", "grader_renderer_name", "steps_per_round"):
        settled["resolved"].pop(key, None)
    file.write_text(json.dumps(settled))
    for file in (run_dir / "selections").glob("round_*.json"):
        selection = json.loads(file.read_text())
        selection.pop("suspect_rows", None)
        for pick in selection["picks"]:
            for key in ("file", "line_no", "text"):
                pick.pop(key, None)
        file.write_text(json.dumps(selection))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("commit")
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder, tree = Path(scratch), Path(scratch) / "tree"
        subprocess.run(["git", "clone", "--quiet", str(REPO), str(tree)], check=True)
        subprocess.run(["git", "checkout", "--quiet", args.commit], cwd=tree, check=True)
        config = prepare(folder)
        runs = {name: folder / name for name in ("there", "here")}
        for name, code in (("there", tree), ("here", REPO)):
            finished(start(code, "--config", config, "--local", "--run-dir", runs[name]))
        total = num_events(runs["there"])
        killed_at: list[int] = sorted(rng.sample(range(2, total), args.kills))
        for number in killed_at:
            run_dir = runs[f"killed at event {number} there, resumed here"] = folder / f"k{number}"
            process = start(tree, "--config", config, "--local", "--run-dir", run_dir)
            while num_events(run_dir) < number and process.poll() is None:
                time.sleep(0.002)
            process.kill()
            process.communicate()
            finished(start(REPO, "--resume", run_dir))
        for run_dir in runs.values():
            without_known_changes(run_dir)
        failed = False
        for name, run_dir in list(runs.items())[1:]:
            folders = (runs["there"] / "checkpoints", run_dir / "checkpoints")
            found = differences(runs["there"], run_dir, folders)
            failed = failed or bool(found)
            print(f"{name}: {'; '.join(found) if found else 'the same run'}", flush=True)
        raise SystemExit(failed)


if __name__ == "__main__":
    main()
