"""The numbers of cards, exports and promotions, beside those that numpy, scipy and the raw files
give, and what is said of a comparison at its borders."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import export
import recomputed
import registry
from exports.gathering import gather_reference
from exports.reference import OWN_QUESTIONS
from exports.self_check import Noise, _beside, limits_for
from exports.source import Asked, find_source
from loop.reports.progress import Progress
from promotion.comparing import Pairing, pair
from recomputed import Change, Figures
from scores.results import EvalResult, Measured, SampleResult, eval_result, task_result
from scores.wording import p_value_text, scores_apart, signed_text
from test_checkpoint_eval import LEARNED
from test_loop import Workspace

RUN = Path("runs/r")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, llama_dir: Path) -> Iterator[Path]:
    """A run of two tasks and a guard, whose round 1 is better than its round 2; both promoted, the
    better one exported."""
    made = Workspace(tmp_path_factory.mktemp("numbers"), llama_dir)
    ask = "Which word stands at {} {}?".format
    for name, answer in (("train", "x"), ("pool", "q")):
        rows = [{"instruction": ask("spot", i), "output": answer} for i in range(40)]
        made.write_rows(f"{name}.jsonl", rows)
    for name, number, wrong in (("a", 8, 2), ("b", 14, 1), ("guard", 9, 2), ("sealed", 6, 2)):
        rows = [
            {"question": ask(name, i), "answer": "q" if i < wrong else "x", "topic": "words"}
            for i in range(number)
        ]
        made.write_rows(f"{name}.jsonl", rows)
    made.write_rows("held.jsonl", [{"instruction": ask("hold", 1), "output": "x"}])
    made.settings |= LEARNED
    made.settings |= {
        "eval_tasks": ["qa:a.jsonl", "qa:b.jsonl", "qa:guard.jsonl", "nll:held.jsonl"],
        "eval_threshold": 0.1,
        "gate": {**LEARNED["gate"], "stop": False, "guards": {"qa:guard.jsonl": 0.9}},
        "evaluation": {"max_tokens": 4, "test_tasks": ["qa:sealed.jsonl"]},
    }
    assert made.run(str(RUN)) == 0
    before = Path.cwd()
    os.chdir(made.folder)
    try:
        assert export.main([str(RUN), "out", "--format", "peft"]) == 0
        assert registry.main(["promote", f"{RUN}@round_01", "words"]) == 0
        assert registry.main(["promote", f"{RUN}@round_02", "words", "--force", "a test"]) == 0
        yield made.folder
    finally:
        os.chdir(before)


@pytest.fixture
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the run, as the working directory."""
    monkeypatch.chdir(folder)
    return folder


