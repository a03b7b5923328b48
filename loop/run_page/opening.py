"""The first screen: one sentence of verdict, the figures that it rests on, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from errors import one_line
from ledger.records import Checkpoint
from ledger.registry_weights import weights_dir
from ledger.store import RunStore
from loop.reports.console import PROGRAM, resume_command, shown_python
from loop.reports.run_report import stayed_sealed
from loop.reports.what_next import what_next
from loop.run_page.answers import ANSWERS
from loop.run_page.viewed import Standing, Viewed, is_on_this_machine
from loop.run_page.wording import gain_of
from pages.document import Block, Bullets, Code, Lead, Link, Links, Paragraph, Section, Tile, Tiles
from pages.document import Verdict as Shown
from scores.decision import Decision, is_below_baseline, judge
from scores.results import EvalResult
from scores.wording import beside, interval_text, score_text, signed_text

DETAIL_CHARS = 600
RULES = {
    "mean": "the score has to reach it",
    "lower_bound": "the lower end of the score's interval has to reach it",
    "paired": "the score has to reach it, and to be above the start beyond chance",
}


def lead_of(view: Viewed) -> list[Lead]:
    """The verdict, and the figures that it rests on."""
    store, decision, standing = view.store, view.store.last_decision(), view.standing
    baseline = store.result(0)
    if decision is None or baseline is None:
        text = "No round has been decided. " + standing_text(view, standing)
        return [Shown("Nothing is measured yet.", text, _tone_of(standing))]
    best = store.result(decision.best_round)
    assert best is not None, "the best round was evaluated"
    return [_verdict(view, decision, best, baseline, standing), _tiles(view, best, baseline)]


def _verdict(
    view: Viewed, decision: Decision, best: EvalResult, baseline: EvalResult, standing: Standing
) -> Shown:
    end = "" if standing.kind == "finished" else f" {standing_text(view, standing)}"
    if not decision.stops:
        word = "Going on." if standing.kind == "going_on" else "Not finished."
        so_far = (
            f"The best so far is round {best.round} with {score_text(best)}; "
            f"{view.gate.threshold:g} is asked for"
            if best.round
            else f"No trained round is measured; before training the score is {score_text(best)}"
        )
        return Shown(word, f"{so_far}, on {_questions(best)}.{end}", _tone_of(standing))
    verdict = judge(best, baseline, view.gate)
    below = ""
    if best.score <= baseline.score:
        where = "below" if is_below_baseline(best, baseline) else "no higher than"
        below = f" It scores {where} what the run began with ({baseline.score:.4f})."
    sealed = sealed_text(view)
    if decision.action == "stop_passed":
        score, threshold = beside(best.score, view.gate.threshold, is_met=True)
        by = (
            f"{score} {interval_text(best.interval)} reaches the {threshold} that was asked for"
            if view.gate.rule == "mean"
            else f"{verdict.numbers}"
        )
        text = f"Round {best.round} passed: {by}, on {_questions(best)}; {sealed}.{below}{end}"
        if not view.store.is_within_limits(best.round):
            over = (
                " But it violates a limit of evalops_budget_file, so it is not within its limits."
            )
            return Shown("Not within its limits.", f"{text}{over}", "bad")
        if below:
            return Shown("Passed, but below its start.", text, "open")
        return Shown("Good enough.", text, "good")
    why = verdict.objection or verdict.numbers
    num_trained = num_trained_rounds(view)
    which = "the only trained round" if num_trained == 1 else f"the best of {num_trained} rounds"
    text = (
        f"Round {best.round}, {which}, scored {score_text(best)} on {_questions(best)}: {why}; "
        f"{sealed}.{below}{end}"
    )
    if not view.gate.stops:  # such as a study's trial, which is there to be compared
        return Shown("Below the threshold.", text, "open")
    return Shown("Not good enough.", text, "bad")


def _tone_of(standing: Standing) -> Literal["bad", "open"]:
    return "bad" if standing.kind in ("failed", "eval_failed") else "open"


def num_trained_rounds(view: Viewed) -> int:
    """Trained rounds that have been evaluated."""
    return sum(number > 0 for number in view.store.scores())


def _questions(result: EvalResult) -> str:
    return f"{result.n:,} dev question{'s' * (result.n != 1)}"


def sealed_text(view: Viewed) -> str:
    """What the sealed test said, or why it has said nothing."""
    store, evaluation = view.store, view.config["evaluation"]
    if (test := store.test_result()) is not None:
        return f"the sealed test, {_asked(test)}, gave {score_text(test)} on {test.n:,}"
    if store.test_opened() is not None:
        return "the sealed test was opened and its result is not complete"
    if not evaluation["test_tasks"]:
        return "there is no sealed test"
    if view.standing.kind != "finished":
        return "the sealed test has not been asked"
    return stayed_sealed(evaluation["test_on"]).replace("Sealed test: it", "the sealed test", 1)


def _asked(test: EvalResult) -> str:
    """How often each question of the sealed test was asked, which was opened once."""
    repeats = max(task.num_repeats for task in test.tasks)
    return "asked once" if repeats == 1 else f"opened once, each asked {repeats} times"


def standing_text(view: Viewed, standing: Standing) -> str:
    """Where the run stands, in a sentence."""
    at = f" at {standing.time.replace('T', ' ').removesuffix('Z')} UTC" if standing.time else ""
    detail = one_line(standing.detail, DETAIL_CHARS)
    return {
        "going_on": f"The run was going on when this page was written; its last event came{at}.",
        "left": f"No process is at work on the run, and it has not ended; its last event came{at}.",
        "interrupted": f"The run was interrupted{at}: {detail}",
        "failed": f"The run failed{at}: {detail}",
        "eval_failed": f"An evaluation failed{at}, so there is no score of it: {detail}",
        "finished": "",
    }[standing.kind]


def _tiles(view: Viewed, best: EvalResult, baseline: EvalResult) -> Tiles:
    store, gate = view.store, view.gate
    tiles = []
    if best.round:
        tiles.append(_score_tile(f"score of round {best.round}", best, "dev question"))
    began_as = "before training" if store.origin is None else f"began with {store.baseline_name}"
    tiles.append(_score_tile(began_as, baseline, "dev question"))
    if best.round:
        gain = gain_of(best, baseline)
        interval = "" if gain is None else interval_text(gain.interval, signed=True)
        value = "not known" if gain is None else signed_text(gain.mean)
        tiles.append(Tile("gained by training", value, f"{interval}, same questions"))
    tiles.append(Tile("threshold", f"{gate.threshold:g}", RULES[gate.rule]))
    test = store.test_result()
    if test is not None:
        tiles.append(_score_tile("sealed test", test, "new one", f", {_asked(test)}"))
    else:
        text = sealed_text(view)
        shut = view.config["evaluation"]["test_tasks"]
        tiles.append(Tile("sealed test", "not asked" if shut else "none", "" if shut else text))
    return Tiles(tiles)


def _score_tile(label: str, result: EvalResult, what: str, note: str = "") -> Tile:
    interval, asked = interval_text(result.interval), f"{what}{'s' * (result.n != 1)}"
    return Tile(label, f"{result.score:.4f}", f"{interval}, {result.n:,} {asked}{note}")


def next_section(view: Viewed) -> Section:
    """What to do next: where the weights are, what to try, or how the run goes on."""
    return Section("What to do next", list(_next(view)), anchor="next")


def _next(view: Viewed) -> Iterator[Block]:
    store, decision, standing = view.store, view.store.last_decision(), view.standing
    if standing.kind == "going_on":
        yield Paragraph("Wait: this page is written again after each round.")
        return
    if standing.kind != "finished":
        yield Paragraph("Go on with the run; what was measured is not measured again:")
        yield Code([resume_command(store.run_dir)])
    if decision is None or not decision.stops:
        return
    if steps := what_next(store, view.gate, view.config, decision):
        yield Bullets(steps)
    checkpoint = store.checkpoint(decision.best_round)
    assert checkpoint is not None, "a run stops after a trained round"
    yield Paragraph(f"{_what_of_weights(store, decision)}: {checkpoint.sampler_path}")
    yield from _weights(view, checkpoint)
    answers = [Link("every question with its answer", f"#{ANSWERS}")]
    answers.append(Link("what is still answered wrong", "#tasks"))
    yield Links("To judge for yourself:", answers)


def _what_of_weights(store: RunStore, decision: Decision) -> str:
    """What to make of the best round's weights."""
    best, baseline = store.result(decision.best_round), store.result(0)
    assert best is not None and baseline is not None, "a run that stops has measured both"
    if best.score <= baseline.score:
        return (
            f"No round scored above {store.baseline_name}, so there is nothing to use yet. The "
            f"weights of round {best.round} are kept, to look at"
        )
    if decision.action == "stop_passed" and store.is_within_limits(best.round):
        return f"Use the weights of round {best.round}"
    return f"Not good enough yet; the best weights so far, of round {best.round}"


