"""The rows: how many there are, what is left out, and what is cut."""

from __future__ import annotations

from loop.plan_page.view import Part, Planned
from loop.planning.inputs import num_dropped
from loop.planning.left_out import describe_large_losses, other_answers_facts
from loop.planning.page import describe_data, describe_rendered


def data_part(view: Planned) -> Part:
    """What is trained on; a large loss is a warning, which stands before all others."""
    inputs, plan = view.inputs, view.plan
    lines = [*describe_large_losses(inputs), *describe_data(inputs)]
    logs = [*inputs.drop_logs]
    if plan is not None:
        lines += describe_rendered(plan)
        logs += plan.dropped_in_rendering
    kept = {"train_file": inputs.split.train, "mining.pool_file": inputs.split.pool}
    if plan is not None:
        kept = {"train_file": plan.train.examples, "mining.pool_file": plan.pool.examples}
    facts = {
        "files": {
            key: {
                "sources": [file.source.name for file in data.files],
                "num_rows": data.num_rows,
                "num_examples": len(kept[key]),
            }
            for key, data in inputs.files.items()
        },
        "num_dropped": dict(num_dropped(logs)),
        "num_similar": inputs.split.similar.counts["similar"],
        "other_answers": other_answers_facts(inputs),
        "num_truncated": None
        if plan is None
        else sum(table.num_truncated for table in (plan.train, plan.pool)),
    }
    return Part("data", "Rows", lines, facts)
