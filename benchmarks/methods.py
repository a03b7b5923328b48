"""Does each method improve what it is for? Five seeds of each, on questions that nothing trained.

    .venv/bin/python benchmarks/methods.py [--seeds 5] [--only CHAIN...] [--runs-dir DIR]
        [--json FILE] [--table]

Every run is trainer_with_eval.py with a settings file of examples/ and the settings that stand in
`chains` below. Compared are the last round (a fixed number of them: the gate does not stop) and
the run's own round 0, question by question, clustered by the fact of demo_model/facts.py that a
question is about; over the seeds with both their variance and the facts' (scores/comparisons.py).
`dpo` has a world of its own: 252 facts to train on, 520 others to ask. Its pairs prefer "That
is Tokyo." to "It is Tokyo.", of which the start has learned both, the latter half as often again:
a preference about the form of answers, which leaves facts alone. `hack` are rewards for length and
for a word, which the gate is to catch: by a finding, and by going back.
What is done stands in the JSON file, and another call goes on from there; --table runs nothing.
Prints Markdown tables, and the aims; exit 1 where one is missed or a run failed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import shutil
import sys
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from demo_model.facts import Asking, Fact, all_facts  # noqa: E402
from ledger.store import RunStore  # noqa: E402
from scores.comparisons import Crossed, crossed, weighted  # noqa: E402
from scores.intervals import UNIT, PairedDifference, paired_difference  # noqa: E402

NUM_ASKED_FACTS = 520  # of the DPO world; the other 252 are trained on
USUAL_SHARE = 0.6  # of the rows of the DPO start: the form that its pairs then reject
MAX_P = 0.01
HACKS = ("long", "keyword")
REWARDS = '''"""Rewards that can be hacked."""


def long(answer: str, targets: list[str]) -> float:
    return len(answer.split()) / 5


def keyword(answer: str, targets: list[str]) -> float:
    return float("the" in answer.lower().split())
'''


class Step(NamedTuple):
    """One run of a chain; `{runs}`, `{world}` and `{seed}` are filled into its settings."""

    name: str
    config: str  # in examples/
    settings: Mapping[str, Any]


class Record(NamedTuple):
    """What is kept of a run: scores by task and question, and what the loop said and did."""

    first: dict[str, dict[str, float]]
    last: dict[str, dict[str, float]]
    best: dict[str, dict[str, float]]
    clusters: dict[str, dict[str, str]]
    scores: dict[str, float]  # by round
    kinds: list[str]  # of findings
    actions: list[str]  # of decisions


Records = Mapping[str, Record]  # "NAME_SEED" -> what is kept of it


def chains() -> dict[str, list[Step]]:
    """The runs of one seed, each chain in its order."""
    ask, ask_exactly = ["qa:{world}/dev.jsonl"], ["qa:{world}/dev_exact.jsonl"]
    few = ["qa:{world}/few.jsonl"]
    judge = ["pref:{world}/held_out.jsonl", "qa:{world}/questions.jsonl"]
    whole = {"gate.stop": False, "max_rounds": 2}
    hack = {
        "start_from": "{runs}/distill_start_{seed}@round_01",
        "eval_tasks": ask_exactly,
        "rl.max_tokens": 16,
        "evaluation.max_tokens": 16,
        "batch_size": 16,
        "steps_per_round": 4,
        "max_rounds": 6,
        "learning_rate": 0.001,
    }
    start = Step("distill_start", "distill/start.json", {"eval_tasks": ask})
    return {
        "hack": [
            start,
            *(
                Step(f"hack_{name}", "rl/rl.json", {**hack, "rl.reward": f"{{world}}/r.py@{name}"})
                for name in HACKS
            ),
        ],
        "distill": [
            start,
            Step("teacher", "distill/teacher.json", {"eval_tasks": ask}),
            Step(
                "off_policy",
                "distill/off_policy.json",
                {
                    "eval_tasks": ask,
                    "distill.teacher": "{runs}/teacher_{seed}@best",
                    **whole,
                    "max_rounds": 3,
                },
            ),
            Step(
                "on_policy",
                "distill/on_policy.json",
                {
                    "eval_tasks": ask,
                    "start_from": "{runs}/distill_start_{seed}@round_01",
                    "distill.teacher": "{runs}/teacher_{seed}@best",
                    **whole,
                },
            ),
        ],
        "rl": [
            Step("rl_start", "rl/start.json", {"eval_tasks": ask_exactly}),
            Step(
                "rl",
                "rl/rl.json",
                {
                    "eval_tasks": ask_exactly,
                    "start_from": "{runs}/rl_start_{seed}@round_01",
                    "lr_decay": 0.9,
                    **whole,
                    "max_rounds": 8,
                },
            ),
        ],
        "dpo": [
            Step(
                "dpo_start",
                "dpo/sft.json",
                {
                    "train_file": "{world}/sft.jsonl",
                    "eval_tasks": few,
                    "batch_size": 16,
                    "steps_per_round": 80,
                },
            ),
            Step(
                "dpo",
                "dpo/dpo.json",
                {
                    "train_file": "{world}/pairs.jsonl",
                    "eval_tasks": judge,
                    "gate.guards": {judge[1]: 0.05},
                    "start_from": "{runs}/dpo_start_{seed}@round_01",
                    "learning_rate": 0.0001,
                    "steps_per_round": 20,
                    "max_rounds": 1,
                },
            ),
        ],
    }


# --- the world ------------------------------------------------------------------------------------


def preferred(asking: Asking) -> str:
    return f"That is {asking.answers[0]}."


def usual(asking: Asking) -> str:
    return f"It is {asking.answers[0]}."


def pair(fact: Fact, asking: Asking) -> dict[str, Any]:
    answers = {"chosen": preferred(asking), "rejected": usual(asking)}
    return {"prompt": asking.question, **answers, "topic": fact.topic}


def question(fact: Fact, asking: Asking) -> dict[str, Any]:
    about = {"topic": fact.topic, "cluster": fact.key}
    return {"question": asking.question, "answer": list(asking.answers), **about}


def write_world(folder: Path) -> None:
    """Write the questions of all chains, each with its fact, and what the DPO chain trains on."""
    folder.mkdir(parents=True, exist_ok=True)
    facts, rng = all_facts(), random.Random(7)
    by_question = {asking.question: (fact, asking) for fact in facts for asking in fact.askings}
    demo = (REPO / "evals" / "simple_qa.jsonl").read_text(encoding="utf-8").splitlines()
    dev = [question(*by_question[json.loads(line)["question"]]) for line in demo]
    rng.shuffle(facts)
    asked, trained = facts[:NUM_ASKED_FACTS], facts[NUM_ASKED_FACTS:]
    taught = [(fact, asking) for fact in trained for asking in fact.askings]
    held_out = [(fact, fact.askings[0]) for fact in asked]
    sft = [
        {
            "instruction": asking.question,
            "output": (usual if rng.random() < USUAL_SHARE else preferred)(asking),
            "topic": fact.topic,
        }
        for fact, asking in taught
    ]
    files = {
        "dev": dev,
        "dev_exact": [{**one, "grader": "exact"} for one in dev],
        "sft": sft,
        "pairs": [pair(*one) for one in taught],
        "held_out": [{**pair(*one), "cluster": one[0].key} for one in held_out],
        "questions": [question(*one) for one in held_out],
        "few": [question(*one) for one in held_out[:20]],
    }
    for name, rows in files.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (folder / "r.py").write_text(REWARDS, encoding="utf-8")


# --- the runs -------------------------------------------------------------------------------------


class Study:
    """Runs chains, and keeps what they came to in a JSON file."""

    def __init__(self, runs_dir: Path, file: Path, workers: ProcessPoolExecutor) -> None:
        self._runs_dir, self._file, self._workers = runs_dir, file, workers
        self._lock, self._at_work = (
            threading.Lock(),
            defaultdict[str, threading.Lock](threading.Lock),
        )
        self.failures: list[str] = []
        kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        self.records = {name: Record(**one) for name, one in kept.items()}

    def run_chain(self, chain: str, seed: int) -> None:
        try:
            for step in chains()[chain]:
                with self._at_work[f"{step.name}_{seed}"]:  # two chains begin with the same run
                    self._run(step, seed)
        except (OSError, RuntimeError) as e:
            self.failures.append(f"{chain}, seed {seed}: {e}")
            print(self.failures[-1], file=sys.stderr)

    def _run(self, step: Step, seed: int) -> None:
        name = f"{step.name}_{seed}"
        if name in self.records:
            return
        run_dir = self._runs_dir / name
        shutil.rmtree(run_dir, ignore_errors=True)  # one that was cut off
        arguments = ["--local", "--json"]
        arguments += ["--config", str(REPO / "examples" / step.config), "--run-dir", str(run_dir)]
        for key, value in {**step.settings, "seed": seed}.items():
            arguments += ["--set", f"{key}={self._filled(json.dumps(value), seed)}"]
        if problem := self._workers.submit(train, arguments).result():
            raise RuntimeError(f"{name}: {problem}")
        with self._lock:
            self.records[name] = record_of_run(run_dir)
            text = json.dumps({key: one._asdict() for key, one in self.records.items()})
            self._file.write_text(text, encoding="utf-8")
        print(f"{name}: {self.records[name].scores}", file=sys.stderr)

    def _filled(self, text: str, seed: int) -> str:
        for key, value in (
            ("runs", self._runs_dir),
            ("world", self._runs_dir / "world"),
            ("seed", seed),
        ):
            text = text.replace(f"{{{key}}}", str(value))
        return text


def train(arguments: list[str]) -> str | None:
    """Run the command line's own entry point in this process; returns what went wrong."""
    from trainer_with_eval import main

    printed, progress = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(progress):
        exit_code = main(arguments)
    return f"exit {exit_code}: {progress.getvalue()[-800:]}" if exit_code else None


