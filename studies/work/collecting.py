"""From the run directories and the record of a study to what its trials came to."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from config_schema import TrainingConfig
from ledger.records import Usage
from ledger.run_directory import is_absent_or_empty
from ledger.store import RunStore
from loop.planning.plan import cost_usd
from scores.decision import ROUNDING
from scores.intervals import mean
from scores.results import EvalResult
from settings.groups import PriceTable
from studies.design.arms import ArmFiles
from studies.design.checking import has_ended, state_of
from studies.design.experiment import FILE_NAME, Study
from studies.design.generating import Generation, TrialFiles
from studies.design.moved_files import moved_name
from studies.findings.outcome import (
    ArmOutcome,
    Change,
    CurvePoint,
    StudyOutcome,
    TrialOutcome,
    TrialStatus,
)
from studies.work.from_trials import lost_rows, warnings_said
from studies.work.hindsight import gate_words
from studies.work.record import StudyRecord

NOT_DONE = "No winner is named before every trial is done."


def outcome_of(generation: Generation, record: StudyRecord) -> StudyOutcome:
    """Everything that the report of a study is made from. Raises `LoopError` for a run directory
    that cannot be read."""
    study = generation.study
    states = {one.run_id: one.why_not_used for one in state_of(generation).trials}
    stale = {run_id: why for run_id, why in states.items() if why is not None}
    stores = {
        one.trial.run_id: RunStore.open(one.run_dir)
        for one in generation.trials
        if not is_absent_or_empty(one.run_dir)
    }
    used = {run_id: store for run_id, store in stores.items() if run_id not in stale}
    trained = _trained_arms(generation, record, stale, used)
    arms = [*(_arm_outcome(study, arm) for arm in generation.arms), *trained]
    # By the trials that there are now: those of the last run may have been others.
    winner, sealed = choose_winner(arms), _sealed(stores)
    return StudyOutcome(
        name=study.name,
        question=study.experiment.experiment.question,
        hypothesis=study.experiment.experiment.hypothesis,
        expects=study.experiment.study.expects,
        variables=study.experiment.variables,
        seeds=study.experiment.study.seeds,
        arms=arms,
        task_names=_task_names(generation),
        checkpoint=study.experiment.evaluation.checkpoint,
        # That of alpha is told of every study of ranks, whether or not it is written down.
        warnings=[
            *(one for one in generation.warnings if not one.startswith("lora_alpha is")),
            *_other_models(generation, used),
        ],
        from_trials=_from_trials(generation, used),
        history=[
            Change(event["time"], sentence)
            for event in record.events("opened")
            for sentence in event["changes"]
        ],
        winner=None if winner is None or winner.trial is None else winner.trial.run_id,
        winner_sentence=NOT_DONE if winner is None else winner.sentence,
        has_sealed_test=has_sealed_test(generation),
        sealed=None if sealed is None else sealed[1],
        sealed_of=None if sealed is None else sealed[0],
        budget_sentence=_budget_sentence(record),
        gate=gate_words([one.train_text for one in generation.trials]),
        experiment_sha256=generation.inputs[FILE_NAME],
        logs_dir=_logs_dir(generation, arms),
    )


def arm_name(params: Mapping[str, Any]) -> str:
    """A combination of the variables in one line."""
    return ", ".join(f"{key}={_shown(value)}" for key, value in params.items())


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def trials_by_arm(generation: Generation) -> dict[str, list[TrialFiles]]:
    """The trials of each combination, one for each seed."""
    arms: dict[str, list[TrialFiles]] = defaultdict(list)
    for one in generation.trials:
        arms[arm_name(one.trial.params)].append(one)
    return dict(arms)


def dropped_runs(generation: Generation, record: StudyRecord) -> dict[str, str]:
    """By trial, why its arm was dropped; none where the study does not halve any more."""
    if generation.study.experiment.study.stop != "halving":
        return {}
    return {run_id: event["sentence"] for run_id, event in record.dropped.items()}


class Winner(NamedTuple):
    """The trial whose weights a study recommends, None for none, and why."""

    trial: TrialOutcome | None
    sentence: str


def choose_winner(arms: Sequence[ArmOutcome]) -> Winner | None:
    """The best seed of the trained arm with the highest mean score, of equals the first, if that is
    above what is not trained; None as long as a trial that was not dropped is not done."""
    candidates = [arm for arm in arms if arm.is_trained]
    done = [arm for arm in candidates if len(arm.measured) == len(arm.trials)]
    is_over = all(arm in done or arm.trials[0].status == "dropped" for arm in candidates)
    if not is_over or not done:
        return None
    best = max(done, key=_mean_score)
    untrained = {arm.name: _mean_score(arm) for arm in arms if not arm.is_trained and arm.measured}
    baselines = [one.baseline.score for one in best.trials if one.baseline is not None]
    untrained |= {"what the trials began with": mean(baselines)} if baselines else {}
    other = max(untrained, key=lambda name: untrained[name], default=None)
    score, seeds = _mean_score(best), len(best.trials)
    if other is not None and score <= untrained[other] + ROUNDING:
        return Winner(
            None,
            f"No trained arm scored above {other} ({untrained[other]:.4f}): the best of them, "
            f"{best.name}, has {score:.4f}, so no weights are recommended.",
        )
    trial = max(best.measured, key=lambda one: one.result.score if one.result else 0.0)
    of_seeds = f", the mean of {seeds} seeds, of which {trial.run_id} is the best" * (seeds > 1)
    sentence = f"The winner is {trial.run_id} ({best.name}), with {score:.4f}{of_seeds}."
    return Winner(trial, sentence)


def _mean_score(arm: ArmOutcome) -> float:
    return mean([one.result.score for one in arm.measured if one.result is not None])


# --- trials ---------------------------------------------------------------------------------------


def _trained_arms(
    generation: Generation,
    record: StudyRecord,
    stale: Mapping[str, str],
    used: Mapping[str, RunStore],
) -> list[ArmOutcome]:
    failures, dropped = record.failures, dropped_runs(generation, record)
    gates = {run_id: event.get("gate", ()) for run_id, event in record.done.items()}
    arms = []
    for name, of_arm in trials_by_arm(generation).items():
        trials = []
        of_drop = next((dropped[r] for one in of_arm if (r := one.trial.run_id) in dropped), None)
        for one in of_arm:
            run_id = one.trial.run_id
            if (why := stale.get(run_id)) is not None:
                seed = one.trial.seed
                trials.append(TrialOutcome(run_id, seed, "missing", f"what lies there is {why}"))
                continue
            failure, store = failures.get(run_id), used.get(run_id)
            if store is None:
                trials.append(_not_begun(one, of_drop, failure))
                continue
            found = _trial_outcome(generation.study, one, store, of_drop, failure)
            trials.append(replace(found, gate_sentences=gates.get(run_id, ())))
        arms.append(ArmOutcome(name, of_arm[0].trial.params, True, trials))
    return arms


def _not_begun(files: TrialFiles, of_drop: str | None, failure: str | None) -> TrialOutcome:
    run_id, seed = files.trial.run_id, files.trial.seed
    if of_drop is not None:  # a seed that was added afterwards
        return TrialOutcome(run_id, seed, "dropped", of_drop)
    status: TrialStatus = "missing" if failure is None else "failed"
    return TrialOutcome(run_id, seed, status, failure or "")


def _trial_outcome(
    study: Study, files: TrialFiles, store: RunStore, of_drop: str | None, failure: str | None
) -> TrialOutcome:
    config, seed, decision = files.config, files.trial.seed, store.last_decision()
    status: TrialStatus = "begun" if failure is None else "failed"
    why = failure or ""
    if has_ended(store, config):
        status, why = "done", ""
    elif of_drop is not None:
        status, why = "dropped", of_drop
    settled = store.settled_config()["resolved"]
    round_no = None
    if decision is not None and decision.round > 0:
        is_best = study.experiment.evaluation.checkpoint == "best"
        round_no = decision.best_round if is_best else decision.round
    checkpoint = None if round_no is None else store.checkpoint(round_no)
    used, common = _used(store), _common_usage(store)
    return TrialOutcome(
        run_id=files.trial.run_id,
        seed=config.seed if seed is None else seed,
        status=status,
        why=why,
        result=None if round_no is None else store.result(round_no),
        baseline=store.result(0),
        round_no=round_no,
        curve=_curve(store),
        learning_rate=settled["learning_rate"],
        num_steps=None if checkpoint is None else checkpoint.step,
        num_lora_params=settled.get("num_lora_params"),
        usage=used.usage,
        cost_usd=study_cost_usd(study, config, used.usage),
        in_vain=used.in_vain,
        common_usage=common,
        common_cost_usd=study_cost_usd(study, config, common),
        checkpoint=None if checkpoint is None else checkpoint.sampler_path,
        run_dir=files.run_dir.relative_to(study.folder).as_posix(),
    )


def _from_trials(generation: Generation, used: Mapping[str, RunStore]) -> list[str]:
    """What the trials that count said of their data, and warned of."""
    logs_dir = generation.study.results_dir / "logs"
    run_ids = [*(arm.run_id for arm in generation.arms), *used]
    return [
        *lost_rows(used),
        *warnings_said(logs_dir, run_ids, generation.warnings),
    ]


def _other_models(generation: Generation, used: Mapping[str, RunStore]) -> list[str]:
    """A sentence on trials that one name of a base model gave different files."""
    seen: dict[str, dict[str, str]] = defaultdict(dict)
    for one in generation.trials:
        store = used.get(one.trial.run_id)
        if store is None or not store.has_started:
            continue
        model = store.manifest().base_model
        if model is not None and model.files:
            seen[one.config.base_model].setdefault(
                json.dumps(model.files, sort_keys=True), one.trial.run_id
            )
    return [
        f"base_model {name} had other files when {', '.join(others)} began than when {first} did, "
        "so their scores are of different models: train them in another output.results_dir"
        for name, (first, *others) in ((name, tuple(of.values())) for name, of in seen.items())
        if others
    ]


class _Used(NamedTuple):
    """All that a trial has used, with what of it is in vain."""

    usage: Usage
    in_vain: Usage


def _used(store: RunStore) -> _Used:
    """As the study's budget and the trial's own report count it."""
    in_vain = store.in_vain()
    return _Used(store.usage().plus(in_vain), in_vain)


def _common_usage(store: RunStore) -> Usage:
    """What a trial's first evaluation and its sealed test used."""
    total = Usage(0, 0, 0, 0.0)
    for event in (*store.events("measured", 0), *store.events("test_measured")):
        read, sampled = event.get("num_prompt_tokens", 0), event.get("num_sampled_tokens", 0)
        total = total.plus(Usage(0, read, sampled, 0.0))
    return total


