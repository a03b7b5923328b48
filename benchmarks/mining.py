"""Does mining pay? Each strategy against uniform choice of as many new rows, and against none.

    .venv/bin/python benchmarks/mining.py [--first-seed 0] [--seeds 10] [--worlds NAME...]
        [--arms NAME...] [--skews NAME...] [--json FILE]

Every run is the loop itself, in one process on one embedded service: rounds of 40 examples, a fifth
of them replayed, on the demo's balanced pool and on the skewed worlds of mining_worlds.py. Measured
are the training tokens until the dev score first reaches the threshold, which is 90 % of what the
same number of steps on the whole clean pool reaches; a run that never does counts as its full
budget. Tokens that a strategy reads to measure losses are shown beside, how many of the rows that
it drew have a wrong answer, and how many of those that it calls suspects. `clean pool` is uniform
choice from the pool without its faults: what a strategy that knew them would come to. Prints
Markdown tables: medians over the seeds, and of the ratio to uniform the median with a 95 %
bootstrap interval.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "benchmarks")]

from mining_worlds import NAMES, REWORDINGS, WEAK_SHARES, make_world  # noqa: E402

import local_tinker  # noqa: E402
from config_schema import LoadedConfig, validate  # noqa: E402
from data_loader import load_examples  # noqa: E402
from ledger.store import RunStore  # noqa: E402
from loop.planning.inputs import read_inputs  # noqa: E402
from loop.planning.manifest import data_manifest, dropped_rows, resolved_config  # noqa: E402
from loop.planning.models import find_model_dir  # noqa: E402
from loop.planning.plan import make_plan  # noqa: E402
from loop.reports.progress import Progress  # noqa: E402
from rows.sources import Source  # noqa: E402
from services.keys import Keys  # noqa: E402
from services.place import Place, ServiceChoice  # noqa: E402
from trainer_with_eval import train_on_service  # noqa: E402

MODEL = str(REPO / "demo_model")
MAX_ROUNDS = 8
REACHED_SHARE = 0.9
SETTINGS: dict[str, Any] = {
    "base_model": MODEL,
    "renderer_name": "llama3",
    "train_file": "train.jsonl",
    "eval_tasks": ["qa:dev.jsonl"],
    "learning_rate": 0.003,
    "lr_decay": 0.9,
    "batch_size": 8,
    "steps_per_round": 5,
    "max_rounds": MAX_ROUNDS,
    "evaluation": {"max_tokens": 16},
}
ARMS = ("uniform", "topics", "similar", "loss", "hybrid", "no new rows", "clean pool")
SKEW_ARMS = ("uniform", "hybrid")  # at the other shares of weak rows, ...
MAX_SKEW_SEEDS = 5  # ... with so many of the seeds, so that all is done within the hour


class Outcome(NamedTuple):
    """What a run came to. `tokens` are trained until the threshold, or the whole budget."""

    tokens: int
    is_reached: bool
    measured_tokens: int  # read to measure losses, until then
    best_score: float
    wrong_share: float  # of the rows that were drawn until then
    num_suspects: int  # rows that were called so, and how many of them have a wrong answer
    num_wrong_suspects: int


def run_loop(service: local_tinker.Service, folder: Path, name: str, **changes: Any) -> RunStore:
    """Run the loop in `folder`; progress is not shown."""
    config = validate({**SETTINGS, **changes}, name)
    loaded = LoadedConfig(config, folder / "config.json", folder)
    plan = make_plan(read_inputs(loaded, find_model_dir(loaded)))
    choice = ServiceChoice("embedded", None, "a benchmark")
    place = Place(choice, service, folder / name / "checkpoints", Keys())
    store = RunStore.create(folder / name, resolved_config(plan, choice, {}))
    store.record_start(data_manifest(plan), dropped_rows(plan), plan.config_hash)
    progress = Progress(verbose=False)
    with contextlib.redirect_stderr(io.StringIO()):
        asyncio.run(train_on_service(plan, store, progress, place))
    store.close()
    return store


def outcome_of(store: RunStore, threshold: float, wrong_ids: frozenset[str]) -> Outcome:
    """Read when a run reached the threshold, and which rows it suspected by then."""
    scores = {number: score for number, score in store.scores().items() if number > 0}
    reached = min((n for n, score in scores.items() if score >= threshold), default=None)
    last = max(scores) if reached is None else reached
    trained = sum(e["num_tokens"] for e in store.events("step") if e["round"] <= last)
    measured = sum(
        e["num_prompt_tokens"] for e in store.events("losses_measured") if e["round"] <= last
    )
    selections = [one for number in range(1, last + 1) if (one := store.selection(number))]
    drawn = [pick for one in selections for pick in one.picks if pick.source == "pool"]
    wrong_share = sum(pick.example_id in wrong_ids for pick in drawn) / max(1, len(drawn))
    suspects = set(selections[-1].suspects)
    return Outcome(
        trained,
        reached is not None,
        measured,
        max(scores.values()),
        wrong_share,
        len(suspects),
        len(suspects & wrong_ids),
    )


def write_world(name: str, weak_share: float, seed: int, folder: Path) -> frozenset[str]:
    """Write a world's files, and return the ids of the rows with wrong answers; `demo` is the
    demo's own data."""
    if name != "demo":
        world = make_world(name, weak_share, seed)
        world.write(folder)
        wrong = {asking.format(one) for one in world.wrong for asking in ("{}", *REWORDINGS)}
        rows = load_examples([Source("pool", folder / "pool.jsonl")]).examples
        return frozenset(row.id for row in rows if row.messages[0].content in wrong)
    folder.mkdir(parents=True)
    files = {
        "train": REPO / "demo_data.jsonl",
        "pool": REPO / "demo_pool.jsonl",
        "clean_pool": REPO / "demo_pool.jsonl",
        "dev": REPO / "evals" / "simple_qa.jsonl",
    }
    for target, source in files.items():
        (folder / f"{target}.jsonl").write_bytes(source.read_bytes())
    return frozenset()


