"""Do trackers have what the ledger has, and does a run hang on none of them? The demo, killed too.

    pip install -r requirements.txt -r requirements-tracking.txt
    python benchmarks/trackers.py [--out DIR] [--only trackio mlflow faults]

For each tracker that is installed the demo (30 steps a round) is killed with SIGKILL amid its
second round, told again as it lies there, resumed, and told again at the end. After each of these
the rows are read back and compared with the ledger, row by row and number by number. Then it runs
beside a tracker that hangs, one that raises, one whose process is killed, and none: their effective
ledgers are compared, times, ids and paths aside, and what each took is printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from ledger.store import RunStore  # noqa: E402
from loop.tracking.replaying import replay  # noqa: E402
from loop.tracking.rows import EVENT, Row, rows_of  # noqa: E402
from loop.tracking.telling import Telling, settings_of, state_file, told_of  # noqa: E402
from loop.tracking.trackers import address_of, open_tracker  # noqa: E402
from services.keys import Keys  # noqa: E402

Found = tuple[int, int, dict[str, float]]  # event, step, metrics

KILL_AT_STEP = 45
LIMIT_S = 240
OWN = (
    "time",
    "worked",
    "run_id",
    "latency_ms",
    "pipeline",
    "state_path",
    "sampler_path",
    "paths",
    "parent",
)
FAULTS = {
    "raises": "raise ConnectionError('gone')",
    "hangs": "import threading\nthreading.Event().wait()",
    "is killed": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
}


# --- what a tracker has ---------------------------------------------------------------------------


def rows_at_tracker(kind: str, store: RunStore) -> list[Found]:
    """The rows of a run as the tracker gives them back, by their events, with our names."""
    state = json.loads((store.run_dir / state_file(kind)).read_text())
    ours = {theirs: name for name, theirs in state["names"].items()}
    config = settings_of(store)
    if kind == "trackio":
        from trackio.sqlite_storage import SQLiteStorage  # pyright: ignore[reportMissingImports]

        logs = SQLiteStorage.get_logs(config.tracking.project, run_id=store.run_id)
        found = [
            (log["step"], {ours[k]: v for k, v in log.items() if k not in ("step", "timestamp")})
            for log in logs
        ]
        return sorted((int(metrics[EVENT]), step, metrics) for step, metrics in found)
    import mlflow  # pyright: ignore[reportMissingImports]

    client = mlflow.MlflowClient(tracking_uri=address_of(kind, config, store.run_dir))
    experiment = client.get_experiment_by_name(config.tracking.project)
    (run,) = [
        one
        for one in client.search_runs(
            [experiment.experiment_id], filter_string=f"tags.`ledger.run_id` = '{store.run_id}'"
        )
        if "ledger.superseded" not in one.data.tags
    ]
    points = [
        (point.step, point.timestamp, name, point.value)
        for name in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, name)
    ]
    return rows_of_points(points, ours)


def rows_of_points(
    points: list[tuple[int, int, str, float]], ours: Mapping[str, str]
) -> list[Found]:
    """MLflow keeps points and no rows: those of one step are told apart by their names, which
    never come twice in it."""
    events = sorted((int(v), step) for step, _, name, v in points if ours[name] == EVENT)
    by_step: dict[int, dict[str, float]] = {}
    for step, _, name, value in points:
        if ours[name].startswith("ledger/"):
            continue
        metrics = by_step.setdefault(step, {})
        assert ours[name] not in metrics, f"{name} twice at step {step}"
        metrics[ours[name]] = value
    return [(seq, step, by_step[step]) for seq, step in events]


def wanted(kind: str, rows: list[Row]) -> list[Found]:
    """What the ledger says that a tracker should have."""
    if kind == "trackio":
        return [(row.seq, row.step, row.at_tracker) for row in rows]
    merged: dict[int, dict[str, float]] = {}
    for row in rows:
        merged.setdefault(row.step, {}).update(row.metrics)
    return [(row.seq, row.step, merged[row.step]) for row in rows]


def rows_of_store(store: RunStore) -> list[Row]:
    files = store.measured_files()
    return rows_of(store.effective(), files, is_evaluation=store.is_evaluation)


# --- the demo -------------------------------------------------------------------------------------


def command(run_dir: Path, trackers: list[str], *, resume: bool = False) -> list[str]:
    words = [sys.executable, str(REPO / "trainer_with_eval.py"), "--local"]
    words += ["--resume", str(run_dir)] if resume else ["--config", str(REPO / "demo_config.json")]
    if not resume:
        words += ["--run-dir", str(run_dir), "--set", "steps_per_round=30"]
        words += ["--set", "max_rounds=2", "--set", "eval_threshold=0.99"]
        words += ["--set", f"tracking.trackers={json.dumps(trackers)}"]
    return words


def run_demo(words: list[str], **environment: str) -> tuple[float, str]:
    began = time.monotonic()
    done = subprocess.run(
        words,
        cwd=REPO,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = [line for line in done.stderr.splitlines() if "tracki" in line or "mlflow" in line]
    return time.monotonic() - began, "\n".join(said[1:])


def kill_amid(words: list[str], run_dir: Path) -> int:
    """Kill the demo with SIGKILL amid its second round; how many steps it had taken."""
    with (
        open(run_dir.with_suffix(".log"), "w") as log,
        subprocess.Popen(words, cwd=REPO, stdout=log, stderr=log) as process,
    ):
        ledger = run_dir / "ledger.jsonl"
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end and process.poll() is None:
            num = ledger.read_text().count('"type": "step"') if ledger.exists() else 0
            if num >= KILL_AT_STEP:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        process.wait()
    return num


def effective(run_dir: Path) -> list[dict[str, Any]]:
    own = (*OWN, "expires_at", "checkpoint")
    events = RunStore.open(run_dir).effective()
    return [{k: v for k, v in event.items() if k not in own} for event in events]


def compare(kind: str, run_dir: Path, when: str) -> bool:
    """Print whether the tracker has the ledger's rows; the tracker is asked in a new process."""
    code = (
        "import sys; from pathlib import Path; import benchmarks.trackers as t; "
        "s = t.RunStore.open(Path(sys.argv[2])); k = sys.argv[1]; "
        "a, b = t.rows_at_tracker(k, s), t.wanted(k, t.rows_of_store(s)); "
        "print(len(a), len(b), a == b)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, kind, str(run_dir)], cwd=REPO, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    num, num_wanted, is_same = done.stdout.split()[-3:]
    print(f"{kind}, {when}: {num} rows, the ledger has {num_wanted}, same numbers: {is_same}")
    return is_same == "True"


def killed_and_told(kind: str, out: Path) -> bool:
    run_dir = out / kind
    num = kill_amid(command(run_dir, [kind]), run_dir)
    print(f"{kind}: killed after {num} steps")
    store = RunStore.open(run_dir)
    time.sleep(15)  # the worker sees the end of its input, and has 10 s
    store = RunStore.open(run_dir)
    began = time.monotonic()
    replay(store, settings_of(store), Keys())
    print(f"{kind}: replay of the killed run {time.monotonic() - began:.1f} s")
    results = [compare(kind, run_dir, "killed and told again")]
    took_s, said = run_demo(command(run_dir, [kind], resume=True))
    print(f"{kind}: resumed in {took_s:.1f} s; said: {said}")
    store = RunStore.open(run_dir)
    replay(store, settings_of(store), Keys())
    results.append(compare(kind, run_dir, "resumed, and told again"))
    telling = Telling(run_dir, kind, open_tracker)
    began = time.monotonic()
    telling.tell(store, settings_of(store), told_of(store, is_over=True, status="finished"))
    print(f"{kind}: a replay with nothing to tell takes {time.monotonic() - began:.2f} s")
    telling.close()
    results.append(compare(kind, run_dir, "told once more"))
    return all(results)


def beside_faults(out: Path) -> bool:
    took_s, _ = run_demo(command(out / "plain", []))
    print(f"no tracker: {took_s:.1f} s")
    results = []
    for name, body in FAULTS.items():
        packages = out / f"packages-{name.replace(' ', '-')}" / "trackio"
        packages.mkdir(parents=True)
        (packages / "__init__.py").write_text("")
        (packages / "sqlite_storage.py").write_text(body + "\n")
        run_dir = out / name.replace(" ", "-")
        path = str(packages.parent)
        took, said = run_demo(command(run_dir, ["trackio"]), PYTHONPATH=path)
        is_same = effective(run_dir) == effective(out / "plain")
        print(f"a tracker that {name}: {took:.1f} s, same ledger: {is_same}; said: {said}")
        results.append(is_same)
    return all(results)


def main() -> int:
    parser = argparse.ArgumentParser(description="Trackers against the ledger.")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--only", nargs="*", default=["trackio", "mlflow", "faults"])
    args = parser.parse_args()
    out = args.out or Path(tempfile.mkdtemp(prefix="trackers-"))
    out.mkdir(parents=True, exist_ok=True)
    os.environ["TRACKIO_DIR"] = str(out / "trackio-dir")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    results = []
    for kind in args.only:
        if kind == "faults":
            results.append(beside_faults(out))
        elif importlib.util.find_spec(kind) is None:
            print(f"{kind}: not installed, not measured")
        else:
            results.append(killed_and_told(kind, out))
    return 0 if results and all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
