"""The evaluation report of a run, `eval_report.md`: which checkpoint is recommended, and why.

It is made from the run directory and the settings alone, after the last decision.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from errors import one_line
from ledger.records import Checkpoint
from ledger.rollouts import ROLLOUTS
from ledger.store import RunStore
from loop.reports.lines import in_vain_text, money
from loop.reports.sparkline import ends_text
from loop.reports.waits import events_text
from loop.reports.what_next import what_next
from pages.markdown import at_start, code, inline, row
from rows.places import DROPPED, SIMILAR, RowPlace, dropped_text, place_text
from scores.decision import Decision, Gate, broken_guard, flaw_warning, is_below_baseline
from scores.diagnosis import last_quarter
from scores.measures import (
    SFT,
    method_words,
    names_in,
    settings_text,
    values_of,
    words_of,
)
from scores.results import LEVEL, EvalResult, score_difference, task_difference
from scores.wording import bits_text, interval_text, p_value_text, score_text, signed_text

NUM_FAILURES_SHOWN = 10
NUM_ROWS_SHOWN = 5
NUM_PICKS_SHOWN = 2  # of each round
ROW_CHARS = 240
WORDS_CHARS = 100  # of a question, an answer or a topic
NEXT_STEP_CHARS = 600
GAP_FACTOR = 1.5  # held-out loss over training loss from which the report warns


def stayed_sealed(test_on: str) -> str:
    """Why a run that has stopped did not open its sealed test."""
    if test_on == "end":  # what comes before it failed
        return "Sealed test: it has not been asked"
    why = "the gate has not passed and evaluation.test_on is pass"
    if test_on == "winner":
        why = (
            "evaluation.test_on is winner, and only a study opens it, for the run that it names so"
        )
    return f"Sealed test: it stayed sealed, since {why}; the run can be extended"


def write_report(
    store: RunStore,
    gate: Gate,
    config: Mapping[str, Any],
    decision: Decision,
    cost_usd: float | None,
) -> None:
    """Write the report of a run that has stopped; `cost_usd` is None without a price table."""
    best, baseline = store.result(decision.best_round), store.result(0)
    checkpoint = store.checkpoint(decision.best_round)
    assert best is not None and baseline is not None and checkpoint is not None
    lines = [
        f"# Evaluation report: {inline(config['run_name'])}",
        "",
        at_start(decision.sentence),
        "",
        *_recommendation(store, gate, decision, best, baseline, checkpoint),
        *_next_steps(what_next(store, gate, config, decision)),
        *_side_by_side(store, config, best, baseline),
        *_tasks(best, baseline),
        *_rounds(store),
        *_measures(store),
        *_topics(store, best),
        *_failures(best),
        *_rows(store),
        *_description(store, config, checkpoint, cost_usd),
    ]
    store.write_text("eval_report.md", "\n".join(lines) + "\n")


def _why(store: RunStore, gate: Gate, decision: Decision) -> str:
    if decision.action == "stop_passed":
        return "It passed the gate"
    baseline, *trained = store.results()
    whole = [result for result in trained if broken_guard(result, baseline, gate) is None]
    if not gate.guards:
        return f"It has the highest score of the {len(trained)} trained rounds"
    if not whole:
        return f"It has the highest score of the {len(trained)} trained rounds, all broke a guard"
    return (
        f"It has the highest score of the {len(whole)} of {len(trained)} trained rounds whose "
        "guards hold"
    )


def _recommendation(
    store: RunStore,
    gate: Gate,
    decision: Decision,
    best: EvalResult,
    baseline: EvalResult,
    checkpoint: Checkpoint,
) -> Iterator[str]:
    gain = score_difference(best, baseline, LEVEL)
    yield "## Recommended checkpoint"
    yield ""
    yield f"Round {best.round}: {code(checkpoint.sampler_path or '')}"
    yield f"(to train on from: {code(checkpoint.state_path)})."
    yield ""
    yield (
        f"- {_why(store, gate, decision)}: {score_text(best)}; {signed_text(gain.mean)} "
        f"{interval_text(gain.interval, signed=True)} on the baseline "
        f"({gain.method}{p_value_text(gain.p_value)})."
    )
    if is_below_baseline(best, baseline):
        own = store.checkpoint(0)
        where = "" if own is None else f", kept as round 0: {code(own.sampler_path or '')}"
        yield (
            f"- Warning: what the run began with scored higher ({baseline.score:.4f}). By its "
            f"score {inline(store.baseline_name)} is the better one{where}."
        )
    elif best.score <= baseline.score:
        yield f"- No round scored above {inline(store.baseline_name)}: nothing is gained yet."
    if store.num_rounds > 1:
        yield (
            "- The highest of several noisy scores is too high on average; the sealed test had no "
            "part in the choice."
        )
    guard = broken_guard(best, baseline, gate)
    if guard is not None:
        yield f"- Warning: {inline(guard)}."
    if not store.is_within_limits(best.round):
        yield "- Warning: a limit of evalops_budget_file is violated."
    for task in best.tasks:
        before = baseline.task(task.name)
        if task.layer == 2 and before is not None:
            change = task_difference(task, before, LEVEL)
            is_worse = change.interval is not None and change.interval.high < 0
            verdict = "worse beyond noise" if is_worse else "not worse beyond noise"
            moved = f"{signed_text(change.mean)} on the baseline, {verdict}"
            yield f"- Benchmark {inline(task.name)}: {moved}."
    if (flaws := flaw_warning(best)) is not None:
        yield f"- {at_start(flaws[0].upper() + flaws[1:])}."
    config = store.settled_config()["config"]
    # Held-out rows are compared with what was trained on: of other methods that is another thing.
    is_alike = method_words(config) is SFT
    training = last_quarter(store.losses(best.round))
    for loss in best.held_out if is_alike else ():
        if loss.nll > GAP_FACTOR * training:
            yield (
                f"- Warning: the held-out loss {loss.nll:.4f} of {inline(loss.name)} is far above "
                f"the training loss {training:.4f} of the round's last steps: signs of overfitting."
            )
    yield ""


def _next_steps(steps: Sequence[str]) -> Iterator[str]:
    if steps:
        yield "## What to try next"
        yield ""
        yield from (f"- {at_start(one_line(step, NEXT_STEP_CHARS))}" for step in steps)
        yield ""


def _side_by_side(
    store: RunStore, config: Mapping[str, Any], best: EvalResult, baseline: EvalResult
) -> Iterator[str]:
    test = store.test_result()
    yield "## Dev and test"
    yield ""
    yield f"| | score | {LEVEL:.0%} interval | n |"
    yield "|---|---|---|---|"
    of = "" if store.origin is None else f" ({store.baseline_name})"
    rows = [(f"dev, baseline{of}", baseline), (f"dev, round {best.round}", best)]
    if test is not None:
        rows.append((f"sealed test, round {test.round}", test))
    for name, result in rows:
        yield row([name, f"{result.score:.4f}", interval_text(result.interval), f"{result.n}"])
    if test is None:
        yield ""
        if store.test_opened() is not None:
            why = "The sealed test was opened and not completed"
        elif config["evaluation"]["test_tasks"]:
            why = stayed_sealed(config["evaluation"]["test_on"])
        else:
            why = "There is no sealed test (`evaluation.test_tasks`)"
        yield f"{why}. The scores above are those that the checkpoint was chosen by."
    yield ""


def _tasks(best: EvalResult, baseline: EvalResult) -> Iterator[str]:
    yield "## By layer"
    yield ""
    yield "| layer | task | role | baseline | recommended | change | n | flaws |"
    yield "|---|---|---|---|---|---|---|---|"
    for task in sorted(best.tasks, key=lambda task: -task.layer):
        before = baseline.task(task.name)
        change, was = "", ""
        if before is not None:
            moved = task_difference(task, before, LEVEL)
            change = f"{signed_text(moved.mean)} {interval_text(moved.interval, signed=True)}"
            change += p_value_text(moved.p_value)
            was = f"{before.score:.4f}"
        flaws = f"{task.num_truncated} truncated, {task.num_malformed} malformed"
        cells = [f"{task.layer}", task.name, task.role, was, score_text(task), change, f"{task.n}"]
        yield row([*cells, f"{flaws}, {task.num_failed} failed"])
    earlier = {loss.name: loss for loss in baseline.held_out}
    for loss in best.held_out:
        was = f"{earlier[loss.name].nll:.4f}" if loss.name in earlier else ""
        now = f"{loss.nll:.4f} nats a token, perplexity {loss.perplexity:.4g}{bits_text(loss)}"
        yield row(["1", loss.name, "loss", was, now, "", f"{loss.n}", ""])
    yield ""


def _rounds(store: RunStore) -> Iterator[str]:
    yield "## Rounds"
    yield ""
    yield "| round | score | last learning rate | decision | diagnosis |"
    yield "|---|---|---|---|---|"
    for result in store.results():
        decision, lr = store.decision(result.round), store.last_lr(result.round)
        sentence = "" if decision is None else decision.sentence
        rate = "" if lr is None else f"{lr:.4g}"
        diagnosis = store.diagnosis(result.round) or ""
        yield row([f"{result.round}", score_text(result), rate, sentence, diagnosis])
    yield ""


def _measures(store: RunStore) -> Iterator[str]:
    """What the method has measured of its steps, from the first of a round to its last."""
    steps = list(store.events("step"))
    names = names_in(steps)
    if not names:
        return
    yield "## What training measured, first to last step of a round"
    yield ""
    yield row(["round", *(words_of(one).title for one in names)])
    yield f"|---|{'---|' * len(names)}"
    by_round: dict[int, list[Mapping[str, Any]]] = {}
    for step in steps:
        by_round.setdefault(step["round"], []).append(step)
    for number, of_round in by_round.items():
        cells = (ends_text(values_of(of_round, one)) for one in names)
        yield row([f"{number}", *cells])
    yield ""
    yield from (
        f"- {at_start(words_of(one).title)}: {inline(words_of(one).meaning)}."
        for one in names
        if words_of(one).meaning
    )
    if any((store.run_dir / ROLLOUTS).glob("*.jsonl")):
        yield f"- The sampled answers with their rewards are in `{ROLLOUTS}/`, a file a step."
    yield ""


def _topics(store: RunStore, best: EvalResult) -> Iterator[str]:
    reports = store.topics(best.round) or []
    if len(reports) < 2:
        return
    yield f"## Topics of round {best.round}, the weakest first"
    yield ""
    before = store.lineage(best.round)[-1]
    change_on = f"change on {'the baseline' if before == 0 else f'round {before}'}"
    yield f"| topic | score, {LEVEL:.0%} interval | questions | {change_on} | examples added |"
    yield "|---|---|---|---|---|"
    for one in reports:
        change = "" if one.change is None else f"{one.change:+.2f}"
        score = f"{one.score:.2f} {interval_text(one.interval)}"
        topic = one_line(one.topic, WORDS_CHARS)
        yield row([topic, score, f"{one.n}", change, f"{one.num_added}"])
    yield ""


def _failures(best: EvalResult) -> Iterator[str]:
    yield "## Known failures"
    yield ""
    # One line for a question, also where it was asked several times.
    wrong = list({sample.id: sample for sample in best.samples if sample.score < 1}.values())
    wrong = wrong[:NUM_FAILURES_SHOWN]
    if not wrong:
        yield "No question of the dev set was answered wrong."
    for sample in wrong:
        answer = sample.error or one_line(sample.answer or "", WORDS_CHARS)
        got = "likelier was" if "rejected_logprob" in sample.other_scores else "got"
        kinds = {"truncated": sample.truncated, "malformed": sample.malformed}
        flaws = "".join(f", {name}" for name, is_so in kinds.items() if is_so)
        expected = one_line(" or ".join(sample.expected), WORDS_CHARS)
        question = one_line(sample.question, WORDS_CHARS)
        end = "" if f"{answer}{flaws}".endswith(".") else "."
        said = f"{question} Expected {expected}, {got} {answer}{flaws}{end}"
        yield f"- {at_start(said)}"
    yield ""


def _rows(store: RunStore) -> Iterator[str]:
    """The rows that are worth a look, by file, line and first words."""
    dropped = [row for row in store.manifest().dropped if row.kind != "similar"]  # of older runs
    found = [f"Dropped: {_of_row(dropped_text(one))}" for one in dropped[:NUM_ROWS_SHOWN]]
    suspects: tuple[RowPlace, ...] = ()
    for event in store.events("selected"):
        selection = store.selection(event["round"])
        assert selection is not None, "there is an event of it"
        suspects = selection.suspect_rows
        mined = (pick for pick in selection.picks if pick.weight is not None)
        for pick in itertools.islice(mined, NUM_PICKS_SHOWN):
            if pick.file is not None and pick.line_no is not None:
                place = place_text(pick.file, pick.line_no, pick.text)
                drawn = _of_row(f"{place}: {pick.reason}")
                found.append(f"Drawn in round {selection.round}: {drawn}")
    found += (f"Looks wrong: {_of_row(str(one))}" for one in suspects[:NUM_ROWS_SHOWN])
    if found:
        yield "## Rows to look at"
        yield ""
        yield from (f"- {line}" for line in found)
        yield ""
        yield (
            f"All of them, with file and line: `{DROPPED}`, `{SIMILAR}`, and `picks` and "
            "`suspect_rows` in `selections/`."
        )
        yield ""


def _description(
    store: RunStore, config: Mapping[str, Any], checkpoint: Checkpoint, cost_usd: float | None
) -> Iterator[str]:
    usage, data = store.usage(), store.data_manifest()
    yield "## The run"
    yield ""
    model, renderer = inline(checkpoint.base_model), inline(checkpoint.renderer)
    yield f"- Base model {model}, renderer {renderer}."
    if (prompt := config["evaluation"]["system_prompt"]) is not None:
        yield f"- Every question was asked with a system prompt before it: {_of_row(prompt)}"
    if (origin := store.origin) is not None:
        how = "with its optimizer" if origin.with_optimizer else "with a new optimizer"
        yield f"- Started from {inline(origin.chain)}: {code(origin.parent.state_path)}, {how}."
        yield from (f"- Not known of the sealed test: {inline(what)}." for what in origin.unknown)
        yield from (f"- {at_start(what[0].upper() + what[1:])}." for what in origin.warnings)
    method = method_words(config)
    if method is not SFT:
        settings = one_line(settings_text(config), NEXT_STEP_CHARS)
        yield f"- {method.title}: {inline(settings)}. Minimised is {inline(method.minimised)}."
    layers = [name for name in ("attn", "mlp", "unembed") if getattr(checkpoint, f"train_{name}")]
    yield (
        f"- LoRA rank {checkpoint.lora_rank}, alpha {checkpoint.lora_alpha:g}, trained layers: "
        f"{', '.join(layers)}."
    )
    for key, counts in data["examples"].items():
        files = {n: f for n, f in data["files"].items() if n.partition("[")[0] == key}
        num_rows = sum(file["num_rows"] for file in files.values())
        paths = ", ".join(code(file["path"]) for file in files.values())
        yield f"- {inline(key)}: {counts['num_examples']} of {num_rows} rows of {paths}."
    dropped = dict(data["num_dropped"])
    num_similar = data["num_similar"] + dropped.pop("similar", 0)  # older runs list them there
    counts = ", ".join(f"{number} {inline(kind)}" for kind, number in dropped.items())
    yield f"- Dropped rows: {counts or 'none'} (`{DROPPED}`)."
    yield f"- Similar rows, trained on: {num_similar or 'none'} (`{SIMILAR}`)."
    if number := data.get("num_other_answers"):
        yield f"- Rows whose prompt other rows answer differently: {number} (`{SIMILAR}`)."
    yield (
        f"- {store.num_steps_in(checkpoint)} steps up to the recommended checkpoint, of "
        f"{config['batch_size']} {method.unit}; learning rate "
        f"{config['learning_rate']:g}, times {config['lr_decay']:g} after each missed threshold."
    )
    yield (
        f"- Used: {usage.train_tokens:,} tokens trained, {usage.prompt_tokens:,} read and "
        f"{usage.sampled_tokens:,} sampled, {usage.minutes:.1f} minutes"
        + ("." if cost_usd is None else f", {money(cost_usd)} by the prices in the settings.")
    )
    yield from (f"- {inline(said)}" for said in events_text(store.ever("held_up")))
    lost = store.in_vain()
    if lost.tokens:
        priced = "" if cost_usd is None else "; what was used is priced with them"
        text = in_vain_text(*lost[:3])
        yield f"- {text[0].upper()}{text[1:]}, as a process or a request ended before{priced}."


def _of_row(text: str) -> str:
    """What is said of a row, after a word of ours."""
    return inline(one_line(text, ROW_CHARS))