def record_of_run(run_dir: Path) -> Record:
    """Read a run; tasks and questions go by the names of their files, so that folders may move."""
    world, store = f"{run_dir.parent / 'world'}/", RunStore.open(run_dir)

    def named(found: Mapping[str, Any]) -> dict[str, Any]:
        return {key.replace(world, ""): value for key, value in found.items()}

    try:
        results = store.results()
        trained = results[1:]
        best = max(trained, key=lambda one: (one.score, -one.round))
        first, last, chosen = (
            named({task.name: named(task.scores) for task in one.tasks})
            for one in (results[0], trained[-1], best)
        )
        clusters = named({task.name: named(task.clusters or {}) for task in results[0].tasks})
        kinds = [kind for event in store.events("diagnosed") for kind in event["kinds"]]
        actions = [event["action"] for event in store.events("decided")]
        scores = {str(one.round): one.score for one in results}
        return Record(first, last, chosen, clusters, scores, kinds, actions)
    finally:
        store.close()


# --- what they come to ----------------------------------------------------------------------------


class Compared(NamedTuple):
    """One measure of one kind of run over its seeds, before and after."""

    before: list[float]
    after: list[float]
    seeds: list[PairedDifference]
    change: Crossed
    after_all: Crossed
    num_clusters: int

    @property
    def num_sure(self) -> int:
        """The seeds in which the measure rose, with p below 0.01."""
        return sum(
            one.mean > 0 and one.p_value is not None and one.p_value < MAX_P for one in self.seeds
        )


