"""What studies promise, measured on real trials of the demo model.

    .venv/bin/python benchmarks/studies.py effect      # planted effects found, planted nulls not
    .venv/bin/python benchmarks/studies.py halving     # the best arm named, with what tokens
    .venv/bin/python benchmarks/studies.py ranks       # rank 1 against 32, each at its best rate
    .venv/bin/python benchmarks/studies.py overhead    # one process against one for each trial
    .venv/bin/python benchmarks/studies.py hundred     # 100 trials at once, and Ctrl-C amid them

Each prints a Markdown table and a line that says whether its target is reached. Everything lies in
temporary folders. Rows, questions, seeds and where the best arm stands are drawn by --seed.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import study_processes
import study_service
from study_folders import Facts, Outcome, Row, draw_facts, run_study, write_rows, write_study

NUM_ROWS = 320  # 40 steps of 8
NUM_QUESTIONS = 60
EFFECT = ("steps_per_round=1", "steps_per_round=40")
NULL = ("dataset=a.jsonl", "dataset=b.jsonl")
NULL_STEPS = 20  # half of the rows, another half in another order
MIN_FOUND, MAX_FALSE = 0.8, 0.15  # of the repetitions

NUM_ARMS = 8
NUM_ROUNDS = 8
HALVING_QUESTIONS = 40
WRONG_SHARES = (0.0, 0.6, 0.65, 0.7, 0.8, 0.85, 0.9, 1.0)
MIN_RIGHT, MAX_TOKENS = 0.9, 0.45

RANKS, RATES = (1, 32), (0.001, 0.003, 0.01)
NUM_SEEDS = 3


def repetitions(args: argparse.Namespace, what: str) -> Iterator[tuple[random.Random, Path]]:
    """For each repetition its own generator and an empty folder, with nobody else's beside it."""
    for number in range(args.repetitions):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "study"
            folder.mkdir()
            began = time.monotonic()
            yield random.Random(f"{args.seed} {what} {number}"), folder
            seconds = time.monotonic() - began
            print(f"{what} {number + 1} of {args.repetitions}: {seconds:.0f} s", file=sys.stderr)


def verdict(target: str, *, is_reached: bool) -> int:
    """Print whether a target is reached; the exit code."""
    print(f"\nTarget ({target}): {'reached' if is_reached else 'MISSED'}.")
    return 0 if is_reached else 1


# --- effect: told apart where there is an effect, and not where there is none ---------------------


class Told(NamedTuple):
    """The two arms of one study: their scores, and how they were compared."""

    scores: tuple[float, float]
    deviations: tuple[float, float]  # between seeds
    mean: float
    low: float
    high: float
    p_holm: float
    is_apart: bool


def effect(args: argparse.Namespace) -> int:
    began = time.monotonic()
    found = [compared(rng, folder, EFFECT) for rng, folder in repetitions(args, "effect")]
    null = [compared(rng, folder, NULL) for rng, folder in repetitions(args, "null")]
    print("| planted | repetition | scores | second less first | p by Holm | told apart |")
    print("|---|---|---|---|---|---|")
    for what, those in (("effect", found), ("null", null)):
        for number, one in enumerate(those):
            scores = " and ".join(f"{score:.3f}" for score in one.scores)
            interval = f"{one.mean:+.3f} [{one.low:+.3f}, {one.high:+.3f}]"
            apart = "yes" if one.is_apart else "no"
            print(f"| {what} | {number} | {scores} | {interval} | {one.p_holm:.2g} | {apart} |")
    num_found = sum(one.is_apart and one.mean > 0 for one in found)
    num_false = sum(one.is_apart for one in null)
    covered = sum(one.low <= 0 <= one.high for one in null)
    deviation = statistics.mean(d for one in null for d in one.deviations)
    num = args.repetitions
    print(
        f"\nEffect found in {num_found} of {num}, null told apart in {num_false} of {num} (the "
        f"interval holds 0 in {covered}); seeds of one setting deviate by {deviation:.3f}. "
        f"{(time.monotonic() - began) / 60:.1f} min."
    )
    return verdict(
        f"the effect in {MIN_FOUND:.0%}, the null in at most {MAX_FALSE:.0%}",
        is_reached=num_found >= MIN_FOUND * num and num_false <= MAX_FALSE * num,
    )


def compared(rng: random.Random, folder: Path, arms: tuple[str, str]) -> Told:
    """Run a study of two arms: other numbers of steps, or the same rows in another order."""
    facts = draw_facts(rng, NUM_ROWS, NUM_QUESTIONS)
    write_rows(folder / "questions.jsonl", facts.questions)
    write_rows(folder / "a.jsonl", facts.rows)
    write_rows(folder / "b.jsonl", rng.sample(facts.rows, len(facts.rows)))
    controls = {"seed": rng.randrange(1_000_000)}
    if arms == EFFECT:
        variables, controls = {"steps_per_round": [1, 40]}, {**controls, "dataset": "a.jsonl"}
    else:
        variables = {"dataset": ["a.jsonl", "b.jsonl"]}
        controls = {**controls, "steps_per_round": NULL_STEPS}
    write_study(folder, variables, controls, {"seeds": NUM_SEEDS})
    return told(run_study(folder), arms)


