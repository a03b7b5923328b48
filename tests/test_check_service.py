"""--check-service: the embedded service passes each line, and what differs is called by name."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import local_tinker
from commands.check_service import summary, table
from conftest import thorough_only
from errors import ConfigError
from half_services import mute_service
from local_tinker import sampling, sampling_routes, training
from local_tinker.engine import Engine
from loop.planning.service_checks import FILE_SUFFIX, NOT_CHECKED, check_record, checked
from planted import DIVIDED, NEIGHBOURS, PLANTED, low_ranks, plain_prompts
from services import listening
from services.check import checking
from services.check.bench import Bench, Measured, Refused, Said
from services.check.courses import Course, Flags, courses, optimizer_courses, predicted_move
from services.check.sampling import Answer, Scored, ends_line, tempered_bounds, trainer_line
from services.check.training import said_loss, seed_line, token_noise_of
from services.check.verdicts import Found, Line, nearest, worst
from services.listening import Patience
from services.place import ServiceChoice
from services.sdk import NotInThisSdk
from trainer_with_eval import main

Check = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that is sure of some tokens: at any temperature another distribution."""
    from model_dirs import make_model_dir

    return make_model_dir(tmp_path_factory.mktemp("models") / "lively", "llama", is_lively=True)


@pytest.fixture(scope="module")
def served(model_dir: Path) -> Iterator[local_tinker.Service]:
    with local_tinker.start([(str(model_dir), str(model_dir))]) as running:
        yield running


