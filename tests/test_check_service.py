"""--check-service: the embedded service passes each line, and what differs is called by name."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import local_tinker
from commands.check_service import summary, table
from conftest import thorough_only
from errors import ConfigError
from local_tinker import sampling, sampling_routes
from loop.planning.service_checks import FILE_SUFFIX, NOT_CHECKED, check_record, checked
from planted import NEIGHBOURS, PLANTED
from services.check.courses import predicted_move
from services.check.sampling import tempered_bounds
from services.check.verdicts import Line, nearest
from services.place import ServiceChoice
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
        *(pytest.param((name,), marks=thorough_only) for name in (*ALL, *NEIGHBOURS)),
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
    assert set(answer["changes_scores"]) == expected - {*HARMLESS}


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