def entries() -> list[dict[str, Any]]:
    lines = Path("registry.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    return [one["entry"] for one in events if one["type"] == "promoted"]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def score_text(one: Figures) -> str:
    return f"{one.score:.4f} [{one.low:.2f}, {one.high:.2f}]"


def change_text(one: Change) -> str:
    p_value = "" if one.p_value is None else f", p = {one.p_value:.2g}"
    return f"{one.mean:+.4f} [{one.low:+.2f}, {one.high:+.2f}]{p_value}"


def test_a_card_has_the_numbers_of_the_raw_files(there: Path) -> None:
    card = Path("out/README.md").read_text()
    start, best = (recomputed.evaluation(RUN, name) for name in ("round_00", "round_01"))
    whole, was = recomputed.figures_of(best), recomputed.figures_of(start)
    change = recomputed.change_of(best, start)
    assert f"Score {score_text(whole)} on 22 dev questions" in card and score_text(was) in card
    assert f"change {change_text(change)}. It passes its gate" in card
    assert "mean of the scores of 2 tasks" in card
    earlier = {task["name"]: task for task in start["tasks"]}
    for task in best["tasks"]:
        before, now = earlier[task["name"]], recomputed.figures_of_task(task)
        moved = change_text(recomputed.change_of_task(task, before))
        first = recomputed.figures_of_task(before).score
        assert f"| {first:.4f} | {score_text(now)} | {moved} | {now.n} |" in card
    sealed = recomputed.figures_of(recomputed.evaluation(RUN, "test"))
    assert f"gave {score_text(sealed)} on 6" in card
    wrong = sum(score < 1 for task in recomputed.scored(best)
                for score in recomputed.by_question(task).values())  # fmt: skip
    assert f"{wrong} of 22 dev questions were not answered right" in card
    steps = recomputed.steps_of(RUN, 1)
    ids = {one for step in steps for one in step["example_ids"]}
    tokens = sum(step["num_tokens"] for step in steps)
    assert f"| 1 | {len(steps)} | {len(ids)} | {tokens:,} | " in card
    assert f"{tokens:,} tokens were trained in these rounds" in card
    for name in ("train", "pool"):
        assert f"| {name}.jsonl | 40 | {sha256(Path(f'{name}.jsonl'))} |" in card


def test_an_export_is_as_near_to_the_service_as_it_says(there: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    source = find_source(Asked(str(RUN)))
    reference = gather_reference(source, dict(os.environ), Progress(verbose=False))
    base = AutoModelForCausalLM.from_pretrained(source.base_dir, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, "out").eval()

    def logits_of(tokens: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            return model(input_ids=torch.tensor([list(tokens)])).logits[0]

    apart: list[float] = []
    for one in reference.scored:
        mine = logits_of(one.tokens)[:-1].double().log_softmax(-1)
        picked = mine[range(len(one.tokens) - 1), list(one.tokens[1:])]
        apart += (picked - torch.tensor(one.logprobs, dtype=torch.float64)).abs().tolist()
    same = 0
    for one in reference.answers:
        tokens = list(one.prompt)
        while len(tokens) < len(one.prompt) + 4 and tokens[-1:] != [reference.stop[0]]:
            tokens.append(int(logits_of(tokens)[-1].argmax()))
        same += tuple(tokens[len(one.prompt) :]) == one.answer
    record = json.loads(Path("out/export.json").read_text())
    assert record["asked"]["questions"] == reference.origin == OWN_QUESTIONS
    said = {one["name"]: one["figures"] for one in record["checks"]}
    logprobs, answers = said["log-probabilities"], said["greedy answers"]
    assert (logprobs["num_texts"], logprobs["num_tokens"]) == (20, len(apart))
    assert np.mean(apart) == pytest.approx(logprobs["mean"], abs=1e-6)
    assert max(apart) == pytest.approx(logprobs["largest"], abs=1e-5)
    assert (answers["num"], answers["num_identical"]) == (len(reference.answers), same)


def test_a_registry_has_the_numbers_of_the_raw_files(there: Path) -> None:
    first, second = entries()
    for number, entry in ((1, first), (2, second)):
        file = RUN / f"evals/round_{number:02d}.json"
        raw = json.loads(file.read_text())
        whole, results = recomputed.figures_of(raw), entry["results"]
        assert (results["score"], results["n"]) == (pytest.approx(whole.score), 22)
        assert results["interval"] == pytest.approx([whole.low, whole.high])
        assert (results["file"], results["file_sha256"]) == (file.relative_to(RUN).as_posix(),
                                                             sha256(file))  # fmt: skip
        for task in raw["tasks"]:
            own, said = recomputed.figures_of_task(task), results["tasks"][task["name"]]
            assert (said["role"], said["n"]) == (task["role"], own.n)
            assert [said["score"], *said["interval"]] == pytest.approx(
                [own.score, own.low, own.high]
            )
        (loss,) = raw["held_out"]
        nll = sum(r["nll_sum"] for r in loss["rows"]) / sum(
            r["num_loss_tokens"] for r in loss["rows"]
        )
        assert results["held_out"]["nll:held.jsonl"] == {"nll": pytest.approx(nll), "n": 1}
        (weights,) = RUN.glob(f"checkpoints/*/sampler_weights/round_{number:02d}")
        for name, digest in entry["weights_sha256"].items():
            assert sha256(weights / name) == digest
        for name, digest in entry["base_sha256"].items():
            assert sha256(Path(entry["base_model"]) / name) == digest
        assert entry["data_sha256"] == sha256(RUN / "data_manifest.json")
        assert entry["step"] == 40 * number
    sealed = recomputed.figures_of(recomputed.evaluation(RUN, "test"))
    assert first["sealed_test"]["score"] == sealed.score and first["sealed_test"]["n"] == 6
    assert first["sealed_test"]["file_sha256"] == sha256(RUN / "evals/test.json")
    assert second["sealed_test"] is None, "it was asked of round 1"


def test_a_promotion_has_the_paired_differences_of_the_raw_files(there: Path) -> None:
    against = entries()[1]["against"]
    after, before = (recomputed.evaluation(RUN, f"round_{n:02d}") for n in (2, 1))
    whole = recomputed.change_of(after, before)
    assert [against["difference"], *against["interval"]] == pytest.approx(list(whole[:3]))
    assert (against["n"], against["p_value"], against["verdict"]) == (22, None, "lower")
    earlier = {task["name"]: task for task in before["tasks"]}
    assert [one["name"] for one in against["tasks"]] == list(earlier)
    for task, said in zip(after["tasks"], against["tasks"], strict=True):
        own = recomputed.change_of_task(task, earlier[task["name"]])
        found = [said["difference"], *said["interval"], said["p_value"], said["n"]]
        assert found == pytest.approx(list(own))


def test_a_list_shows_what_its_entries_hold(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert registry.main(["list"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert "when (UTC)" in head
    for entry, line in zip(entries(), lines, strict=False):
        results = entry["results"]
        low, high = results["interval"]
        shown = f"{results['score']:.4f} [{low:.2f}, {high:.2f}]"
        assert line.startswith(f"{entry['name']}@{entry['version']} {shown} ")
        assert f" {results['n']} {entry['time'][:10]} " in line


# --- at the borders -------------------------------------------------------------------------------


def asked(name: str, scores: Sequence[float]) -> list[SampleResult]:
    return [
        SampleResult(f"{name}/{number}", None, "?", ("!",), "", score, False, False, None)
        for number, score in enumerate(scores)
    ]


def result(scores: Sequence[float], guard: Sequence[float] = ()) -> EvalResult:
    tasks = [task_result("t", asked("t", scores))]
    if guard:
        tasks.append(task_result("g", asked("g", guard), role="guard"))
    return eval_result(1, "weights", Measured(tuple(tasks)), {})


def paired(better: int, worse: int, n: int = 100) -> Pairing:
    """So many questions gained and lost, and the others answered right by both."""
    same = [1.0] * (n - better - worse)
    return pair(
        "new",
        result([1.0] * better + [0.0] * worse + same),
        "old",
        result([0.0] * better + [1.0] * worse + same),
    )


@pytest.mark.parametrize(
    ("better", "worse", "n", "verdict"),
    [
        (0, 0, 100, "equal"),
        (50, 50, 100, "equal"),
        (1, 0, 100, "not told apart"),
        (0, 1, 100, "lower"),  # by however little
        (5, 0, 5, "not told apart"),  # the interval is above 0, p is 0.063
        (9, 2, 100, "not told apart"),  # and 0.065 here
        (8, 1, 100, "better"),
        (100, 0, 100, "better"),
        (0, 100, 100, "lower"),
        (0, 0, 1, "equal"),
        (1, 0, 1, "not told apart"),  # of one question no interval is known
        (0, 1, 1, "lower"),
    ],
)
def test_what_a_comparison_comes_to(better: int, worse: int, n: int, verdict: str) -> None:
    found = paired(better, worse, n)
    assert (found.verdict, found.is_worse) == (verdict, verdict == "lower")
    assert f"n={n})" in found.sentence and found.to_json()["n"] == n
    p_value = found.difference.p_value
    if "beyond noise" in found.sentence and "not beyond noise" not in found.sentence:
        assert p_value is not None and p_value < 0.05


def test_a_difference_that_counts_is_seen() -> None:
    scores = [number / 100 for number in range(100)]
    low = pair("new", result([s * 0.99999 for s in scores]), "old", result(scores))
    assert low.verdict == "lower" and ", -5e-06 [-6e-06, -4e-06] (" in low.sentence
    assert "0.494995 against 0.495000" in low.sentence
    assert "-0.0000" not in low.sentence and "-0.00]" not in low.sentence
    alike = pair("new", result([s * (1 - 1e-15) for s in scores]), "old", result(scores))
    assert alike.verdict == "equal" and "+0.0000" in alike.sentence
    assert "p < 1e-300" in paired(5000, 0, 5000).sentence


def test_numbers_have_the_digits_that_they_need() -> None:
    assert [signed_text(x) for x in (0.0, -1e-17, 2e-6, -0.25)] == [
        "+0.0000", "+0.0000", "+2e-06", "-0.2500",
    ]  # fmt: skip
    assert scores_apart(0.85, 0.850001) == ("0.850000", "0.850001")
    assert scores_apart(0.85, 0.85) == ("0.8500", "0.8500")
    shown = [p_value_text(p) for p in (None, 0.0, 0.0499)]
    assert shown == ["", ", p < 1e-300", ", p = 0.0499"]
    assert _beside(1.04e-5, 1e-5) == ("1.04e-05", "1e-05") and _beside(1e-5, 2e-5)[1] == "2e-05"


def test_a_guard_that_fell_is_named_where_it_does_not_count() -> None:
    def of(now: Sequence[float], before: Sequence[float]) -> Pairing:
        return pair("new", result([1.0] * 9, now), "old", result([1.0] * 9, before))

    one = of([0.0], [1.0])
    assert one.verdict == "equal"
    assert "guards that fell, not told apart from noise: g (guard): 0.0000" in one.sentence
    many = of([0.0] * 9 + [1.0] * 91, [1.0] * 100)
    assert many.verdict == "worse in a guard" and many.is_worse
    assert "; g (guard): 0.9100 against 1.0000" in many.sentence
    assert "guard" not in of([1.0], [0.0]).sentence, "it rose"


def test_no_number_is_no_score() -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        result([float("nan"), 1.0])
    raw = json.loads(json.dumps(result([1.0, 0.0]).to_json()))
    raw["tasks"][0]["samples"][0]["score"] = float("nan")
    with pytest.raises(ValueError):
        EvalResult.from_json(raw)


def test_limits_are_the_sum_that_they_are_said_to_be() -> None:
    limits = limits_for(Noise(2e-6, 4e-5, "computing in float32"))
    assert limits[:2] == (pytest.approx(3 * 2e-6 + 1e-5), pytest.approx(3 * 4e-5 + 1e-4))
    assert limits.why == (
        "3 times what computing in float32 changes, 2e-06 and 4e-05, and 1e-05 and 0.0001 more"
    )


def test_how_often_a_promotion_is_wrong_is_counted_by_its_own_rule() -> None:
    from benchmarks.promotion_errors import answers, compared, rates_of

    seeds = range(12)
    found = [answers(random.Random(seed), 40, 0.0, 0.3) for seed in seeds]
    for before, after in found:
        assert compared(after, before).is_worse == (sum(after) < sum(before))
    assert sum(a != b for one in found for a, b in zip(*one, strict=True)) == pytest.approx(
        0.3 * 40 * len(seeds), rel=0.25
    )
    never = rates_of(random.Random(0), 5, 50, 0.2, 0.2)  # every change is for the better
    assert (never.refused, never.guard_refused) == (0, 0)
