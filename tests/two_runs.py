"""Two runs at once in one process, on one embedded service: `python tests/two_runs.py CONFIG DIR`.

Prints as JSON how each ended, and whether what a run changes of its process is as before.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO)]

from config_schema import load_and_validate_config  # noqa: E402
from errors import Interrupted  # noqa: E402
from ledger.store import RunStore  # noqa: E402
from loop.planning.inputs import read_inputs  # noqa: E402
from loop.planning.manifest import data_manifest, dropped_rows, resolved_config  # noqa: E402
from loop.planning.models import find_model_dir  # noqa: E402
from loop.planning.plan import Plan, make_plan  # noqa: E402
from loop.reports.progress import Progress  # noqa: E402
from loop.rounds.session import LOUD_LOGGERS, open_service  # noqa: E402
from services.keys import Keys  # noqa: E402
from services.place import Place, ServiceChoice  # noqa: E402
from trainer_with_eval import train_on_service  # noqa: E402


def begin(plan: Plan, choice: ServiceChoice, run_dir: Path) -> RunStore:
    store = RunStore.create(run_dir, resolved_config(plan, choice, {}))
    store.record_start(data_manifest(plan), dropped_rows(plan), plan.config_hash)
    return store


async def run_all(plan: Plan, places: list[Place], stores: list[RunStore]) -> list[str]:
    works = [
        train_on_service(plan, store, Progress(verbose=False), place)
        for place, store in zip(places, stores, strict=True)
    ]
    ends = await asyncio.gather(*works, return_exceptions=True)
    return [
        "interrupted" if isinstance(end, Interrupted) else getattr(end, "action", repr(end))
        for end in ends
    ]


def main() -> None:
    loaded = load_and_validate_config(sys.argv[1])
    plan = make_plan(read_inputs(loaded, find_model_dir(loaded)))
    choice = ServiceChoice("embedded", None, "a test")
    run_dirs = [Path(sys.argv[2]) / name for name in ("one", "two")]
    stores = [begin(plan, choice, run_dir) for run_dir in run_dirs]
    levels = [logging.getLogger(name).level for name in LOUD_LOGGERS]
    with open_service(choice, plan, Progress(verbose=False)) as service:
        places = [Place(choice, service, one / "checkpoints", Keys()) for one in run_dirs]
        ends = asyncio.run(run_all(plan, places, stores))
    for store in stores:
        store.close()
    is_put_back = levels == [logging.getLogger(name).level for name in LOUD_LOGGERS]
    print(json.dumps({"ends": ends, "levels_put_back": is_put_back}))


if __name__ == "__main__":
    main()