def _curve(store: RunStore) -> list[CurvePoint]:
    points, num_tokens = [], 0
    for result in store.results():
        if result.round > 0:
            num_tokens += sum(event["num_tokens"] for event in store.events("step", result.round))
        checkpoint = store.checkpoint(result.round)
        low, high = (None, None) if result.interval is None else result.interval
        step = 0 if checkpoint is None else checkpoint.step
        points.append(CurvePoint(result.round, step, num_tokens, result.score, low, high))
    return points


def study_cost_usd(study: Study, config: TrainingConfig, usage: Usage) -> float | None:
    """What tokens cost by the study's table, or else by the trial's own; None without one."""
    prices: PriceTable | None = study.experiment.study.budget.prices
    if prices is None:
        return cost_usd(config, usage)
    # The study's names start at its folder, a trial's at that of its config.
    named = prices.usd_per_million_tokens
    renamed = {moved_name(name, study.folder, study.configs_dir): named[name] for name in named}
    prices = prices.model_copy(update={"usd_per_million_tokens": renamed})
    budget = config.budget.model_copy(update={"prices": prices})
    return cost_usd(config.model_copy(update={"budget": budget}), usage)


# --- arms that are not trained, and what is of the study as a whole -------------------------------


def _arm_outcome(study: Study, arm: ArmFiles) -> ArmOutcome:
    # With neither it is the base model, which the others are compared with.
    params = {"prompt": arm.prompt, "checkpoint": arm.checkpoint}
    params = {key: value for key, value in params.items() if value is not None}
    if is_absent_or_empty(arm.run_dir):
        trial = TrialOutcome(arm.run_id, None, "missing", "")
        return ArmOutcome(arm.name, params, False, [trial])
    store = RunStore.open(arm.run_dir)
    results = store.comparable_results()
    used = _used(store)
    trial = TrialOutcome(
        run_id=arm.run_id,
        seed=None,
        status="done" if results else "begun",
        why="",
        result=results[0] if results else None,
        usage=used.usage,
        cost_usd=study_cost_usd(study, arm.config, used.usage),
        in_vain=used.in_vain,
        checkpoint=results[0].checkpoint if results else None,
    )
    return ArmOutcome(arm.name, params, False, [trial])