@pytest.fixture
def check(
    served: local_tinker.Service,
    model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Check:
    """Check a service as a user does, and read the answer."""

    def checking(*words: str, exit_code: int, service: local_tinker.Service = served) -> Any:
        key = service.open_folder(tmp_path / "checkpoints")
        monkeypatch.setenv("TINKER_API_KEY", key)
        monkeypatch.setenv("TINKER_BASE_URL", service.base_url)
        overrides = [f"base_model={model_dir}", "max_seq_length=128"]
        asked = [word for one in overrides for word in ("--set", one)]
        assert main(["--check-service", "--json", *asked, *words]) == exit_code
        printed = capsys.readouterr()
        return {**json.loads(printed.out), "stderr": printed.err}

    return checking


def differing(answer: dict[str, Any]) -> list[str]:
    return [line["name"] for line in answer["lines"] if line["verdict"] == "differs"]


def test_the_embedded_service_passes_each_line(check: Check, tmp_path: Path) -> None:
    answer = check(exit_code=0)
    told = {line["name"]: (line["verdict"], line["found"]) for line in answer["lines"]}
    assert {verdict for verdict, _ in told.values()} == {"works"}, told
    assert not list((tmp_path / "checkpoints").rglob("*.safetensors"))
    stated = re.findall(r"(\d[\d,]*) (?:trained|read|sampled)", answer["stderr"])
    spent = [answer["spent"][f"{kind}_tokens"] for kind in ("train", "prompt", "sampled")]
    most = [int(one.replace(",", "")) for one in stated]
    assert all(used <= bound for used, bound in zip(spent, most, strict=True)), (spent, most)


WRONG_MODEL = "wrong model"
ALL = {**PLANTED, WRONG_MODEL: (lambda patch: None, "the model's weights")}
# What differs there is refused, or changes no score.
HARMLESS = ("seed", "clipping", "load_weights first or never")
# Differences that have nothing to do with each other are planted together every day.
TOGETHER = (
    (
        *("mean loss", "dropped eps", "ignored train flags", "untempered log-probabilities"),
        "load_weights at any time",
    ),
    ("alpha 2r", "dropped clipping", "ignored seed", "unrestored optimizer", WRONG_MODEL),
)
# What rests on how a loss is divided, with each way of dividing it.
BESIDE = ("dropped betas", "other beta2", "unrestored optimizer", "dropped clipping")
# There a row's weights have no way to be less, and a weight of 0 is 0/0.
WITHOUT_A_WAY = ("rows by their weights", "dropped clipping")


@pytest.fixture(scope="module")
def misnamed(
    model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[local_tinker.Service]:
    """Another model of the same shape, under the name of the one that is asked for."""
    from model_dirs import make_model_dir

    other = make_model_dir(
        tmp_path_factory.mktemp("models") / "other", "llama", seed=1, is_lively=True
    )
    with local_tinker.start([(str(model_dir), str(other))]) as running:
        yield running


@pytest.mark.parametrize(
    "names",
    [
        *TOGETHER,
        ("rows by their weights or a floor", "dropped clipping", "dropped betas"),
        *(pytest.param((name,), marks=thorough_only) for name in (*ALL, *NEIGHBOURS)),
        *(
            pytest.param((divided, other), marks=thorough_only)
            for divided in DIVIDED
            for other in BESIDE
        ),
    ],
    ids=" and ".join,
)
def test_planted_differences_are_called_by_their_names_and_nothing_else_is(
    names: tuple[str, ...], check: Check, served: local_tinker.Service,
    misnamed: local_tinker.Service, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    planted = [{**ALL, **NEIGHBOURS}[name] for name in names]
    expected = {line for _, line in planted}
    with monkeypatch.context() as patch:
        for plant, _ in planted:
            plant(patch)
        service = misnamed if WRONG_MODEL in names else served
        answer = check(exit_code=0 if expected <= {*HARMLESS} else 1, service=service)
    others = [one for one in answer["lines"] if one["verdict"] != "works"]
    assert set(differing(answer)) == expected, others
    untold = [one["name"] for one in others if one["verdict"] == "cannot tell"]
    assert untold == (["betas", "optimizer comes back"] if names == WITHOUT_A_WAY else [])
    assert set(answer["changes_scores"]) == expected - {*HARMLESS}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("rows by their weights or a floor", "not the negative of rows of positive weights"),
        pytest.param(
            "rows by their weights", "as if their weights were positive", marks=thorough_only
        ),
    ],
)
def test_what_is_done_with_a_rows_weights_is_said(
    name: str, reason: str, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no other number is named for it, as betas and a saved optimizer once were."""
    DIVIDED[name](monkeypatch)
    lines = {line["name"]: line for line in check(exit_code=1)["lines"]}
    said = lines["loss is a plain sum"]["found"]
    assert reason in said
    assert "a row's loss is divided by its weights" in said
    assert "neither" not in said
    assert "told by clipping" in lines["betas"]["found"]


def test_what_is_refused_is_asked_for_otherwise(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SkyRL does, ranks above 32 and the likeliest tokens of a prompt are refused."""
    low_ranks(monkeypatch)
    plain_prompts(monkeypatch)
    answer = check(exit_code=0)
    lines = {line["name"]: line for line in answer["lines"]}
    assert {name for name, line in lines.items() if line["verdict"] != "works"} == {
        "prompt log-probabilities"
    }
    prompts = lines["prompt log-probabilities"]
    assert prompts["verdict"] == "differs"
    assert "the likeliest tokens: refused" in prompts["found"]
    assert "without the first token's place" in prompts["found"]
    assert "tokens behind one prompt" in lines["tempered log-probabilities"]["found"]
    alpha = lines["alpha is 32 at any rank"]["found"]
    assert "a step at rank 4 beside rank 16" in alpha
    assert "rank 64: refused" in alpha


@thorough_only
def test_untempered_log_probabilities_are_told_without_the_likeliest_tokens(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_prompts(monkeypatch)
    PLANTED["untempered log-probabilities"][0](monkeypatch)
    assert differing(check(exit_code=1)) == [
        "tempered log-probabilities",
        "prompt log-probabilities",
    ]


def test_a_save_that_was_never_sent_is_not_kept_in_mind() -> None:
    """An SDK that has no word for it sends nothing, and a service that refuses it has made none."""
    import httpx
    import tinker

    address = httpx.Request("POST", "http://127.0.0.1/api/v1/save")

    def refusal(status: int) -> tinker.APIStatusError:
        response = httpx.Response(status, request=address)
        return tinker.APIStatusError("said", response=response, body=None)

    def left(error: Exception) -> list[str]:
        nothing: Any = None
        bench = Bench(nothing, nothing, nothing, nothing, "check")
        training = SimpleNamespace(model_id="m")
        with pytest.raises(type(error)), bench._kept_in_mind(training, "weights", "state"):  # pyright: ignore[reportArgumentType, reportPrivateUsage]
            raise error
        return list(bench.saved.values())

    assert left(NotInThisSdk("tinker 0.25.0 has no save_weights_external")) == []
    assert left(refusal(400)) == []
    assert left(refusal(500)) == ["doubtful"]


@thorough_only
def test_an_answer_that_the_sdk_cannot_use_is_told_of(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SkyRL's 0.4.0 gives samples no ids, and SDK 0.38 asserts that they have some."""
    answer_of = sampling_routes.json_answer
    monkeypatch.setattr(
        sampling_routes,
        "json_answer",
        lambda body: answer_of({k: v for k, v in body.items() if k != "sample_sequence_ids"}),
    )
    answer = check(exit_code=1)
    assert differing(answer) == ["greedy answers repeat", "seeds of samples"]
    (greedy,) = (one for one in answer["lines"] if one["name"] == "greedy answers repeat")
    assert "the SDK cannot use its answer (AssertionError" in greedy["found"]


def few_courses(rank: int, flags: Flags) -> dict[str, Course]:
    """All of them, without a step: what is trained does not matter."""
    return {name: replace(one, pushes=()) for name, one in courses(rank, flags).items()}


def test_all_ten_are_planted_every_day() -> None:
    assert sorted(name for names in TOGETHER for name in names) == sorted(ALL)
    assert len(ALL) == 10


def test_ctrl_c_leaves_nothing_saved(
    served: local_tinker.Service, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """It comes when a state and its twin have been saved, and samples are asked for."""
    saved: list[Path] = []
    monkeypatch.setenv("TINKER_API_KEY", served.open_folder(tmp_path / "checkpoints"))
    monkeypatch.setenv("TINKER_BASE_URL", served.base_url)
    choose = sampling.choose

    def interrupting(*args: Any) -> Any:
        saved.extend((tmp_path / "checkpoints").rglob("*.safetensors"))
        os.kill(os.getpid(), signal.SIGINT)
        monkeypatch.setattr(sampling, "choose", choose)
        return choose(*args)

    monkeypatch.setattr(sampling, "choose", interrupting)
    overrides = ["--set", f"base_model={model_dir}", "--set", "max_seq_length=128"]
    assert main(["--check-service", *overrides]) == 130
    assert saved
    assert not list((tmp_path / "checkpoints").rglob("*.safetensors"))
    assert "what the check had saved is deleted" in capsys.readouterr().err


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_save_that_is_under_way_when_the_check_is_ended_is_deleted(
    sent: signal.Signals, served: local_tinker.Service, model_dir: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The service is slow to write: the save is made when the check has been told to end."""
    saved: list[Path] = []
    monkeypatch.setenv("TINKER_API_KEY", served.open_folder(tmp_path / "checkpoints"))
    monkeypatch.setenv("TINKER_BASE_URL", served.base_url)
    save = Engine.save

    def slowly(*args: Any, **others: Any) -> Any:
        os.kill(os.getpid(), sent)
        time.sleep(0.2)
        save(*args, **others)
        saved.extend((tmp_path / "checkpoints").rglob("*.safetensors"))

    monkeypatch.setattr(Engine, "save", slowly)
    monkeypatch.setattr(checking, "courses", few_courses)
    overrides = ["--set", f"base_model={model_dir}", "--set", "max_seq_length=128"]
    assert main(["--check-service", "--json", *overrides]) == 130
    printed = capsys.readouterr()
    assert json.loads(printed.out)["error"].endswith("what the check had saved is deleted.")
    assert "Traceback" not in printed.err
    assert saved
    assert not list((tmp_path / "checkpoints").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row[:0], "it gave 0 log-probabilities for 32 targets"),
        (lambda row: np.full_like(row, np.nan), "log-probabilities that are no finite numbers"),
    ],
)
def test_log_probabilities_that_are_none_are_told_of(
    change: Callable[[Any], Any], said: str, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = training.forward_backward

    def forward_backward(*args: Any) -> Any:
        result = forward(*args)
        return result._replace(logprobs=[change(row) for row in result.logprobs])

    monkeypatch.setattr(training, "forward_backward", forward_backward)
    lines = {line["name"]: line for line in check(exit_code=1)["lines"]}
    assert said in lines["betas"]["found"]
    assert lines["training"]["verdict"] == "differs"
    told = [lines[name]["verdict"] for name in ("eps", "seed", "prompt log-probabilities")]
    assert told == ["cannot tell"] * 3


def test_a_service_that_listens_and_says_nothing_is_not_waited_for(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(listening, "OF_A_RUN", Patience(0.1, 0))
    monkeypatch.setenv("TINKER_API_KEY", "tml-any")
    with mute_service() as url:
        monkeypatch.setenv("TINKER_BASE_URL", url)
        assert main(["--check-service", "--json", "--set", f"base_model={model_dir}"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert "takes connections and gave no answer within 0.1 s" in answer["error"]


def test_a_service_that_does_not_train_is_given_up(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing waits for each of two dozen courses in turn."""
    made: list[str] = []

    async def waits(self: Bench, *_: Any) -> Refused:
        made.append(self.name)
        return Refused("no answer within 120 s", is_late=True)

    monkeypatch.setattr(Bench, "run", waits)
    answer = check(exit_code=1)
    assert len(made) == 1
    assert "no answer within 120 s" in answer["error"]


# --- what is said, and written down ---------------------------------------------------------------


def test_several_models_and_none_named_is_bad_input(
    service: local_tinker.Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("TINKER_API_KEY", service.open_folder(tmp_path / "checkpoints"))
    monkeypatch.setenv("TINKER_BASE_URL", service.base_url)
    assert main(["--check-service"]) == 2
    assert "the service lists llama, qwen3, /" in capsys.readouterr().err


def test_a_run_is_refused_a_model_that_the_service_does_not_list(
    workspace: Any, model_dir: Path, service: local_tinker.Service, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """It serves other models, and would it train one of them under this name nobody would know."""
    monkeypatch.setenv("TINKER_API_KEY", service.open_folder(tmp_path / "checkpoints"))
    monkeypatch.setenv("TINKER_BASE_URL", service.base_url)
    config = workspace.folder / "config.json"
    config.write_text(json.dumps({**workspace.settings, "base_model": str(model_dir)}))
    assert main(["--config", str(config), "--run-dir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "does not list it among the models that it trains" in said
    assert "llama, qwen3" in said
    assert not (tmp_path / "run").exists()


def test_a_run_names_the_check_of_its_config_on_its_service(tmp_path: Path) -> None:
    config_file = tmp_path / "c.json"
    there, elsewhere = (ServiceChoice("compatible", f"http://{one}", "") for one in "ab")
    embedded = ServiceChoice("embedded", None, "")
    assert checked(config_file, there, "m") == NOT_CHECKED
    assert checked(config_file, embedded, "m") is None
    lines = [
        Line("betas", "differs", "found", "Adam"),
        Line("seed", "differs", "found", "repeats", changes_scores=False),
        Line("eps", "cannot tell", "found", "Adam"),
    ]
    file = config_file.with_suffix(FILE_SUFFIX)
    file.write_text(json.dumps(check_record(there, "m", lines)))
    assert (checked(config_file, there, "m") or "").endswith("these differ: betas")
    assert checked(config_file, there, "other") == NOT_CHECKED
    assert checked(config_file, elsewhere, "m") == NOT_CHECKED
    file.write_text(json.dumps(check_record(there, "m", lines[1:])))
    assert (checked(config_file, there, "m") or "").endswith(
        "nothing was found that changes scores"
    )
    file.write_text("[]")
    with pytest.raises(ConfigError, match=r"no result of --check-service"):
        checked(config_file, there, "m")


def test_the_table_has_eighty_columns_and_what_differs_says_what_it_affects() -> None:
    lines = [
        Line("betas", "works", "word " * 60, "Adam"),
        Line("seed", "differs", "word " * 60, "repeats", changes_scores=False),
        Line("eps", "cannot tell", "found", "the optimizer"),
    ]
    shown = table(lines)
    assert max(map(len, shown.splitlines())) <= 80
    assert "affects repeats" in shown
    assert "affects the optimizer" in shown
    assert "affects Adam" not in shown
    assert summary(lines) == (
        "1 work, 1 differ, 1 cannot be told; none of those that differ change scores."
    )


# --- the numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gradients", "betas"),
    [
        ([1.0], (0.9, 0.95)),
        ([1.0, -1.0], (0.9, 0.95)),
        ([-10.0, 1.0], (0.9, 0.95)),
        ([1.0, 0.1], (0.0, 0.01)),
        ([1e-6, -1.0], (0.9, 0.95)),
        ([1.0, 1.0, -1.0], (0.5, 0.999)),
    ],
)
def test_the_predicted_move_is_that_of_torch(
    gradients: list[float], betas: tuple[float, float]
) -> None:
    import torch

    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=0.0, betas=betas, eps=0.0, weight_decay=0.0)
    for place, gradient in enumerate(gradients):
        optimizer.param_groups[0]["lr"] = float(place == len(gradients) - 1)
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
    assert predicted_move(gradients, betas) == pytest.approx(-weight.item(), rel=1e-9)


def test_a_check_fits_into_what_an_engine_has_for_adapters_by_default() -> None:
    """SkyRL has 32, of which one is the base model's."""
    made = [*courses(16, Flags()), *optimizer_courses(16, Flags(), "weights of 0"), "nothing"]
    others = ["named", "made up", "falling", "saved", "with optimizer", "without", "lower rank"]
    assert len(made) + len(others) + checking.NUM_PILOTS <= 31


def fresh(*logprobs: tuple[float, ...], moved: float = 0.1, **said: Any) -> dict[str, Measured]:
    """Courses that begin with these log-probabilities of the same weights."""
    names = ("plain", "same seed", "other seed", "not decayed")
    found = {}
    for name, before in zip(names, logprobs, strict=True):
        move = 2 * moved if name == "not decayed" else moved
        found[name] = Measured(before, tuple(one + move for one in before), **said)
    return found


def test_noise_is_not_called_a_difference() -> None:
    """The same weights give other log-probabilities each time, in single ones more than in all."""
    noisy = fresh((-1.02, -3.0), (-1.0, -3.02), (-1.0, -3.02), (-1.02, -3.0))
    assert token_noise_of(noisy) == pytest.approx(0.02)
    assert seed_line(noisy).verdict == "cannot tell"
    quiet = fresh((-1.0, -3.0), (-1.0, -3.0), (-1.0, -3.0), (-1.0, -3.0))
    shifted = quiet["plain"]._replace(after=(-0.88, -2.92))
    ignored = {**quiet, "same seed": shifted, "other seed": shifted}
    assert "the seed is ignored" in seed_line(ignored).found
    assert nearest(0.45, 0.0, {"dropped": 1.0}, noise=0.2).verdict == "cannot tell"
    assert nearest(0.95, 0.0, {"dropped": 1.0}, noise=0.2).verdict == "differs"
    answer = Answer((1, 2, 3, 4), (-1.0, -1.1, -1.0, -1.1))
    scored = Scored(answer, (-1.1, -1.0, -1.1, -1.0), (), None, ())
    assert [trainer_line(scored, noise).verdict for noise in (0.05, 0.0)] == [
        "cannot tell",
        "differs",
    ]


def test_a_loss_that_is_said_is_held_against_the_log_probabilities() -> None:
    same = [(-1.0, -3.0)] * 4

    def verdict(*said: Said, before: Any = same) -> str:
        return said_loss(fresh(*before, losses=said)).verdict

    assert verdict(Said(4.0, 4.01, 2.0)) == "works"
    assert verdict(Said(4.0, 8.0, 2.0)) == "differs"
    assert verdict(Said(4.0, 4.0, 2.0), Said(math.nan, 4.0, 2.0)) == "differs"
    assert verdict(Said(4.0, 4.0, 2.0), Said(4.0, math.nan, 2.0)) == "differs"
    assert verdict(Said(0.05, 0.06, 1.0)) == "differs"  # of a target that is nearly sure
    noisy = [(-1.02, -3.0), (-1.0, -3.02)] * 2
    assert verdict(Said(0.05, 0.06, 1.0), before=noisy) == "works"


def test_an_answer_ends_as_it_was_asked_to() -> None:
    tokens = tuple(range(24))
    whole = Answer(tokens, ())

    def line(stopped: Answer, first: Answer = whole) -> Line:
        return ends_line((first, first), stopped)

    assert line(Answer(tokens[:13], (), "stop")).verdict == "works"
    assert 'is called "length"' in line(Answer(tokens[:13], (), "length")).found
    assert "left out" in line(Answer(tokens[:12], (), "stop")).found
    assert "goes on" in line(whole).found
    assert line(Answer((5, 5, 5), (), "stop")).verdict == "cannot tell"
    assert "25 came" in line(whole, Answer((*tokens, 1), ())).found
    assert "3 came" in line(whole, Answer(tokens[:3], (), "stop")).found


def test_a_reason_that_all_have_is_said_once() -> None:
    same = {name: Found("cannot tell", "it failed") for name in ("one", "two")}
    assert worst(same) == ("cannot tell", "it failed")
    assert worst({"one": Found("cannot tell", "it failed")}).why == "one: it failed"


def test_a_number_is_judged_by_what_it_is_near() -> None:
    broken = {"dropped": 1.0}
    assert nearest(0.04, 0.0, broken).verdict == "works"
    assert nearest(0.9, 0.0, broken) == ("differs", "dropped: 0.90 where 0.00 is promised")
    assert nearest(0.5, 0.0, broken).why.startswith("neither as promised nor as if dropped")
    assert nearest(-3.0, 0.0, broken).verdict == "differs"
    assert nearest(math.nan, 0.0, broken).verdict == "differs"


def test_a_tempered_logprob_lies_within_its_bounds() -> None:
    """Whatever the likeliest tokens leave: a peaked, a flat and a mixed distribution."""
    for probabilities in ([0.9] + [0.001] * 100, [0.01] * 100, [0.3, 0.2] + [0.005] * 100):
        for temperature in (0.3, 0.5, 0.9):
            powers = [one ** (1 / temperature) for one in probabilities]
            for place in (0, len(probabilities) - 1):
                exact = math.log(powers[place] / math.fsum(powers))
                likeliest = [math.log(one) for one in sorted(probabilities, reverse=True)[:20]]
                low, high = tempered_bounds(math.log(probabilities[place]), likeliest, temperature)
                assert low - 1e-9 <= exact <= high + 1e-9
