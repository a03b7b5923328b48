"""--check-service: the embedded service passes each line, and what differs is called by its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import local_tinker
from conftest import thorough_only
from planted import NEIGHBOURS, PLANTED, Plant
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
        return json.loads(capsys.readouterr().out)

    return checking


def differing(answer: dict[str, Any]) -> list[str]:
    return [line["name"] for line in answer["lines"] if line["verdict"] == "differs"]


def test_the_embedded_service_passes_each_line(check: Check, tmp_path: Path) -> None:
    answer = check(exit_code=0)
    told = {line["name"]: (line["verdict"], line["found"]) for line in answer["lines"]}
    assert {verdict for verdict, _ in told.values()} == {"works"}, told
    assert not list((tmp_path / "checkpoints").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("name", "planted"),
    [
        *PLANTED.items(),
        *(pytest.param(name, one, marks=thorough_only) for name, one in NEIGHBOURS.items()),
    ],
)
def test_one_planted_difference_is_called_by_its_name(
    name: str, planted: tuple[Plant, str], check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, line = planted
    with monkeypatch.context() as patch:
        plant(patch)
        answer = check(exit_code=0 if line in HARMLESS else 1)
    assert differing(answer) == [line], [
        one for one in answer["lines"] if one["verdict"] != "works"
    ]


# What differs there is refused, or changes no score.
HARMLESS = ("seed", "clipping", "load_weights first or never")
