"""Of a run's page: what it used, where it ran, how to run it again, and the files it left."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ledger.records import Usage
from loop.reports.console import PROGRAM, command_for
from loop.reports.lines import in_vain_text, money
from loop.reports.waits import PAST, events_text
from loop.run_page.viewed import Viewed, is_on_this_machine
from pages.document import (
    Block,
    Bullets,
    Code,
    Column,
    Folded,
    Link,
    Links,
    Paragraph,
    Section,
    Table,
)
from scores.measures import DPO, OFF_POLICY, ON_POLICY, RL, SFT, method_words, settings_text
from scores.wording import interval_text

PLACES = 4  # of dollars
# What is read and sampled to train, by the method.
TO_TRAIN = {
    DPO: "each pair before its loss, and once for the reference",
    RL: "sampled answers, and what the start has read where a KL to it counts",
    ON_POLICY: "sampled answers, and what the teacher has read of them",
    OFF_POLICY: "the teacher's answers, and what it has read of them for soft targets",
}
MOST_OPEN = 12  # rounds, from which a table is folded
MOST_LOGS = 30  # the newest ones
FILES = (
    "eval_report.md",
    "ledger.jsonl",
    "config.resolved.json",
    "data_manifest.json",
    "data_dropped.jsonl",
    "data_similar.jsonl",
)


# --- tokens and cost ------------------------------------------------------------------------------


def usage_section(view: Viewed) -> Section:
    """Tokens, time and cost by round; what was done twice counts twice."""
    store, total = view.store, view.store.usage()
    numbers = sorted({event["round"] for kind in USING for event in store.events(kind)})
    of_rounds = {number: store.usage(number) for number in numbers}
    # Checkpoints are counted from 1 on the whole page, rounds from 0, which is the baseline.
    first = 1 if store.is_evaluation else 0
    rows = [[str(number + first), *_cells(view, used)] for number, used in of_rounds.items()]
    rest = total
    for used in of_rounds.values():
        rest = rest.less(used)
    rows.append(["outside of these", *_cells(view, rest)])
    rows.append(["all", *_cells(view, total)])
    what = "checkpoint" if store.is_evaluation else "round"
    columns = [
        Column(what),
        Column("tokens trained", True),
        Column("tokens read", True),
        Column("tokens sampled", True),
        Column("minutes", True),
        Column("cost, USD", True),
    ]
    note = "Read and sampled: questions and answers of evaluations, and losses before a round"
    own = TO_TRAIN.get(method_words(view.config))
    note += "." if own is None else f"; and to train, {own}."
    blocks: list[Block] = [
        Table("Used", columns, rows, is_folded=len(rows) > MOST_OPEN, note=note),
        Paragraph(_cost_sentence(view)),
        *_held_up(view),
    ]
    lost = store.in_vain()
    if lost.tokens:
        blocks.append(Paragraph(_in_vain_sentence(lost)))
    return Section("Tokens and cost", blocks, anchor="usage")


def _held_up(view: Viewed) -> Iterator[Block]:
    """What the service refused for now or let wait, in all and by round, where it did."""
    events = list(view.store.ever("held_up"))
    yield from (Paragraph(said) for said in events_text(events))
    if not events:
        return
    first = 1 if view.store.is_evaluation else 0
    rows = [
        [
            "outside of these" if event["round"] is None else str(event["round"] + first),
            PAST.get(event["what"], event["what"]),
            f"{event['num_refused']:,}",
            f"{event['seconds'] / 60:.2f}",
            event["reason"],
        ]
        for event in events
    ]
    columns = [
        Column("checkpoint" if view.store.is_evaluation else "round"),
        Column("the service"),
        Column("requests refused", True),
        Column("minutes", True),
        Column("its word"),
    ]
    note = (
        "These minutes are among those above, and may lie in one another. Other runs that asked "
        "the service from the same process at the same time have them as well."
    )
    yield Table("Held up by the service", columns, rows, is_folded=len(rows) > MOST_OPEN, note=note)


def _cost_sentence(view: Viewed) -> str:
    if view.cost_usd is not None:
        return (
            f"{money(view.cost_usd, PLACES)} in all, by the prices in the settings (budget.prices)."
        )
    if is_on_this_machine(view.store):
        return "The run was on this machine, so these tokens cost nothing."
    return "Without budget.prices in the settings no cost is known."


def _in_vain_sentence(lost: Usage) -> str:
    text = in_vain_text(*lost[:3])
    return (
        f"On its way, or {text}: a process was killed, or a service or a request failed. They are "
        "in none of the rows above; the cost in all and the budget have them."
    )


USING = ("measured", "selected", "answered", "targets_read", "step", "test_measured", "rehearsed")


def _cells(view: Viewed, used: Usage) -> list[str]:
    cost = view.cost_of(used)
    tokens = (used.train_tokens, used.prompt_tokens, used.sampled_tokens)
    free = "none" if is_on_this_machine(view.store) else "not known"
    dollars = free if cost is None else money(cost, PLACES).removeprefix("$")
    return [*(f"{number:,}" for number in tokens), f"{used.minutes:.2f}", dollars]


# --- the sealed test ------------------------------------------------------------------------------


def sealed_section(view: Viewed, said: str) -> Section:
    """Its score alone: a question that was read can be trained for."""
    test, names = view.store.test_result(), view.config["evaluation"]["test_tasks"]
    blocks: list[Block] = [Paragraph(said[0].upper() + said[1:] + ".")]
    if test is not None:
        rows = [
            [task.name, f"{task.score:.4f}", interval_text(task.interval), f"{task.n:,}"]
            for task in test.tasks
        ]
        columns = [Column("task"), Column("score", True), Column("95% interval", True)]
        columns.append(Column("n", True))
        blocks.append(Table(f"Sealed test of round {test.round}", columns, rows))
    if (origin := view.store.origin) is not None:
        blocks += [Paragraph(f"Not known of it: {what}.") for what in origin.unknown]
        blocks += [Paragraph(f"{what[0].upper()}{what[1:]}.") for what in origin.warnings if what]
    if names:
        blocks.append(
            Paragraph(
                "Its questions and answers are not on this page: whoever reads them chooses the "
                "next settings by them, and then it is no test any more. They are in "
                "evals/test.json once it was asked."
            )
        )
    return Section("Sealed test", blocks, anchor="sealed")


# --- where, and how again -------------------------------------------------------------------------


def environment_section(view: Viewed) -> Section:
    """What the run was made with, and the lines that make it again."""
    blocks: list[Block] = [_environment_table(view), *_again(view), *_files(view)]
    return Section("Environment and repetition", blocks, anchor="environment")


def _environment_table(view: Viewed) -> Table:
    recorded = view.store.settled_config()
    resolved, machine = recorded["resolved"], recorded.get("machine")
    of_machine = machine if isinstance(machine, dict) else {}
    versions = recorded.get("versions")
    rows = [
        ["service", _said(resolved.get("service"))],
        ["address", _said(resolved.get("base_url"), _usual_address(view))],
        ["service check", _said(resolved.get("service_check"), "none: not needed, or older run")],
        ["base model", _said(recorded["files"].get("base_model"))],
        ["chat format", _said(resolved.get("renderer_name"))],
        ["agreement with the model's template", _said(resolved.get("chat_template"))],
        *_method_rows(view, resolved),
        ["LoRA parameters", _said(resolved.get("num_lora_params"))],
        ["warm-up steps", _said(resolved.get("warmup_steps"))],
        ["device", _said(of_machine.get("device"))],
        ["system", _said(of_machine.get("system"))],
        ["processors", _said(of_machine.get("num_cpus"))],
        ["seed", str(view.config["seed"])],
    ]
    if (origin := view.store.origin) is not None:
        how = "with its optimizer" if origin.with_optimizer else "with a new optimizer"
        rows.insert(3, ["started from", f"{origin.chain}, {how}"])
    for name, version in (versions if isinstance(versions, dict) else {}).items():
        rows.append([name, _said(version)])
    for name in ("commit of this program", "revision of a hub's model"):
        rows.append([name, NOT_RECORDED])
    return Table("Environment", [Column("what"), Column("as recorded")], rows)


def _method_rows(view: Viewed, resolved: Mapping[str, Any]) -> list[list[str]]:
    """How it was trained, and of rows that are trained as they are, on what of them."""
    method = method_words(view.config)
    if method is SFT:
        return [["trained on", _said(resolved.get("train_on"))]]
    return [["method", method.title], ["with", settings_text(view.config)]]


def _usual_address(view: Viewed) -> str:
    return "none: on this machine" if is_on_this_machine(view.store) else "the public one"


NOT_RECORDED = "not recorded"


def _said(value: Any, without: str = NOT_RECORDED) -> str:
    return without if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _again(view: Viewed) -> Iterator[Block]:
    recorded = view.store.settled_config()
    file = Path(recorded["config_file"])
    again = file.with_name(f"{view.config['run_name']}-again.json")
    local = " --local" if is_on_this_machine(view.store) else ""
    if view.store.is_evaluation:
        names = " ".join(shlex.quote(str(one["label"])) for one in recorded["evaluate"])
        local = f" --evaluate {names}{local}"
    yield Paragraph(
        f"The run's settings, with every default and --set, are below (sha256 "
        f"{recorded.get('config_hash', NOT_RECORDED)}, of what a resumed run must share). Saved "
        f"as {again.name} beside {file.name}, they make the same run again:"
    )
    yield Code([f"{command_for(PROGRAM)} --config {shlex.quote(str(again))}{local}"])
    yield Paragraph(
        "On one machine with the embedded service on its CPU the same seed gives the same bits; no "
        "such claim is made for GPUs and other services."
    )
    settings = json.dumps(recorded["config"], indent=1, ensure_ascii=False)
    yield Folded("The settings as they were used", [Code(settings.split("\n"))])


def _files(view: Viewed) -> Iterator[Block]:
    run_dir = view.store.run_dir
    there = [Link(name, name) for name in FILES if (run_dir / name).is_file()]
    yield Links("Files of this run:", there)
    logs = [
        Link(f"round {result.round}: {task.name}", _href(task.log))
        for result in view.store.results()
        for task in result.tasks
        if task.log is not None and (run_dir / task.log).is_file()
    ]
    if logs:
        newest = logs[-MOST_LOGS:]
        which = "" if len(newest) == len(logs) else f" (the last {len(newest)} of {len(logs)})"
        yield Links(f"Inspect logs{which}:", newest)
        yield Paragraph("Inspect shows them (one of the sealed test among them, if it was asked):")
        place = shlex.quote(str(run_dir / "inspect_logs"))
        yield Code([f"{command_for(PROGRAM).split()[0]} -m inspect_ai view --log-dir {place}"])
    else:
        yield Bullets(["No Inspect task was run, so there are no Inspect logs."])


def _href(path: str) -> str:
    """A file of the run directory as a link from the page in it; a name with a colon in front
    would be an address."""
    return "./" + quote(path)