def _task_names(generation: Generation) -> dict[str, str]:
    """By the name that a task has in configs, the study's."""
    if not generation.trials or not generation.tasks:
        return {}
    named = generation.trials[0].config.eval_tasks
    return dict(zip(named, (task.entry.name for task in generation.tasks), strict=True))


def _logs_dir(generation: Generation, arms: Sequence[ArmOutcome]) -> str | None:
    """The folder of all Inspect logs, relative to the study's: laid out, or of trials that name
    their tasks themselves those in the run directories. None where no task has a log."""
    output = generation.study.experiment.output
    if generation.tasks:
        return output.eval_results_dir.rstrip("/")
    results = [one.result for arm in arms for one in arm.trials if one.result is not None]
    has_logs = any(task.log for result in results for task in result.tasks)
    return output.results_dir.rstrip("/") if has_logs else None


def has_sealed_test(generation: Generation) -> bool:
    return bool(generation.trials and generation.trials[0].config.evaluation.test_tasks)


def _sealed(stores: Mapping[str, RunStore]) -> tuple[str, EvalResult] | None:
    """The trial that the sealed test was opened on, and what it scored."""
    found = ((run_id, store.test_result()) for run_id, store in stores.items())
    return next(((run_id, test) for run_id, test in found if test is not None), None)


