"""What the usual gate would have done with a trial, whose own gate does nothing.

Trials that are compared train alike, so their gate neither stops them, lowers their rate nor goes
back; what it would have decided is told all the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from config_schema import TrainingConfig
from ledger.store import RunStore
from loop.planning.plan import gate_of
from scores.decision import Spent, decide
from settings.config_file import read_object
from studies.design.expansion import given_in, overlap
from studies.design.experiment import Study
from studies.design.generating import TrialFiles
from studies.design.nesting import flat
from studies.design.tinker_trials import DEFAULTS, named

USUAL_THRESHOLD = TrainingConfig.model_fields["eval_threshold"].default


def gate_in_hindsight(study: Study, files: TrialFiles, store: RunStore) -> list[str]:
    """What would have been decided round by round, up to where the run would have ended, with the
    usual values in the place of those that the study takes itself."""
    usual = _usual_settings(study)
    if not usual:  # the study says all of it, and the trial's own decisions are what there is
        return []
    gate = gate_of(files.config)
    gate = replace(
        gate,
        lr_decay=usual.get("lr_decay", gate.lr_decay),
        rollback=usual.get("gate.rollback", gate.rollback),
        stops=usual.get("gate.stop", gate.stops),
    )
    results, said = store.results(), []
    for position, result in enumerate(results):
        checkpoint = store.checkpoint(result.round)
        steps = 0 if checkpoint is None else checkpoint.step
        decision = decide(results[:position], result, Spent(steps), gate)
        if result.round > 0:
            said.append(f"round {result.round}: {decision.sentence}")
        if decision.stops:
            break
    return said


def gate_words(configs: Sequence[str]) -> str:
    """What the gate asks of a score, and whether the study or the default says so."""
    read = [json.loads(text) for text in configs]
    values = list(dict.fromkeys(one.get("eval_threshold", USUAL_THRESHOLD) for one in read))
    if not values:
        return ""
    if all("eval_threshold" not in one for one in read):
        return f"the default gate, {values[0]:g} (the study sets no eval_threshold)"
    if len(values) > 1:
        return f"a gate at {' or '.join(f'{one:g}' for one in values)}, by the trial"
    return f"the gate at {values[0]:g}, the study's eval_threshold"


def _usual_settings(study: Study) -> dict[str, Any]:
    """The settings that trials are given and the study does not set, with their usual values."""
    given = [one.name for one in given_in(study, named)]
    file = study.experiment.framework_config.base_config_file
    if file is not None:
        given += list(flat(read_object(study.folder / file)))
    usual = flat(
        {
            "lr_decay": TrainingConfig.model_fields["lr_decay"].default,
            "gate": {"rollback": True, "stop": True},
        }
    )
    return {
        key: value
        for key, value in usual.items()
        if key in flat(DEFAULTS) and not any(overlap(key, one) for one in given)
    }
