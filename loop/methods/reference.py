"""The reference of preference training: the weights that the run began with, and what they say.

It is the untouched base model, or round 0's own weights where the run was started from some; the
ledger names it, and rounds, rollbacks and resumptions leave it as it is. Its log-probabilities are
measured once for a pair and kept in the run directory as they are paid for.
"""

from __future__ import annotations

from collections.abc import Iterable

from evaluation.preferences import PairLogprobs, measure_pairs
from loop.methods.method import Workplace
from rows.examples import find_example
from simple_eval import Sampler

NAME = "reference"


async def reference_logprobs(
    workplace: Workplace, example_ids: Iterable[str], round_no: int
) -> dict[str, PairLogprobs]:
    """The log-probabilities of pairs under the reference, in nats, by the example's id.

    What is measured for a round is told in the ledger with its tokens. Raises `EvalError`.
    """
    plan, store = workplace.plan, workplace.store
    began_as = store.checkpoint(0)  # None: the base model
    path = None if began_as is None else began_as.sampler_path
    if store.reference() is None:
        store.record_reference(path, store.baseline_name)
    # Opened anew each time: both training and the choice of rows add to it.
    journal = store.reference_journal(path)
    ids = list(dict.fromkeys(example_ids))
    kept = {one: journal.get(f"{NAME}/{one}", PairLogprobs) for one in ids}
    missing = [one for one, logprobs in kept.items() if logprobs is None]
    known = {one: logprobs for one, logprobs in kept.items() if logprobs is not None}
    if missing:
        found = [find_example(one, plan.train.examples, plan.pool.examples) for one in missing]
        pairs = [pair for pair in found if pair is not None]
        assert len(pairs) == len(missing), "they were chosen from these tables"
        counted = workplace.progress.counter("measuring the reference", len(pairs))
        client = await workplace.open_sampler(path, None)
        sampler = Sampler(NAME, client, plan.renderer, plan.rendering, plan.sampling)
        made = await measure_pairs(NAME, pairs, sampler, journal, lambda pair, one: counted())
        known |= {one.id: one for one in made}
    store.record_reference_measured(round_no, len(journal), *journal.num_tokens)
    return known