def told(outcome: Outcome, arms: tuple[str, str]) -> Told:
    """How the second arm compares to the first, as the study's report tells it."""
    by_name = {arm.name: arm for arm in outcome.findings.arms}
    first, second = (by_name[name] for name in arms)
    pair = outcome.pair(second.name, first.name)
    assert pair is not None and pair.interval is not None and pair.p_holm is not None
    return Told(
        (first.score, second.score),
        (first.seed_deviation or 0.0, second.seed_deviation or 0.0),
        pair.mean,
        *pair.interval,
        pair.p_holm,
        pair.is_told_apart,
    )


# --- halving: the best arm is named, for fewer tokens ---------------------------------------------


class Halved(NamedTuple):
    """One halved study: where the planted arm stands, the arm that was named, and the rounds and
    tokens of the trials."""

    planted: str
    named: str
    scores: list[float]  # of each arm, after its last round
    num_rounds: list[int]
    tokens: int
    whole: float  # tokens of all to the end: what a round took that an arm did not have is the mean
    # of the arms that had it
    whole_by_own: float  # the same, by the mean of the arm's own rounds


def halving(args: argparse.Namespace) -> int:
    began, halved = time.monotonic(), []
    measured = 0
    for number, (rng, folder) in enumerate(repetitions(args, "halving")):
        planted = plant_arms(rng, folder)
        halved.append(halve(folder, planted))
        if number == 0:
            measured = to_the_end(folder)
    print("| planted | named | rounds of each arm | scores | tokens | share of all to the end |")
    print("|---|---|---|---|---|---|")
    for one in halved:
        rounds = " ".join(str(number) for number in one.num_rounds)
        scores = " ".join(f"{score:.2f}" for score in one.scores)
        share = one.tokens / one.whole
        names = f"{one.planted} | {one.named}"
        print(f"| {names} | {rounds} | {scores} | {one.tokens:,} | {share:.3f} |")
    first = halved[0]
    print(
        f"\nRepetition 0 to the end without stop: {measured:,} tokens; estimated from the halved "
        f"study {first.whole:,.0f} ({first.whole / measured:.3f} of it) by what each round took, "
        f"{first.whole_by_own:,.0f} ({first.whole_by_own / measured:.3f}) by each arm's own mean."
    )
    num_right = sum(one.named == one.planted for one in halved)
    total = sum(one.tokens for one in halved)
    share = total / sum(one.whole for one in halved)
    print(
        f"Named right in {num_right} of {len(halved)} with {share:.3f} of the tokens "
        f"({max(one.tokens / one.whole for one in halved):.3f} at most in one study; "
        f"{first.tokens / measured:.3f} of the measured ones in repetition 0). "
        f"{(time.monotonic() - began) / 60:.1f} min."
    )
    return verdict(
        f"the planted arm in {MIN_RIGHT:.0%}, with at most {MAX_TOKENS} of the tokens",
        is_reached=num_right >= MIN_RIGHT * len(halved) and share <= MAX_TOKENS,
    )


def plant_arms(rng: random.Random, folder: Path) -> str:
    """Write the files of all arms and a study of them; the arm whose answers are right."""
    facts = draw_facts(rng, NUM_ROWS, HALVING_QUESTIONS)
    write_rows(folder / "questions.jsonl", facts.questions)
    shares = rng.sample(WRONG_SHARES, NUM_ARMS)
    for number, share in enumerate(shares):
        write_rows(folder / f"arm_{number}.jsonl", with_wrong_answers(rng, facts, share))
    write_halving(folder, {"stop": "halving"}, rng.randrange(1_000_000))
    return f"dataset=arm_{shares.index(0.0)}.jsonl"


def write_halving(folder: Path, of_study: dict[str, str], seed: int) -> None:
    files = [f"arm_{number}.jsonl" for number in range(NUM_ARMS)]
    controls = {"max_rounds": NUM_ROUNDS, "steps_per_round": 5, "seed": seed}
    controls |= {"evaluation.max_tokens": 8}
    write_study(folder, {"dataset": files}, controls, of_study)


