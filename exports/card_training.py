"""Of an export's card: how the checkpoint was trained, and on what data. No row's text is in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from exports.card_story import Story
from loop.run_page.wording import loss_text
from pages.document import Block, Bullets, Column, Paragraph, Section, Table
from scores.measures import DPO, ON_POLICY, RL, SFT, main_of, method_words, settings_text

MOST_ROUNDS = 20  # in a table: the last ones
KINDS = {
    "rejected": "could not be used",
    "duplicate": "the same as a row before it",
    "near_duplicate": "nearly the same as a row before it",
    "contaminated": "asks a question of an evaluation",
    "no_loss_tokens": "nothing in it to train on",
    "tie": "neither answer is better than the other",
    "unpaired": "a marked answer without one of the other kind to its prompt",
    "opposite": "a pair that stands the other way round as well",
}

# Where it is not only by wrong answers to the questions of evaluations.
DRAWN_BY = {
    RL: "by what the rounds before had answered wrong, or by how often their own sampled answers "
    "were right",
    ON_POLICY: "by what the rounds before had answered wrong, or by how far their answers were "
    "from the teacher's",
    DPO: "by what the rounds before had judged wrong, or by the loss of the pair",
}


# --- how ------------------------------------------------------------------------------------------


def training_section(story: Story, *, in_card: bool = True) -> Section:
    """The section, `in_card` of an export, which has its files beside it."""
    return Section("How it was trained", list(_training(story, in_card)))


def _training(story: Story, in_card: bool) -> Iterator[Block]:
    store, config = story.store, story.config
    if (origin := store.origin) is not None:
        how = "with its optimizer" if origin.with_optimizer else "with a new optimizer"
        yield Paragraph(f"The run was started from {origin.chain}, {how}.")
    number = story.checkpoint.round
    trained = [one for one in (*store.lineage(number), number) if one > 0]
    if not trained:
        yield Paragraph("This run did not train these weights: they are those it was started from.")
        return
    yield _rounds_table(story, trained)
    resolved = story.recorded["resolved"]
    train_on = resolved.get("train_on") or "not recorded"
    warmup, service = resolved.get("warmup_steps"), resolved.get("service") or "not recorded"
    decay = config["weight_decay"]
    yield Bullets(
        [
            _method_line(story, train_on, in_card),
            f"Batches of {config['batch_size']:,} {method_words(config).unit} of at most "
            f"{config['max_seq_length']:,} tokens, weight decay {decay:g}, "
            f"{'unknown' if warmup is None else warmup} warm-up steps, seed {config['seed']}.",
            f"The learning rate: {resolved['learning_rate']:g}, times {config['lr_decay']:g} after "
            f"each round that missed, times warm-up and a cosine over {config['max_steps']:,} "
            f"steps; at least {config['min_lr']:g}.",
            f"Service: {service}.",
            _used(story, trained),
        ]
    )


def _method_line(story: Story, train_on: str, in_card: bool) -> str:
    method = method_words(story.config)
    if method is SFT:
        return f"Supervised fine-tuning of a LoRA adapter with AdamW; trained on: {train_on}."
    line = f"{method.title} of a LoRA adapter with AdamW: {settings_text(story.config)}."
    if not in_card:
        return line
    return (
        f"{line} No script that mirrors it lies beside this card: there is one of supervised "
        "fine-tuning alone."
    )


def _rounds_table(story: Story, trained: Sequence[int]) -> Table:
    store, rows, name = story.store, [], "loss"
    for number in trained[-MOST_ROUNDS:]:
        steps = list(store.events("step", number))
        if number == story.checkpoint.round:  # what came after it is not in these weights
            steps = [event for event in steps if event["step"] < story.checkpoint.step]
        (name, values), rates = main_of(steps), [e["lr"] for e in steps]
        examples = Counter(one for event in steps for one in event.get("example_ids", ()))
        rows.append(
            [
                str(number),
                f"{len(steps):,}",
                f"{len(examples):,}" if examples else "not recorded",
                f"{sum(event['num_tokens'] for event in steps):,}",
                f"{max(rates):.4g}" if rates else "",
                f"{loss_text(values[0])} to {loss_text(values[-1])}" if values else "",
            ]
        )
    left_out = len(trained) - len(rows)
    note = f"The first {left_out:,} of {len(trained):,} rounds are left out." if left_out else ""
    columns = [Column("round"), Column("steps", True), Column("different examples", True)]
    columns += [Column("tokens", True), Column("highest learning rate", True)]
    return Table("Rounds behind these weights", [*columns, Column(name)], rows, note=note)


def _used(story: Story, trained: Sequence[int]) -> str:
    store = story.store
    whole = [store.usage(number).train_tokens for number in trained]
    return f"{sum(whole):,} tokens were trained in these rounds, steps that were repeated included."


# --- on what --------------------------------------------------------------------------------------


def data_section(story: Story) -> Section:
    return Section("Data", list(_data(story)))


def _data(story: Story) -> Iterator[Block]:
    manifest = story.manifest
    rows = []
    for name, file in manifest.files.items():
        rows.append([name, file.path, f"{file.num_rows:,}", file.sha256])
    if rows:
        columns = [Column("setting"), Column("file"), Column("rows", True), Column("sha256")]
        yield Table("Files of rows", columns, rows)
    told = "of the rows' own answers, which are not trained on"
    if method_words(story.config).name in ("sft", "dpo"):
        told = "trained on"
    lines = [
        f"{name}: {one.num_examples:,} examples kept, {one.num_tokens:,} tokens, "
        f"{one.num_loss_tokens:,} of them {told}."
        for name, one in manifest.examples.items()
    ]
    dropped = {k: n for k, n in manifest.num_dropped.items() if n and k != "similar"}
    if dropped:
        kinds = (f"{n:,} {kind} ({KINDS.get(kind, 'dropped')})" for kind, n in dropped.items())
        lines.append(f"Rows left out: {', '.join(kinds)}.")
    else:
        lines.append("No row was left out.")
    lines += _mined(story)
    yield Bullets(lines)
    asked = [[name, file.path, file.sha256] for name, file in manifest.eval_tasks.items()]
    if asked:
        columns = [Column("task"), Column("file"), Column("sha256")]
        yield Table("Questions", columns, asked)


def _mined(story: Story) -> Iterator[str]:
    """How many rows were drawn by what the rounds before had shown, and by what of it."""
    number = story.checkpoint.round
    rounds = [one for one in (*story.store.lineage(number), number) if one > 0]
    num_picks = num_mined = 0
    for one in rounds:
        selection = story.store.selection(one)
        if selection is not None:
            num_picks += len(selection.picks)
            num_mined += sum(pick.weight is not None for pick in selection.picks)
    if num_picks:
        method = method_words(story.config)
        by_what = DRAWN_BY.get(method, "by what the rounds before had answered wrong")
        yield f"Drawn for these rounds: {num_picks:,} rows, {num_mined:,} of them {by_what}."
