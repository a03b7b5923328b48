"""Select: what the next round trains on, from what was failed and what was measured of the rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from data_selector import (
    CandidateLoss,
    MeasuredLosses,
    Rows,
    Selection,
    Signals,
    candidates,
    mined_table,
    select_first,
    select_next,
)
from evaluation.held_out import measure_losses
from evaluation.preferences import measure_pairs
from loop.methods.dpo import pair_loss
from loop.methods.reference import reference_logprobs
from loop.rounds.run import Run, topics_for
from loop.rounds.session import sampling_client
from loop.rounds.showing import shown_of
from loop.rounds.signals import (
    distances_of,
    likeness_of,
    missing_rollouts,
    pass_rates_of,
    stalled_topics,
)
from loop.rounds.training import workplace_of
from rows.examples import ExampleTable, find_example
from rows.places import RowPlace, place_of
from scores.decision import Decision
from scores.learnable import is_resting
from simple_eval import Sampler


async def select(run: Run, round_no: int, decision: Decision) -> Selection:
    """Choose what a round trains on, from the round before it and what its evaluation failed."""
    store, plan, config = run.store, run.plan, run.plan.config
    run.progress.live(f"choosing what round {round_no} trains on")
    train, weights = plan.train.examples, plan.train_weights
    previous, step = store.selection(round_no - 1), store.steps_taken()
    num_slots = plan.steps.of_next_round(step) * config.batch_size
    if previous is None:
        selection = select_first(train, num_slots=num_slots, seed=config.seed, weights=weights)
    else:
        rows, signals = await signals_for(run, previous, decision, num_slots)
        selection = select_next(previous, rows, signals, plan.mining, num_slots=num_slots)
    selection = located(selection, train, plan.pool.examples)
    assert not plan.contaminated_picks(selection), "a pick that an evaluation asks"
    store.write_shown(shown_of(plan, selection))
    store.record_selection(selection, step)
    run.progress.selection_line(selection)
    return selection


def located(selection: Selection, *tables: ExampleTable) -> Selection:
    """A selection with the file, the line and the first words of each row that it names, from the
    tables that it was made of."""

    def place(example_id: str) -> RowPlace:
        example = find_example(example_id, *tables)
        assert example is not None, "the selection was made of these tables"
        return place_of(example)

    picks = []
    for pick in selection.picks:
        row = place(pick.example_id)
        picks.append(replace(pick, file=row.file, line_no=row.line_no, text=row.text))
    suspects = tuple(place(one) for one in selection.suspects)
    return replace(selection, picks=tuple(picks), suspect_rows=suspects)


async def signals_for(
    run: Run, previous: Selection, decision: Decision, num_slots: int
) -> tuple[Rows, Signals]:
    """The training rows and the pool, and what is known of those that the next round draws from;
    they have their topics."""
    plan, mining = run.plan, run.plan.mining
    if mining.replay_share == 1:  # nothing is drawn by what is known
        return Rows(plan.train.examples, plan.pool.examples, plan.train_weights), Signals()
    start = decision.goes_on_from
    result = run.store.result(start)  # of the weights that the round goes on from
    assert result is not None, "a round is evaluated before the next one is selected"
    train, pool = plan.train.examples, plan.pool.examples
    rows, source = mined_table(train, pool)
    signals = Signals()
    if mining.needs_topics:
        known = topics_for(run, result)
        reports = [run.store.topics(n) or [] for n in (*run.store.lineage(start), start) if n > 1]
        rows = known.rows
        signals = Signals(topics=known.scores(result), stalled=stalled_topics(reports))
    lineage = [*run.store.lineage(start), start]
    if (mining.by_rewards or mining.by_teacher) and (gone := missing_rollouts(run.store, lineage)):
        run.say_once(
            f"warning: sampled answers of {len(gone)} earlier step{'s' * (len(gone) != 1)} are "
            f"gone (the first: {run.store.run_dir / gone[0]}), so their prompts count as not tried "
            "where rows are drawn"
        )
    if mining.by_rewards:
        rates = pass_rates_of(run.store, lineage)
        resting = {one for one, rate in rates.items() if is_resting(rate, previous.round + 1)}
        signals = replace(signals, rates=rates, resting=frozenset(resting))
    if mining.by_teacher:
        distances = distances_of(run.store, lineage)
        signals = replace(signals, distances=distances)
    measured = run.store.measured_losses()
    earlier = [one for one in measured if one.round <= previous.round]
    of_topics = rows if mining.needs_topics else None
    signals = replace(signals, suspects=run.suspicions.among(earlier, of_topics))
    num_hard = mining.slots(num_slots, has_pool=source == "pool").num_hard
    positions = candidates(previous, rows, signals, mining, num_hard)
    if mining.needs_losses and positions:
        new = await losses_before(run, previous.round + 1, rows.take(positions), start, measured)
        suspects = run.suspicions.among([*earlier, new], of_topics)
        signals = replace(signals, losses=new.losses, suspects=suspects)
    if mining.strategy == "similar":
        signals = replace(signals, likeness=likeness_of(rows, positions, result))
    if source == "pool":
        return Rows(train, rows, plan.train_weights), signals
    return Rows(rows, pool, plan.train_weights), signals


async def losses_before(
    run: Run, round_no: int, rows: ExampleTable, start: int, recorded: Sequence[MeasuredLosses]
) -> MeasuredLosses:
    """The losses of rows before a round, under the weights of round `start`, and under what the
    run began with where the strategy asks for them; what is `recorded` is not measured again."""
    store, plan = run.store, run.plan
    checkpoint = store.checkpoint(start)
    path = None if checkpoint is None else checkpoint.sampler_path
    journal = store.losses_journal(round_no, path)
    before: dict[str, float | None] = {}
    now: dict[str, float] = {}  # of an earlier round that these weights were asked before, too
    for one in recorded:
        if one.round == round_no:
            journal.discard()
            return one
        before |= {example_id: loss.before for example_id, loss in one.losses.items()}
        if one.checkpoint_round == start:
            now |= {example_id: loss.now for example_id, loss in one.losses.items()}
    num_read = num_sampled = 0

    async def measured(known: Collection[str], path: str | None) -> dict[str, float]:
        nonlocal num_read, num_sampled
        new = rows.take([i for i in range(len(rows)) if rows.id_of(i) not in known])
        if not len(new):
            return {}
        counted = run.progress.counter("measuring the losses of rows", len(new))
        client, weights = await sampling_client(run, path, counted), path or "the base model"
        sampler = Sampler(weights, client, plan.renderer, plan.rendering, plan.sampling)
        name = f"the rows to draw from, under {weights}"
        if plan.mining.of_pairs:
            assert plan.config.dpo is not None, "the schema gives the method its group"
            pairs = await measure_pairs(name, new, sampler, journal)
            num_read += sum(pair.num_prompt_tokens for pair in pairs)
            num_sampled += sum(pair.num_sampled_tokens for pair in pairs)
            reference = await reference_logprobs(workplace_of(run), new.ids, round_no)
            beta = plan.config.dpo.beta
            return {pair.id: pair_loss(pair, reference[pair.id], beta) for pair in pairs}
        losses = await measure_losses(name, new, sampler, journal)
        num_read += losses.num_prompt_tokens
        num_sampled += losses.num_sampled_tokens
        return {row.id: row.nll_sum / row.num_loss_tokens for row in losses.rows}

    if plan.mining.needs_losses_before:
        began_as = store.checkpoint(0)  # None: the base model
        before |= await measured(before, None if began_as is None else began_as.sampler_path)
    if start == 0:  # what the run began with is what it goes on from
        now |= {one: loss for one, loss in before.items() if loss is not None}
    now |= await measured(now, path)
    losses = {one: CandidateLoss(now[one], before.get(one)) for one in rows.ids}
    made = MeasuredLosses(round_no, start, losses)
    store.record_losses(made, num_read, num_sampled)
    journal.discard()
    run.progress.losses_line(round_no, len(losses), num_read)
    return made