def _weights(view: Viewed, checkpoint: Checkpoint) -> Iterator[Block]:
    """Where an adapter lies, and how it is served, where that is on this disk."""
    store = view.store
    folder = weights_dir(Path(), checkpoint.sampler_path or "")
    if not (store.run_dir / folder).is_dir():
        elsewhere = "They are on the service that the run was on; its own tools download them."
        gone = "Their folder is not in this run directory any more."
        yield Paragraph(gone if is_on_this_machine(store) else elsewhere)
        return
    href = "/".join(_quoted(part) for part in folder.parts) + "/"
    yield Links("The adapter, in PEFT's layout:", [Link(str(folder), href)])
    served, recorded = checkpoint.base_model, store.settled_config()["files"]["base_model"]
    if Path(recorded).is_absolute() and recorded != served:  # it is found from any folder
        served = f"{served}={recorded}"
    is_here = PROGRAM.parent == Path.cwd()
    kept = store.run_dir / "checkpoints"
    place = str(kept if is_here else kept.resolve())  # it is started in the other folder
    yield Code(
        [
            f"{shown_python()} -m local_tinker --base-model {shlex.quote(served)} "
            f"--checkpoint-dir {shlex.quote(place)}"
        ]
    )
    where = "" if is_here else f" Start it in {PROGRAM.parent}."
    yield Paragraph(
        f"This serves them to any program of the Tinker SDK.{where} For other programs export.py "
        "writes them as a folder that it loads and checks (docs/export.md)."
    )


def _quoted(part: str) -> str:
    from urllib.parse import quote

    return quote(part, safe="")