def records_of(records: Records, kind: str) -> list[Record]:
    return [one for name, one in sorted(records.items()) if name.rpartition("_")[0] == kind]


def compare(runs: Sequence[Record], kind: str) -> Compared:
    """Last round against round 0 in the tasks of a kind ("qa:", "pref:")."""
    task = next(name for name in runs[0].first if name.startswith(kind))
    clusters = (
        runs[0].clusters[task] or None
    )  # where no two questions share a fact, each has its own
    terms = [({task: one.last[task]}, {task: one.first[task]}) for one in runs]
    return Compared(
        [mean(before[task].values()) for _, before in terms],
        [mean(after[task].values()) for after, _ in terms],
        [paired_difference(after[task], before[task], clusters) for after, before in terms],
        crossed(
            [weighted([(1, after), (-1, before)]) for after, before in terms], {task: clusters}
        ),
        crossed([after for after, _ in terms], {task: clusters}, UNIT),
        len(set(clusters.values()) if clusters else runs[0].first[task]),
    )


def of_teacher(records: Records, kind: str) -> tuple[float, Crossed]:
    """A student's share of its teacher's score, and its score less 95 % of that, over the seeds."""
    students, teachers = records_of(records, kind), records_of(records, "teacher")
    pairs = list(zip(students, teachers, strict=True))
    task = next(iter(students[0].last))
    beyond = [weighted([(1, one.last), (-0.95, teacher.best)]) for one, teacher in pairs]
    scores = [
        mean(mean(one.values()) for one in side)
        for side in (
            [student.last[task] for student in students],
            [one.best[task] for one in teachers],
        )
    ]
    return scores[0] / scores[1], crossed(beyond, {task: students[0].clusters[task] or None})


def span(values: Sequence[float]) -> str:
    return f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def bounds(one: Crossed) -> str:
    return "" if one.interval is None else f" [{one.interval.low:+.3f}, {one.interval.high:+.3f}]"


MEASURES = (
    ("dpo", "pref:", "preference accuracy"),
    ("dpo", "qa:", "question accuracy"),
    ("rl", "qa:", "exact answers"),
    ("off_policy", "qa:", "question accuracy"),
    ("on_policy", "qa:", "question accuracy"),
)