def _budget_sentence(record: StudyRecord) -> str | None:
    """Why the last `run` stopped before the end, where that was for the budget."""
    last = next(
        (e for e in reversed(list(record.events("budget_reached", "run_begun", "winner")))), None
    )
    return last["sentence"] if last is not None and last["type"] == "budget_reached" else None


def as_json(outcome: StudyOutcome, *, is_at_work: bool) -> str:
    """How a study stands, as one JSON object."""
    trials = [
        {
            "run": one.run_id,
            "arm": arm.name,
            "seed": one.seed,
            "status": one.status,
            "why": one.why,
            "round": one.round_no,
            "score": None if one.result is None else one.result.score,
            "interval": None if one.result is None else one.result.interval,
            "n": None if one.result is None else one.result.n,
            "tokens": one.usage.less(one.in_vain)._asdict(),
            "tokens_in_vain": one.in_vain._asdict(),
            "cost_usd": one.cost_usd,
            "checkpoint": one.checkpoint,
        }
        for arm in outcome.arms
        for one in arm.trials
    ]
    told = {"study": outcome.name, "is_at_work": is_at_work, "winner": outcome.winner}
    sealed = None if outcome.sealed is None else outcome.sealed.score
    return json.dumps({**told, "sealed_score": sealed, "trials": trials}, indent=1)