def with_wrong_answers(rng: random.Random, facts: Facts, share: float) -> list[Row]:
    """The rows, so many of them with the answer of another row of their topic."""
    by_topic: dict[str, list[str]] = {}
    for row in facts.rows:
        by_topic.setdefault(row["topic"], []).append(row["output"])
    spoilt = set(rng.sample(range(len(facts.rows)), round(share * len(facts.rows))))
    rows = []
    for number, row in enumerate(facts.rows):
        others = [answer for answer in by_topic[row["topic"]] if answer != row["output"]]
        rows.append({**row, "output": rng.choice(others)} if number in spoilt else row)
    return rows


def halve(folder: Path, planted: str) -> Halved:
    outcome = run_study(folder)
    trials = [one for arm in outcome.trials.arms for one in arm.trials]
    named = next(
        arm.name
        for arm in outcome.trials.arms
        if any(one.run_id == outcome.trials.winner for one in arm.trials)
    )
    # By trial, the tokens of each of its rounds; the baseline is nothing where another paid for it.
    used = []
    for one in trials:
        store = outcome.store(one.run_id)
        used.append([store.usage(number).tokens for number in range(len(store.results()))])
    assert sum(map(sum, used)) == outcome.tokens, "all is used in a round"
    of_round = [
        statistics.mean(rounds[number] for rounds in used if number < len(rounds))
        for number in range(NUM_ROUNDS + 1)
    ]
    return Halved(
        planted,
        named,
        [0.0 if one.result is None else one.result.score for one in trials],
        [len(rounds) - 1 for rounds in used],
        outcome.tokens,
        sum(sum(rounds) + sum(of_round[len(rounds) :]) for rounds in used),
        sum(rounds[0] + statistics.mean(rounds[1:]) * NUM_ROUNDS for rounds in used),
    )


def to_the_end(folder: Path) -> int:
    """The tokens of the same study without `stop`, beside nothing that was measured before."""
    told = json.loads((folder / "experiment.yaml").read_text())
    del told["study"]["stop"]
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "study"
        left_out = shutil.ignore_patterns("results", "configs", "eval_results", "report.*")
        shutil.copytree(folder, whole, ignore=left_out)
        (whole / "experiment.yaml").write_text(json.dumps(told))
        return run_study(whole).tokens


# --- ranks: each at its own best rate -------------------------------------------------------------


def ranks(args: argparse.Namespace) -> int:
    rng = random.Random(f"{args.seed} ranks")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "study"
        folder.mkdir()
        facts = draw_facts(rng, NUM_ROWS, args.questions)
        write_rows(folder / "questions.jsonl", facts.questions)
        write_rows(folder / "train.jsonl", facts.rows)
        variables = {"lora_rank": RANKS, "learning_rate": RATES}
        controls = {"dataset": "train.jsonl", "steps_per_round": 40, "seed": rng.randrange(10**6)}
        write_study(folder, variables, controls, {"seeds": NUM_SEEDS})
        outcome = run_study(folder)
    print("| arm | score | interval | deviation of seeds | parameters | tokens |")
    print("|---|---|---|---|---|---|")
    for arm in outcome.findings.arms:
        interval = arm.interval and f"[{arm.interval.low:.3f}, {arm.interval.high:.3f}]"
        deviation = "" if arm.seed_deviation is None else f"{arm.seed_deviation:.3f}"
        numbers = f"{arm.score:.3f} | {interval or ''} | {deviation} | {arm.num_lora_params or ''}"
        print(f"| {arm.name} | {numbers} | {arm.num_tokens:,} |")
    best = [
        next(arm.name for arm in outcome.findings.arms if arm.name.startswith(f"lora_rank={rank},"))
        for rank in RANKS
    ]
    pair = outcome.pair(best[1], best[0])
    assert pair is not None and pair.interval is not None and pair.p_value is not None
    print(
        f"\n{best[1]} less {best[0]}: {pair.mean:+.4f} [{pair.interval.low:+.4f}, "
        f"{pair.interval.high:+.4f}], p = {pair.p_value:.2g}, by Holm among all "
        f"{len(outcome.findings.pairs)} pairs {pair.p_holm:.2g}, {pair.n} questions, "
        f"{pair.num_seeds} seeds. Each rank's best rate is chosen on the same questions, which "
        "makes both scores a little too high. No target."
    )
    return 0


# --- the command line -----------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, do: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        one = commands.add_parser(name)
        one.add_argument("--seed", type=int, default=1)
        one.set_defaults(do=do)
        return one

    for name, do in (("effect", effect), ("halving", halving)):
        command(name, do).add_argument("--repetitions", type=int, default=20)
    command("ranks", ranks).add_argument("--questions", type=int, default=NUM_QUESTIONS)
    command("overhead", study_processes.overhead).add_argument("--times", type=int, default=3)
    hundred = command("hundred", study_service.hundred)
    hundred.add_argument("--trials", type=int, default=100)
    hundred.add_argument("--delay-ms", type=float, default=50.0)
    args = parser.parse_args(argv)
    return args.do(args)


if __name__ == "__main__":
    sys.exit(main())