def ceiling(service: local_tinker.Service, folder: Path, seed: int) -> float:
    """What the whole clean pool reaches in as many steps: the mean of the last three rounds."""
    changes = {"train_file": "clean_pool.jsonl", "eval_threshold": 1.0, "seed": seed}
    scores = run_loop(service, folder, "clean", **changes).scores()
    return statistics.mean(scores[number] for number in sorted(scores)[-3:])


def run_arm(
    service: local_tinker.Service,
    folder: Path,
    arm: str,
    threshold: float,
    seed: int,
    wrong_ids: frozenset[str],
) -> Outcome:
    mining = {
        "no new rows": {"strategy": "uniform"},
        "clean pool": {"strategy": "uniform", "pool_file": "clean_pool.jsonl"},
    }.get(arm, {"strategy": arm, "pool_file": "pool.jsonl"})
    changes = {"mining": mining, "eval_threshold": min(1.0, threshold), "seed": seed}
    store = run_loop(service, folder, arm.replace(" ", "_"), **changes)
    return outcome_of(store, threshold, wrong_ids)


# --- numbers --------------------------------------------------------------------------------------


def bootstrap_median(values: Sequence[float]) -> tuple[float, float]:
    """A 95 % percentile interval of the median (Efron and Tibshirani 1993, section 13.3)."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(4000))
    return medians[100], medians[3899]


def table(name: str, thresholds: Sequence[float], arms: dict[str, list[Outcome]]) -> str:
    lines = [
        f"### {name}: threshold {min(thresholds):.2f} to {max(thresholds):.2f}, "
        f"{len(thresholds)} seeds",
        "",
        "| arm | tokens to threshold | reached | ratio to uniform | read to measure | best score "
        "| drawn rows with a wrong answer | suspects, wrong |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, outcomes in arms.items():
        tokens = [outcome.tokens for outcome in outcomes]
        ratio = ""
        if "uniform" in arms and arm != "uniform":
            ratios = [
                mine.tokens / other.tokens
                for mine, other in zip(outcomes, arms["uniform"], strict=True)
            ]
            low, high = bootstrap_median(ratios)
            ratio = f"{statistics.median(ratios):.2f} [{low:.2f}, {high:.2f}]"
        reached = sum(outcome.is_reached for outcome in outcomes)
        measured = statistics.median(outcome.measured_tokens for outcome in outcomes)
        best = statistics.mean(outcome.best_score for outcome in outcomes)
        wrong = statistics.mean(outcome.wrong_share for outcome in outcomes)
        counts = [
            sum(o.num_suspects for o in outcomes),
            sum(o.num_wrong_suspects for o in outcomes),
        ]
        suspects = f"{counts[0]}, {counts[1]}" if counts[0] else ""
        lines.append(
            f"| {arm} | {statistics.median(tokens):,.0f} | {reached} of {len(outcomes)} | {ratio} "
            f"| {measured:,.0f} | {best:.2f} | {wrong:.0%} | {suspects} |"
        )
    return "\n".join([*lines, ""])


def study(
    service: local_tinker.Service,
    scratch: Path,
    name: str,
    weak_share: float,
    arm_names: Sequence[str],
    seeds: Sequence[int],
) -> tuple[list[float], dict[str, list[Outcome]]]:
    """The threshold of each seed and what each arm came to in it."""
    thresholds: list[float] = []
    arms: dict[str, list[Outcome]] = {arm: [] for arm in arm_names}
    for seed in seeds:
        folder = scratch / f"{name}-{weak_share}-{seed}"
        wrong_ids = write_world(name, weak_share, seed, folder)
        threshold = REACHED_SHARE * ceiling(service, folder, seed)
        thresholds.append(threshold)
        for arm, outcomes in arms.items():
            outcomes.append(run_arm(service, folder, arm, threshold, seed, wrong_ids))
        shutil.rmtree(folder)
        print(f"{name}, {weak_share:.0%} weak, seed {seed}", file=sys.stderr)
    return thresholds, arms


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare mining strategies.")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--worlds", nargs="*", default=["demo", *NAMES])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--skews", nargs="*", default=[], help="worlds with other shares too")
    parser.add_argument("--json", type=Path, help="write every outcome here")
    args = parser.parse_args()
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    parts = [(name, WEAK_SHARES[0], args.arms, seeds) for name in args.worlds]
    few = seeds[:MAX_SKEW_SEEDS]
    parts += [(name, share, SKEW_ARMS, few) for name in args.skews for share in WEAK_SHARES[1:]]
    start, kept = time.perf_counter(), []
    with local_tinker.start() as service, tempfile.TemporaryDirectory() as scratch:
        service.serve_model(MODEL, MODEL)
        for name, share, arm_names, of_part in parts:
            title = name if name == "demo" else f"{name}, {share:.0%} weak"
            found = study(service, Path(scratch), name, share, arm_names, of_part)
            print(table(title, *found), flush=True)
            kept += [
                {"world": title, "seed": seed, "arm": arm, "threshold": limit, **one._asdict()}
                for arm, outcomes in found[1].items()
                for seed, limit, one in zip(of_part, found[0], outcomes, strict=True)
            ]
            if args.json is not None:
                args.json.write_text(json.dumps(kept, indent=1))
            minutes = (time.perf_counter() - start) / 60
            print(f"{title}: done after {minutes:.0f} minutes", file=sys.stderr)
    print(f"{(time.perf_counter() - start) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
