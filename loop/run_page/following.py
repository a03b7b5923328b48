"""What a page does when it is served: it leads back to the list of runs, and follows its run.

The script asks for the run's state every two seconds while it goes on, and offers the page anew
once there is more to see; the reader's place is kept.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ledger.glance import Glance
from ledger.records import seconds_of
from pages.html import Behaviour

SCRIPT = Path(__file__).with_name("following.js").read_text(encoding="ascii")
STYLE = """
.served { max-width: 78rem; margin: 0 auto; padding: 0.5rem 1rem 0; font-size: 0.875rem;
  display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; align-items: baseline; }
.finding.served { padding-left: 0; padding-right: 0; }
.served p { margin: 0; }
.served .state { font-weight: 600; }
.served .figures-now { color: var(--quiet); font-variant-numeric: tabular-nums; }
.served button, .finding button, .finding input { font: inherit; color: var(--ink);
  background: var(--soft); border: 1px solid var(--quiet); border-radius: 4px;
  padding: 0.15rem 0.5rem; }
.served button:disabled { opacity: 0.55; }
th.finding button { border: 0; background: none; padding: 0;
  font-weight: 600; text-align: inherit; text-decoration: underline dotted; cursor: pointer; }
.served button:focus-visible, .finding :focus-visible { outline: 3px solid var(--link);
  outline-offset: 2px; }
"""


def following(made_of_seq: int) -> Behaviour:
    """The behaviour of a run's page that was made when its ledger had come to this event."""
    # A number and no text of a run's: nothing in a script is made of those.
    number = f'"use strict";\nconst MADE_OF_SEQ = {made_of_seq:d};\n'
    return Behaviour(scripts=[number, SCRIPT], style=STYLE, connects=True)


def state_of(glance: Glance) -> dict[str, Any]:
    """How a run stands, for the script; what is not known is null."""
    last = glance.last
    newest = max(glance.scores, default=None)
    return {
        "state": glance.state,
        "detail": glance.detail,
        "round": glance.round,
        "step": glance.step,
        "measure": glance.measure,
        "value": glance.value,
        "score": None if newest is None else glance.scores[newest],
        "score_round": newest,
        "best_round": glance.best_round,
        "tokens": glance.num_tokens,
        "seconds_since_event": None if last is None else max(0.0, time.time() - seconds_of(last)),
        "num_decided": glance.num_decided,
        "page_seq": glance.last_page_seq,
    }
