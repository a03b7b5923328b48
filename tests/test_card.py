"""The card of an export: all of it from the run, nothing of the sealed test, nothing acts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

import run_records
from exports.card import card_of, hub_name_of, license_of
from exports.card_failures import failures_section
from exports.card_results import results_section
from exports.card_story import story_of
from exports.check import Check
from exports.served_template import ServedTemplate
from exports.source import Source
from ledger.store import RunStore
from pages.document import Document
from pages.markdown import markdown
from run_records import SECRET, Shape
from study_records import HOSTILE

TEMPLATE = ServedTemplate(
    "{{ messages }}",
    None,
    ("<|eot_id|>",),
    (5,),
    "made for llama3",
    ("one question",),
    ("No.",),
    ("No.",),
)


def source_of(
    store: RunStore | None, round_no: int | None = None, *, base: str = "models/m"
) -> Source:
    checkpoint = None if store is None or round_no is None else store.checkpoint(round_no)
    return Source(
        label="run@best",
        sampler_path=None if checkpoint is None else checkpoint.sampler_path,
        adapter_dir=Path("adapter"),
        base_dir=Path("/home/somebody") / base,
        base_name=base,
        base_sha256={"config.json": "c" * 64},
        renderer="llama3",
        store=store,
        checkpoint=checkpoint,
    )


def card(source: Source, **changes: Any) -> str:
    given: dict[str, Any] = {
        "format": "peft",
        "template": TEMPLATE,
        "serving": "### vLLM\n\n    vllm serve .",
        "checks": [Check("tokens", True, "50 of 50 texts are equal.")],
    }
    return card_of(source, **(given | changes))


def front(text: str) -> dict[str, Any]:
    _, matter, _ = text.split("---\n", 2)
    return yaml.safe_load(matter)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    store = run_records.finished(tmp_path_factory.mktemp("card") / "run")
    store.close()
    return store


def test_a_card_has_the_numbers_of_the_run(run: RunStore) -> None:
    text = card(source_of(run, 2), notes=["Merged once."])
    assert "Score 0.9000 [" in text and "the untouched model 0.1000 [" in text
    assert "It passes its gate: 0.9000 >= 0.75" in text
    assert "The sealed test, asked once, gave 0.8000" in text
    assert "change, the same questions (exact McNemar) | +0.8000" in text
    assert "LoRA rank 8, alpha 32, trained layers: attn, mlp, unembed" in text
    assert "| 2 | 3 | 6 | 120 | 0.0005 | 0.5000 to 0.3333 |" in text
    assert "| train_file | train.jsonl | 10 | " + "a" * 64 in text
    assert "1 rejected (could not be used), 2 duplicate" in text
    assert "Rows of the data that asked a question of an evaluation: 1." in text
    assert "Weak topic: topic 3 plain" in text and "Merged once." in text
    assert "nll:held.jsonl" in text and run.run_id in text and "vllm serve ." in text
    assert "| tokens | holds | 50 of 50 texts are equal. |" in text


def test_nothing_of_the_sealed_test_is_in_a_card(run: RunStore) -> None:
    assert SECRET not in card(source_of(run, 2))


def test_a_round_that_is_not_the_best_is_said_to_be_none(run: RunStore) -> None:
    text = card(source_of(run, 1))
    assert "It does not pass its gate: 0.4000 \\< 0.75" in text
    assert "The sealed test was asked of round 2 and not of this checkpoint" in text
    assert "not the round that the run recommends, round 2 (0.9000 on the dev questions)" in text
    assert "| 2 | 3 |" not in text, "what came after it is no training of it"


def test_guards_are_told_one_by_one(run: RunStore) -> None:
    story = story_of(source_of(run, 1))
    assert story is not None
    gate = dataclasses.replace(story.view.gate, guards={run_records.TASK: 0.1, "other": 0.0})
    # The better round in the place of the start: a fall from 0.9 to 0.4.
    fallen = dataclasses.replace(story, view=story.view._replace(gate=gate), baseline=run.result(2))
    sections = [results_section(fallen), failures_section(fallen)]
    text = markdown(Document("t", sections))
    assert "qa:dev.jsonl: broken; 0.9000 to 0.4000, may fall by 0.1 (n=20)." in text
    assert "other: not measured on this checkpoint." in text
    assert "A guard is broken: guard qa:dev.jsonl fell by 0.5000 from 0.9000" in text
    assert "The untouched model scored higher: 0.9000 against 0.4000." in text


def test_of_a_run_that_went_back_the_rounds_that_were_left_are_no_part(tmp_path: Path) -> None:
    shape = Shape(shares=(0.1, 0.8, 0.2, 0.85), threshold=0.95, num_questions=60, is_sealed=False)
    store = run_records.begun(tmp_path / "run", shape)
    run_records.rounds(store, shape)
    store.close()
    decision = store.decision(2)
    assert decision is not None and decision.action == "rollback"
    text = card(source_of(store, 3))
    assert re.findall(r"^\| (\d+) \| 3 \|", text, re.M) == ["1", "3"]


def test_of_a_checkpoint_of_no_known_run_nothing_is_known() -> None:
    text = card(source_of(None), checks=[], template=None, serving="")
    assert "nothing is known of how it was trained, nor of what it was measured to do" in text
    assert "None is known, because nothing is" in text
    assert "was not loaded again and compared" in text
    assert "0." not in text and "Score" not in text


def test_no_place_on_the_disk_is_in_a_card(tmp_path: Path) -> None:
    store = run_records.finished(tmp_path / "run")
    manifest = store._read_json("data_manifest.json")
    manifest["files"]["train_file"]["path"] = "/home/somebody/secret plans/train.jsonl"
    store.write_json("data_manifest.json", manifest)
    store.close()
    text = card(source_of(RunStore.open(tmp_path / "run"), 2, base="/home/somebody/models/m"))
    assert "somebody" not in text and str(tmp_path) not in text
    assert "| train_file | train.jsonl | 10 |" in text


def _killed(run_dir: Path) -> RunStore:
    shape = Shape(is_sealed=False)
    store = run_records.begun(run_dir, shape)
    run_records.rounds(store, shape, num=2)
    run_records.trained(store, 2, shape)
    return store


def _failed(run_dir: Path) -> RunStore:
    store = _killed(run_dir)
    store.append("eval_failed", round=2, detail="/home/somebody/q.jsonl is gone")
    return store


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (_killed, "The run has not come to its end, and nobody was at work on it"),
        (_failed, "The run ended with an evaluation that failed and has no score"),
    ],
)
def test_what_was_not_evaluated_has_no_score(
    tmp_path: Path, made: Callable[[Path], RunStore], said: str
) -> None:
    made(tmp_path / "run").close()
    store = RunStore.open(tmp_path / "run")
    text = card(source_of(store, 2))
    assert f"This checkpoint was not evaluated. {said}." in text
    assert "somebody" not in text and "Score 0.4000" not in text, "that is another round's score"
    assert "The best round so far is another one, round 1 (0.4000" in text
    assert "There is no sealed test." in text
    earlier = card(source_of(store, 1))
    assert "Score 0.4000" in earlier and "does not pass its gate" in earlier


def test_weights_saved_inside_a_round_have_not_the_score_of_its_end(run: RunStore) -> None:
    end = run.checkpoint(2)
    assert end is not None
    inside = dataclasses.replace(end, step=4, sampler_path=None, state_path="tinker://s/weights/4")
    text = card(dataclasses.replace(source_of(run, 2), checkpoint=inside))
    assert "This checkpoint was not evaluated." in text and "0.9000 [" not in text
    assert "| 2 | 1 | 2 | 40 |" in text, "one step of the round is in it"


@pytest.mark.parametrize("hostile", HOSTILE, ids=["tags", "markup", "unprintable", "long"])
def test_nothing_in_a_card_acts(tmp_path: Path, hostile: str) -> None:
    text = hostile.encode("utf-8", "replace").decode()  # what a ledger can hold
    store = run_records.finished(tmp_path / "run", Shape(text=text))
    store.close()
    template = dataclasses.replace(
        TEMPLATE, stop_texts=(text,), limits=(text,), plain_limits=(text,), origin=text
    )
    source = dataclasses.replace(source_of(store, 2, base=text), base_sha256={text: "c" * 64})
    written = card(
        source,
        template=template,
        checks=[Check(text, False, text)],
        notes=[text],
    )
    plain = card(source_of(store, 2))
    assert _kinds(written) <= _kinds(plain) | {"bullet_list_open", "code_inline"}
    assert front(written)["library_name"] == "peft" and "base_model" not in front(written)
    assert written.isascii() or all(c.isprintable() or c == "\n" for c in written)


def _kinds(text: str) -> set[str]:
    """The kinds of parts that a reader of Markdown finds below the front matter."""
    body = text.split("---\n", 2)[2]
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    kinds = {one.type for token in tokens for one in (token, *(token.children or []))}
    assert not {"html_inline", "html_block", "image", "link_open"} & kinds
    return kinds


def test_the_front_matter_names_a_model_of_the_hub(run: RunStore) -> None:
    cached = Path("/c/hub/models--owner--name/snapshots/abc")
    source = dataclasses.replace(source_of(run, 2), base_name="owner/name", base_dir=cached)
    matter = front(card(source))
    assert matter["base_model"] == "owner/name" and matter["base_model_relation"] == "adapter"
    assert front(card(source, format="merged"))["library_name"] == "transformers"
    assert front(card(source, format="gguf"))["base_model_relation"] == "finetune"
    assert hub_name_of(source_of(run, 2, base="owner/name")) is None, "a folder of that name"


@pytest.mark.parametrize(
    ("readme", "found"),
    [
        ("---\nlicense: apache-2.0\n---\n# m", "apache-2.0"),
        ("---\ntags:\n- a\nlicense: 'MIT'\n---\n", "mit"),
        ("license: mit\n", None),
        ("# m\n---\nlicense: mit\n---\n", None),
        ("---\nlicense: [mit, other]\n---\n", None),
        ("---\nlicense: mit: x\n---\n", None),
        ("---\nlicense: &a [*a]\n---\n", None),
    ],
)
def test_a_license_is_the_one_that_the_base_names(
    tmp_path: Path, readme: str, found: str | None
) -> None:
    (tmp_path / "README.md").write_text(readme)
    assert license_of(tmp_path) == found


def test_a_card_of_hundreds_of_rounds_stays_short(tmp_path: Path) -> None:
    shape = Shape(shares=(0.1, *([0.2] * 120)), num_questions=5, steps=1, is_sealed=False)
    store = run_records.begun(tmp_path / "run", shape)
    run_records.rounds(store, shape)
    store.close()
    text = card(source_of(store, 120))
    assert "The first 100 of 120 rounds are left out." in text
    assert len(re.findall(r"^\| \d+ \| 1 \|", text, re.M)) == 20
