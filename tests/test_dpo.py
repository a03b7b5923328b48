"""Training on preferences: rows of pairs, the loss and its gradient, the reference, the task."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tinker
import torch

import local_tinker
from config_schema import LoadedConfig, load_and_validate_config, validate
from data_loader import load_examples
from data_selector import CandidateLoss, Mining, Rows, Selection, Signals, select_first, select_next
from errors import ConfigError, DataError
from evaluation.preferences import PairLogprobs, load_pairs, render_pairs
from ledger.store import RunStore
from loop.methods.dpo import PartLoss, RenderedPair, pair_loss, step_result
from loop.rounds.keeping import care_for, is_reference
from rows.chat_formats import load_renderer
from rows.examples import ExampleTable, Message
from rows.preferences import Aside, PairReader, Placed
from rows.rendering import Rendering
from rows.sources import Source
from scores.diagnosis import PreferenceSteps, preference_course
from sdk_client import new_run, using
from test_loop import Workspace, same_bits
from trainer_with_eval import main


def pair(number: int, right: str = "yes", wrong: str = "no", **more: Any) -> dict[str, Any]:
    topic = ("sums", "names")[number % 2]
    return {"prompt": f"Say {number}", "chosen": right, "rejected": wrong, "topic": topic, **more}


def read(fields: dict[str, Any]) -> Placed | Aside | None:
    return PairReader().read(fields, 1)


def said_by(fields: dict[str, Any]) -> list[tuple[str, str]]:
    """All turns of the pair that a row is, its rejected answer last."""
    placed = read(fields)
    assert isinstance(placed, Placed)
    record = placed.reading.record
    assert record.rejected is not None
    return [(m.role, m.content) for m in (*record.messages, record.rejected)]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


# --- rows ---------------------------------------------------------------------------------------

Q, A, B = turn("user", "q"), turn("assistant", "a"), turn("assistant", "b")
COMPARED = {"prompt_conversation": [Q], "completion_A": [A], "completion_B": [B]}


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"instruction": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [Q], "chosen": [A], "rejected": [B]},
        {"prompt": [Q], "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": [Q, A], "rejected": [Q, B], "messages": [Q, A]},
        {"chosen": [Q, A], "rejected": [Q, B]},
        {"chosen": json.dumps([Q, A]), "rejected": json.dumps([Q, B])},
        {"conversations": [{"from": "human", "value": "q"}], "chosen": A, "rejected": B},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": "a", "rejected": "b"},
        {"comparison": COMPARED, "label": "A"},
        {"comparison": json.dumps({**COMPARED, "completion_A": [B], "completion_B": [A]}),
         "label": "B"},
    ],
)  # fmt: skip
def test_the_forms_of_a_pair(fields: dict[str, Any]) -> None:
    assert said_by(fields) == [("user", "q"), ("assistant", "a"), ("assistant", "b")]


def test_a_shared_beginning_is_the_prompt() -> None:
    before = [turn("system", "s"), Q, turn("assistant", "well"), turn("user", "and?")]
    said = said_by({"chosen": [*before, A], "rejected": [*before, B]})
    assert said[-2:] == [("assistant", "a"), ("assistant", "b")]
    assert [role for role, _ in said[:4]] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt": "q", "chosen": "a"}, '"rejected" is missing or empty'),
        ({"chosen": "a", "rejected": "b"}, '"prompt" is missing or empty'),
        ({"prompt": "q", "completion": "a"}, "prefers no answer"),
        ({"messages": [Q, A]}, "prefers no answer"),
        ({"chosen": [Q, A], "rejected": [turn("user", "r"), B]}, "differ at message 0"),
        ({"chosen": [Q, A], "rejected": [Q, B, Q, B]}, "differ at message 1"),
        ({"prompt": "x", "chosen": [Q, A], "rejected": [Q, B]}, '"prompt" does not stand in'),
        ({"comparison": COMPARED, "label": "C"}, "A, B or Tie"),
        ({"comparison": {"completion_A": [A]}, "label": "A"}, '"prompt_conversation"'),
        ({"prompt": "q", "chosen_response": "a", "rejected_response": "b"}, "data.columns"),
        ({"prompt": "q", "completion": "a", "label": True, "kto_tag": "false"}, "different things"),
        ({"prompt": [Q], "chosen": [{**A, "weight": 2}], "rejected": [B]}, "a weight of its own"),
    ],
)
def test_what_is_no_pair(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read(fields)


def test_ties_are_set_aside_and_marked_rows_are_paired_by_their_prompt() -> None:
    same, compared = read(pair(1, "a", "a")), read({"comparison": COMPARED, "label": "Tie"})
    assert isinstance(same, Aside) and isinstance(compared, Aside)
    assert (same.kind, compared.kind) == ("tie", "tie")
    reader = PairReader()
    rows = [("q", "a", True), ("r", "c", True), ("q", "a", False), ("q", "b", False), ("q", "d", 0)]
    found = [
        reader.read({"prompt": prompt, "completion": said, "label": label}, number)
        for number, (prompt, said, label) in enumerate(rows, start=1)
    ]
    assert [one is None for one in found] == [True, True, True, False, True]
    made = found[3]
    assert isinstance(made, Placed)
    assert made.line_no == 1 and made.reading.record.rejected == Message("assistant", "b")
    # What is liked and disliked at once is no pair, and another prompt's is none either.
    assert sorted(one.line_no for one in reader.left()) == [2, 3, 5]


def test_pairs_that_stand_the_other_way_round_as_well_are_left_out(tmp_path: Path) -> None:
    """Whatever they weigh, and in whichever file; together they prefer neither answer."""
    files = {
        "a.jsonl": [pair(1), pair(2), pair(1, "no", "yes", weight=2), pair(3, "yes", "perhaps")],
        "b.jsonl": [pair(2, "no", "yes"), pair(3), pair(1), pair(4, topic="t")],
    }
    sources = []
    for name, rows in files.items():
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
        sources.append(Source(name, tmp_path / name))
    data = load_examples(sources, holds="pairs")
    assert [(one.source, one.line_no) for one in data.examples] == [
        ("a.jsonl", 4),
        ("b.jsonl", 2),
        ("b.jsonl", 4),
    ]
    assert data.dropped.counts == {"opposite": 4, "duplicate": 1}
    said = {(row.file, row.line_no): row.reason for row in data.dropped if row.kind == "opposite"}
    assert said == {
        ("a.jsonl", 1): "line 3 prefers its answers the other way round",
        ("a.jsonl", 2): "line 1 of b.jsonl prefers its answers the other way round",
        ("a.jsonl", 3): "line 1 prefers its answers the other way round",
        ("b.jsonl", 1): "line 2 of a.jsonl prefers its answers the other way round",
    }
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, [pair(1), pair(1, "no", "yes")])))
    with pytest.raises(DataError, match="2 stand the other way round as well"):
        load_examples([Source("c.jsonl", tmp_path / "c.jsonl")], holds="pairs")
    with (tmp_path / "c.jsonl").open("a") as file:
        file.write("\n" + json.dumps(pair(5)))
    with pytest.raises(DataError, match=r"line 1: line 2 prefers .* held-out pairs are never"):
        load_pairs("pref:c.jsonl", tmp_path / "c.jsonl")


def test_keys_that_nothing_uses_are_named() -> None:
    placed = read({**pair(1), "score_chosen": 7, "messages": [Q, A]})
    assert isinstance(placed, Placed)
    assert placed.reading.unused == ("messages", "score_chosen")


def test_openais_pairs_are_read_by_the_columns_that_the_refusal_names(tmp_path: Path) -> None:
    """Their prompt is an object that holds messages and tools."""
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "q"}]}
    asked |= {"tools": [{"name": "f"}], "parallel_tool_calls": True}
    sides = {
        key: [{"role": "assistant", "content": said}]
        for key, said in (("preferred_output", "a"), ("non_preferred_output", "b"))
    }
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"input": asked, **sides}) + "\n")
    with pytest.raises(DataError, match=r"say in data\.columns what"):
        load_examples([Source("rows.jsonl", file)], holds="pairs")
    columns = {"prompt": "input", "chosen": "preferred_output", "rejected": "non_preferred_output"}
    data = load_examples([Source("rows.jsonl", file, columns=columns)], holds="pairs")
    (pair,) = data.examples
    assert [one.content for one in pair.messages] == ["q", "a"]
    assert pair.tools == '[{"name": "f"}]'
    assert dict(data.files[0].unused) == {"prompt.parallel_tool_calls": 1}


def test_an_id_covers_both_answers_and_those_of_other_rows_are_as_ever(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [pair(1), pair(1, "yes", "never"), pair(1), pair(2, "x", "x"), pair(3, weight=2)]
    file.write_text("\n".join(map(json.dumps, rows)))
    data = load_examples([Source("pairs.jsonl", file)], holds="pairs")
    assert dict(data.dropped.counts) == {"duplicate": 1, "tie": 1}
    assert len(set(data.examples.ids)) == 3 and data.examples[2].weight == 2
    table = ExampleTable(data.examples)  # as it comes out again
    assert list(table) == list(data.examples)
    file.write_text(json.dumps({"prompt": "q", "completion": "a"}))
    (plain,) = load_examples([Source("plain.jsonl", file)]).examples
    assert plain.id == "a68be1e11fdc7d3ed45427c06462ef501f69afc42960775887e5bf66b9c36796"


def test_supervised_training_says_which_method_takes_pairs(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    for row in (pair(1), {"comparison": COMPARED, "label": "A"}):
        file.write_text(json.dumps(row))
        with pytest.raises(DataError, match="set method to dpo"):
            load_examples([Source("pairs.jsonl", file)])


# --- rendering ----------------------------------------------------------------------------------


def rendered(tmp_path: Path, model_dir: Path, rows: list[dict], max_length: int = 64) -> Any:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    data = load_examples([Source("rows.jsonl", file)], holds="pairs")
    rendering = Rendering(load_renderer("llama3", str(model_dir)), max_length)
    return rendering, rendering.render_all(data.examples)


def test_both_answers_carry_loss_and_nothing_before_them(tmp_path: Path, llama_dir: Path) -> None:
    before = [Q, turn("assistant", "well"), turn("user", "and?")]
    rows = [{"chosen": [*before, A], "rejected": [*before, B]}]
    rendering, table = rendered(tmp_path, llama_dir, rows)
    (one,) = table.examples
    for is_rejected, answer in ((False, "a"), (True, "b")):
        pieces = list(rendering.pieces_of(one.id, is_rejected=is_rejected))
        assert [piece.weight for piece in pieces] == [0, 1]
        assert pieces[1].text == f"{answer}<|eot_id|>"
    assert table.num_tokens[0] > table.longest[0]


def test_pairs_that_a_cut_leaves_nothing_of(tmp_path: Path, llama_dir: Path) -> None:
    same = pair(2, "y" * 40 + " one", "y" * 40 + " two")
    rows = [pair(1), same, pair(3, "short", "n" * 90)]
    _, table = rendered(tmp_path, llama_dir, rows, max_length=40)
    kinds = {row.line_no: (row.kind, row.reason) for row in table.dropped}
    assert kinds[2][0] == "tie" and "within max_seq_length 40" in kinds[2][1]
    assert table.noted["rejected cut"] == 1 and table.noted["chosen cut"] == 0
    rows = [pair(1, "a" * 9, "b" * 9), {**pair(2), "prompt": "long " * 30}]
    _, table = rendered(tmp_path, llama_dir, rows, max_length=60)
    (row,) = table.dropped
    assert row.kind == "no_loss_tokens" and "its chosen answer" in row.reason


def test_held_out_pairs_are_never_dropped(tmp_path: Path, llama_dir: Path) -> None:
    file = tmp_path / "pref.jsonl"
    for bad, said in (
        (pair(2, "x", "x"), "line 2: its chosen and its rejected answer are the same"),
        ({"prompt": "q", "completion": "a", "label": True}, "line 2: no row that is marked"),
        ({"prompt": "q", "completion": "a"}, "prefers no answer"),
    ):
        file.write_text("\n".join(map(json.dumps, [pair(1), bad])))
        with pytest.raises(DataError, match=said):
            load_pairs("pref:pref.jsonl", file)
    file.write_text(json.dumps(pair(1, "y" * 90, "no", cluster="c")))
    pairs = load_pairs("pref:pref.jsonl", file)
    assert list(pairs.clusters.values()) == ["c"] and not pairs.unused
    with pytest.raises(DataError, match="the chosen answer is longer than max_seq_length"):
        render_pairs(pairs, Rendering(load_renderer("llama3", str(llama_dir)), 40))


# --- the loss -----------------------------------------------------------------------------------


def step_pairs(tmp_path: Path, llama_dir: Path) -> list[RenderedPair]:
    rows = [pair(1), pair(2, "maybe so", "no", weight=3), pair(3, "a", "never again")]
    rendering, table = rendered(tmp_path, llama_dir, rows)
    return [
        RenderedPair(
            rendering[one.id],
            rendering.rejected(one.id),
            PairLogprobs(one.id, -8.0 - number, -9.0, 1, 1, 0),
        )
        for number, one in enumerate(table.examples)
    ]


def logprobs_of(part: PartLoss) -> list[torch.Tensor]:
    lengths = [datum.model_input.length for datum in part.datums]
    return [(-torch.arange(n) / 7 - 0.3).requires_grad_(True) for n in lengths]


def by_hand(pairs: list[RenderedPair], beta: float) -> float:
    """The mean loss of a batch, with plain numbers."""
    total = 0.0
    for one in pairs:
        sums = []
        for side in (one.chosen, one.rejected):
            weights = side.datum.loss_fn_inputs["weights"].to_numpy()
            sums.append(sum(-i / 7 - 0.3 for i in range(len(weights)) if weights[i] > 0))
        margin = (sums[0] - one.reference.chosen) - (sums[1] - one.reference.rejected)
        total += one.chosen.info.weight * math.log1p(math.exp(-beta * margin))
    return total / len(pairs)


def test_the_gradient_is_of_the_mean_over_the_whole_batch(tmp_path: Path, llama_dir: Path) -> None:
    pairs, grads = step_pairs(tmp_path, llama_dir), []
    for sizes in ([3], [2, 1]):
        start, loss, grad = 0, 0.0, []
        for size in sizes:
            part = PartLoss(pairs[start : start + size], len(pairs), 0.2)
            inputs = logprobs_of(part)
            made, _ = part.loss(part.datums, inputs)
            made.backward()
            loss += float(made.detach())
            grad += [one.grad for one in inputs]
            start += size
        assert loss == pytest.approx(by_hand(pairs, 0.2), rel=1e-6)
        grads.append(grad)
    for one, other, side in zip(*grads, part_sides(pairs), strict=True):
        assert torch.allclose(one, other, atol=1e-7)
        is_loss = side.datum.loss_fn_inputs["weights"].to_torch() > 0
        # 0/1 masks: each token of an answer counts alike, however long it is.
        assert (one[~is_loss] == 0).all() and (one[is_loss] == one[is_loss][0]).all()


def part_sides(pairs: list[RenderedPair]) -> list[Any]:
    return [side for one in pairs for side in (one.chosen, one.rejected)]


def test_what_is_no_number_trains_nothing_and_is_told(tmp_path: Path, llama_dir: Path) -> None:
    part = PartLoss(step_pairs(tmp_path, llama_dir), 3, 0.1)
    inputs = logprobs_of(part)
    with torch.no_grad():
        inputs[0][-1] = float("nan")
    part.loss(part.datums, inputs)[0].backward()
    assert all(one.grad is not None and (one.grad == 0).all() for one in inputs)
    assert math.isnan(step_result(part.outcomes).loss)


def test_the_measures_of_a_step(tmp_path: Path, llama_dir: Path) -> None:
    pairs = step_pairs(tmp_path, llama_dir)
    part = PartLoss(pairs, 3, 0.2)
    part.loss(part.datums, logprobs_of(part))
    result, outcomes = step_result(part.outcomes), part.outcomes
    assert result.loss == pytest.approx(by_hand(pairs, 0.2))
    d = [(o.chosen - o.pair.reference.chosen, o.rejected - o.pair.reference.rejected)
         for o in outcomes]  # fmt: skip
    measures = result.measures
    assert measures["margin"] == pytest.approx(sum(0.2 * (c - r) for c, r in d) / 3)
    assert measures["accuracy"] == pytest.approx(sum(c > r for c, r in d) / 3)
    assert measures["kl"] == pytest.approx(sum(c * c + r * r for c, r in d) / 12)
    num = [sum(s.info.num_loss_tokens for s in part_sides(pairs)[side::2]) for side in (0, 1)]
    assert measures["chosen_logprob"] == pytest.approx(sum(o.chosen for o in outcomes) / num[0])
    assert measures["rejected_logprob"] == pytest.approx(sum(o.rejected for o in outcomes) / num[1])
    assert result.nll == -measures["chosen_logprob"] and result.num_loss_tokens == sum(num)
    now = PairLogprobs("x", outcomes[0].chosen, outcomes[0].rejected, 1, 1, 0)
    assert pair_loss(now, pairs[0].reference, 0.2) == pytest.approx(outcomes[0].loss)


def test_what_rounding_prefers_is_no_preference(tmp_path: Path, llama_dir: Path) -> None:
    """Before the first step the weights are the reference, in other batches."""
    part = PartLoss(step_pairs(tmp_path, llama_dir), 3, 0.1)
    part.loss(part.datums, logprobs_of(part))
    same = [
        one.pair._replace(
            reference=PairLogprobs("x", one.chosen * (1 + 1e-7), one.rejected, 1, 1, 0)
        )
        for one in part.outcomes
    ]
    again = PartLoss(same, 3, 0.1)
    again.loss(again.datums, logprobs_of(again))
    measures = step_result(again.outcomes).measures
    assert measures["margin"] > 0 and measures["accuracy"] == 0.5


@pytest.mark.parametrize("answers", [(["a"], ["b"]), ([1], [2]), ([["a"]], [["b"]]), (3, 4)])
def test_an_answer_is_a_text_or_messages(answers: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match='"chosen" is neither a text nor a list of messages'):
        read({"prompt": "q", "chosen": answers[0], "rejected": answers[1]})


def test_the_columns_to_name_are_those_that_are_missing(tmp_path: Path) -> None:
    file = tmp_path / "orca.jsonl"
    file.write_text(json.dumps({"question": "q", "chosen": "a", "rejected": "b"}))
    with pytest.raises(DataError) as caught:
        load_pairs("pref:orca.jsonl", file)
    assert "found keys: chosen, question, rejected" in str(caught.value)


def test_a_round_says_when_its_chosen_answers_became_less_likely() -> None:
    losses, margins = [0.7, 0.6, 0.5, 0.4], [0.0, 0.2, 0.4, 0.8]
    fell = preference_course(PreferenceSteps(losses, margins, [0.0, -0.1, -0.2, -0.31]))
    assert "from 0.700 to 0.400" in fell and "from +0.000 to -0.310 nats a token" in fell
    rose = preference_course(PreferenceSteps(losses, margins, [0.0, 0.1, 0.2, 0.3]))
    assert "less likely" not in rose
    twice = [one for one in losses for _ in (1, 2)]
    means = preference_course(PreferenceSteps(twice, twice, [0.0] * 8))
    assert means.endswith("from 0.700 to 0.400, means of its first and last 2 steps")


# --- choosing rows, keeping weights -------------------------------------------------------------


def test_low_margins_are_drawn_and_the_lowest_are_noise(tmp_path: Path, llama_dir: Path) -> None:
    _, table = rendered(tmp_path, llama_dir, [pair(number) for number in range(40)])
    pool, ids = table.examples, list(table.examples.ids)
    # 10 that look mislabelled, 10 with a low margin, 20 that are settled.
    losses = {one: 3.0 if n < 10 else 0.7 if n < 20 else 0.001 for n, one in enumerate(ids)}
    first = select_first(pool, num_slots=8, seed=0)
    mining = Mining("loss", replay_share=0.0, noise_cap=0.25, of_pairs=True)
    assert mining.needs_losses and not mining.needs_losses_before
    signals = Signals(losses={one: CandidateLoss(loss) for one, loss in losses.items()})
    chosen: Selection = select_next(first, Rows(pool, pool), signals, mining, num_slots=8)
    drawn = [ids.index(pick.example_id) for pick in chosen.picks]
    assert not any(number < 10 for number in drawn)
    assert sum(number < 20 for number in drawn) >= 7
    assert any("loss 0.70 of the pair" in pick.reason for pick in chosen.picks)


def test_the_reference_is_never_let_go(workspace: Workspace) -> None:
    def saved(number: int) -> Any:
        from ledger.records import Checkpoint

        paths = f"tinker://r/weights/{number}", f"tinker://r/sampler_weights/{number}"
        return Checkpoint(number, number, *paths, "m", 4, 32, True, True, True, "llama3", None)

    of_start, best = saved(0), saved(2)
    reference = [of_start.state_path, of_start.sampler_path]
    care = care_for([of_start, saved(1), best], best, reference, (), (), reference)
    assert not care.release and set(care.keep) == {best.state_path, best.sampler_path}
    assert care_for([of_start, best], best, reference, (), ()).release == reference
    settings = {**workspace.settings, "method": "rl", "rl": {"kl_coef": 0.1}}
    (workspace.folder / "rl.json").write_text(json.dumps(settings))
    config = load_and_validate_config(str(workspace.folder / "rl.json")).config
    assert is_reference(config, 0) and not is_reference(config, 1)
    assert config.rl is not None
    without = config.rl.model_copy(update={"kl_coef": 0.0})
    assert not is_reference(config.model_copy(update={"rl": without}), 0)


# --- runs ---------------------------------------------------------------------------------------


def preferring(workspace: Workspace) -> dict[str, Any]:
    """A workspace of pairs; returns the settings that are not as usual."""
    marked = [
        {"prompt": "Say 90", "completion": "yes", "label": True},
        {"prompt": "Say 90", "completion": "no", "label": False},
        {"prompt": "Say 91", "completion": "yes", "label": True},
    ]
    workspace.write_rows(
        "train.jsonl", [*(pair(i) for i in range(10)), pair(50, "x", "x"), *marked]
    )
    workspace.write_rows("pool.jsonl", [pair(i) for i in range(100, 130)])
    workspace.write_rows("pref.jsonl", [pair(i, cluster=f"c{i // 2}") for i in range(200, 212)])
    return {
        "method": "dpo",
        "eval_tasks": ["pref:pref.jsonl"],
        "learning_rate": 0.01,
        "mining": {"pool_file": "pool.jsonl", "replay_share": 0.25, "strategy": "loss"},
    }


@pytest.mark.trains
def test_a_run_on_preferences(workspace: Workspace, capsys: pytest.CaptureFixture) -> None:
    changes = preferring(workspace)
    assert workspace.run("run", **changes) == 0
    said = capsys.readouterr().err
    assert "warning: method is dpo and there is no start_from" in said
    assert "pref:pref.jsonl, 12 pairs in 2 topics" in said
    store, events = workspace.store("run"), workspace.events("run")
    manifest = store.manifest()
    assert (manifest.num_dropped["tie"], manifest.num_dropped["unpaired"]) == (1, 1)
    # The reference is named once, before the first step, and asked once for a pair.
    types = [event["type"] for event in events]
    assert types.count("reference_set") == 1 and types.index("reference_set") < types.index("step")
    assert next(e for e in events if e["type"] == "reference_set")["path"] is None
    lines = (store.run_dir / "reference.jsonl").read_text().splitlines()[1:]
    kept = [json.loads(line) for line in lines]
    assert len({one["key"] for one in kept}) == len(kept)
    asked = [
        event["num_prompt_tokens"] for event in events if event["type"] == "reference_measured"
    ]
    assert sum(asked) == sum(one["num_prompt_tokens"] for one in kept)
    first = next(event for event in events if event["type"] == "step")
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert first["measures"]["margin"] == pytest.approx(0, abs=1e-3)
    assert first["measures"]["accuracy"] == 0.5  # of what rounding alone tells apart
    # It is scored by its pairs alone, clustered, with a number for the baseline.
    results = store.results()
    task = results[-1].task("pref:pref.jsonl")
    assert task is not None and (task.layer, task.role, task.n, task.num_clusters) == (
        1,
        "score",
        12,
        6,
    )
    scores: list[Any] = [one.other_scores for one in task.samples]
    for sample, one in zip(task.samples, scores, strict=True):
        assert sample.score == float(one["chosen_logprob"] > one["rejected_logprob"])
    assert results[-1].score == 1.0  # "yes" is likelier than "no" after six steps of nothing else
    losses = store.measured_losses()[0].losses
    assert all(0 < loss.now < 5 and loss.before is None for loss in losses.values())
    assert "loss of the pairs went from" in (store.diagnosis(1) or "")
    page = (store.run_dir / "report.html").read_text()
    assert "Rejected for it:" in page and "pref:pref.jsonl" in page


@pytest.mark.trains
def test_parts_of_a_batch_train_as_the_whole(workspace: Workspace) -> None:
    changes = {
        **preferring(workspace),
        "max_rounds": 1,
        "steps_per_round": 1,
        "train_unembed": False,
    }
    assert workspace.run("whole", **changes) == 0
    assert workspace.run("parts", **changes, data={"accumulate": 2}) == 0
    one, other = (workspace.weights(name, 1) for name in ("whole", "parts"))
    moments = [key for key in one if "exp_avg" in key and "sq" not in key]
    assert moments
    for key in moments:
        assert torch.allclose(one[key], other[key], rtol=1e-3, atol=1e-7), key


@pytest.mark.trains
def test_started_from_weights_and_killed_it_ends_as_it_would_have(workspace: Workspace) -> None:
    start = {**workspace.settings, "max_rounds": 1, "mining": {}}
    start_dir = "start"
    assert workspace.run(start_dir, **start) == 0
    changes = {
        **preferring(workspace),
        "start_from": str(workspace.folder / start_dir),
        "checkpoint_every_steps": 2,
    }
    assert workspace.run("whole", **changes) == 0
    whole = workspace.store("whole")
    began = whole.checkpoint(0)
    assert began is not None and began.sampler_path is not None and began.expires_at is None
    reference = whole.reference()
    assert reference is not None and reference["path"] == began.sampler_path
    assert {began.sampler_path, began.state_path} <= set(whole.kept_paths())

    # The same run, as a kill amid the measuring of the reference would have left it.
    assert workspace.run("killed", **changes) == 0
    cut_back(workspace.folder / "killed", "reference_measured", num_pairs=3)
    assert main(["--resume", str(workspace.folder / "killed")]) == 0
    events = [workspace.events(name) for name in ("whole", "killed")]
    asked = [
        [e["num_prompt_tokens"] for e in one if e["type"] == "reference_measured"] for one in events
    ]
    assert asked[0] == asked[1]
    for round_no in (1, 2):
        assert same_bits(
            workspace.weights("whole", round_no), workspace.weights("killed", round_no)
        )
    scores = [workspace.store(name).scores() for name in ("whole", "killed")]
    assert scores[0] == scores[1]


def cut_back(run_dir: Path, event: str, num_pairs: int) -> None:
    """A run as it was just before its first event of a type, with the first pairs paid for."""
    ledger = (run_dir / "ledger.jsonl").read_text().splitlines()
    end = next(i for i, line in enumerate(ledger) if json.loads(line)["type"] == event)
    (run_dir / "ledger.jsonl").write_text("\n".join(ledger[:end]) + "\n")
    kept = (run_dir / "reference.jsonl").read_text().splitlines()
    (run_dir / "reference.jsonl").write_text("\n".join(kept[: 1 + num_pairs]) + "\n")
    assert RunStore.open(run_dir).reference() is not None


def test_preferences_are_a_task_of_any_run(workspace: Workspace) -> None:
    workspace.write_rows("pref.jsonl", [pair(i) for i in range(200, 206)])
    raw = {**workspace.settings, "eval_tasks": ["qa:questions.jsonl", "pref:pref.jsonl"]}
    config = validate(raw, "config.json")
    assert config.scored_tasks == ("qa:questions.jsonl",)
    assert config.layer_of("pref:pref.jsonl") == 1
    assert validate({**raw, "eval_tasks": ["pref:a.jsonl"]}, "x").scored_tasks == ("pref:a.jsonl",)
    lifted = validate({**raw, "evaluation": {"layers": {"pref:pref.jsonl": 3}}}, "x")
    assert lifted.scored_tasks == ("qa:questions.jsonl", "pref:pref.jsonl")
    with pytest.raises(ConfigError, match=r"data\.train_on is all_tokens, and method dpo"):
        validate({**raw, "method": "dpo", "data": {"train_on": "all_tokens"}}, "x")
    from loop.planning.inputs import read_inputs

    workspace.write_rows("train.jsonl", [
        {"instruction": "What is the way to Say number 200?", "output": "1"},
        {"instruction": "Say 201", "output": "1"},
        {"instruction": "Say 7", "output": "7"},
    ])  # fmt: skip
    file = workspace.folder / "config.json"
    inputs = read_inputs(LoadedConfig(config, file, workspace.folder), None)
    dropped = [row.line_no for row in inputs.split.dropped if row.kind == "contaminated"]
    assert dropped == [2]


def test_the_service_takes_the_loss(
    service: local_tinker.Service, tmp_path: Path, llama_dir: Path
) -> None:
    """Steps by the unmodified SDK lower the loss of their own pairs."""
    pairs = step_pairs(tmp_path, llama_dir)

    async def body(client: tinker.ServiceClient) -> list[float]:
        trained, losses = await new_run(client), []
        for _ in range(3):
            part = PartLoss(pairs, len(pairs), 0.1)
            future = trained.forward_backward_custom(part.datums, part.loss)
            await trained.optim_step(tinker.AdamParams(learning_rate=0.003))
            await future
            losses.append(step_result(part.outcomes).loss)
        return losses

    losses = using(service, tmp_path / "saved", body)
    assert losses[2] < losses[0]