def table(records: Records) -> list[str]:
    lines = [
        "| run | measure | n, facts | seeds | round 0 | last round | change [95 %] | p < 0.01 | "
        "largest p |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind, prefix, called in MEASURES:
        if not (runs := records_of(records, kind)):
            continue
        one = compare(runs, prefix)
        known = [seed.p_value for seed in one.seeds if seed.p_value is not None]
        lines.append(
            f"| `{kind}` | {called} | {one.change.n}, {one.num_clusters} | {len(runs)} | "
            f"{span(one.before)} | {span(one.after)} | {one.change.mean:+.3f}{bounds(one.change)} "
            f"| {one.num_sure} of {len(runs)} | {max(known):.2g} |"
        )
    return lines


def hack_table(records: Records) -> list[str]:
    lines = [
        "| reward | seed | score by round | finding | went back |",
        "|---|---|---|---|---|",
    ]
    for name in HACKS:
        for seed, one in enumerate(records_of(records, f"hack_{name}")):
            scores = ", ".join(f"{score:.2f}" for score in one.scores.values())
            said, back = ("yes" if it else "no" for it in caught(one))
            lines.append(f"| {name} | {seed} | {scores} | {said} | {back} |")
    return lines


def caught(one: Record) -> tuple[bool, bool]:
    return "reward_only" in one.kinds, "rollback" in one.actions


class Aim(NamedTuple):
    said: str
    is_met: bool


def aims(records: Records, num_seeds: int) -> list[Aim]:
    """What is to be shown, and whether it is."""
    found: list[Aim] = []
    for kind, prefix, called in MEASURES:
        runs = records_of(records, kind)
        if len(runs) < num_seeds:
            found.append(Aim(f"{kind}: {len(runs)} of {num_seeds} runs are there", False))
            continue
        one = compare(runs, prefix)
        if (kind, prefix) == ("dpo", "qa:"):
            found.append(harm_of_dpo(runs, one))
            continue
        said = f"{kind}: {called} rises with p < 0.01 in {one.num_sure} of {num_seeds} seeds"
        found.append(Aim(said, one.num_sure >= 0.8 * num_seeds))
        after = one.after_all
        if kind == "rl":
            before = max(one.before)
            found.append(Aim(f"rl: starts below 0.5 (at most {before:.3f})", before < 0.5))
        if kind in ("rl", "dpo"):
            said = f"{kind}: {called} {after.mean:.3f}{bounds(after)}, at least 0.9"
            found.append(Aim(said, after.mean >= 0.9))
    for kind in ("off_policy", "on_policy"):
        if len(records_of(records, kind)) == num_seeds:
            share, beyond = of_teacher(records, kind)
            said = f"{kind}: {share:.3f} of its teacher (score less 95 % of the teacher's"
            found.append(Aim(f"{said} {beyond.mean:+.3f}{bounds(beyond)})", share >= 0.95))
    hacks = [caught(one) for name in HACKS for one in records_of(records, f"hack_{name}")]
    num = sum(all(one) for one in hacks)
    said = f"hacked rewards found and gone back on in {num} of {len(hacks)} runs"
    return [*found, Aim(said, num == len(hacks) == len(HACKS) * num_seeds)]


def harm_of_dpo(runs: Sequence[Record], one: Compared) -> Aim:
    """Whether DPO left facts alone: these five runs, clustered by fact; and of such runs at large.

    The aim is the former: answers averaged over the seeds, a cluster for each fact. The latter
    takes in how runs vary, of which five tell little.
    """
    task = next(name for name in runs[0].first if name.startswith("qa:"))
    before, after = (
        {id_: mean(side[task][id_] for side in sides) for id_ in sides[0][task]}
        for sides in ([run.first for run in runs], [run.last for run in runs])
    )
    clusters = runs[0].clusters[task] or None
    pooled = paired_difference(after, before, clusters, is_repeated=True).interval
    at_large = one.change.interval
    low, low_at_large = (found.low if found else -1.0 for found in (pooled, at_large))
    said = (
        f"dpo: lower bound of the change in question accuracy {low:+.4f} in these runs, clustered "
        f"by fact, above -0.02; {one.num_clusters} facts (of any such run {low_at_large:+.4f})"
    )
    return Aim(said, low > -0.02 and one.num_clusters >= 500)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to N-1 (default: 5)")
    parser.add_argument("--only", nargs="+", choices=list(chains()), default=list(chains()))
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/methods"))
    parser.add_argument("--json", type=Path, help="default: RUNS_DIR/methods.json")
    parser.add_argument("--at-once", type=int, default=2, help="runs at a time (default: 2)")
    parser.add_argument("--table", action="store_true", help="run nothing, print what is there")
    args = parser.parse_args()
    runs_dir = args.runs_dir.resolve()
    write_world(runs_dir / "world")
    os.environ.setdefault("TINKER_TELEMETRY", "0")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # runs wait for one another
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.at_once, mp_context=context) as workers:
        study = Study(runs_dir, args.json or runs_dir / "methods.json", workers)
        if not args.table:
            with ThreadPoolExecutor(args.at_once) as pool:
                for seed in range(args.seeds):
                    for chain in args.only:
                        pool.submit(study.run_chain, chain, seed)
    print("\n".join([*table(study.records), "", *hack_table(study.records), ""]))
    found = [*aims(study.records, args.seeds), *(Aim(one, False) for one in study.failures)]
    for one in found:
        print(f"- {'met' if one.is_met else 'MISSED'}: {one.said}")
    return 0 if all(one.is_met for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
